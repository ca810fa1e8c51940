//! Scenarios against what they shall show, over several seeds, as a table; and ablations side by side. Both end with one JSON
//! object of the same figures.
//!
//! The goals are those of the project's list. The figures in `tests/README.md` are taken from here; its rows are the scenarios,
//! those of this table the goals.

use serde_json::{Value, json};
use shoal_sim::{Figures, Policy, Run, scenario::Scenario};

use crate::watched;

/// A scenario with fewer viewers than this keeps its own number of them in the table of all.
const HANDFUL: usize = 100;
/// What `tiny` is about.
const TINY: [usize; 5] = [2, 3, 5, 10, 30];
/// Shares of polluters, and how many points of the offload each may cost.
const POLLUTERS: [(f64, f64); 3] = [(0.01, 1.0), (0.1, 5.0), (0.3, 15.0)];

/// What has goals: a scenario, with one of the numbers or shares that it is about.
#[derive(Clone, Debug, PartialEq)]
struct Case {
    scenario: String,
    viewers: usize,
    polluters: Option<f64>,
}

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

    fn row(&self, case: &Case, bound: f64) -> String {
        let sign = if self.more_is_better { '≥' } else { '≤' };
        let goal = self.goal.map_or(String::new(), |goal| format!("{sign} {}", show(goal, self.percent)));
        let met = match (self.goal, self.is_met()) {
            (None, _) => "",
            (_, true) => "yes",
            (_, false) => "**no**",
        };
        let (what, measured) = (self.what, show(self.measured, self.percent));
        let (name, viewers) = (case.name(), case.viewers);
        format!("| {name} | {viewers} | {what} | {goal} | {measured} | {:.1} % | {met} |", 100.0 * bound)
    }

    fn json(&self, case: &Case, bound: f64) -> Value {
        let Self { what, measured, goal, .. } = self;
        json!({
            "scenario": case.scenario, "viewers": case.viewers, "polluters": case.polluters, "what": what, "measured": measured,
            "goal": goal, "bound": bound, "met": self.is_met(),
        })
    }
}

impl Case {
    /// What the table is about: all scenarios, or those named. What is about a handful of viewers says nothing with a thousand, so it
    /// keeps its own number unless it was asked for by name.
    fn all(names: Option<&str>, viewers: Option<usize>) -> Result<Vec<Self>, String> {
        // The laboratory is one machine with its 44 viewers, and a prediction, not a goal.
        let every = Scenario::names().filter(|name| *name != "lab");
        let named: Vec<&str> = names.map_or_else(|| every.collect(), |names| names.split(',').collect());
        let mut cases = Vec::new();
        for scenario in named {
            let own = Scenario::named(scenario).map_err(|error| error.to_string())?.viewers;
            let asked = viewers.filter(|_| names.is_some() || own >= HANDFUL);
            let case = |viewers, polluters| Self { scenario: scenario.to_owned(), viewers, polluters };
            match (scenario, asked) {
                ("polluters", _) => {
                    let viewers = asked.unwrap_or(own);
                    cases.extend(POLLUTERS.iter().map(|(share, _)| case(viewers, Some(*share))));
                }
                ("tiny", None) => cases.extend(TINY.iter().map(|viewers| case(*viewers, None))),
                _ => cases.push(case(asked.unwrap_or(own), None)),
            }
        }
        Ok(cases)
    }

    fn name(&self) -> String {
        let share = |share: f64| format!("{}, {} %", self.scenario, 100.0 * share);
        self.polluters.map_or_else(|| self.scenario.clone(), share)
    }

    fn run(&self, seed: u64) -> Run {
        Run { polluters: self.polluters, ..Run::new(&self.scenario, self.viewers, seed) }
    }

