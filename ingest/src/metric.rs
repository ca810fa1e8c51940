//! The names of this crate's metrics; the README says what they mean.

macro_rules! names {
    ($($name:ident = $text:literal;)*) => {
        $(pub(crate) const $name: &str = $text;)*
        /// All of them, for the test that compares with the README.
        #[cfg(test)]
        pub(crate) const ALL: &[&str] = &[$($text),*];
    };
}

names! {
    REQUESTS = "ingest_whip_requests_total";
    SESSIONS = "ingest_sessions";
    SESSIONS_ENDED = "ingest_sessions_ended_total";
    DATAGRAMS_REFUSED = "ingest_datagrams_refused_total";
    UDP_ERRORS = "ingest_udp_errors_total";
    PACKETS = "ingest_packets_total";
    PACKETS_LOST = "ingest_packets_lost_total";
    PACKETS_DROPPED = "ingest_packets_dropped_total";
    PACKETS_REPAIRED = "ingest_packets_repaired_total";
    MEDIA_BYTES = "ingest_media_bytes_total";
    FRAMES = "ingest_frames_total";
    FRAMES_DROPPED = "ingest_frames_dropped_total";
    INPUTS_REFUSED = "ingest_inputs_refused_total";
    KEYFRAME_REQUESTS = "ingest_keyframe_requests_total";
    DISCONTINUITIES = "ingest_discontinuities_total";
    GOP_MS = "ingest_gop_ms";
    ADDED_MS = "ingest_frame_added_ms";
    WORKED_MS = "ingest_frame_worked_ms";
    HELD_MAX_SECONDS = "ingest_frame_held_max_seconds";
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_lists_every_metric() {
        let readme = include_str!("../README.md");
        for name in super::ALL {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }
}
