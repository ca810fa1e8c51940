//! JSON Web Tokens (RFC 7519) in the compact form of RFC 7515, signed with HS256 or with EdDSA over Ed25519 (RFC 8037).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac as _};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use sha2::Sha256;

use crate::Secret;

/// RFC 7518, 3.2: at least as long as the hash. A shorter secret can be guessed offline from one token.
pub const HS256_SECRET_CHARS_MIN: usize = 32;
/// The clocks of whoever issues tokens and of this machine may differ by this.
const LEEWAY: Duration = Duration::from_secs(10);
/// The end of the year 9999, as a time since the Unix epoch. What lies behind it is no date but, most often, one in
/// milliseconds, and its token would never end.
const DATE_MAX: Duration = Duration::from_secs(253_402_300_799);

/// Why a key cannot be used. Says nothing about the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A secret shorter than [`HS256_SECRET_CHARS_MIN`].
    #[error("at least {HS256_SECRET_CHARS_MIN} characters are needed")]
    SecretTooShort,
    /// A text that is no public key.
    #[error("neither a PEM public key of Ed25519 nor its 32 bytes in base64")]
    NoPublicKey,
}

/// What tokens are checked by: the keys that they may be signed with, whom they must be meant for, how long they may be.
///
/// A token names its algorithm, but only those can be meant for which there is a key.
pub struct Verifier {
    hs256_secret: Option<Box<[u8]>>,
    eddsa_public_key: Option<VerifyingKey>,
    audience: String,
    token_bytes_max: usize,
}

/// A token that has passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified<C> {
    /// What it says.
    pub claims: C,
    /// The moment from which on it is refused: its `exp`, and 10 s because clocks differ.
    pub good_until: SystemTime,
}

/// The header of a token (RFC 7515, 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Whether it names extensions that must be understood (RFC 7515, 4.1.11). We understand none.
    #[serde(rename = "crit", default, deserialize_with = "is_present")]
    has_extensions: bool,
}

/// The claims that RFC 7519, 4.1 gives a meaning and that are checked here. Dates are in seconds since the Unix epoch;
/// section 2 allows fractions, and some libraries write them.
#[derive(Deserialize)]
struct Registered {
    /// Required: a token that never ends is a password.
    exp: f64,
    nbf: Option<f64>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Refuses every token until it is given a key. `audience` is what the `aud` claim must name; if empty, any audience
    /// will do, and none. Longer tokens than `token_bytes_max` are refused unread.
    #[must_use]
    pub fn new(audience: &str, token_bytes_max: usize) -> Self {
        Self { hs256_secret: None, eddsa_public_key: None, audience: audience.to_owned(), token_bytes_max }
    }

    /// Also takes tokens that are signed with HS256 and this secret. An empty one changes nothing.
    ///
    /// # Errors
    /// [`KeyError::SecretTooShort`].
    pub fn with_hs256_secret(mut self, secret: &Secret) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Ok(self);
        }
        if secret.expose().len() < HS256_SECRET_CHARS_MIN {
            return Err(KeyError::SecretTooShort);
        }
        self.hs256_secret = Some(secret.expose().as_bytes().into());
        Ok(self)
    }

    /// Also takes tokens that are signed with EdDSA, by the owner of this Ed25519 key: PEM, or its 32 bytes in base64. An
    /// empty text changes nothing.
    ///
    /// # Errors
    /// [`KeyError::NoPublicKey`].
    pub fn with_eddsa_public_key(mut self, text: &str) -> Result<Self, KeyError> {
        if !text.is_empty() {
            self.eddsa_public_key = Some(parse_public_key(text).ok_or(KeyError::NoPublicKey)?);
        }
        Ok(self)
    }

    /// Whether tokens may be signed with HS256.
    #[must_use]
    pub fn has_hs256_secret(&self) -> bool {
        self.hs256_secret.is_some()
    }

    /// Whether tokens may be signed with EdDSA.
    #[must_use]
    pub fn has_eddsa_public_key(&self) -> bool {
        self.eddsa_public_key.is_some()
    }

    /// The claims of a token that is good at this time; none of any other, whatever is wrong with it, so that nobody can
    /// be told what would help to forge one. Claims that neither RFC 7519 nor `C` knows are ignored.
    #[must_use]
    pub fn verify<C: DeserializeOwned>(&self, token: &str, now: SystemTime) -> Option<Verified<C>> {
        let payload = self.payload(token)?;
        let registered: Registered = serde_json::from_slice(&payload).ok()?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = date(registered.exp)? + LEEWAY;
        let begin = registered.nbf.map_or(Some(Duration::ZERO), date)?;
        if now >= end || begin > now + LEEWAY || !self.is_addressed(registered.aud.as_ref()) {
            return None;
        }
        let claims = serde_json::from_slice(&payload).ok()?;
        Some(Verified { claims, good_until: UNIX_EPOCH + end })
    }

    /// The signed bytes of a token whose signature is right. Of others nothing is read but the header.
    fn payload(&self, token: &str) -> Option<Vec<u8>> {
        if token.len() > self.token_bytes_max {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        // Each algorithm has a key of its own: were a public key taken as an HMAC secret, everybody could sign.
        let is_authentic = match header.alg.as_str() {
            "HS256" => is_hs256(self.hs256_secret.as_deref()?, signed.as_bytes(), &signature),
            "EdDSA" => is_eddsa(self.eddsa_public_key.as_ref()?, signed.as_bytes(), &signature),
            _ => false,
        };
        if !is_authentic || header.has_extensions {
            return None;
        }
        URL_SAFE_NO_PAD.decode(payload).ok()
    }

    fn is_addressed(&self, audience: Option<&Audience>) -> bool {
        self.audience.is_empty()
            || match audience {
                Some(Audience::One(name)) => *name == self.audience,
                Some(Audience::Many(names)) => names.contains(&self.audience),
                None => false,
            }
    }
}

fn is_hs256(secret: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    hmac.update(signed);
    // Compares in constant time, and wants the whole hash.
    hmac.verify_slice(signature).is_ok()
}

fn is_eddsa(key: &VerifyingKey, signed: &[u8], signature: &[u8]) -> bool {
    // Strict: with a key or a signature of small order one signature would fit many texts.
    Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(signed, &signature).is_ok())
}

/// A date as a time since the Unix epoch; none if it is none.
fn date(since_epoch_s: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(since_epoch_s).ok().filter(|date| *date <= DATE_MAX)
}

/// Whatever the value is, null included.
fn is_present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// 32 bytes in base64, or the PEM form (RFC 8410), whose last 32 bytes are the key.
fn parse_public_key(text: &str) -> Option<VerifyingKey> {
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let base64: String =
        text.lines().filter(|line| !line.starts_with("-----")).flat_map(|line| line.trim().chars()).collect();
    let bytes = STANDARD.decode(base64).ok()?;
    let key = bytes.strip_prefix(&PREFIX).unwrap_or(&bytes);
    VerifyingKey::from_bytes(key.try_into().ok()?).ok()
}

#[cfg(test)]
mod tests;
