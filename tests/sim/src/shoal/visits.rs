//! Visits: viewers who join, play and leave; publication.

use super::*;

impl World<'_> {
    pub(super) fn join(&mut self, viewer: u32) {
        let visit = &self.visits[viewer as usize];
        let player = Player::new(&self.scenario.play, &self.stream, self.now_us);
        let seed = self.random.fork(u64::from(viewer)).next();
        let state = Viewer::new(visit, player, &self.stream, seed, &self.knobs);
        self.viewers[viewer as usize] = Some(Box::new(state));
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        // The page, its scripts and the multivariant playlist are there; the media playlist takes one more exchange.
        let open_us = self.now_us + 2 * rtt_us + self.random.below(10_000);
        self.queue.push(open_us, Event::Opened(viewer));
        if visit.leave_us < self.end_us {
            self.queue.push(visit.leave_us, Event::Leave(viewer));
        }
        self.feed(viewer, &Input::Share { on: visit.shares }, None);
    }

    /// The page turns to the swarm once there is a picture, which it would only have delayed: it loads and compiles the
    /// module, opens the socket to the tracker and joins.
    fn open_socket(&mut self, viewer: u32) {
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        let shares = self.visits[viewer as usize].shares;
        let join = Event::ToTracker { from: viewer, message: ToTracker::Join { shares } };
        self.queue.push(self.now_us + 4 * rtt_us + 100_000, join);
    }

    pub(super) fn opened(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.player.open(self.now_us, &self.stream);
        let renditions = [state.rendition];
        let listed = self.stream.next_number();
        state.listed = listed;
        self.feed(viewer, &Input::Playing { renditions: &renditions }, None);
        self.playhead(viewer);
        self.want(viewer);
        self.queue.push(self.now_us + 1_000_000, Event::Second(viewer));
        if self.scenario.play.switch_every_s > 0.0 && self.stream.renditions() > 1 {
            self.plan_switch(viewer);
        }
    }

    pub(super) fn plan_switch(&mut self, viewer: u32) {
        let wait = self.random.exponential(self.scenario.play.switch_every_s);
        self.queue.push(self.now_us + (wait * 1e6) as u64, Event::Switch(viewer));
    }

    pub(super) fn switch(&mut self, viewer: u32) {
        let unit = self.random.unit();
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        // The next segment comes from the other rendition.
        state.next_rendition = choose(&self.scenario.play.shares, unit);
        self.plan_switch(viewer);
    }

    pub(super) fn leave(&mut self, viewer: u32) {
        let visit = &self.visits[viewer as usize];
        self.close_books(viewer);
        let Some(state) = self.viewers[viewer as usize].take() else { return };
        let closes_tab = visit.says_goodbye || self.random.chance(TAB_CLOSED);
        let half_us = self.network.server_rtt_us(viewer as usize) / 2;
        let notice_us = if closes_tab { half_us } else { DEAD_SOCKET_US };
        self.queue.push(self.now_us + notice_us, Event::ToTracker { from: viewer, message: ToTracker::Gone });
        for link in &state.links {
            let wait_us = if visit.says_goodbye {
                self.network.rtt_us(viewer as usize, link.neighbor as usize) / 2
            } else {
                DEAD_LINK_US
            };
            let down = Event::LinkDown { viewer: link.neighbor, neighbor: viewer, tells: true };
            self.queue.push(self.now_us + wait_us, down);
        }
    }

    pub(super) fn publish(&mut self) {
        let number = self.stream.publish();
        for rendition in 0..self.stream.renditions() as u8 {
            if self.measure.counts(self.now_us) {
                self.measure.media_bytes += u64::from(self.stream.piece(rendition, number).length);
            }
        }
        self.queue.push(self.stream.published_us(number + 1), Event::Publish);
        let is_up = self.is_tracker_up();
        for viewer in 0..self.viewers.len() {
            let Some(state) = &self.viewers[viewer] else { continue };
            let half_us = self.network.server_rtt_us(viewer) / 2;
            let index = viewer as u32;
            if is_up && state.is_welcome {
                let message = FromTracker::Published { number: number as u32 };
                let late_us = half_us + 1_000 + self.random.below(4_000);
                self.queue.push(self.now_us + late_us, Event::FromTracker { to: index, message });
            }
            if state.player.is_open() {
                // The blocking playlist reload is answered.
                let late_us = half_us + 3_000 + self.random.below(7_000);
                self.queue
                    .push(self.now_us + late_us, Event::Listed { viewer: index, number: number as u32 });
            }
        }
    }

    pub(super) fn listed(&mut self, viewer: u32, number: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.listed = state.listed.max(u64::from(number) + 1);
        self.want(viewer);
    }

    /// Asks for the next piece if the player wants one and does not wait for another.
    pub(super) fn want(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        let is_busy = state.wanted.is_some() || state.appending.is_some();
        if is_busy || !state.player.is_open() || state.player.next >= state.listed {
            return;
        }
        let number = state.player.next;
        if state.next_rendition != state.rendition && number % self.stream.parts() == 0 {
            state.rendition = state.next_rendition;
            let renditions = [state.rendition];
            self.feed(viewer, &Input::Playing { renditions: &renditions }, None);
        }
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.request += 1;
        let request = state.request;
        state.wanted = Some((request, number));
        let piece = self.stream.piece(state.rendition, number).id;
        self.feed(viewer, &Input::Want { request, target: Target::Piece(piece), deadline: None }, None);
    }

    pub(super) fn append(&mut self, viewer: u32, rendition: u8, number: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        if state.appending != Some(u64::from(number)) {
            return;
        }
        state.appending = None;
        let had_started = state.player.startup_us.is_some();
        let begins = state.player.append(self.now_us, u64::from(number));
        if state.manner == Manner::Honest {
            let length = self.stream.piece(rendition, u64::from(number)).length;
            self.measure.used(self.now_us, u64::from(length));
        }
        if let (false, Some(startup_us)) = (had_started, state.player.startup_us) {
            self.measure.started(self.visits[viewer as usize].join_us, startup_us);
            self.open_socket(viewer);
        }
        if begins || !had_started {
            self.playhead(viewer);
        }
        self.want(viewer);
    }

    pub(super) fn second(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.player.advance(self.now_us);
        self.measure.second(self.now_us, &state.player, &mut state.followed);
        if state.player.is_stalled() {
            self.measure.stopped(self.now_us, state.rendition, state.player.next);
        }
        if state.player.jump(self.now_us, &self.stream) {
            state.appending = None;
            if let Some((request, _)) = state.wanted.take() {
                self.feed(viewer, &Input::Unwant { request }, None);
            }
        }
        self.playhead(viewer);
        self.want(viewer);
        self.queue.push(self.now_us + 1_000_000, Event::Second(viewer));
    }

    pub(super) fn playhead(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.player.advance(self.now_us);
        let input = Input::Playhead {
            position_ms: Stream::unix_ms(state.player.position_us()),
            buffered_until_ms: Stream::unix_ms(state.player.buffered_us()),
            rate_percent: state.player.rate_percent(),
            is_stalled: state.player.startup_us.is_none() || state.player.is_stalled(),
        };
        self.feed(viewer, &input, None);
    }
}
