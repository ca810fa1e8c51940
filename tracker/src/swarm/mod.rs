//! One swarm: the viewers of one publication of a stream, whom they meet, and what they are told.
//!
//! The pure core of the tracker. Every `handle_*` takes the time and an event and pushes what has to be done into a
//! `Vec` of the caller's; [`Swarm::next_deadline`] says when [`Swarm::handle_deadline`] wants to be called. No sockets,
//! no clock, no randomness but the seed: the simulator runs it as it is. Sockets are in `../service`; who seeds, who
//! feeds whom and who should meet is decided by `../plan`, which this module asks and whose answers it carries out
//! within the limits of [`Settings`].
//!
//! Work for one event does not grow with the swarm, except where every viewer has to be told something.

mod bucket;
mod candidate;
mod description;
mod evidence;
mod id;
mod ledger;
mod meet;
mod member;
mod network;
mod output;
mod seeding;
mod settings;
mod signal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use shoal_tracker_protocol::{
    ErrorCode, IceServer, PeerId, Piece, Report, TrackerMessage, VERSION, ViewerMessage, Welcome,
};

pub use bucket::{Bucket, Rate};
pub(crate) use description::DescriptionFilter;
pub use id::Secret;
pub(crate) use ledger::Ledger;
pub(crate) use member::Accounts;
pub use member::{Credential, Joining};
pub use network::{Network, canonical, is_inside};
pub use output::{CloseReason, Counters, Notice, Output, Session};
pub use settings::{Relays, Settings};

use evidence::Bans;
use member::Member;
use seeding::Seeding;
use signal::Pairs;

/// A viewer plays one video and one or two audio renditions; more in a report is nonsense.
const RENDITIONS_MAX: usize = 8;
/// Pieces told to a joining viewer, whatever [`Settings::recent_ms`] says: a stream with many renditions.
const RECENT_MAX: usize = 64;
/// No access line of a viewer is faster; a larger figure in a report is a lie or a fault.
const UPLINK_KBPS_MAX: u32 = 1_000_000;
/// No viewer moves more in one report.
const REPORT_BYTES_MAX: u64 = 1 << 30;

/// A viewer is told this seldom that it sends too much, so that a flood is not answered by a flood.
const WARNING_INTERVAL_MS: u64 = 1_000;

/// A piece that the origin has just published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Which.
    pub piece: Piece,
    /// Its URL, relative to the multivariant playlist's.
    pub uri: String,
    /// Its signed digest record, base64.
    pub record: String,
    /// Its length in bytes.
    pub length: u32,
}

/// The operator's switch: whether peers may be used, and by how many of the viewers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Viewers that may, in percent; 0 is off. A viewer stays on the same side while the share grows or shrinks.
    pub percent: u8,
}

/// One swarm.
#[derive(Debug)]
pub struct Swarm {
    id: String,
    secret: Secret,
    settings: Settings,
    rng: StdRng,
    members: BTreeMap<PeerId, Member>,
    present: usize,
    pairs: Pairs,
    seeding: Seeding,
    /// When each member is to be looked at: silence, or the end of its absence. One entry for each member.
    checks: BTreeSet<(u64, PeerId)>,
    ledger: Ledger,
    bans: Bans,
    recent: VecDeque<(u64, Arc<Notice>)>,
    switch: Switch,
    sessions: u64,
    counters: Counters,
}

