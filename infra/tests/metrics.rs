//! `/metrics` as a monitoring system reads it: every metric explains itself, and counters are there before they count.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use support::{Running, Serving, shoal, until};

/// The metrics of a scrape, each with its type, whether it has help, and the names of its lines.
#[derive(Debug, Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    helped: BTreeSet<String>,
    lines: BTreeSet<String>,
}

impl Scrape {
    fn read(answer: &str) -> Self {
        let mut scrape = Self::default();
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        for line in body.lines().filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", name, help] if !help.is_empty() => {
                    assert!(scrape.helped.insert(name.to_owned()), "{name} is explained twice");
                }
                ["#", "TYPE", name, kind] => {
                    let before = scrape.types.insert(name.to_owned(), kind.to_owned());
                    assert_eq!(before, None, "{name} is of two types");
                }
                _ => {
                    let name = line.split(['{', ' ']).next().expect("a line has a beginning");
                    scrape.lines.insert(name.to_owned());
                }
            }
        }
        scrape
    }

    /// The metrics that lack a type or help.
    fn unexplained(&self) -> Vec<&str> {
        let of = |line: &str| {
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| line.strip_suffix(end));
            let histogram =
                histogram.filter(|name| self.types.get(*name).is_some_and(|kind| kind == "histogram"));
            histogram.unwrap_or(line).to_owned()
        };
        let is_explained = |name: &str| self.types.contains_key(name) && self.helped.contains(name);
        self.lines.iter().map(String::as_str).filter(|line| !is_explained(&of(line))).collect()
    }
}

#[test]
fn every_metric_is_explained_and_counters_begin_with_zero() {
    let serving = Serving::start(&mut shoal());
    let fresh = serving.get("/metrics");
    assert_eq!(Scrape::read(&fresh).unexplained(), [""; 0], "{fresh}");
    for line in [
        "http_connections_refused_total 0",
        "serve_events_missed_total 0",
        "ingest_sessions 0",
        "ingest_frames_dropped_total{kind=\"video\",reason=\"incomplete\"} 0",
        "segmenter_frames_dropped_total{reason=\"queue_full\"} 0",
        "segmenter_recordings_failed_total 0",
        "storage_errors_total 0",
        "tracker_bans_total 0",
        "tracker_connections_refused_total{why=\"full\"} 0",
        "tracker_rooms_restarted_total 0",
    ] {
        assert!(fresh.lines().any(|found| found == line), "{line} is not in\n{fresh}");
    }
    // Nobody knows how much room there is where nothing is stored.
    assert!(!fresh.contains("storage_free_bytes"), "{fresh}");

    // Those that come with a stream and its viewers.
    let _publisher = serving.publish("demo", &[]);
    let mut viewers = shoal();
    viewers.args(["watch", &serving.url("/watch/demo"), "--count", "2"]);
    let _viewers = Running::start(viewers.stdout(Stdio::null()).stderr(Stdio::null()));
    until("viewers", || (serving.metric("tracker_viewers", "") > 1.0).then_some(()));
    until("figures of the publisher", || (serving.metric("ingest_frames_total", "") > 1.0).then_some(()));
    let later = serving.get("/metrics");
    let scrape = Scrape::read(&later);
    assert_eq!(scrape.unexplained(), [""; 0], "{later}");
    for name in ["segmenter_media_bytes_total", "origin_sent_bytes_total", "ingest_frame_added_ms_bucket"] {
        assert!(scrape.lines.contains(name), "{name} is not in\n{later}");
    }
}
