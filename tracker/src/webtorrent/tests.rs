//! Announces, offers and answers without sockets.

use serde_json::{Value, json};

use super::*;

const HASH: Id = Id([7; 20]);

/// What is sent: to whom, and what.
type Sent = Vec<(Connection, Value)>;

struct World {
    registry: Registry,
    now_ms: u64,
    /// Connections that have no room for offers.
    full: Vec<Connection>,
    /// Whether viewers of different networks may meet.
    strangers_meet: bool,
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
        Self {
            registry: Registry::new(settings, [1; 32]),
            now_ms: 1_000_000,
            full: Vec::new(),
            strangers_meet: true,
        }
    }

    fn say(&mut self, connection: u8, message: &Value) -> Sent {
        // From 50 on each has a network of its own.
        let address = match connection {
            0..50 => format!("5.6.7.{connection}"),
            _ => format!("5.6.{connection}.1"),
        };
        let address = address.parse().unwrap();
        let text = message.to_string();
        let message = serde_json::from_str(&text).unwrap();
        let mut out = Vec::new();
        let has_room = |connection| !self.full.contains(&connection);
        let asks = Asks { has_room: &has_room, may_meet: &|_, _| self.strangers_meet };
        self.registry.handle_message(self.now_ms, connection.into(), address, message, asks, &mut out);
        out.into_iter().map(|(to, message)| (to, serde_json::to_value(message).unwrap())).collect()
    }

    /// Seeders, others, times that it was completed; none if there is no such swarm.
    fn counts(&mut self) -> Option<[u64; 3]> {
        let sent = self.say(99, &json!({ "action": "scrape", "info_hash": HASH }));
        let [(99, scraped)] = &sent[..] else { panic!("{sent:?}") };
        let counts = scraped["files"].as_object().unwrap().values().next()?;
        Some(["complete", "incomplete", "downloaded"].map(|name| counts[name].as_u64().unwrap()))
    }
}

fn peer(number: u8) -> Id {
    Id([number; 20])
}

fn announce(number: u8) -> Value {
    json!({ "action": "announce", "info_hash": HASH, "peer_id": peer(number) })
}

/// A message with another field.
fn with(mut message: Value, name: &str, value: impl Into<Value>) -> Value {
    message[name] = value.into();
    message
}

fn with_offers(number: u8, count: u8, sdp: &str) -> Value {
    let offer = |id| json!({ "offer": { "type": "offer", "sdp": sdp }, "offer_id": peer(id) });
    with(announce(number), "offers", (0..count).map(|at| offer(100 + at)).collect::<Vec<_>>())
}

fn answer(number: u8, to: u8, offer_id: u8, sdp: &str) -> Value {
    let answer = with(announce(number), "answer", json!({ "type": "answer", "sdp": sdp }));
    with(with(answer, "to_peer_id", json!(peer(to))), "offer_id", json!(peer(offer_id)))
}

fn failure(sent: &Sent) -> Option<&str> {
    sent.iter().find_map(|(_, message)| message["failure reason"].as_str())
}

/// Who was sent an offer.
fn receivers(sent: &Sent) -> Vec<Connection> {
    let offers = sent.iter().filter(|(_, message)| message["offer"].is_object());
    let mut receivers: Vec<_> = offers.map(|(to, _)| *to).collect();
    receivers.sort_unstable();
    receivers
}

#[test]
fn offers_reach_others_and_answers_come_back() {
    let mut world = World::new();
    for number in 1..=3 {
        world.say(number, &announce(number));
    }
    let sent = world.say(4, &with_offers(4, 5, "v=0"));
    let reply =
        json!({ "action": "announce", "interval": 60, "info_hash": HASH, "complete": 0, "incomplete": 4 });
    assert_eq!(sent[0], (4, reply));
    assert_eq!(receivers(&sent), [1, 2, 3], "each other peer gets one offer");
    let (to, offered) = &sent[1];
    assert_eq!(offered["peer_id"], json!(peer(4)));
    let answerer = u8::try_from(*to).unwrap();
    let offer_id: Id = serde_json::from_value(offered["offer_id"].clone()).unwrap();
    let sent = world.say(answerer, &answer(answerer, 4, offer_id.0[0], "v=0 answer"));
    let expected = json!({
        "action": "announce",
        "answer": { "type": "answer", "sdp": "v=0 answer" },
        "offer_id": offer_id,
        "peer_id": peer(answerer),
        "info_hash": HASH,
    });
    assert_eq!(sent, [(4, expected)]);
}

#[test]
fn offers_cross_networks_only_as_far_as_both_may_pay() {
    let mut world = World::new();
    for number in [1, 2, 61, 62] {
        world.say(number, &announce(number));
    }
    assert_eq!(receivers(&world.say(3, &with_offers(3, 10, "v=0"))), [1, 2, 61, 62], "control");
    world.strangers_meet = false;
    assert_eq!(receivers(&world.say(3, &with_offers(3, 10, "v=0"))), [1, 2], "those of its own network");
}

