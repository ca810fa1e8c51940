//! What comes out when the network loses, delays, reorders and doubles: real SRTP and ICE between two stacks in
//! virtual time. Every picture that comes out is compared with the one that went in.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::time::Duration;

use shoal_segmenter::frame::{Input, TrackFormat, TrackId, VideoCodec};
use support::net::{Link, World};
use support::{Style, picture, picture_number, sound};

const LOSSY: Link =
    Link { delay: Duration::from_millis(25), jitter: Duration::ZERO, loss_percent: 5, duplicate_percent: 0 };

/// What came out of a run, after the checks that hold for every run.
struct Outcome {
    pictures: Vec<u32>,
    /// How long each picture took from being sent until it came out.
    longest_gap: Duration,
    sounds: usize,
}

fn check(world: &World) -> Outcome {
    let style = world.publisher.style;
    let (mut pictures, mut sounds, mut last_number) = (Vec::new(), 0, None);
    let (mut last_pts, mut has_format) = ([i64::MIN; 2], false);
    let (mut last_at, mut longest_gap) = (None, Duration::ZERO);
    for (at, input) in &world.inputs {
        match input {
            Input::Format { track: TrackId(1), format } => {
                has_format = true;
                assert!(matches!(format, TrackFormat::Video { codec: VideoCodec::H264, .. }));
            }
            Input::Format { .. } => {}
            Input::Discontinuity => panic!("a discontinuity at {at:?}"),
            Input::Frame(frame) => {
                let index = usize::from(frame.track.0);
                assert!(frame.pts.0 > last_pts[index], "time goes backwards");
                last_pts[index] = frame.pts.0;
                if frame.track == TrackId(0) {
                    sounds += 1;
                    let number = u32::from_be_bytes(frame.data[1..5].try_into().unwrap());
                    assert_eq!(frame.data, sound(number));
                    continue;
                }
                assert!(has_format, "a picture before its format");
                let number = picture_number(&frame.data);
                let expected = picture(number, frame.is_keyframe, world.publisher.picture_bytes, style);
                assert!(frame.data == expected, "picture {number} isn't what was sent");
                // A picture that isn't a keyframe needs the one before it.
                if !frame.is_keyframe {
                    assert_eq!(Some(number - 1), last_number, "a hole before a picture that needs it");
                }
                last_number = Some(number);
                pictures.push(number);
                if let Some(last) = last_at {
                    longest_gap = longest_gap.max(*at - last);
                }
                last_at = Some(*at);
            }
        }
    }
    Outcome { pictures, longest_gap, sounds }
}

fn run(seed: u64, link: Link, seconds: u64) -> (World, Outcome) {
    let mut world = World::new(seed, link);
    world.connect();
    world.run_for(Duration::from_secs(seconds));
    let outcome = check(&world);
    (world, outcome)
}

#[test]
fn without_loss_every_frame_comes_out_at_once() {
    let (mut world, outcome) = run(1, Link::CLEAN, 5);
    assert!(outcome.pictures.len() >= 149, "{}", outcome.pictures.len());
    assert!(outcome.sounds >= 249, "{}", outcome.sounds);
    assert!(outcome.longest_gap < Duration::from_millis(40), "{:?}", outcome.longest_gap);
    assert_eq!(world.figures().packets_missing, 0);
    assert_eq!(world.publisher.asked().retransmissions, 0);
    let held = world.receiver.held;
    assert!(held.max <= Duration::from_millis(1), "added latency {:?}", held.max);
}

#[test]
fn parameter_sets_in_packets_of_their_own_and_several_slices_come_out_as_one_picture() {
    let mut world = World::new(2, Link::CLEAN);
    world.publisher.style = Style::Obs;
    world.connect();
    world.run_for(Duration::from_secs(2));
    assert!(check(&world).pictures.len() >= 59);
}

#[test]
fn five_percent_loss_is_repaired_without_a_corrupt_frame() {
    for seed in 1..=3 {
        let (mut world, outcome) = run(seed, LOSSY, 20);
        let share = outcome.pictures.len() as f64 / f64::from(world.publisher.pictures);
        let figures = world.figures();
        assert!(figures.packets_missing > 50, "the network lost nothing: {figures:?}");
        assert!(share > 0.97, "seed {seed}: {share:.3} of the pictures came out, {figures:?}");
        // Each packet is asked for about once: a storm of requests makes the loss worse.
        let asked = world.publisher.asked().retransmissions as f64 / figures.packets_missing as f64;
        assert!(asked < 1.5, "seed {seed}: {asked:.2} requests for each lost packet, {figures:?}");
        assert!(outcome.longest_gap < Duration::from_millis(1000), "seed {seed}: {:?}", outcome.longest_gap);
    }
}

