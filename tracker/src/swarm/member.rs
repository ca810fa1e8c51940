//! What the tracker knows of one viewer.

use std::net::IpAddr;

use shoal_tracker_protocol::PeerId;

use super::bucket::Bucket;
use super::network::Network;
use super::output::Session;
use super::seeding::Newcomer;
use crate::plan::Locality;

/// A viewer asks to be taken in; the service has checked its token and its stream.
#[derive(Clone, Debug)]
pub struct Joining<'a> {
    /// From where the tracker sees it.
    pub address: IpAddr,
    /// Where that is, as far as it is known.
    pub locality: Locality,
    /// Whether it gives.
    pub shares: bool,
    /// What it is about to play; empty when not known.
    pub renditions: &'a [u8],
    /// What an earlier `welcome` gave.
    pub resume: Option<&'a str>,
    /// What its viewer token said, where it had to show one.
    pub credential: Option<&'a Credential>,
}

/// What a viewer token said that outlives joining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// A number of the token, so that its introductions are counted together, wherever it is used.
    pub id: u64,
    /// The only DTLS fingerprint (SHA-256, as in SDP) that the bearer may use; any when absent.
    pub fingerprint: Option<String>,
    /// How long it is good for, from joining on, in milliseconds.
    pub remaining_ms: u64,
}

/// Whose introductions are counted together, and who is shut out together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Account {
    /// The bearers of one viewer token.
    Token(u64),
    /// The viewers of one IPv4 address, or of an IPv6 /48: the smallest unit that costs money to own many of, as in
    /// `network.rs`. A host has a whole /64 for nothing, and a customer often 65,536 of them.
    V4([u8; 4]),
    /// See [`Account::V4`].
    V6([u8; 6]),
}

/// A viewer's accounts. Both pay for what it is told: tokens are made as fast as viewers sign up, and addresses as fast
/// as a carrier gives them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accounts {
    address: Account,
    token: Option<Account>,
}

impl Accounts {
    pub(super) fn of(joining: &Joining<'_>) -> Self {
        let token = joining.credential.map(|credential| Account::Token(credential.id));
        Self { token, ..Self::at(joining.address) }
    }

    /// Of somebody without a token.
    pub(crate) fn at(address: IpAddr) -> Self {
        let address = match address.to_canonical() {
            IpAddr::V4(v4) => Account::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, ..] = v6.octets();
                Account::V6([a, b, c, d, e, f])
            }
        };
        Self { address, token: None }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Account> {
        [Some(self.address), self.token].into_iter().flatten()
    }
}

/// An accusation that still counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accusation {
    pub(super) by: Network,
    pub(super) until_ms: u64,
}

/// A viewer that has accused this many is probably the fault itself, or among attackers only.
pub(super) const ACCUSED_MAX: usize = 32;

/// A viewer in a swarm.
#[derive(Debug)]
pub(super) struct Member {
    /// Its connection; what comes from another one counts for nothing.
    pub(super) session: Session,
    /// When its connection broke, if it did.
    pub(super) away_since_ms: Option<u64>,
    pub(super) address: IpAddr,
    pub(super) locality: Locality,
    pub(super) accounts: Accounts,
    /// The only DTLS fingerprint that it may use, if its token names one.
    pub(super) fingerprint: Option<Box<str>>,
    /// When its token ends.
    pub(super) expires_ms: Option<u64>,
    pub(super) shares: bool,
    pub(super) has_consented: bool,
    pub(super) is_banned: bool,
    /// Whether the tracker told it that peers may be used.
    pub(super) sharing: bool,
    /// Whether the planner knows it.
    pub(super) is_seeded: bool,
    pub(super) renditions: Vec<u8>,
    /// As it last reported.
    pub(super) uplink_kbps: Option<u32>,
    pub(super) heard_ms: u64,
    /// Its entry in the swarm's list of checks.
    pub(super) check_ms: u64,
    pub(super) messages: Bucket,
    /// What it may still send over its rate before it is shut out.
    pub(super) patience: Bucket,
    /// When it was last told that it sends too much.
    pub(super) warned_ms: Option<u64>,
    pub(super) unverified: Vec<IpAddr>,
    pub(super) accused_by: Vec<Accusation>,
    /// Peers that it accused: not introduced to it again. The oldest is forgotten beyond [`ACCUSED_MAX`].
    pub(super) accused: Vec<PeerId>,
    /// After a resume: peers that it said to be connected to and that the tracker does not know as a pair.
    pub(super) claims: Vec<PeerId>,
    pub(super) has_resumed: bool,
}

impl Member {
    pub(super) fn network(&self) -> Network {
        Network::of(self.address)
    }

    /// What may be planned on: nothing from a viewer that does not give.
    pub(super) fn usable_kbps(&self) -> Option<u32> {
        if self.shares { self.uplink_kbps } else { Some(0) }
    }

    pub(super) fn newcomer(&self) -> Newcomer<'_> {
        Newcomer {
            peer: self.session.peer,
            kbps: self.usable_kbps(),
            renditions: &self.renditions,
            locality: self.locality,
        }
    }

    /// Whether traffic between the two leaves a network: by their autonomous systems if both are known, else by their
    /// addresses.
    pub(super) fn is_across(&self, other: &Self) -> bool {
        match (self.locality.asn, other.locality.asn) {
            (0, _) | (_, 0) => self.network() != other.network(),
            (mine, theirs) => mine != theirs,
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.away_since_ms.is_none()
    }
}
