//! Three streams, viewers that come and go, a publisher that restarts: memory, file descriptors and tasks of the server
//! stay flat. 90 seconds here; `cargo xtask bench soak` gives the same 20 minutes by SHOAL_SOAK_SECONDS.
#![cfg(target_os = "linux")]

mod support;

use std::fmt;
use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use support::{Running, Serving, shoal};

/// What the server's process holds at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    second: u64,
    memory_kb: u64,
    descriptors: u64,
    tasks: u64,
}

impl Sample {
    const HEADER: &str = "second  memory kB  file descriptors  tasks";
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { second, memory_kb, descriptors, tasks } = self;
        write!(f, "{second:>6}  {memory_kb:>9}  {descriptors:>16}  {tasks:>5}")
    }
}

fn sample(serving: &Serving, began: Instant) -> Sample {
    let process = format!("/proc/{}", serving.process.0.id());
    let status = fs::read_to_string(format!("{process}/status")).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says it");
    Sample {
        second: began.elapsed().as_secs(),
        memory_kb: line.split_whitespace().next().and_then(|kb| kb.parse().ok()).expect("a number"),
        descriptors: fs::read_dir(format!("{process}/fd")).expect("our own child").count() as u64,
        tasks: serving.metric("process_tasks", "") as u64,
    }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// How long it takes, and how often something happens.
struct Plan {
    seconds: u64,
    /// What is before that is not measured.
    warm_up_s: u64,
    restart_interval: Duration,
    /// Samples are seen so often where output is not captured: as progress, and as the bench's table.
    show_interval_s: u64,
}

impl Plan {
    fn from_environment() -> Self {
        let seconds = std::env::var("SHOAL_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
        let seconds = seconds.unwrap_or(90);
        let is_long = seconds >= 600;
        Self {
            seconds,
            warm_up_s: if is_long { 120 } else { 36 },
            restart_interval: Duration::from_secs(if is_long { 60 } else { 9 }),
            show_interval_s: if is_long { 30 } else { 5 },
        }
    }
}

/// So many viewers are in a group.
const GROUP_VIEWERS: u64 = 3;
/// So many streams there are; the first is the one that is restarted.
const STREAMS: u64 = 3;

/// Viewers of one stream, who come and go together.
struct Group {
    process: Running,
    stream: u64,
    until: Instant,
    /// They vanish, instead of leaving.
    is_killed: bool,
}

impl Group {
    fn join(serving: &Serving, round: u64) -> Self {
        let stream = round % STREAMS;
        let mut command = shoal();
        command.arg("watch").arg(serving.url(&format!("/watch/s{stream}")));
        command.args(["--count", &GROUP_VIEWERS.to_string()]).stdout(Stdio::piped()).stderr(Stdio::null());
        Self {
            process: Running::start(&mut command),
            stream,
            until: Instant::now() + Duration::from_secs(4 + round % 5),
            // Of each stream in turn.
            is_killed: round / STREAMS % 2 == 1,
        }
    }

    /// Ends it. Whoever leaves says how it was; those who could not begin, because the stream was not there, have got nothing.
    fn leave(self) -> Option<Outcome> {
        if self.is_killed {
            return None;
        }
        let printed = self.process.finish();
        let sum: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap_or("{}")).ok()?;
        let number = |key: &str| sum.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let bytes = number("peer_bytes") + number("origin_bytes");
        Some(Outcome { stream: self.stream, playing: number("playing"), bytes })
    }
}

/// What became of a group.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    stream: u64,
    playing: u64,
    bytes: u64,
}

/// The server with those who come and go.
struct Soak {
    serving: Serving,
    publishers: Vec<Running>,
    restarted: Instant,
    restarts: u64,
    groups: Vec<Group>,
    rounds: u64,
    outcomes: Vec<Outcome>,
}

impl Soak {
    fn start() -> Self {
        // A short window is full within the warm-up.
        let serving = Serving::start(shoal().env("SHOAL_SEGMENTER_WINDOW_MS", "12000"));
        let publishers = (0..STREAMS).map(|n| serving.publish(&format!("s{n}"), &["--fps", "15"])).collect();
        let (groups, outcomes) = (Vec::new(), Vec::new());
        Self { serving, publishers, restarted: Instant::now(), restarts: 0, groups, rounds: 0, outcomes }
    }

    /// Lets everybody come and go for as long as planned, and looks at the server each second.
    fn run(&mut self, plan: &Plan) -> Vec<Sample> {
        let began = Instant::now();
        let mut samples: Vec<Sample> = Vec::new();
        eprintln!("{}", Sample::HEADER);
        while began.elapsed() < Duration::from_secs(plan.seconds) {
            self.change_viewers();
            self.change_publisher(plan.restart_interval);
            let sample = sample(&self.serving, began);
            let interval = |sample: &Sample| sample.second / plan.show_interval_s;
            if samples.last().is_none_or(|last| interval(last) < interval(&sample)) {
                eprintln!("{sample}");
            }
            samples.push(sample);
            thread::sleep(Duration::from_secs(1));
        }
        samples
    }

