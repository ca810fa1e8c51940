//! Connections between viewers: opening and breaking.

use super::*;

impl World<'_> {
    pub(super) fn link_up(&mut self, a: u32, b: u32) {
        let both = self.viewers[a as usize].is_some() && self.viewers[b as usize].is_some();
        if !both {
            for (viewer, peer) in [(a, b), (b, a)] {
                self.tell_tracker(viewer, ToTracker::Lost { peer });
            }
            return;
        }
        let rtt_us = self.network.rtt_us(a as usize, b as usize);
        for (viewer, neighbor) in [(a, b), (b, a)] {
            let state = self.viewers[viewer as usize].as_mut().expect("both are there");
            if state.link_mut(neighbor).is_none() {
                state.add_link(Link { neighbor, buffered: 0, is_touched: false, control_us: 0 });
            }
        }
        for (viewer, neighbor) in [(a, b), (b, a)] {
            let input =
                Input::NeighborConnected { peer: peer_id(neighbor), rtt: Some(Span::from_us(rtt_us)) };
            self.feed(viewer, &input, None);
            let rtt_ms = (rtt_us / 1_000) as u32;
            self.tell_tracker(viewer, ToTracker::Connected { peer: neighbor, rtt_ms });
        }
    }

    pub(super) fn link_down(&mut self, viewer: u32, neighbor: u32, tells: bool) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        if state.drop_link(neighbor) {
            self.feed(viewer, &Input::NeighborLost { peer: peer_id(neighbor) }, None);
            if tells {
                self.tell_tracker(viewer, ToTracker::Lost { peer: neighbor });
            }
        }
    }
}
