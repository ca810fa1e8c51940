//! The limits of one swarm: plain numbers, so that simulations and tests set their own.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::bucket::Rate;
use crate::{plan, range::check_range};

/// The operator's TURN servers, as far as candidates are judged by them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relays {
    /// There are none: a viewer that names one lies.
    #[default]
    None,
    /// Known by name only.
    Unknown,
    /// These addresses and no others.
    At(Vec<IpAddr>),
}

impl Relays {
    /// Another address of the operator's own server; false if that says nothing new.
    pub fn learn(&mut self, address: IpAddr) -> bool {
        match self {
            Self::At(known) if !known.contains(&address) => {
                known.push(address);
                true
            }
            _ => false,
        }
    }
}

/// Limits and intervals of a swarm. The same for every swarm of a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Viewers report this often, in milliseconds. The planner needs uplinks that are a few seconds old at most.
    pub report_interval_ms: u32,
    /// A viewer is gone after this time without a message, in milliseconds. Browsers let the timers of a hidden page
    /// run once a minute at the worst, but not in a page that plays media.
    pub silence_max_ms: u32,
    /// A viewer whose connection broke keeps its peer id and its pairs for this long, in milliseconds.
    pub resume_within_ms: u32,
    /// Neighbors of one viewer. Each costs its browser a peer connection. Players take no more than 32, whatever is said
    /// here: planned for fewer, they have room for those who are just taking leave.
    pub neighbors_max: u32,
    /// Viewers of one swarm that are planned together; more are dealt to several groups by country and renditions. Each
    /// group costs one more copy of every piece; a larger one makes the others wait longer while it is planned.
    pub group_viewers_max: u32,
    /// Viewers are asked to upload at most this many times the stream's rate, in percent. 200 is the smallest
    /// cap of those examined that still carries a swarm in which a third never uploads.
    pub upload_ratio_max_percent: u32,
    /// Published pieces that a joining viewer is told of: those of the last milliseconds.
    pub recent_ms: u32,
    /// Messages a second from one viewer, in the long run.
    pub messages_per_s_max: u32,
    /// Messages that a viewer may send at once. Joining with eight neighbors takes about a hundred.
    pub messages_burst: u32,
    /// Bytes of one session description. Browsers make 1 to 3 KiB for a data channel.
    pub description_bytes_max: u32,
    /// Descriptions and candidates from one viewer to one peer, in the life of their introduction.
    pub signals_per_pair_max: u8,
    /// Candidates from one viewer to one peer. A host with several interfaces and a relay has about ten.
    pub candidates_per_pair_max: u8,
    /// Public addresses of the other family that one viewer may name (they can't be compared with its own).
    pub unverified_addresses_max: u8,
    /// Whether candidates are checked at all. Off only where every viewer is trusted.
    pub check_candidates: bool,
    /// The operator's TURN servers.
    pub relays: Relays,
    /// Gather relay candidates only, so that no viewer learns another's address.
    pub relay_only: bool,
    /// Viewers have to agree before anybody is introduced to them.
    pub consent_required: bool,
    /// Introductions to viewers of other networks that one address (IPv6: /48), and one viewer token, may have at once.
    pub introductions_burst: u32,
    /// The same in the long run, for each hour. Bounds how many addresses a harvester learns.
    pub introductions_per_hour: u32,
    /// Neighbors of one viewer that may come from one foreign network, so that nobody is surrounded.
    pub neighbors_per_network_max: u32,
    /// The part of a viewer's neighbors that may be of one foreign autonomous system, in percent, where others are to be
    /// met; needs MMDB files. 100 switches it off.
    pub neighbors_per_asn_max_percent: u32,
    /// Viewers of different networks that must accuse a peer before it is no longer introduced.
    pub accusers_min: u32,
    /// An accusation counts for this long, in milliseconds.
    pub accusation_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            report_interval_ms: 5_000,
            silence_max_ms: 30_000,
            resume_within_ms: 15_000,
            neighbors_max: plan::Settings::default().neighbors_max,
            group_viewers_max: 2_500,
            upload_ratio_max_percent: 200,
            recent_ms: 6_000,
            messages_per_s_max: 30,
            messages_burst: 600,
            description_bytes_max: 16 * 1024,
            signals_per_pair_max: 64,
            candidates_per_pair_max: 16,
            unverified_addresses_max: 4,
            check_candidates: true,
            relays: Relays::None,
            relay_only: false,
            consent_required: false,
            introductions_burst: 120,
            introductions_per_hour: 240,
            neighbors_per_network_max: 4,
            neighbors_per_asn_max_percent: 50,
            accusers_min: 3,
            accusation_ms: 600_000,
        }
    }
}

impl Settings {
    /// Names the first key that is out of range.
    ///
    /// # Errors
    /// The key, its value and the range, in one line.
    pub fn validate(&self) -> Result<(), String> {
        check_range("report_interval_ms", self.report_interval_ms, 500, 60_000)?;
        check_range("silence_max_ms", self.silence_max_ms, 2 * self.report_interval_ms, 600_000)?;
        check_range("resume_within_ms", self.resume_within_ms, 0, 120_000)?;
        check_range("neighbors_max", self.neighbors_max, 2, 200)?;
        check_range("group_viewers_max", self.group_viewers_max, 10, 1_000_000)?;
        check_range("upload_ratio_max_percent", self.upload_ratio_max_percent, 0, 1_000)?;
        check_range("recent_ms", self.recent_ms, 0, 60_000)?;
        check_range("messages_per_s_max", self.messages_per_s_max, 1, 100_000)?;
        check_range("messages_burst", self.messages_burst, 10, 1_000_000)?;
        check_range("description_bytes_max", self.description_bytes_max, 1_024, 65_536)?;
        check_range("accusers_min", self.accusers_min, 1, 1_000)?;
        check_range("neighbors_per_asn_max_percent", self.neighbors_per_asn_max_percent, 25, 100)?;
        check_range("neighbors_per_network_max", self.neighbors_per_network_max, 1, 200)
    }

    pub(super) fn message_rate(&self) -> Rate {
        Rate::per_second(self.messages_per_s_max, self.messages_burst)
    }

    pub(crate) fn introduction_rate(&self) -> Rate {
        Rate { per_hour: self.introductions_per_hour.into(), burst: self.introductions_burst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_a_wrong_key_is_named() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let wrong = Settings { neighbors_max: 1, ..Settings::default() };
        assert_eq!(wrong.validate(), Err("neighbors_max = 1 is out of range: 2 to 200".into()));
    }
}