    /// What its figures are compared with: those of the plain CDN with the same people, or where it is about polluters our own
    /// without any.
    fn reference(&self) -> Run {
        match self.polluters {
            Some(_) => Run { polluters: Some(0.0), ..self.run(0) },
            None => Run { policy: Policy::Cdn, ..self.run(0) },
        }
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

/// By how many points the offload is lower than in the run of the same seed without polluters, in the worst case.
fn loss(ours: &[Figures], without: &[Figures]) -> f64 {
    let losses = ours.iter().zip(without).map(|(ours, without)| 100.0 * (without.offload - ours.offload));
    losses.fold(f64::NEG_INFINITY, f64::max)
}

/// The goals of a case. `plain` are the figures of [`Case::reference`].
fn goals(case: &Case, ours: &[Figures], plain: &[Figures]) -> Vec<Goal> {
    let viewers = case.viewers;
    let offload = worst(ours, |f| f.offload, true);
    let of_bound = worst(ours, |f| f.measured_over_bound, true);
    let rebuffer = worst(ours, |f| f.rebuffer_ratio, false);
    let peak = worst(ours, |f| f.origin_peak_over_mean, false);
    let recovery = worst(ours, |f| f.recovery_s.unwrap_or(0.0), false);
    let plain_rebuffer = worst(plain, |f| f.rebuffer_ratio, false);
    let startup = worst(ours, |f| f.startup_p95_ms, false);
    let plain_startup = worst(plain, |f| f.startup_p95_ms, false);
    let bad = worst(ours, |f| f.bad_bytes as f64, false);
    match case.scenario.as_str() {
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
        "polluters" => {
            let goal =
                POLLUTERS.iter().find(|(share, _)| Some(*share) == case.polluters).map(|(_, points)| *points);
            vec![
                Goal::at_most("bad bytes", bad, 0.0, false),
                Goal {
                    what: "offload lost, points",
                    measured: loss(ours, plain),
                    goal,
                    more_is_better: false,
                    percent: false,
                },
            ]
        }
        "liars" => vec![
            Goal::at_most("rebuffering", rebuffer, plain_rebuffer, true),
            // What liars hold is theirs to lose.
            Goal::at_least("measured / bound", of_bound, 0.9, false),
        ],
        "tiny" => vec![Goal::at_least("offload", offload, 1.0 - 1.0 / viewers as f64 - 0.03, true)],
        "joins" | "starved" => vec![Goal::at_most("rebuffering", rebuffer, plain_rebuffer, true)],
        "abr" => vec![Goal::at_least("measured / bound", of_bound, 0.95, false)],
        _ => Vec::new(),
    }
}

/// Makes a run with each of some seeds.
fn play(run: &Run, seeds: &[u64]) -> Result<Vec<Figures>, String> {
    seeds
        .iter()
        .map(|seed| watched(&Run { seed: *seed, ..run.clone() }).map(|outcome| outcome.figures))
        .collect()
}

/// Prints the table of all scenarios, or of those named: the worst of the seeds for each goal. An error where one is missed.
pub(crate) fn table(names: Option<&str>, viewers: Option<usize>, seeds: &[u64]) -> Result<(), String> {
    let cases = Case::all(names, viewers)?;
    println!("| scenario | viewers | what | goal | worst of {} | bound | met |", seeds.len());
    println!("|---|---|---|---|---|---|---|");
    let (mut missed, mut figures) = (Vec::new(), Vec::new());
    let mut known: Option<(Run, Vec<Figures>)> = None;
    for case in cases {
        let ours = play(&case.run(0), seeds)?;
        // One case after the other may be compared with the same.
        let reference = case.reference();
        let plain = match known.take() {
            Some((run, plain)) if run == reference => plain,
            _ => play(&reference, seeds)?,
        };
        let bound = worst(&ours, |f| f.bound, true);
        let mut goals = goals(&case, &ours, &plain);
        if !goals.iter().any(|goal| goal.what == "offload") {
            let measured = worst(&ours, |f| f.offload, true);
            goals.push(Goal { what: "offload", measured, goal: None, more_is_better: true, percent: true });
        }
        for goal in &goals {
            println!("{}", goal.row(&case, bound));
            figures.push(goal.json(&case, bound));
        }
        if !goals.iter().all(Goal::is_met) {
            missed.extend(seeds.iter().map(|seed| format!("\n  {} --timeline", case.run(*seed).command())));
        }
        known = Some((reference, plain));
    }
    println!("{}", json!({ "seeds": seeds, "goals": figures }));
    if missed.is_empty() {
        return Ok(());
    }
    Err(format!("not all goals are met; to look into the runs that count:{}", missed.concat()))
}

/// What is lost without each of the parts that the design is made of: what the row says, and what `--ablate` says.
const ABLATIONS: [(&str, &str); 13] = [
    ("as it is", ""),
    ("no push: blocks are asked for", "no-push"),
    ("blocks of 8 KiB instead of 16", "block-bytes=8192"),
    ("blocks of 4 KiB instead of 16", "block-bytes=4096"),
    ("nobody seeds: who is short of time fetches", "seeding=none"),
    ("one root for each stripe", "seeding=one"),
    ("two roots for each stripe", "seeding=two"),
    ("4 stripes instead of 12", "stripes=4"),
    ("children in one stripe only", "interior-stripes=1"),
    ("children in all stripes", "interior-stripes=12"),
    ("8 neighbors at most", "neighbors=8"),
    ("no part of the uplink in reserve", "reserve=0"),
    ("complaints are not heard", "no-complaints"),
];

/// Prints what is lost without each of the parts that the design is made of.
pub(crate) fn ablations(run: &Run, seeds: &[u64]) -> Result<(), String> {
    let runs: Vec<(&str, Run)> = ABLATIONS
        .iter()
        .map(|(what, ablation)| {
            let ablations = if ablation.is_empty() { Vec::new() } else { vec![(*ablation).to_owned()] };
            (*what, Run { ablations, ..run.clone() })
        })
        .collect();
    run.scenario()?;
    println!("{}, {} viewers, mean of {} seeds\n", run.scenario, run.viewers, seeds.len());
    println!("| | offload | copies | complete p50 / p95 | rebuffering | waste |");
    println!("|---|---|---|---|---|---|");
    let mut figures = Vec::new();
    for (what, run) in runs {
        // Not every stream has blocks that could be shorter.
        if let Err(why) = run.scenario() {
            eprintln!("left out: {what}: {why}");
            continue;
        }
        let all = play(&run, seeds)?;
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
            "what": what, "ablate": run.ablations, "offload": offload, "copies_per_piece": copies, "arrival_p50_ms": p50,
            "arrival_p95_ms": p95, "rebuffer_ratio": rebuffer, "waste_ratio": waste,
        }));
    }
    println!(
        "{}",
        json!({ "scenario": run.scenario, "viewers": run.viewers, "seeds": seeds, "ablations": figures })
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_the_table_has_a_goal() {
        let figures = watched(&Run { policy: Policy::Cdn, seconds: Some(5.0), ..Run::new("tiny", 2, 1) })
            .unwrap()
            .figures;
        for case in Case::all(None, Some(1_000)).unwrap() {
            let goals = goals(&case, std::slice::from_ref(&figures), std::slice::from_ref(&figures));
            assert!(goals.iter().any(|goal| goal.goal.is_some()), "{case:?}");
        }
    }

    #[test]
    fn polluters_are_three_cases_compared_with_none() {
        let cases = Case::all(Some("polluters"), Some(60)).unwrap();
        assert_eq!(
            cases.iter().map(Case::name).collect::<Vec<_>>(),
            ["polluters, 1 %", "polluters, 10 %", "polluters, 30 %"]
        );
        for case in &cases {
            let without = Run { polluters: Some(0.0), ..Run::new("polluters", 60, 0) };
            assert_eq!(case.reference(), without, "the same audience without them");
        }
    }

    #[test]
    fn what_polluters_cost_is_counted_by_seed_and_the_worst_counts() {
        let figures = watched(&Run { policy: Policy::Cdn, seconds: Some(5.0), ..Run::new("tiny", 2, 1) })
            .unwrap()
            .figures;
        let with = |offload| Figures { offload, ..figures.clone() };
        let (ours, without) = ([with(0.90), with(0.97)], [with(0.98), with(0.99)]);
        assert!((loss(&ours, &without) - 8.0).abs() < 1e-9);
        let case = Case { scenario: "polluters".to_owned(), viewers: 60, polluters: Some(0.1) };
        assert!(!goals(&case, &ours, &without).iter().all(Goal::is_met), "8 points are more than 5");
        assert!(goals(&case, &without, &without).iter().all(Goal::is_met));
    }

    #[test]
    fn a_handful_of_viewers_stays_one_unless_it_is_asked_for() {
        let viewers = |names, viewers| {
            let cases = Case::all(names, viewers).unwrap().into_iter();
            cases.map(|case| (case.scenario, case.viewers)).collect::<Vec<_>>()
        };
        let all = viewers(None, Some(1_000));
        assert!(
            all.contains(&("churn".to_owned(), 1_000)) && all.contains(&("joins".to_owned(), 5)),
            "{all:?}"
        );
        assert_eq!(viewers(Some("joins,tiny"), Some(7)), [("joins".to_owned(), 7), ("tiny".to_owned(), 7)]);
        assert_eq!(viewers(Some("tiny"), None).len(), TINY.len());
    }

    #[test]
    fn every_row_of_the_ablations_can_be_simulated() {
        for (_, ablation) in ABLATIONS {
            let ablations = if ablation.is_empty() { Vec::new() } else { vec![ablation.to_owned()] };
            Run { ablations, ..Run::new("churn", 200, 1) }.scenario().expect(ablation);
        }
    }
}
