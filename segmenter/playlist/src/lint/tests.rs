//! A playlist that is right, and for each rule a change that breaks it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Six segments of 2 s, the newest two with parts, and two parts of the next.
pub(super) fn good() -> String {
    let mut text = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n\
        #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL=12.0,HOLD-BACK=6.0,PART-HOLD-BACK=1.5\n\
        #EXT-X-PART-INF:PART-TARGET=0.5\n#EXT-X-MEDIA-SEQUENCE:10\n#EXT-X-DISCONTINUITY-SEQUENCE:1\n\
        #EXT-X-MAP:URI=\"init-0.mp4\"\n"
        .to_owned();
    for number in 10..16 {
        text += &format!("#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:{:02}.000Z\n", number * 2);
        for part in 0..if number >= 14 { 4 } else { 0 } {
            text += &format!("#EXT-X-PART:DURATION=0.5,URI=\"part-{number}-{part}.m4s\"\n");
        }
        text += &format!("#EXTINF:2.0,\nseg-{number}.m4s\n");
    }
    text + "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:32.000Z\n\
        #EXT-X-PART:DURATION=0.5,URI=\"part-16-0.m4s\",INDEPENDENT=YES\n\
        #EXT-X-PART:DURATION=0.5,URI=\"part-16-1.m4s\"\n\
        #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-16-2.m4s\"\n\
        #EXT-X-RENDITION-REPORT:URI=\"../a0/playlist.m3u8\",LAST-MSN=16,LAST-PART=1\n"
}

/// The same, one part later.
fn later() -> String {
    good().replace(
        "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-16-2.m4s\"\n",
        "#EXT-X-PART:DURATION=0.5,URI=\"part-16-2.m4s\"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-16-3.m4s\"\n",
    )
}

pub(super) const MULTIVARIANT: &str = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-INDEPENDENT-SEGMENTS\n\
    #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"Audio\",LANGUAGE=\"en\",URI=\"a0/playlist.m3u8\"\n\
    #EXT-X-STREAM-INF:BANDWIDTH=3000000,AVERAGE-BANDWIDTH=2500000,CODECS=\"avc1.42e01f,mp4a.40.2\",\
    RESOLUTION=1280x720,FRAME-RATE=30.000,AUDIO=\"audio\"\nv0/playlist.m3u8\n";

/// Replaces exactly one place.
pub(super) fn change(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the playlist");
    text.replacen(from, to, 1)
}

#[test]
fn good_playlists_have_no_findings() {
    assert_eq!(lint_media(&good()), []);
    assert_eq!(lint_media(&later()), []);
    assert_eq!(lint_multivariant(MULTIVARIANT), []);
    let (first, second) = (good(), later());
    assert_eq!(
        lint_updates(&[Snapshot { at_ms: 0, text: &first }, Snapshot { at_ms: 500, text: &second }]),
        []
    );
    assert_eq!(lint_renditions(&[&first, &first]), []);
}

