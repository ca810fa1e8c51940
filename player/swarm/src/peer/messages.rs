//! What neighbors say, and what is said to them: greetings, requests and refusals, strikes and bans.

use shoal_digest::PieceId;

use super::{BANNED_MAX, Peer, records::KNOWN_PIECES};
use crate::{
    Output, Span, Time,
    bits::Bits,
    input::PeerId,
    neighbor::Neighbor,
    output::DisconnectReason,
    plan::CHILDREN_MAX,
    rng::mix,
    stripe_of,
    upload::Upload,
    wire::{self, Control, Flags, RefuseReason, Sets, SetsBuilder},
};

/// At most this many answers wait for one neighbor.
const ANSWERS_MAX: u16 = 16;
/// Nobody asks one neighbor for more at a time: honest viewers have a quarter as many questions open to it.
const REQUESTED_MAX: u32 = 64;
/// More than 8 Mbit/s makes nobody a better parent, and a class is only said.
const UPLINK_CLASS_MAX: u8 = 13;
/// With this much waiting in the upload queue, whoever asks is better served elsewhere.
const BACKLOG_MAX: Span = Span::from_ms(600);
/// Where the line is busy, answers leave behind what is pushed within this time: a push feeds all below the child, an answer
/// one viewer, who has the origin too. With uplinks that carry less than the stream, answers that went before made pushes
/// late, late pushes made questions, and a tenth of all bytes came twice.
const BEHIND_PUSHES: Span = Span::from_ms(600);
/// Who said that it has too much to send is left alone for this long: it sends a few blocks in that time.
const BUSY: Span = Span::from_ms(150);
/// A new neighbor that has no tracker is told the records of so many pieces of each rendition: what a player has before it.
const RECORDS_FOR_NEW: usize = 16;
/// One that lost its tracker a moment ago has all but the last. If every neighbor told it more, that would fill the
/// uplinks for as long as a piece may take.
const RECORDS_FOR_KNOWN: usize = 1;
/// At most this many neighbors' knowledge is kept for one piece; more than there are neighbors.
const KNOWN_MAX: usize = 64;

impl Peer {
    pub(super) fn add_neighbor(&mut self, peer: PeerId, rtt: Option<Span>) {
        let reason = if !self.is_sharing_on {
            Some(DisconnectReason::SharingOff)
        } else if self.banned.contains(&peer) {
            Some(DisconnectReason::Banned)
        } else if self.neighbors.len() >= self.neighbors_max && !self.neighbors.contains_key(&peer) {
            self.stats.refused += 1;
            Some(DisconnectReason::Full)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.outputs.push(Output::Disconnect { peer, reason });
            return;
        }
        if self.neighbors.contains_key(&peer) {
            // A connection that replaces another: the plan's places still hold.
            self.forget_connection(peer);
        }
        self.neighbors.insert(peer, Neighbor::new(self.now, rtt));
        let hello = Control::Hello {
            version: wire::VERSION,
            flags: self.flags,
            uplink_class: self.uplink_class(),
            epoch: self.config.epoch,
            peer: self.me,
        };
        self.send(peer, &hello);
    }

    /// A neighbor is gone: forgets what it was asked and what it would have pushed.
    pub(super) fn forget_neighbor(&mut self, peer: PeerId) {
        for plan in self.plans.values_mut() {
            plan.forget(peer);
        }
        self.forget_connection(peer);
    }

    fn forget_connection(&mut self, peer: PeerId) {
        if self.neighbors.remove(&peer).is_none() {
            return;
        }
        self.uploads.forget(peer, self.buffered());
        self.drop_held(Some(peer));
        for (id, _) in &self.active {
            let Some(piece) = self.pieces.get_mut(id) else { continue };
            for block in &mut piece.blocks {
                block.pull = block.pull.filter(|pull| pull.from != peer);
            }
        }
        for piece in self.pieces.values_mut() {
            if let Some(at) = piece.known.iter().position(|known| known.peer == peer) {
                piece.known.remove(at);
            }
        }
        self.wake_pieces();
    }

    /// Closes a connection from this side.
    pub(super) fn part_from(&mut self, peer: PeerId, reason: DisconnectReason, forever: bool) {
        if forever {
            if self.banned.len() >= BANNED_MAX {
                self.banned.remove(0);
            }
            self.banned.push(peer);
            self.stats.bans += 1;
        }
        if self.neighbors.contains_key(&peer) {
            self.forget_neighbor(peer);
            self.outputs.push(Output::Disconnect { peer, reason });
        }
    }

