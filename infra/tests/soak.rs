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

#[test]
fn memory_descriptors_and_tasks_stay_flat_while_viewers_and_publishers_come_and_go() {
    let seconds: u64 =
        std::env::var("SHOAL_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(90);
    let is_long = seconds >= 600;
    let warm_up = if is_long { 120 } else { 36 };
    let restart = Duration::from_secs(if is_long { 60 } else { 9 });
    // A short window is full within the warm-up.
    let serving = Serving::start(shoal().env("SHOAL_SEGMENTER_WINDOW_MS", "12000"));
    let mut publishers: Vec<Running> =
        (0..3).map(|n| serving.publish(&format!("s{n}"), &["--fps", "15"])).collect();
    let began = Instant::now();
    let (mut restarted, mut restarts, mut round) = (began, 0_u64, 0_u64);
    let mut viewers: Vec<(Running, Instant)> = Vec::new();
    let mut samples: Vec<Sample> = Vec::new();
    // Seen where output is not captured: as progress, and as the bench's table.
    let shown_every = if is_long { 30 } else { 5 };
    eprintln!("{}", Sample::HEADER);
    while began.elapsed() < Duration::from_secs(seconds) {
        // Two groups of viewers at a time, each of another stream and for another time.
        viewers.retain(|(_, until)| Instant::now() < *until);
        while viewers.len() < 2 {
            let mut command = shoal();
            command.arg("watch").arg(serving.url(&format!("/watch/s{}", round % 3)));
            command.args(["--count", "3"]).stdout(Stdio::null()).stderr(Stdio::null());
            viewers.push((Running::start(&mut command), Instant::now() + Duration::from_secs(4 + round % 5)));
            round += 1;
        }
        if restarted.elapsed() > restart {
            let publisher = publishers.remove(0);
            // With a goodbye, which ends the stream, and without one, so that it goes on with a discontinuity.
            if restarts % 2 == 0 {
                drop(publisher)
            } else {
                publisher.stop()
            }
            restarts += 1;
            publishers.insert(0, serving.start_publisher("s0", &["--fps", "15"]));
            restarted = Instant::now();
        }
        // Refused until the server has noticed that the other one is gone.
        if publishers[0].has_ended() {
            publishers[0] = serving.start_publisher("s0", &["--fps", "15"]);
        }
        let sample = sample(&serving, began);
        if samples.last().is_none_or(|last| last.second / shown_every < sample.second / shown_every) {
            eprintln!("{sample}");
        }
        samples.push(sample);
        thread::sleep(Duration::from_secs(1));
    }
    drop((viewers, publishers));

    let measured: Vec<Sample> = samples.iter().copied().filter(|sample| sample.second >= warm_up).collect();
    let third = measured.len() / 3;
    let (first, last) = (&measured[..third], &measured[measured.len() - third..]);
    // Descriptors and tasks come and go with the viewers of the moment; what leaks is there at most moments.
    let figures = [
        ("memory_kb", median(first, |s| s.memory_kb), median(last, |s| s.memory_kb), 6_000),
        ("descriptors", median(first, |s| s.descriptors), median(last, |s| s.descriptors), 8),
        ("tasks", median(first, |s| s.tasks), median(last, |s| s.tasks), 12),
    ];
    let object = figures.map(|(name, before, after, _)| format!("\"{name}\":[{before},{after}]")).join(",");
    // `cargo xtask bench soak` looks for this line, and ends with it.
    println!("\nsoak: {{\"seconds\":{seconds},\"restarts\":{restarts},\"viewers\":{},{object}}}", round * 3);
    // Ten per cent and a little: allocators and crowds breathe, leaks do not stop.
    for (name, before, after, slack) in figures {
        assert!(after <= before + before / 10 + slack, "{name} grew from {before} to {after}");
    }
    // It was a soak: media flowed until the end.
    assert!(measured.iter().all(|sample| sample.tasks > 10));
    assert!(serving.metric("segmenter_media_bytes_total", "") > 1e6);
}
