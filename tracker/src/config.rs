//! The tracker's settings: one flat table, every limit a key, units in the names.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use shoal_credentials::{Secret, jwt};
use shoal_tracker_protocol::IceServer;

use crate::{Error, range::check_range, swarm};

/// No viewer token is longer: all that its claims say has room in it, and it comes in a message that is limited, too.
const TOKEN_BYTES_MAX: usize = 2_048;

/// Whether and how the viewers of a stream connect to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerPolicy {
    /// Not at all: everything comes from the origin.
    Off,
    /// Only where they can reach each other directly.
    Direct,
    /// Directly, and where that fails through a relay, as far as its budget goes.
    #[default]
    DirectThenRelay,
    /// Only through a relay, so that no viewer learns another's address.
    RelayOnly,
}

/// Swarms: who may join, how many, and what viewers are asked to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// 64 hex digits from which swarm ids and resume tokens are made; random at each start when empty. Set it where
    /// viewers shall keep their places when the tracker is restarted.
    pub secret: Secret,
    /// Connections at a time. Allowed: 1 to 10000000.
    pub viewers_max: u32,
    /// Connections at a time from one address (one /64 with IPv6); not counted for loopback. Allowed: 1 to 10000000.
    pub viewers_per_address_max: u32,
    /// Joins a second, for all streams together; more are told to come back later. Allowed: 1 to 1000000.
    pub joins_per_s_max: u32,
    /// Joins that one address (one /64) may make in a minute; not counted for loopback. Allowed: 1 to 1000000.
    pub joins_per_address_per_min_max: u32,
    /// Web origins whose pages may connect, like `https://example.org`; any when empty.
    pub origins_allowed: Vec<String>,
    /// Proxies in front, like "10.0.0.0/8", whose X-Forwarded-For is believed. Without this, viewers behind a proxy
    /// all seem to have the proxy's address: limits and the checks of candidates can't tell them apart.
    pub trusted_proxies: Vec<String>,
    /// Secret that the broadcaster's back end signs viewer tokens with (JWT, HS256), at least 32 characters; no tokens
    /// when empty.
    pub viewer_token_secret: Secret,
    /// What a viewer token's `aud` claim must name; empty takes any.
    pub viewer_token_audience: String,
    /// Whether every stream wants a viewer token; else only those that the operator makes private.
    pub tokens_required: bool,
    /// Bearer token for the operator's routes under /api/tracker; they are closed when empty.
    pub admin_token: Secret,
    /// A connection that has not joined after this time is closed, in milliseconds. Allowed: 100 to 60000.
    pub join_within_ms: u32,
    /// The longest message of a viewer, in bytes. Allowed: 4096 to 1048576.
    pub message_bytes_max: u32,
    /// Messages a second from one viewer, in the long run. Allowed: 1 to 100000.
    pub messages_per_s_max: u32,
    /// Messages that one viewer may send at once. Allowed: 10 to 1000000.
    pub messages_burst: u32,
    /// Messages that wait for one viewer to read them; one whose queue is full is closed. Allowed: 64 to 100000.
    pub queue_messages_max: u32,
    /// Bytes of signaling and plans that wait for one viewer to read them; likewise. Allowed: 65536 to 67108864.
    pub queue_bytes_max: u32,
    /// A viewer that takes nothing for this long while something waits is closed, in milliseconds.
    /// Allowed: 100 to 60000.
    pub write_stall_max_ms: u32,
    /// Buffer for reading from one connection, in bytes. It is held for the whole life of an idle connection.
    /// Allowed: 1024 to 1048576.
    pub read_buffer_bytes: u32,
    /// Viewers report this often, in milliseconds. Allowed: 500 to 60000.
    pub report_interval_ms: u32,
    /// A viewer is gone after this time without a message, in milliseconds. Allowed: twice `report_interval_ms` to 600000.
    pub silence_max_ms: u32,
    /// A viewer whose connection broke keeps its place for this long, in milliseconds. Allowed: 0 to 120000.
    pub resume_within_ms: u32,
    /// Neighbors of one viewer. Players take no more than 32, whatever is set here. Allowed: 2 to 200.
    pub neighbors_max: u32,
    /// Viewers of one stream that are planned together; more are dealt to several groups, by country and by what they
    /// play. Each group costs one more copy of every piece. Allowed: 10 to 1000000.
    pub group_viewers_max: u32,
    /// Viewers are asked to upload at most this many times the stream's rate, in percent. Allowed: 0 to 1000.
    pub upload_ratio_max_percent: u32,
    /// Viewers that may use peers when the program starts, in percent. Allowed: 0 to 100.
    pub sharing_percent: u8,
    /// How viewers connect to each other, where nothing else is set for a stream by the operator's routes: `off`, `direct`,
    /// `direct_then_relay` (where there is a TURN server), or `relay_only` (needs one; no viewer learns another's
    /// address).
    pub peer_policy: PeerPolicy,
    /// Viewers have to agree before anybody is introduced to them.
    pub consent_required: bool,
    /// Remove ICE candidates that point to private, loopback or other people's addresses.
    pub check_candidates: bool,
    /// Introductions to viewers of other networks that one address (IPv6: one /48) may have at once, and one viewer token.
    pub introductions_burst: u32,
    /// The same in the long run, for each hour.
    pub introductions_per_hour: u32,
    /// Neighbors of one viewer that may come from one foreign /24 (IPv6: /48). Allowed: 1 to 200.
    pub neighbors_per_network_max: u32,
    /// The part of a viewer's neighbors that may be of one foreign autonomous system, in percent, where others are to be met;
    /// needs mmdb_files. 100 switches it off. Allowed: 25 to 100.
    pub neighbors_per_asn_max_percent: u32,
    /// Viewers of different networks that must accuse a peer before it is no longer introduced. Allowed: 1 to 1000.
    pub accusers_min: u32,
    /// MMDB files (MaxMind's format) with the autonomous system or the country of addresses: viewers near each other are
    /// introduced first, and large swarms are split by country. Read at the start.
    pub mmdb_files: Vec<String>,
    /// STUN and TURN servers of the operator that viewers are told, as RTCIceServer has them.
    pub ice_servers: Vec<IceServer>,
    /// UDP address of the program's own STUN server, like `[::]:3478`, which viewers behind different NATs need to find
    /// each other; none when empty. Viewers are told the host name by which they reached the tracker.
    pub stun_listen: String,
    /// Relay for viewers that can't reach each other: the program's own TURN server on the port of `stun_listen`, UDP and
    /// TCP. Costs the bandwidth that is relayed, twice.
    pub turn: bool,
    /// The address that relayed traffic comes from, if the machine does not know it: its public one behind a 1:1 NAT.
    pub turn_relay_address: String,
    /// The lowest UDP port for relaying.
    pub turn_port_min: u16,
    /// The highest UDP port for relaying.
    pub turn_port_max: u16,
    /// Bandwidth for all that is relayed, both ways together, in kbit/s. Allowed: 1 to 100000000.
    pub turn_kbps_max: u32,
    /// The same for one viewer. Allowed: 1 to 100000000.
    pub turn_user_kbps_max: u32,
    /// Allocations (relayed ports) at a time. A viewer needs one for each neighbor that it reaches by relay.
    /// Allowed: 1 to 60000.
    pub turn_allocations_max: u32,
    /// Allocations of one viewer. Allowed: 1 to 60000.
    pub turn_allocations_per_user_max: u32,
    /// Allocations of one address, behind which there may be many viewers. Allowed: 1 to 60000.
    pub turn_allocations_per_address_max: u32,
    /// Networks that may be relayed to beside viewers and other relayed addresses, like "10.0.0.0/8". Private and loopback
    /// addresses are refused without this: a relay must not be a door into the server's own network.
    pub turn_peers_allowed: Vec<String>,
    /// URLs of the operator's other TURN servers, like "turn:relay.example:3478?transport=udp".
    pub turn_urls: Vec<String>,
    /// Secret of TURN credentials (coturn's `static-auth-secret`): each viewer gets credentials of its own that end. Needed
    /// for `turn_urls`; random at each start for the program's own server when empty.
    pub turn_secret: Secret,
    /// TURN credentials are good for this long, in seconds. Allowed: 60 to 2592000.
    pub turn_credential_s: u32,
    /// Answer the WebTorrent protocol at /announce, for other players. It knows no streams, tokens or consent: it refuses
    /// everybody while a live stream or a recording that is watched is private, off or relay only, and where tokens or consent are
    /// required.
    pub announce: bool,
    /// WebTorrent clients are asked to announce this often, in seconds. Allowed: 5 to 3600.
    pub announce_interval_s: u32,
    /// Messages a second from one WebTorrent client, in the long run. Clients announce every minute and answer up to ten
    /// offers in between. Allowed: 1 to 1000000.
    pub announce_messages_per_s_max: u32,
    /// Messages that one WebTorrent client may send at once. Allowed: 10 to 1000000.
    pub announce_messages_burst: u32,
    /// Swarms that one WebTorrent client may be in: for p2p-media-loader each rendition is one.
    /// Allowed: 1 to 1000000.
    pub announce_swarms_max: u32,
    /// When the program stops, viewers are told to come back within this time, in milliseconds. Allowed: 0 to 600000.
    pub reconnect_within_ms: u32,
    /// When the program stops, connections stay this long after viewers were told, in milliseconds.
    /// Allowed: 0 to 600000.
    pub drain_ms: u32,
}

