//! Announces, offers and answers without sockets.

use super::message::Offer;
use super::*;

const HASH: Id = Id([7; 20]);

struct World {
    registry: Registry,
    now_ms: u64,
    out: Replies,
}

impl World {
    fn new() -> Self {
        Self::with(Settings {
            interval_s: 60,
            swarms_per_connection_max: 4,
            description_bytes_max: 16 * 1024,
            check_candidates: true,
        })
    }

    fn with(settings: Settings) -> Self {
        Self { registry: Registry::new(settings, [1; 32]), now_ms: 1_000_000, out: Vec::new() }
    }

    fn say(&mut self, connection: u8, announce: Announce) -> Replies {
        let address = format!("5.6.7.{connection}").parse().unwrap();
        let message = InMessage::Announce(Box::new(announce));
        self.registry.handle_message(self.now_ms, connection.into(), address, message, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn counts(&mut self) -> Option<Counts> {
        let scrape = InMessage::Scrape(Scrape { info_hash: vec![HASH] });
        let address = "127.0.0.1".parse().unwrap();
        self.registry.handle_message(self.now_ms, 99, address, scrape, &mut self.out);
        match self.out.pop().unwrap() {
            (99, OutMessage::Scraped { files, .. }) => files.into_values().next(),
            other => panic!("{other:?}"),
        }
    }
}

fn peer(number: u8) -> Id {
    Id([number; 20])
}

fn announce(number: u8) -> Announce {
    Announce {
        info_hash: HASH,
        peer_id: peer(number),
        left: None,
        event: None,
        numwant: None,
        offers: None,
        answer: None,
        to_peer_id: None,
        offer_id: None,
    }
}

fn with_offers(number: u8, count: u8, sdp: &str) -> Announce {
    let offer = |id| Offer { offer: Description { kind: Kind::Offer, sdp: sdp.into() }, offer_id: peer(id) };
    Announce { offers: Some((0..count).map(|at| offer(100 + at)).collect()), ..announce(number) }
}

fn answer(number: u8, to: u8, offer_id: u8, sdp: &str) -> Announce {
    Announce {
        answer: Some(Description { kind: Kind::Answer, sdp: sdp.into() }),
        to_peer_id: Some(peer(to)),
        offer_id: Some(peer(offer_id)),
        ..announce(number)
    }
}

fn failure(replies: &Replies) -> Option<&'static str> {
    replies.iter().find_map(|(_, message)| match message {
        OutMessage::Failed { reason, .. } => Some(*reason),
        _ => None,
    })
}

#[test]
fn offers_reach_others_and_answers_come_back() {
    let mut world = World::new();
    for number in 1..=3 {
        world.say(number, announce(number));
    }
    let replies = world.say(4, with_offers(4, 5, "v=0"));
    assert!(matches!(
        replies[0],
        (4, OutMessage::Announced { interval: 60, complete: 0, incomplete: 4, .. })
    ));
    let mut receivers: Vec<Connection> = replies[1..].iter().map(|(to, _)| *to).collect();
    receivers.sort_unstable();
    assert_eq!(receivers, [1, 2, 3], "each other peer gets one offer");
    let (to, OutMessage::Offered { offer_id, peer_id, .. }) = &replies[1] else { panic!() };
    assert_eq!(*peer_id, peer(4));
    let answerer = u8::try_from(*to).unwrap();
    let replies = world.say(answerer, answer(answerer, 4, offer_id.0[0], "v=0 answer"));
    let expected = OutMessage::Answered {
        action: "announce",
        answer: Description { kind: Kind::Answer, sdp: "v=0 answer".into() },
        offer_id: *offer_id,
        peer_id: peer(answerer),
        info_hash: HASH,
    };
    assert_eq!(replies, [(4, expected)]);
}

#[test]
fn answers_to_offers_that_were_not_passed_on_reach_nobody() {
    let mut world = World::new();
    world.say(1, announce(1));
    world.say(2, announce(2));
    let unasked = world.say(1, answer(1, 2, 100, "v=0"));
    assert_eq!(failure(&unasked), Some("no such offer was passed to you"));
    world.say(2, with_offers(2, 1, "v=0"));
    world.now_ms += ANSWER_WITHIN_MS;
    assert!(failure(&world.say(1, answer(1, 2, 100, "v=0"))).is_some(), "too late");
    world.say(2, with_offers(2, 1, "v=0"));
    assert_eq!(failure(&world.say(1, answer(1, 2, 100, "v=0"))), None);
    assert!(failure(&world.say(1, answer(1, 2, 100, "v=0"))).is_some(), "once is enough");
}

#[test]
fn a_connection_cannot_speak_for_another_peer() {
    let mut world = World::new();
    world.say(1, announce(1));
    assert_eq!(failure(&world.say(2, announce(1))), Some("this peer id is another connection's"));
    let stop = Announce { event: Some("stopped".into()), ..announce(1) };
    assert!(failure(&world.say(2, stop.clone())).is_some());
    assert_eq!(world.counts().unwrap().incomplete, 1);
    world.say(1, stop);
    assert_eq!(world.counts(), None);
    assert_eq!(world.registry.swarms(), 0);
}

#[test]
fn seeders_are_counted_and_peers_that_stop_or_vanish_are_gone() {
    let mut world = World::new();
    world.say(1, Announce { left: Some(0.into()), ..announce(1) });
    world.say(2, announce(2));
    world.say(3, announce(3));
    assert_eq!(world.counts(), Some(Counts { complete: 1, incomplete: 2, downloaded: 0 }));
    world.say(2, Announce { event: Some("completed".into()), ..announce(2) });
    assert_eq!(world.counts(), Some(Counts { complete: 2, incomplete: 1, downloaded: 1 }));
    world.registry.handle_closed(1);
    assert_eq!(world.counts(), Some(Counts { complete: 1, incomplete: 1, downloaded: 1 }));
    world.now_ms += 100_000;
    world.say(3, announce(3));
    world.now_ms += 100_000;
    assert_eq!(
        world.counts(),
        Some(Counts { complete: 0, incomplete: 1, downloaded: 1 }),
        "2 no longer announces"
    );
}

#[test]
fn one_connection_is_in_few_swarms() {
    let mut world = World::new();
    for at in 0..4 {
        let swarm = Announce { info_hash: Id([at; 20]), ..announce(1) };
        assert_eq!(failure(&world.say(1, swarm)), None);
    }
    let fifth = Announce { info_hash: Id([9; 20]), ..announce(1) };
    assert_eq!(failure(&world.say(1, fifth)), Some("too many swarms for one connection"));
    assert_eq!(world.registry.swarms(), 4);
}

/// Whether a candidate that points into the receiver's network arrives there.
fn injected(check_candidates: bool) -> bool {
    let mut world = World::with(Settings { check_candidates, ..World::new().registry.settings });
    world.say(1, announce(1));
    let sdp = "v=0\r\na=candidate:1 1 udp 1 192.168.1.1 5000 typ host\r\na=candidate:2 1 udp 1 5.6.7.2 5000 typ srflx\r\n";
    let replies = world.say(2, with_offers(2, 1, sdp));
    let (_, OutMessage::Offered { offer, .. }) = &replies[1] else { panic!() };
    assert!(offer.sdp.contains("5.6.7.2"));
    offer.sdp.contains("192.168.1.1")
}

#[test]
fn candidates_are_checked_as_everywhere() {
    assert!(!injected(true));
    assert!(injected(false), "control: without the check it arrives");
}

#[test]
fn chosen_peers_are_distinct_and_never_the_sender() {
    let mut rng = StdRng::from_seed([3; 32]);
    for all in 0..40 {
        for count in 0..12 {
            let except = all / 2;
            let mut chosen = choose(&mut rng, all, except, count);
            assert_eq!(chosen.len(), count.min(all.saturating_sub(1)));
            assert!(chosen.iter().all(|at| *at < all && *at != except));
            chosen.sort_unstable();
            chosen.dedup();
            assert_eq!(chosen.len(), count.min(all.saturating_sub(1)));
        }
    }
}
