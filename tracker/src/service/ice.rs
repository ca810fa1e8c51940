//! The STUN and TURN servers that viewers are told.
//!
//! TURN credentials are made for each viewer and end by themselves, in the format of coturn's REST scheme
//! (`use-auth-secret`): the user name is `<end>:<id>`, the password `base64(HMAC-SHA1(secret, user name))`. So an
//! operator can point to a coturn of his own, and a credential that leaks is soon worth nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use shoal_credentials::Secret;
use shoal_tracker_protocol::IceServer;

use crate::turn::credential;
use crate::{Config, PeerPolicy};

/// Our own servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// The port of STUN, if it is on, and of TURN.
    pub(super) stun_port: Option<u16>,
    /// The secret of TURN credentials, for our own server and for others.
    pub(super) turn_secret: Secret,
}

/// The servers for one viewer. `host` is how it reached us. Also where viewers may not connect: that may be switched
/// while they are there.
pub(super) fn servers(config: &Config, policy: PeerPolicy, host: Option<&str>, own: &Own) -> Vec<IceServer> {
    let mut servers = config.ice_servers.clone();
    let own_address = host.and_then(host_name).zip(own.stun_port);
    if let Some((host, port)) = own_address {
        servers.push(IceServer {
            urls: vec![format!("stun:{host}:{port}")],
            username: None,
            credential: None,
        });
    }
    let mut urls = config.turn_urls.clone();
    if let Some((host, port)) = own_address.filter(|_| config.turn) {
        urls.extend(["udp", "tcp"].map(|transport| format!("turn:{host}:{port}?transport={transport}")));
    }
    if !urls.is_empty() && !matches!(policy, PeerPolicy::Off | PeerPolicy::Direct) {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let username =
            format!("{}:{:016x}", now_s + u64::from(config.turn_credential_s), rand::random::<u64>());
        let credential = Some(credential(own.turn_secret.expose(), &username));
        servers.push(IceServer { urls, username: Some(username), credential });
    }
    servers
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
        let own = Own { stun_port: Some(3478), turn_secret: Secret::default() };
        let listed = |host| servers(&Config::default(), PeerPolicy::default(), Some(host), &own);
        let url = |host| listed(host).pop().map(|server| server.urls[0].clone());
        assert_eq!(url("live.example:8080").as_deref(), Some("stun:live.example:3478"));
        assert_eq!(url("[2001:db8::1]:8080").as_deref(), Some("stun:[2001:db8::1]:3478"));
        assert_eq!(url("127.0.0.1").as_deref(), Some("stun:127.0.0.1:3478"));
        assert_eq!(url("evil?transport=tcp"), None);
        assert_eq!(url(""), None);
        let none = servers(&Config::default(), PeerPolicy::default(), Some("a"), &Own::default());
        assert!(none.is_empty(), "none by default");
    }

    #[test]
    fn turn_credentials_are_those_of_coturns_rest_scheme() {
        // As `turnutils` computes it: echo -n 1700000000:viewer | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(credential("north", "1700000000:viewer"), "6+yi/bVtfd33MEvbIUAHKkmAKPw=");
        let config = Config { turn_urls: vec!["turn:relay.example:3478".into()], ..Config::default() };
        let own = Own { stun_port: None, turn_secret: "north".into() };
        let server = servers(&config, PeerPolicy::RelayOnly, None, &own).pop().unwrap();
        let username = server.username.unwrap();
        assert_eq!(server.credential.unwrap(), credential("north", &username));
        let (end, _) = username.split_once(':').unwrap();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!((now_s + 3_000..now_s + 90_000).contains(&end.parse().unwrap()));
    }

    #[test]
    fn the_policy_decides_who_is_told_of_relays() {
        let config = Config { turn: true, ..Config::default() };
        let own = Own { stun_port: Some(3478), turn_secret: "north".into() };
        let urls = |policy| -> Vec<String> {
            let servers = servers(&config, policy, Some("a.example:8080"), &own);
            servers.into_iter().flat_map(|server| server.urls).collect()
        };
        assert_eq!(urls(PeerPolicy::Off), ["stun:a.example:3478"]);
        assert_eq!(urls(PeerPolicy::Direct), ["stun:a.example:3478"]);
        let all =
            ["stun:a.example:3478", "turn:a.example:3478?transport=udp", "turn:a.example:3478?transport=tcp"];
        assert_eq!(urls(PeerPolicy::DirectThenRelay), all);
        assert_eq!(urls(PeerPolicy::RelayOnly), all);
    }
}
