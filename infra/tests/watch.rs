//! `shoal watch` beside `shoal serve`: a helper gives, and whoever is stopped takes leave.

mod support;

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Running, Serving, shoal, until};

/// What `--store-mb 1` allows.
const STORE_BYTES: u64 = 1024 * 1024;

/// Publishes the stream "show" with 2 Mbit/s: four seconds of it are as much as the store above keeps.
fn publish(serving: &Serving) -> Running {
    let mut command = shoal();
    command.args(["publish", "test-pattern", &serving.url("/whip/show")]);
    command.args(["--size", "640x360", "--bitrate", "2000k"]).stderr(Stdio::null());
    let publisher = Running::start(&mut command);
    until("the stream", || serving.playlist("show").filter(|text| text.contains("#EXTINF")));
    publisher
}

/// Viewers of the stream "show".
fn watch(serving: &Serving, flags: &[&str]) -> Running {
    let mut command: Command = shoal();
    command.arg("watch").arg(serving.url("/watch/show")).args(flags);
    Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()))
}

/// Stops viewers and gives what they print at the end.
fn sum(viewers: Running) -> Value {
    serde_json::from_str(viewers.finish().trim()).expect("it ends with JSON")
}

#[test]
fn a_helper_gives_what_a_viewer_plays_and_keeps_to_its_store() {
    // Viewers report every 5 s, unless they are told to do it more often.
    let serving = Serving::start(shoal().env("SHOAL_TRACKER_REPORT_INTERVAL_MS", "500"));
    let _publisher = publish(&serving);
    let helper = watch(&serving, &["--seed", "--uplink-kbps", "20000", "--store-mb", "1"]);
    until("the helper", || (serving.metric("tracker_viewers", "") > 0.0).then_some(()));
    // It gives nothing, so that what comes from peers is the helper's.
    let viewer = watch(&serving, &["--no-share"]);
    // More than it may keep.
    let enough = 1.5 * STORE_BYTES as f64;
    until("bytes from the helper", || {
        (serving.metric("tracker_reported_peer_bytes_total", "") > enough).then_some(())
    });
    let (viewer, helper) = (sum(viewer), sum(helper));
    let bytes = |sum: &Value, key: &str| sum[key].as_u64().expect("a number");
    assert_eq!((bytes(&viewer, "playing"), bytes(&helper, "playing")), (1, 0), "a helper plays nothing");
    assert!(bytes(&helper, "sent_bytes") >= bytes(&viewer, "peer_bytes"), "{helper} {viewer}");
    assert!(bytes(&viewer, "peer_bytes") > STORE_BYTES, "{viewer}");
    assert_eq!(bytes(&viewer, "sent_bytes"), 0, "{viewer}");
    assert!((1..=STORE_BYTES).contains(&bytes(&helper, "store_bytes")), "{helper}");
}

#[test]
fn who_is_stopped_takes_leave() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let serving = Serving::start(&mut shoal());
    let _publisher = serving.publish("show", &[]);
    let mut command = shoal();
    command.arg("watch").arg(serving.url("/watch/show")).args(["--log-level", "shoal_player=trace"]);
    let stderr = File::create(&log).expect("the folder is ours");
    let stays = Running::start(command.stdout(Stdio::null()).stderr(stderr));
    let leaves = watch(&serving, &[]);
    // Both ends have said so.
    until("two neighbors", || (serving.metric("tracker_connections_total", "") > 0.0).then_some(()));
    let stopped = Instant::now();
    leaves.stop();
    let needed = stopped.elapsed();
    assert!(needed < Duration::from_secs(5), "it ended after {needed:?}");
    // By a goodbye from the neighbor itself or from the tracker, whichever comes first. Silence is another reason.
    until("the leave", || {
        let log = fs::read_to_string(&log).expect("it was made");
        (log.contains("reason=Left") || log.contains("Part {")).then_some(())
    });
    drop(stays);
}
