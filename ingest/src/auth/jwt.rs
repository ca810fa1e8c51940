//! JWTs that say which stream their bearer may publish. How they are checked is `shoal_credentials`' matter, as with the
//! tracker's tokens: publishing must not be easier than watching.

use std::time::SystemTime;

use serde::Deserialize;
use shoal_credentials::jwt::{Verified, Verifier};

use super::TOKEN_BYTES_MAX;
use crate::config::Config;

/// The keys that tokens may be signed with, and whom they must be meant for.
pub(super) struct Jwt(Verifier);

/// What a token says. Other claims are ignored.
#[derive(Deserialize)]
struct Claims {
    /// A stream's name, or `*`.
    stream: String,
}

impl Jwt {
    /// Reads the rules; the words name the key that is wrong.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        Verifier::new(&config.jwt_audience, TOKEN_BYTES_MAX)
            .with_hs256_secret(&config.jwt_hs256_secret)
            .map_err(|error| format!("ingest.jwt_hs256_secret: {error}"))?
            .with_eddsa_public_key(&config.jwt_eddsa_public_key)
            .map_err(|error| format!("ingest.jwt_eddsa_public_key: {error}"))
            .map(Self)
    }

    pub(super) fn has_secret(&self) -> bool {
        self.0.has_hs256_secret()
    }

    pub(super) fn has_public_key(&self) -> bool {
        self.0.has_eddsa_public_key()
    }

    /// Whether the bearer of this token may publish this stream.
    pub(super) fn permits(&self, stream: &str, token: &str, now: SystemTime) -> bool {
        let verified = self.0.verify::<Claims>(token, now);
        verified.is_some_and(|Verified { claims, .. }| claims.stream == stream || claims.stream == "*")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use ed25519_dalek::{Signer as _, SigningKey};
    use hmac::{Hmac, Mac as _};
    use sha2::Sha256;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NOW_S: u64 = 1_800_000_000;

    fn signing_key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn sign(alg: &str, claims: &str) -> String {
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = if alg == "EdDSA" {
            signing_key().sign(signed.as_bytes()).to_bytes().to_vec()
        } else {
            let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
            mac.update(signed.as_bytes());
            mac.finalize().into_bytes().to_vec()
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Whether a token with these claims lets its bearer publish `cam`, `after_s` after [`NOW_S`], whatever it is signed
    /// with.
    fn permits(audience: &str, claims: &str, after_s: f64) -> bool {
        let config = Config {
            jwt_hs256_secret: SECRET.into(),
            jwt_eddsa_public_key: STANDARD.encode(signing_key().verifying_key().as_bytes()),
            jwt_audience: audience.into(),
            ..Config::default()
        };
        let jwt = Jwt::new(&config).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(NOW_S) + Duration::from_secs_f64(after_s);
        let [one, other] = ["HS256", "EdDSA"].map(|alg| jwt.permits("cam", &sign(alg, claims), now));
        assert_eq!(one, other, "{claims}");
        one
    }

    #[test]
    fn a_token_permits_the_stream_that_it_names_or_all() {
        let permits = |stream: &str| permits("", &format!(r#"{{{stream}"exp":{}}}"#, NOW_S + 60), 0.0);
        assert!(permits(r#""stream":"cam","#) && permits(r#""stream":"*","#));
        for bad in
            ["", r#""stream":"dog","#, r#""stream":"ca*","#, r#""stream":null,"#, r#""stream":["cam"],"#]
        {
            assert!(!permits(bad), "{bad}");
        }
        assert!(!permits(r#""stream":"cam","stream":"*","#), "said twice");
    }

    #[test]
    fn dates_may_have_fractions_and_must_be_dates() {
        let until = |exp: &str, after_s| permits("", &format!(r#"{{"stream":"cam","exp":{exp}}}"#), after_s);
        assert!(until("1800000000.5", 10.25) && !until("1800000000.5", 10.75));
        assert!(!until("1800000060000", 0.0), "milliseconds");
        let from = |nbf: &str, after_s| {
            permits("", &format!(r#"{{"stream":"cam","exp":1800000060,"nbf":{nbf}}}"#), after_s)
        };
        assert!(!from("1800000010.5", 0.25) && from("1800000010.5", 0.75));
        assert!(!permits("", r#"{"stream":"cam"}"#, 0.0), "tokens end");
    }

    #[test]
    fn an_audience_that_is_set_has_to_be_named() {
        let aud = |wanted: &str, aud: &str| {
            permits(wanted, &format!(r#"{{"stream":"cam","exp":1800000060{aud}}}"#), 0.0)
        };
        for good in [r#","aud":"publish""#, r#","aud":["watch","publish"]"#] {
            assert!(aud("publish", good) && aud("", good), "{good}");
        }
        for bad in ["", r#","aud":"watch""#, r#","aud":["watch"]"#] {
            assert!(!aud("publish", bad) && aud("", bad), "{bad}");
        }
    }
}
