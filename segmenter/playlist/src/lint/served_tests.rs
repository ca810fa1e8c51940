//! Seeded violations in what is served: answers, deltas, and media made of boxes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{MULTIVARIANT, change, good};
use super::*;

/// The rules that the tests of this file break.
pub(super) const SEEDED: &[&str] = &[
    "bandwidth-exceeded",
    "unavailable",
    "playlist-type",
    "playlist-not-compressed",
    "blocking-reload-early",
    "directives-unchecked",
    "delta-differs",
    "skip-boundary-broken",
    "init-broken",
    "fragment-broken",
    "decode-time-gap",
    "duration-differs",
    "independent-without-keyframe",
    "segment-without-keyframe",
    "parts-of-other-media",
];

fn has(findings: &[Finding], rule: &str) -> bool {
    findings.iter().any(|finding| finding.rule.id == rule)
}

fn boxed(kind: &[u8; 4], content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    [&u32::try_from(content.len() + 8).unwrap().to_be_bytes()[..], kind, &content].concat()
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// A video track with the id 1 in milliseconds.
fn init() -> Vec<u8> {
    let tkhd = boxed(b"tkhd", &[&numbers(&[0, 0, 0, 1, 0])]);
    let mdhd = boxed(b"mdhd", &[&numbers(&[0, 0, 0, 1000, 0])]);
    let hdlr = boxed(b"hdlr", &[&numbers(&[0, 0]), b"vide", &[0; 13]]);
    let mdia = boxed(b"mdia", &[&mdhd, &hdlr]);
    let trex = boxed(b"trex", &[&numbers(&[0, 1, 1, 0, 0, 0])]);
    let moov = boxed(b"moov", &[&boxed(b"trak", &[&tkhd, &mdia]), &boxed(b"mvex", &[&trex])]);
    [boxed(b"ftyp", &[b"iso6"]), moov].concat()
}

/// Ten samples; the first may be a keyframe.
fn fragment(start_ms: u32, duration_ms: u32, has_keyframe: bool) -> Vec<u8> {
    let tfhd = boxed(b"tfhd", &[&numbers(&[0x2_0028, 1, duration_ms / 10, 0x0101_0000])]);
    let tfdt = boxed(b"tfdt", &[&numbers(&[0, start_ms])]);
    let first = if has_keyframe { 0x0200_0000 } else { 0x0101_0000 };
    let trun = boxed(b"trun", &[&numbers(&[0x5, 10, 0, first])]);
    let moof = boxed(b"moof", &[&boxed(b"traf", &[&tfhd, &tfdt, &trun])]);
    [moof, boxed(b"mdat", &[b"pictures"])].concat()
}

/// Files by URI, read as `shoal lint` reads them.
struct Files {
    init: Option<Init>,
    files: BTreeMap<String, Vec<u8>>,
    missing: Vec<String>,
}

impl Files {
    /// The media of the good playlist: segments from 20 s on, the newest of them in parts too.
    fn good() -> Self {
        let mut files = BTreeMap::new();
        for number in 10..17u32 {
            if number < 16 {
                files.insert(format!("seg-{number}.m4s"), fragment(number * 2000, 2000, true));
            }
            for part in 0..4 {
                let media = fragment(number * 2000 + part * 500, 500, part == 0);
                files.insert(format!("part-{number}-{part}.m4s"), media);
            }
        }
        Self { init: Init::read(&init()), files, missing: Vec::new() }
    }

    fn lint(&self, text: &str) -> Vec<Finding> {
        lint_fragments(text, &self.fetched(), false)
    }

    fn fetched(&self) -> BTreeMap<String, Fetched<'_>> {
        let mut fetched = BTreeMap::new();
        fetched.insert("init-0.mp4".to_owned(), Fetched::Init(self.init.as_ref()));
        for (uri, bytes) in &self.files {
            let media = self.init.as_ref().and_then(|init| Fragment::read(bytes, init));
            fetched.insert(uri.clone(), Fetched::Fragment(media, bytes.len() as u64));
        }
        for uri in &self.missing {
            fetched.insert(uri.clone(), Fetched::Missing(404));
        }
        fetched
    }

    fn with(uri: &str, bytes: Vec<u8>) -> Self {
        let mut files = Self::good();
        files.files.insert(uri.to_owned(), bytes);
        files
    }
}

