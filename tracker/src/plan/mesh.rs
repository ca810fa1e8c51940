//! Who is connected beside the trees: a few strangers for everybody to pull from, of more than one network, and the tour on
//! which everybody's place is looked at.

use shoal_tracker_protocol::PeerId;

use super::links::Crowd;
use super::{Ms, Output, Planner};

/// Introductions made for the mesh in one tick. The trees come first; the mesh fills up over some seconds.
const MESH_INTRODUCTIONS_MAX: usize = 400;
/// Viewers in one tick that are looked at because one network might have too large a part of their neighbors, and
/// introductions that are tried for each.
const CROWDED_MAX: usize = 400;
const STRANGERS_MAX: usize = 16;
/// A full tour of looking for better places takes about this long.
const TOUR_MS: Ms = 20_000;
/// A tour goes no faster after a pause: everybody who moves misses what is on its way to the old place.
const PASSED_MAX_MS: Ms = 1_000;

impl Planner {
    pub(super) fn introduce(&mut self, a: PeerId, b: PeerId) {
        // Who came later offers: the earlier one may be asked by many at once, and answering is cheaper.
        self.outputs.push(Output::Introduce { offers: a, answers: b });
        self.crowded.extend([a, b]);
    }

    /// A slow tour over all viewers, some in each tick.
    pub(super) fn better_some(&mut self, now: Ms) {
        let passed = now.saturating_sub(self.last_tick).min(PASSED_MAX_MS);
        self.tour_owed += self.viewers.len() as u64 * passed;
        let count = self.tour_owed / TOUR_MS;
        self.tour_owed %= TOUR_MS;
        for _ in 0..count {
            let next = self.viewers.range(self.tour_at..).next().or_else(|| self.viewers.first_key_value());
            let Some((&id, _)) = next else { return };
            self.tour_at = id.wrapping_add(1);
            self.crowded.insert(id);
            for forest in self.forests.values_mut().filter(|forest| forest.nodes.contains_key(&id)) {
                forest.better(now, id);
            }
            // Room for what comes: a full viewer could neither get a new parent nor become one.
            if self.links.count(id) * 4 > self.settings.neighbors_max as usize * 3
                && let Some(other) = self.links.spare_link(id, &self.settings)
            {
                self.links.end(id, other);
                self.outputs.push(Output::Disconnect { a: id, b: other });
            }
        }
    }

    /// Gives viewers with few connections some more, to random others.
    pub(super) fn mend_mesh(&mut self, now: Ms) {
        let lonely: Vec<PeerId> = self.lonely.iter().copied().take(MESH_INTRODUCTIONS_MAX).collect();
        for id in lonely {
            let wanted = (self.settings.mesh_min as usize).min(self.viewers.len().saturating_sub(1));
            // Ids are random, so the next one after a random number is nearly fair; and in a small swarm the walk meets
            // everybody.
            let mut at = self.next_random();
            // Half of them near, if there are such; the others anywhere, so that no place is cut off from the rest.
            for other in self.links.near(id) {
                if self.links.count(id) >= wanted.div_ceil(2) {
                    break;
                }
                if self.links.can_introduce(now, id, other, &self.settings) {
                    self.links.introduce(now, id, other);
                    self.introduce(id, other);
                }
            }
            for _ in 0..4 * wanted {
                if self.links.count(id) >= wanted {
                    break;
                }
                let other = self.viewers.range(at..).next().or_else(|| self.viewers.first_key_value());
                let Some((&other, _)) = other else { break };
                at = if self.viewers.len() > 4 * wanted { self.next_random() } else { other.wrapping_add(1) };
                if self.links.can_introduce(now, id, other, &self.settings) {
                    self.links.introduce(now, id, other);
                    self.introduce(id, other);
                }
            }
            self.lonely.remove(&id);
        }
    }

    /// Introduces viewers to some of other networks, where too large a part of their neighbors is of one. Takes nothing
    /// from anybody: who owns one network must not be all that a viewer knows, but where nearly all are of one, it serves.
    pub(super) fn mend_variety(&mut self, now: Ms) {
        if self.links.is_one_network() {
            self.crowded.clear();
            return;
        }
        // Above three quarters the tour gives connections up.
        let count_max = self.settings.neighbors_max as usize * 3 / 4;
        let crowded: Vec<PeerId> = self.crowded.iter().copied().take(CROWDED_MAX).collect();
        for id in crowded {
            self.crowded.remove(&id);
            let Some(Crowd { network, mut wanted }) = self.links.crowd(id, &self.settings) else { continue };
            for _ in 0..STRANGERS_MAX {
                if wanted == 0 || self.links.count(id) >= count_max {
                    break;
                }
                let (random, at) = (self.next_random(), self.next_random());
                let Some(other) = self.links.stranger(network, random, at) else { break };
                let is_free = self.links.count(other) < count_max;
                if is_free && self.links.can_introduce(now, id, other, &self.settings) {
                    self.links.introduce(now, id, other);
                    self.introduce(id, other);
                    wanted -= 1;
                }
            }
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn next_random(&mut self) -> PeerId {
        // xorshift64*: plenty for choosing strangers, and the same on every platform.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as PeerId
    }
}
