//! The simulator: thousands of viewers with the real swarm core, and the real planner, in virtual time.
//!
//! Deterministic: a scenario, a number of viewers and a seed give the same figures, byte for byte. What is real: the
//! core of every viewer, the seeding planner. What is modelled: lines, distances, losses, NATs, the origin behind its
//! CDN, players, people. What is left out is said in `README.md`. The rivals play the same scenarios to the same people
//! in `rival.rs`.

// A simulator computes with numbers that it made itself: sizes, counts and seconds far from any limit.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]

mod books;
mod measure;
mod media;
mod network;
mod origin;
mod people;
mod player;
mod queue;
mod random;
mod rival;
mod runs;
pub mod scenario;
mod shoal;
mod tracker;
mod viewer;

use std::collections::BTreeMap;

pub use measure::Figures;
pub use runs::Run;
pub use shoal::Knobs;

use scenario::Scenario;

/// Who distributes the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Ours.
    Shoal,
    /// Everybody loads everything from the CDN, in parts.
    Cdn,
    /// p2p-media-loader 2.3 as it comes.
    P2pmlDefault,
    /// The same with a high-demand window of 2 s.
    P2pmlTuned,
    /// Its version 5: a rendezvous hash elects who loads a segment.
    P2pmlV5,
}

impl Policy {
    /// All of them, ours first.
    pub const ALL: [Self; 5] = [Self::Shoal, Self::Cdn, Self::P2pmlDefault, Self::P2pmlTuned, Self::P2pmlV5];

    /// The name on the command line and in the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shoal => "shoal",
            Self::Cdn => "cdn",
            Self::P2pmlDefault => "p2pml-default",
            Self::P2pmlTuned => "p2pml-tuned",
            Self::P2pmlV5 => "p2pml-v5",
        }
    }

    /// The policy of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// What came of one policy.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures that count.
    pub figures: Figures,
    /// Counters behind them, for people who look for causes.
    pub tally: BTreeMap<&'static str, u64>,
    /// A line for each second, for the same people; only of our own policy.
    pub timeline: Vec<String>,
}

/// Runs one policy. `progress` is told now and then which part of the run is done, and how it goes.
pub fn run(
    scenario: &Scenario,
    viewers: usize,
    seed: u64,
    policy: Policy,
    knobs: Knobs,
    progress: &mut dyn FnMut(f64, &str),
) -> Outcome {
    let visits = people::draw(scenario, viewers, seed);
    if policy == Policy::Shoal {
        let (figures, tally, timeline) =
            shoal::World::new(scenario, &visits, viewers, seed, knobs, progress).run();
        return Outcome { figures, tally: tally.0, timeline };
    }
    let figures = rival::World::new(scenario, &visits, viewers, seed, policy, progress).run();
    Outcome { figures, tally: BTreeMap::new(), timeline: Vec::new() }
}