impl Default for Config {
    fn default() -> Self {
        let swarm = swarm::Settings::default();
        Self {
            secret: Secret::default(),
            viewers_max: 20_000,
            viewers_per_address_max: 256,
            joins_per_s_max: 2_000,
            joins_per_address_per_min_max: 240,
            origins_allowed: Vec::new(),
            trusted_proxies: Vec::new(),
            viewer_token_secret: Secret::default(),
            viewer_token_audience: String::new(),
            tokens_required: false,
            admin_token: Secret::default(),
            join_within_ms: 5_000,
            message_bytes_max: 32 * 1024,
            messages_per_s_max: swarm.messages_per_s_max,
            messages_burst: swarm.messages_burst,
            queue_messages_max: 512,
            queue_bytes_max: 256 * 1024,
            write_stall_max_ms: 5_000,
            read_buffer_bytes: 2 * 1024,
            report_interval_ms: swarm.report_interval_ms,
            silence_max_ms: swarm.silence_max_ms,
            resume_within_ms: swarm.resume_within_ms,
            neighbors_max: swarm.neighbors_max,
            group_viewers_max: swarm.group_viewers_max,
            upload_ratio_max_percent: swarm.upload_ratio_max_percent,
            sharing_percent: 100,
            peer_policy: PeerPolicy::default(),
            consent_required: false,
            check_candidates: true,
            introductions_burst: swarm.introductions_burst,
            introductions_per_hour: swarm.introductions_per_hour,
            neighbors_per_network_max: swarm.neighbors_per_network_max,
            neighbors_per_asn_max_percent: swarm.neighbors_per_asn_max_percent,
            accusers_min: swarm.accusers_min,
            mmdb_files: Vec::new(),
            ice_servers: Vec::new(),
            stun_listen: String::new(),
            turn: false,
            turn_relay_address: String::new(),
            turn_port_min: 49_152,
            turn_port_max: 65_535,
            turn_kbps_max: 100_000,
            turn_user_kbps_max: 12_000,
            turn_allocations_max: 2_000,
            turn_allocations_per_user_max: 64,
            turn_allocations_per_address_max: 256,
            turn_peers_allowed: Vec::new(),
            turn_urls: Vec::new(),
            turn_secret: Secret::default(),
            turn_credential_s: 6 * 3_600,
            announce: true,
            announce_interval_s: 60,
            announce_messages_per_s_max: 5,
            announce_messages_burst: 100,
            announce_swarms_max: 16,
            reconnect_within_ms: 10_000,
            drain_ms: 1_000,
        }
    }
}