    pub(super) fn part_from_all(&mut self, reason: DisconnectReason) {
        for peer in self.neighbors.keys_where(&|_, _| true) {
            self.send(peer, &Control::Goodbye);
            self.part_from(peer, reason, false);
        }
    }

    pub(super) fn ban(&mut self, peer: PeerId) {
        self.part_from(peer, DisconnectReason::Banned, true);
    }

    /// Counts an offence that is no proof: garbage may come from a bug.
    pub(super) fn strike(&mut self, peer: PeerId) {
        self.stats.strikes += 1;
        #[cfg(test)]
        if self.unsafe_mode.no_strikes {
            return;
        }
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        neighbor.strikes += 1;
        if neighbor.strikes > self.config.strikes_max {
            self.part_from(peer, DisconnectReason::Malformed, true);
        }
    }

    pub(super) fn accept_message(&mut self, peer: PeerId, bytes: &[u8]) {
        let now = self.now;
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        neighbor.heard = now;
        neighbor.is_suspect = false;
        let is_too_much = !neighbor.may_say(now, bytes.len());
        #[cfg(test)]
        let is_too_much = is_too_much && !self.unsafe_mode.no_talk_limit;
        let message = if is_too_much { None } else { Control::parse(bytes).ok() };
        let Some(message) = message else {
            self.strike(peer);
            return;
        };
        if !neighbor.has_greeted && !matches!(message, Control::Hello { .. } | Control::Goodbye) {
            self.strike(peer);
            return;
        }
        match message {
            Control::Hello { version, flags, uplink_class, epoch, peer: named } => {
                // The tracker named the peer when it introduced it, so that nobody can speak in another's name.
                if named != peer || neighbor.has_greeted {
                    self.strike(peer);
                } else if version != wire::VERSION || epoch != self.config.epoch {
                    self.part_from(peer, DisconnectReason::Incompatible, false);
                } else {
                    neighbor.has_greeted = true;
                    self.accept_state(peer, flags, uplink_class, true);
                    // Also to one whose hello came before ours was sent with the present flags.
                    self.wake_pieces();
                }
            }
            Control::State { flags, uplink_class } => {
                self.accept_state(peer, flags, uplink_class, false);
            }
            Control::Have(sets) => self.accept_have(peer, sets),
            Control::Request(sets) => self.accept_request(peer, sets),
            Control::Cancel(sets) => self.accept_cancel(peer, sets),
            Control::Refuse { reason, sets } => self.accept_refusal(peer, reason, sets),
            // Whoever sends one unasked wants something else: to check it takes a while. The tracker sends all records, and of a
            // recording the origin has them at any time.
            Control::Record(bytes) => {
                let is_asked_for = self.flags.wants_records;
                #[cfg(test)]
                let is_asked_for = is_asked_for || self.unsafe_mode.no_record_limit;
                if is_asked_for {
                    self.accept_record_bytes(bytes, Some(peer));
                }
            }
            Control::Shed { rendition, stripe } => self.accept_shed(peer, rendition, stripe),
            Control::Subscribe { rendition, stripes, stripe, on } => {
                self.accept_subscription(peer, rendition, stripes, stripe, on);
            }
            Control::Ping { nonce } => self.send(peer, &Control::Pong { nonce }),
            Control::Pong { nonce } => {
                if let Some((sent, _)) = neighbor.ping.take_if(|(_, asked)| *asked == nonce) {
                    neighbor.measured_rtt(now.since(sent));
                }
            }
            Control::Goodbye => self.part_from(peer, DisconnectReason::Left, false),
        }
    }

    fn accept_state(&mut self, peer: PeerId, flags: Flags, uplink_class: u8, is_new: bool) {
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        let before = std::mem::replace(&mut neighbor.flags, flags);
        neighbor.uplink_class = uplink_class.min(UPLINK_CLASS_MAX);
        if flags.wants_haves && !before.wants_haves {
            self.announce_all(peer, is_new);
        }
        if flags.wants_records && !before.wants_records {
            let records = if is_new { RECORDS_FOR_NEW } else { RECORDS_FOR_KNOWN };
            let (mut rendition, mut count) = (None, 0);
            for (id, piece) in self.pieces.iter().rev() {
                count = if rendition == Some(id.rendition) { count } else { 0 };
                rendition = Some(id.rendition);
                if count < records
                    && let Some(record) = &piece.record
                {
                    count += 1;
                    let bytes = Control::Record(record.bytes()).to_bytes();
                    self.outputs.push(Output::SendControl { peer, bytes });
                }
            }
        }
        if flags.refuses_pushes && !before.refuses_pushes {
            self.uploads.remove(&mut |upload| upload.peer == peer && !upload.is_answer);
        }
        if !flags.shares && before.shares {
            self.wake_pieces();
        }
    }

