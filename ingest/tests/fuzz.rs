//! Everything that a stranger's bytes reach first, fed with damaged examples.
//!
//! A mutational fuzzer on the stable toolchain: it takes entries of a corpus (`corpus/`), changes, cuts, doubles and
//! joins them, and gives them to a parser: 5,000 inputs for each target that are always the same, then, for
//! `SHOAL_FUZZ_SECONDS`, those of `SHOAL_FUZZ_SEED`. `cargo xtask test` gives a minute, or `--fuzz-seconds`, and a new seed
//! each time. A failure prints the input as a line for the corpus, where it is then kept. What it lacks against libFuzzer is
//! guidance by coverage: revisit with a nightly toolchain.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rtc::shared::marshal::Unmarshal as _;
use shoal_ingest::rtp::codec::{PICTURE_BYTES_MAX, depacketizer};
use shoal_ingest::rtp::receiver::Receiver;
use shoal_ingest::sdp::{LAYERS_MAX, Offer};
use shoal_ingest::sdpfrag::Fragment;
use shoal_ingest::stun::{self, BindingRequest};
use shoal_ingest::transport::repair::Repair;
use shoal_ingest::transport::{Event, RtpPacket, SenderReport};
use shoal_segmenter::frame::{Input, VideoCodec};
use support::net::{Random, limits};

const OFFER: &str = include_str!("support/chromium-offer.sdp");
const LONG_MAX: usize = 4096;

/// One input: packets in order.
type Entry = Vec<Vec<u8>>;

/// Reads a corpus of hex lines.
fn corpus(text: &str) -> Vec<Entry> {
    let entries = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    entries
        .map(|line| {
            let packets = line.split(',').map(|packet| packet.replace(' ', ""));
            packets.map(|hex| hex::decode(&hex).unwrap_or_else(|error| panic!("{error}: {hex}"))).collect()
        })
        .collect()
}

/// Bytes that mean something to more than one format.
const TOKENS: [&[u8]; 8] = [
    &[0],
    &[0xff],
    &[0, 0, 0, 1],
    &[0xff, 0xff, 0xff, 0xff],
    &[0x80, 0x80, 0x80, 0x80, 0x80],
    &[0x7f, 0xff],
    b"\r\na=",
    b"4294967296",
];

