//! JWTs that say which stream their bearer may publish (RFC 7519): two algorithms, four claims.
//!
//! The rules that the tracker has for viewers' tokens, too (`tracker/src/service/token.rs`), are as strict here: publishing
//! must not be easier than watching.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use sha2::Sha256;

use crate::config::Config;

/// Clocks of token issuers may be off by this, in seconds; the tracker's tokens have as much.
const LEEWAY_S: f64 = 10.0;
/// The end of the year 9999, in seconds since the Unix epoch. What lies behind it is no date but, most often, one in
/// milliseconds, and its token would never end.
const DATE_MAX_S: f64 = 253_402_300_799.0;
/// RFC 7518, 3.2: at least as long as the hash. A word can be guessed from one token.
const SECRET_CHARS_MIN: usize = 32;

/// The keys that tokens may be signed with, and whom they must be meant for.
pub(super) struct Jwt {
    secret: Option<Vec<u8>>,
    public_key: Option<VerifyingKey>,
    audience: String,
}

/// The header of a token (RFC 7515, 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Whether it names extensions that must be understood (RFC 7515, 4.1.11). We understand none.
    #[serde(rename = "crit", default, deserialize_with = "is_present")]
    has_extensions: bool,
}

/// What a token says. Other claims are ignored.
#[derive(Deserialize)]
struct Claims {
    /// In seconds since the Unix epoch, as all dates here; RFC 7519, 2 allows fractions, and some libraries write them.
    exp: Option<f64>,
    nbf: Option<f64>,
    aud: Option<Audience>,
    stream: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Jwt {
    /// Reads the rules; the words name the key that is wrong.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let secret = config.jwt_hs256_secret.expose();
        if !secret.is_empty() && secret.len() < SECRET_CHARS_MIN {
            return Err(format!(
                "ingest.jwt_hs256_secret: at least {SECRET_CHARS_MIN} characters are needed"
            ));
        }
        let public_key = match config.jwt_eddsa_public_key.as_str() {
            "" => None,
            text => Some(parse_public_key(text).ok_or(
                "ingest.jwt_eddsa_public_key: neither a PEM public key of Ed25519 nor its 32 bytes in base64",
            )?),
        };
        Ok(Self {
            secret: (!secret.is_empty()).then(|| secret.as_bytes().to_vec()),
            public_key,
            audience: config.jwt_audience.clone(),
        })
    }

    pub(super) fn has_secret(&self) -> bool {
        self.secret.is_some()
    }

    pub(super) fn has_public_key(&self) -> bool {
        self.public_key.is_some()
    }

    /// Whether the bearer of this token may publish this stream.
    pub(super) fn permits(&self, stream: &str, token: &str, now: SystemTime) -> bool {
        let now_s = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.verify(token).is_some_and(|claims| self.are_claims_met(&claims, stream, now_s))
    }

    /// The claims of a token whose signature is right. Of others nothing is read but the header.
    fn verify(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = part(header)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        // The token names its algorithm, but only those can be meant for which there is a key: a public key must
        // never serve as an HMAC secret.
        let is_authentic = match (header.alg.as_str(), &self.secret, &self.public_key) {
            ("HS256", Some(secret), _) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
                mac.update(signed.as_bytes());
                mac.verify_slice(&signature).is_ok()
            }
            ("EdDSA", _, Some(key)) => Signature::from_slice(&signature)
                .is_ok_and(|signature| key.verify_strict(signed.as_bytes(), &signature).is_ok()),
            _ => false,
        };
        if is_authentic && !header.has_extensions { part(claims) } else { None }
    }

    fn are_claims_met(&self, claims: &Claims, stream: &str, now_s: f64) -> bool {
        let is_date = |date_s: f64| (0.0..=DATE_MAX_S).contains(&date_s);
        // A token that never expires is a stream key, and can be configured as such.
        let has_ended = claims.exp.is_none_or(|exp| !is_date(exp) || now_s >= exp + LEEWAY_S);
        let has_begun = claims.nbf.is_none_or(|nbf| is_date(nbf) && nbf <= now_s + LEEWAY_S);
        let is_for_us = self.audience.is_empty()
            || match &claims.aud {
                Some(Audience::One(audience)) => *audience == self.audience,
                Some(Audience::Many(audiences)) => audiences.contains(&self.audience),
                None => false,
            };
        let names_stream = claims.stream.as_deref().is_some_and(|name| name == stream || name == "*");
        has_begun && !has_ended && is_for_us && names_stream
    }
}

