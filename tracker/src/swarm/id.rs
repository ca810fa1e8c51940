//! Ids that cannot be guessed: of swarms, and for coming back to a place in one.
//!
//! Pure: keyed hashes over what the caller gives. A swarm's id cannot be computed from the stream's public URL, so a
//! stranger cannot enumerate viewers by joining swarms of his own making. A resume token needs no table: it is checked
//! by computing it again, so it outlives a restart of the tracker with the same secret.

use std::fmt::Write as _;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use shoal_tracker_protocol::PeerId;

/// The tracker's secret.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id of a stream's swarm: 32 hex digits. `epoch` is the publication's, `generation` is counted up when the
    /// operator turns an open stream private or hides addresses (or ends that), so that old members cannot come back.
    #[must_use]
    pub fn swarm_id(&self, stream: &str, epoch: &[u8; 16], generation: u32) -> String {
        let name_length = u32::try_from(stream.len()).unwrap_or(u32::MAX).to_be_bytes();
        let parts: [&[u8]; 4] = [&name_length, stream.as_bytes(), epoch, &generation.to_be_bytes()];
        hex::encode(&self.hash("swarm", &parts)[..16])
    }

    /// What a viewer shows to get its place back: the peer id, and a hash that only the tracker can make.
    #[must_use]
    pub fn resume_token(&self, swarm: &str, peer: PeerId) -> String {
        let mut token = format!("{peer:08x}.");
        for byte in &self.hash("resume", &[swarm.as_bytes(), &peer.to_be_bytes()])[..16] {
            write!(token, "{byte:02x}").expect("writing to a string cannot fail");
        }
        token
    }

    /// The peer id in a resume token of this swarm; none if the token was not made here.
    #[must_use]
    pub fn resumed_peer(&self, swarm: &str, token: &str) -> Option<PeerId> {
        let (peer, mac) = token.split_once('.')?;
        if peer.len() != 8 || mac.len() != 32 {
            return None;
        }
        let peer = PeerId::from_str_radix(peer, 16).ok()?;
        let mac = hex::decode(mac).ok()?;
        let mut hmac = self.keyed("resume");
        hmac.update(swarm.as_bytes());
        hmac.update(&peer.to_be_bytes());
        // Compares in constant time.
        hmac.verify_truncated_left(&mac).ok().map(|()| peer)
    }

    fn hash(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut hmac = self.keyed(purpose);
        parts.iter().for_each(|part| hmac.update(part));
        hmac.finalize().into_bytes().into()
    }

    fn keyed(&self, purpose: &str) -> Hmac<Sha256> {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        hmac.update(purpose.as_bytes());
        hmac.update(b"\0");
        hmac
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swarm_ids_differ_by_secret_stream_epoch_and_generation() {
        let (one, two) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let base = one.swarm_id("demo", &[7; 16], 0);
        assert_eq!(base.len(), 32);
        assert_eq!(base, one.swarm_id("demo", &[7; 16], 0));
        assert_ne!(base, two.swarm_id("demo", &[7; 16], 0));
        assert_ne!(base, one.swarm_id("demp", &[7; 16], 0));
        assert_ne!(base, one.swarm_id("demo", &[8; 16], 0));
        assert_ne!(base, one.swarm_id("demo", &[7; 16], 1));
    }

    #[test]
    fn a_resume_token_works_only_where_it_was_made() {
        let secret = Secret::new([1; 32]);
        let token = secret.resume_token("swarm", 0xbeef);
        assert_eq!(secret.resumed_peer("swarm", &token), Some(0xbeef));
        assert_eq!(secret.resumed_peer("other", &token), None);
        assert_eq!(Secret::new([2; 32]).resumed_peer("swarm", &token), None);
        assert_eq!(secret.resumed_peer("swarm", &token.replacen("0000beef", "0000beee", 1)), None);
        for forged in ["", ".", "0000beef.", "0000beef.00", "zzzzzzzz.00000000000000000000000000000000"] {
            assert_eq!(secret.resumed_peer("swarm", forged), None, "{forged}");
        }
    }
}
