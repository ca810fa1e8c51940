//! As much of STUN (RFC 8489) as it takes to know whose datagram one is, and whether to believe it.
//!
//! The WebRTC stack does connectivity checks itself. Here the first datagram from an unknown address is only
//! given to a session when its USERNAME names the session and its MESSAGE-INTEGRITY was made with the
//! session's password. Otherwise anybody who has seen a user name fragment could move a stream to his address.

use hmac::{Hmac, Mac};
use sha1::Sha1;

const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER_BYTES: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const USE_CANDIDATE: u16 = 0x0025;
/// Type, length and the 20 bytes of an HMAC-SHA1.
const INTEGRITY_ATTRIBUTE_BYTES: usize = 24;

/// Whether a datagram is STUN: RFC 7983 demultiplexes by the first byte, the cookie makes sure.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_BYTES && datagram[0] < 4 && datagram[4..8] == MAGIC_COOKIE
}

/// A binding request, as far as it matters for demultiplexing.
#[derive(Clone, Copy, Debug)]
pub struct BindingRequest<'a> {
    datagram: &'a [u8],
    /// The part of USERNAME before the colon: the receiver's user name fragment.
    pub ufrag: &'a str,
    /// Whether the sender nominates this pair.
    pub is_nominating: bool,
    integrity_at: usize,
}

impl<'a> BindingRequest<'a> {
    /// Reads a binding request. `None` for anything else, and for one without user name or integrity.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        if !is_stun(datagram) || be16(datagram, 0)? != BINDING_REQUEST {
            return None;
        }
        let end = HEADER_BYTES + usize::from(be16(datagram, 2)?);
        if end != datagram.len() {
            return None;
        }
        let (mut ufrag, mut is_nominating) = (None, false);
        let mut at = HEADER_BYTES;
        while at + 4 <= end {
            let (kind, length) = (be16(datagram, at)?, usize::from(be16(datagram, at + 2)?));
            let value = datagram.get(at + 4..at + 4 + length)?;
            match kind {
                USERNAME => ufrag = Some(std::str::from_utf8(value).ok()?.split(':').next()?),
                USE_CANDIDATE => is_nominating = true,
                MESSAGE_INTEGRITY if length == 20 => {
                    return Some(Self { datagram, ufrag: ufrag?, is_nominating, integrity_at: at });
                }
                _ => {}
            }
            at += 4 + length.next_multiple_of(4);
        }
        None
    }

    /// Whether the integrity was made with this password (RFC 8489, 14.5).
    pub fn is_authentic(&self, password: &str) -> bool {
        let mut mac =
            Hmac::<Sha1>::new_from_slice(password.as_bytes()).expect("HMAC takes keys of any length");
        // The length field counts up to and including MESSAGE-INTEGRITY, not what follows it (FINGERPRINT).
        let length = (self.integrity_at - HEADER_BYTES + INTEGRITY_ATTRIBUTE_BYTES) as u16;
        mac.update(&self.datagram[..2]);
        mac.update(&length.to_be_bytes());
        mac.update(&self.datagram[4..self.integrity_at]);
        mac.verify_slice(&self.datagram[self.integrity_at + 4..self.integrity_at + INTEGRITY_ATTRIBUTE_BYTES])
            .is_ok()
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sample request of RFC 5769, 2.1.
    const SAMPLE: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74\
        002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020\
        000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
    const PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";

    #[test]
    fn the_sample_of_rfc_5769_is_authentic() {
        let datagram = hex::decode(SAMPLE.replace(char::is_whitespace, "")).unwrap();
        let request = BindingRequest::parse(&datagram).unwrap();
        assert_eq!(request.ufrag, "evtj");
        assert!(!request.is_nominating);
        assert!(request.is_authentic(PASSWORD));
        assert!(!request.is_authentic("VOkJxbRl1RmTxUk/WvJxBs"));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let original = hex::decode(SAMPLE.replace(char::is_whitespace, "")).unwrap();
        // Everything up to the integrity's end but the length field, which is replaced for the check, and types
        // and lengths, whose change makes the request unreadable or something else.
        for at in [8, 19, 24, 50, 60, 80, 95] {
            let mut datagram = original.clone();
            datagram[at] ^= 1;
            if let Some(request) = BindingRequest::parse(&datagram) {
                assert!(!request.is_authentic(PASSWORD), "byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut datagram in proptest::collection::vec(any::<u8>(), 0..200), is_shaped: bool) {
            if is_shaped && datagram.len() >= HEADER_BYTES {
                let length = (datagram.len() - HEADER_BYTES) as u16;
                datagram[..2].copy_from_slice(&[0, 1]);
                datagram[2..4].copy_from_slice(&length.to_be_bytes());
                datagram[4..8].copy_from_slice(&MAGIC_COOKIE);
            }
            if let Some(request) = BindingRequest::parse(&datagram) {
                request.is_authentic(PASSWORD);
            }
        }
    }
}
