//! Scenarios against what they shall show, over several seeds, as a table; and ablations side by side. Both end with one JSON
//! object of the same figures.
//!
//! The goals are those of the project's list; the table in `tests/README.md` is this one's output.

use serde_json::{Value, json};
use shoal_sim::{Figures, Knobs, Policy, run, scenario::Scenario};

/// A scenario with fewer viewers than this keeps its own number of them in the table.
const HANDFUL: usize = 100;

/// One thing to reach.
struct Goal {
    what: &'static str,
    measured: f64,
    /// None for what nobody asks for but everybody wants to know.
    goal: Option<f64>,
    more_is_better: bool,
    percent: bool,
}

impl Goal {
    fn at_least(what: &'static str, measured: f64, goal: f64, percent: bool) -> Self {
        Self { what, measured, goal: Some(goal), more_is_better: true, percent }
    }

    fn at_most(what: &'static str, measured: f64, goal: f64, percent: bool) -> Self {
        Self { what, measured, goal: Some(goal), more_is_better: false, percent }
    }

    fn is_met(&self) -> bool {
        let reaches = |goal| if self.more_is_better { self.measured >= goal } else { self.measured <= goal };
        self.goal.is_none_or(reaches)
    }

    fn row(&self, name: &str, viewers: usize, bound: f64) -> String {
        let sign = if self.more_is_better { '≥' } else { '≤' };
        let goal = self.goal.map_or(String::new(), |goal| format!("{sign} {}", show(goal, self.percent)));
        let met = match (self.goal, self.is_met()) {
            (None, _) => "",
            (_, true) => "yes",
            (_, false) => "**no**",
        };
        let (what, measured) = (self.what, show(self.measured, self.percent));
        format!("| {name} | {viewers} | {what} | {goal} | {measured} | {:.1} % | {met} |", 100.0 * bound)
    }

    fn json(&self, name: &str, viewers: usize, bound: f64) -> Value {
        let Self { what, measured, goal, .. } = self;
        json!({
            "scenario": name, "viewers": viewers, "what": what, "measured": measured, "goal": goal, "bound": bound,
            "met": self.is_met(),
        })
    }
}

fn show(value: f64, percent: bool) -> String {
    if percent { format!("{:.2} %", 100.0 * value) } else { format!("{value:.2}") }
}

