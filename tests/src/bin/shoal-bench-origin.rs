//! `cargo xtask bench origin`: the origin under load, in a process of its own, with the clients on the same cores.
//!
//! Prints a table, and one JSON object on its last line. How each figure is taken is said in `infra/README.md`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use parking_lot::Mutex;
use serde_json::json;
use shoal::serve::Server;
use shoal::settings::Settings;
use shoal_tests::origin::client::{Connection, metric};
use shoal_tests::origin::crowd::{Crowd, Key, Outcome, Wants};
use shoal_tests::origin::front::{self, Front};
use shoal_tests::origin::percentile;
use shoal_tests::origin::source::{Part, Source};
use tokio::sync::watch;

/// Segments as the issue of throughput wants them.
const LARGE: (&str, usize) = ("large", 500_000);
/// A low bit rate, so that ten thousand parts at once are within what the cores can copy.
const SMALL: (&str, usize) = ("small", 48_000);
const PARTS_PER_SEGMENT: u64 = 4;
/// Both servers in turn, so that whatever else the machine does meets both.
const ROUNDS: usize = 3;

#[derive(Debug, Parser)]
#[command(about = "The origin under load")]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The server, with two streams made of nothing; for `run`.
    Serve,
    /// Measure.
    Run(Options),
}

#[derive(Clone, Debug, Args)]
struct Options {
    /// Clients that wait for the next part.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Connections of the throughput test.
    #[arg(long, default_value_t = 200)]
    connections: usize,
    /// How long each of its rounds takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Viewers behind the CDN.
    #[arg(long, default_value_t = 1_000)]
    viewers: usize,
    /// Only these: `throughput`, `blocked`, `latency`, `cdn`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> Result<()> {
    // The server's threads are the program's.
    match Cli::parse().action {
        Action::Serve => shoal::runtime::start()?.block_on(serve()),
        Action::Run(options) => tokio::runtime::Runtime::new()?.block_on(run(options)),
    }
}

/// Serves until standard input ends, so that nothing is left behind whatever happens to the parent.
async fn serve() -> Result<()> {
    let mut settings = Settings::default();
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.ingest.media_address = ([127, 0, 0, 1], 0).into();
    settings.validate()?;
    let server = Server::start(&settings).await?;
    println!("{}", server.address());
    let sources = [LARGE, SMALL].map(|(name, bytes)| {
        Source::start(server.streams(), name, bytes, |part| {
            let line = serde_json::to_string(&part).expect("numbers and text");
            // In one write; nobody reading is the end, which standard input tells.
            let _ = writeln!(std::io::stdout(), "{line}");
        })
    });
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = ended.await;
    drop(sources);
    server.stop().await;
    Ok(())
}

/// What the server's process says about a stream.
struct News {
    newest: watch::Sender<Option<Part>>,
    parts: Arc<Mutex<BTreeMap<Key, Part>>>,
}

impl News {
    fn published_us(&self) -> BTreeMap<Key, u64> {
        self.parts.lock().iter().map(|(key, part)| (*key, part.published_us)).collect()
    }
}

struct Origin {
    child: Child,
    address: SocketAddr,
    large: News,
    small: News,
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Origin {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the server")?;
        let mut stdout = BufReader::new(child.stdout.take().context("piped")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the server's address: {line:?}"))?;
        let news = || News { newest: watch::Sender::new(None), parts: Arc::default() };
        let (large, small) = (news(), news());
        let senders = [&large, &small].map(|news| (news.newest.clone(), news.parts.clone()));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(std::result::Result::ok) {
                let Ok(part) = serde_json::from_str::<Part>(&line) else { continue };
                let (newest, parts) = &senders[usize::from(part.stream == SMALL.0)];
                parts.lock().insert((part.msn, part.part), part.clone());
                newest.send_replace(Some(part));
            }
        });
        Ok(Self { child, address, large, small })
    }

    /// Resident memory in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Waits until a stream has a window.
    async fn until_live(&self, news: &News) -> Result<Part> {
        let mut newest = news.newest.subscribe();
        let part = tokio::time::timeout(
            Duration::from_secs(30),
            newest.wait_for(|part| part.as_ref().is_some_and(|part| part.msn >= 8)),
        )
        .await
        .context("the stream does not begin")??
        .clone();
        part.context("waited for")
    }
}

async fn run(options: Options) -> Result<()> {
    let wants = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let origin = Origin::start()?;
    origin.until_live(&origin.large).await?;
    origin.until_live(&origin.small).await?;
    let mut result = json!({});
    if wants("latency") {
        latency(&origin, &mut result).await?;
    }
    if wants("throughput") {
        throughput(&origin, &options, &mut result).await?;
    }
    if wants("blocked") {
        blocked(&origin, &options, &mut result).await?;
    }
    if wants("cdn") {
        cdn(&origin, &options, &mut result).await?;
    }
    println!("{result}");
    Ok(())
}

