//! Every metric of the program with what it means, for whoever reads `/metrics` without our documents.
//!
//! The services count where things happen and know nothing of this table; a test compares it with their sources. A
//! counter whose labels are known is there with 0 from the start: an alert on the growth of one that appears with its
//! first event misses that event.

use metrics::{Label, counter, describe_counter, describe_gauge, describe_histogram, gauge};

/// A label and the values that it can have.
type Labeled = (&'static str, &'static [&'static str]);

/// A metric.
struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

enum Kind {
    /// A counter with these labels, which is there from the start with each combination of their values.
    Counter(&'static [Labeled]),
    /// A counter with labels that nobody knows before, such as a stream's name.
    OpenCounter,
    /// A gauge that is 0 until something happens.
    Gauge,
    /// A gauge of what has to be measured first.
    Measured,
    /// In milliseconds.
    Histogram,
}

const fn counter_of(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter(&[]), help }
}

const fn counter_by(name: &'static str, labels: &'static [Labeled], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter(labels), help }
}

const fn open_counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::OpenCounter, help }
}

const fn gauge_of(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}

const fn measured(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Measured, help }
}

const fn histogram_of(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, help }
}

const MEDIA_KIND: Labeled = ("kind", &["audio", "video"]);

const METRICS: &[Metric] = &[
    // The HTTP ports and the process.
    counter_of("http_connections_total", "Connections taken in."),
    gauge_of("http_connections_open", "Connections that are open now."),
    counter_of(
        "http_connections_refused_total",
        "Connections closed at once because of http.connections_max.",
    ),
    counter_of(
        "http_connection_errors_total",
        "Connections that ended with an error, a time-out among them.",
    ),
    counter_of(
        "http_accept_errors_total",
        "Connections that could not be accepted; file descriptors may have run out.",
    ),
    counter_of("http_tls_errors_total", "TLS handshakes that failed or took too long."),
    measured("process_tasks", "Tasks that are alive; flat while viewers come and go, or something leaks."),
    counter_of(
        "serve_events_missed_total",
        "Publications that the tracker was not told of because it was behind; viewers take them from the origin.",
    ),
    // Publishers.
    open_counter("ingest_whip_requests_total", "WHIP requests answered."),
    gauge_of("ingest_sessions", "Publishers that have a session now."),
    counter_by(
        "ingest_sessions_ended_total",
        &[(
            "reason",
            &["deleted", "closed", "vanished", "never_connected", "replaced", "refused", "shutdown"],
        )],
        "Publishers' sessions that ended.",
    ),
    counter_by(
        "ingest_datagrams_refused_total",
        &[("reason", &["not_authentic", "unknown_address", "session_busy", "tcp_connections_max"])],
        "Datagrams, and connections of the TCP port, that reached no session.",
    ),
    counter_of("ingest_udp_errors_total", "Errors of the media port's socket."),
    counter_by("ingest_packets_total", &[MEDIA_KIND], "RTP packets received."),
    counter_by("ingest_packets_lost_total", &[MEDIA_KIND], "RTP packets given up as lost."),
    // What belongs to no track has a kind and a reason of its own, and appears with the first session.
    open_counter("ingest_packets_dropped_total", "RTP packets received in vain."),
    counter_of("ingest_packets_repaired_total", "Missing RTP packets that came in time after all."),
    counter_by("ingest_media_bytes_total", &[MEDIA_KIND], "Bytes of media received."),
    counter_by("ingest_frames_total", &[MEDIA_KIND], "Frames received completely."),
    counter_by(
        "ingest_frames_dropped_total",
        &[
            MEDIA_KIND,
            (
                "reason",
                &["incomplete", "awaiting_keyframe", "malformed", "out_of_order", "same_time", "queue_full"],
            ),
        ],
        "Frames that the segmenter did not get.",
    ),
    counter_of(
        "ingest_inputs_refused_total",
        "Frames and formats that the segmenter's queue had no room for.",
    ),
    counter_of("ingest_keyframe_requests_total", "Keyframes asked of publishers."),
    counter_of("ingest_discontinuities_total", "Breaks in publishers' time."),
    histogram_of("ingest_gop_ms", "Time from one keyframe to the next, in milliseconds."),
    histogram_of(
        "ingest_frame_added_ms",
        "Time from a frame's first packet until the segmenter had the frame, in milliseconds.",
    ),
    histogram_of(
        "ingest_frame_worked_ms",
        "Time from the packet that a frame was complete with until the segmenter had it, in milliseconds.",
    ),
    gauge_of(
        "ingest_frame_held_max_seconds",
        "The longest that a frame of the last second was held, in seconds.",
    ),
    // Parts, segments, the origin.
    open_counter("segmenter_media_bytes_total", "Bytes of parts published, of all renditions."),
    open_counter("segmenter_parts_total", "Parts published, of all renditions."),
    counter_of("segmenter_overflow_total", "Frames refused because a stream's worker was behind."),
    counter_by(
        "segmenter_frames_dropped_total",
        &[(
            "reason",
            &[
                "queue_full",
                "awaiting_keyframe",
                "no_rendition",
                "paused",
                "old_format",
                "waited_too_long",
                "ended",
            ],
        )],
        "Frames that do not come out.",
    ),
    counter_of("segmenter_layers_ignored_total", "Layers that came too late for the multivariant playlist."),
    open_counter(
        "segmenter_over_limit_total",
        "Times that media beyond segmenter.stream_bytes_max could not be let go.",
    ),
    counter_of("segmenter_video_stalls_total", "Segments that audio had to end because no video came."),
    counter_of("segmenter_audio_late_total", "Audio packets that came too late."),
    counter_of("segmenter_audio_broken_total", "Audio packets that could not be decoded."),
    histogram_of("segmenter_transcode_ms", "Time to transcode a VP8 picture, in milliseconds."),
    counter_of(
        "segmenter_transcode_overflow_total",
        "Times that VP8 pictures were dropped up to a keyframe.",
    ),
    counter_of("segmenter_transcode_broken_total", "VP8 pictures that could not be decoded."),
    histogram_of(
        "segmenter_ladder_ms",
        "Time to scale and encode a picture of a smaller rendition, in milliseconds.",
    ),
    counter_of(
        "segmenter_ladder_left_out_total",
        "Frames and pictures left out because the ladder's decoder or encoder was behind.",
    ),
    counter_of("segmenter_ladder_broken_total", "Pictures that the ladder could not decode."),
    counter_of("segmenter_ladder_ended_total", "Rungs of ladders that were given up."),
    counter_of("segmenter_pictures_total", "Posters and thumbnails made."),
    counter_by(
        "segmenter_pictures_failed_total",
        &[("reason", &["unreadable", "no_decoder", "broken", "library"])],
        "Posters and thumbnails that could not be made.",
    ),
    histogram_of("segmenter_picture_ms", "Time to make a poster or thumbnail, in milliseconds."),
    counter_of("segmenter_recordings_failed_total", "Recordings that ended before their stream."),
    counter_of("segmenter_recordings_deleted_total", "Recordings that retention deleted."),
    counter_of("storage_written_bytes_total", "Bytes written to the storage."),
    counter_of("storage_errors_total", "Writes that the storage refused."),
    measured("storage_free_bytes", "Room left in the storage's directory, in bytes."),
    open_counter("origin_sent_bytes_total", "Bytes of bodies that connections took, of live streams."),
    open_counter("origin_requests_total", "Requests for live streams answered, errors included."),
    open_counter("origin_blocked_requests_total", "Requests that had to wait for their playlist or part."),
    counter_of("origin_slow_clients_total", "Segments that left the live window while they were being sent."),
    counter_of("origin_vod_sent_bytes_total", "Bytes of bodies that connections took, of recordings."),
    open_counter("pull_received_bytes_total", "Bytes of media taken from an upstream."),
    open_counter("pull_failures_total", "Requests to an upstream that failed or brought nonsense."),
    open_counter("pull_segments_missed_total", "Segments that could not be had from an upstream."),
    open_counter("pull_restarts_total", "Times that a pulled stream was taken up anew."),
    // Viewers and their swarms.
    gauge_of("tracker_viewers", "Viewers that are connected now."),
    gauge_of("tracker_announce_clients", "WebTorrent clients that are connected now."),
    gauge_of("tracker_swarms", "Swarms that there are now."),
    counter_by(
        "tracker_connections_refused_total",
        &[("why", &["full", "origin", "draining"])],
        "WebSockets that were not let in.",
    ),
    counter_of(
        "tracker_forwarded_untrusted_total",
        "Requests with X-Forwarded-For from a proxy that is not in tracker.trusted_proxies.",
    ),
    counter_of("tracker_joins_total", "Viewers that joined."),
    counter_of("tracker_resumes_total", "Viewers that joined and got their old place back."),
    counter_by(
        "tracker_joins_refused_total",
        &[(
            "code",
            &[
                "malformed",
                "out_of_order",
                "version",
                "unknown_stream",
                "refused",
                "not_introduced",
                "rate_limited",
                "full",
            ],
        )],
        "Viewers that could not join.",
    ),
    counter_by(
        "tracker_tokens_refused_total",
        &[("why", &["missing", "invalid", "other_stream", "used_up"])],
        "Viewer tokens that were refused.",
    ),
    counter_of("tracker_introductions_total", "Pairs of viewers told to meet."),
    counter_of(
        "tracker_introductions_cross_network_total",
        "Pairs of viewers of different networks told to meet.",
    ),
    counter_of(
        "tracker_introductions_withheld_total",
        "Introductions not made because a viewer's network had had its share.",
    ),
    counter_of("tracker_connections_total", "Pairs of viewers that reported an open data channel."),
    counter_of(
        "tracker_connections_cross_network_total",
        "Pairs of viewers that reported an open data channel between networks.",
    ),
    counter_of("tracker_unreachable_total", "Pairs of viewers that could not connect."),
    counter_of("tracker_signals_total", "Offers, answers and candidates passed on."),
    counter_of("tracker_signals_refused_total", "Offers, answers and candidates refused."),
    counter_of("tracker_candidates_stripped_total", "Candidates removed from what was passed on."),
    counter_of("tracker_messages_limited_total", "Messages of viewers over the rate."),
    counter_of("tracker_messages_malformed_total", "Messages of viewers that could not be read."),
    counter_of("tracker_messages_stale_total", "Messages of a connection that was no longer the viewer's."),
    counter_of("tracker_viewers_slow_total", "Viewers shut out because their queue was full."),
    counter_of("tracker_viewers_stalled_total", "Viewers shut out because they took nothing for too long."),
    counter_of("tracker_accusations_total", "Accusations between viewers that counted as evidence."),
    counter_of("tracker_bans_total", "Viewers banned on the evidence of several others."),
    counter_of("tracker_pieces_total", "Pieces that swarms were told of."),
    counter_of("tracker_piece_bytes_total", "Bytes of the pieces that swarms were told of."),
    counter_of(
        "tracker_reported_peer_bytes_total",
        "Verified bytes that viewers said to have had from peers.",
    ),
    counter_of("tracker_reported_origin_bytes_total", "Bytes that viewers said to have had from the origin."),
    counter_of("tracker_reported_waste_bytes_total", "Bytes that viewers said to have had for nothing."),
    counter_of(
        "tracker_reported_rebuffer_ms_total",
        "Time that viewers said to have waited for media, in milliseconds.",
    ),
    counter_of("tracker_rooms_restarted_total", "Tasks of swarms that had ended and were started anew."),
    counter_of("tracker_announces_total", "Announces of WebTorrent clients."),
    counter_of("tracker_announces_limited_total", "Messages of WebTorrent clients over the rate."),
    counter_of("tracker_announces_dropped_total", "Messages that WebTorrent clients had no room for."),
    counter_of(
        "tracker_announces_withheld_total",
        "Introductions of WebTorrent clients not made because an address had had its share.",
    ),
    counter_of("tracker_stun_answers_total", "STUN requests answered."),
    counter_of("tracker_stun_ignored_total", "Datagrams at the STUN port that are no STUN request."),
    gauge_of("tracker_turn_allocations", "Allocations that the relay has now."),
    counter_of("tracker_turn_allocations_total", "Allocations that the relay made."),
    counter_of("tracker_turn_relayed_bytes_total", "Bytes that the relay passed on."),
    counter_of(
        "tracker_turn_dropped_bytes_total",
        "Bytes that the relay dropped because they were over a budget.",
    ),
    counter_of("tracker_turn_unauthorised_total", "Requests to the relay without good credentials."),
    counter_of(
        "tracker_turn_forbidden_total",
        "Requests and datagrams to the relay for peers that must not be reached.",
    ),
    counter_of("tracker_turn_over_quota_total", "Requests to the relay over a quota."),
    counter_of(
        "tracker_turn_tcp_refused_total",
        "Connections to the relay closed because an address had too many.",
    ),
];