/// What the worst of several seeds is.
fn worst(all: &[Figures], figure: impl Fn(&Figures) -> f64, more_is_better: bool) -> f64 {
    let values = all.iter().map(figure);
    if more_is_better {
        values.fold(f64::INFINITY, f64::min)
    } else {
        values.fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The goals of a scenario. `plain` are the figures of the plain CDN with the same people.
fn goals(name: &str, viewers: usize, ours: &[Figures], plain: &[Figures]) -> Vec<Goal> {
    let offload = worst(ours, |f| f.offload, true);
    let of_bound = worst(ours, |f| f.measured_over_bound, true);
    let rebuffer = worst(ours, |f| f.rebuffer_ratio, false);
    let peak = worst(ours, |f| f.origin_peak_over_mean, false);
    let recovery = worst(ours, |f| f.recovery_s.unwrap_or(0.0), false);
    let plain_rebuffer = worst(plain, |f| f.rebuffer_ratio, false);
    let startup = worst(ours, |f| f.startup_p95_ms, false);
    let plain_startup = worst(plain, |f| f.startup_p95_ms, false);
    let bad = worst(ours, |f| f.bad_bytes as f64, false);
    match name {
        "steady" => vec![
            Goal::at_most("copies per piece", worst(ours, |f| f.copies_per_piece, false), 10.0, false),
            Goal::at_least("offload", offload, 0.99, true),
        ],
        "steady-ll" => vec![
            Goal::at_least("offload", offload, 0.98, true),
            Goal::at_most(
                "latency p95, s",
                worst(ours, |f| f.latency_p95_s, false),
                worst(plain, |f| f.latency_p95_s, false) + 0.3,
                false,
            ),
        ],
        "sessions" => vec![Goal::at_least("offload", offload, 0.96, true)],
        "flash-crowd" => vec![
            Goal::at_most("origin peak / mean", peak, 2.0, false),
            Goal::at_most("start-up p95, ms", startup, plain_startup * 1.1, false),
        ],
        "churn" => vec![
            Goal::at_least("offload", offload, 0.95, true),
            Goal::at_most("rebuffering", rebuffer, plain_rebuffer + 0.001, true),
        ],
        "low-uplink" => vec![Goal::at_least("measured / bound", of_bound, 0.88, false)],
        "leeches" | "nat" => vec![
            Goal::at_least("offload", offload, 0.93, true),
            Goal::at_least("measured / bound", of_bound, 0.97, false),
        ],
        "seeder-loss" | "tracker-loss" => vec![
            Goal::at_most("rebuffering", rebuffer, plain_rebuffer, true),
            Goal::at_most("back to 95 %, s", recovery, 10.0, false),
        ],
        "origin-stall" => vec![
            Goal::at_most("recovery peak / mean", peak, 2.0, false),
            Goal::at_most(
                "seconds stopped for a piece that somebody had, per viewer",
                worst(ours, |f| f.stopped_though_held_s as f64, false) / viewers as f64,
                0.0,
                false,
            ),
        ],
        "polluters" => vec![Goal::at_most("bad bytes", bad, 0.0, false)],
        "tiny" => vec![Goal::at_least("offload", offload, 1.0 - 1.0 / viewers as f64 - 0.03, true)],
        "joins" | "starved" => vec![Goal::at_most("rebuffering", rebuffer, plain_rebuffer, true)],
        "abr" => vec![Goal::at_least("measured / bound", of_bound, 0.95, false)],
        _ => Vec::new(),
    }
}

fn play(scenario: &Scenario, viewers: usize, seeds: &[u64], policy: Policy, knobs: Knobs) -> Vec<Figures> {
    let one = |seed: &u64| {
        eprintln!("{}, {viewers} viewers, seed {seed}", policy.name());
        run(scenario, viewers, *seed, policy, knobs, &mut |_, _| {}).figures
    };
    seeds.iter().map(one).collect()
}

/// Prints the rows of the results table for some scenarios: the worst of the seeds for each goal. Says whether all are met.
pub(crate) fn table(names: &[String], viewers: Option<usize>, seeds: &[u64]) -> Result<bool, String> {
    println!("| scenario | viewers | what | goal | worst of {} | bound | met |", seeds.len());
    println!("|---|---|---|---|---|---|---|");
    let (mut all_met, mut figures) = (true, Vec::new());
    for name in names {
        let scenario = Scenario::named(name).map_err(|error| error.to_string())?;
        // What is about a handful of viewers says nothing with a thousand.
        let viewers = viewers.filter(|_| scenario.viewers >= HANDFUL).unwrap_or(scenario.viewers);
        let ours = play(&scenario, viewers, seeds, Policy::Shoal, Knobs::default());
        let plain = play(&scenario, viewers, seeds, Policy::Cdn, Knobs::default());
        let bound = worst(&ours, |f| f.bound, true);
        let mut goals = goals(name, viewers, &ours, &plain);
        if !goals.iter().any(|goal| goal.what == "offload") {
            let measured = worst(&ours, |f| f.offload, true);
            goals.push(Goal { what: "offload", measured, goal: None, more_is_better: true, percent: true });
        }
        for goal in goals {
            println!("{}", goal.row(name, viewers, bound));
            figures.push(goal.json(name, viewers, bound));
            all_met &= goal.is_met();
        }
    }
    println!("{}", json!({ "seeds": seeds, "goals": figures }));
    Ok(all_met)
}

/// Prints what is lost without each of the parts that the design is made of.
pub(crate) fn ablations(name: &str, scenario: &Scenario, viewers: usize, seeds: &[u64]) {
    let with = |change: fn(&mut Knobs)| {
        let mut knobs = Knobs::default();
        change(&mut knobs);
        knobs
    };
    let rows: [(&str, Knobs); 9] = [
        ("as it is", Knobs::default()),
        ("no push: blocks are asked for", with(|k| k.push = false)),
        ("4 stripes instead of 12", with(|k| k.plan.stripes_max = 4)),
        ("children in one stripe only", with(|k| k.plan.interior_stripes = 1)),
        ("children in all stripes", with(|k| k.plan.interior_stripes = 12)),
        ("one root for each stripe", with(|k| k.plan.large_swarm = u32::MAX)),
        ("8 neighbors at most", with(|k| k.plan.neighbors_max = 8)),
        (
            "no part of the uplink in reserve",
            with(|k| {
                k.plan.reserve_min_percent = 0;
                k.plan.reserve_max_percent = 0;
            }),
        ),
        ("complaints are not heard", with(|k| k.complaints = false)),
    ];
    println!("{name}, {viewers} viewers, mean of {} seeds\n", seeds.len());
    println!("| | offload | copies | complete p50 / p95 | rebuffering | waste |");
    println!("|---|---|---|---|---|---|");
    let mut figures = Vec::new();
    for (what, knobs) in rows {
        let all = play(scenario, viewers, seeds, Policy::Shoal, knobs);
        let mean = |figure: fn(&Figures) -> f64| all.iter().map(figure).sum::<f64>() / all.len() as f64;
        let (offload, copies) = (mean(|f| f.offload), mean(|f| f.copies_per_piece));
        let (p50, p95) = (mean(|f| f.arrival_p50_ms as f64), mean(|f| f.arrival_p95_ms as f64));
        let (rebuffer, waste) = (mean(|f| f.rebuffer_ratio), mean(|f| f.waste_ratio));
        println!(
            "| {what} | {:.2} % | {copies:.2} | {p50:.0} / {p95:.0} ms | {:.3} % | {:.2} % |",
            100.0 * offload,
            100.0 * rebuffer,
            100.0 * waste,
        );
        figures.push(json!({
            "what": what, "offload": offload, "copies_per_piece": copies, "arrival_p50_ms": p50, "arrival_p95_ms": p95,
            "rebuffer_ratio": rebuffer, "waste_ratio": waste,
        }));
    }
    println!("{}", json!({ "scenario": name, "viewers": viewers, "seeds": seeds, "ablations": figures }));
}