impl Swarm {
    /// An empty swarm. `id` comes from [`Secret::swarm_id`]; `seed` decides every random choice.
    #[must_use]
    pub fn new(
        id: String,
        secret: Secret,
        seed: [u8; 32],
        settings: Settings,
        plan: crate::plan::Settings,
    ) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let seeding = Seeding::new(plan, &settings, rng.random());
        Self {
            id,
            secret,
            settings,
            rng,
            members: BTreeMap::new(),
            present: 0,
            pairs: Pairs::default(),
            seeding,
            checks: BTreeSet::new(),
            ledger: Ledger::default(),
            bans: Bans::default(),
            recent: VecDeque::new(),
            switch: Switch::default(),
            sessions: 0,
            counters: Counters::default(),
        }
    }

    /// Viewers that have a connection.
    #[must_use]
    pub fn viewers(&self) -> usize {
        self.present
    }

    /// Pairs that were introduced and have not parted.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// The seeding plan in numbers, by rendition. Walks all viewers: for an operator's question, not for each event.
    #[must_use]
    pub fn plans(&self) -> Vec<(u8, crate::plan::Summary)> {
        self.seeding.summaries()
    }

    /// How many groups the viewers are dealt to; they meet within their group only.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.seeding.groups()
    }

    /// What was counted since the swarm began.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The operator's switch as it stands.
    #[must_use]
    pub fn switch(&self) -> Switch {
        self.switch
    }

    /// When [`Swarm::handle_deadline`] wants to be called at the latest, in the caller's milliseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let check = self.checks.first().map(|(at, _)| *at);
        [check, self.seeding.next_deadline()].into_iter().flatten().min()
    }

    /// Takes a viewer in: a new one, or one that comes back. The messages for it are pushed after its session is
    /// known, so the caller has to attach the connection to the session before it sends them.
    pub fn handle_join(
        &mut self,
        now_ms: u64,
        joining: &Joining<'_>,
        ice_servers: Vec<IceServer>,
        out: &mut Vec<Output>,
    ) -> Session {
        let resumed = joining.resume.and_then(|token| self.secret.resumed_peer(&self.id, token));
        self.sessions += 1;
        let peer = resumed.unwrap_or_else(|| self.unused_peer_id());
        let session = Session { peer, number: self.sessions };
        self.counters.joins += 1;
        self.counters.resumes += u64::from(resumed.is_some());
        let old = self.members.remove(&peer);
        if let Some(old) = &old {
            self.checks.remove(&(old.check_ms, peer));
            if old.is_present() {
                self.present -= 1;
                out.push(Output::Close { session: old.session, reason: CloseReason::Superseded });
            }
            // The planner meets it anew: its place may have changed while it was away, and it has to be told all.
            self.seeding.leave(now_ms, peer);
        }
        let member = self.new_member(now_ms, session, joining, old, resumed.is_some());
        out.push(self.welcome(session, member.sharing, ice_servers));
        self.checks.insert((member.check_ms, peer));
        self.members.insert(peer, member);
        self.present += 1;
        for (_, notice) in &self.recent {
            out.push(Output::Notify { to: peer, notice: Arc::clone(notice) });
        }
        self.refresh(now_ms, peer, out);
        self.carry_out(now_ms, out);
        session
    }

    fn new_member(
        &mut self,
        now_ms: u64,
        session: Session,
        joining: &Joining<'_>,
        old: Option<Member>,
        has_resumed: bool,
    ) -> Member {
        let accounts = Accounts::of(joining);
        let is_banned =
            old.as_ref().is_some_and(|old| old.is_banned) || self.bans.hold(now_ms, session.peer, accounts);
        let expires_ms = joining.credential.map(|credential| now_ms + credential.remaining_ms);
        let silent_ms = now_ms + u64::from(self.settings.silence_max_ms);
        Member {
            session,
            away_since_ms: None,
            address: canonical(joining.address),
            locality: joining.locality,
            accounts,
            fingerprint: joining
                .credential
                .and_then(|credential| credential.fingerprint.as_deref())
                .map(Box::from),
            expires_ms,
            shares: joining.shares,
            has_consented: !self.settings.consent_required
                || old.as_ref().is_some_and(|old| old.has_consented),
            is_banned,
            sharing: !is_banned && self.switch.allows(session.peer),
            is_seeded: false,
            renditions: joining.renditions.iter().copied().take(RENDITIONS_MAX).collect(),
            uplink_kbps: old.as_ref().and_then(|old| old.uplink_kbps),
            heard_ms: now_ms,
            check_ms: expires_ms.map_or(silent_ms, |expires| expires.min(silent_ms)),
            messages: old
                .as_ref()
                .map_or_else(|| Bucket::full(self.settings.message_rate(), now_ms), |old| old.messages),
            patience: old
                .as_ref()
                .map_or_else(|| Bucket::full(self.settings.message_rate(), now_ms), |old| old.patience),
            warned_ms: None,
            unverified: old.as_ref().map(|old| old.unverified.clone()).unwrap_or_default(),
            accused: old.as_ref().map(|old| old.accused.clone()).unwrap_or_default(),
            accused_by: old.map(|old| old.accused_by).unwrap_or_default(),
            claims: Vec::new(),
            has_resumed,
        }
    }

    fn welcome(&self, session: Session, sharing: bool, ice_servers: Vec<IceServer>) -> Output {
        let settings = &self.settings;
        send(
            session.peer,
            TrackerMessage::Welcome(Welcome {
                version: VERSION,
                peer: session.peer,
                swarm: self.id.clone(),
                resume: self.secret.resume_token(&self.id, session.peer),
                ice_servers,
                sharing,
                relay_only: settings.relay_only,
                consent_required: settings.consent_required,
                neighbors_max: settings.neighbors_max,
                upload_ratio_max_percent: settings.upload_ratio_max_percent,
                report_interval_ms: settings.report_interval_ms,
                silence_max_ms: settings.silence_max_ms,
                // They follow as notices, which are written once for all.
                recent: Vec::new(),
            }),
        )
    }

    fn unused_peer_id(&mut self) -> PeerId {
        loop {
            let peer = self.rng.random();
            if peer != 0 && !self.members.contains_key(&peer) {
                return peer;
            }
        }
    }

    /// A viewer said something.
    pub fn handle_message(
        &mut self,
        now_ms: u64,
        session: Session,
        message: ViewerMessage,
        out: &mut Vec<Output>,
    ) {
        let rate = self.settings.message_rate();
        // A socket must not speak for another peer, nor for a viewer that has come back on another socket.
        let Some(member) = self.members.get_mut(&session.peer).filter(|member| member.session == session)
        else {
            self.counters.messages_stale += 1;
            return;
        };
        member.heard_ms = now_ms;
        if !member.messages.take(rate, now_ms, 1) {
            self.counters.messages_limited += 1;
            self.limit(now_ms, session, out);
            return;
        }
        match message {
            ViewerMessage::Join { .. } => {
                out.push(refuse(session.peer, ErrorCode::OutOfOrder, "joined already", true));
                self.close(now_ms, session, CloseReason::Refused, out);
            }
            ViewerMessage::Consent => {
                member.has_consented = true;
                self.refresh(now_ms, session.peer, out);
            }
            ViewerMessage::Signal { to, data } => self.handle_signal(session.peer, to, data, out),
            ViewerMessage::Connected { peer, rtt_ms } => {
                self.handle_connected(now_ms, session.peer, peer, rtt_ms, out);
            }
            ViewerMessage::Lost { peer, was_connected } => {
                self.handle_lost(now_ms, session.peer, peer, was_connected, out);
            }
            ViewerMessage::Report(report) => self.handle_report(now_ms, session.peer, &report),
            ViewerMessage::Accuse { peer, piece: _ } => {
                self.handle_accusation(now_ms, session.peer, peer, out)
            }
            ViewerMessage::Share { shares } => {
                // The planner meets it anew, so that its children don't wait under one who gives nothing any more.
                if std::mem::replace(&mut member.shares, shares) != shares && member.is_seeded {
                    self.seeding.leave(now_ms, session.peer);
                    self.seeding.join(now_ms, &member.newcomer());
                    self.reopen(now_ms, session.peer);
                }
            }
            ViewerMessage::Silent { peer, rendition, stripe } => {
                self.seeding.silent(now_ms, session.peer, peer, rendition, stripe);
            }
            ViewerMessage::Ping => out.push(send(session.peer, TrackerMessage::Pong)),
        }
        self.carry_out(now_ms, out);
    }

    /// A viewer that sends over its rate is told so, and shut out when it has sent as much again.
    fn limit(&mut self, now_ms: u64, session: Session, out: &mut Vec<Output>) {
        let rate = self.settings.message_rate();
        let Some(member) = self.members.get_mut(&session.peer) else { return };
        let is_fatal = !member.patience.take(rate, now_ms, 1);
        let is_warned = member.warned_ms.is_some_and(|at| now_ms < at + WARNING_INTERVAL_MS);
        if is_fatal || !is_warned {
            member.warned_ms = Some(now_ms);
            out.push(refuse(session.peer, ErrorCode::RateLimited, "too many messages", is_fatal));
        }
        if is_fatal {
            self.close(now_ms, session, CloseReason::Refused, out);
            self.carry_out(now_ms, out);
        }
    }

    fn handle_report(&mut self, now_ms: u64, peer: PeerId, report: &Report) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        member.uplink_kbps = Some(report.uplink_kbps.min(UPLINK_KBPS_MAX));
        member.renditions = report.renditions.iter().copied().take(RENDITIONS_MAX).collect();
        let counters = &mut self.counters;
        counters.peer_bytes += report.peer_bytes.min(REPORT_BYTES_MAX);
        counters.origin_bytes += report.origin_bytes.min(REPORT_BYTES_MAX);
        counters.waste_bytes += report.waste_bytes.min(REPORT_BYTES_MAX);
        counters.rebuffer_ms += u64::from(report.rebuffer_ms.min(600_000));
        if member.is_seeded {
            self.seeding.uplink(now_ms, peer, member.usable_kbps());
            self.seeding.plays(now_ms, peer, &member.renditions);
        }
    }

    /// A connection ended. `is_final` when the viewer said goodbye: then its neighbors are told at once, else it may
    /// come back with its data channels still open.
    pub fn handle_closed(&mut self, now_ms: u64, session: Session, is_final: bool, out: &mut Vec<Output>) {
        let Some(member) = self.members.get_mut(&session.peer) else { return };
        if member.session != session || !member.is_present() {
            return;
        }
        self.present -= 1;
        member.away_since_ms = Some(now_ms);
        if is_final || member.is_banned {
            self.forget(now_ms, session.peer, out);
        } else {
            self.refresh(now_ms, session.peer, out);
            self.check_at(session.peer, now_ms + u64::from(self.settings.resume_within_ms));
        }
        self.carry_out(now_ms, out);
    }

    /// The origin published a piece: everybody is told, and a joining viewer for some seconds more.
    pub fn handle_published(&mut self, now_ms: u64, published: Published, out: &mut Vec<Output>) {
        let Published { piece, uri, record, length } = published;
        self.counters.pieces += 1;
        self.counters.piece_bytes += u64::from(length);
        self.seeding.published(now_ms, piece, length);
        let notice = Notice::new(TrackerMessage::Published { piece, uri, record });
        out.push(Output::NotifyAll { notice: Arc::clone(&notice) });
        self.recent.push_back((now_ms, notice));
        let oldest_ms = now_ms.saturating_sub(self.settings.recent_ms.into());
        while self.recent.front().is_some_and(|(at, _)| *at < oldest_ms) || self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        self.carry_out(now_ms, out);
    }

    /// The operator allows or forbids the use of peers.
    pub fn handle_switch(&mut self, now_ms: u64, switch: Switch, out: &mut Vec<Output>) {
        self.switch = switch;
        let peers: Vec<PeerId> = self.members.keys().copied().collect();
        for peer in peers {
            self.refresh(now_ms, peer, out);
        }
        self.carry_out(now_ms, out);
    }

    /// What is known of the operator's relays has changed.
    pub fn handle_relays(&mut self, relays: Relays) {
        self.settings.relays = relays;
    }

    /// The tracker is about to stop.
    pub fn handle_drain(&mut self, reconnect_within_ms: u32, out: &mut Vec<Output>) {
        out.push(Output::NotifyAll { notice: Notice::new(TrackerMessage::Drain { reconnect_within_ms }) });
    }

    /// The stream ended. Viewers keep their connections and may swap what is left.
    pub fn handle_ended(&mut self, out: &mut Vec<Output>) {
        out.push(Output::NotifyAll { notice: Notice::new(TrackerMessage::Ended) });
    }

    /// Time has passed.
    pub fn handle_deadline(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        while let Some((at, peer)) = self.checks.first().copied().filter(|(at, _)| *at <= now_ms) {
            self.checks.remove(&(at, peer));
            let Some(member) = self.members.get(&peer) else { continue };
            let session = member.session;
            let due_ms = match member.away_since_ms {
                Some(since) => since + u64::from(self.settings.resume_within_ms),
                None => member.heard_ms + u64::from(self.settings.silence_max_ms),
            };
            let expires_ms = member.expires_ms.unwrap_or(u64::MAX);
            if expires_ms <= now_ms && member.is_present() {
                // Neighbors are told to part: without an entitlement it gets no more parts from them.
                out.push(refuse(peer, ErrorCode::Refused, "the token has ended", true));
                self.close(now_ms, session, CloseReason::Refused, out);
                continue;
            }
            let due_ms = due_ms.min(expires_ms);
            if due_ms > now_ms {
                self.check_at(peer, due_ms);
            } else if member.is_present() {
                self.close(now_ms, session, CloseReason::Silent, out);
            } else {
                self.forget(now_ms, peer, out);
            }
        }
        self.ledger.sweep(self.settings.introduction_rate(), now_ms);
        self.bans.sweep(now_ms);
        self.carry_out(now_ms, out);
    }

    fn check_at(&mut self, peer: PeerId, at_ms: u64) {
        if let Some(member) = self.members.get_mut(&peer) {
            self.checks.remove(&(member.check_ms, peer));
            member.check_ms = at_ms;
            self.checks.insert((at_ms, peer));
        }
    }

    /// Ends a connection from our side; the viewer is gone for good.
    fn close(&mut self, now_ms: u64, session: Session, reason: CloseReason, out: &mut Vec<Output>) {
        out.push(Output::Close { session, reason });
        if let Some(member) = self.members.get_mut(&session.peer).filter(|member| member.is_present()) {
            member.away_since_ms = Some(now_ms);
            self.present -= 1;
        }
        self.forget(now_ms, session.peer, out);
    }

    fn forget(&mut self, now_ms: u64, peer: PeerId, out: &mut Vec<Output>) {
        self.part_from_all(peer, out);
        self.seeding.leave(now_ms, peer);
        self.seeding.forget(peer);
        if let Some(member) = self.members.remove(&peer) {
            self.checks.remove(&(member.check_ms, peer));
        }
    }

    /// Puts a viewer into the plan or takes it out, as its state wants, and tells it whether peers may be used.
    fn refresh(&mut self, now_ms: u64, peer: PeerId, out: &mut Vec<Output>) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        let sharing = !member.is_banned && self.switch.allows(peer);
        let is_news = sharing != member.sharing;
        member.sharing = sharing;
        let belongs = sharing && member.has_consented && member.is_present();
        let was_seeded = std::mem::replace(&mut member.is_seeded, belongs);
        if is_news && member.is_present() {
            out.push(send(peer, TrackerMessage::Sharing { on: sharing }));
        }
        if belongs && !was_seeded {
            self.seeding.join(now_ms, &member.newcomer());
            self.reopen(now_ms, peer);
        } else if was_seeded && !belongs {
            self.seeding.leave(now_ms, peer);
        }
        if !sharing {
            self.part_from_all(peer, out);
        }
    }
}

impl Default for Switch {
    fn default() -> Self {
        Self { percent: 100 }
    }
}

impl Switch {
    /// Whether this viewer may use peers. Peer ids are random, so their remainders are spread evenly.
    fn allows(self, peer: PeerId) -> bool {
        peer % 100 < PeerId::from(self.percent)
    }
}

fn send(to: PeerId, message: TrackerMessage) -> Output {
    Output::Send { to, message: Box::new(message) }
}

fn refuse(to: PeerId, code: ErrorCode, why: &str, fatal: bool) -> Output {
    send(to, TrackerMessage::Error { code, message: why.to_owned(), fatal, retry_after_ms: None })
}

#[cfg(test)]
mod tests;