/// A base64url part of a token as JSON.
fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
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
mod tests {
    use std::time::Duration;

    use ed25519_dalek::{Signer, SigningKey};

    use super::*;
    use crate::config::Secret;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const HS256: &str = r#"{"alg":"HS256"}"#;
    const NOW_S: u64 = 1_800_000_000;

    fn sign(header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    fn permits(token: &str) -> bool {
        let config = Config {
            jwt_hs256_secret: Secret::new(SECRET),
            jwt_eddsa_public_key: STANDARD.encode(signing_key().verifying_key().as_bytes()),
            ..Config::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S);
        Jwt::new(&config).unwrap().permits("cam", token, now)
    }

    fn signing_key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn permits_claims(claims: &str) -> bool {
        permits(&sign(HS256, claims))
    }

    #[test]
    fn extensions_that_must_be_understood_are_refused() {
        let claims = format!(r#"{{"stream":"cam","exp":{}}}"#, NOW_S + 60);
        let permits_header = |header: &str| {
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(&claims));
            let signature = URL_SAFE_NO_PAD.encode(signing_key().sign(signed.as_bytes()).to_bytes());
            let by_key = permits(&format!("{signed}.{signature}"));
            (permits(&sign(header, &claims)), by_key)
        };
        assert_eq!(
            permits_header(r#"{"alg":"HS256","kid":"1","b64":true}"#),
            (true, false),
            "others are ignored"
        );
        assert_eq!(
            permits_header(r#"{"alg":"EdDSA","kid":"1","b64":true}"#),
            (false, true),
            "others are ignored"
        );
        for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null", "false", r#""b64""#] {
            for alg in ["HS256", "EdDSA"] {
                let header = format!(r#"{{"alg":"{alg}","b64":true,"crit":{crit}}}"#);
                assert_eq!(permits_header(&header), (false, false), "{header}");
            }
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        let exp = NOW_S + 60;
        for good in ["1800000060", "1800000060.5", "1.80000006e9", "253402300799"] {
            assert!(permits_claims(&format!(r#"{{"stream":"cam","exp":{good}}}"#)), "exp {good}");
        }
        // Milliseconds, the largest that JSON can say and more than that, texts, nothing.
        let bad = ["1800000060000", "253402300800", "18446744073709551615", "1e308", "1e999", "-1", "-1e308"];
        for bad in
            bad.into_iter().chain([r#""1800000060""#, "NaN", "Infinity", "null", "true", "[1800000060]"])
        {
            assert!(!permits_claims(&format!(r#"{{"stream":"cam","exp":{bad}}}"#)), "exp {bad}");
        }
        for bad in ["1800000000000", "1e308", "1e999", "-1", r#""0""#, "NaN"] {
            assert!(!permits_claims(&format!(r#"{{"stream":"cam","exp":{exp},"nbf":{bad}}}"#)), "nbf {bad}");
        }
        assert!(!permits_claims(&format!(r#"{{"stream":"cam","exp":{exp},"exp":{exp}}}"#)), "said twice");
    }

    #[test]
    fn clocks_may_be_off_by_ten_seconds() {
        let exp = |exp: u64| permits_claims(&format!(r#"{{"stream":"cam","exp":{exp}}}"#));
        assert!(exp(NOW_S - 9) && !exp(NOW_S - 10));
        let nbf =
            |nbf: u64| permits_claims(&format!(r#"{{"stream":"cam","exp":{},"nbf":{nbf}}}"#, NOW_S + 60));
        assert!(nbf(NOW_S + 10) && !nbf(NOW_S + 11));
    }

    #[test]
    fn nothing_is_read_into_what_is_cut_off() {
        let token = sign(HS256, &format!(r#"{{"stream":"cam","exp":{}}}"#, NOW_S + 60));
        assert!(permits(&token));
        for length in 0..token.len() {
            assert!(!permits(&token[..length]), "{length} bytes");
        }
        assert!(
            !permits(&format!("{token}="))
                && !permits(&format!("{token}."))
                && !permits(&format!(".{token}"))
        );
    }
}
