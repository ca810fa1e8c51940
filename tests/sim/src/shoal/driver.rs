//! The driver of all cores: hands in inputs and carries out outputs, keeping the books that find broken invariants.

use super::*;

/// The books of each viewer and the limits of its core are checked this often.
const CHECK_US: u64 = 1_000_000;
/// Those of so many viewers after every input: what is wrong for a moment only shows there.
const WATCHED: usize = 16;
/// The uplink that liars name, in kbit/s.
const LIE_KBPS: u32 = 100_000;
/// How late the blocks of every other liar are.
const LIE_US: u64 = 4_000_000;

impl World<'_> {
    /// Hands an input to a viewer's core and carries out what it answers.
    pub(super) fn feed(&mut self, viewer: u32, input: &Input<'_>, brought: Option<Brought>) {
        let Some(mut state) = self.viewers[viewer as usize].take() else { return };
        let now = self.time();
        match input {
            Input::Block { length, .. } => state.books.came_from_peer(*length),
            Input::FetchBlock { length, .. } => state.books.was_fetched(*length),
            Input::Want { request, .. } => state.books.asked(*request),
            Input::Unwant { request } => state.books.withdrew(*request),
            _ => {}
        }
        state.peer.handle_input(now, input.clone());
        self.drain(viewer, &mut state, brought);
        state.books.handled();
        while let Some(neighbor) = state.touched.pop() {
            if let Some(link) = state.link_mut(neighbor) {
                link.is_touched = false;
                let buffered = link.buffered;
                state.peer.handle_input(now, Input::SendQueue { peer: peer_id(neighbor), buffered });
                self.drain(viewer, &mut state, None);
            }
        }
        while let Some((piece, length, took_us)) = state.loaded.pop() {
            let number = self.stream.number(piece).expect("only published pieces are loaded");
            let blocks = shoal_swarm::block_count(length);
            let digests: Vec<_> =
                (0..blocks).map(|block| block_digest(piece.rendition, number, block)).collect();
            let took = Span::from_us(took_us);
            state.books.was_loaded(length);
            state.peer.handle_input(now, Input::Loaded { piece, length, digests: &digests, took });
            self.drain(viewer, &mut state, None);
        }
        if state.check_us <= self.now_us || self.is_watched(viewer) {
            state.check_us = self.now_us + CHECK_US;
            state.books.check(&state.peer.stats());
            state.peer.check_limits();
        }
        if let Some((at, _)) = state.peer.next_deadline() {
            let at_us = at.as_us().max(self.now_us);
            if at_us < state.wake_us {
                state.wake_us = at_us;
                self.queue.push(at_us, Event::Wake(viewer));
            }
        }
        self.viewers[viewer as usize] = Some(state);
    }

    /// Whether a viewer is checked after every input: so is everybody in a small run, and a few of a large one.
    fn is_watched(&self, viewer: u32) -> bool {
        (viewer as usize).is_multiple_of(self.visits.len().div_ceil(WATCHED))
    }

    pub(super) fn drain(&mut self, viewer: u32, state: &mut Viewer, brought: Option<Brought>) {
        while let Some(output) = state.peer.poll_output() {
            self.carry_out(viewer, state, output, brought);
        }
    }

    pub(super) fn carry_out(
        &mut self,
        viewer: u32,
        state: &mut Viewer,
        output: Output,
        brought: Option<Brought>,
    ) {
        match output {
            Output::SendBlock { peer, header, piece, block } => {
                self.send_block(viewer, state, peer, header, piece, block)
            }
            Output::SendControl { peer, bytes } => {
                let to = viewer_of(peer);
                if state.link_mut(to).is_none() {
                    return;
                }
                self.measure.control_messages += 1;
                self.measure.control_bytes += bytes.len() as u64;
                let (_, arrive_us) =
                    self.network.send(self.now_us, viewer as usize, to as usize, bytes.len() as u64);
                // The control channel keeps the order.
                let link = state.link_mut(to).expect("just seen");
                link.control_us = link.control_us.max(arrive_us);
                let message = Message::Control(bytes.into_boxed_slice());
                self.queue.push(link.control_us, Event::Arrive { to, from: viewer, message });
            }
            Output::Store { piece, block, held, .. } => {
                let number = self.stream.number(piece).expect("stored pieces exist");
                let length = self.stream.piece(piece.rendition, number).length;
                let what = match held {
                    Some(hold) => {
                        let what = state.held.remove(&hold).expect("only what was held is stored from there");
                        state.books.stored_held(self.brought_bytes(&what));
                        what
                    }
                    None => {
                        state.books.stored_brought();
                        brought.expect("stores follow an input with bytes")
                    }
                };
                assert!(
                    !(what.is_bad && self.knobs.hash),
                    "only what is verified is stored: {piece:?} {block}"
                );
                if state.store.is_empty(piece.rendition, number) {
                    state.books.opened_piece(length);
                }
                assert_eq!(
                    (what.rendition, u64::from(what.number), what.block),
                    (piece.rendition, number, block)
                );
                assert!(
                    state.store.put(piece.rendition, number, block, what.is_bad),
                    "nothing is stored twice"
                );
                if state.store.is_complete(piece.rendition, number, length) {
                    self.measure.held(self.now_us, piece.rendition, number);
                    let age_us = self.now_us.saturating_sub(self.stream.published_us(number));
                    self.measure.completed(self.now_us, age_us);
                }
            }
            Output::Hold { hold } => {
                state.books.held();
                state.held.insert(hold, brought.expect("holds follow an input with bytes"));
            }
            Output::DropHeld { hold } => {
                let what = state.held.remove(&hold).expect("only what is held is dropped");
                state.books.dropped_held(self.brought_bytes(&what));
            }
            Output::KeepLoaded { piece } => {
                let number = self.stream.number(piece).expect("kept pieces exist");
                let length = self.stream.piece(piece.rendition, number).length;
                if state.store.is_empty(piece.rendition, number) {
                    state.books.opened_piece(length);
                }
                state.store.put_all(piece.rendition, number, length);
                self.measure.held(self.now_us, piece.rendition, number);
            }
            Output::DropLoaded { piece } => {
                let number = self.stream.number(piece).expect("dropped pieces exist");
                let length = self.stream.piece(piece.rendition, number).length;
                // What has no record, or never got one, was of use to the player all the same.
                if state.store.is_complete(piece.rendition, number, length) {
                    state.books.was_loaded_in_vain(length);
                }
            }
            Output::Evict { piece } => {
                let number = self.stream.number(piece).expect("evicted pieces exist");
                state.books.evicted_piece(self.stream.piece(piece.rendition, number).length);
                state.store.evict(piece.rendition, number);
            }
            Output::Fetch { fetch, piece, offset, length, .. } => {
                self.fetch(viewer, state, fetch, piece, offset, length);
            }
            Output::CancelFetch { fetch } => {
                if let Some(fetch) = state.fetches.get_mut(&fetch) {
                    fetch.cancelled_us.get_or_insert(self.now_us);
                }
            }
            Output::FetchRecord { piece, .. } => {
                let Some(number) = self.stream.number(piece) else {
                    let rtt_us = self.network.server_rtt_us(viewer as usize);
                    self.queue.push(self.now_us + rtt_us + 1_000, Event::RecordFailed { viewer, piece });
                    return;
                };
                let rtt_us = self.network.server_rtt_us(viewer as usize);
                let answer = self.origin.answer(self.now_us + rtt_us / 2, 0);
                let event = Event::RecordLoaded { viewer, rendition: piece.rendition, number: number as u32 };
                self.queue.push(answer.first_us + rtt_us / 2, event);
            }
            Output::CheckRecord { check, signed } => {
                let is_signed = self.stream.key().has_signed(&signed);
                let now = Time::from_us(self.now_us);
                state.peer.handle_input(now, Input::RecordChecked { check, is_signed });
            }
            Output::Deliver { request, first, parts } => {
                assert_eq!(parts, 1, "whole segments are not asked for here");
                let number = self.stream.number(first).expect("delivered pieces exist");
                let length = self.stream.piece(first.rendition, number).length;
                assert!(
                    state.store.is_complete(first.rendition, number, length),
                    "{first:?} is delivered before it is complete"
                );
                self.measure.bad_bytes += state.store.bad_blocks(first.rendition, number)
                    * u64::from(shoal_swarm::block_bytes(length));
                state.books.delivered(request);
                self.answer(viewer, state, request, first.rendition, number);
            }
            Output::Fallback { request, .. } => {
                self.measure.at(self.now_us).fallbacks += 1;
                state.books.fell_back(request);
                self.load(viewer, state, request);
            }
            Output::Disconnect { peer, .. } => {
                let other = viewer_of(peer);
                if state.drop_link(other) {
                    let half_us = self.network.rtt_us(viewer as usize, other as usize) / 2;
                    let down = Event::LinkDown { viewer: other, neighbor: viewer, tells: false };
                    self.queue.push(self.now_us + half_us, down);
                    self.tell_tracker_as(viewer, state.is_welcome, ToTracker::Lost { peer: other });
                }
            }
            Output::Accuse { peer, .. } => {
                self.tell_tracker_as(viewer, state.is_welcome, ToTracker::Accuse { peer: viewer_of(peer) });
            }
            Output::Complain { peer, rendition, stripe } => {
                let peer = viewer_of(peer);
                let is_heard = state.is_welcome && self.knobs.complaints;
                self.tell_tracker_as(viewer, is_heard, ToTracker::Silent { peer, rendition, stripe });
            }
            Output::Report(report) => {
                let uplink_kbps = if state.manner == Manner::Lies { LIE_KBPS } else { report.uplink_kbps };
                let message = ToTracker::Report { uplink_kbps, renditions: report.renditions };
                self.tell_tracker_as(viewer, state.is_welcome, message);
            }
        }
    }

    /// A request of the player is answered: the piece goes into its buffer.
    pub(super) fn answer(
        &mut self,
        viewer: u32,
        state: &mut Viewer,
        request: RequestId,
        rendition: u8,
        number: u64,
    ) {
        assert_eq!(state.wanted, Some((request, number)), "what is delivered is what the player waits for");
        state.wanted = None;
        state.appending = Some(number);
        // Appending takes a moment, and happens after the core has said all it had to say.
        let event = Event::Append { viewer, rendition, number: number as u32 };
        self.queue.push(self.now_us + 2_000, event);
    }

    pub(super) fn send_block(
        &mut self,
        viewer: u32,
        state: &mut Viewer,
        peer: PeerId,
        header: [u8; 16],
        piece: PieceId,
        block: u16,
    ) {
        let number = self.stream.number(piece).expect("sent pieces exist");
        let held = state.store.block(piece.rendition, number, block);
        assert!(held.is_some(), "only stored blocks are sent: {piece:?} {block}");
        let length = self.stream.block_length(piece.rendition, number, u32::from(block));
        if held == Some(true) {
            self.measure.bad_bytes += u64::from(length);
        }
        state.books.sent(length);
        let to = viewer_of(peer);
        let Some(link) = state.link_mut(to) else { return };
        link.buffered += length;
        if !link.is_touched {
            link.is_touched = true;
            state.touched.push(to);
        }
        let message = Message::Block {
            header,
            rendition: piece.rendition,
            number: number as u32,
            block,
            is_bad: (state.manner == Manner::Pollutes && self.scenario.people.is_attacked(self.now_us))
                || held == Some(true),
        };
        if state.manner == Manner::Lies && self.scenario.people.is_attacked(self.now_us) {
            return self.pretend(viewer, to, message);
        }
        let waits_us = self.network.waits_us(self.now_us, viewer as usize, to as usize, u64::from(length));
        if waits_us > 0 {
            self.queue.push(self.now_us + waits_us, Event::Depart { viewer, to, message });
        } else {
            self.depart(viewer, to, message);
        }
    }

    /// A liar's block: its own core believes that it is sent. It never arrives, or of every other liar's late.
    fn pretend(&mut self, viewer: u32, to: u32, message: Message) {
        let bytes = message_bytes(&message, &self.stream);
        self.queue.push(self.now_us + 1_000, Event::Sent { viewer, neighbor: to, bytes: bytes as u32 });
        if viewer.is_multiple_of(2) {
            self.queue.push(self.now_us + LIE_US, Event::Arrive { to, from: viewer, message });
        }
    }

    /// A block leaves its channel.
    pub(super) fn depart(&mut self, viewer: u32, to: u32, message: Message) {
        let bytes = message_bytes(&message, &self.stream);
        let (sent_us, arrive_us) = self.network.send(self.now_us, viewer as usize, to as usize, bytes);
        self.queue.push(sent_us, Event::Sent { viewer, neighbor: to, bytes: bytes as u32 });
        self.queue.push(arrive_us, Event::Arrive { to, from: viewer, message });
    }

    pub(super) fn deliver(&mut self, to: u32, from: u32, message: &Message) {
        let Some(state) = &mut self.viewers[to as usize] else { return };
        if state.link_mut(from).is_none() {
            return;
        }
        let peer = peer_id(from);
        match message {
            Message::Control(bytes) => self.feed(to, &Input::Message { peer, bytes }, None),
            Message::Block { header, rendition, number, block, is_bad } => {
                let true_digest = block_digest(*rendition, u64::from(*number), u32::from(*block));
                // A driver that does not hash takes the sender's word for it.
                let digest = if *is_bad && self.knobs.hash { GARBAGE } else { true_digest };
                let length = self.stream.block_length(*rendition, u64::from(*number), u32::from(*block));
                state.received_bytes += u64::from(length);
                if state.store.block(*rendition, u64::from(*number), *block).is_some() {
                    let is_answer = header[1] & 1 != 0;
                    let stripes = state.parents.len().max(1) as u8;
                    let piece = self.stream.piece(*rendition, u64::from(*number));
                    let stripe = shoal_swarm::stripe_of(piece.id, piece.length, u32::from(*block), stripes);
                    let parent = state.parents.get(usize::from(stripe)).copied().flatten();
                    let kind = match (is_answer, parent) {
                        (true, _) => "duplicate: answers",
                        (false, Some(parent)) if parent == from => "duplicate: pushed by the parent",
                        (false, Some(_)) => "duplicate: pushed by another",
                        (false, None) => "duplicate: pushed, without parent",
                    };
                    *self.tally.0.entry(kind).or_default() += 1;
                }
                let brought =
                    Brought { rendition: *rendition, number: *number, block: *block, is_bad: *is_bad };
                self.feed(to, &Input::Block { peer, header, length, digest }, Some(brought));
            }
        }
    }

    fn brought_bytes(&self, what: &Brought) -> u32 {
        self.stream.block_length(what.rendition, u64::from(what.number), u32::from(what.block))
    }

    /// Adds a viewer's counters to the sums, and checks its books for the last time.
    pub(super) fn close_books(&mut self, viewer: u32) {
        let Some(state) = &self.viewers[viewer as usize] else { return };
        let stats = state.peer.stats();
        state.books.check(&stats);
        if self.now_us >= self.measure.from_us {
            self.measure.received_bytes += state.received_bytes + state.origin_bytes;
            self.measure.waste_bytes +=
                stats.duplicate_bytes + stats.late_bytes + stats.rejected_bytes + state.cancelled_bytes;
        }
        for (name, value) in [
            ("from peers", stats.peer_bytes),
            ("from origin", stats.origin_bytes),
            ("sent", stats.sent_bytes),
            ("duplicate", stats.duplicate_bytes),
            ("late", stats.late_bytes),
            ("rejected", stats.rejected_bytes),
            ("pushed blocks", stats.pushed_blocks),
            ("pulled blocks", stats.pulled_blocks),
            ("pulls", stats.pulls),
            ("pulls refused", stats.pulls_refused),
            ("pulls timed out", stats.pulls_timed_out),
            ("seed fetches", stats.seed_fetches),
            ("deadline fetches", stats.deadline_fetches),
            ("fetches cancelled", stats.fetches_cancelled),
            ("delivered", stats.delivered),
            ("fallbacks", stats.fallbacks),
            ("uploads dropped", stats.uploads_dropped),
            ("shed", stats.shed),
            ("starved", stats.starved),
            ("complaints", stats.complaints),
            ("bans", stats.bans),
            ("strikes", stats.strikes),
            ("held", stats.held),
            ("refused", stats.refused),
        ] {
            *self.tally.0.entry(name).or_default() += value;
        }
    }
}

#[cfg(test)]
mod tests;
