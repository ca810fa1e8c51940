//! The STUN and TURN servers that viewers are told.
//!
//! TURN credentials are made for each viewer and end by themselves, in the format of coturn's REST scheme
//! (`use-auth-secret`): the user name is `<end>:<id>`, the password `base64(HMAC-SHA1(secret, user name))`. So an
//! operator can point to a coturn of his own, and a credential that leaks is soon worth nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha1::Sha1;
use shoal_tracker_protocol::IceServer;

use crate::Config;

/// The servers for one viewer. `host` is how it reached us, `stun_port` where our own STUN socket is, if there is one.
pub(super) fn servers(config: &Config, host: Option<&str>, stun_port: Option<u16>) -> Vec<IceServer> {
    let mut servers = config.ice_servers.clone();
    if let (Some(host), Some(port)) = (host.and_then(host_name), stun_port) {
        servers.push(IceServer {
            urls: vec![format!("stun:{host}:{port}")],
            username: None,
            credential: None,
        });
    }
    if !config.turn_urls.is_empty() {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let username =
            format!("{}:{:016x}", now_s + u64::from(config.turn_credential_s), rand::random::<u64>());
        let credential = Some(credential(&config.turn_secret, &username));
        servers.push(IceServer { urls: config.turn_urls.clone(), username: Some(username), credential });
    }
    servers
}

fn credential(secret: &str, username: &str) -> String {
    let mut hmac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    hmac.update(username.as_bytes());
    STANDARD.encode(hmac.finalize().into_bytes())
}

/// The name or address in a `Host` header, with the brackets that an IPv6 address needs in a URL; none if it could break
/// out of one.
fn host_name(host: &str) -> Option<&str> {
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let name = &host[..end];
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-._:[]".contains(letter);
    (!name.is_empty() && name.len() <= 253 && name.chars().all(is_plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_stun_server_is_named_as_the_viewer_reached_us() {
        let url = |host| {
            servers(&Config::default(), Some(host), Some(3478)).pop().map(|server| server.urls[0].clone())
        };
        assert_eq!(url("live.example:8080").as_deref(), Some("stun:live.example:3478"));
        assert_eq!(url("[2001:db8::1]:8080").as_deref(), Some("stun:[2001:db8::1]:3478"));
        assert_eq!(url("127.0.0.1").as_deref(), Some("stun:127.0.0.1:3478"));
        assert_eq!(url("evil?transport=tcp"), None);
        assert_eq!(url(""), None);
        assert!(servers(&Config::default(), Some("a"), None).is_empty(), "none by default");
    }

    #[test]
    fn turn_credentials_are_those_of_coturns_rest_scheme() {
        // As `turnutils` computes it: echo -n 1700000000:viewer | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(credential("north", "1700000000:viewer"), "6+yi/bVtfd33MEvbIUAHKkmAKPw=");
        let config = Config {
            turn_urls: vec!["turn:relay.example:3478".into()],
            turn_secret: "north".into(),
            ..Config::default()
        };
        let server = servers(&config, None, None).pop().unwrap();
        let username = server.username.unwrap();
        assert_eq!(server.credential.unwrap(), credential("north", &username));
        let (end, _) = username.split_once(':').unwrap();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!((now_s + 3_000..now_s + 90_000).contains(&end.parse().unwrap()));
    }
}
