//! From a browser's offer, or what is left of it, to what the stack sees.

use proptest::prelude::*;
use shoal_segmenter::frame::TrackId;

use super::{Offer, Refusal};

const OFFER: &str = include_str!("../../tests/support/chromium-offer.sdp");

#[test]
fn h264_is_preferred_and_keeps_its_profiles_and_retransmissions() {
    let offer = Offer::parse(OFFER).unwrap();
    let formats = &offer.video.as_ref().unwrap().formats;
    let numbers: Vec<(u8, Option<u8>)> = formats.iter().map(|f| (f.payload_type, f.rtx)).collect();
    assert_eq!(numbers, [(102, Some(103)), (106, Some(107)), (108, Some(109))], "mode 0 is left out");
    assert_eq!(offer.tracks(), [TrackId(0), TrackId(1)]);
}

#[test]
fn without_h264_the_next_best_codec_is_taken_alone() {
    let mut text = OFFER.replace("H264/90000", "H265/90000");
    for (codec, number) in [("VP9", 98), ("AV1", 45), ("VP8", 96)] {
        let offer = Offer::parse(&text).unwrap();
        let formats = &offer.video.as_ref().unwrap().formats;
        assert_eq!((formats.len(), formats[0].payload_type), (1, number), "{codec}");
        text = text.replace(&format!("{codec}/90000"), "H265/90000");
    }
    assert_eq!(Offer::parse(&text).unwrap_err(), Refusal::NoCodec("video"));
}

#[test]
fn the_stack_sees_no_candidates_no_other_codecs_and_no_other_extensions() {
    let reduced = Offer::parse(OFFER).unwrap().reduce(None);
    for absent in ["a=candidate", ".local", "VP8", "PCMU", "ulpfec", "video-orientation", "playout-delay"] {
        assert!(!reduced.contains(absent), "{absent} in\n{reduced}");
    }
    assert!(reduced.contains("m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"), "{reduced}");
    assert!(reduced.contains("m=video 9 UDP/TLS/RTP/SAVPF 102 103 106 107 108 109\r\n"), "{reduced}");
    assert!(reduced.contains("a=ssrc-group:FID 2222 3333"), "{reduced}");
    let again = Offer::parse(&reduced).unwrap();
    assert_eq!(again.reduce(None), reduced, "reducing twice changes nothing");
}

#[test]
fn a_restart_replaces_the_ice_parameters_everywhere() {
    let offer = Offer::parse(OFFER).unwrap();
    let restarted = offer.reduce(Some(("ysXw", "vw5LmwG4y/e6dPP/zAP9Gp5k")));
    assert_eq!(restarted.matches("a=ice-ufrag:ysXw").count(), 2);
    assert!(!restarted.contains("5wlI"));
}

#[test]
fn layers_are_read_in_the_publishers_order() {
    let text = OFFER.replace("a=mid:1", "a=mid:1\r\na=simulcast:send h,x;~m;l recv r");
    let offer = Offer::parse(&text).unwrap();
    assert_eq!(offer.video.as_ref().unwrap().rids, ["h", "m", "l"]);
    assert_eq!(offer.tracks().len(), 4);
    let many = OFFER.replace("a=mid:1", "a=mid:1\r\na=simulcast:send a;b;c;d;e");
    assert!(matches!(Offer::parse(&many), Err(Refusal::Unacceptable(_))));
}

proptest! {
    #[test]
    fn garbage_never_panics(text in "([a-z]=[ -~]{0,60}\r\n|\\PC{0,40}\n){0,20}") {
        let _ = Offer::parse(&text);
    }

    /// Real offers with lines lost, doubled, swapped and damaged get further than noise does; what is accepted
    /// can be reduced, and the result is an offer again.
    #[test]
    fn damaged_offers_never_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..8),
    ) {
        let mut lines: Vec<String> = OFFER.lines().map(str::to_owned).collect();
        for (index, kind, byte) in edits {
            let index = index.index(lines.len());
            match kind {
                0 => { lines.remove(index); }
                1 => { let line = lines[index].clone(); lines.insert(index, line); }
                2 => { let last = lines.len() - 1; lines.swap(index, last); }
                _ => {
                    let at = usize::from(byte) % (lines[index].len() + 1);
                    lines[index].insert(at, char::from(byte & 0x7f));
                }
            }
        }
        if let Ok(offer) = Offer::parse(&lines.join("\r\n")) {
            let reduced = offer.reduce(None);
            prop_assert!(Offer::parse(&reduced).is_ok(), "{reduced}");
        }
    }
}