fn ms(micros: u64) -> f64 {
    (micros as f64 / 100.0).round() / 10.0
}

/// From the part's last frame in to its last byte at a client that waited for it.
async fn latency(origin: &Origin, result: &mut serde_json::Value) -> Result<()> {
    let crowd = Crowd { address: origin.address, viewers: 1, wants: Wants::Part, releases: 24 };
    let outcome = crowd.run(origin.large.newest.subscribe(), PARTS_PER_SEGMENT, || {}).await?;
    ensure!(outcome.errors == 0, "{} requests failed", outcome.errors);
    let parts = origin.large.parts.lock().clone();
    let pushed = parts.iter().map(|(key, part)| (*key, part.pushed_us)).collect();
    let (mut delays, _) = outcome.delays_us(&pushed);
    ensure!(delays.len() >= 20, "only {} parts were seen", delays.len());
    let (p50, p99) = (percentile(&mut delays, 0.5), percentile(&mut delays, 0.99));
    println!("frame in to part at a client       p50 {:>7.1} ms   p99 {:>7.1} ms", ms(p50), ms(p99));
    result["part_latency_p50_ms"] = json!(ms(p50));
    result["part_latency_p99_ms"] = json!(ms(p99));
    Ok(())
}

/// Segments as fast as they come, from us and from nginx.
async fn throughput(origin: &Origin, options: &Options, result: &mut serde_json::Value) -> Result<()> {
    let newest = origin.until_live(&origin.large).await?;
    let folder = newest.uri.rsplit_once('/').context("a part has a folder")?.0;
    let base = format!("/live/{}/{folder}", LARGE.0);
    let files = std::env::temp_dir().join(format!("shoal-bench-files-{}", std::process::id()));
    std::fs::create_dir_all(&files)?;
    let fetched = save(origin, &base, newest.msn, &files).await;
    let measured = match fetched {
        Ok(names) => compare(origin, options, &base, &names, &files).await,
        Err(error) => Err(error),
    };
    std::fs::remove_dir_all(&files)?;
    let (ours, nginx) = measured?;
    let ratio = ours / nginx;
    println!(
        "500 kB segments, {} connections      Shoal {:.0} MB/s   nginx {:.0} MB/s   ratio {ratio:.2}",
        options.connections,
        ours / 1e6,
        nginx / 1e6
    );
    result["nginx_ratio"] = json!((ratio * 100.0).round() / 100.0);
    Ok(())
}

/// The newest complete segments as files: they stay in the window for as long as this takes.
async fn save(origin: &Origin, base: &str, open_msn: u64, folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut connection = Connection::open(origin.address, 128 << 10).await?;
    for msn in open_msn - 6..open_msn {
        let name = format!("seg-{msn}.m4s");
        let (status, body) = connection.get_bytes(&format!("{base}/{name}")).await?;
        ensure!(status == 200, "{name}: status {status}");
        ensure!(body.len().abs_diff(LARGE.1) < LARGE.1 / 10, "{name} has {} bytes", body.len());
        std::fs::write(folder.join(&name), &body)?;
        names.push(name);
    }
    Ok(names)
}

