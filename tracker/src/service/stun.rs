//! A STUN server (RFC 8489, binding only; its socket is in `relay.rs`): tells viewers how their NAT maps them, so that they can reach each other.
//!
//! Without it only viewers of the same network find each other, and the program asks no server of third parties.
//! Stateless: one answer of 40 bytes for one request of 20 or more, so it amplifies nothing worth abusing, and only
//! well-formed binding requests are answered.

use std::net::SocketAddr;

use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Message, Setter, is_stun_message};
use rtc_stun::xoraddr::XorMappedAddress;

/// The answer to a binding request.
pub(super) fn answer(request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    if !is_stun_message(request) {
        return None;
    }
    let mut asked = Message::new();
    asked.unmarshal_binary(request).ok()?;
    if asked.typ != BINDING_REQUEST {
        return None;
    }
    let address = XorMappedAddress { ip: from.ip().to_canonical(), port: from.port() };
    let parts: [Box<dyn Setter>; 4] =
        [Box::new(asked.transaction_id), Box::new(BINDING_SUCCESS), Box::new(address), Box::new(FINGERPRINT)];
    let mut answer = Message::new();
    answer.build(&parts).ok()?;
    Some(answer.raw)
}

#[cfg(test)]
mod tests {
    use rtc_stun::message::{Getter as _, TransactionId};

    use super::*;

    fn request() -> Message {
        let mut request = Message::new();
        request.build(&[Box::new(TransactionId([7; 12])), Box::new(BINDING_REQUEST)]).unwrap();
        request
    }

    #[test]
    fn a_binding_request_is_answered_with_the_address_that_it_came_from() {
        for from in ["5.6.7.8:4321", "[2a01::1]:4321", "[::ffff:5.6.7.8]:4321"] {
            let from: SocketAddr = from.parse().unwrap();
            let mut reply = Message::new();
            reply.unmarshal_binary(&answer(&request().raw, from).unwrap()).unwrap();
            assert_eq!((reply.typ, reply.transaction_id), (BINDING_SUCCESS, request().transaction_id));
            let mut address = XorMappedAddress::default();
            address.get_from(&reply).unwrap();
            assert_eq!((address.ip, address.port), (from.ip().to_canonical(), 4321));
            FINGERPRINT.check(&reply).unwrap();
        }
    }

    #[test]
    fn anything_else_is_ignored() {
        let from = "5.6.7.8:4321".parse().unwrap();
        assert_eq!(answer(b"", from), None);
        assert_eq!(answer(&[0; 20], from), None);
        let mut success = request().raw;
        success[0] = 1;
        assert_eq!(answer(&success, from), None, "answers are not answered: two servers would never stop");
        let mut truncated = request().raw;
        truncated[3] = 200;
        assert_eq!(answer(&truncated, from), None);
    }
}