/// With EXT-X-INDEPENDENT-SEGMENTS.
fn playlist() -> String {
    change(&good(), "#EXT-X-MAP", "#EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-MAP")
}

#[test]
fn good_media_has_no_findings() {
    assert_eq!(Files::good().lint(&playlist()), []);
}

#[test]
fn each_seeded_violation_of_media_is_found_in_its_line() {
    let seeds: &[(&str, &str, Vec<u8>)] = &[
        ("fragment-broken", "seg-12.m4s", b"no media at all".to_vec()),
        ("fragment-broken", "part-15-1.m4s", fragment(30_500, 500, false)[..60].to_vec()),
        ("fragment-broken", "seg-12.m4s", boxed(b"moof", &[])),
        ("decode-time-gap", "seg-12.m4s", fragment(24_002, 2000, true)),
        ("decode-time-gap", "part-15-1.m4s", fragment(30_490, 500, false)),
        ("duration-differs", "seg-12.m4s", fragment(24_000, 1900, true)),
        ("independent-without-keyframe", "part-16-0.m4s", fragment(32_000, 500, false)),
        ("segment-without-keyframe", "seg-12.m4s", fragment(24_000, 2000, false)),
        ("parts-of-other-media", "seg-15.m4s", fragment(90_000, 2000, true)),
    ];
    for (rule, uri, bytes) in seeds {
        let text = playlist();
        let found = Files::with(uri, bytes.clone()).lint(&text);
        let finding = found.iter().find(|finding| finding.rule.id == *rule);
        let finding = finding.unwrap_or_else(|| panic!("{rule} is not found, but {found:?}"));
        assert!(text.lines().nth(finding.line - 1).unwrap().contains(uri), "{finding}");
    }
}

#[test]
fn multivariant_playlists_promise_of_keyframes_is_one_of_every_media_playlist() {
    let files = Files::with("seg-12.m4s", fragment(24_000, 2000, false));
    assert_eq!(lint_fragments(&good(), &files.fetched(), false), []);
    assert!(has(&lint_fragments(&good(), &files.fetched(), true), "segment-without-keyframe"));
}

#[test]
fn missing_files_and_broken_initialization_sections_are_found() {
    for uri in ["init-0.mp4", "seg-11.m4s", "part-14-2.m4s"] {
        let mut files = Files::good();
        files.missing.push(uri.to_owned());
        assert!(has(&files.lint(&playlist()), "unavailable"), "{uri}");
    }
    for broken in [&b"moov"[..], b"", &boxed(b"ftyp", &[b"iso6"]), &init()[12..]] {
        let mut files = Files::good();
        files.init = Init::read(broken);
        assert!(has(&files.lint(&playlist()), "init-broken"));
    }
}

#[test]
fn discontinuities_and_gaps_may_break_the_decode_time() {
    let text = change(&playlist(), "#EXTINF:2.0,\nseg-12", "#EXT-X-DISCONTINUITY\n#EXTINF:2.0,\nseg-12");
    let mut files = Files::good();
    for number in 12..17u32 {
        files.files.insert(format!("seg-{number}.m4s"), fragment(number * 2000 - 24_000, 2000, true));
        for part in 0..4 {
            let media = fragment(number * 2000 - 24_000 + part * 500, 500, part == 0);
            files.files.insert(format!("part-{number}-{part}.m4s"), media);
        }
    }
    assert_eq!(files.lint(&text), []);
    assert!(has(&files.lint(&playlist()), "decode-time-gap"));
}

#[test]
fn segments_above_the_promised_bandwidth_are_found() {
    let peak = |own, audio| {
        let peaks =
            BTreeMap::from([("v0/playlist.m3u8".to_owned(), own), ("a0/playlist.m3u8".to_owned(), audio)]);
        lint_bandwidth(MULTIVARIANT, &peaks)
    };
    assert_eq!(peak(3_600_000, 128_000), []);
    assert!(has(&peak(3_700_000, 128_000), "bandwidth-exceeded"));
    let files = Files::good();
    let bytes = files.files["seg-10.m4s"].len() as u64;
    assert_eq!(peak_bps(&playlist(), &files.fetched()), bytes * 4);
}