#[test]
fn twenty_percent_loss_freezes_and_recovers_without_a_corrupt_frame() {
    let link = Link { loss_percent: 20, ..LOSSY };
    let mut world = World::new(4, link);
    world.connect();
    world.run_for(Duration::from_secs(20));
    let during = check(&world).pictures.len();
    world.link = Link::CLEAN;
    world.run_for(Duration::from_secs(3));
    let before = world.inputs.len();
    world.run_for(Duration::from_secs(2));
    let after = world.inputs[before..]
        .iter()
        .filter(|(_, input)| matches!(input, Input::Frame(frame) if frame.track == TrackId(1)))
        .count();
    check(&world);
    assert!(during > 100, "{during} pictures in 20 s");
    assert!(after >= 58, "{after} pictures in 2 s after the network recovered");
}

#[test]
fn reordered_and_doubled_packets_come_out_once_and_in_order() {
    let link = Link {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(30),
        loss_percent: 0,
        duplicate_percent: 10,
    };
    let (world, outcome) = run(5, link, 10);
    assert!(outcome.pictures.len() as u32 >= world.publisher.pictures - 3);
    assert!(outcome.sounds as u32 >= world.publisher.sounds - 5, "{}", outcome.sounds);
}

#[test]
fn latency_inside_stays_bounded_whatever_is_lost() {
    for loss_percent in [1, 10, 30] {
        let (world, _) = run(6, Link { loss_percent, ..LOSSY }, 10);
        // The hold, and what remains of the picture behind the lost packet.
        let max = world.receiver.held.max;
        assert!(max < Duration::from_millis(480), "{max:?} at {loss_percent} % loss");
    }
}

#[test]
fn empty_packets_are_no_pictures() {
    let mut world = World::new(7, Link::CLEAN);
    world.connect();
    for _ in 0..60 {
        world.run_for(Duration::from_millis(33));
        let now = world.now;
        world.publisher.send_empty_packet(now);
    }
    assert!(check(&world).pictures.len() >= 58);
    assert_eq!(world.publisher.asked().keyframes, 0, "none was needed after the first");
}

#[test]
fn a_change_of_resolution_arrives_as_a_new_format_before_its_keyframe() {
    let mut world = World::new(8, Link::CLEAN);
    world.connect();
    world.run_for(Duration::from_secs(1));
    world.publisher.sps = support::SPS_360;
    world.publisher.wants_keyframe = true;
    world.run_for(Duration::from_secs(1));
    check(&world);
    let sizes: Vec<(u32, u32)> = world
        .inputs
        .iter()
        .filter_map(|(_, input)| match input {
            Input::Format { format: TrackFormat::Video { width, height, .. }, .. } => Some((*width, *height)),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [(1280, 720), (640, 360)]);
}

#[test]
fn a_new_address_of_the_publisher_takes_the_stream_over() {
    let mut world = World::new(9, Link::CLEAN);
    world.connect();
    world.run_for(Duration::from_secs(2));
    world.outside = ([10, 0, 0, 9], 40_404).into();
    world.run_for(Duration::from_secs(40));
    assert!(!world.is_closed, "the connection was given up");
    let before = world.inputs.len();
    world.publisher.wants_keyframe = false;
    world.receiver.want_keyframes(world.now);
    world.run_for(Duration::from_secs(1));
    let has_keyframe = world.inputs[before..].iter().any(
        |(_, input)| matches!(input, Input::Frame(frame) if frame.track == TrackId(1) && frame.is_keyframe),
    );
    assert!(has_keyframe, "requests don't reach the new address");
}

#[test]
fn a_publisher_that_closes_its_connection_is_gone_at_once() {
    let mut world = World::new(10, Link::CLEAN);
    world.connect();
    world.run_for(Duration::from_secs(1));
    world.sends_media = false;
    world.publisher.close();
    world.run_for(Duration::from_millis(200));
    assert!(world.is_closed);
}
