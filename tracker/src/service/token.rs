//! Viewer tokens: who may join which stream, how often, with which DTLS key.
//!
//! A token is a JWT that the broadcaster's own back end signs (HS256) with a secret that it shares with the tracker, so
//! that no key stands in a page. It names one stream and ends soon; it may be limited to a number of joins and bound to
//! the fingerprint of the viewer's DTLS certificate, and then is of no use to whoever copies it from the page.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shoal_credentials::jwt::{Verified, Verifier};

use crate::swarm::Credential;

/// Tokens whose uses are counted. Beyond it those that end first are forgotten; at 64 bytes each it is a few megabytes.
const COUNTED_MAX: usize = 65_536;
/// A connection does not live longer than a month, so that milliseconds never overflow.
const REMAINING_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What a token says beside its dates and its audience, which are checked with its signature. Other claims are ignored.
#[derive(Debug, Deserialize)]
struct Claims {
    /// The stream's name.
    stream: String,
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
    verifier: Verifier,
    uses: Mutex<HashMap<u64, Uses>>,
}

#[derive(Clone, Copy)]
struct Uses {
    count: u32,
    good_until: SystemTime,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(super) fn new(verifier: Verifier) -> Self {
        Self { verifier, uses: Mutex::new(HashMap::new()) }
    }

    /// Checks a token for a stream. `is_use`: whether the viewer takes a place by it, which counts; not if it only comes
    /// back. Counts are in memory: a restart of the program forgets them.
    pub(super) fn check(
        &self,
        token: Option<&str>,
        stream: &str,
        is_use: bool,
        now: SystemTime,
    ) -> Result<Credential, Refused> {
        let token = token.ok_or(Refused::Missing)?;
        let Verified { claims, good_until } =
            self.verifier.verify::<Claims>(token, now).ok_or(Refused::Invalid)?;
        if claims.stream != stream {
            return Err(Refused::OtherStream);
        }
        let id = number(claims.jti.as_deref().unwrap_or(token));
        if let Some(uses_max) = claims.uses.filter(|_| is_use) {
            self.count(id, uses_max, good_until, now)?;
        }
        let remaining = good_until.duration_since(now).unwrap_or_default().min(REMAINING_MAX);
        let remaining_ms = u64::try_from(remaining.as_millis()).expect("a month at most");
        Ok(Credential { id, fingerprint: claims.fingerprint, remaining_ms })
    }

    fn count(&self, id: u64, uses_max: u32, good_until: SystemTime, now: SystemTime) -> Result<(), Refused> {
        let mut uses = self.uses.lock();
        if uses.len() >= COUNTED_MAX && !uses.contains_key(&id) {
            uses.retain(|_, uses| uses.good_until > now);
            if uses.len() >= COUNTED_MAX {
                // Refusing is the safe side: forgetting a count would let used tokens in again.
                return Err(Refused::UsedUp);
            }
        }
        let entry = uses.entry(id).or_insert(Uses { count: 0, good_until });
        if entry.count >= uses_max {
            return Err(Refused::UsedUp);
        }
        entry.count += 1;
        Ok(())
    }
}

