//! The tracker is killed under its viewers and started again: nobody is lost, and they come back at the pace that it
//! allows. The same with thousands of viewers: `cargo xtask bench tracker`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use shoal_tracker::{Config, Tracker};
use shoal_tracker_protocol::{PeerId, TrackerMessage, ViewerMessage};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

const VIEWERS: u32 = 60;
const JOINS_PER_S: u32 = 30;
/// What the limit lets through at once when nobody has joined for a while.
const BURST: u32 = 16;
const PATIENCE: Duration = Duration::from_secs(60);

/// A tracker with a runtime of its own, so that all of it can be killed at once.
struct Victim {
    runtime: Runtime,
    address: SocketAddr,
}

impl Victim {
    async fn start(port: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config =
            Config { secret: "ab".repeat(32).into(), joins_per_s_max: JOINS_PER_S, ..Config::default() };
        let serving = runtime.spawn(async move {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let tracker = Tracker::new(config).unwrap();
            tracker.stream_started("demo", [1; 16]);
            let service = tracker.router().into_make_service_with_connect_info::<SocketAddr>();
            tokio::spawn(async move { axum::serve(listener, service).await });
            address
        });
        let address = serving.await.unwrap();
        Self { runtime, address }
    }

    /// Ends all of its tasks where they are, and waits until their sockets are closed.
    async fn kill(self) {
        let shutdown = move || self.runtime.shutdown_timeout(PATIENCE);
        tokio::task::spawn_blocking(shutdown).await.unwrap();
    }
}

/// What a viewer remembers.
#[derive(Default)]
struct Memory {
    peer: PeerId,
    resume: Option<String>,
}

/// Joins, as often as the tracker wants, until it is welcome; then stays until its connection breaks.
async fn stay(
    address: SocketAddr,
    memory: &mut Memory,
    welcomed: impl FnOnce(PeerId),
) -> Result<(), Duration> {
    let backoff = || Duration::from_millis(u64::from(rand::random::<u16>() % 1_000));
    let url = format!("ws://{address}/tracker");
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.map_err(|_| backoff())?;
    let join = ViewerMessage::Join {
        version: 1,
        stream: "demo".into(),
        token: None,
        resume: memory.resume.clone(),
        shares: true,
        renditions: vec![0],
    };
    let join = serde_json::to_string(&join).unwrap();
    socket.send(Message::text(join)).await.map_err(|_| backoff())?;
    let mut welcomed = Some(welcomed);
    while let Some(Ok(Message::Text(text))) = socket.next().await {
        match serde_json::from_str(&text).unwrap() {
            TrackerMessage::Welcome(welcome) => {
                *memory = Memory { peer: welcome.peer, resume: Some(welcome.resume) };
                if let Some(welcomed) = welcomed.take() {
                    welcomed(memory.peer);
                }
            }
            TrackerMessage::Error { retry_after_ms: Some(wait_ms), .. } => {
                return Err(Duration::from_millis(wait_ms.into()));
            }
            _ => {}
        }
    }
    if welcomed.is_none() { Ok(()) } else { Err(backoff()) }
}

#[tokio::test]
async fn viewers_of_a_killed_tracker_are_all_back_at_the_pace_that_it_allows() {
    let victim = Victim::start(0).await;
    let address = victim.address;
    let (news, mut welcomes) = tokio::sync::mpsc::unbounded_channel();
    let mut viewers = JoinSet::new();
    for _ in 0..VIEWERS {
        let news = news.clone();
        viewers.spawn(async move {
            let mut memory = Memory::default();
            loop {
                let before = memory.peer;
                let tell = |peer| {
                    let _ = news.send((Instant::now(), before, peer));
                };
                let result = stay(address, &mut memory, tell).await;
                if let Err(wait) = result {
                    sleep(wait).await;
                }
            }
        });
    }
    let mut wait_for_all = async || {
        let mut all = Vec::new();
        for _ in 0..VIEWERS {
            all.push(timeout(PATIENCE, welcomes.recv()).await.expect("somebody is lost").unwrap());
        }
        all
    };
    wait_for_all().await;
    victim.kill().await;
    let restarted = Instant::now();
    let victim = Victim::start(address.port()).await;
    let back = wait_for_all().await;
    assert!(back.iter().all(|(_, before, after)| before == after), "all have their old places");
    let last = back.iter().map(|(at, ..)| *at).max().unwrap();
    let took = last - restarted;
    assert!(took < Duration::from_secs(15), "{took:?}");
    let fastest = Duration::from_secs_f64(f64::from(VIEWERS - BURST) / f64::from(JOINS_PER_S));
    assert!(took >= fastest, "{took:?}: faster than the tracker allows");
    viewers.shutdown().await;
    victim.kill().await;
}
