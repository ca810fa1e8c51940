//! Messages to and from the tracker, and its restart.

use super::*;

impl World<'_> {
    pub(super) fn tell_tracker(&mut self, viewer: u32, message: ToTracker) {
        let is_welcome = self.viewers[viewer as usize].as_ref().is_some_and(|state| state.is_welcome);
        self.tell_tracker_as(viewer, is_welcome, message);
    }

    pub(super) fn tell_tracker_as(&mut self, viewer: u32, is_welcome: bool, message: ToTracker) {
        if is_welcome {
            let half_us = self.network.server_rtt_us(viewer as usize) / 2;
            self.queue.push(self.now_us + half_us, Event::ToTracker { from: viewer, message });
        }
    }

    pub(super) fn tracker_hears(&mut self, from: u32, message: ToTracker) {
        let is_there = self.viewers[from as usize].is_some();
        let rendition = self.viewers[from as usize].as_ref().map_or(0, |state| state.rendition);
        for (to, message) in self.tracker.hear(self.now_us / 1_000, from, is_there, rendition, message) {
            let half_us = self.network.server_rtt_us(to as usize) / 2;
            self.queue.push(self.now_us + half_us, Event::FromTracker { to, message });
        }
        self.wake_tracker(self.tracker.next_tick_ms);
    }

    /// Has the tracker look for rounds when the next one is due, and at this time at the latest.
    fn wake_tracker(&mut self, latest_ms: u64) {
        let soonest_ms = self.now_us / 1_000 + 1;
        let due_ms = self.tracker.groups.next_deadline().map_or(latest_ms, |due| due.max(soonest_ms));
        if due_ms < self.tracker.next_tick_ms || latest_ms != self.tracker.next_tick_ms {
            self.tracker.next_tick_ms = due_ms.min(latest_ms);
            self.queue.push(self.tracker.next_tick_ms * 1_000, Event::TrackerTick);
        }
    }

    pub(super) fn tracker_tick(&mut self) {
        let now_ms = self.now_us / 1_000;
        if now_ms < self.tracker.next_tick_ms {
            // It was put off by one that came sooner.
            return;
        }
        if !self.is_tracker_up() {
            if self.knobs.tracker && !std::mem::replace(&mut self.tracker.is_down, true) {
                self.lose_tracker();
            }
            self.tracker.next_tick_ms = now_ms + plan::ROUND_MS;
            self.queue.push(self.tracker.next_tick_ms * 1_000, Event::TrackerTick);
            return;
        }
        if std::mem::take(&mut self.tracker.is_down) {
            // Everybody reconnects within ten seconds and is given his old place.
            for viewer in 0..self.viewers.len() as u32 {
                if self.viewers[viewer as usize].is_none() {
                    self.tracker.forget(now_ms, viewer);
                }
            }
            for viewer in 0..self.viewers.len() as u32 {
                if self.viewers[viewer as usize].is_some() {
                    let wait_us = self.random.below(10_000_000);
                    let shares = self.visits[viewer as usize].shares;
                    let join = Event::ToTracker { from: viewer, message: ToTracker::Join { shares } };
                    self.queue.push(self.now_us + wait_us, join);
                }
            }
        }
        for (to, message) in self.tracker.tick(now_ms) {
            let half_us = self.network.server_rtt_us(to as usize) / 2;
            self.queue.push(self.now_us + half_us, Event::FromTracker { to, message });
        }
        self.wake_tracker(now_ms + plan::ROUND_MS);
    }

    /// The tracker's sockets close, and all viewers know.
    fn lose_tracker(&mut self) {
        for viewer in 0..self.viewers.len() as u32 {
            if let Some(state) = &mut self.viewers[viewer as usize]
                && std::mem::take(&mut state.is_welcome)
            {
                self.feed(viewer, &Input::TrackerLost, None);
            }
        }
    }

    pub(super) fn hear_tracker(&mut self, viewer: u32, message: FromTracker) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        match message {
            FromTracker::Welcome => {
                if !self.knobs.tracker || self.tracker.is_down {
                    // It was sent before the tracker vanished.
                    return;
                }
                state.is_welcome = true;
                let input = Input::Welcome {
                    peer: peer_id(viewer),
                    neighbors_max: 32,
                    upload_ratio_percent: (self.scenario.people.uplink_cap * 100.0) as u16,
                    report_interval: Span::from_ms(5_000),
                };
                self.feed(viewer, &input, None);
                // The pieces of the last seconds come with it.
                let newest = self.stream.next_number();
                let rendition = self.viewers[viewer as usize].as_ref().map_or(0, |state| state.rendition);
                for number in newest.saturating_sub(12)..newest {
                    let record = self.stream.piece(rendition, number).record.clone();
                    self.feed(viewer, &Input::Record { record: &record }, None);
                }
            }
            FromTracker::Published { number } => {
                for rendition in 0..self.stream.renditions() as u8 {
                    let record = self.stream.piece(rendition, u64::from(number)).record.clone();
                    self.feed(viewer, &Input::Record { record: &record }, None);
                }
            }
            FromTracker::Plan { rendition, stripes, places } => {
                if rendition == state.rendition {
                    state.parents.resize(usize::from(stripes), None);
                    for place in &places {
                        state.parents[usize::from(place.stripe)] = place.parent.map(viewer_of);
                    }
                }
                let places: Vec<Place<'_>> = places
                    .iter()
                    .map(|place| Place {
                        stripe: place.stripe,
                        is_root: place.root,
                        parent: place.parent,
                        children: &place.children,
                        expected: Span::from_ms(u64::from(place.expected_ms)),
                    })
                    .collect();
                self.feed(viewer, &Input::Plan { rendition, stripes, places: &places }, None);
            }
            FromTracker::Introduce { peer, offers } => {
                if offers {
                    let (works, wait_us) = self.network.connect(viewer as usize, peer as usize);
                    let (a, b) = (viewer, peer);
                    let event = if works { Event::LinkUp { a, b } } else { Event::LinkFailed { a, b } };
                    self.queue.push(self.now_us + wait_us, event);
                }
            }
            FromTracker::Part { peer } => self.link_down(viewer, peer, false),
        }
    }
}
