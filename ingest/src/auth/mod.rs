//! Who may publish: stream keys, tokens, or somebody else's word.
//!
//! A publisher brings a bearer token (RFC 6750). It is a stream's key, or a JWT that names the stream, or
//! something that the operator's own service knows. As long as none of these is configured, publishing is open
//! to those whom `auth_open_to` names: by default this machine itself. Keys never appear in logs, errors or
//! `Debug` output, and an answer never says whether a stream exists.

mod jwt;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use sha2::{Digest, Sha256};

use self::jwt::Jwt;
use crate::config::{Config, OpenTo};

/// Tokens longer than this are refused unread.
const TOKEN_BYTES_MAX: usize = 4096;

/// Why somebody may not publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No token, or not the right one. 401.
    Refused,
    /// There are no rules by which anybody from there could get in. 401.
    Closed,
    /// The operator's service doesn't answer. 503.
    Unavailable,
}

/// The rules, ready to be applied.
pub(crate) struct Auth {
    open_to: OpenTo,
    /// Stream (or `*`) and the hash of its key: comparing hashes takes the same time wherever the difference is.
    keys: Vec<(String, [u8; 32])>,
    jwt: Jwt,
    callback: Option<Callback>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("open_to", &self.open_to).finish_non_exhaustive()
    }
}

struct Callback {
    client: reqwest::Client,
    url: String,
}

/// What the operator's service is asked.
#[derive(Serialize)]
struct Question<'a> {
    stream: &'a str,
    token: &'a str,
    remote_ip: Option<IpAddr>,
}

impl Auth {
    /// Reads the rules; the words name the key that is wrong.
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let mut keys = Vec::new();
        for entry in &config.stream_keys {
            let (stream, key) = entry
                .expose()
                .split_once(':')
                .filter(|(stream, key)| !stream.is_empty() && !key.is_empty())
                .ok_or("ingest.stream_keys: each entry is <stream>:<key>")?;
            keys.push((stream.to_owned(), Sha256::digest(key).into()));
        }
        let jwt = Jwt::new(config)?;
        let callback = match config.auth_callback_url.as_str() {
            "" => None,
            url => Some(Callback::new(url, Duration::from_millis(config.auth_callback_timeout_ms))?),
        };
        Ok(Self { open_to: config.auth_open_to, keys, jwt, callback })
    }

    /// Who may publish, for the log.
    pub(crate) fn describe(&self) -> String {
        let rules = [
            (!self.keys.is_empty(), "ingest.stream_keys"),
            (self.jwt.has_secret(), "ingest.jwt_hs256_secret"),
            (self.jwt.has_public_key(), "ingest.jwt_eddsa_public_key"),
            (self.callback.is_some(), "ingest.auth_callback_url"),
        ];
        let rules: Vec<&str> = rules.into_iter().filter(|(is_set, _)| *is_set).map(|(_, key)| key).collect();
        match self.open_to {
            _ if !rules.is_empty() => format!("who has a token by {}", rules.join(", ")),
            OpenTo::Nobody => "nobody: set ingest.stream_keys, or ingest.auth_open_to".to_owned(),
            OpenTo::Loopback => {
                "this machine only: for others set ingest.stream_keys, or ingest.auth_open_to = \"everybody\""
                    .to_owned()
            }
            OpenTo::Everybody => "everybody, without a key: ingest.auth_open_to says so".to_owned(),
        }
    }

    /// Decides about one publisher. `remote_ip` is the other end of its HTTP connection, unless a proxy stands
    /// between.
    pub(crate) async fn check(
        &self,
        stream: &str,
        token: Option<&str>,
        remote_ip: Option<IpAddr>,
    ) -> Result<(), Denied> {
        let token = token.filter(|token| token.len() <= TOKEN_BYTES_MAX);
        let has_rules = !self.keys.is_empty()
            || self.jwt.has_secret()
            || self.jwt.has_public_key()
            || self.callback.is_some();
        if !has_rules {
            let is_open = match self.open_to {
                OpenTo::Nobody => false,
                OpenTo::Loopback => remote_ip.is_some_and(|ip| ip.to_canonical().is_loopback()),
                OpenTo::Everybody => true,
            };
            return if is_open { Ok(()) } else { Err(Denied::Closed) };
        }
        let token = token.ok_or(Denied::Refused)?;
        if self.is_key(stream, token) || self.jwt.permits(stream, token, SystemTime::now()) {
            return Ok(());
        }
        match &self.callback {
            Some(callback) => callback.ask(&Question { stream, token, remote_ip }).await,
            None => Err(Denied::Refused),
        }
    }

    fn is_key(&self, stream: &str, token: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(token).into();
        // All are compared, whichever matches.
        self.keys.iter().fold(false, |found, (name, key)| {
            let is_stream = name == stream || name == "*";
            found | (is_stream & (*key == hash))
        })
    }
}

