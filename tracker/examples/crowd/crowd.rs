//! A crowd that comes and stays: memory, joins, introductions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::process::Server;
use crate::table;
use crate::viewer::{self, Counts, Place, quantile_ms};

/// How long the crowd stays after the last join; long enough that pairs have met and plans have settled.
const IDLE: Duration = Duration::from_secs(20);
/// The crowd gives up when joining takes longer than this.
const JOINING_MAX: Duration = Duration::from_secs(120);

pub(crate) async fn run(viewers: u64, rate: u64) -> Map<String, Value> {
    let server = Server::start(&["serve"]);
    let counts = Arc::new(Counts::default());
    // The first connections warm up what every process allocates once.
    let warm = viewer::connect(server.address, "127.0.0.1").await.expect("the server answers");
    drop(warm);
    let memory_before = server.memory();
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    let stop = CancellationToken::new();
    for number in 0..viewers {
        let due = Duration::from_micros(number * 1_000_000 / rate);
        tokio::time::sleep_until((started + due).into()).await;
        let (counts, stop, address) = (Arc::clone(&counts), stop.clone(), server.address);
        tasks.spawn(async move {
            let mut place = Place::default();
            tokio::select! {
                () = stop.cancelled() => {}
                _ = viewer::once(address, &counts, &mut place) => {
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
    // Each introduction is told to two.
    let introductions_per_s = introduced as f64 / 2.0 / joining.as_secs_f64();
    let both = |times| format!("{:.1} ms, {:.1} ms", quantile_ms(times, 50), quantile_ms(times, 99));
    let introduction_p99_ms = quantile_ms(&counts.introduce_us, 99);
    let rows = [
        ("connections held", held.to_string()),
        ("of these lost", closed.to_string()),
        ("memory of each", format!("{bytes_each} bytes")),
        ("joins", format!("{joins_per_s:.0} a second")),
        ("introductions while joining", format!("{introductions_per_s:.0} a second")),
        ("welcome p50, p99", both(&counts.welcome_us)),
        ("first introduction p50, p99", both(&counts.introduce_us)),
        ("server's processor, joining", format!("{cpu_joining_ms} ms in {:.1} s", joining.as_secs_f64())),
        ("server's processor, idle", format!("{cpu_idle_ms} ms in {} s", IDLE.as_secs())),
    ];
    table("A crowd", &rows);
    let mut report = Map::new();
    report.insert("connections".into(), held.into());
    report.insert("bytes_per_connection".into(), bytes_each.into());
    report.insert("joins_per_s".into(), joins_per_s.round().into());
    report.insert("introductions_per_s".into(), introductions_per_s.round().into());
    report.insert("introduction_p99_ms".into(), introduction_p99_ms.into());
    report
}
