//! What viewers get from the origin: ranges that the core asks for, and pieces that the player loads itself.

use super::*;

impl World<'_> {
    pub(super) fn fetch(
        &mut self,
        viewer: u32,
        state: &mut Viewer,
        fetch: u32,
        piece: PieceId,
        offset: u32,
        length: u32,
    ) {
        let number = self.stream.number(piece).expect("fetched pieces exist");
        let block_bytes = shoal_swarm::block_bytes(self.stream.piece(piece.rendition, number).length);
        assert!(offset.is_multiple_of(block_bytes) && length > 0, "ranges begin at a block");
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        let answer = self.origin.answer(self.now_us + rtt_us / 2, u64::from(length));
        let rate_bps = answer.rate_bps.min(self.network.down_bps(viewer as usize));
        let blocks = offset / block_bytes..(offset + length).div_ceil(block_bytes);
        let mut left_us = answer.first_us;
        for block in blocks {
            let bytes = u64::from(self.stream.block_length(piece.rendition, number, block));
            left_us += (bytes + HTTP_HEAD_BYTES / 8) * 8_000_000 / rate_bps;
            let event = Event::FetchBlock { viewer, fetch, block: block as u16, left_us };
            self.queue.push(left_us + rtt_us / 2, event);
        }
        self.queue.push(left_us + rtt_us / 2 + 1, Event::FetchEnd { viewer, fetch });
        let known = state
            .fetches
            .insert(fetch, Fetch { rendition: piece.rendition, number, cancelled_us: None, passed_us: 0 });
        assert!(known.is_none(), "fetch numbers are used once");
    }

    pub(super) fn fetch_block(&mut self, viewer: u32, fetch: u32, block: u16, left_us: u64) {
        let half_us = self.network.server_rtt_us(viewer as usize) / 2;
        let now_us = self.now_us;
        let state = self.viewers[viewer as usize].as_mut();
        let Some(fetching) = state.and_then(|state| state.fetches.get_mut(&fetch)) else { return };
        if fetching.cancelled_us.is_some_and(|cancelled_us| left_us > cancelled_us + half_us) {
            return;
        }
        let length = self.stream.block_length(fetching.rendition, fetching.number, u32::from(block));
        let passed_us = self.network.receive_answer(now_us, viewer as usize, u64::from(length));
        fetching.passed_us = passed_us;
        if passed_us > now_us || self.scenario.people.busy_start_ms > 0 {
            self.queue.push(passed_us, Event::FetchedBlock { viewer, fetch, block, left_us });
        } else {
            self.fetched_block(viewer, fetch, block, left_us);
        }
    }

    pub(super) fn fetched_block(&mut self, viewer: u32, fetch: u32, block: u16, left_us: u64) {
        let state = self.viewers[viewer as usize].as_mut();
        let Some(Fetch { rendition, number, cancelled_us, .. }) =
            state.and_then(|state| state.fetches.get(&fetch).cloned())
        else {
            return;
        };
        let length = self.stream.block_length(rendition, number, u32::from(block));
        let state = self.viewers[viewer as usize].as_mut().expect("just seen");
        // Attackers are no audience: once they are put out, the origin serves them, and that is as it should be.
        if state.manner == Manner::Honest {
            self.origin.count(left_us, u64::from(length));
        }
        state.origin_bytes += u64::from(length);
        if cancelled_us.is_some() {
            state.cancelled_bytes += u64::from(length);
            return;
        }
        let digest = block_digest(rendition, number, u32::from(block));
        let brought = Brought { rendition, number: number as u32, block, is_bad: false };
        self.feed(viewer, &Input::FetchBlock { fetch, block, length, digest }, Some(brought));
    }

    pub(super) fn fetched_all(&mut self, viewer: u32, fetch: u32) {
        let state = self.viewers[viewer as usize].as_mut();
        if state.is_some_and(|state| state.fetches.remove(&fetch).is_some()) {
            self.feed(viewer, &Input::FetchFinished { fetch }, None);
        }
    }

    /// Loads what the player waits for over plain HTTP, because the core said so.
    pub(super) fn load(&mut self, viewer: u32, state: &mut Viewer, request: RequestId) {
        let Some((wanted, number)) = state.wanted else { return };
        if wanted != request {
            return;
        }
        let rendition = state.rendition;
        let bytes = u64::from(self.stream.piece(rendition, number).length);
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        let answer = self.origin.answer(self.now_us + rtt_us / 2, bytes);
        let rate_bps = answer.rate_bps.min(self.network.down_bps(viewer as usize));
        let left_us = answer.first_us + bytes * 8_000_000 / rate_bps;
        let load = Load { request, rendition, number: number as u32, began_us: self.now_us, left_us };
        self.queue.push(left_us + rtt_us / 2, Event::Load { viewer, load });
    }

    pub(super) fn loaded(&mut self, viewer: u32, load: Load) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        let Load { request, rendition, number, began_us, left_us } = load;
        let piece = self.stream.piece(rendition, u64::from(number));
        if state.manner == Manner::Honest {
            self.origin.count(left_us, u64::from(piece.length));
        }
        state.origin_bytes += u64::from(piece.length);
        state.loaded.push((piece.id, piece.length, self.now_us - began_us));
        if state.wanted == Some((request, u64::from(number))) {
            state.wanted = None;
            state.appending = Some(u64::from(number));
            self.queue.push(self.now_us + 2_000, Event::Append { viewer, rendition, number });
        }
        self.feed(viewer, &Input::Wake, None);
    }
}
