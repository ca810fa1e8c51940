//! The tracker is killed under its viewers and started again: who comes back, how soon, and how fast they come.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::process::Server;
use crate::table;
use crate::viewer::{self, Counts};

/// Joins a second that the server allows itself: a quarter of the viewers, so that the limit is what holds them back.
const JOINS_PER_S: u64 = 500;
/// How long the tracker is away.
const AWAY: Duration = Duration::from_secs(1);
/// They are given up after this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same before and after, so that places are found again.
const SECRET: &str = "5ec1e75ec1e75ec1e75ec1e75ec1e75ec1e75ec1e75ec1e75ec1e75ec1e75ec1";

pub(crate) async fn run(viewers: u64) -> Value {
    let joins = JOINS_PER_S.to_string();
    let mut server = Server::start(&["serve", "--secret", SECRET, "--joins", &joins]);
    let counts = Arc::new(Counts::default());
    let mut tasks = JoinSet::new();
    for _ in 0..viewers {
        let (counts, address) = (Arc::clone(&counts), server.address);
        tasks.spawn(async move { viewer::faithful(address, &counts).await });
    }
    wait_for(&counts, viewers).await;
    counts.welcomes.lock().clear();
    counts.welcomed.store(0, Ordering::Relaxed);
    let killed = Instant::now();
    let port = server.address.port().to_string();
    server.kill();
    tokio::time::sleep(AWAY).await;
    let server = Server::start(&["serve", "--secret", SECRET, "--joins", &joins, "--port", &port]);
    wait_for(&counts, viewers).await;
    tasks.shutdown().await;
    drop(server);

    let mut welcomes: Vec<(Instant, bool)> = std::mem::take(&mut *counts.welcomes.lock());
    welcomes.sort_unstable();
    let back = welcomes.len();
    let kept = welcomes.iter().filter(|(_, is_same)| *is_same).count();
    let last_s = welcomes.last().map_or(0.0, |(at, _)| (*at - killed).as_secs_f64());
    let most = (0..welcomes.len())
        .map(|first| {
            let end = welcomes[first].0 + Duration::from_secs(1);
            welcomes[first..].partition_point(|(at, _)| *at < end)
        })
        .max()
        .unwrap_or(0);
    // The limit is a bucket that holds a quarter of a second's joins.
    let limit = JOINS_PER_S + JOINS_PER_S / 4;
    let rows = [
        ("viewers when it was killed", viewers.to_string()),
        ("back, with their old place", format!("{back}, {kept}")),
        ("the last after", format!("{last_s:.1} s, of which the tracker was away {} s", AWAY.as_secs())),
        ("joins in the worst second", format!("{most}, allowed {limit}")),
    ];
    table("Killed and restarted", &rows);
    json!({ "viewers": viewers, "back": back, "kept_place": kept, "last_back_s": last_s,
            "joins_in_worst_second": most, "joins_allowed": limit })
}

async fn wait_for(counts: &Counts, viewers: u64) {
    let since = Instant::now();
    while counts.welcomed.load(Ordering::Relaxed) < viewers && since.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
