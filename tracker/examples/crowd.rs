//! A crowd for the tracker: how much memory an idle viewer takes, how fast viewers can join, how soon they meet.
//!
//! `cargo run -p shoal-tracker --example crowd -- 10000 2000` runs 10,000 viewers that join at 2,000 a second. The
//! server is this program once more in a process of its own, so that its memory is not mixed with the crowd's. Prints a
//! table, then one line of JSON. Viewers are real WebSocket clients on loopback that answer `introduce` as connected
//! viewers do; they exchange no media. Ends by itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use shoal_tracker::{Config, Piece, Tracker};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// How long the crowd stays after the last join; long enough that pairs have met and plans have settled.
const IDLE: Duration = Duration::from_secs(20);
/// The crowd gives up when joining takes longer than this.
const JOINING_MAX: Duration = Duration::from_secs(120);
/// How often a piece is published.
const PIECE_INTERVAL: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve().await,
        Some(viewers) => {
            let viewers = viewers.parse().expect("the first argument is the number of viewers");
            let rate =
                arguments.get(1).map_or(2_000, |rate| rate.parse().expect("the second is joins per second"));
            crowd(viewers, rate).await;
        }
        None => crowd(10_000, 2_000).await,
    }
}

/// The server's process: one stream, a piece each second, until its standard input ends.
async fn serve() {
    let config = Config { joins_per_s_max: 100_000, viewers_max: 100_000, ..Config::default() };
    let tracker = Tracker::new(config).expect("the settings are valid");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    println!("{}", listener.local_addr().expect("it is bound"));
    std::io::stdout().flush().expect("the parent reads");
    tracker.stream_started("demo", [1; 16]);
    let publisher = tracker.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(PIECE_INTERVAL);
        for msn in 0.. {
            interval.tick().await;
            let piece = Piece { rendition: 0, msn, part: 0 };
            publisher.published(
                "demo",
                piece,
                format!("{}/v0/part-{msn}-0.m4s", "0".repeat(32)),
                &[7; 300],
                187_500,
            );
        }
    });
    let service = tracker.router().into_make_service_with_connect_info::<SocketAddr>();
    let serving = tokio::spawn(async move { axum::serve(listener, service).await });
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop))
        .await
        .expect("reading until the end");
    serving.abort();
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        let mut child = command
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server's process starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the server prints its address");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    /// Resident memory in bytes.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.child.id());
        let text = std::fs::read_to_string(path).expect("the server runs");
        let pages: u64 =
            text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("statm has pages");
        pages * 4096
    }

    /// Processor time used, in milliseconds.
    fn cpu_ms(&self) -> u64 {
        let text =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the server runs");
        let fields: Vec<&str> =
            text.rsplit(')').next().expect("stat has a name").split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("ticks");
        (ticks(11) + ticks(12)) * 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends with this, and then the server does.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[derive(Default)]
struct Counts {
    connected: AtomicU64,
    welcomed: AtomicU64,
    introduced: AtomicU64,
    closed: AtomicU64,
    /// From `join` to `welcome`, and from `join` to the first `introduce`, in microseconds.
    welcome_us: Mutex<Vec<u64>>,
    introduce_us: Mutex<Vec<u64>>,
}

async fn crowd(viewers: u64, rate: u64) {
    let server = Server::start();
    let counts = Arc::new(Counts::default());
    // The first connections warm up what every process allocates once.
    let warm = connect(server.address).await.expect("the server answers");
    drop(warm);
    let memory_before = server.memory();
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let stop = tokio_util::sync::CancellationToken::new();
    for number in 0..viewers {
        let due = Duration::from_micros(number * 1_000_000 / rate);
        tokio::time::sleep_until((started + due).into()).await;
        let (counts, stop, address) = (Arc::clone(&counts), stop.clone(), server.address);
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = viewer(address, &counts) => {
                    counts.closed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while counts.welcomed.load(Ordering::Relaxed) < viewers && started.elapsed() < JOINING_MAX {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let joining = started.elapsed();
    let cpu_joining_ms = server.cpu_ms();
    let introduced = counts.introduced.load(Ordering::Relaxed);
    tokio::time::sleep(IDLE).await;
    let memory = server.memory();
    let cpu_idle_ms = server.cpu_ms() - cpu_joining_ms;
    let (welcomed, closed) = (counts.welcomed.load(Ordering::Relaxed), counts.closed.load(Ordering::Relaxed));
    let held = welcomed - closed.min(welcomed);
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    drop(server);

    let bytes_each = memory.saturating_sub(memory_before) / held.max(1);
    let joins_per_s = welcomed as f64 / joining.as_secs_f64();
    let introductions_per_s = introduced as f64 / 2.0 / joining.as_secs_f64();
    let quantile = |times: &Mutex<Vec<u64>>, percent: usize| {
        let mut times = times.lock();
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) * percent / 100).map_or(0.0, |us| *us as f64 / 1_000.0)
    };
    let rows = [
        ("connections held", held.to_string()),
        ("of these lost", closed.to_string()),
        ("memory of each", format!("{bytes_each} bytes")),
        ("joins", format!("{joins_per_s:.0} a second")),
        ("introductions while joining", format!("{introductions_per_s:.0} a second")),
        (
            "welcome p50, p99",
            format!("{:.1} ms, {:.1} ms", quantile(&counts.welcome_us, 50), quantile(&counts.welcome_us, 99)),
        ),
        (
            "first introduction p50, p99",
            format!(
                "{:.1} ms, {:.1} ms",
                quantile(&counts.introduce_us, 50),
                quantile(&counts.introduce_us, 99)
            ),
        ),
        ("server's processor, joining", format!("{cpu_joining_ms} ms in {:.1} s", joining.as_secs_f64())),
        ("server's processor, idle", format!("{cpu_idle_ms} ms in {} s", IDLE.as_secs())),
    ];
    for (name, value) in rows {
        println!("{name:<30} {value}");
    }
    let report = serde_json::json!({
        "connections": held,
        "bytes_per_connection": bytes_each,
        "joins_per_s": joins_per_s.round(),
        "introductions_per_s": introductions_per_s.round(),
        "introduction_p99_ms": quantile(&counts.introduce_us, 99),
    });
    println!("{report}");
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn connect(address: SocketAddr) -> Option<Socket> {
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let config = WebSocketConfig::default().read_buffer_size(4_096).write_buffer_size(0);
    let url = format!("ws://{address}/tracker");
    tokio_tungstenite::client_async_with_config(url, stream, Some(config))
        .await
        .ok()
        .map(|(socket, _)| socket)
}

/// One viewer, until its connection ends.
async fn viewer(address: SocketAddr, counts: &Counts) {
    let Some(mut socket) = connect(address).await else { return };
    counts.connected.fetch_add(1, Ordering::Relaxed);
    let joined = Instant::now();
    let us = || u64::try_from(joined.elapsed().as_micros()).unwrap_or(u64::MAX);
    let join = r#"{"type":"join","version":1,"stream":"demo","shares":true,"renditions":[0]}"#;
    if socket.send(Message::text(join)).await.is_err() {
        return;
    }
    let mut introductions = 0;
    let mut ping = tokio::time::interval(Duration::from_secs(10));
    ping.reset();
    loop {
        let received = tokio::select! {
            received = socket.next() => received,
            _ = ping.tick() => {
                if socket.send(Message::text(r#"{"type":"ping"}"#)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(Ok(Message::Text(text))) = received else { return };
        if text.starts_with(r#"{"type":"welcome""#) {
            counts.welcomed.fetch_add(1, Ordering::Relaxed);
            counts.welcome_us.lock().push(us());
            // Of 2 to 12 Mbit/s each, so that the planner has about twice what the stream needs.
            let uplink_kbps = 2_000 + us() % 10_000;
            let report = format!(
                r#"{{"type":"report","uplink_kbps":{uplink_kbps},"renditions":[0],"buffer_ms":1500,"behind_ms":2000,"peer_bytes":0,"origin_bytes":0,"sent_bytes":0,"waste_bytes":0,"rebuffer_ms":0}}"#
            );
            if socket.send(Message::text(report)).await.is_err() {
                return;
            }
        } else if let Some(rest) = text.strip_prefix(r#"{"type":"introduce","peer":"#) {
            introductions += 1;
            counts.introduced.fetch_add(1, Ordering::Relaxed);
            if introductions == 1 {
                counts.introduce_us.lock().push(us());
            }
            let peer: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let connected = format!(r#"{{"type":"connected","peer":{peer},"rtt_ms":20}}"#);
            if socket.send(Message::text(connected)).await.is_err() {
                return;
            }
        }
    }
}
