//! The sans-I/O swarm core: decides where each block comes from.
