//! One run: all that its figures depend on, and the command that repeats it.
//!
//! Everything that simulates goes through here, the program's single runs, its tables and the tests alike, so that whatever
//! fails can say how to see it again.

use std::fmt::Write as _;

use shoal_swarm::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, block_bytes};

use crate::scenario::Scenario;
use crate::{Knobs, Outcome, Policy, run};

/// A run that was not made yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// Viewers at a time.
    pub viewers: usize,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Who distributes.
    pub policy: Policy,
    /// Seconds to simulate; the scenario's own if not given.
    pub seconds: Option<f64>,
    /// Share of polluters; the scenario's own if not given.
    pub polluters: Option<f64>,
    /// What is done differently, as on the command line.
    pub ablations: Vec<String>,
}

impl Run {
    /// A run of our policy, nothing changed.
    #[must_use]
    pub fn new(scenario: &str, viewers: usize, seed: u64) -> Self {
        Self {
            scenario: scenario.to_owned(),
            viewers,
            seed,
            policy: Policy::Shoal,
            seconds: None,
            polluters: None,
            ablations: Vec::new(),
        }
    }

    /// The command that repeats it.
    #[must_use]
    pub fn command(&self) -> String {
        let Self { scenario, viewers, seed, .. } = self;
        let mut command = format!("cargo xtask sim {scenario} --viewers {viewers} --seed {seed}");
        let mut add = |name: &str, value: &dyn std::fmt::Display| {
            write!(command, " --{name} {value}").expect("text can be appended to");
        };
        add("policy", &self.policy.name());
        if let Some(seconds) = self.seconds {
            add("seconds", &seconds);
        }
        if let Some(polluters) = self.polluters {
            add("polluters", &polluters);
        }
        if !self.ablations.is_empty() {
            add("ablate", &self.ablations.join(","));
        }
        command
    }

    /// What is simulated, with all that was changed.
    ///
    /// # Errors
    /// A sentence that says what can't be.
    pub fn scenario(&self) -> Result<Scenario, String> {
        Ok(self.prepare()?.0)
    }

    fn prepare(&self) -> Result<(Scenario, Knobs), String> {
        let mut scenario = Scenario::named(&self.scenario).map_err(|error| error.to_string())?;
        if let Some(seconds) = self.seconds {
            if !(1.0..=86_400.0).contains(&seconds) {
                return Err("--seconds must be 1 to 86400".to_owned());
            }
            scenario.seconds = seconds;
            // Of a short run at least the second half counts.
            scenario.measure_from_s = scenario.measure_from_s.min(seconds / 2.0);
        }
        if let Some(polluters) = self.polluters {
            if !(0.0..=1.0).contains(&polluters) {
                return Err("--polluters is a share, 0 to 1".to_owned());
            }
            scenario.people.polluters = polluters;
        }
        if self.viewers == 0 || self.viewers > 1_000_000 {
            return Err("--viewers must be 1 to 1000000".to_owned());
        }
        let mut knobs = Knobs::default();
        for ablation in &self.ablations {
            ablate(ablation, &mut scenario, &mut knobs)?;
        }
        Ok((scenario, knobs))
    }

    /// Simulates. `progress` is told now and then which part of the run is done, and how it goes.
    ///
    /// # Errors
    /// What can't be simulated; and where an invariant broke, which has then been printed, how to repeat that.
    pub fn play(&self, progress: &mut dyn FnMut(f64, &str)) -> Result<Outcome, String> {
        let (scenario, knobs) = self.prepare()?;
        self.guard(|| run(&scenario, self.viewers, self.seed, self.policy, knobs, progress))
    }

    fn guard<T>(&self, plays: impl FnOnce() -> T) -> Result<T, String> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(plays))
            .map_err(|_| format!("the run broke an invariant (above). To repeat it: {}", self.command()))
    }
}

/// Does one thing differently.
fn ablate(ablation: &str, scenario: &mut Scenario, knobs: &mut Knobs) -> Result<(), String> {
    let (name, value) = ablation.split_once('=').unwrap_or((ablation, ""));
    let number = || value.parse::<u32>().map_err(|_| format!("--ablate {name} wants a number: {name}=N"));
    match name {
        "no-push" => knobs.push = false,
        "no-tracker" => knobs.tracker = false,
        "no-hash" => knobs.hash = false,
        "no-complaints" => knobs.complaints = false,
        "interior-stripes" => knobs.plan.interior_stripes = number()?,
        "stripes" => knobs.plan.stripes_max = number()?.clamp(1, 16) as u8,
        "burst" => knobs.burst_ms = Some(number()?),
        "spread" => knobs.spread_ms = Some(number()?),
        "starved" => knobs.starved_ms = Some(number()?),
        "mesh" => knobs.plan.mesh_min = number()?,
        "neighbors" => knobs.plan.neighbors_max = number()?,
        "unknown-uplink" => knobs.plan.uplink_unknown_percent = number()?,
        "judges-after" => knobs.plan.judges_after_ms = number()?.into(),
        "reserve" => {
            knobs.plan.reserve_min_percent = number()?;
            knobs.plan.reserve_max_percent = number()?;
        }
        "seeding" => match value {
            "none" => knobs.roots = false,
            "one" => knobs.plan.large_swarm = u32::MAX,
            "two" => knobs.plan.large_swarm = 0,
            _ => {
                return Err(
                    "--ablate seeding wants none, one or two roots for each stripe: seeding=one".to_owned()
                );
            }
        },
        "block-bytes" => resize_blocks(number()?, scenario)?,
        _ => return Err(format!("there is no ablation '{name}'; see --help")),
    }
    Ok(())
}