/// Tells the recorder what the metrics mean, and makes those that are there from the start.
pub(super) fn describe() {
    for Metric { name, kind, help } in METRICS {
        match kind {
            Kind::Counter(labels) => {
                describe_counter!(*name, *help);
                for labels in combinations(labels) {
                    // Making it is enough: it begins with 0.
                    let _ = counter!(*name, labels);
                }
            }
            Kind::OpenCounter => describe_counter!(*name, *help),
            Kind::Gauge => {
                describe_gauge!(*name, *help);
                gauge!(*name).set(0.0);
            }
            Kind::Measured => describe_gauge!(*name, *help),
            Kind::Histogram => describe_histogram!(*name, *help),
        }
    }
}

/// Each value of each label with each of the others; where there are no labels, one combination of none.
fn combinations(labels: &[Labeled]) -> Vec<Vec<Label>> {
    labels.iter().fold(vec![Vec::new()], |combinations, (label, values)| {
        let with = |value: &&'static str| {
            let label = Label::from_static_parts(label, value);
            combinations.iter().map(move |others| others.iter().cloned().chain([label.clone()]).collect())
        };
        values.iter().flat_map(with).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::{fs, io};

    use super::*;

    /// The sources of the crates that count.
    const SOURCES: &[&str] = &["../ingest/src", "../segmenter/src", "../tracker/src", "src"];

    fn read(folder: &Path, sources: &mut Vec<String>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                read(&path, sources)?;
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("telemetry/table.rs")
            {
                sources.push(fs::read_to_string(path)?);
            }
        }
        Ok(())
    }

    fn sources() -> Vec<String> {
        let mut sources = Vec::new();
        for folder in SOURCES {
            read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut sources).unwrap();
        }
        sources
    }

    /// What stands between quotation marks behind each place where `opening` stands.
    fn quoted_behind<'a>(source: &'a str, opening: &str) -> Vec<&'a str> {
        let behind = source.match_indices(opening).map(|(at, _)| source[at + opening.len()..].trim_start());
        behind.filter_map(|text| text.strip_prefix('"')?.split('"').next()).collect()
    }

    /// The names that a source file has: in quotation marks, and a counter's by its ending, any other's by the macro that it
    /// is given to or, in `ingest`, by standing in the list of names.
    fn names(source: &str) -> Vec<&str> {
        let is_name = |text: &&str| text.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase());
        let counters = source.match_indices("_total\"").map(|(at, ending)| {
            let start = source[..at].rfind('"').map_or(0, |quote| quote + 1);
            &source[start..at + ending.len() - 1]
        });
        let mut names: Vec<&str> = counters.collect();
        for opening in ["counter!(", "gauge!(", "histogram!("] {
            names.extend(quoted_behind(source, opening));
        }
        if source.contains("macro_rules! names") {
            names.extend(quoted_behind(source, " = "));
        }
        names.retain(is_name);
        names
    }

    #[test]
    fn table_has_the_metrics_that_the_crates_have() {
        let sources = sources();
        let used: BTreeSet<&str> = sources.iter().flat_map(|source| names(source)).collect();
        let table: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(table.len(), METRICS.len(), "a name stands there twice");
        let missing: Vec<_> = used.difference(&table).collect();
        let unused: Vec<_> = table.difference(&used).collect();
        assert!(
            missing.is_empty() && unused.is_empty(),
            "not in the table: {missing:?}; in no crate: {unused:?}"
        );
    }

    #[test]
    fn values_of_labels_are_those_of_the_crates() {
        let sources = sources().concat();
        for Metric { name, kind, help } in METRICS {
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            let Kind::Counter(labels) = kind else { continue };
            for (label, values) in *labels {
                for text in values.iter().chain([label]) {
                    assert!(sources.contains(&format!("\"{text}\"")), "{name}: {text}");
                }
            }
        }
    }

    #[test]
    fn each_value_is_combined_with_each_other() {
        let count = |labels| combinations(labels).len();
        assert_eq!(
            (count(&[]), count(&[MEDIA_KIND]), count(&[MEDIA_KIND, ("a", &["b", "c", "d"])])),
            (1, 2, 6)
        );
        let labels = &combinations(&[MEDIA_KIND, ("a", &["b"])])[1];
        let texts: BTreeMap<_, _> = labels.iter().map(|label| (label.key(), label.value())).collect();
        assert_eq!(texts, BTreeMap::from([("kind", "video"), ("a", "b")]));
    }
}