    fn accept_have(&mut self, peer: PeerId, sets: Sets<'_>) {
        for set in sets.iter() {
            let bits = set.bits();
            if self.config.is_recording && !self.pieces.contains_key(&set.piece) {
                if let Some(neighbor) = self.neighbors.get_mut(&peer) {
                    neighbor.note_range(set.piece);
                }
                continue;
            }
            let Some(piece) = self.placeholder(set.piece) else { continue };
            if piece.known.len() >= KNOWN_MAX {
                continue;
            }
            let known = piece.known_mut(peer);
            known.has.union(&bits);
            known.refused.subtract(&bits);
            self.wake_piece(set.piece);
        }
    }

    fn accept_request(&mut self, peer: PeerId, sets: Sets<'_>) {
        let mut asked = 0;
        for set in sets.iter() {
            asked += set.listed().count();
        }
        let is_too_much = asked > REQUESTED_MAX;
        #[cfg(test)]
        let is_too_much = is_too_much && !self.unsafe_mode.no_talk_limit;
        if is_too_much {
            self.strike(peer);
            return;
        }
        let (mut absent, mut busy) = (SetsBuilder::default(), SetsBuilder::default());
        let may_upload = self.may_upload() && self.uploads.rate_bps() > 0;
        for set in sets.iter() {
            let (mut lacking, mut refused) = (Bits::default(), Bits::default());
            for block in set.listed().iter() {
                let stored = self.pieces.get(&set.piece).is_some_and(|piece| piece.stored.contains(block));
                if !stored {
                    lacking.insert(block);
                } else if !may_upload || !self.answer(peer, set.piece, block) {
                    refused.insert(block);
                }
            }
            // It is told when they come, so that it need not ask again.
            if may_upload
                && let Some(piece) = self.pieces.get_mut(&set.piece)
                && piece.known.len() < KNOWN_MAX
            {
                piece.known_mut(peer).awaits.union(&lacking);
            }
            absent.add(set.piece, Some(&lacking));
            busy.add(set.piece, Some(&refused));
        }
        let reason = if may_upload { RefuseReason::Busy } else { RefuseReason::NotSharing };
        for (reason, sets) in [(RefuseReason::Absent, &absent), (reason, &busy)] {
            if let Some(sets) = sets.sets() {
                self.send(peer, &Control::Refuse { reason, sets });
            }
        }
    }

