//! Real pictures over networks that lose: whatever comes out is decoded and compared with what was drawn. The network is
//! the tests' own, in virtual time.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use shoal_segmenter::frame::{Input, TrackFormat, TrackId};
use support::Media;
use support::camera::{Camera, annex_b, verify};
use support::net::{Link, World};

/// 50 ms there and back.
fn lossy(loss_percent: u32) -> Link {
    Link { loss_percent, ..Link::CLEAN }
}

/// A published picture: its access unit, and whether it needs none before it.
type Unit = (Vec<u8>, bool);

fn run(seed: u64, link: Link, seconds: u64) -> World {
    let mut world = World::new(seed, link);
    world.publisher.media = Media::Camera(Camera::new(640, 360));
    world.connect();
    world.run_for(Duration::from_secs(seconds));
    world
}

fn units(world: &World) -> Vec<Unit> {
    let mut format: Option<&TrackFormat> = None;
    let mut units = Vec::new();
    for (_, input) in &world.inputs {
        match input {
            Input::Format { track: TrackId(1), format: new } => format = Some(new),
            Input::Frame(frame) if frame.track == TrackId(1) => {
                units.push((annex_b(frame, format.expect("a format comes first")), frame.is_keyframe));
            }
            _ => {}
        }
    }
    units
}

fn bytes(units: &[Unit]) -> Vec<Vec<u8>> {
    units.iter().map(|(unit, _)| unit.clone()).collect()
}

/// What the `ffmpeg` program has to say about them; it says more than the library's results.
fn complaints(units: &[Unit]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.h264");
    std::fs::write(&path, bytes(units).concat()).unwrap();
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-err_detect", "+crccheck+bitstream+buffer+explode"])
        .args(["-f", "h264", "-i"])
        .arg(&path)
        .args(["-f", "null", "-"])
        .stdin(Stdio::null())
        .output()
        .expect("ffmpeg is installed");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn at_five_percent_loss_nearly_every_picture_comes_out_and_none_is_corrupt() {
    for seed in [11, 12, 13] {
        let mut world = run(seed, lossy(5), 10);
        let units = units(&world);
        let numbers = verify(&bytes(&units)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert_eq!(complaints(&units), "", "seed {seed}");
        let missing = world.figures().packets_missing;
        assert!(missing > 30, "seed {seed}: the network lost {missing} packets only");
        let share = numbers.len() as f64 / f64::from(world.publisher.pictures);
        assert!(share > 0.95, "seed {seed}: {share:.3} of the pictures came out");
    }
}

#[test]
fn at_twenty_percent_loss_the_picture_freezes_and_recovers_and_none_is_corrupt() {
    let mut freezes = 0;
    for seed in [21, 22, 23] {
        let mut world = run(seed, lossy(20), 15);
        let during = units(&world).len();
        world.link = Link::CLEAN;
        world.run_for(Duration::from_secs(4));
        let units = units(&world);
        let numbers = verify(&bytes(&units)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert_eq!(complaints(&units), "", "seed {seed}");
        assert!(during > 75, "seed {seed}: {during} pictures in 15 s");
        // Up to what is on its way.
        let last = numbers.last().copied().unwrap_or(0);
        assert!(last + 3 > world.publisher.pictures, "seed {seed}: {last} of {}", world.publisher.pictures);
        freezes += numbers.windows(2).filter(|pair| pair[1] - pair[0] > 1).count();
    }
    assert!(freezes > 0, "nothing was given up, so nothing was tested");
}

/// The control: were a picture published whose predecessor is missing, the checks above would say so.
#[test]
fn one_picture_that_is_missing_is_found_by_the_checks() {
    let world = run(31, Link::CLEAN, 2);
    let mut units = units(&world);
    assert!(verify(&bytes(&units)).is_ok());
    assert_eq!(complaints(&units), "");
    let gap = units.iter().position(|(_, is_keyframe)| !is_keyframe).unwrap() + 5;
    assert!(!units[gap].1);
    units.remove(gap);
    assert!(verify(&bytes(&units)).is_err());
}

/// Another control: half a slice is found as well.
#[test]
fn a_picture_that_was_cut_off_is_found_by_the_checks() {
    let world = run(32, Link::CLEAN, 2);
    let mut units = units(&world);
    let cut = units.iter().position(|(_, is_keyframe)| !is_keyframe).unwrap() + 5;
    let length = units[cut].0.len();
    units[cut].0.truncate(length / 2);
    assert!(verify(&bytes(&units)).is_err());
    assert_ne!(complaints(&units), "");
}