async fn compare(
    origin: &Origin,
    options: &Options,
    base: &str,
    names: &[String],
    files: &Path,
) -> Result<(f64, f64)> {
    let nginx = front::nginx_files(files)?;
    let ours: Vec<String> = names.iter().map(|name| format!("{base}/{name}")).collect();
    let theirs: Vec<String> = names.iter().map(|name| format!("/{name}")).collect();
    let (mut of_us, mut of_nginx) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_us.push(pull(origin.address, &ours, options).await?);
        of_nginx.push(pull(nginx.address, &theirs, options).await?);
    }
    Ok((median(of_us), median(of_nginx)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes per second over all connections.
async fn pull(address: SocketAddr, paths: &[String], options: &Options) -> Result<f64> {
    let bytes = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(options.seconds + 1);
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..options.connections {
        let (bytes, paths) = (bytes.clone(), paths.to_vec());
        tasks.spawn(async move {
            let mut connection = Connection::open(address, 128 << 10).await?;
            let mut at = index;
            while Instant::now() < end {
                let answer = connection.get(&paths[at % paths.len()]).await?;
                ensure!(answer.status == 200, "status {}", answer.status);
                bytes.fetch_add(answer.bytes, Ordering::Relaxed);
                at += 1;
            }
            Ok(())
        });
    }
    // The first second is for connecting.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before) = (Instant::now(), bytes.load(Ordering::Relaxed));
    tokio::time::sleep_until(end.into()).await;
    let rate = (bytes.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(rate)
}

/// Ten thousand clients that wait.
async fn blocked(origin: &Origin, options: &Options, result: &mut serde_json::Value) -> Result<()> {
    for (wants, name, key) in [
        (Wants::Playlist, "playlist with the next part", "blocked"),
        (Wants::Part, "the next part (12 kB)", "blocked_part"),
    ] {
        let before = origin.memory();
        let crowd = Crowd { address: origin.address, viewers: options.clients, wants, releases: 17 };
        let peak = Arc::new(AtomicU64::new(0));
        let watching = tokio::spawn({
            let (peak, pid) = (peak.clone(), origin.child.id());
            async move {
                loop {
                    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                    let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
                    peak.fetch_max(kb.unwrap_or(0) * 1024, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        let outcome = crowd.run(origin.small.newest.subscribe(), PARTS_PER_SEGMENT, || {}).await;
        watching.abort();
        let outcome: Outcome = outcome?;
        let bytes = (peak.load(Ordering::Relaxed).saturating_sub(before)) / options.clients as u64;
        let (mut each, mut last) = outcome.delays_us(&origin.small.published_us());
        ensure!(each.len() > options.clients, "nobody was answered; {} errors", outcome.errors);
        let (p50, p99) = (percentile(&mut last, 0.5), percentile(&mut last, 0.99));
        println!(
            "{} clients, {name:<28} last client p50 {:.0} ms p99 {:.0} ms   each client p50 {:.0} ms p99 {:.0} ms   \
             {bytes} bytes each   {} errors",
            options.clients,
            ms(p50),
            ms(p99),
            ms(percentile(&mut each, 0.5)),
            ms(percentile(&mut each, 0.99)),
            outcome.errors
        );
        result[key] = json!({
            "clients": options.clients,
            "release_p50_ms": ms(p50),
            "release_p99_ms": ms(p99),
            "client_p50_ms": ms(percentile(&mut each, 0.5)),
            "client_p99_ms": ms(percentile(&mut each, 0.99)),
            "bytes_per_client": bytes,
            "errors": outcome.errors,
        });
    }
    Ok(())
}

/// Viewers behind a CDN: what they cost the origin, and how much later they have a part.
async fn cdn(origin: &Origin, options: &Options, result: &mut serde_json::Value) -> Result<()> {
    let direct = one_by(origin, origin.address, 1).await?.0;
    println!("{:<34} p50 {:>7.1} ms   p99 {:>7.1} ms", "1 viewer, no CDN", ms(direct.0), ms(direct.1));
    // The same crowd without a CDN: what is left is the CDN's, and not the crowd's on the same two cores.
    let crowd = one_by(origin, origin.address, options.viewers).await?.0;
    let name = format!("{} viewers, no CDN", options.viewers);
    println!("{name:<34} p50 {:>7.1} ms   p99 {:>7.1} ms", ms(crowd.0), ms(crowd.1));
    let mut all = json!({
        "direct_1_p50_ms": ms(direct.0),
        "direct_1_p99_ms": ms(direct.1),
        "direct_p50_ms": ms(crowd.0),
        "direct_p99_ms": ms(crowd.1),
    });
    for name in ["varnish", "nginx"] {
        let start = if name == "nginx" { front::nginx } else { front::varnish };
        let front: Front = start(origin.address)?;
        let ((p50, p99), cost) = one_by(origin, front.address, options.viewers).await?;
        println!(
            "{:<34} p50 {:>7.1} ms   p99 {:>7.1} ms   {cost:.2} requests to the origin for each object",
            format!("{} viewers behind {name}", options.viewers),
            ms(p50),
            ms(p99)
        );
        all[name] = json!({
            "viewers": options.viewers,
            "p50_ms": ms(p50),
            "p99_ms": ms(p99),
            "origin_requests_per_object": (cost * 1000.0).round() / 1000.0,
        });
    }
    result["cdn"] = all;
    Ok(())
}

/// The delays of viewers that fetch playlists and parts, and what they cost the origin for each object.
async fn one_by(origin: &Origin, address: SocketAddr, viewers: usize) -> Result<((u64, u64), f64)> {
    let requests = || async {
        let mut sum = 0.0;
        for class in ["class=\"playlist\"", "class=\"part\""] {
            sum += metric(origin.address, "origin_requests_total", class).await?;
        }
        anyhow::Ok(sum)
    };
    let before = requests().await?;
    let crowd = Crowd { address, viewers, wants: Wants::Both, releases: 17 };
    let outcome = crowd.run(origin.small.newest.subscribe(), PARTS_PER_SEGMENT, || {}).await?;
    if outcome.errors > 0 {
        bail!("{} requests of {viewers} viewers failed", outcome.errors);
    }
    let objects = outcome.playlists.len() + outcome.parts.len();
    let cost = (requests().await? - before) / objects as f64;
    let (mut each, _) = outcome.delays_us(&origin.small.published_us());
    Ok(((percentile(&mut each, 0.5), percentile(&mut each, 0.99)), cost))
}
