//! `bench ingest`: what publishers cost the server, and by how much it delays their frames.
//!
//! One `shoal serve` and one `shoal publish`, which plays prepared pictures so that it costs little, are measured from
//! outside: processor time and memory by the kernel's accounts, the rest by `/metrics`. Every publisher sends 720p at 30
//! pictures per second and 2.5 Mbit/s with Opus; the server copies the pictures and transcodes the sound to AAC.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup::{self, Purpose};
use crate::workspace::Workspace;
use crate::{bench_ffmpeg, node, process};

/// How long it may take until all publishers are live: pictures are prepared first.
const START_MAX: Duration = Duration::from_secs(60);
/// Between being live and the first measurement: first keyframes, formats, segments.
const SETTLE: Duration = Duration::from_secs(5);
/// The kernel's unit of processor time; fixed on Linux, whatever the machine.
const TICKS_PER_SECOND: f64 = 100.0;
/// What is to be reached: percent of a core and MB for each publisher, and milliseconds at the median.
const REACH: (f64, f64, f64) = (4.0, 12.0, 20.0);

/// Runs the bench for each number of publishers, with the given program or one that is built now.
pub(crate) fn run(workspace: &Workspace, counts: &[u32], seconds: u64, program: Option<&Path>) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "the kernel's accounts are read in Linux's way");
    let program = match program {
        Some(program) => program.to_owned(),
        None => {
            setup::everything(workspace, Purpose::Build)?;
            node::build_pages(workspace)?;
            let mut cargo = workspace.cargo();
            process::run(
                "build shoal",
                cargo.args(["build", "--locked", "--release", "--package", "shoal"]),
            )?;
            workspace.target("release/shoal")
        }
    };
    setup::system_packages(workspace, Purpose::Test)?;
    let yardstick = bench_ffmpeg::percent(&workspace.target("bench-ingest"), Duration::from_secs(seconds))?;
    println!(
        "ffmpeg alone, from a file and without a network: {yardstick:.2} % of a core for the same media"
    );
    let mut runs = Vec::new();
    println!(
        "publishers  CPU %/stream  x ffmpeg  (kernel)  generator's  machine busy %  RSS MB/publisher  (code)  + media MB  added ms p50   p99  of it ours p50   p99  lost %  dropped  refused  overrun"
    );
    for &count in counts {
        let run = measure(&program.to_string_lossy(), count, Duration::from_secs(seconds))
            .with_context(|| format!("with {count} publishers"))?;
        println!(
            "{:>10}  {:>12.2}  {:>8.2}  {:>8.2}  {:>11.2}  {:>14.0}  {:>16.1}  {:>6.1}  {:>10.1}  {:>12.1} {:>5.1}  {:>13.1} {:>5.1}  {:>6.2}  {:>7}  {:>7}  {:>7}",
            run.publishers,
            run.cpu_percent,
            run.cpu_percent / yardstick,
            run.kernel_percent,
            run.generator_percent,
            run.busy_percent,
            run.rss_mb,
            run.code_mb,
            run.media_mb,
            run.added_ms.0,
            run.added_ms.1,
            run.worked_ms.0,
            run.worked_ms.1,
            run.lost_percent,
            run.dropped,
            run.refused,
            run.overrun
        );
        runs.push(run);
    }
    println!(
        "to reach: {} % of a core for each stream, {} MB for each publisher beside the media that its playlist lists, \
         {} ms at the median",
        REACH.0, REACH.1, REACH.2
    );
    let runs: Vec<serde_json::Value> = runs.iter().map(Run::json).collect();
    println!("{}", serde_json::json!({ "runs": runs, "ffmpeg_cpu_percent": round(yardstick) }));
    Ok(())
}

struct Run {
    publishers: u32,
    cpu_percent: f64,
    /// Of it, in the kernel: mostly the network.
    kernel_percent: f64,
    /// What each publisher cost its own process; it is not in the figure above.
    generator_percent: f64,
    /// How busy all cores were: near 100, everything else in the line tells of a machine that was too small.
    busy_percent: f64,
    /// What the process grew by, for each publisher, less the media.
    rss_mb: f64,
    code_mb: f64,
    media_mb: f64,
    /// From a frame's first packet until the segmenter had it; median and 99th percentile.
    added_ms: (f64, f64),
    /// From its last.
    worked_ms: (f64, f64),
    lost_percent: f64,
    /// Frames.
    dropped: u64,
    /// Datagrams for which a session had no room.
    refused: u64,
    /// Datagrams for which the socket had none.
    overrun: u64,
}

