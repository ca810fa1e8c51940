//! What a few viewers together do when nobody attacks them.

use super::world::World;
use crate::Span;

#[test]
fn four_viewers_fetch_each_piece_about_once() {
    let mut world = World::new(4, 1);
    world.start();
    world.run_for(Span::from_secs(30));
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(world.copies() < 1.15, "{}", world.copies());
    assert!(world.viewers.iter().all(|viewer| viewer.delivered > 50));
}

#[test]
fn a_lone_viewer_fetches_each_byte_once() {
    let mut world = World::new(1, 1);
    world.start();
    world.run_for(Span::from_secs(20));
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(world.copies() < 1.05, "{}", world.copies());
}

#[test]
fn the_same_seed_gives_the_same_outputs() {
    let run = |seed| {
        let mut world = World::new(4, seed);
        world.start();
        world.run_for(Span::from_secs(8));
        world.vanish(2);
        world.run_for(Span::from_secs(8));
        world.fingerprint()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn viewers_that_lose_a_root_without_notice_keep_playing_and_share_the_holes() {
    let mut world = World::new(4, 5);
    world.start();
    world.run_for(Span::from_secs(8));
    let (before, published) = (world.origin_bytes, world.published_bytes);
    world.vanish(2);
    world.run_for(Span::from_secs(12));
    let copies = (world.origin_bytes - before) as f64 / (world.published_bytes - published) as f64;
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(copies < 1.25, "a quarter of the stripes has no root: {copies}");
    let outputs = world.viewers.iter().map(|viewer| viewer.outputs).max();
    assert!(outputs < Some(3000), "nothing spins: {outputs:?}");
}
