//! The ingest's part of the configuration file. Every limit is a key; the doc comments are the manual.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use shoal_credentials::Secret;

/// Publishers: the port for their media, who may publish, limits.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address of the one UDP port (and TCP port of the same number) for the media of all publishers.
    /// Port 0 takes any free one.
    pub media_address: SocketAddr,
    /// IP addresses or DNS names under which publishers reach that port, when they are not this machine's own:
    /// in containers and behind 1:1 NAT. They are offered before this machine's own. Names are resolved at start; those
    /// that can't be are skipped.
    pub public_ips: Vec<String>,
    /// Also accept media over TCP (RFC 6544) on the same port number, for networks that block UDP.
    pub tcp_enabled: bool,
    /// Connections that may be open on the TCP port at once. Allowed: 1 to 100000.
    pub tcp_connections_max: usize,
    /// Publishers at the same time; more get 503. Allowed: 1 to 100000.
    pub sessions_max: usize,
    /// The size of a WHIP request's body; larger ones get 413. Allowed: 4096 to 1048576.
    pub body_bytes_max: usize,
    /// WHIP requests per second of one address (of IPv6, of one /64 network), averaged, that are worked on; more get 429.
    /// The requests of a session that exists count for themselves. Allowed: 1 to 100000.
    pub requests_per_s_max: u32,
    /// WHIP requests that may come at once before that average counts. Allowed: 1 to 100000.
    pub requests_burst_max: u32,
    /// ICE servers that publishers are told of in `Link` headers, such as a TURN server of your own:
    /// `{ url = "turn:turn.example.org:3478?transport=udp", username = "..", credential = ".." }`.
    pub ice_servers: Vec<IceServer>,
    /// How long a missing video packet is waited for before its frame is given up, in milliseconds. Longer repairs
    /// more and delays more. Allowed: 20 to 2000.
    pub loss_hold_ms: u64,
    /// The least time between two keyframe requests for one video stream, in milliseconds. Allowed: 100 to 10000.
    pub keyframe_interval_min_ms: u64,
    /// A publisher that hasn't connected this long after its offer is dropped, in milliseconds. Allowed: 1000 to
    /// 120000.
    pub connect_timeout_ms: u64,
    /// A publisher from which nothing at all arrives for this long is gone, in milliseconds. Allowed: 1000 to 60000.
    pub silence_max_ms: u64,
    /// A publisher that has been silent this long gives way to another one that wants its stream, in milliseconds:
    /// a browser page that was loaded anew doesn't have to wait for `silence_max_ms`. Allowed: 100 to 60000.
    pub takeover_silence_ms: u64,
    /// Frames presented out of order (B-frames) within ten seconds that are tolerated before a publisher is refused.
    pub frames_out_of_order_max: u64,
    /// Datagrams that may wait for one session's task; more are dropped and counted. Allowed: 16 to 65536.
    pub inbox_datagrams_max: usize,
    /// The size asked for the UDP socket's receive buffer, in bytes. The kernel may grant less
    /// (`net.core.rmem_max`). Allowed: 65536 to 1073741824.
    pub receive_buffer_bytes: usize,
    /// Who may publish without a token as long as no keys, tokens or callback are configured: "nobody", "loopback"
    /// (this machine, when no proxy stands between) or "everybody".
    pub auth_open_to: OpenTo,
    /// Keys that publishers bring as bearer tokens, each as "STREAM:KEY"; "*" as the stream's name is good for
    /// every stream.
    pub stream_keys: Vec<Secret>,
    /// The secret of JWTs signed with HS256, at least 32 characters. A token needs the claims `exp` and `stream`
    /// (a stream's name, or "*").
    pub jwt_hs256_secret: Secret,
    /// The public key of JWTs signed with EdDSA (Ed25519): PEM, or its 32 bytes in base64.
    pub jwt_eddsa_public_key: String,
    /// What a JWT's `aud` claim must name; empty takes any.
    pub jwt_audience: String,
    /// A URL of your own that decides: it gets a POST with the JSON `{"stream", "token", "remote_ip"}` and answers
    /// 2xx (yes) or 4xx (no).
    pub auth_callback_url: String,
    /// How long that answer may take, in milliseconds; then publishers get 503. Allowed: 100 to 30000.
    pub auth_callback_timeout_ms: u64,
    /// The path under which the WHIP routes are reached, for `Location`, when a proxy adds one.
    pub path_prefix: String,
}