impl Config {
    /// Checks ranges. To be called before any socket opens.
    ///
    /// # Errors
    /// [`Error::Config`] with the key, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        self.swarm_settings().validate().map_err(Error::Config)?;
        self.secret_bytes()?;
        self.viewer_tokens()?;
        self.stun_address()?;
        if !self.turn_urls.is_empty() && self.turn_secret.is_empty() {
            return Err(Error::Config("turn_urls need the turn_secret of those servers".into()));
        }
        if self.turn && self.stun_listen.is_empty() {
            return Err(Error::Config("turn = true needs a stun_listen".into()));
        }
        if self.peer_policy == PeerPolicy::RelayOnly && !self.turn && self.turn_urls.is_empty() {
            return Err(Error::Config("peer_policy = \"relay_only\" needs turn = true or turn_urls".into()));
        }
        if !self.turn_relay_address.is_empty() && self.turn_relay_address.parse::<IpAddr>().is_err() {
            let why = format!("turn_relay_address: {} is no IP address", self.turn_relay_address);
            return Err(Error::Config(why));
        }
        crate::service::Proxies::parse("turn_peers_allowed", &self.turn_peers_allowed)?;
        if self.tokens_required && self.viewer_token_secret.is_empty() {
            return Err(Error::Config("tokens_required = true needs a viewer_token_secret".into()));
        }
        crate::service::Proxies::parse("trusted_proxies", &self.trusted_proxies)?;
        let ranges = [
            ("viewers_max", self.viewers_max, 1, 10_000_000),
            ("viewers_per_address_max", self.viewers_per_address_max, 1, 10_000_000),
            ("joins_per_s_max", self.joins_per_s_max, 1, 1_000_000),
            ("joins_per_address_per_min_max", self.joins_per_address_per_min_max, 1, 1_000_000),
            ("join_within_ms", self.join_within_ms, 100, 60_000),
            ("message_bytes_max", self.message_bytes_max, 4 * 1024, 1024 * 1024),
            ("queue_messages_max", self.queue_messages_max, 64, 100_000),
            ("queue_bytes_max", self.queue_bytes_max, 64 * 1024, 64 * 1024 * 1024),
            ("write_stall_max_ms", self.write_stall_max_ms, 100, 60_000),
            ("read_buffer_bytes", self.read_buffer_bytes, 1024, 1024 * 1024),
            ("reconnect_within_ms", self.reconnect_within_ms, 0, 600_000),
            ("turn_port_min", self.turn_port_min.into(), 1_024, self.turn_port_max.into()),
            ("turn_kbps_max", self.turn_kbps_max, 1, 100_000_000),
            ("turn_user_kbps_max", self.turn_user_kbps_max, 1, 100_000_000),
            ("turn_allocations_max", self.turn_allocations_max, 1, 60_000),
            ("turn_allocations_per_user_max", self.turn_allocations_per_user_max, 1, 60_000),
            ("turn_allocations_per_address_max", self.turn_allocations_per_address_max, 1, 60_000),
            ("turn_credential_s", self.turn_credential_s, 60, 30 * 24 * 3_600),
            ("announce_messages_per_s_max", self.announce_messages_per_s_max, 1, 1_000_000),
            ("announce_messages_burst", self.announce_messages_burst, 10, 1_000_000),
            ("announce_swarms_max", self.announce_swarms_max, 1, 1_000_000),
            ("announce_interval_s", self.announce_interval_s, 5, 3_600),
            ("drain_ms", self.drain_ms, 0, 600_000),
            ("sharing_percent", self.sharing_percent.into(), 0, 100),
        ];
        ranges
            .into_iter()
            .try_for_each(|(key, value, low, high)| check_range(key, value, low, high))
            .map_err(Error::Config)
    }

    /// The secret, none if each start shall have its own.
    pub(crate) fn secret_bytes(&self) -> Result<Option<[u8; 32]>, Error> {
        if self.secret.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0; 32];
        match hex::decode_to_slice(self.secret.expose(), &mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(_) => Err(Error::Config("secret must be 64 hex digits or empty".into())),
        }
    }

    /// What viewers' tokens are checked by, none if there is no secret for them.
    pub(crate) fn viewer_tokens(&self) -> Result<Option<jwt::Verifier>, Error> {
        let too_short = |_| {
            let chars_min = jwt::HS256_SECRET_CHARS_MIN;
            Error::Config(format!("viewer_token_secret must have at least {chars_min} characters"))
        };
        let verifier = jwt::Verifier::new(&self.viewer_token_audience, TOKEN_BYTES_MAX)
            .with_hs256_secret(&self.viewer_token_secret)
            .map_err(too_short)?;
        Ok(verifier.has_hs256_secret().then_some(verifier))
    }

    /// Where the STUN socket listens, if there shall be one.
    pub(crate) fn stun_address(&self) -> Result<Option<SocketAddr>, Error> {
        if self.stun_listen.is_empty() {
            return Ok(None);
        }
        let bad =
            |_| Error::Config(format!("stun_listen: {} is no address like [::]:3478", self.stun_listen));
        self.stun_listen.parse().map(Some).map_err(bad)
    }

    /// The TURN servers that viewers are told. What other servers' relayed addresses are is not known here, whatever they are
    /// reached by; our own's are learned as it gives them out, where no setting names them.
    fn relays(&self) -> swarm::Relays {
        let is_turn = |url: &String| url.starts_with("turn:") || url.starts_with("turns:");
        if !self.turn_urls.is_empty() || self.ice_servers.iter().any(|server| server.urls.iter().any(is_turn))
        {
            swarm::Relays::Unknown
        } else if self.turn {
            swarm::Relays::At(self.turn_relay_address.parse().ok().into_iter().collect())
        } else {
            swarm::Relays::None
        }
    }

    /// What concerns one swarm; `relay_only` depends on its stream.
    pub(crate) fn swarm_settings(&self) -> swarm::Settings {
        swarm::Settings {
            report_interval_ms: self.report_interval_ms,
            silence_max_ms: self.silence_max_ms,
            resume_within_ms: self.resume_within_ms,
            neighbors_max: self.neighbors_max,
            group_viewers_max: self.group_viewers_max,
            upload_ratio_max_percent: self.upload_ratio_max_percent,
            messages_per_s_max: self.messages_per_s_max,
            messages_burst: self.messages_burst,
            check_candidates: self.check_candidates,
            consent_required: self.consent_required,
            introductions_burst: self.introductions_burst,
            introductions_per_hour: self.introductions_per_hour,
            neighbors_per_network_max: self.neighbors_per_network_max,
            neighbors_per_asn_max_percent: self.neighbors_per_asn_max_percent,
            accusers_min: self.accusers_min,
            relays: self.relays(),
            ..swarm::Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_wrong_values_are_named() {
        Config::default().validate().unwrap();
        let message = |config: Config| config.validate().unwrap_err().to_string();
        assert!(message(Config { viewers_max: 0, ..Config::default() }).contains("viewers_max = 0"));
        assert!(message(Config { secret: "abc".into(), ..Config::default() }).contains("secret"));
        assert!(message(Config { silence_max_ms: 1, ..Config::default() }).contains("silence_max_ms = 1"));
        let ports = Config { turn_port_min: 9_000, turn_port_max: 8_000, ..Config::default() };
        assert!(message(ports).contains("turn_port_min = 9000 is out of range: 1024 to 8000"));
        let proxies = vec!["10.0.0.0/99".to_owned()];
        assert!(message(Config { trusted_proxies: proxies, ..Config::default() }).contains("10.0.0.0/99"));
        let short = Config { viewer_token_secret: "x".repeat(31).into(), ..Config::default() };
        assert!(message(short).contains("viewer_token_secret must have at least 32 characters"));
    }

    #[test]
    fn relays_are_none_unknown_or_our_own() {
        use crate::swarm::Relays;
        assert_eq!(Config::default().swarm_settings().relays, Relays::None);
        let own = Config { turn: true, turn_relay_address: "5.6.7.8".into(), ..Config::default() };
        assert_eq!(own.swarm_settings().relays, Relays::At(vec!["5.6.7.8".parse().unwrap()]));
        let learned = Config { turn: true, ..Config::default() };
        assert_eq!(learned.swarm_settings().relays, Relays::At(Vec::new()));
        let server = |url: &str| IceServer { urls: vec![url.into()], username: None, credential: None };
        let foreign = |url| Config { ice_servers: vec![server(url)], ..own.clone() };
        assert_eq!(foreign("turns:relay.example").swarm_settings().relays, Relays::Unknown);
        assert_eq!(foreign("stun:a.example").swarm_settings().relays, own.swarm_settings().relays);
    }

    #[test]
    fn secrets_are_read_but_neither_shown_nor_written() {
        let secrets = ["first".repeat(8), "second".repeat(8), "third".repeat(8), "fourth".repeat(8)];
        let [secret, viewer_token_secret, admin_token, turn_secret] =
            secrets.each_ref().map(|text| Secret::from(text.as_str()));
        let server = IceServer {
            urls: vec!["turn:a.example".into()],
            username: Some("user".into()),
            credential: Some("password".repeat(4)),
        };
        let ice_servers = vec![server];
        let config = Config {
            secret,
            viewer_token_secret,
            admin_token,
            turn_secret,
            ice_servers,
            ..Config::default()
        };
        let shown = format!("{config:?} {config:#?}");
        let written = serde_json::to_string(&config).unwrap();
        // The password of an ICE server is written: viewers are told it.
        assert!(!shown.contains(config.ice_servers[0].credential.as_ref().unwrap()));
        for hidden in &secrets {
            assert!(!shown.contains(hidden.as_str()), "{hidden} is shown");
            assert!(!written.contains(hidden.as_str()), "{hidden} is written");
            let read: Config = serde_json::from_str(&format!(r#"{{"admin_token":"{hidden}"}}"#)).unwrap();
            assert_eq!(read.admin_token.expose(), hidden);
        }
        assert!(shown.contains("admin_token: Secret(..)"), "{shown}");
        assert!(format!("{:?}", Config::default()).contains("admin_token: Secret(none)"));
    }

    #[test]
    fn misspelt_keys_are_refused() {
        let text = serde_json::json!({ "viewer_max": 3 }).to_string();
        assert!(serde_json::from_str::<Config>(&text).unwrap_err().to_string().contains("viewer_max"));
    }
}
