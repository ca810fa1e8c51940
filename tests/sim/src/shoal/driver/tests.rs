//! That the driver makes the checks, shown by breaking on purpose what they look at.

use super::*;
use crate::people::draw;

/// Ten seconds of five viewers; then something is done to the world; then half a second more.
fn break_it(breaks: impl FnOnce(&mut World<'_>)) {
    let scenario = Scenario::named("tiny").unwrap();
    let visits = draw(&scenario, 5, 1);
    let mut progress = |_, _: &str| {};
    let mut world = World::new(&scenario, &visits, 5, 1, Knobs::default(), &mut progress);
    let play_until = |world: &mut World<'_>, end_us| {
        while let Some((at_us, event)) = world.queue.pop() {
            world.now_us = at_us;
            world.handle(event);
            if at_us >= end_us {
                return;
            }
        }
    };
    play_until(&mut world, 10_000_000);
    assert!(world.tracker.checks > 10, "plans are checked: {}", world.tracker.checks);
    breaks(&mut world);
    play_until(&mut world, 10_500_000);
}

fn viewer<'a>(world: &'a mut World<'_>) -> &'a mut Viewer {
    world.viewers[2].as_mut().expect("all have joined and nobody leaves")
}

/// Has a core's outputs say something that it did not.
fn say(world: &mut World<'_>, output: Output) {
    let mut state = world.viewers[2].take().expect("all have joined and nobody leaves");
    world.carry_out(2, &mut state, output, None);
    world.viewers[2] = Some(state);
}

/// The newest piece that the viewer has all of.
fn complete_piece(world: &mut World<'_>) -> PieceId {
    let newest = world.stream.next_number();
    let store = &world.viewers[2].as_ref().expect("all have joined and nobody leaves").store;
    let is_complete = |number: &u64| store.is_complete(0, *number, world.stream.piece(0, *number).length);
    let number = (0..newest).rev().find(is_complete).expect("ten seconds gave some");
    world.stream.piece(0, number).id
}

#[test]
fn what_is_not_broken_goes_on() {
    break_it(|_| {});
}

#[test]
#[should_panic(expected = "answered at most once")]
fn a_second_delivery_ends_the_run() {
    break_it(|world| {
        let first = complete_piece(world);
        let request = viewer(world).request;
        for _ in 0..2 {
            say(world, Output::Deliver { request, first, parts: 1 });
        }
    });
}

#[test]
#[should_panic(expected = "answered at most once")]
fn a_second_fallback_ends_the_run() {
    break_it(|world| {
        let request = viewer(world).request;
        let reason = shoal_swarm::FallbackReason::NoRecord;
        for _ in 0..2 {
            say(world, Output::Fallback { request, reason });
        }
    });
}

#[test]
#[should_panic(expected = "bytes sent")]
fn bytes_that_do_not_add_up_end_the_run() {
    break_it(|world| viewer(world).books.sent(1));
}

#[test]
#[should_panic(expected = "self.neighbors.len() <= self.neighbors_max")]
fn a_limit_that_is_exceeded_ends_the_run() {
    break_it(|world| {
        // The neighbors are there when it hears how few it may have.
        let input = Input::Welcome {
            peer: peer_id(2),
            neighbors_max: 1,
            upload_ratio_percent: 200,
            report_interval: Span::from_ms(5_000),
        };
        world.feed(2, &input, None);
    });
}

#[test]
#[should_panic(expected = "only what is verified is stored")]
fn garbage_that_is_stored_ends_the_run() {
    break_it(|world| {
        let piece = complete_piece(world);
        let number = world.stream.number(piece).expect("it was published");
        let mut state = world.viewers[2].take().expect("all have joined and nobody leaves");
        state.books.came_from_peer(1);
        let brought = Brought { rendition: 0, number: number as u32, block: 0, is_bad: true };
        let output = Output::Store { piece, block: 0, piece_length: 1, held: None };
        world.carry_out(2, &mut state, output, Some(brought));
    });
}

#[test]
fn what_a_player_loaded_itself_counts_as_held_once_it_is_kept() {
    break_it(|world| {
        let piece = complete_piece(world);
        let number = world.stream.number(piece).expect("it was published");
        world.measure.first_held.clear();
        say(world, Output::KeepLoaded { piece });
        assert_eq!(world.measure.first_held.get(&(piece.rendition, number)), Some(&world.now_us));
    });
}
