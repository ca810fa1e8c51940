//! Writing and reading what `rtc-stun` has no words for: answers with their signatures, channel data, nonces, and
//! coturn's credentials.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use rtc_stun::attributes::{
    ATTR_DATA, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM, ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS,
};
use rtc_stun::crypto::RTCCrypto;
use rtc_stun::error_code::{ErrorCode, ErrorCodeAttribute};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_SUCCESS_RESPONSE, METHOD_DATA, Message, MessageType,
    Setter as _, TransactionId,
};
use rtc_stun::xoraddr::XorMappedAddress;
use sha1::Sha1;
use sha2::Sha256;

use super::REALM;

/// A nonce is good for this long; then the client is told a new one and goes on.
pub(super) const NONCE_MS: u64 = 3_600_000;

/// The key with which an answer is signed, and the means.
type Signing<'a> = (&'a [u8], &'a dyn RTCCrypto);

/// What a request that succeeded is told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Granted {
    pub(super) relayed: Option<SocketAddr>,
    pub(super) mapped: Option<SocketAddr>,
    pub(super) lifetime_s: Option<u32>,
}

/// The password for a user name: `base64(HMAC-SHA1(secret, user name))`, as coturn's `use-auth-secret` has it.
pub(crate) fn credential(secret: &str, username: &str) -> String {
    let mut hmac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    hmac.update(username.as_bytes());
    STANDARD.encode(hmac.finalize().into_bytes())
}

fn answer(request: &Message, class: rtc_stun::message::MessageClass) -> Message {
    let mut answer = Message::new();
    answer.set_type(MessageType { method: request.typ.method, class });
    answer.transaction_id = request.transaction_id;
    answer.write_header();
    answer
}

pub(super) fn success(request: &Message, granted: &Granted, (key, crypto): Signing<'_>) -> Option<Vec<u8>> {
    let mut answer = answer(request, CLASS_SUCCESS_RESPONSE);
    let xor = |address: SocketAddr| XorMappedAddress { ip: address.ip(), port: address.port() };
    if let Some(relayed) = granted.relayed {
        xor(relayed).add_to_as(&mut answer, ATTR_XOR_RELAYED_ADDRESS).ok()?;
    }
    if let Some(lifetime_s) = granted.lifetime_s {
        answer.add(ATTR_LIFETIME, &lifetime_s.to_be_bytes());
    }
    if let Some(mapped) = granted.mapped {
        xor(mapped).add_to(&mut answer).ok()?;
    }
    MessageIntegrity::new_raw_integrity_with_provider(key, crypto).add_to(&mut answer).ok()?;
    Some(answer.raw)
}

pub(super) fn failure(
    request: &Message,
    code: ErrorCode,
    nonce: Option<&str>,
    signing: Option<Signing<'_>>,
) -> Option<Vec<u8>> {
    let mut answer = answer(request, CLASS_ERROR_RESPONSE);
    ErrorCodeAttribute { code, reason: Vec::new() }.add_to(&mut answer).ok()?;
    if let Some(nonce) = nonce {
        answer.add(ATTR_REALM, REALM.as_bytes());
        answer.add(ATTR_NONCE, nonce.as_bytes());
    }
    if let Some((key, crypto)) = signing {
        MessageIntegrity::new_raw_integrity_with_provider(key, crypto).add_to(&mut answer).ok()?;
    }
    Some(answer.raw)
}

/// All peers that a message names.
pub(super) fn peers(message: &Message) -> Vec<SocketAddr> {
    let named = message.attributes.0.iter().filter(|attribute| attribute.typ == ATTR_XOR_PEER_ADDRESS);
    let read = named.map(|attribute| {
        // The library reads the first attribute of a kind only.
        let mut one = Message::new();
        one.transaction_id = message.transaction_id;
        one.add(ATTR_XOR_PEER_ADDRESS, &attribute.value);
        let mut address = XorMappedAddress::default();
        address.get_from_as(&one, ATTR_XOR_PEER_ADDRESS).ok()?;
        Some(SocketAddr::new(address.ip.to_canonical(), address.port))
    });
    // One that can't be read spoils all: the client must not believe that it is permitted.
    read.collect::<Option<_>>().unwrap_or_default()
}

pub(super) fn data_indication(from: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    let mut message = Message::new();
    message.set_type(MessageType { method: METHOD_DATA, class: CLASS_INDICATION });
    message.transaction_id = TransactionId(rand::random());
    message.write_header();
    let from = XorMappedAddress { ip: from.ip(), port: from.port() };
    from.add_to_as(&mut message, ATTR_XOR_PEER_ADDRESS).ok()?;
    message.add(ATTR_DATA, data);
    Some(message.raw)
}

/// Padded to four bytes, which TCP wants and UDP allows.
pub(super) fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("datagrams have less than 64 KiB");
    let mut bytes = Vec::with_capacity(data.len() + 8);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Nonces that are not remembered: who answers one shows that he gets what is sent to his address.
pub(super) struct Nonces {
    key: [u8; 32],
}

impl Nonces {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    pub(super) fn issue(&self, now_ms: u64, client: SocketAddr) -> String {
        self.write(now_ms + NONCE_MS, client)
    }

    pub(super) fn is_good(&self, now_ms: u64, client: SocketAddr, nonce: &str) -> bool {
        let until_ms = nonce.get(..16).and_then(|until| u64::from_str_radix(until, 16).ok());
        until_ms.is_some_and(|until_ms| {
            until_ms > now_ms && until_ms <= now_ms + NONCE_MS && self.write(until_ms, client) == nonce
        })
    }

    fn write(&self, until_ms: u64, client: SocketAddr) -> String {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        hmac.update(&until_ms.to_be_bytes());
        hmac.update(client.to_string().as_bytes());
        format!("{until_ms:016x}{}", hex::encode(&hmac.finalize().into_bytes()[..8]))
    }
}
