//! Memory over time: a session that runs for long needs no more than one that runs for a little.
//!
//! `SHOAL_SOAK_MINUTES` of virtual time (12 by default, 360 in a nightly run) with loss, reordering and duplicates.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::time::Duration;

use support::net::{Link, World};

/// What one minute may add, once everything is as large as it gets: what the allocator does by itself.
const GROWTH_MAX: i64 = 1 << 20;

/// Resident memory of this process, which runs nothing but this test.
fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

#[test]
#[cfg(target_os = "linux")]
fn a_long_session_needs_no_more_memory_than_a_short_one() {
    let minutes: u64 =
        std::env::var("SHOAL_SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let link =
        Link { jitter: Duration::from_millis(20), loss_percent: 3, duplicate_percent: 1, ..Link::CLEAN };
    let mut world = World::new(51, link);
    world.publisher.picture_bytes = 2000;
    world.connect();
    let (mut early, mut frames) = (0, 0);
    for minute in 0..minutes {
        for _ in 0..60 {
            world.run_for(Duration::from_secs(1));
            frames += world.inputs.len();
            world.inputs.clear();
        }
        if minute == 3 {
            early = resident_bytes();
        }
    }
    let growth = resident_bytes() - early;
    println!("{frames} frames in {minutes} minutes; {growth} bytes more than after four");
    assert!(frames as u64 > minutes * 60 * 70, "{frames} frames");
    assert!(growth < GROWTH_MAX, "{growth} bytes more after {minutes} minutes than after four");
    // The control: two minutes of pictures that somebody keeps are seen.
    let before = resident_bytes();
    world.run_for(Duration::from_secs(120));
    let kept = resident_bytes() - before;
    assert!(kept > GROWTH_MAX, "{} frames were kept in {kept} bytes", world.inputs.len());
}