fn answer(text: &str) -> Answer<'_> {
    let content_type = "application/vnd.apple.mpegurl";
    Answer { status: 200, content_type, content_encoding: "gzip", text }
}

#[test]
fn each_seeded_violation_of_an_answer_is_found() {
    let text = good();
    assert_eq!(lint_answer(&answer(&text)), []);
    assert!(has(&lint_answer(&Answer { status: 404, ..answer(&text) }), "unavailable"));
    let found = lint_answer(&Answer { content_type: "application/x-mpegURL", ..answer(&text) });
    assert!(has(&found, "playlist-type"));
    let found = lint_answer(&Answer { content_encoding: "", ..answer(&text) });
    assert!(has(&found, "playlist-not-compressed"));
    assert_eq!(lint_answer(&Answer { content_encoding: "", ..answer("#EXTM3U\n") }), []);
}

#[test]
fn each_seeded_violation_of_directives_is_found() {
    let text = good();
    for (asked, is_early) in [
        (Asked::Next(16, Some(1)), false),
        (Asked::Next(15, None), false),
        (Asked::Next(16, Some(2)), true),
        (Asked::Next(16, None), true),
        (Asked::Next(17, Some(0)), true),
    ] {
        let found = lint_directives(asked, &answer(&text));
        assert_eq!(has(&found, "blocking-reload-early"), is_early, "{asked:?}");
    }
    for asked in [Asked::PartAlone, Asked::FarAhead(50)] {
        assert!(has(&lint_directives(asked, &answer(&text)), "directives-unchecked"));
        assert_eq!(lint_directives(asked, &Answer { status: 400, ..answer("") }), []);
    }
}

#[test]
fn each_seeded_violation_of_a_delta_is_found() {
    let old = "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:20.000Z\n#EXTINF:2.0,\nseg-10.m4s\n";
    let full = change(&good(), "CAN-SKIP-UNTIL=12.0", "CAN-SKIP-UNTIL=11.0");
    let delta = change(&full, old, "");
    let delta = change(&delta, "#EXT-X-MAP:URI=\"init-0.mp4\"\n", "#EXT-X-SKIP:SKIPPED-SEGMENTS=1\n");
    assert_eq!(lint_delta(&full, &delta), []);
    let other = change(&delta, "seg-12.m4s", "seg-12-b.m4s");
    assert!(has(&lint_delta(&full, &other), "delta-differs"));
    let skips = change(&delta, "CAN-SKIP-UNTIL=11.0", "CAN-SKIP-UNTIL=12.0");
    assert!(has(&lint_delta(&full, &skips), "skip-boundary-broken"));
}

#[test]
fn outline_leads_a_follower_through_broken_playlists() {
    let outline = Outline::of(&good());
    assert_eq!((outline.next_msn, outline.next_part), (16, 2));
    assert!(outline.can_block && outline.can_skip && outline.has_parts && !outline.is_ended);
    assert_eq!(outline.segments[0].map, "init-0.mp4");
    assert_eq!(outline.segments[6].parts, ["part-16-0.m4s", "part-16-1.m4s"]);
    let encrypted = change(&good(), "#EXT-X-MAP", "#EXT-X-KEY:METHOD=AES-128,URI=\"k\"\n#EXT-X-MAP");
    assert_eq!(Outline::of(&encrypted).segments[0].map, "");
    assert_eq!(media_playlists(&good()), None);
    assert_eq!(media_playlists(MULTIVARIANT).unwrap(), ["a0/playlist.m3u8", "v0/playlist.m3u8"]);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..120, byte: u8, cut in 0usize..200) {
        let init = Init::read(&init()).unwrap();
        prop_assert_eq!(Init::read(&bytes), None);
        let _ = Fragment::read(&bytes, &init);
        let mut damaged = fragment(1000, 500, true);
        if let Some(place) = damaged.get_mut(at) { *place = byte; }
        damaged.truncate(cut);
        let _ = Fragment::read(&damaged, &init);
    }
}
