//! The table of rules.

/// A rule that playlists must keep.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, stable.
    pub id: &'static str,
    /// Where it stands: a section of the draft, or with an `A` of Apple's authoring specification.
    pub section: &'static str,
    /// What it demands.
    pub text: &'static str,
}

macro_rules! rules {
    ($($name:ident $id:literal $section:literal $text:literal)*) => {
        $(pub(super) static $name: Rule = Rule { id: $id, section: $section, text: $text };)*
        /// All rules.
        pub static RULES: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    HEADER "header" "4.1" "the first line is #EXTM3U, without a byte order mark"
    SYNTAX "syntax" "4.2" "a tag's value is what the tag's definition says"
    TWICE "tag-twice" "4.4" "a tag that describes the playlist stands in it once"
    NO_TARGET "target-duration-missing" "4.4.3.1" "EXT-X-TARGETDURATION is required"
    TOO_LONG "segment-too-long" "4.4.3.1" "a segment's duration, rounded, is at most the target duration"
    VERSION_LOW "version-too-low" "8" "EXT-X-VERSION covers every tag that is used"
    NO_MAP "map-missing" "3.1.2" "fragmented MP4 has EXT-X-MAP in front of its first segment"
    NO_EXTINF "extinf-missing" "4.4.4.1" "EXTINF stands in front of each segment"
    SEQUENCE_LATE "media-sequence-late" "4.4.3.2" "EXT-X-MEDIA-SEQUENCE stands in front of the first segment"
    DISCONTINUITY_LATE "discontinuity-sequence-late" "4.4.3.3"
        "EXT-X-DISCONTINUITY-SEQUENCE stands in front of the first segment and discontinuity"
    NO_DISCONTINUITY_SEQUENCE "discontinuity-sequence-missing" "A8.17"
        "a live playlist with discontinuities has EXT-X-DISCONTINUITY-SEQUENCE"
    NO_PART_INF "part-inf-missing" "4.4.3.7" "EXT-X-PART-INF is required where there are parts"
    PART_LONG "part-too-long" "4.4.4.9" "a part is at most the part target"
    PART_SHORT "part-too-short" "4.4.4.9"
        "a part is at least 85 % of the part target, unless independent, a gap, before a gap or its segment's last"
    PART_SUM "parts-differ-from-segment" "A8.1" "the parts of a segment last as long as the segment"
    PART_OLD "parts-too-old" "6.2.2" "parts are removed three target durations behind the end"
    HEAD_LATE "head-behind-part" "4.4.4.9" "discontinuity, map and date stand in front of their segment's first part"
    NO_PART_HOLD_BACK "part-hold-back-missing" "4.4.3.8" "PART-HOLD-BACK is required where there are parts"
    PART_HOLD_BACK_LOW "part-hold-back-low" "4.4.3.8" "PART-HOLD-BACK is at least twice the part target"
    PART_HOLD_BACK_APPLE "part-hold-back-below-three" "A14.3" "PART-HOLD-BACK is at least three times the part target"
    HOLD_BACK_LOW "hold-back-low" "4.4.3.8" "HOLD-BACK is at least three target durations"
    SKIP_UNTIL_LOW "can-skip-until-low" "4.4.3.8" "CAN-SKIP-UNTIL is at least six target durations"
    SKIP_UNASKED "skip-without-can-skip" "4.4.5.2" "EXT-X-SKIP only where CAN-SKIP-UNTIL allows it"
    NO_BLOCK_RELOAD "block-reload-missing" "B.1" "low-latency playlists have CAN-BLOCK-RELOAD=YES"
    NO_HINT "preload-hint-missing" "B.1" "a live low-latency playlist has a preload hint for its next part"
    HINT_TWICE "preload-hint-twice" "4.4.5.3" "at most one preload hint of each type"
    HINT_LISTED "preload-hint-stale" "4.4.5.3" "what is hinted at is not in the playlist yet"
    NO_DATE "date-missing" "A8.4" "every live playlist has EXT-X-PROGRAM-DATE-TIME"
    DATE_AFTER_DISCONTINUITY "date-missing-behind-discontinuity" "6.2.1"
        "where dates are used, each discontinuity has one"
    DATE_BACK "date-goes-back" "6.2.1" "dates follow the segments"
    WINDOW_SHORT "window-too-short" "6.2.2" "a live playlist lists at least three target durations"
    WINDOW_FEW "window-below-six" "A8.11" "a live playlist lists at least six segments"
    TYPE_VOD_OPEN "vod-without-end" "4.4.3.5" "a playlist of type VOD ends"
    URI_TWICE "uri-twice" "6.2.1" "each segment and part has its own URI"
    END_WITH_PROMISE "hint-behind-end" "6.2.2" "an ended playlist promises nothing"
    CHANGED_TARGET "target-duration-changed" "6.2.1" "the target duration never changes"
    CHANGED_PART_TARGET "part-target-changed" "4.4.3.7" "the part target never changes"
    CHANGED_CONTROL "server-control-changed" "6.2.4" "hold-backs and CAN-SKIP-UNTIL never change"
    CHANGED_SEGMENT "segment-changed" "6.2.1" "a listed segment never changes its URI, duration or date"
    SEQUENCE_BACK "media-sequence-goes-back" "6.2.2" "the media sequence number never decreases"
    SEQUENCE_JUMP "segments-vanish" "6.2.2" "nothing but the oldest segments leaves a playlist, and each counts"
    DISCONTINUITY_COUNT "discontinuity-sequence-wrong" "6.2.2"
        "EXT-X-DISCONTINUITY-SEQUENCE grows by the discontinuities that left"
    CHANGED_AFTER_END "changed-after-end" "6.2.1" "an ended playlist does not change"
    STALE "not-updated" "6.2.1" "a new segment or part comes within 1.5 target durations"
    HINT_BROKEN "preload-hint-broken" "6.2.6" "what is hinted at comes, unless its segment ends"
    RENDITION_TARGET "renditions-differ-in-target" "6.2.4" "all renditions have the same target duration"
    RENDITION_CONTROL "renditions-differ-in-control" "6.2.4" "all renditions have the same EXT-X-SERVER-CONTROL"
    RENDITION_DISCONTINUITY "renditions-differ-in-discontinuities" "A8.15"
        "discontinuities stand at the same dates in all renditions"
    RENDITION_APART "renditions-apart" "B.1" "renditions are in step within one segment"
    NO_REPORT "rendition-report-missing" "B.1" "a low-latency playlist reports on every other rendition"
    NO_VARIANT "variant-missing" "4.4.6.2" "EXT-X-STREAM-INF is followed by a URI"
    NO_BANDWIDTH "bandwidth-missing" "4.4.6.2" "BANDWIDTH is required"
    NO_AVERAGE "average-bandwidth-missing" "A9" "AVERAGE-BANDWIDTH is required"
    NO_CODECS "codecs-missing" "A9" "CODECS is required"
    NO_RESOLUTION "resolution-missing" "A9" "RESOLUTION is required for video"
    NO_FRAME_RATE "frame-rate-missing" "A9" "FRAME-RATE is required for video"
    NO_INDEPENDENT "independent-segments-missing" "A9" "EXT-X-INDEPENDENT-SEGMENTS is required"
    NO_GROUP "group-missing" "4.4.6.2" "an AUDIO group that a variant names exists"
    NO_LANGUAGE "language-missing" "A9" "audio renditions have a LANGUAGE"
    BANDWIDTH_EXCEEDED "bandwidth-exceeded" "A1.29" "no segment has more than 125 % of BANDWIDTH"
    UNAVAILABLE "unavailable" "6.2.2" "what is listed can be fetched"
    PLAYLIST_TYPE "playlist-type" "4" "playlists are sent as application/vnd.apple.mpegurl or audio/mpegurl"
    NOT_COMPRESSED "playlist-not-compressed" "A10.1" "playlists are compressed for those who take it"
    BLOCKING_EARLY "blocking-reload-early" "6.2.5.2" "a blocked request is answered when what it asks for is there"
    DIRECTIVES_UNCHECKED "directives-unchecked" "6.2.5.2" "directives that make no sense are answered with 400"
    DELTA_DIFFERS "delta-differs" "6.2.5.1" "a delta says of each segment what the full playlist says"
    SKIP_TOO_MUCH "skip-boundary-broken" "6.2.5.1" "a delta skips nothing that is younger than CAN-SKIP-UNTIL"
    INIT_BROKEN "init-broken" "3.1.2" "an initialization section has ftyp and moov with mvex"
    FRAGMENT_BROKEN "fragment-broken" "3.1.2" "segments and parts are moof and mdat with decode times"
    TIME_GAP "decode-time-gap" "A7.3" "decode times run on from fragment to fragment"
    DURATION_OTHER "duration-differs" "4.4.4.1" "media lasts as long as the playlist says"
    INDEPENDENT_LIE "independent-without-keyframe" "4.4.4.9" "a part that is INDEPENDENT has a keyframe"
    SEGMENT_DEPENDS "segment-without-keyframe" "4.4.2.1"
        "with EXT-X-INDEPENDENT-SEGMENTS each segment begins with a keyframe"
    PARTS_OTHER_MEDIA "parts-of-other-media" "4.4.4.9" "a segment's parts are the segment's media"
}