impl Callback {
    fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        // Fails when the program has installed a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(timeout)
            // Where a token goes is the operator's decision alone.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| format!("ingest.auth_callback_url: {error}"))?;
        Ok(Self { client, url: url.to_owned() })
    }

    async fn ask(&self, question: &Question<'_>) -> Result<(), Denied> {
        match self.client.post(&self.url).json(question).send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) if response.status().is_client_error() => Err(Denied::Refused),
            Ok(response) => {
                tracing::warn!(
                    status = response.status().as_u16(),
                    "the callback can't decide who may publish"
                );
                Err(Denied::Unavailable)
            }
            Err(error) => {
                // Without the URL, which may carry the operator's own secret.
                let error = error.without_url();
                tracing::warn!(%error, "the callback that decides who may publish doesn't answer");
                Err(Denied::Unavailable)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use ed25519_dalek::{Signer, SigningKey};
    use hmac::{Hmac, Mac};
    use shoal_credentials::Secret;

    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    const ELSEWHERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn auth(change: impl FnOnce(&mut Config)) -> Auth {
        let mut config = Config::default();
        change(&mut config);
        Auth::new(&config).unwrap()
    }

    fn encode(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    fn hs256(secret: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    fn in_an_hour() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3600
    }

    #[tokio::test]
    async fn by_default_only_this_machine_may_publish() {
        let auth = auth(|_| {});
        assert_eq!(auth.check("cam", None, HERE).await, Ok(()));
        assert_eq!(auth.check("cam", None, ELSEWHERE).await, Err(Denied::Closed));
        assert_eq!(auth.check("cam", None, None).await, Err(Denied::Closed), "unknown is not here");
    }

    #[tokio::test]
    async fn a_configured_key_closes_the_door_for_this_machine_too() {
        let auth =
            auth(|config| config.stream_keys = vec![Secret::new("cam:open sesame"), Secret::new("*:master")]);
        assert_eq!(auth.check("cam", None, HERE).await, Err(Denied::Refused));
        assert_eq!(auth.check("cam", Some("open sesame"), ELSEWHERE).await, Ok(()));
        assert_eq!(auth.check("other", Some("open sesame"), ELSEWHERE).await, Err(Denied::Refused));
        assert_eq!(auth.check("other", Some("master"), ELSEWHERE).await, Ok(()));
        assert_eq!(auth.check("cam", Some("open sesam"), HERE).await, Err(Denied::Refused));
    }

    #[tokio::test]
    async fn a_signed_token_opens_the_stream_that_it_names_until_it_expires() {
        let auth = auth(|config| {
            config.jwt_hs256_secret = Secret::new(SECRET);
            config.jwt_audience = "shoal".into();
        });
        const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
        let exp = in_an_hour();
        let good = format!(r#"{{"stream":"cam","aud":["x","shoal"],"exp":{exp}}}"#);
        assert_eq!(auth.check("cam", Some(&hs256(SECRET, HS256, &good)), ELSEWHERE).await, Ok(()));
        let refused = [
            ("another stream's", SECRET, HS256, format!(r#"{{"stream":"dog","aud":"shoal","exp":{exp}}}"#)),
            ("no stream's", SECRET, HS256, format!(r#"{{"aud":"shoal","exp":{exp}}}"#)),
            ("expired", SECRET, HS256, r#"{"stream":"cam","aud":"shoal","exp":1700000000}"#.into()),
            ("without end", SECRET, HS256, r#"{"stream":"cam","aud":"shoal"}"#.into()),
            (
                "not yet",
                SECRET,
                HS256,
                format!(r#"{{"stream":"cam","aud":"shoal","exp":{exp},"nbf":{exp}}}"#),
            ),
            ("another audience's", SECRET, HS256, format!(r#"{{"stream":"cam","aud":"dog","exp":{exp}}}"#)),
            ("another secret's", "0123456789abcdef0123456789abcdeX", HS256, good.clone()),
            ("unsigned", SECRET, r#"{"alg":"none"}"#, good.clone()),
            ("another algorithm's", SECRET, r#"{"alg":"HS512"}"#, good.clone()),
        ];
        for (what, secret, header, claims) in refused {
            let token = hs256(secret, header, &claims);
            assert_eq!(auth.check("cam", Some(&token), HERE).await, Err(Denied::Refused), "{what}");
        }
    }

    #[tokio::test]
    async fn eddsa_tokens_are_checked_and_the_public_key_is_no_secret() {
        let signing = SigningKey::from_bytes(&[7; 32]);
        let public = STANDARD.encode(signing.verifying_key().as_bytes());
        let auth = auth(|config| config.jwt_eddsa_public_key = public.clone());
        let claims = format!(r#"{{"stream":"*","exp":{}}}"#, in_an_hour());
        let signed = format!("{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(signing.sign(signed.as_bytes()).to_bytes());
        assert_eq!(auth.check("cam", Some(&format!("{signed}.{signature}")), ELSEWHERE).await, Ok(()));
        let forged = hs256(&public, r#"{"alg":"HS256"}"#, &claims);
        assert_eq!(auth.check("cam", Some(&forged), ELSEWHERE).await, Err(Denied::Refused));
    }

    #[test]
    fn mistakes_in_the_rules_are_named() {
        let error = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            Auth::new(&config).unwrap_err()
        };
        assert!(error(|c| c.stream_keys = vec![Secret::new("nokey")]).contains("stream_keys"));
        assert_eq!(
            error(|c| c.jwt_hs256_secret = Secret::new("short")),
            "ingest.jwt_hs256_secret: at least 32 characters are needed"
        );
        assert_eq!(
            error(|c| c.jwt_eddsa_public_key = "x".into()),
            "ingest.jwt_eddsa_public_key: neither a PEM public key of Ed25519 nor its 32 bytes in base64"
        );
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let config = Config {
            stream_keys: vec![Secret::new("cam:open sesame")],
            jwt_hs256_secret: Secret::new(SECRET),
            ..Config::default()
        };
        let text = format!("{config:?} {:?}", Auth::new(&config).unwrap());
        assert!(!text.contains("sesame") && !text.contains(SECRET), "{text}");
    }
}
