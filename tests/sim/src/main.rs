//! `sim`: runs scenarios and prints figures. What is simulated and how: the library beside this file.

mod report;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgGroup, Parser};
use serde::Serialize;
use shoal_sim::{Figures, Outcome, Policy, Run, scenario::Scenario};

/// Simulates a live stream's audience: the real swarm cores and the real planner, in virtual time.
///
/// Prints a table for people, and as the last line one JSON object. The same scenario, number of viewers and seed give
/// the same figures.
#[derive(Debug, Parser)]
#[command(name = "sim", version, group = ArgGroup::new("many").args(["table", "ablations"]))]
struct Arguments {
    /// The scenario; `--list` shows them. Several, separated by commas, for `--table`.
    #[arg(required_unless_present_any = ["list", "table"])]
    scenario: Option<String>,
    /// Viewers at a time; the scenario's own number if not given, and in the table of all scenarios where that is a handful.
    #[arg(long)]
    viewers: Option<usize>,
    /// Decides everything that is left to chance. Decimal, or hexadecimal with 0x.
    #[arg(long, default_value = "1", value_parser = seed, conflicts_with = "many")]
    seed: u64,
    /// Policies to run, separated by commas: shoal, cdn, p2pml-default, p2pml-tuned, p2pml-v5. All if not given.
    #[arg(long, value_delimiter = ',', conflicts_with = "many")]
    policy: Vec<String>,
    /// Seconds to simulate; the scenario's own if not given. Figures count from the scenario's `measure-from-s` on, at the latest
    /// from half of that time on.
    #[arg(long, conflicts_with = "table")]
    seconds: Option<f64>,
    /// Share of polluters; the scenario's own if not given.
    #[arg(long, conflicts_with = "table")]
    polluters: Option<f64>,
    /// Ablations, separated by commas: no-push, no-tracker, no-complaints, no-hash, interior-stripes=N, stripes=N, seeding=none|one|two
    /// (roots of each stripe), mesh=N, neighbors=N, block-bytes=N, burst=MS, spread=MS, starved=MS, judges-after=MS, reserve=PERCENT, unknown-uplink=PERCENT.
    #[arg(long, value_delimiter = ',', conflicts_with = "many")]
    ablate: Vec<String>,
    /// Prints the counters behind the figures.
    #[arg(long, conflicts_with = "many")]
    counters: bool,
    /// Instead of one run: scenarios (all of them, or those named, separated by commas) against what they shall show, the
    /// worst of several seeds. Exits with 1 where a goal is missed.
    #[arg(long)]
    table: bool,
    /// Instead of one run: what is lost without each part of the design.
    #[arg(long)]
    ablations: bool,
    /// The seeds of `--table` and `--ablations`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 2, 3, 4, 5], value_parser = seed, requires = "many")]
    seeds: Vec<u64>,
    /// Prints a line for each second.
    #[arg(long, conflicts_with = "many")]
    timeline: bool,
    /// Lists the scenarios.
    #[arg(long, exclusive = true)]
    list: bool,
}

/// The last line.
#[derive(Debug, Serialize)]
struct Report<'a> {
    scenario: &'a str,
    viewers: usize,
    seed: u64,
    policies: BTreeMap<&'static str, &'a Figures>,
}

fn seed(text: &str) -> Result<u64, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    u64::from_str_radix(digits, radix).map_err(|error| format!("'{text}' is not a seed: {error}"))
}

