//! Accusations: evidence, not verdicts.
//!
//! A viewer that received bytes which do not match a signed record knows who sent them, but the tracker knows only what
//! it is told. So one accusation parts the two (which costs a slanderer his own neighbor), and only several accusers
//! of different networks have a viewer shut out.

use shoal_tracker_protocol::PeerId;

use super::member::{ACCUSED_MAX, Accusation};
use super::output::Output;
use super::{Swarm, refuse};

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
            self.counters.bans += 1;
            self.refresh(now_ms, accused, out);
        }
    }
}