/// An ICE server, as RFC 9725, 4.6 tells publishers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IceServer {
    /// `stun:` or `turn:` URL.
    pub url: String,
    /// User name, for TURN.
    pub username: String,
    /// Password, for TURN.
    pub credential: Secret,
}

/// Who needs no token.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenTo {
    /// Everybody needs one.
    Nobody,
    /// This machine itself.
    #[default]
    Loopback,
    /// Nobody needs one.
    Everybody,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            media_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8189),
            public_ips: Vec::new(),
            tcp_enabled: true,
            tcp_connections_max: 256,
            sessions_max: 64,
            body_bytes_max: 64 * 1024,
            requests_per_s_max: 20,
            requests_burst_max: 40,
            ice_servers: Vec::new(),
            loss_hold_ms: 400,
            keyframe_interval_min_ms: 500,
            connect_timeout_ms: 20_000,
            silence_max_ms: 8_000,
            takeover_silence_ms: 3_000,
            frames_out_of_order_max: 30,
            inbox_datagrams_max: 1024,
            receive_buffer_bytes: 4 << 20,
            auth_open_to: OpenTo::Loopback,
            stream_keys: Vec::new(),
            jwt_hs256_secret: Secret::default(),
            jwt_eddsa_public_key: String::new(),
            jwt_audience: String::new(),
            auth_callback_url: String::new(),
            auth_callback_timeout_ms: 3000,
            path_prefix: String::new(),
        }
    }
}

impl Config {
    /// Names the first key whose value is out of range.
    pub fn validate(&self) -> Result<(), String> {
        let range = |key: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("ingest.{key} = {value}: must be between {low} and {high}"))
            }
        };
        range("sessions_max", self.sessions_max as u64, 1, 100_000)?;
        range("tcp_connections_max", self.tcp_connections_max as u64, 1, 100_000)?;
        range("body_bytes_max", self.body_bytes_max as u64, 4096, 1 << 20)?;
        range("requests_per_s_max", self.requests_per_s_max.into(), 1, 100_000)?;
        range("requests_burst_max", self.requests_burst_max.into(), 1, 100_000)?;
        range("loss_hold_ms", self.loss_hold_ms, 20, 2000)?;
        range("keyframe_interval_min_ms", self.keyframe_interval_min_ms, 100, 10_000)?;
        range("connect_timeout_ms", self.connect_timeout_ms, 1000, 120_000)?;
        range("silence_max_ms", self.silence_max_ms, 1000, 60_000)?;
        range("takeover_silence_ms", self.takeover_silence_ms, 100, 60_000)?;
        range("inbox_datagrams_max", self.inbox_datagrams_max as u64, 16, 65_536)?;
        range("auth_callback_timeout_ms", self.auth_callback_timeout_ms, 100, 30_000)?;
        range("receive_buffer_bytes", self.receive_buffer_bytes as u64, 64 * 1024, 1 << 30)?;
        if !self.path_prefix.is_empty() && !self.path_prefix.starts_with('/') {
            return Err(format!("ingest.path_prefix = {:?}: must start with /", self.path_prefix));
        }
        for server in &self.ice_servers {
            if !["stun:", "stuns:", "turn:", "turns:"].iter().any(|scheme| server.url.starts_with(scheme)) {
                return Err(format!("ingest.ice_servers url = {:?}: must be a stun or turn URL", server.url));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_key_and_range() {
        let config = Config { silence_max_ms: 5, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(error, "ingest.silence_max_ms = 5: must be between 1000 and 60000");
    }

    #[test]
    fn secrets_are_not_shown() {
        let credential = Secret::new("hidden-password");
        let server = IceServer { url: "turn:a.example".into(), username: "user".into(), credential };
        let config = Config {
            ice_servers: vec![server],
            stream_keys: vec![Secret::new("cam:hidden-key")],
            jwt_hs256_secret: Secret::new("hidden-secret"),
            ..Config::default()
        };
        let shown = format!("{config:?}");
        assert!(!shown.contains("hidden") && shown.contains("credential: Secret(..)"), "{shown}");
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(serde_json::from_str::<Config>(r#"{"sesions_max": 3}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"sessions_max": 3}"#).is_ok());
    }
}