    /// Queues a stored block for a neighbor that asked for it; says no when it would come too late.
    fn answer(&mut self, peer: PeerId, id: PieceId, block: u32) -> bool {
        let index = u16::try_from(block).expect("a piece has at most 4096 blocks");
        if self.uploads.contains(peer, id, index) {
            return true;
        }
        let Some(piece) = self.pieces.get(&id) else { return false };
        let Some(record) = piece.record() else { return false };
        let Some(bytes) = record.block_length(block) else { return false };
        let (hops, until) = (piece.hops, self.now + Span::from_secs(2));
        let rate = self.uploads.rate_bps();
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return false };
        // Who asks for much at a time goes behind the others, as if half of the rate were its own; where nobody else
        // wants anything it has all of it.
        let share = Span::of_bytes(u64::from(bytes) * 2, rate.max(1));
        let turn = neighbor.answer_rank.clamp(self.now, self.now + BACKLOG_MAX);
        #[cfg(test)]
        let turn = if self.unsafe_mode.no_fair_answers { self.now } else { turn };
        let rank = turn + BEHIND_PUSHES;
        let is_full = self.uploads.len() >= self.config.upload_queue_max
            || self.uploads.backlog_before(rank) > BACKLOG_MAX
            || neighbor.answers_queued >= ANSWERS_MAX;
        if is_full {
            return false;
        }
        neighbor.answer_rank = turn + share;
        neighbor.answers_queued += 1;
        self.uploads
            .push(rank, Upload { peer, piece: id, block: index, hops, is_answer: true, bytes, until });
        true
    }

    fn accept_cancel(&mut self, peer: PeerId, sets: Sets<'_>) {
        for set in sets.iter() {
            let bits = set.bits();
            if let Some(piece) = self.pieces.get_mut(&set.piece)
                && piece.known.len() < KNOWN_MAX
            {
                let known = piece.known_mut(peer);
                known.has.union(&bits);
                known.awaits.subtract(&bits);
            }
            let mut answers = 0;
            self.uploads.remove(&mut |upload| {
                let goes = upload.peer == peer
                    && upload.piece == set.piece
                    && (set.is_all() || bits.contains(u32::from(upload.block)));
                answers += u16::from(goes && upload.is_answer);
                goes
            });
            if let Some(neighbor) = self.neighbors.get_mut(&peer) {
                neighbor.answers_queued = neighbor.answers_queued.saturating_sub(answers);
            }
        }
    }

    fn accept_refusal(&mut self, peer: PeerId, reason: RefuseReason, sets: Sets<'_>) {
        for set in sets.iter() {
            let Some(piece) = self.pieces.get_mut(&set.piece) else { continue };
            for block in set.listed().iter() {
                let Some(state) = piece.blocks.get_mut(block as usize) else { continue };
                // Only who was asked can refuse.
                if state.pull.take_if(|pull| pull.from == peer).is_none() {
                    continue;
                }
                let known = piece.known_mut(peer);
                match reason {
                    RefuseReason::Absent => {
                        known.refused.insert(block);
                        known.has.remove(block);
                    }
                    // Who has too much to send for it has it, and may be asked again.
                    RefuseReason::Busy => {
                        known.has.insert(block);
                    }
                    RefuseReason::NotSharing => {}
                }
                self.stats.pulls_refused += 1;
                if let Some(neighbor) = self.neighbors.get_mut(&peer) {
                    neighbor.asked = neighbor.asked.saturating_sub(1);
                    if reason != RefuseReason::Absent {
                        neighbor.busy_until = self.now + BUSY;
                    }
                }
            }
            self.wake_piece(set.piece);
        }
    }

    fn accept_shed(&mut self, peer: PeerId, rendition: u8, stripe: u8) {
        let Some(place) =
            self.plans.get_mut(&rendition).and_then(|plan| plan.stripes.get_mut(usize::from(stripe)))
        else {
            return;
        };
        let was_parent = place.parent.take_if(|parent| *parent == peer).is_some();
        place.foster = place.foster.filter(|foster| *foster != peer);
        if was_parent && self.has_tracker {
            self.stats.complaints += 1;
            self.outputs.push(Output::Complain { peer, rendition, stripe });
        }
        self.wake_pieces();
    }

    fn accept_subscription(&mut self, peer: PeerId, rendition: u8, stripes: u8, stripe: u8, on: bool) {
        let may_upload = self.may_upload() && !self.starvation.is_on(self.now);
        let rate = self.uploads.rate_bps();
        let stream = self.rates.get(&rendition).copied().unwrap_or(u64::MAX);
        // What all children together cost, each a stripe's share of its rendition.
        let mut load = 0;
        for (rendition, plan) in self.plans.iter() {
            load += self.load_of(*rendition, plan);
        }
        let more = stream / u64::from(stripes.max(1));
        let Some(plan) = self.plans.get_mut(&rendition).filter(|plan| plan.stripe_count() == stripes) else {
            if on {
                self.send(peer, &Control::Shed { rendition, stripe });
            }
            return;
        };
        let Some(place) = plan.stripes.get_mut(usize::from(stripe)) else { return };
        let is_child = place.children.contains(&peer);
        if !on {
            place.remove_adopted(peer);
            return;
        }
        // A little is left for answers. A peer whose own source is the asker would close a circle.
        let has_room = load.saturating_add(more) <= rate / 10 * 9 && place.children.len() < CHILDREN_MAX;
        let is_fed = place.is_root || place.source().is_some_and(|source| source != peer);
        if is_child {
            return;
        }
        if may_upload && has_room && is_fed {
            place.children.push(peer);
            self.push_recent(peer, rendition, stripe);
        } else {
            self.send(peer, &Control::Shed { rendition, stripe });
        }
    }

    /// The upload that a plan's children cost, in bit/s.
    pub(super) fn load_of(&self, rendition: u8, plan: &crate::plan::Plan) -> u64 {
        let rate = self.rates.get(&rendition).copied().unwrap_or(0);
        let mut children = 0;
        for stripe in &plan.stripes {
            children += stripe.children.len();
        }
        rate / u64::from(plan.stripe_count()) * children as u64
    }

    /// Gives a new child the stripe's blocks of the pieces that are still on their way.
    fn push_recent(&mut self, child: PeerId, rendition: u8, stripe: u8) {
        let Some(stripes) = self.plans.get(&rendition).map(|plan| plan.stripe_count()) else { return };
        let from = self.now.before(Span::from_ms(500));
        let mut uploads = Vec::new();
        for (id, piece) in self.pieces.iter() {
            if id.rendition != rendition || piece.since < from {
                continue;
            }
            let Some(record) = piece.record() else { continue };
            let until = self.useful_until(record.start_ms);
            for block in piece.stored.iter() {
                if stripe_of(*id, record.length, block, stripes) != stripe || piece.has(child, block) {
                    continue;
                }
                let Some(bytes) = record.block_length(block) else { continue };
                let block = u16::try_from(block).expect("a piece has at most 4096 blocks");
                let hops = piece.hops;
                uploads.push(Upload { peer: child, piece: *id, block, hops, is_answer: false, bytes, until });
            }
        }
        for upload in uploads {
            if self.uploads.len() < self.config.upload_queue_max {
                self.uploads.push(self.now, upload);
            }
        }
    }

    /// Tells a neighbor what is stored: of a live stream what may still be asked for, of a recording all. All only once: who
    /// says again and again that he wants to know must not cost the line several messages for each of his.
    fn announce_all(&mut self, peer: PeerId, is_new: bool) {
        let mut messages = vec![SetsBuilder::default()];
        let (mut rendition, mut count) = (None, 0);
        for (id, piece) in self.pieces.iter().rev() {
            if piece.stored.is_empty() {
                continue;
            }
            count = if rendition == Some(id.rendition) { count + 1 } else { 0 };
            rendition = Some(id.rendition);
            if count >= KNOWN_PIECES && !(self.config.is_recording && is_new) {
                continue;
            }
            if messages.last().is_some_and(SetsBuilder::is_full) {
                messages.push(SetsBuilder::default());
            }
            if let Some(sets) = messages.last_mut() {
                sets.add(*id, if piece.is_complete { None } else { Some(&piece.stored) });
            }
        }
        for sets in &messages {
            if let Some(sets) = sets.sets() {
                self.send(peer, &Control::Have(sets));
            }
        }
    }

    /// Tells the neighbors that want to know what was stored since the last time.
    pub(super) fn announce(&mut self) {
        self.announce_at = Time::NEVER;
        let mut sets = SetsBuilder::default();
        for (id, bits) in &std::mem::take(&mut self.fresh) {
            if !sets.is_full() {
                sets.add(*id, Some(bits));
            }
        }
        if let Some(sets) = sets.sets() {
            self.send_to_all(&Control::Have(sets), &|_, neighbor| {
                neighbor.has_greeted && neighbor.flags.wants_haves
            });
        }
    }

    /// Tells all neighbors when what this peer does or wants has changed.
    pub(super) fn update_flags(&mut self) {
        let has_plans = !self.playing.is_empty() && self.playing.iter().all(|r| self.plans.contains_key(r));
        let flags = Flags {
            shares: self.may_upload(),
            wants_records: !self.has_tracker && !self.config.is_recording,
            // Along a tree blocks come unasked, and announcements would be most of the messages.
            wants_haves: !has_plans,
            refuses_pushes: self.glut.is_on(self.now),
        };
        // Neighbors elect by what they were told, so all must have been told the same; small changes do not matter.
        let kbps = self.usable_bps() / 1000;
        let is_near = kbps.abs_diff(self.told_kbps) <= self.told_kbps / 3;
        if flags == self.flags && is_near {
            return;
        }
        self.flags = flags;
        self.told_kbps = kbps;
        let uplink_class = self.uplink_class();
        self.send_to_all(&Control::State { flags, uplink_class }, &|_, _| true);
    }

    /// The uplink as neighbors are told it.
    pub(super) fn uplink_class(&self) -> u8 {
        if self.told_kbps == 0 { 0 } else { u8::try_from(self.told_kbps.ilog2()).unwrap_or(u8::MAX) }
    }

    /// A lot among neighbors for something, the same at each call in the same moment.
    pub(super) fn lot(&self, peer: PeerId) -> u64 {
        mix(u64::from(peer) << 32 ^ u64::from(self.me) ^ self.now.as_us())
    }
}
