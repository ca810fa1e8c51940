//! One program: ingest, origin and tracker behind one port.