impl Run {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "publishers": self.publishers,
            "cpu_percent_per_stream": round(self.cpu_percent),
            "generator_cpu_percent_per_stream": round(self.generator_percent),
            "machine_busy_percent": round(self.busy_percent),
            "rss_mb_per_publisher": round(self.rss_mb),
            "code_mb_per_publisher": round(self.code_mb),
            "media_mb_per_publisher": round(self.media_mb),
            "added_latency_p50_ms": round(self.added_ms.0),
            "added_latency_p99_ms": round(self.added_ms.1),
            "after_last_packet_p50_ms": round(self.worked_ms.0),
            "after_last_packet_p99_ms": round(self.worked_ms.1),
            "lost_percent": round(self.lost_percent),
            "frames_dropped": self.dropped,
            "datagrams_refused": self.refused,
            "datagrams_overrun": self.overrun,
        })
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A child that does not outlive the bench, however that ends.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(program: &str, count: u32, span: Duration) -> Result<Run> {
    let mut server = start_server(program)?;
    let port = port(&mut server.0)?;
    let before = resident(server.0.id())?;
    let publisher = start_publishers(program, port, count)?;
    until_live(port, count)?;
    std::thread::sleep(SETTLE);
    let first = Moment::take(&server, &publisher, port)?;
    std::thread::sleep(span);
    let last = Moment::take(&server, &publisher, port)?;
    let after = resident(server.0.id())?;
    drop(publisher);
    figures(count, [&first, &last], [&before, &after])
}

fn start_server(program: &str) -> Result<Guard> {
    let server = Command::new(program)
        .arg("serve")
        .env("SHOAL_HTTP_LISTEN", "127.0.0.1:0")
        .env("SHOAL_INGEST_MEDIA_ADDRESS", "127.0.0.1:0")
        .env("SHOAL_INGEST_SESSIONS_MAX", "1024")
        .env("SHOAL_SEGMENTER_STREAMS_MAX", "1024")
        .env("SHOAL_INGEST_REQUESTS_PER_S_MAX", "1000")
        .env("SHOAL_INGEST_REQUESTS_BURST_MAX", "1000")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    server.map(Guard).context("start shoal serve")
}

fn start_publishers(program: &str, port: u16, count: u32) -> Result<Guard> {
    let publisher = Command::new(program)
        .args(["publish", "test-pattern", &format!("http://127.0.0.1:{port}/whip/bench-{{n}}")])
        .args(["--count", &count.to_string(), "--size", "1280x720", "--fps", "30", "--bitrate", "2500k"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    publisher.map(Guard).context("start shoal publish")
}

/// Waits until each publisher has a session and parts.
fn until_live(port: u16, count: u32) -> Result<()> {
    let begun = Instant::now();
    while scrape(port)?.sum("ingest_sessions") < f64::from(count)
        || scrape(port)?.lines("segmenter_parts_total") < count as usize
    {
        ensure!(begun.elapsed() < START_MAX, "not all publishers are live after {START_MAX:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// What has been counted up to a moment.
struct Moment {
    /// Processor time of the server, in user and kernel mode.
    server: (f64, f64),
    generator: (f64, f64),
    machine: (f64, f64),
    overrun: u64,
    at: Instant,
    metrics: Metrics,
}

impl Moment {
    fn take(server: &Guard, publisher: &Guard, port: u16) -> Result<Self> {
        Ok(Self {
            server: cpu_seconds(server.0.id())?,
            generator: cpu_seconds(publisher.0.id())?,
            machine: machine_ticks()?,
            overrun: overruns()?,
            at: Instant::now(),
            metrics: scrape(port)?,
        })
    }
}

/// What came to pass between two moments, and how much larger the server is with its publishers.
fn figures(count: u32, [first, last]: [&Moment; 2], [before, after]: [&Resident; 2]) -> Result<Run> {
    let publishers = f64::from(count);
    let elapsed = last.at.duration_since(first.at).as_secs_f64();
    let grown = |name: &str| last.metrics.sum(name) - first.metrics.sum(name);
    let percent = |seconds: f64| seconds / elapsed * 100.0 / publishers;
    let mb = |bytes: f64| bytes / 1e6 / publishers;
    let both = |(user, kernel): (f64, f64)| user + kernel;
    // Younger than the live window: everything that was published is held.
    let media = last.metrics.sum("segmenter_media_bytes_total");
    let (packets, lost) = (grown("ingest_packets_total"), grown("ingest_packets_lost_total"));
    ensure!(packets > 0.0, "nothing was received");
    let (idle, all) = (last.machine.0 - first.machine.0, last.machine.1 - first.machine.1);
    Ok(Run {
        publishers: count,
        cpu_percent: percent(both(last.server) - both(first.server)),
        kernel_percent: percent(last.server.1 - first.server.1),
        generator_percent: percent(both(last.generator) - both(first.generator)),
        busy_percent: 100.0 * (1.0 - idle / all.max(1.0)),
        rss_mb: mb((after.bytes - before.bytes) as f64 - media),
        code_mb: mb((after.of_files - before.of_files) as f64),
        media_mb: mb(media),
        added_ms: last.metrics.quantiles("ingest_frame_added_ms", &first.metrics),
        worked_ms: last.metrics.quantiles("ingest_frame_worked_ms", &first.metrics),
        lost_percent: 100.0 * lost / (packets + lost),
        dropped: (grown("ingest_frames_dropped_total") + grown("ingest_inputs_refused_total")) as u64,
        refused: grown("ingest_datagrams_refused_total") as u64,
        overrun: last.overrun - first.overrun,
    })
}

/// Waits for the server to say where it is.
fn port(server: &mut Child) -> Result<u16> {
    let stdout = server.stdout.take().context("its output is piped")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read from shoal serve")?;
        let tail = line.split_once("publish  http://").and_then(|(_, tail)| tail.split('/').next());
        if let Some(port) = tail.and_then(|host| host.rsplit(':').next()?.parse().ok()) {
            return Ok(port);
        }
    }
    bail!("shoal serve ended before it was ready")
}

/// Processor time in user and kernel mode.
pub(crate) fn cpu_seconds(pid: u32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // The name, in parentheses, may have spaces; utime and stime are the 14th and 15th field.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) / TICKS_PER_SECOND, ticks(12) / TICKS_PER_SECOND))
}

/// What all cores have idled, and all their time.
fn machine_ticks() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let fields = text.lines().next().unwrap_or("").split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in user already.
    let ticks: Vec<f64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
    ensure!(ticks.len() == 8, "/proc/stat has another form");
    Ok((ticks[3] + ticks[4], ticks.iter().sum()))
}

/// Datagrams that found a full receive buffer, of all sockets of this machine.
fn overruns() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/snmp").context("read /proc/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut columns = names.split(' ').zip(values.split(' '));
    let found = columns.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok());
    found.context("no RcvbufErrors")
}

/// The process's resident memory in bytes, and how much of it is pages of files: the program's and its libraries' code,
/// which the kernel shares between processes and takes back when it needs room.
struct Resident {
    bytes: i64,
    of_files: i64,
}

fn resident(pid: u32) -> Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("shoal serve is gone")?;
    let bytes = |name: &'static str| -> Result<i64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
        let kilobytes: i64 = line.trim().trim_end_matches(" kB").parse().context(name)?;
        Ok(kilobytes * 1024)
    };
    Ok(Resident { bytes: bytes("VmRSS:")?, of_files: bytes("RssFile:")? })
}

