//! A digest record together with its signed bytes, so that it can be passed on.
//!
//! One comes of [`SignedRecord::verify`], or of a driver's word for its signature
//! ([`Input::RecordChecked`](crate::Input::RecordChecked)), so holding one means that the origin vouches for it. It is
//! shared by reference count: thousands of viewers in one process (a simulation, `shoal watch --count`) verify and
//! store a record once.

use std::sync::Arc;

use shoal_digest::{Error, OriginKey, Record};

/// A verified digest record and the bytes it came from.
#[derive(Debug, PartialEq, Eq)]
pub struct SignedRecord {
    record: Record,
    bytes: Vec<u8>,
}

impl SignedRecord {
    /// Reads a record and checks the origin's signature.
    ///
    /// # Errors
    /// The bytes are not a record, or not signed with this key.
    pub fn verify(bytes: &[u8], key: &OriginKey) -> Result<Arc<Self>, Error> {
        let record = Record::verify(bytes, key)?;
        Ok(Arc::new(Self { record, bytes: bytes.to_vec() }))
    }

    /// Reads a record whose signature somebody else has checked.
    pub(crate) fn vouched(bytes: &[u8]) -> Result<Arc<Self>, Error> {
        let record = Record::decode_unverified(bytes)?;
        Ok(Arc::new(Self { record, bytes: bytes.to_vec() }))
    }

    /// What the origin vouches for.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The signed bytes, as they are relayed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