fn main() -> ExitCode {
    match simulate(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sim: {why}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn policies(&self) -> Result<Vec<Policy>, String> {
        if self.policy.is_empty() {
            return Ok(Policy::ALL.to_vec());
        }
        let named = |name: &String| Policy::named(name).ok_or_else(|| format!("there is no policy '{name}'"));
        self.policy.iter().map(named).collect()
    }

    /// The run of one policy that was asked for.
    fn run(&self, policy: Policy) -> Result<Run, String> {
        let name = self.scenario.as_deref().unwrap_or_default();
        let scenario = Scenario::named(name).map_err(|error| error.to_string())?;
        let viewers = self.viewers.unwrap_or(scenario.viewers);
        Ok(Run {
            policy,
            seconds: self.seconds,
            polluters: self.polluters,
            ablations: self.ablate.clone(),
            ..Run::new(name, viewers, self.seed)
        })
    }
}

fn simulate(arguments: &Arguments) -> Result<(), String> {
    if arguments.list {
        for name in Scenario::names() {
            let scenario = Scenario::named(name).map_err(|error| error.to_string())?;
            println!("{name:14} {}", scenario.about);
        }
        return Ok(());
    }
    if arguments.table {
        return report::table(arguments.scenario.as_deref(), arguments.viewers, &arguments.seeds);
    }
    if arguments.ablations {
        return report::ablations(&arguments.run(Policy::Shoal)?, &arguments.seeds);
    }
    let runs: Vec<Run> =
        arguments.policies()?.into_iter().map(|policy| arguments.run(policy)).collect::<Result<_, _>>()?;
    let Some(Run { scenario: name, viewers, seed, .. }) = runs.first() else { return Ok(()) };
    let scenario = runs[0].scenario()?;

    println!("{name}: {viewers} viewers, seed {seed}, {} s", scenario.seconds);
    println!("{}", scenario.about);
    let mut outcomes = Vec::new();
    for run in &runs {
        let outcome = watched(run)?;
        if arguments.counters {
            for (counter, value) in &outcome.tally {
                println!("  {counter:24} {value}");
            }
        }
        if arguments.timeline {
            outcome.timeline.iter().for_each(|line| println!("{line}"));
        }
        outcomes.push((run.policy, outcome));
    }
    table(&outcomes);
    let figures = outcomes.iter().map(|(policy, outcome)| (policy.name(), &outcome.figures)).collect();
    let report = Report { scenario: name, viewers: *viewers, seed: *seed, policies: figures };
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

/// Makes a run with a progress line; one that breaks an invariant says how to repeat it.
fn watched(run: &Run) -> Result<Outcome, String> {
    let began = Instant::now();
    let is_terminal = std::io::stderr().is_terminal();
    let what = {
        let Run { scenario, viewers, seed, policy, ablations, .. } = run;
        let polluters = run.polluters.map(|share| format!(", {} % polluters", 100.0 * share));
        let ablations: String = ablations.iter().map(|ablation| format!(", {ablation}")).collect();
        format!(
            "{scenario}, {viewers} viewers, seed {seed}, {}{}{ablations}",
            policy.name(),
            polluters.unwrap_or_default()
        )
    };
    let mut last = Instant::now();
    let mut progress = |done: f64, note: &str| {
        // A line a second on a terminal; in a log one every 15 s.
        let pause = if is_terminal { 1 } else { 15 };
        if last.elapsed().as_secs() >= pause {
            last = Instant::now();
            let spent = began.elapsed().as_secs_f64();
            let left = spent / done.max(1e-6) - spent;
            let end = if is_terminal { "\r" } else { "\n" };
            eprint!("{what}: {:.0} %, {left:.0} s left, {note}    {end}", 100.0 * done);
            let _ = std::io::stderr().flush();
        }
    };
    let result = run.play(&mut progress);
    let spent = began.elapsed().as_secs_f64();
    if is_terminal {
        eprint!("\r\x1b[2K");
    }
    eprintln!("{what}: done in {spent:.1} s");
    result
}

fn table(outcomes: &[(Policy, Outcome)]) {
    println!();
    println!(
        "{:14} {:>8} {:>7} {:>8} {:>8} {:>9} {:>10} {:>9} {:>6} {:>7} {:>9}",
        "policy",
        "offload",
        "bound",
        "of bound",
        "copies",
        "latency",
        "start-up",
        "rebuffer",
        "peak",
        "waste",
        "bad bytes"
    );
    for (policy, outcome) in outcomes {
        let figures = &outcome.figures;
        println!(
            "{:14} {:>7.2}% {:>6.1}% {:>7.1}% {:>8.2} {:>7.2} s {:>7.0} ms {:>8.3}% {:>6.2} {:>6.2}% {:>9}",
            policy.name(),
            100.0 * figures.offload,
            100.0 * figures.bound,
            100.0 * figures.measured_over_bound,
            figures.copies_per_piece,
            figures.latency_p95_s,
            figures.startup_p95_ms,
            100.0 * figures.rebuffer_ratio,
            figures.origin_peak_over_mean,
            100.0 * figures.waste_ratio,
            figures.bad_bytes,
        );
    }
    for (policy, outcome) in outcomes {
        let figures = &outcome.figures;
        print!(
            "{}: pieces complete after p50 {} ms, p95 {} ms; {} viewers stalled; {} requests in the worst 100 ms",
            policy.name(),
            figures.arrival_p50_ms,
            figures.arrival_p95_ms,
            figures.stalled_viewers,
            figures.requests_100ms_max
        );
        match figures.recovery_s {
            Some(recovery_s) => println!("; 95 % again {recovery_s} s after the fault"),
            None => println!(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(command: &str) -> Result<Arguments, String> {
        let words = command.strip_prefix("cargo xtask ").expect("the program's own command").split(' ');
        Arguments::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_of_a_run_gives_that_very_run() {
        let plain = Run::new("churn", 30, 1);
        let changed = Run {
            policy: Policy::P2pmlV5,
            seconds: Some(41.5),
            polluters: Some(0.1),
            ablations: vec!["no-push".to_owned(), "stripes=4".to_owned()],
            ..Run::new("steady-ll", 300, u64::MAX)
        };
        for run in [plain, changed] {
            let arguments = parse(&run.command()).unwrap();
            let runs: Vec<Run> = arguments
                .policies()
                .unwrap()
                .into_iter()
                .map(|policy| arguments.run(policy).unwrap())
                .collect();
            assert_eq!(runs, [run]);
        }
    }

    #[test]
    fn what_a_table_does_not_take_is_refused_and_not_ignored() {
        for refused in [
            "--table --polluters 0.1",
            "--table --seconds 60",
            "--table --ablate no-push",
            "--table --seed 3",
            "--table --policy shoal",
            "--table --counters",
            "--table --timeline",
            "--table --ablations",
            "--ablations --ablate no-push",
            "--ablations --seed 3",
            "--ablations --policy cdn",
            "--seeds 1,2",
        ] {
            let error = parse(&format!("cargo xtask sim churn {refused}")).expect_err(refused);
            let first = refused.split(' ').find(|word| word.starts_with("--")).expect("an option");
            assert!(error.contains(first), "{refused}: {error}");
        }
        for taken in [
            "--table",
            "--table --viewers 300 --seeds 1,2",
            "--ablations --viewers 200 --seeds 1 --seconds 60 --polluters 0.1",
            "--seed 0x5eed --counters --timeline",
        ] {
            parse(&format!("cargo xtask sim churn {taken}")).expect(taken);
        }
    }
}