/// Rules of one text: (rule, what to replace, by what).
const MEDIA: &[(&str, &str, &str)] = &[
    ("header", "#EXTM3U\n", "\u{feff}#EXTM3U\n"),
    ("syntax", "DURATION=0.5,URI=\"part-16-1.m4s\"", "URI=\"part-16-1.m4s\""),
    ("syntax", "VERSION:6", "VERSION:six"),
    ("tag-twice", "#EXT-X-VERSION:6\n", "#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n"),
    ("target-duration-missing", "#EXT-X-TARGETDURATION:2\n", ""),
    ("segment-too-long", "#EXTINF:2.0,\nseg-10", "#EXTINF:2.5,\nseg-10"),
    ("version-too-low", "VERSION:6", "VERSION:5"),
    ("version-too-low", "#EXT-X-MAP", "#EXT-X-SKIP:SKIPPED-SEGMENTS=1\n#EXT-X-MAP"),
    ("version-too-low", "seg-10", "#EXT-X-GAP\nseg-10"),
    ("map-missing", "#EXT-X-MAP:URI=\"init-0.mp4\"\n", ""),
    ("extinf-missing", "#EXTINF:2.0,\nseg-12", "seg-12"),
    ("media-sequence-late", "seg-10.m4s\n", "seg-10.m4s\n#EXT-X-MEDIA-SEQUENCE:10\n"),
    ("discontinuity-sequence-late", "seg-10.m4s\n", "seg-10.m4s\n#EXT-X-DISCONTINUITY-SEQUENCE:1\n"),
    ("discontinuity-sequence-missing", "#EXT-X-DISCONTINUITY-SEQUENCE:1\n", "#EXT-X-DISCONTINUITY\n"),
    ("part-inf-missing", "#EXT-X-PART-INF:PART-TARGET=0.5\n", ""),
    ("part-too-long", "DURATION=0.5,URI=\"part-14-0", "DURATION=0.51,URI=\"part-14-0"),
    ("part-too-short", "DURATION=0.5,URI=\"part-14-0", "DURATION=0.42,URI=\"part-14-0"),
    ("parts-differ-from-segment", "#EXT-X-PART:DURATION=0.5,URI=\"part-14-3.m4s\"\n", ""),
    ("parts-too-old", "#EXTINF:2.0,\nseg-10", "#EXT-X-PART:DURATION=2.0,URI=\"x\"\n#EXTINF:2.0,\nseg-10"),
    ("head-behind-part", "#EXTINF:2.0,\nseg-15", "#EXT-X-DISCONTINUITY\n#EXTINF:2.0,\nseg-15"),
    ("part-hold-back-missing", ",PART-HOLD-BACK=1.5", ""),
    ("part-hold-back-low", "PART-HOLD-BACK=1.5", "PART-HOLD-BACK=0.9"),
    ("part-hold-back-below-three", "PART-HOLD-BACK=1.5", "PART-HOLD-BACK=1.4"),
    ("hold-back-low", "HOLD-BACK=6.0", "HOLD-BACK=5.9"),
    ("can-skip-until-low", "CAN-SKIP-UNTIL=12.0", "CAN-SKIP-UNTIL=11.9"),
    ("skip-without-can-skip", ",CAN-SKIP-UNTIL=12.0", "\n#EXT-X-SKIP:SKIPPED-SEGMENTS=1\n#X:"),
    ("block-reload-missing", "CAN-BLOCK-RELOAD=YES,", ""),
    ("preload-hint-missing", "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-16-2.m4s\"\n", ""),
    ("preload-hint-twice", "#EXT-X-RENDITION", "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"y\"\n#EXT-X-RENDITION"),
    ("preload-hint-stale", "URI=\"part-16-2.m4s\"", "URI=\"part-16-1.m4s\""),
    (
        "date-missing-behind-discontinuity",
        "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:24.000Z",
        "#EXT-X-DISCONTINUITY",
    ),
    ("date-goes-back", "00:00:24.000Z", "00:00:21.000Z"),
    ("date-goes-back", "00:00:24.000Z", "00:00:24.200Z"),
    ("vod-without-end", "#EXT-X-MAP", "#EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-MAP"),
    ("uri-twice", "seg-11.m4s", "seg-10.m4s"),
    ("hint-behind-end", "#EXT-X-RENDITION", "#EXT-X-ENDLIST\n#EXT-X-RENDITION"),
    ("window-below-six", "#EXTINF:2.0,\nseg-10.m4s\n", ""),
];

#[test]
fn each_seeded_violation_of_one_text_is_found() {
    for (rule, from, to) in MEDIA {
        let text = change(&good(), from, to);
        let found = lint_media(&text);
        let finding = found.iter().find(|finding| finding.rule.id == *rule);
        let finding = finding.unwrap_or_else(|| panic!("{rule} is not found in {text}, but {found:?}"));
        assert!(finding.line <= text.lines().count());
    }
    let no_dates: String =
        good().lines().filter(|line| !line.contains("DATE-TIME")).map(|l| format!("{l}\n")).collect();
    assert!(lint_media(&no_dates).iter().any(|finding| finding.rule.id == "date-missing"));
    let mut few = good();
    for number in 10..14 {
        few = change(&few, &format!("#EXTINF:2.0,\nseg-{number}.m4s\n"), "");
    }
    assert!(lint_media(&few).iter().any(|finding| finding.rule.id == "window-too-short"));
}

/// Rules over time: (rule, what to replace in the later text, by what).
const UPDATES: &[(&str, &str, &str)] = &[
    ("target-duration-changed", "TARGETDURATION:2", "TARGETDURATION:3"),
    ("part-target-changed", "PART-TARGET=0.5", "PART-TARGET=0.6"),
    ("server-control-changed", "PART-HOLD-BACK=1.5", "PART-HOLD-BACK=1.6"),
    ("segment-changed", "#EXTINF:2.0,\nseg-12", "#EXTINF:1.9,\nseg-12"),
    ("media-sequence-goes-back", "MEDIA-SEQUENCE:10", "MEDIA-SEQUENCE:9"),
    ("segments-vanish", "MEDIA-SEQUENCE:10", "MEDIA-SEQUENCE:11"),
    ("segments-vanish", "#EXTINF:2.0,\nseg-15.m4s\n", ""),
    ("discontinuity-sequence-wrong", "DISCONTINUITY-SEQUENCE:1", "DISCONTINUITY-SEQUENCE:2"),
    ("preload-hint-broken", "URI=\"part-16-2.m4s\"", "URI=\"part-16-2-b.m4s\""),
];