/// `/metrics` at one moment, by line.
struct Metrics(BTreeMap<String, f64>);

fn scrape(port: u16) -> Result<Metrics> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to shoal serve")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read /metrics")?;
    let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(Metrics(values.collect()))
}

impl Metrics {
    fn of(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        let is_it = move |line: &str| {
            line.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.0.iter().filter(move |(line, _)| is_it(line)).map(|(line, value)| (line.as_str(), *value))
    }

    fn sum(&self, name: &str) -> f64 {
        self.of(name).map(|(_, value)| value).sum()
    }

    fn lines(&self, name: &str) -> usize {
        self.of(name).count()
    }

    /// A histogram's median and 99th percentile since an earlier moment, interpolated within its buckets.
    fn quantiles(&self, name: &str, since: &Self) -> (f64, f64) {
        let bucket = format!("{name}_bucket");
        let mut counts: Vec<(f64, f64)> = self
            .of(&bucket)
            .filter_map(|(line, count)| {
                let bound = line.split("le=\"").nth(1)?.split('"').next()?.parse().ok()?;
                Some((bound, count - since.0.get(line).copied().unwrap_or(0.0)))
            })
            .collect();
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        (quantile(&counts, 0.5), quantile(&counts, 0.99))
    }
}

/// The value below which this share of cumulative bucket counts lies.
fn quantile(counts: &[(f64, f64)], share: f64) -> f64 {
    let Some(&(_, all)) = counts.last().filter(|(_, all)| *all > 0.0) else { return f64::NAN };
    let wanted = all * share;
    let (mut lower, mut below) = (0.0, 0.0);
    for &(bound, count) in counts {
        if count >= wanted {
            let inside = if count > below { (wanted - below) / (count - below) } else { 1.0 };
            return if bound.is_finite() { lower + (bound - lower) * inside } else { lower };
        }
        (lower, below) = (bound, count);
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let counts = [(1.0, 10.0), (2.0, 60.0), (5.0, 100.0), (f64::INFINITY, 100.0)];
        assert!((quantile(&counts, 0.5) - 1.8).abs() < 1e-9);
        assert!((quantile(&counts, 0.99) - 4.925).abs() < 1e-9);
        assert!(quantile(&[], 0.5).is_nan());
        assert!((quantile(&[(1.0, 0.0), (f64::INFINITY, 4.0)], 0.5) - 1.0).abs() < 1e-9);
    }
}
