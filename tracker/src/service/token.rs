//! Viewer tokens: who may join which stream, how often, with which DTLS key.
//!
//! A token is a JWT that the broadcaster's own back end signs (HS256) with a secret that it shares with the tracker, so
//! that no key stands in a page. It names one stream and ends soon; it may be limited to a number of joins and bound to
//! the fingerprint of the viewer's DTLS certificate, and then is of no use to whoever copies it from the page.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use parking_lot::Mutex;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use crate::swarm::Credential;

/// Tokens whose uses are counted. Beyond it those that end first are forgotten; at 64 bytes each it is a few megabytes.
const COUNTED_MAX: usize = 65_536;
/// No token is longer.
const TOKEN_BYTES_MAX: usize = 2_048;
/// A connection does not live longer than a month, so that milliseconds never overflow.
const REMAINING_S_MAX: u64 = 30 * 24 * 3_600;
/// Clocks of the back end and the tracker may differ by this, in seconds.
const LEEWAY_S: u64 = 10;
/// The end of the year 9999, in seconds since the Unix epoch. What lies behind it is no date but, most often, one in
/// milliseconds, and its token would never end. Publishers' tokens have the same bound (`ingest/src/auth/jwt.rs`).
const DATE_MAX_S: u64 = 253_402_300_799;

/// The header of a token (RFC 7515, section 4.1).
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    /// Whether it names extensions that must be understood (RFC 7515, 4.1.11). We understand none.
    #[serde(rename = "crit", default, deserialize_with = "is_present")]
    has_extensions: bool,
}

/// What a token says. Other claims are ignored.
#[derive(Debug, Deserialize)]
struct Claims {
    /// The stream's name.
    stream: String,
    /// When the token ends, in seconds since the Unix epoch.
    exp: u64,
    /// From when on the token is good, in seconds since the Unix epoch.
    #[serde(default)]
    nbf: Option<u64>,
    /// The token's own id; its text stands in where it has none.
    #[serde(default)]
    jti: Option<String>,
    /// How many times it may be used to join; any number when absent.
    #[serde(default)]
    uses: Option<u32>,
    /// The SHA-256 fingerprint of the viewer's DTLS certificate, as in SDP: `AB:CD:..`.
    #[serde(default)]
    fingerprint: Option<String>,
}

/// Why a token is refused. Only for counting: the viewer is told nothing that would help to forge one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Missing,
    Invalid,
    OtherStream,
    UsedUp,
}

impl Refused {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::OtherStream => "other_stream",
            Self::UsedUp => "used_up",
        }
    }
}

/// Checks tokens and counts their uses.
pub(super) struct Tokens {
    secret: Box<[u8]>,
    uses: Mutex<HashMap<u64, Uses>>,
}

#[derive(Clone, Copy)]
struct Uses {
    count: u32,
    exp: u64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(super) fn new(secret: &str) -> Self {
        Self { secret: secret.as_bytes().into(), uses: Mutex::new(HashMap::new()) }
    }

    /// Checks a token for a stream. `is_use`: whether the viewer takes a place by it, which counts; not if it only comes
    /// back. Counts are in memory: a restart of the program forgets them.
    pub(super) fn check(
        &self,
        token: Option<&str>,
        stream: &str,
        is_use: bool,
    ) -> Result<Credential, Refused> {
        let token = token.ok_or(Refused::Missing)?;
        let claims = self.verify(token, now_s()).ok_or(Refused::Invalid)?;
        if claims.stream != stream {
            return Err(Refused::OtherStream);
        }
        let id = number(claims.jti.as_deref().unwrap_or(token));
        self.count(id, &claims, is_use)?;
        let remaining_s = claims.exp.saturating_add(LEEWAY_S).saturating_sub(now_s()).min(REMAINING_S_MAX);
        Ok(Credential { id, fingerprint: claims.fingerprint, remaining_ms: remaining_s * 1_000 })
    }