fn mutate(random: &mut Random, corpus: &[Entry]) -> Entry {
    let pick = |random: &mut Random, count: usize| (random.next() % count.max(1) as u64) as usize;
    let mut entry = corpus[pick(random, corpus.len())].clone();
    for _ in 0..1 + pick(random, 6) {
        if entry.is_empty() {
            entry.push(Vec::new());
        }
        let index = pick(random, entry.len());
        let length = entry[index].len();
        let at = pick(random, length);
        match pick(random, 10) {
            0 if length > 0 => entry[index][at] ^= 1 << pick(random, 8),
            1 if length > 0 => entry[index][at] = random.next() as u8,
            2 => entry[index].truncate(at),
            3 => {
                let token = TOKENS[pick(random, TOKENS.len())];
                entry[index].splice(at..at, token.iter().copied());
            }
            4 if length > 0 => {
                let end = at + pick(random, length - at) + 1;
                entry[index].drain(at..end);
            }
            5 if length > 0 => {
                let end = at + pick(random, length - at) + 1;
                let copy = entry[index][at..end].to_vec();
                entry[index].splice(at..at, copy);
            }
            6 => {
                let copy = entry[index].clone();
                entry.insert(index, copy);
            }
            7 => {
                entry.remove(index);
            }
            8 => {
                let other = &corpus[pick(random, corpus.len())];
                let packet = other[pick(random, other.len())].clone();
                entry.insert(index, packet);
            }
            _ => {
                let other = &corpus[pick(random, corpus.len())];
                let packet = &other[pick(random, other.len())];
                let from = pick(random, packet.len());
                entry[index].extend_from_slice(&packet[from..]);
            }
        }
        entry.truncate(16);
        entry.iter_mut().for_each(|packet| packet.truncate(LONG_MAX));
    }
    entry
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How many inputs there are in any case: these must not hang on how fast the machine is.
const INPUTS: u64 = 5_000;
const SEED: u64 = 0x5eed;

/// Feeds a target.
fn fuzz(name: &str, corpus: &[Entry], mut target: impl FnMut(&Entry)) {
    let (seconds, seed) = (number("SHOAL_FUZZ_SECONDS", 0), number("SHOAL_FUZZ_SEED", SEED));
    let mut run = |entry: &Entry, seed: u64| {
        if catch_unwind(AssertUnwindSafe(|| target(entry))).is_err() {
            let line: Vec<String> = entry.iter().map(hex::encode).collect();
            panic!("seed {seed}, a line for ingest/tests/corpus/{name}.hex: {}", line.join(","));
        }
    };
    corpus.iter().for_each(|entry| run(entry, SEED));
    let mut random = Random(SEED * 2 + 1);
    for _ in 0..INPUTS {
        run(&mutate(&mut random, corpus), SEED);
    }
    let (mut random, end) = (Random(seed.wrapping_mul(2) | 1), Instant::now() + Duration::from_secs(seconds));
    let mut count = 0u64;
    while Instant::now() < end {
        run(&mutate(&mut random, corpus), seed);
        count += 1;
    }
    println!("{name}: {INPUTS} inputs, then {count} of seed {seed}");
}

fn depacketize(name: &str, text: &str, codec: VideoCodec) {
    let corpus = corpus(text);
    let mut whole = 0;
    for entry in &corpus {
        let mut parser = depacketizer(codec);
        let is_taken = entry.iter().all(|payload| parser.push(&Bytes::copy_from_slice(payload)).is_ok());
        whole += usize::from(is_taken && matches!(parser.finish(), Ok(Some(_))));
    }
    // A corpus that the parser turns away at the door finds nothing behind it.
    assert!(whole >= 2, "{name}: {whole} entries of the corpus are pictures");
    // One for all inputs: what one picture leaves behind is there when the next one comes.
    let mut parser = depacketizer(codec);
    fuzz(name, &corpus, |entry| {
        let size: usize = entry.iter().map(Vec::len).sum();
        for payload in entry {
            if parser.push(&Bytes::copy_from_slice(payload)).is_err() {
                parser.reset();
            }
        }
        if let Ok(Some(picture)) = parser.finish() {
            // Length fields are added, nothing else.
            assert!(
                picture.data.len() <= (size * 5 + 64).min(PICTURE_BYTES_MAX + 16),
                "{} of {size}",
                picture.data.len()
            );
            assert_eq!(picture.format.is_some(), picture.is_keyframe);
        } else {
            parser.reset();
        }
    });
}

#[test]
fn h264_payloads() {
    depacketize("h264", include_str!("corpus/h264.hex"), VideoCodec::H264);
}

#[test]
fn vp8_payloads() {
    depacketize("vp8", include_str!("corpus/vp8.hex"), VideoCodec::Vp8);
}

#[test]
fn vp9_payloads() {
    depacketize("vp9", include_str!("corpus/vp9.hex"), VideoCodec::Vp9);
}

#[test]
fn av1_payloads() {
    depacketize("av1", include_str!("corpus/av1.hex"), VideoCodec::Av1);
}

/// A receiver that everything goes into, and what must hold of what comes out.
struct Sink {
    receiver: Receiver,
    start: Instant,
    now: Instant,
    last: [i64; 8],
}

impl Sink {
    fn new() -> Self {
        let start = Instant::now();
        let receiver = Receiver::new(start, &Offer::parse(OFFER).unwrap(), limits());
        Self { receiver, start, now: start, last: [i64::MIN; 8] }
    }

    fn take(&mut self, event: Event) {
        self.now += Duration::from_millis(5);
        self.receiver.handle_event(self.now, event);
        self.receiver.handle_timeout(self.now);
        assert!(
            self.receiver.poll_timeout().is_none_or(|at| at > self.now),
            "a deadline in the past: a busy loop"
        );
        while self.receiver.poll_keyframe_request().is_some() {}
        while let Some(input) = self.receiver.poll_input() {
            if let Input::Frame(frame) = input {
                let last = &mut self.last[usize::from(frame.track.0)];
                assert!(frame.pts.0 > *last, "time goes back");
                *last = frame.pts.0;
            }
        }
        // The first of so many packets would be held for hours of virtual time otherwise.
        if self.now - self.start > Duration::from_secs(600) {
            *self = Self::new();
        }
    }
}

#[test]
fn rtp_packets() {
    let corpus = corpus(include_str!("corpus/rtp.hex"));
    let mut sink = Sink::new();
    let mut parsed = 0u64;
    fuzz("rtp", &corpus, |entry| {
        for packet in entry {
            let Ok(packet) = rtc::rtp::Packet::unmarshal(&mut BytesMut::from(&packet[..]).freeze()) else {
                continue;
            };
            parsed += 1;
            sink.take(Event::Rtp(RtpPacket {
                ssrc: packet.header.ssrc,
                payload_type: packet.header.payload_type,
                sequence: packet.header.sequence_number,
                timestamp: packet.header.timestamp,
                is_marked: packet.header.marker,
                rid: packet.header.get_extension(1).and_then(|rid| String::from_utf8(rid.to_vec()).ok()),
                payload: packet.payload,
            }));
        }
    });
    assert!(parsed > 100, "{parsed} packets were read");
}

#[test]
fn retransmissions() {
    use rtc::interceptor::{AttributedPacket, Interceptor as _, Packet, StreamInfo, TaggedPacket};
    use rtc::sansio::Protocol as _;
    use rtc::shared::TransportContext;

    // The corpus's streams, and the type of their packets as that of their retransmissions every other time.
    let corpus = corpus(include_str!("corpus/rtp.hex"));
    let hold = Duration::from_millis(400);
    let (mut ssrcs, mut types) = (Vec::new(), Vec::new());
    for packet in corpus.iter().flatten() {
        if let Ok(packet) = rtc::rtp::Packet::unmarshal(&mut BytesMut::from(&packet[..]).freeze()) {
            ssrcs.push(packet.header.ssrc);
            types.push(packet.header.payload_type);
        }
    }
    const RTX: u8 = 126;
    let mut repair = Repair::alone([(RTX, types[0])].into(), 1, 2, hold);
    for &ssrc in &ssrcs {
        let rtcp_feedback =
            vec![rtc::interceptor::RTCPFeedback { typ: "nack".into(), parameter: String::new() }];
        repair.bind_remote_stream(&StreamInfo {
            ssrc,
            payload_type: types[0],
            rtcp_feedback,
            ..Default::default()
        });
    }
    let (mut now, mut through, mut asked) = (Instant::now(), 0u64, 0u64);
    let mut random = Random(5);
    fuzz("repair", &corpus, |entry| {
        for packet in entry {
            let Ok(mut packet) = rtc::rtp::Packet::unmarshal(&mut BytesMut::from(&packet[..]).freeze())
            else {
                continue;
            };
            if random.percent(50) {
                packet.header.payload_type = RTX;
            }
            // Damage makes other streams of most packets; the known ones are to be met too.
            if random.percent(70) {
                packet.header.ssrc = ssrcs[(random.next() % ssrcs.len() as u64) as usize];
            }
            now += Duration::from_millis(random.next() % 20);
            let message = AttributedPacket::new(Packet::Rtp(packet));
            repair
                .handle_read(TaggedPacket { now, transport: TransportContext::default(), message })
                .unwrap();
            while repair.poll_read().is_some() {
                through += 1;
            }
            repair.handle_timeout(now).unwrap();
            while repair.poll_write().is_some() {
                asked += 1;
            }
            assert!(repair.poll_timeout().is_none_or(|at| at > now), "a deadline in the past: a busy loop");
            let (missing, streams) = repair.held();
            assert!(missing <= ssrcs.len() * 2048 && streams <= 64, "{missing} packets, {streams} streams");
        }
    });
    assert!(through > 100 && asked > 20, "{through} packets went through, {asked} requests");
}

#[test]
fn rtcp_packets() {
    let corpus = corpus(include_str!("corpus/rtcp.hex"));
    let mut sink = Sink::new();
    let mut reports = 0u64;
    fuzz("rtcp", &corpus, |entry| {
        for packet in entry {
            let Ok(packets) = rtc::rtcp::packet::unmarshal(&mut BytesMut::from(&packet[..]).freeze()) else {
                continue;
            };
            for packet in packets {
                let Some(report) = packet.as_any().downcast_ref::<rtc::rtcp::sender_report::SenderReport>()
                else {
                    continue;
                };
                reports += 1;
                let ntp_us = (report.ntp_time >> 32) as i64 * 1_000_000;
                sink.take(Event::Report(SenderReport {
                    ssrc: report.ssrc,
                    ntp_us,
                    timestamp: report.rtp_time,
                }));
            }
        }
    });
    assert!(reports > 20, "{reports} reports were read");
}

#[test]
fn connectivity_checks() {
    let corpus = corpus(include_str!("corpus/stun.hex"));
    assert!(BindingRequest::parse(&corpus[0][0]).is_some(), "the corpus begins with a good one");
    fuzz("stun", &corpus, |entry| {
        for datagram in entry {
            if let Some(request) = BindingRequest::parse(datagram) {
                assert!(stun::is_stun(datagram));
                assert!(!request.is_authentic("no attacker knows this password"));
            }
        }
    });
}

#[test]
fn sdp_fragments() {
    let text = include_str!("corpus/sdpfrag.txt");
    assert_eq!(Fragment::parse(text).unwrap().candidates_ignored, 2);
    let lines = text.lines().map(|line| vec![format!("{line}\r\n").into_bytes()]);
    let mut corpus: Vec<Entry> = lines.collect();
    corpus.push(text.lines().map(|line| format!("{line}\r\n").into_bytes()).collect());
    fuzz("sdpfrag", &corpus, |entry| {
        let Ok(text) = String::from_utf8(entry.concat()) else { return };
        let Ok(fragment) = Fragment::parse(&text) else { return };
        assert!(fragment.candidates.len() <= 32);
        let is_one_line = |text: &String| !text.contains(['\r', '\n', '\0']);
        assert!(fragment.candidates.iter().all(is_one_line), "a candidate brings lines of its own");
        assert!(fragment.ice.iter().all(|(ufrag, pwd)| is_one_line(ufrag) && is_one_line(pwd)));
    });
}

#[test]
fn offers() {
    let entry: Entry = OFFER.lines().map(|line| format!("{line}\r\n").into_bytes()).collect();
    // Small pieces of one offer: mutation then works on lines.
    let corpus: Vec<Entry> = entry.chunks(12).map(<[Vec<u8>]>::to_vec).collect();
    let head: Vec<u8> = OFFER.lines().take(2).flat_map(|line| format!("{line}\r\n").into_bytes()).collect();
    let mut taken = 0u64;
    let mut random = Random(77);
    fuzz("sdp", &corpus, |piece| {
        // A whole offer with one piece damaged, or the piece alone.
        let text = if random.percent(80) {
            let at = (random.next() % corpus.len() as u64) as usize;
            let whole =
                corpus.iter().enumerate().flat_map(|(index, lines)| if index == at { piece } else { lines });
            whole.flatten().copied().collect::<Vec<u8>>()
        } else {
            [&head[..], &piece.concat()].concat()
        };
        let Ok(text) = String::from_utf8(text) else { return };
        let Ok(offer) = Offer::parse(&text) else { return };
        taken += 1;
        assert!(offer.tracks().len() <= LAYERS_MAX + 1);
        let reduced = offer.reduce(None);
        let again =
            Offer::parse(&reduced).unwrap_or_else(|error| panic!("{error} of what we wrote:\n{reduced}"));
        assert_eq!(again.tracks(), offer.tracks());
        let has_candidate = reduced.lines().any(|line| line.starts_with("a=candidate:"));
        assert!(!has_candidate, "candidates of an offer are dropped");
    });
    assert!(taken > 20, "{taken} offers were read");
}