#[test]
fn each_seeded_violation_over_time_is_found() {
    let find = |first: &str, second: &str, at_ms, rule: &str| {
        let found = lint_updates(&[Snapshot { at_ms: 0, text: first }, Snapshot { at_ms, text: second }]);
        assert!(found.iter().any(|finding| finding.rule.id == rule), "{rule} is not among {found:?}");
    };
    for (rule, from, to) in UPDATES {
        find(&good(), &change(&later(), from, to), 500, rule);
    }
    find(&good(), &good(), 3_500, "not-updated");
    find(&(good() + "#EXT-X-ENDLIST\n"), &later(), 500, "changed-after-end");
}

/// Rules between renditions: (rule, what to replace in the second's text, by what).
const RENDITIONS: &[(&str, &str, &str)] = &[
    ("renditions-differ-in-target", "TARGETDURATION:2", "TARGETDURATION:3"),
    ("renditions-differ-in-control", "HOLD-BACK=6.0", "HOLD-BACK=7.0"),
    (
        "renditions-differ-in-discontinuities",
        "#EXTINF:2.0,\nseg-12",
        "#EXT-X-DISCONTINUITY\n#EXTINF:2.0,\nseg-12",
    ),
    ("renditions-apart", "00:00:30.000Z", "00:00:34.000Z"),
    ("rendition-report-missing", "#EXT-X-RENDITION-REPORT:", "#"),
];

#[test]
fn each_seeded_violation_between_renditions_is_found() {
    for (rule, from, to) in RENDITIONS {
        let found = lint_renditions(&[&good(), &change(&good(), from, to)]);
        assert!(found.iter().any(|finding| finding.rule.id == *rule), "{rule} is not among {found:?}");
    }
}

