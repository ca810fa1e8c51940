//! Accusations: evidence, not verdicts.
//!
//! A viewer that received bytes which do not match a signed record knows who sent them, but the tracker knows only what
//! it is told. So one accusation parts the two (which costs a slanderer his own neighbor), and only several accusers
//! of different networks have a viewer shut out.
//!
//! Shut out means: it plays from the origin and meets nobody. That holds as long as an accusation counts, for its peer id,
//! its address and its token, so that joining anew does not help. Others behind that address who join meanwhile play from
//! the origin, too: a price that is paid for ten minutes, and only after several networks have said the same.

use std::collections::BTreeMap;

use shoal_tracker_protocol::PeerId;

use super::member::{ACCUSED_MAX, Account, Accounts, Accusation};
use super::network::Network;
use super::output::Output;
use super::{Swarm, refuse};

/// Bans that have ended are dropped this often.
const SWEEP_MS: u64 = 60_000;
/// Who is remembered to be shut out. Beyond it the one whose time ends first is forgotten.
const BANS_MAX: usize = 4_096;

/// Who is shut out, beyond the life of a connection.
#[derive(Debug, Default)]
pub(super) struct Bans {
    /// Until when.
    until_ms: BTreeMap<Offender, u64>,
    swept_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Offender {
    Peer(PeerId),
    Account(Account),
}

impl Bans {
    pub(super) fn hold(&self, now_ms: u64, peer: PeerId, accounts: Accounts) -> bool {
        let offenders = [Offender::Peer(peer)].into_iter().chain(accounts.iter().map(Offender::Account));
        offenders
            .into_iter()
            .any(|offender| self.until_ms.get(&offender).is_some_and(|until| *until > now_ms))
    }

    fn add(&mut self, offender: Offender, until_ms: u64) {
        self.until_ms.insert(offender, until_ms);
        if self.until_ms.len() > BANS_MAX {
            let first = self.until_ms.iter().min_by_key(|(_, until_ms)| **until_ms);
            if let Some(first) = first.map(|(offender, _)| *offender) {
                self.until_ms.remove(&first);
            }
        }
    }

    pub(super) fn sweep(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.until_ms.retain(|_, until_ms| *until_ms > now_ms);
        }
    }
}

impl Swarm {
    pub(super) fn handle_accusation(
        &mut self,
        now_ms: u64,
        from: PeerId,
        accused: PeerId,
        out: &mut Vec<Output>,
    ) {
        // Only a neighbor can have sent bytes. Without this check anybody could accuse anybody.
        if !self.pairs.is_connected(from, accused) {
            let code = shoal_tracker_protocol::ErrorCode::NotIntroduced;
            out.push(refuse(from, code, "accused a peer that is not a neighbor", false));
            return;
        }
        self.separate(from, accused, out);
        self.seeding.lost(now_ms, from, accused);
        let Some(accuser) = self.members.get_mut(&from) else { return };
        if accuser.accused.len() >= ACCUSED_MAX {
            accuser.accused.remove(0);
        }
        accuser.accused.push(accused);
        let by = accuser.network();
        let until_ms = now_ms + u64::from(self.settings.accusation_ms);
        let Some(member) = self.members.get_mut(&accused) else { return };
        self.counters.accusations += 1;
        member.accused_by.retain(|accusation| accusation.until_ms > now_ms && accusation.by != by);
        member.accused_by.push(Accusation { by, until_ms });
        if member.accused_by.len() >= self.settings.accusers_min as usize && !member.is_banned {
            member.is_banned = true;
            self.bans.add(Offender::Peer(accused), until_ms);
            // All of one machine or house have the same address inside: one of them must not put out the others.
            let is_inside = member.network() == Network::Inside;
            let accounts =
                member.accounts.iter().filter(|account| !is_inside || matches!(account, Account::Token(_)));
            accounts.for_each(|account| self.bans.add(Offender::Account(account), until_ms));
            self.counters.bans += 1;
            self.refresh(now_ms, accused, out);
        }
    }
}
