//! `sim`: runs scenarios and prints figures. What is simulated and how: the library beside this file.

mod report;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde::Serialize;
use shoal_sim::{Figures, Knobs, Outcome, Policy, run, scenario::Scenario};

/// Simulates a live stream's audience: the real swarm cores and the real planner, in virtual time.
///
/// Prints a table for people, and as the last line one JSON object. The same scenario, number of viewers and seed give
/// the same figures.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
struct Arguments {
    /// The scenario; `--list` shows them.
    #[arg(required_unless_present_any = ["list", "table"])]
    scenario: Option<String>,
    /// Viewers at a time; the scenario's own number if not given, and in the table where that is a handful.
    #[arg(long)]
    viewers: Option<usize>,
    /// Decides everything that is left to chance. Decimal, or hexadecimal with 0x.
    #[arg(long, default_value = "1", value_parser = seed)]
    seed: u64,
    /// Policies to run, separated by commas: shoal, cdn, p2pml-default, p2pml-tuned, p2pml-v5. All if not given.
    #[arg(long, value_delimiter = ',')]
    policy: Vec<String>,
    /// Seconds to simulate; the scenario's own if not given.
    #[arg(long)]
    seconds: Option<f64>,
    /// Share of polluters, for the scenario of that name.
    #[arg(long)]
    polluters: Option<f64>,
    /// Ablations, separated by commas: no-push, no-tracker, interior-stripes=N, stripes=N, mesh=N, neighbors=N, burst=MS,
    /// starved=MS, reserve=PERCENT, unknown-uplink=PERCENT, no-hash.
    #[arg(long, value_delimiter = ',')]
    ablate: Vec<String>,
    /// Prints the counters behind the figures.
    #[arg(long)]
    counters: bool,
    /// Instead of one run: scenarios (all of them, or those named, separated by commas) against what they shall show, the
    /// worst of several seeds. Exits with 1 where a goal is missed.
    #[arg(long)]
    table: bool,
    /// Instead of one run: what is lost without each part of the design.
    #[arg(long)]
    ablations: bool,
    /// The seeds of `--table` and `--ablations`, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 2, 3, 4, 5], value_parser = seed)]
    seeds: Vec<u64>,
    /// Prints a line for each second.
    #[arg(long)]
    timeline: bool,
    /// Lists the scenarios.
    #[arg(long)]
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

fn simulate(arguments: &Arguments) -> Result<(), String> {
    if arguments.list {
        for name in Scenario::names() {
            let scenario = Scenario::named(name).map_err(|error| error.to_string())?;
            println!("{name:14} {}", scenario.about);
        }
        return Ok(());
    }
    let name = arguments.scenario.as_deref().unwrap_or_default();
    if arguments.table {
        // The laboratory is one machine with its 44 viewers, and a prediction, not a goal.
        let all = || Scenario::names().filter(|name| *name != "lab").map(str::to_owned).collect();
        let names: Vec<String> =
            if name.is_empty() { all() } else { name.split(',').map(str::to_owned).collect() };
        return match report::table(&names, arguments.viewers, &arguments.seeds)? {
            true => Ok(()),
            false => Err(
                "not all goals are met; to look into one run: cargo xtask sim SCENARIO --seed S --timeline"
                    .into(),
            ),
        };
    }
    let mut scenario = Scenario::named(name).map_err(|error| error.to_string())?;
    if let Some(seconds) = arguments.seconds {
        if seconds <= scenario.measure_from_s || seconds > 86_400.0 {
            return Err(format!("--seconds must be more than {} and at most a day", scenario.measure_from_s));
        }
        scenario.seconds = seconds;
    }
    if let Some(polluters) = arguments.polluters {
        if !(0.0..=1.0).contains(&polluters) {
            return Err("--polluters is a share, 0 to 1".to_owned());
        }
        scenario.people.polluters = polluters;
    }
    let viewers = arguments.viewers.unwrap_or(scenario.viewers);
    if viewers == 0 || viewers > 1_000_000 {
        return Err("--viewers must be 1 to 1000000".to_owned());
    }
    if arguments.ablations {
        report::ablations(name, &scenario, viewers, &arguments.seeds);
        return Ok(());
    }
    let policies = if arguments.policy.is_empty() {
        Policy::ALL.to_vec()
    } else {
        let named = |name: &String| Policy::named(name).ok_or_else(|| format!("there is no policy '{name}'"));
        arguments.policy.iter().map(named).collect::<Result<_, _>>()?
    };
    let knobs = knobs(&arguments.ablate)?;

    println!("{name}: {viewers} viewers, seed {}, {} s", arguments.seed, scenario.seconds);
    println!("{}", scenario.about);
    let mut outcomes = Vec::new();
    for policy in policies {
        let outcome = watched(&scenario, name, viewers, arguments.seed, policy, knobs)?;
        if arguments.counters {
            for (counter, value) in &outcome.tally {
                println!("  {counter:24} {value}");
            }
        }
        if arguments.timeline {
            outcome.timeline.iter().for_each(|line| println!("{line}"));
        }
        outcomes.push((policy, outcome));
    }
    table(&outcomes);
    let figures = outcomes.iter().map(|(policy, outcome)| (policy.name(), &outcome.figures)).collect();
    let report = Report { scenario: name, viewers, seed: arguments.seed, policies: figures };
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

/// Runs one policy with a progress line; a run that breaks an invariant says how to repeat it.
fn watched(
    scenario: &Scenario,
    name: &str,
    viewers: usize,
    seed: u64,
    policy: Policy,
    knobs: Knobs,
) -> Result<Outcome, String> {
    let began = Instant::now();
    let is_terminal = std::io::stderr().is_terminal();
    let mut last = Instant::now();
    let mut progress = |done: f64, note: &str| {
        // A line a second on a terminal; in a log one every 15 s.
        let pause = if is_terminal { 1 } else { 15 };
        if last.elapsed().as_secs() >= pause {
            last = Instant::now();
            let spent = began.elapsed().as_secs_f64();
            let left = spent / done.max(1e-6) - spent;
            let end = if is_terminal { "\r" } else { "\n" };
            eprint!("{}: {:.0} %, {left:.0} s left, {note}    {end}", policy.name(), 100.0 * done);
            let _ = std::io::stderr().flush();
        }
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(scenario, viewers, seed, policy, knobs, &mut progress)
    }));
    let spent = began.elapsed().as_secs_f64();
    if is_terminal {
        eprint!("\r\x1b[2K");
    }
    eprintln!("{}: done in {spent:.1} s", policy.name());
    result.map_err(|_| {
        format!(
            "the run broke an invariant (above). To repeat it: cargo xtask sim {name} --viewers {viewers} --seed {seed} \
             --policy {}",
            policy.name()
        )
    })
}

fn knobs(ablations: &[String]) -> Result<Knobs, String> {
    let mut knobs = Knobs::default();
    for ablation in ablations {
        let (name, value) = ablation.split_once('=').unwrap_or((ablation, ""));
        let number = || value.parse::<u32>().map_err(|_| format!("--ablate {name} wants a number: {name}=N"));
        match name {
            "no-push" => knobs.push = false,
            "no-tracker" => knobs.tracker = false,
            "no-hash" => knobs.hash = false,
            "interior-stripes" => knobs.plan.interior_stripes = number()?,
            "stripes" => knobs.plan.stripes_max = number()?.clamp(1, 16) as u8,
            "burst" => knobs.burst_ms = Some(number()?),
            "starved" => knobs.starved_ms = Some(number()?),
            "mesh" => knobs.plan.mesh_min = number()?,
            "neighbors" => knobs.plan.neighbors_max = number()?,
            "unknown-uplink" => knobs.plan.uplink_unknown_percent = number()?,
            "reserve" => {
                knobs.plan.reserve_min_percent = number()?;
                knobs.plan.reserve_max_percent = number()?;
            }
            _ => return Err(format!("there is no ablation '{name}'; see --help")),
        }
    }
    Ok(knobs)
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