    /// The claims of a token whose signature and times are right.
    fn verify(&self, token: &str, now_s: u64) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let mut hmac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        hmac.update(signed.as_bytes());
        // In constant time; nothing of the token is read before.
        hmac.verify_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let header: Header = part(header)?;
        // The algorithm is fixed here: a token must not choose the one by which it is checked.
        if header.alg != "HS256" || header.has_extensions {
            return None;
        }
        let claims: Claims = part(claims)?;
        let has_begun = claims.nbf.is_none_or(|nbf| nbf <= now_s + LEEWAY_S);
        let has_ended = claims.exp > DATE_MAX_S || now_s >= claims.exp + LEEWAY_S;
        (has_begun && !has_ended).then_some(claims)
    }

    fn count(&self, id: u64, claims: &Claims, is_use: bool) -> Result<(), Refused> {
        let Some(uses_max) = claims.uses.filter(|_| is_use) else { return Ok(()) };
        let mut uses = self.uses.lock();
        if uses.len() >= COUNTED_MAX && !uses.contains_key(&id) {
            let now_s = now_s();
            uses.retain(|_, uses| uses.exp.saturating_add(LEEWAY_S) > now_s);
            if uses.len() >= COUNTED_MAX {
                // Refusing is the safe side: forgetting a count would let used tokens in again.
                return Err(Refused::UsedUp);
            }
        }
        let entry = uses.entry(id).or_insert(Uses { count: 0, exp: claims.exp });
        if entry.count >= uses_max {
            return Err(Refused::UsedUp);
        }
        entry.count += 1;
        Ok(())
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

fn number(text: &str) -> u64 {
    let hash = Sha256::digest(text);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(bytes)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sign_with(header: &str, claims: &serde_json::Value, secret: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(header);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        hmac.update(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes()))
    }

    fn sign_as(algorithm: &str, claims: &serde_json::Value, secret: &str) -> String {
        sign_with(&json!({ "typ": "JWT", "alg": algorithm }).to_string(), claims, secret)
    }

    fn sign(claims: &serde_json::Value, secret: &str) -> String {
        sign_as("HS256", claims, secret)
    }

    fn check(claims: &serde_json::Value) -> Result<Credential, Refused> {
        Tokens::new("s").check(Some(&sign(claims, "s")), "demo", true)
    }

    #[test]
    fn a_token_lets_in_to_its_stream_until_it_ends() {
        let exp = now_s() + 60;
        let credential = check(&json!({ "stream": "demo", "exp": exp, "fingerprint": "AB:CD" })).unwrap();
        assert_eq!(credential.fingerprint.as_deref(), Some("AB:CD"));
        assert!((60_000..=71_000).contains(&credential.remaining_ms));
        assert_eq!(check(&json!({ "stream": "other", "exp": exp })).unwrap_err(), Refused::OtherStream);
        assert_eq!(check(&json!({ "stream": "demo", "exp": now_s() - 60 })).unwrap_err(), Refused::Invalid);
        assert_eq!(check(&json!({ "stream": "demo" })).unwrap_err(), Refused::Invalid, "tokens end");
        let early = json!({ "stream": "demo", "exp": exp, "nbf": now_s() + 50 });
        assert_eq!(check(&early).unwrap_err(), Refused::Invalid);
    }

    /// RFC 7515, appendix A.1: the header and signature that others make.
    #[test]
    fn the_example_of_the_rfc_verifies() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let secret = URL_SAFE_NO_PAD.decode(key).unwrap();
        let tokens = Tokens { secret: secret.into(), uses: Mutex::default() };
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6\
                     Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut hmac = Hmac::<Sha256>::new_from_slice(&tokens.secret).unwrap();
        hmac.update(signed.as_bytes());
        assert_eq!(URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes()), signature);
        assert!(tokens.verify(token, 0).is_none(), "it names no stream");
    }

    #[test]
    fn forged_tokens_are_refused() {
        let tokens = Tokens::new("s");
        let claims = json!({ "stream": "demo", "exp": now_s() + 60 });
        let check = |token: &str| tokens.check(Some(token), "demo", true).unwrap_err();
        assert_eq!(check(&sign(&claims, "other")), Refused::Invalid);
        assert_eq!(check(&sign_as("none", &claims, "s")), Refused::Invalid);
        let good = sign(&claims, "s");
        // {"alg":"none"}, without a signature.
        let body = good.split('.').nth(1).unwrap();
        assert_eq!(check(&format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{body}.")), Refused::Invalid);
        assert_eq!(check(&"x".repeat(10_000)), Refused::Invalid);
        assert_eq!(tokens.check(None, "demo", true).unwrap_err(), Refused::Missing);
    }

    /// As publishers' tokens (`ingest/src/auth/jwt.rs`).
    #[test]
    fn extensions_that_must_be_understood_are_refused() {
        let is_good = |header: &str| {
            let token = sign_with(header, &json!({ "stream": "demo", "exp": now_s() + 60 }), "s");
            Tokens::new("s").check(Some(&token), "demo", true).is_ok()
        };
        assert!(is_good(r#"{"alg":"HS256","kid":"1","b64":true}"#), "others are ignored");
        for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null", "false", r#""b64""#] {
            let header = format!(r#"{{"alg":"HS256","b64":true,"crit":{crit}}}"#);
            assert!(!is_good(&header), "{header}");
        }
    }

    #[test]
    fn an_end_that_is_no_date_is_refused() {
        let is_good = |exp: u64| check(&json!({ "stream": "demo", "exp": exp })).is_ok();
        assert!(is_good(now_s() + 60) && is_good(DATE_MAX_S));
        // Milliseconds, and the largest that JSON can say.
        for exp in [DATE_MAX_S + 1, (now_s() + 60) * 1_000, u64::MAX] {
            assert!(!is_good(exp), "{exp}");
        }
    }

    #[test]
    fn times_hold_to_the_second_with_the_leeway_of_two_clocks() {
        let tokens = Tokens::new("s");
        let token = sign(&json!({ "stream": "demo", "nbf": 1_000, "exp": 2_000 }), "s");
        let is_good = |now_s| tokens.verify(&token, now_s).is_some();
        let times = [1_000 - LEEWAY_S - 1, 1_000 - LEEWAY_S, 2_000 + LEEWAY_S - 1, 2_000 + LEEWAY_S];
        assert_eq!(times.map(is_good), [false, true, true, false]);
    }

    #[test]
    fn a_token_that_is_too_long_is_refused_whoever_signed_it() {
        let tokens = Tokens::new("s");
        let longer = |by: usize| {
            let claims = json!({ "stream": "demo", "exp": now_s() + 60, "note": "x".repeat(by) });
            let token = sign(&claims, "s");
            (token.len() <= TOKEN_BYTES_MAX, tokens.check(Some(&token), "demo", true).is_ok())
        };
        assert_eq!(longer(1_000), (true, true));
        assert_eq!(longer(2_000), (false, false));
    }

    #[test]
    fn tokens_that_never_end_do_not_make_room_for_others() {
        let tokens = Tokens::new("s");
        let never = Uses { count: 1, exp: u64::MAX };
        *tokens.uses.lock() = (0..COUNTED_MAX as u64).map(|id| (id, never)).collect();
        let claims = json!({ "stream": "demo", "exp": now_s() + 60, "uses": 1 });
        let checked = tokens.check(Some(&sign(&claims, "s")), "demo", true);
        assert_eq!(checked.unwrap_err(), Refused::UsedUp);
        assert_eq!(tokens.uses.lock().len(), COUNTED_MAX);
    }

    #[test]
    fn uses_are_counted_and_coming_back_is_none() {
        let tokens = Tokens::new("s");
        let token = |jti: &str| {
            let claims = json!({ "stream": "demo", "exp": now_s() + 60, "uses": 2, "jti": jti });
            sign(&claims, "s")
        };
        let check = |token: &str, is_use| tokens.check(Some(token), "demo", is_use).map(|_| ());
        assert_eq!(check(&token("a"), true), Ok(()));
        assert_eq!(check(&token("a"), false), Ok(()));
        assert_eq!(check(&token("a"), true), Ok(()));
        assert_eq!(check(&token("a"), true), Err(Refused::UsedUp));
        assert_eq!(check(&token("b"), true), Ok(()));
    }
}
