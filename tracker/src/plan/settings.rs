//! What can be tuned.

/// What can be tuned. The defaults are what the simulator found best; see `README.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Stripes of a rendition whose pieces have that many blocks; fewer for smaller pieces.
    pub stripes_max: u8,
    /// In how many stripes a viewer has children, once the swarm is large enough. Those who serve the same children in
    /// several stripes need fewer connections; those who leave take more from each child.
    pub interior_stripes: u32,
    /// A viewer takes up a further home stripe for each this many children that its uplink carries.
    pub home_slots_min: u32,
    /// At most this many children, over all stripes of a rendition.
    pub children_max: u32,
    /// At most this many connections and introductions under way for each viewer.
    pub neighbors_max: u32,
    /// At most this many introductions under way for each viewer.
    pub introductions_max: u32,
    /// Every viewer gets at least this many connections, to pull from when a parent fails.
    pub mesh_min: u32,
    /// At most this part of a viewer's neighbors is of one foreign autonomous system, in percent, as long as there are
    /// others to be met. 100 switches it off.
    pub network_max_percent: u32,
    /// From this many viewers on each stripe has two roots.
    pub large_swarm: u32,
    /// What is planned on for a viewer whose uplink is not known yet, in percent of the rendition's rate.
    pub uplink_unknown_percent: u32,
    /// The part of an uplink that stays unplanned where uplinks are scarce, in percent. Never 0: a full uplink delays
    /// every block it carries until children pull what is already on its way.
    pub reserve_min_percent: u32,
    /// The same where uplinks are plenty.
    pub reserve_max_percent: u32,
    /// A child that a parent has had for so long and that says nothing is content with it, in milliseconds, where the parent was put
    /// out before. Viewers complain after 2.5 s, and after as much again where that was explained.
    pub judges_after_ms: super::Ms,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stripes_max: 12,
            interior_stripes: 2,
            home_slots_min: 4,
            children_max: 36,
            neighbors_max: 30,
            introductions_max: 16,
            mesh_min: 6,
            network_max_percent: 50,
            large_swarm: 300,
            uplink_unknown_percent: 100,
            reserve_min_percent: 3,
            reserve_max_percent: 12,
            judges_after_ms: 5_000,
        }
    }
}

impl Settings {
    /// Of so many neighbors, those that may be of one network.
    pub(super) fn most_of_one(&self, neighbors: usize) -> usize {
        neighbors * self.network_max_percent.min(100) as usize / 100
    }

    /// Neighbors of other networks that a viewer should have beside so many of one.
    pub(super) fn wanted_beside(&self, count: usize) -> usize {
        let percent = self.network_max_percent.clamp(1, 100) as usize;
        (count * (100 - percent)).div_ceil(percent)
    }
}
