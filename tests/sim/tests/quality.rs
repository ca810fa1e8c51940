//! Whether the simulator can be trusted, and whether the policy is as good as it was: small runs of every kind.

use shoal_sim::{Figures, Run};

fn simulate(name: &str, viewers: usize, seed: u64, seconds: f64, ablations: &[&str]) -> Figures {
    let ablations = ablations.iter().map(|ablation| (*ablation).to_owned()).collect();
    let run = Run { seconds: Some(seconds), ablations, ..Run::new(name, viewers, seed) };
    // Shown where a test fails.
    eprintln!("{}", run.command());
    let outcome = run.play(&mut |_, _| {}).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("{:?}", outcome.figures);
    outcome.timeline.iter().for_each(|line| eprintln!("{line}"));
    outcome.figures
}

#[test]
fn same_seed_gives_the_same_figures_and_counters() {
    let play = |seed| {
        let run = Run { seconds: Some(30.0), ..Run::new("churn", 30, seed) };
        format!("{:?}", run.play(&mut |_, _| {}).unwrap_or_else(|why| panic!("{why}")))
    };
    let once = play(7);
    assert_eq!(once, play(7));
    assert_ne!(once, play(8));
}

#[test]
fn tiny_swarms_come_close_to_one_copy() {
    for viewers in [2, 3, 5, 10] {
        let figures = simulate("tiny", viewers, 1, 60.0, &[]);
        let floor = 1.0 - 1.0 / viewers as f64;
        assert!(figures.offload > floor - 0.03, "{viewers} viewers: {} of {floor}", figures.offload);
        assert!(figures.rebuffer_ratio < 0.001, "{viewers} viewers rebuffer {}", figures.rebuffer_ratio);
    }
}

#[test]
fn two_hundred_viewers_at_the_live_edge_stay_above_the_gate() {
    let figures = simulate("steady-ll", 200, 1, 60.0, &[]);
    assert!(figures.offload > 0.97, "offload {}", figures.offload);
    assert!(figures.rebuffer_ratio < 0.0005, "rebuffering {}", figures.rebuffer_ratio);
    assert!(figures.waste_ratio < 0.08, "waste {}", figures.waste_ratio);
    assert_eq!(figures.bad_bytes, 0);
}

#[test]
fn polluters_get_no_byte_played_or_passed_on() {
    let figures = simulate("polluters", 60, 3, 80.0, &[]);
    assert_eq!(figures.bad_bytes, 0);
    assert!(figures.rebuffer_ratio < 0.001, "rebuffering {}", figures.rebuffer_ratio);
    assert!(figures.offload > 0.96, "offload {}", figures.offload);
}

/// The control of the test above: it can see bad bytes, once drivers do not hash what they receive.
#[test]
fn polluters_succeed_where_nobody_hashes() {
    assert!(simulate("polluters", 60, 3, 80.0, &["no-hash"]).bad_bytes > 0);
}

#[test]
fn liars_stop_nobody_and_lose_their_places() {
    let figures = simulate("liars", 100, 1, 90.0, &[]);
    assert!(figures.rebuffer_ratio < 0.0001, "{figures:?}");
    assert!(figures.offload > 0.96, "{figures:?}");
    // The control: where the tracker hears of nothing, all wait for them to the end.
    let kept = simulate("liars", 100, 1, 90.0, &["no-complaints"]);
    assert!(kept.waste_ratio > 2.0 * figures.waste_ratio, "{kept:?}");
    assert!(kept.arrival_p50_ms > figures.arrival_p50_ms + 300, "{kept:?}");
}

/// A liar that was put out for a minute gets another chance, and other children.
#[test]
fn a_liars_second_chance_is_short() {
    let figures = simulate("liars", 150, 1, 120.0, &[]);
    // The control: who takes a place that another has just left counts as content.
    let long = simulate("liars", 150, 1, 120.0, &["judges-after=0"]);
    assert!(figures.offload > long.offload + 0.005, "{figures:?} {long:?}");
    assert!(figures.waste_ratio < long.waste_ratio - 0.005, "{figures:?} {long:?}");
}

#[test]
fn a_stampede_to_the_origin_is_spread_when_what_everybody_waited_for_does_not_come() {
    // The most requests in any tenth of a second, of three runs together.
    let worst = |ablations: &[&str]| -> u32 {
        (1..=3).map(|seed| simulate("liars", 200, seed, 75.0, ablations).requests_100ms_max).sum()
    };
    let spread = worst(&[]);
    assert!(spread < 150, "{spread} of 600");
    // The control: those who wait for the same block ask in the same moment.
    let at_once = worst(&["spread=0"]);
    assert!(at_once > 2 * spread, "{at_once} against {spread}");
}

/// The control of the quality gate: without pushing it is missed, so the gate measures what it is meant to.
#[test]
fn without_pushing_less_comes_from_peers_or_later() {
    let pulled = simulate("steady-ll", 60, 1, 45.0, &["no-push"]);
    let pushed = simulate("steady-ll", 60, 1, 45.0, &[]);
    assert!(
        pulled.offload + 0.02 < pushed.offload && pulled.arrival_p50_ms > pushed.arrival_p50_ms,
        "{pulled:?} {pushed:?}"
    );
}

#[test]
fn playback_survives_without_tracker() {
    let figures = simulate("tiny", 4, 1, 40.0, &["no-tracker"]);
    assert!(figures.offload.abs() < 0.05, "nobody meets anybody: {}", figures.offload);
    assert!(figures.rebuffer_ratio < 0.001, "rebuffering {}", figures.rebuffer_ratio);
}

#[test]
fn an_origin_that_was_away_is_not_stormed_and_nobody_waits_for_what_others_have() {
    let figures = simulate("origin-stall", 60, 1, 110.0, &[]);
    assert!(figures.rebuffer_ratio > 0.05, "it was away: {}", figures.rebuffer_ratio);
    assert!(figures.origin_peak_over_mean < 2.3, "peak {}", figures.origin_peak_over_mean);
    assert_eq!(figures.stopped_though_held_s, 0);
}

#[test]
fn a_tracker_that_is_away_for_a_minute_is_not_noticed_by_players() {
    let figures = simulate("tracker-loss", 60, 1, 140.0, &[]);
    assert!(figures.rebuffer_ratio < 0.0001, "rebuffering {}", figures.rebuffer_ratio);
    assert!(figures.offload > 0.96, "offload {}", figures.offload);
}

#[test]
fn newcomers_with_busy_pages_stop_nobody_in_a_tiny_swarm() {
    for viewers in [3, 5] {
        for seed in [1, 2] {
            let figures = simulate("joins", viewers, seed, 90.0, &[]);
            assert_eq!(figures.stalled_viewers, 0, "{viewers} viewers, seed {seed}: {figures:?}");
        }
    }
}

#[test]
fn pages_that_are_short_of_processor_time_play_as_plain_ones_do() {
    let figures = simulate("starved", 8, 1, 90.0, &[]);
    assert!(figures.rebuffer_ratio < 0.0005, "{figures:?}");
    assert!(figures.waste_ratio < 0.08, "{figures:?}");
}

#[test]
fn pages_that_share_although_they_are_short_of_processor_time_load_much_twice() {
    let figures = simulate("starved", 8, 1, 90.0, &["starved=60000"]);
    assert!(figures.waste_ratio > 0.1, "{figures:?}");
}