/// Blocks follow from a piece's length, in the records that the origin signs. What other blocks would do shows all the same where
/// the stream and all lines carry so many times as much (or as little) as the blocks should be shorter (or longer): times and shares
/// stay what they were, and a piece has that many more blocks. The core's own limits, which count blocks, stay as they are.
fn resize_blocks(bytes: u32, scenario: &mut Scenario) -> Result<(), String> {
    if !(1_024..=BLOCK_BYTES_MAX).contains(&bytes) {
        return Err(format!("--ablate block-bytes must be 1024 to {BLOCK_BYTES_MAX}"));
    }
    let (smallest, largest) = scenario.piece_bytes();
    let widths = [BLOCK_BYTES_MAX, BLOCK_BYTES_MAX / 2, BLOCK_BYTES_MIN]
        .map(|real| (real, f64::from(real) / f64::from(bytes)));
    let are_all = |(real, width): &(u32, f64)| {
        [smallest, largest].iter().all(|piece| block_bytes((piece * width) as u32) == *real)
    };
    match widths.iter().find(|width| are_all(width)) {
        Some((_, width)) => scenario.widen(*width),
        None => {
            Err(format!("this stream's pieces are of too many lengths to have blocks of {bytes} bytes all"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(ablations: &[&str]) -> Run {
        let ablations = ablations.iter().map(|ablation| (*ablation).to_owned()).collect();
        Run { ablations, ..Run::new("churn", 30, 1) }
    }

    #[test]
    fn a_run_that_breaks_an_invariant_says_how_to_repeat_it() {
        let run = Run { seconds: Some(40.0), polluters: Some(0.25), ..with(&["no-push", "stripes=4"]) };
        let error = run.guard(|| panic!("broken on purpose")).unwrap_err();
        let command = "cargo xtask sim churn --viewers 30 --seed 1 --policy shoal --seconds 40 --polluters 0.25 --ablate \
                       no-push,stripes=4";
        assert!(error.ends_with(command), "{error}");
        assert_eq!(run.guard(|| 7), Ok(7));
    }

    #[test]
    fn what_can_not_be_is_said() {
        for (run, word) in [
            (with(&["no-pushing"]), "no-pushing"),
            (with(&["seeding=three"]), "seeding"),
            (with(&["stripes=many"]), "stripes=N"),
            (with(&["block-bytes=32768"]), "block-bytes"),
            (
                Run { ablations: vec!["block-bytes=4096".into()], ..Run::new("lab", 44, 1) },
                "too many lengths",
            ),
            (Run { ablations: vec!["block-bytes=4096".into()], ..Run::new("steady", 44, 1) }, "128 blocks"),
            (Run { seconds: Some(0.0), ..with(&[]) }, "--seconds"),
            (Run { polluters: Some(1.5), ..with(&[]) }, "--polluters"),
            (Run::new("churn", 0, 1), "--viewers"),
            (Run::new("chrun", 10, 1), "chrun"),
        ] {
            let error = run.scenario().expect_err(word);
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn other_blocks_change_nothing_but_how_wide_everything_is() {
        let (usual, wide) = (with(&[]).scenario().unwrap(), with(&["block-bytes=4096"]).scenario().unwrap());
        assert_eq!(wide.media.rates_kbps[0], 4 * usual.media.rates_kbps[0]);
        assert_eq!(wide.people.uplink_median_kbps, 4.0 * usual.people.uplink_median_kbps);
        assert_eq!(wide.people.downlink_median_kbps, 4.0 * usual.people.downlink_median_kbps);
        assert_eq!((wide.seconds, wide.play.latency_ms), (usual.seconds, usual.play.latency_ms));
        let lab = Run { ablations: vec!["block-bytes=16384".into()], ..Run::new("lab", 44, 1) };
        assert_eq!(lab.scenario().unwrap().people.uplink_kbps, Some(1_356.0 / 4.0));
    }
}