fn number(text: &str) -> u64 {
    let hash = Sha256::digest(text);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hmac::{Hmac, Mac as _};
    use serde_json::{Value, json};

    use super::*;
    use crate::Config;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NOW_S: u64 = 1_800_000_000;

    /// The check as it is made of the settings.
    fn tokens(audience: &str) -> Tokens {
        let (viewer_token_secret, viewer_token_audience) = (SECRET.into(), audience.into());
        let config = Config { viewer_token_secret, viewer_token_audience, ..Config::default() };
        Tokens::new(config.viewer_tokens().unwrap().unwrap())
    }

    fn sign_as(algorithm: &str, claims: &Value, secret: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(json!({ "typ": "JWT", "alg": algorithm }).to_string());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        hmac.update(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes()))
    }

    fn sign(claims: &Value) -> String {
        sign_as("HS256", claims, SECRET)
    }

    /// [`NOW_S`] and so many seconds.
    fn after(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_S) + Duration::from_secs_f64(seconds)
    }

    fn check(claims: &Value) -> Result<Credential, Refused> {
        tokens("").check(Some(&sign(claims)), "demo", true, after(0.0))
    }

    #[test]
    fn a_token_lets_in_to_its_stream_until_it_ends() {
        let exp = NOW_S + 60;
        let credential = check(&json!({ "stream": "demo", "exp": exp, "fingerprint": "AB:CD" })).unwrap();
        assert_eq!(credential.fingerprint.as_deref(), Some("AB:CD"));
        assert_eq!(credential.remaining_ms, 70_000, "with the leeway of two clocks");
        assert_eq!(check(&json!({ "stream": "other", "exp": exp })).unwrap_err(), Refused::OtherStream);
        assert_eq!(check(&json!({ "stream": "*", "exp": exp })).unwrap_err(), Refused::OtherStream);
        assert_eq!(check(&json!({ "exp": exp })).unwrap_err(), Refused::Invalid);
        assert_eq!(check(&json!({ "stream": "demo", "exp": NOW_S - 60 })).unwrap_err(), Refused::Invalid);
        assert_eq!(check(&json!({ "stream": "demo" })).unwrap_err(), Refused::Invalid, "tokens end");
        let early = json!({ "stream": "demo", "exp": exp, "nbf": NOW_S + 50 });
        assert_eq!(check(&early).unwrap_err(), Refused::Invalid);
        let for_ever = check(&json!({ "stream": "demo", "exp": 253_402_300_799_u64 })).unwrap();
        assert_eq!(for_ever.remaining_ms, 30 * 24 * 3_600 * 1_000);
    }

    #[test]
    fn forged_tokens_are_refused() {
        let tokens = tokens("");
        let claims = json!({ "stream": "demo", "exp": NOW_S + 60 });
        let check = |token: Option<&str>| tokens.check(token, "demo", true, after(0.0)).unwrap_err();
        assert_eq!(
            check(Some(&sign_as("HS256", &claims, "another secret, as long as it has to be"))),
            Refused::Invalid
        );
        assert_eq!(check(Some(&sign_as("none", &claims, SECRET))), Refused::Invalid);
        // Publishers may have tokens of this kind, viewers have not.
        assert_eq!(check(Some(&sign_as("EdDSA", &claims, SECRET))), Refused::Invalid);
        assert_eq!(check(Some(&"x".repeat(10_000))), Refused::Invalid);
        assert_eq!(check(None), Refused::Missing);
    }

    #[test]
    fn dates_may_have_fractions_and_must_be_dates() {
        let remaining_ms = |claims: &Value, seconds| {
            let checked = tokens("").check(Some(&sign(claims)), "demo", true, after(seconds));
            checked.map(|credential| credential.remaining_ms)
        };
        let exp = json!({ "stream": "demo", "exp": 1_800_000_000.5 });
        assert_eq!(remaining_ms(&exp, 0.0), Ok(10_500));
        assert_eq!(remaining_ms(&exp, 10.25), Ok(250));
        assert_eq!(remaining_ms(&exp, 10.5), Err(Refused::Invalid));
        let nbf = json!({ "stream": "demo", "exp": NOW_S + 60, "nbf": 1_800_000_010.5 });
        assert_eq!(remaining_ms(&nbf, 0.25), Err(Refused::Invalid));
        assert!(remaining_ms(&nbf, 0.5).is_ok());
        let milliseconds = json!({ "stream": "demo", "exp": (NOW_S + 60) * 1_000 });
        assert_eq!(remaining_ms(&milliseconds, 0.0), Err(Refused::Invalid));
    }

    #[test]
    fn an_audience_that_is_set_has_to_be_named() {
        let is_good = |wanted: &str, aud: Option<Value>| {
            let mut claims = json!({ "stream": "demo", "exp": NOW_S + 60 });
            if let Some(aud) = aud {
                claims["aud"] = aud;
            }
            tokens(wanted).check(Some(&sign(&claims)), "demo", true, after(0.0)).is_ok()
        };
        for aud in [json!("watch"), json!(["publish", "watch"])] {
            assert!(is_good("watch", Some(aud.clone())) && is_good("", Some(aud)));
        }
        for aud in [None, Some(json!("publish")), Some(json!(["publish"]))] {
            assert!(!is_good("watch", aud.clone()) && is_good("", aud));
        }
    }

    #[test]
    fn a_token_that_is_too_long_is_refused_whoever_signed_it() {
        let longer = |by: usize| {
            let token = sign(&json!({ "stream": "demo", "exp": NOW_S + 60, "note": "x".repeat(by) }));
            (token.len() <= 2_048, tokens("").check(Some(&token), "demo", true, after(0.0)).is_ok())
        };
        assert_eq!(longer(1_000), (true, true));
        assert_eq!(longer(2_000), (false, false));
    }

    #[test]
    fn counts_make_room_for_others_when_their_tokens_have_ended_and_not_before() {
        let tokens = tokens("");
        let held = Uses { count: 1, good_until: after(70.0) };
        *tokens.uses.lock() = (0..COUNTED_MAX as u64).map(|id| (id, held)).collect();
        let token = sign(&json!({ "stream": "demo", "exp": NOW_S + 300, "uses": 1 }));
        let check = |seconds| tokens.check(Some(&token), "demo", true, after(seconds)).map(|_| ());
        assert_eq!(check(69.0), Err(Refused::UsedUp));
        assert_eq!(tokens.uses.lock().len(), COUNTED_MAX);
        assert_eq!(check(70.0), Ok(()));
        assert_eq!(tokens.uses.lock().len(), 1);
    }

    #[test]
    fn uses_are_counted_and_coming_back_is_none() {
        let tokens = tokens("");
        let token = |jti: &str| sign(&json!({ "stream": "demo", "exp": NOW_S + 60, "uses": 2, "jti": jti }));
        let check = |token: &str, is_use| tokens.check(Some(token), "demo", is_use, after(0.0)).map(|_| ());
        assert_eq!(check(&token("a"), true), Ok(()));
        assert_eq!(check(&token("a"), false), Ok(()));
        assert_eq!(check(&token("a"), true), Ok(()));
        assert_eq!(check(&token("a"), true), Err(Refused::UsedUp));
        assert_eq!(check(&token("b"), true), Ok(()));
    }
}
