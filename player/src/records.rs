//! Digest records that were verified, so that the viewers of one process check and hold each of them once.
//!
//! The tracker sends each record to every viewer. A thousand viewers in one process would check the same signature a
//! thousand times, and keep as many copies.

use std::{collections::VecDeque, fmt, sync::Arc};

use parking_lot::Mutex;
use shoal_swarm::{OriginKey, SignedRecord};

/// Records remembered; beyond it the oldest are forgotten, which costs whoever asks for them again a check. As many as one
/// viewer's core knows of by default.
const RECORDS_MAX: usize = 480;

/// The verified records of some viewers. Clones share what they know; viewers of different streams may share one, too.
#[derive(Clone, Default)]
pub struct Records(Arc<Mutex<VecDeque<Verified>>>);

struct Verified {
    key: OriginKey,
    record: Arc<SignedRecord>,
}

impl Records {
    /// The record of these bytes, if it is one that `key` has signed.
    pub(crate) fn verify(&self, bytes: &[u8], key: &OriginKey) -> Option<Arc<SignedRecord>> {
        // Held while the signature is checked: those who hear of the piece in the same moment wait for the result.
        let mut verified = self.0.lock();
        let is_same = |known: &&Verified| known.record.bytes() == bytes && known.key == *key;
        // What was published last is what everybody is told of now.
        if let Some(known) = verified.iter().rev().find(is_same) {
            return Some(Arc::clone(&known.record));
        }
        let record = SignedRecord::verify(bytes, key).ok()?;
        if verified.len() >= RECORDS_MAX {
            verified.pop_front();
        }
        verified.push_back(Verified { key: key.clone(), record: Arc::clone(&record) });
        Some(record)
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("count", &self.0.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use shoal_swarm::{Epoch, PieceId, Record};

    use super::*;

    fn signed(msn: u64, key: &SigningKey) -> Vec<u8> {
        let piece = PieceId { rendition: 0, msn, part: 0 };
        Record::of(Epoch([1; 16]), piece, true, true, 1000, 500, b"media").sign(key)
    }

    #[test]
    fn two_viewers_hold_one_record() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let (records, bytes) = (Records::default(), signed(4, &key));
        let of = |records: &Records| records.verify(&bytes, &OriginKey::of(&key)).expect("it is signed");
        assert!(Arc::ptr_eq(&of(&records), &of(&records.clone())));
        // The control: two that know nothing of each other.
        assert!(!Arc::ptr_eq(&of(&records), &of(&Records::default())));
    }

    #[test]
    fn what_is_known_of_one_origin_says_nothing_of_another() {
        let (key, other) = (SigningKey::from_bytes(&[3; 32]), SigningKey::from_bytes(&[4; 32]));
        let (records, bytes) = (Records::default(), signed(4, &key));
        assert!(records.verify(&bytes, &OriginKey::of(&key)).is_some());
        assert!(records.verify(&bytes, &OriginKey::of(&other)).is_none());
        let mut changed = bytes.clone();
        changed[30] ^= 1;
        assert!(records.verify(&changed, &OriginKey::of(&key)).is_none());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let records = Records::default();
        for msn in 0..=RECORDS_MAX as u64 {
            assert!(records.verify(&signed(msn, &key), &OriginKey::of(&key)).is_some());
        }
        let verified = records.0.lock();
        assert_eq!(verified.len(), RECORDS_MAX);
        assert_eq!(verified.front().map(|oldest| oldest.record.record().piece.msn), Some(1));
    }
}
