//! Payload formats: what real encoders send, what is cut off, and garbage.

use bytes::{BufMut as _, Bytes};
use proptest::prelude::*;
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

use super::{Depacketizer, Malformed, Picture, depacketizer};

const SPS: &str = "6764001facd9405005bb011000000300100000030320f1831960";
const PPS: &str = "68ebe3cb22c0";
const IDR: [u8; 6] = [0x65, 0x88, 0x80, 1, 2, 3];
const P: [u8; 5] = [0x41, 0x9a, 0x80, 4, 5];

fn nal(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

fn stap(nals: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![0x78];
    for nal in nals {
        out.put_u16(nal.len() as u16);
        out.extend_from_slice(nal);
    }
    out
}

fn assemble(codec: &mut dyn Depacketizer, payloads: &[&[u8]]) -> Result<Option<Picture>, Malformed> {
    for payload in payloads {
        codec.push(&Bytes::copy_from_slice(payload))?;
    }
    codec.finish()
}

fn with_length(nals: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for nal in nals {
        out.put_u32(nal.len() as u32);
        out.extend_from_slice(nal);
    }
    out
}

#[test]
fn h264_parameter_sets_leave_the_picture_and_make_its_format() {
    let mut h264 = depacketizer(VideoCodec::H264);
    let (sps, pps) = (nal(SPS), nal(PPS));
    let delimiter: &[u8] = &[0x09, 0xf0];
    let sei: &[u8] = &[0x06, 5, 1, 0x80];
    let payloads: [&[u8]; 2] = [&stap(&[delimiter, &sps, &pps, sei]), &IDR];
    let picture = assemble(&mut *h264, &payloads).unwrap().unwrap();
    assert!(picture.is_keyframe);
    assert_eq!(picture.data, with_length(&[sei, &IDR]));
    let Some(TrackFormat::Video { codec: VideoCodec::H264, width: 1280, height: 720, config }) =
        picture.format
    else {
        panic!("{picture:?}");
    };
    let mut expected = vec![1, 0x64, 0, 0x1f, 0xff, 0xe1, 0, sps.len() as u8];
    expected.extend(&sps);
    expected.extend([1, 0, pps.len() as u8]);
    expected.extend(&pps);
    expected.extend([0xfd, 0xf8, 0xf8, 0]);
    assert_eq!(config, expected, "avcC of the high profile");
}

#[test]
fn h264_repeated_parameter_sets_are_no_change_and_other_ones_are() {
    let mut h264 = depacketizer(VideoCodec::H264);
    let (sps, pps) = (nal(SPS), nal(PPS));
    let format = |h264: &mut dyn Depacketizer, sps: &[u8]| {
        assemble(h264, &[sps, &pps, &IDR]).unwrap().unwrap().format.unwrap()
    };
    let first = format(&mut *h264, &sps);
    assert_eq!(format(&mut *h264, &sps), first);
    let other = nal("67640028acd940780227e5c044000003000400000300c83c60c658");
    assert!(matches!(format(&mut *h264, &other), TrackFormat::Video { width: 1920, height: 1080, .. }));
}

#[test]
fn h264_parameters_that_change_without_a_keyframe_are_refused() {
    let mut h264 = depacketizer(VideoCodec::H264);
    assemble(&mut *h264, &[&nal(SPS), &nal(PPS), &IDR]).unwrap();
    let mut changed = nal(PPS);
    *changed.last_mut().unwrap() ^= 0x40;
    assert!(assemble(&mut *h264, &[&changed, &P]).is_err());
}

#[test]
fn h264_without_parameters_there_is_no_keyframe() {
    let mut h264 = depacketizer(VideoCodec::H264);
    assert!(assemble(&mut *h264, &[&IDR]).is_err());
    assert_eq!(
        assemble(&mut *h264, &[&nal(SPS), &nal(PPS)]),
        Ok(None),
        "parameter sets alone are no picture"
    );
    assert!(assemble(&mut *h264, &[&IDR]).unwrap().unwrap().is_keyframe);
}

#[test]
fn h264_fragments_are_put_together_and_holes_noticed() {
    let mut h264 = depacketizer(VideoCodec::H264);
    let start: &[u8] = &[0x5c, 0x81, 0x9a, 0x80, 1];
    let (middle, end): (&[u8], &[u8]) = (&[0x5c, 0x01, 2, 3], &[0x5c, 0x41, 4]);
    let picture = assemble(&mut *h264, &[start, middle, end]).unwrap().unwrap();
    assert_eq!(picture.data, with_length(&[&[0x41, 0x9a, 0x80, 1, 2, 3, 4]]));
    for broken in [&[middle, end][..], &[start, middle], &[start, start], &[start, &P], &[&[0x5c]]] {
        assert!(assemble(&mut *h264, broken).is_err(), "{broken:?}");
        h264.reset();
    }
}

#[test]
fn h264_a_picture_whose_first_slice_is_missing_is_refused() {
    let mut h264 = depacketizer(VideoCodec::H264);
    let second_slice: &[u8] = &[0x65, 0x42, 0x20, 7];
    assert!(assemble(&mut *h264, &[&nal(SPS), &nal(PPS), second_slice]).is_err());
    h264.reset();
    let picture = assemble(&mut *h264, &[&IDR, second_slice]).unwrap().unwrap();
    assert_eq!(picture.data, with_length(&[&IDR, second_slice]));
}

#[test]
fn vp8_keyframes_tell_their_size() {
    let mut vp8 = depacketizer(VideoCodec::Vp8);
    // X, with a 15-bit picture id; then a keyframe of 640x360
    let key: &[u8] = &[0x90, 0x80, 0x80, 1, 0x50, 1, 2, 0x9d, 1, 0x2a, 0x80, 2, 0x68, 1, 9];
    let rest: &[u8] = &[0x80, 0x80, 0x80, 1, 7, 7];
    let picture = assemble(&mut *vp8, &[key, rest]).unwrap().unwrap();
    assert_eq!(picture.data, [&key[4..], &rest[4..]].concat());
    assert!(matches!(picture.format, Some(TrackFormat::Video { width: 640, height: 360, .. })));
    let inter = assemble(&mut *vp8, &[&[0x10, 1, 2, 3]]).unwrap().unwrap();
    assert!(!inter.is_keyframe);
    assert!(assemble(&mut *vp8, &[rest]).is_err(), "the beginning is missing");
}

#[test]
fn vp9_keyframes_tell_their_size_and_make_a_record() {
    let mut vp9 = depacketizer(VideoCodec::Vp9);
    // Frame marker, profile 0, keyframe, shown; sync code; color space 2, studio range; 1280x720
    let header = [0x82, 0x49, 0x83, 0x42, 0x40, 0x4f, 0xf0, 0x2c, 0xf0];
    let start = [&[0x88, 0x05][..], &header].concat();
    let end: &[u8] = &[0x84, 0x05, 1, 2];
    let picture = assemble(&mut *vp9, &[&start, end]).unwrap().unwrap();
    assert_eq!(picture.data, [&header[..], &[1, 2]].concat());
    let Some(TrackFormat::Video { width: 1280, height: 720, config, .. }) = picture.format else {
        panic!("{picture:?}");
    };
    assert_eq!(config[..], [1, 0, 0, 0, 0, 31, 0x80, 1, 1, 1, 0, 0]);
    let inter = assemble(&mut *vp9, &[&[0xcc, 0x06, 0x86, 1]]).unwrap().unwrap();
    assert!(!inter.is_keyframe && inter.format.is_none());
    assert!(assemble(&mut *vp9, &[&start]).is_err(), "the end is missing");
    assert!(assemble(&mut *vp9, &[end]).is_err(), "the beginning is missing");
}

/// The sequence header that libaom writes for 1280x720, main profile.
const AV1_SEQUENCE: [u8; 11] = [0x00, 0x00, 0x00, 0x2d, 0x4c, 0xff, 0xb3, 0xcc, 0xaf, 0x90, 0x04];

#[test]
fn av1_units_get_sizes_and_delimiters_leave() {
    let mut av1 = depacketizer(VideoCodec::Av1);
    let sequence = [&[0x08][..], &AV1_SEQUENCE].concat();
    let delimiter: &[u8] = &[0x10];
    let frame: &[u8] = &[0x30, 0x10, 1, 2, 3, 4];
    // N, W = 0: every element with its length; the last goes on in the next packet.
    let mut first = vec![0x48];
    for element in [delimiter, &sequence, &frame[..4]] {
        first.push(element.len() as u8);
        first.extend_from_slice(element);
    }
    let second = [&[0x90][..], &frame[4..]].concat();
    let picture = assemble(&mut *av1, &[&first, &second]).unwrap().unwrap();
    assert!(picture.is_keyframe, "{picture:?}");
    let mut expected = vec![0x0a, 11];
    expected.extend(&AV1_SEQUENCE);
    expected.extend([0x32, 5]);
    expected.extend(&frame[1..]);
    assert_eq!(picture.data, expected);
    let Some(TrackFormat::Video { width, height, config, .. }) = picture.format else { panic!() };
    assert_eq!((width, height), (1280, 720));
    assert_eq!((config[0], config[1] >> 5), (0x81, 0));
    assert!(assemble(&mut *av1, &[&second]).is_err(), "the beginning is missing");
    av1.reset();
    assert!(assemble(&mut *av1, &[&first]).is_err(), "the end is missing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever packets say, nothing panics, and what comes out is bounded by what went in.
    #[test]
    fn garbage_never_panics(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..12),
        ends in proptest::collection::vec(any::<bool>(), 12),
    ) {
        for codec in [VideoCodec::H264, VideoCodec::Vp8, VideoCodec::Vp9, VideoCodec::Av1] {
            let mut depacketizer = depacketizer(codec);
            for (payload, ends) in payloads.iter().zip(&ends) {
                let _ = depacketizer.push(&Bytes::copy_from_slice(payload));
                if *ends
                    && let Ok(Some(picture)) = depacketizer.finish() {
                        prop_assert!(picture.data.len() <= payloads.len() * 120);
                    }
            }
        }
    }

    /// Real pictures with a few bytes changed get further into the parsers than noise does.
    #[test]
    fn damaged_pictures_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        which in 0usize..4,
    ) {
        let (codec, packet) = match which {
            0 => (VideoCodec::H264, stap(&[&nal(SPS), &nal(PPS), &IDR])),
            1 => (VideoCodec::Vp8, vec![0x90, 0x80, 0x80, 1, 0x50, 1, 2, 0x9d, 1, 0x2a, 0x80, 2, 0x68, 1, 9]),
            2 => (VideoCodec::Vp9, vec![0x8c, 0x05, 0x82, 0x49, 0x83, 0x42, 0x40, 0x4f, 0xf0, 0x2c, 0xf0]),
            _ => (VideoCodec::Av1, [&[0x18, 0x08][..], &AV1_SEQUENCE].concat()),
        };
        let mut packet = packet;
        for (index, value) in damage {
            let index = index.index(packet.len());
            packet[index] = value;
        }
        let mut depacketizer = depacketizer(codec);
        let _ = depacketizer.push(&Bytes::from(packet));
        let _ = depacketizer.finish();
    }
}