/// Segments of 2 s in one file, from number 10 on, with dates as `date` says them of a number.
fn ranges(first: u64, date: impl Fn(u64) -> Option<String>) -> String {
    let mut text =
        format!("#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
    for number in first..first + 7 {
        text += &date(number).map_or_else(String::new, |date| format!("#EXT-X-PROGRAM-DATE-TIME:{date}\n"));
        // The start follows from the line before, where there is one.
        let start = if number == first { format!("@{}", number * 1000) } else { String::new() };
        text += &format!("#EXTINF:2.0,\n#EXT-X-BYTERANGE:1000{start}\nall.ts\n");
    }
    text
}

#[test]
fn others_streams_that_are_valid_are_not_accused() {
    let updates = |first: &str, second: &str| {
        lint_updates(&[Snapshot { at_ms: 0, text: first }, Snapshot { at_ms: 500, text: second }])
    };
    let date = |number: u64| format!("2026-01-01T00:00:{:02}.000Z", number * 2);
    // One date, that of the first segment: it moves on with the window.
    let (old, new) = (
        ranges(10, |number| (number == 10).then(|| date(number))),
        ranges(11, |number| (number == 11).then(|| date(number))),
    );
    assert_eq!(updates(&old, &new), []);
    assert_eq!(lint_renditions(&[&old, &new]), []);
    // What really changes is seen in such playlists too.
    let other = new.replace("#EXT-X-BYTERANGE:1000\n", "#EXT-X-BYTERANGE:900\n");
    assert!(updates(&old, &other).iter().any(|finding| finding.rule.id == "segment-changed"));
    let other = change(&new, "1000@11000", "1000@11500");
    assert!(updates(&old, &other).iter().any(|finding| finding.rule.id == "segment-changed"));
    let other = change(&new, "MEDIA-SEQUENCE:11", "MEDIA-SEQUENCE:12");
    assert!(updates(&old, &other).iter().any(|finding| finding.rule.id == "segments-vanish"));

    // Numbers of another rendition are its own business; a discontinuity is one at the same date.
    let cut = change(&good(), "#EXTINF:2.0,\nseg-12", "#EXT-X-DISCONTINUITY\n#EXTINF:2.0,\nseg-12");
    let numbered = change(&cut, "MEDIA-SEQUENCE:10", "MEDIA-SEQUENCE:70");
    assert_eq!(lint_renditions(&[&cut, &numbered]), []);
    assert_eq!(lint_renditions(&[&numbered, &cut]), []);
    let elsewhere = change(&numbered, "#EXT-X-DISCONTINUITY\n", "");
    for (first, second) in [(&cut, &elsewhere), (&elsewhere, &cut)] {
        let found = lint_renditions(&[first, second]);
        assert!(found.iter().any(|finding| finding.rule.id == "renditions-differ-in-discontinuities"));
    }
}

#[test]
fn numbers_beyond_all_measure_are_judged_without_a_panic() {
    let most = u64::MAX.to_string();
    let mut text = good();
    for (from, to) in [
        ("TARGETDURATION:2", "TARGETDURATION:"),
        ("MEDIA-SEQUENCE:10", "MEDIA-SEQUENCE:"),
        ("DISCONTINUITY-SEQUENCE:1", "DISCONTINUITY-SEQUENCE:"),
        ("PART-TARGET=0.5", "PART-TARGET="),
        ("HOLD-BACK=6.0", "HOLD-BACK="),
        ("CAN-SKIP-UNTIL=12.0", "CAN-SKIP-UNTIL="),
        ("LAST-MSN=16", "LAST-MSN="),
        ("#EXT-X-MAP", "#EXT-X-BYTERANGE:1000@18446744073709551615\n#EXT-X-SKIP:SKIPPED-SEGMENTS="),
    ] {
        let ending = if from == "#EXT-X-MAP" { "\n#EXT-X-MAP" } else { "" };
        text = change(&text, from, &format!("{to}{most}{ending}"));
    }
    // As many microseconds as fit.
    let text = text.replace("EXTINF:2.0", "EXTINF:18446744073709.5").replace("=0.5", "=18446744073709.5");
    let _ = (lint_media(&text), lint_renditions(&[&text, &good()]), lint_renditions(&[&good(), &text]));
    let _ = (lint_delta(&good(), &text), Outline::of(&text));
    let _ = lint_directives(
        Asked::Next(u64::MAX, Some(u64::MAX)),
        &Answer { status: 200, content_type: "", content_encoding: "", text: &text },
    );
    for (first, second) in [(&good(), &text), (&text, &text), (&text, &later())] {
        let _ = lint_updates(&[Snapshot { at_ms: 0, text: first }, Snapshot { at_ms: 500, text: second }]);
    }
}

/// Rules of the multivariant playlist.
const VARIANTS: &[(&str, &str, &str)] = &[
    ("header", "#EXTM3U\n", ""),
    ("variant-missing", "v0/playlist.m3u8\n", ""),
    ("bandwidth-missing", "INF:BANDWIDTH=3000000,", "INF:"),
    ("average-bandwidth-missing", "AVERAGE-BANDWIDTH=2500000,", ""),
    ("codecs-missing", "CODECS=\"avc1.42e01f,mp4a.40.2\",", ""),
    ("resolution-missing", "RESOLUTION=1280x720,", ""),
    ("frame-rate-missing", "FRAME-RATE=30.000,", ""),
    ("independent-segments-missing", "#EXT-X-INDEPENDENT-SEGMENTS\n", ""),
    ("group-missing", "GROUP-ID=\"audio\"", "GROUP-ID=\"sound\""),
    ("language-missing", "LANGUAGE=\"en\",", ""),
];

#[test]
fn each_seeded_violation_of_a_multivariant_playlist_is_found() {
    for (rule, from, to) in VARIANTS {
        let found = lint_multivariant(&change(MULTIVARIANT, from, to));
        assert!(found.iter().any(|finding| finding.rule.id == *rule), "{rule} is not among {found:?}");
    }
}

#[test]
fn every_rule_has_a_seeded_violation_and_a_line_in_the_readme() {
    let seeded: BTreeSet<_> = [MEDIA, UPDATES, RENDITIONS, VARIANTS]
        .concat()
        .into_iter()
        .map(|(rule, ..)| rule)
        .chain(["date-missing", "window-too-short", "not-updated", "changed-after-end"])
        .chain(super::served_tests::SEEDED.iter().copied())
        .collect();
    let readme = include_str!("../../README.md");
    for Rule { id, section, .. } in RULES {
        assert!(seeded.contains(id), "{id} has no seeded violation");
        assert!(
            readme.contains(&format!("| {id} | {section} |")),
            "{id} of section {section} is not in the README"
        );
    }
    assert_eq!(seeded.len(), RULES.len());
    assert!(RULES.len() >= 25);
}

proptest! {
    #[test]
    fn any_text_is_judged_without_a_panic(text in "(#EXTM3U\n)?(#EXT(-X-[A-Z-]{2,20}|INF)?:[ -~]{0,40}\n|[ -~]{0,20}\n){0,12}", other in "[ -~\n]{0,200}") {
        let _ = (lint_media(&text), lint_multivariant(&text), lint_renditions(&[&text, &other]));
        let _ = lint_updates(&[Snapshot { at_ms: 0, text: &text }, Snapshot { at_ms: i64::MAX, text: &other }]);
    }

    #[test]
    fn damaged_playlists_are_judged_without_a_panic(cut in 0usize..1500, swap in 0usize..1500, byte in 32u8..127) {
        let mut bytes = good().into_bytes();
        if let Some(place) = bytes.get_mut(swap) { *place = byte; }
        bytes.truncate(cut);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = (lint_media(&text), lint_updates(&[Snapshot { at_ms: 0, text: &good() }, Snapshot { at_ms: 1, text: &text }]));
    }
}