    /// Two groups of viewers at a time, each of another stream and for another time.
    fn change_viewers(&mut self) {
        let now = Instant::now();
        for group in self.groups.extract_if(.., |group| group.until <= now) {
            self.outcomes.extend(group.leave());
        }
        while self.groups.len() < 2 {
            self.groups.push(Group::join(&self.serving, self.rounds));
            self.rounds += 1;
        }
    }

    fn change_publisher(&mut self, interval: Duration) {
        if self.restarted.elapsed() > interval {
            let publisher = self.publishers.remove(0);
            // With a goodbye, which ends the stream, and without one, so that it goes on with a discontinuity.
            if self.restarts.is_multiple_of(2) {
                drop(publisher)
            } else {
                publisher.stop()
            }
            self.restarts += 1;
            self.publishers.insert(0, self.serving.start_publisher("s0", &["--fps", "15"]));
            self.restarted = Instant::now();
        }
        // Refused until the server has noticed that the other one is gone.
        if self.publishers[0].has_ended() {
            self.publishers[0] = self.serving.start_publisher("s0", &["--fps", "15"]);
        }
    }
}

/// A figure of the first and of the last third of the time, and by how much the latter may be more beside ten per cent.
struct Figure {
    name: &'static str,
    before: u64,
    after: u64,
    slack: u64,
}

/// Medians: descriptors and tasks come and go with the viewers of the moment; what leaks is there at most moments.
fn figures(measured: &[Sample]) -> [Figure; 3] {
    let third = measured.len() / 3;
    let (first, last) = (&measured[..third], &measured[measured.len() - third..]);
    let figure = |name, of: fn(&Sample) -> u64, slack| Figure {
        name,
        before: median(first, of),
        after: median(last, of),
        slack,
    };
    [
        figure("memory_kb", |sample| sample.memory_kb, 6_000),
        figure("descriptors", |sample| sample.descriptors, 8),
        figure("tasks", |sample| sample.tasks, 12),
    ]
}

/// `cargo xtask bench soak` looks for this line, and ends with it.
fn print(plan: &Plan, soak: &Soak, figures: &[Figure]) {
    let object = |Figure { name, before, after, .. }: &Figure| format!("\"{name}\":[{before},{after}]");
    let object = figures.iter().map(object).collect::<Vec<_>>().join(",");
    let (seconds, restarts, viewers) = (plan.seconds, soak.restarts, soak.rounds * GROUP_VIEWERS);
    println!("\nsoak: {{\"seconds\":{seconds},\"restarts\":{restarts},\"viewers\":{viewers},{object}}}");
}

/// Whoever watched a stream that was always there has played it, and the one that was restarted came back for others.
fn check_viewers(outcomes: &[Outcome]) {
    let (restarted, steady): (Vec<Outcome>, Vec<Outcome>) =
        outcomes.iter().partition(|outcome| outcome.stream == 0);
    assert!(!steady.is_empty(), "nobody left in order");
    for outcome in &steady {
        assert!(outcome.playing > 0 && outcome.bytes > 0, "viewers got nothing: {outcome:?}");
    }
    // Some are slow to begin on a machine that others use too.
    let (playing, all) =
        (steady.iter().map(|outcome| outcome.playing).sum::<u64>(), steady.len() as u64 * GROUP_VIEWERS);
    assert!(playing * 10 >= all * 9, "{playing} of {all} played: {steady:?}");
    assert!(
        restarted.iter().any(|outcome| outcome.playing > 0),
        "the stream did not come back: {restarted:?}"
    );
}

#[test]
fn memory_descriptors_and_tasks_stay_flat_while_viewers_and_publishers_come_and_go() {
    let plan = Plan::from_environment();
    let mut soak = Soak::start();
    let samples = soak.run(&plan);
    let measured: Vec<Sample> =
        samples.into_iter().filter(|sample| sample.second >= plan.warm_up_s).collect();
    let figures = figures(&measured);
    print(&plan, &soak, &figures);
    // Ten per cent and a little: allocators and crowds breathe, leaks do not stop.
    for Figure { name, before, after, slack } in figures {
        assert!(after <= before + before / 10 + slack, "{name} grew from {before} to {after}");
    }
    // It was a soak: media flowed until the end, to viewers.
    assert!(measured.iter().all(|sample| sample.tasks > 10));
    assert!(soak.serving.metric("segmenter_media_bytes_total", "") > 1e6);
    check_viewers(&soak.outcomes);
}
