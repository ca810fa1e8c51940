//! The operator's switches for single streams. They belong to the stream's name, not to its publication: a publisher that
//! reconnects must not open what the operator closed.
//!
//! In memory: after a restart of the program the settings count again.

use std::collections::HashMap;

use parking_lot::Mutex;
use tracing::warn;

use crate::{Config, PeerPolicy};

/// Names with switches of their own that are remembered, a few megabytes. Only the operator's requests add to them.
const NAMES_MAX: usize = 16_384;

/// How a stream's viewers may join and share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switches {
    /// How many of the viewers may use peers, in percent.
    pub(super) percent: u8,
    pub(super) policy: PeerPolicy,
    /// Whether viewers need a token.
    pub(super) is_private: bool,
    /// Counted up when the stream turns private, and when addresses begin or end to be hidden; in the ids of its swarm and of its
    /// recordings' swarms, so that places in the old ones are worth nothing.
    pub(super) generation: u32,
}

impl Switches {
    /// Whether viewers' addresses are hidden from each other.
    fn hides(self) -> bool {
        self.policy == PeerPolicy::RelayOnly
    }

    /// Carries out a change of the operator's; true if it is one of generation.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self)) -> bool {
        let old = *self;
        change(self);
        // Not when it turns open: whoever is in was let in by a token.
        let is_renewed = self.hides() != old.hides() || (self.is_private && !old.is_private);
        self.generation += u32::from(is_renewed);
        is_renewed
    }
}

/// What was set for which name.
#[derive(Debug)]
pub(super) struct Remembered {
    defaults: Switches,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    /// With the number of the change.
    switches: HashMap<String, (u64, Switches)>,
    changes: u64,
}

impl Remembered {
    pub(super) fn new(config: &Config) -> Self {
        let defaults = Switches {
            percent: 100,
            policy: config.peer_policy,
            is_private: config.tokens_required,
            generation: 0,
        };
        Self { defaults, names: Mutex::default() }
    }

    /// What counts for a stream of this name, live or not.
    pub(super) fn of(&self, name: &str) -> Switches {
        self.names.lock().switches.get(name).map_or(self.defaults, |(_, switches)| *switches)
    }

    /// Remembers a change. What is as by default again but of another generation keeps its place.
    pub(super) fn set(&self, name: &str, switches: Switches) {
        let mut names = self.names.lock();
        if switches == self.defaults {
            names.switches.remove(name);
            return;
        }
        names.changes += 1;
        let change = names.changes;
        names.switches.insert(name.to_owned(), (change, switches));
        if names.switches.len() > NAMES_MAX {
            let oldest = names.switches.iter().min_by_key(|(_, (change, _))| *change);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                warn!(stream = oldest, "switches are remembered for {NAMES_MAX} names only: forgotten");
                names.switches.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_longest_ago_is_forgotten_when_there_is_no_room() {
        let remembered = Remembered::new(&Config::default());
        let private = Switches { is_private: true, ..remembered.defaults };
        (0..=NAMES_MAX).for_each(|at| remembered.set(&at.to_string(), private));
        assert_eq!(remembered.of("0"), remembered.defaults);
        assert_eq!(remembered.of("1"), private);
        assert_eq!(remembered.of(&NAMES_MAX.to_string()), private);
        remembered.set("1", remembered.defaults);
        assert_eq!(
            remembered.names.lock().switches.len(),
            NAMES_MAX - 1,
            "what is as by default needs no place"
        );
    }

    #[test]
    fn a_generation_that_was_left_does_not_come_back() {
        let remembered = Remembered::new(&Config::default());
        let generation = |change: fn(&mut Switches)| {
            let mut switches = remembered.of("demo");
            switches.change(change);
            remembered.set("demo", switches);
            remembered.of("demo").generation
        };
        assert_eq!(generation(|switches| switches.percent = 5), 0);
        assert_eq!(generation(|switches| switches.percent = 100), 0);
        assert_eq!(generation(|switches| switches.is_private = true), 1);
        assert_eq!(generation(|switches| switches.is_private = true), 1);
        assert_eq!(generation(|switches| switches.is_private = false), 1, "though all is as by default");
        assert_eq!(generation(|switches| switches.is_private = true), 2);
        assert_eq!(generation(|switches| switches.policy = PeerPolicy::Off), 2);
        assert_eq!(generation(|switches| switches.policy = PeerPolicy::RelayOnly), 3);
        assert_eq!(generation(|switches| switches.policy = PeerPolicy::Direct), 4);
    }
}