#[test]
fn offers_go_to_peers_that_have_room() {
    let mut world = World::new();
    for number in 1..=40 {
        world.say(number, &announce(number));
    }
    world.full = (1..=20).collect();
    let sent = world.say(50, &with_offers(50, 5, "v=0"));
    assert_eq!(receivers(&sent).len(), 5, "of forty peers twenty have room");
    assert!(receivers(&sent).iter().all(|to| *to > 20), "{:?}", receivers(&sent));
    // To whom nothing was passed, from him no answer is taken.
    assert_eq!(failure(&world.say(1, &answer(1, 50, 100, "v=0"))), Some("no such offer was passed to you"));
    world.full = (1..=40).collect();
    let sent = world.say(50, &with_offers(50, 5, "v=0"));
    assert!(receivers(&sent).is_empty());
    assert_eq!(sent.len(), 1, "the announce itself is answered");
}

#[test]
fn an_offer_that_is_none_is_passed_to_nobody() {
    let mut world = World::new();
    world.say(1, &announce(1));
    for offer in [
        json!(7),
        json!({ "offer": { "type": "answer", "sdp": "v=0" }, "offer_id": peer(100) }),
        json!({ "offer": { "type": "offer", "sdp": "v".repeat(17 * 1024) }, "offer_id": peer(100) }),
        json!({ "offer": { "type": "offer", "sdp": "v=0" }, "offer_id": "short" }),
    ] {
        let sent = world.say(2, &with(announce(2), "offers", vec![offer.clone()]));
        assert!(receivers(&sent).is_empty(), "{offer}");
        assert!(failure(&world.say(1, &answer(1, 2, 100, "v=0"))).is_some(), "{offer}");
    }
    assert_eq!(receivers(&world.say(2, &with_offers(2, 1, "v=0"))), [1]);
}

#[test]
fn answers_to_offers_that_were_not_passed_on_reach_nobody() {
    let mut world = World::new();
    world.say(1, &announce(1));
    world.say(2, &announce(2));
    let unasked = world.say(1, &answer(1, 2, 100, "v=0"));
    assert_eq!(failure(&unasked), Some("no such offer was passed to you"));
    world.say(2, &with_offers(2, 1, "v=0"));
    world.now_ms += ANSWER_WITHIN_MS;
    assert!(failure(&world.say(1, &answer(1, 2, 100, "v=0"))).is_some(), "too late");
    world.say(2, &with_offers(2, 1, "v=0"));
    world.say(3, &announce(3));
    assert!(failure(&world.say(1, &answer(1, 3, 100, "v=0"))).is_some(), "it is another's offer");
    assert_eq!(failure(&world.say(1, &answer(1, 2, 100, "v=0"))), None);
    assert!(failure(&world.say(1, &answer(1, 2, 100, "v=0"))).is_some(), "once is enough");
}

#[test]
fn a_connection_cannot_speak_for_another_peer() {
    let mut world = World::new();
    world.say(1, &announce(1));
    assert_eq!(failure(&world.say(2, &announce(1))), Some("this peer id is another connection's"));
    let stop = with(announce(1), "event", "stopped");
    assert!(failure(&world.say(2, &stop)).is_some());
    assert_eq!(world.counts().unwrap()[1], 1);
    world.say(1, &stop);
    assert_eq!(world.counts(), None);
    assert_eq!(world.registry.swarms(), 0);
}

#[test]
fn seeders_are_counted_and_peers_that_stop_or_vanish_are_gone() {
    let mut world = World::new();
    world.say(1, &with(announce(1), "left", 0));
    world.say(2, &announce(2));
    world.say(3, &announce(3));
    assert_eq!(world.counts(), Some([1, 2, 0]));
    world.say(2, &with(announce(2), "event", "completed"));
    assert_eq!(world.counts(), Some([2, 1, 1]));
    world.registry.handle_closed(1);
    assert_eq!(world.counts(), Some([1, 1, 1]));
    world.now_ms += 100_000;
    world.say(3, &announce(3));
    world.now_ms += 100_000;
    assert_eq!(world.counts(), Some([0, 1, 1]), "2 no longer announces");
}

#[test]
fn one_connection_is_in_few_swarms() {
    let mut world = World::new();
    for at in 0..4 {
        let swarm = with(announce(1), "info_hash", json!(Id([at; 20])));
        assert_eq!(failure(&world.say(1, &swarm)), None);
    }
    let fifth = with(announce(1), "info_hash", json!(Id([9; 20])));
    assert_eq!(failure(&world.say(1, &fifth)), Some("too many swarms for one connection"));
    assert_eq!(world.registry.swarms(), 4);
}

/// Whether a candidate that points into the receiver's network arrives there.
fn injected(check_candidates: bool) -> bool {
    let mut world = World::with(Settings { check_candidates, ..World::new().registry.settings });
    world.say(1, &announce(1));
    let sdp = "v=0\r\na=candidate:1 1 udp 1 192.168.1.1 5000 typ host\r\na=candidate:2 1 udp 1 5.6.7.2 5000 typ srflx\r\n";
    let sent = world.say(2, &with_offers(2, 1, sdp));
    let passed = sent[1].1["offer"]["sdp"].as_str().unwrap();
    assert!(passed.contains("5.6.7.2"));
    passed.contains("192.168.1.1")
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
            let mut chosen = choose(&mut rng, all, except, count, |_| true);
            assert_eq!(chosen.len(), count.min(all.saturating_sub(1)));
            assert!(chosen.iter().all(|at| *at < all && *at != except));
            chosen.sort_unstable();
            chosen.dedup();
            assert_eq!(chosen.len(), count.min(all.saturating_sub(1)));
        }
    }
}
