//! A swarm with scripted viewers in virtual time: what the core promises, and what it withstands.
//!
//! [`World`] is a swarm and viewers that do what they are told: they connect when introduced (unless a test says that
//! a pair can't) and remember their plans. No sockets.

use std::collections::BTreeMap;

use shoal_tracker_protocol::{Piece, Place, Signal};

use super::*;

#[derive(Debug, Default)]
struct Viewer {
    session: Option<Session>,
    resume: String,
    received: Vec<TrackerMessage>,
    neighbors: Vec<PeerId>,
    met: std::collections::BTreeSet<PeerId>,
    places: BTreeMap<(u8, u8), Place>,
    sharing: bool,
    closed: Option<CloseReason>,
}

struct World {
    swarm: Swarm,
    now_ms: u64,
    viewers: BTreeMap<PeerId, Viewer>,
    /// Whether introduced viewers connect by themselves.
    connects: bool,
    msn: u64,
    /// Where those who join are.
    locality: crate::plan::Locality,
}

impl World {
    fn new(settings: Settings) -> Self {
        let secret = Secret::new([9; 32]);
        let id = secret.swarm_id("demo", &[1; 16], 0);
        let swarm = Swarm::new(id, secret, [7; 32], settings, crate::plan::Settings::default());
        let mut world = Self {
            swarm,
            now_ms: 1_000,
            viewers: BTreeMap::new(),
            connects: true,
            msn: 1,
            locality: crate::plan::Locality::default(),
        };
        world.publish();
        world
    }

    fn join_from(&mut self, address: &str) -> PeerId {
        self.join(address, None, true)
    }

    fn join(&mut self, address: &str, resume: Option<&str>, shares: bool) -> PeerId {
        self.join_with(address, resume, shares, None)
    }

    fn join_with(
        &mut self,
        address: &str,
        resume: Option<&str>,
        shares: bool,
        credential: Option<&Credential>,
    ) -> PeerId {
        let joining = Joining {
            address: address.parse().unwrap(),
            locality: self.locality,
            shares,
            renditions: &[0],
            resume,
            credential,
        };
        let mut out = Vec::new();
        let session = self.swarm.handle_join(self.now_ms, &joining, Vec::new(), &mut out);
        let viewer = self.viewers.entry(session.peer).or_default();
        viewer.session = Some(session);
        viewer.sharing = true;
        viewer.closed = None;
        self.deliver(out);
        session.peer
    }

    fn say(&mut self, peer: PeerId, message: ViewerMessage) {
        let session = self.viewers[&peer].session.unwrap();
        self.say_in(session, message);
    }

    fn say_in(&mut self, session: Session, message: ViewerMessage) {
        let mut out = Vec::new();
        self.swarm.handle_message(self.now_ms, session, message, &mut out);
        self.deliver(out);
    }

    fn report(&mut self, peer: PeerId, uplink_kbps: u32) {
        let report = Report { uplink_kbps, renditions: vec![0], ..Report::default() };
        self.say(peer, ViewerMessage::Report(report));
    }

    fn close(&mut self, peer: PeerId, is_final: bool) {
        let session = self.viewers[&peer].session.unwrap();
        let mut out = Vec::new();
        self.swarm.handle_closed(self.now_ms, session, is_final, &mut out);
        self.deliver(out);
    }

    fn publish(&mut self) {
        let mut out = Vec::new();
        let piece = Piece { rendition: 0, msn: self.msn, part: 0 };
        self.msn += 1;
        let published =
            Published { piece, uri: "e/v0/part.m4s".into(), record: "AAAA".into(), length: 187_500 };
        self.swarm.handle_published(self.now_ms, published, &mut out);
        self.deliver(out);
    }

    /// Lets time pass up to every deadline of the swarm, with a piece each half second and every viewer alive.
    fn run_for(&mut self, span_ms: u64) {
        let end_ms = self.now_ms + span_ms;
        let mut next_piece_ms = self.now_ms + 500;
        let mut next_ping_ms = self.now_ms + 5_000;
        while self.now_ms < end_ms {
            let deadline = self.swarm.next_deadline().unwrap_or(u64::MAX).max(self.now_ms + 1);
            self.now_ms = deadline.min(next_piece_ms).min(next_ping_ms).min(end_ms);
            if self.now_ms == next_piece_ms {
                self.publish();
                next_piece_ms += 500;
            }
            if self.now_ms == next_ping_ms {
                let alive: Vec<PeerId> = self.alive();
                alive.into_iter().for_each(|peer| self.say(peer, ViewerMessage::Ping));
                next_ping_ms += 5_000;
            }
            let mut out = Vec::new();
            self.swarm.handle_deadline(self.now_ms, &mut out);
            self.deliver(out);
            self.check();
        }
    }

    fn alive(&self) -> Vec<PeerId> {
        let is_alive = |viewer: &Viewer| viewer.session.is_some() && viewer.closed.is_none();
        self.viewers.iter().filter(|(_, viewer)| is_alive(viewer)).map(|(peer, _)| *peer).collect()
    }

    /// Invariants after every step.
    fn check(&self) {
        let settings = &self.swarm.settings;
        assert_eq!(self.swarm.checks.len(), self.swarm.members.len());
        let present = self.swarm.members.values().filter(|member| member.is_present()).count();
        assert_eq!(present, self.swarm.present);
        for peer in self.swarm.members.keys() {
            assert!(self.swarm.pairs.peers(*peer).len() <= 2 * settings.neighbors_max as usize);
        }
    }

    fn deliver(&mut self, out: Vec<Output>) {
        let mut replies = Vec::new();
        for output in out {
            match output {
                Output::Send { to, message } => self.receive(to, *message, &mut replies),
                Output::Notify { to, notice } => self.receive(to, notice.message.clone(), &mut replies),
                Output::NotifyAll { notice } => {
                    for peer in self.alive() {
                        self.receive(peer, notice.message.clone(), &mut replies);
                    }
                }
                Output::Close { session, reason } => {
                    let viewer = self.viewers.get_mut(&session.peer).unwrap();
                    if viewer.session == Some(session) {
                        viewer.closed = Some(reason);
                    }
                }
            }
        }
        for (peer, message) in replies {
            if self.viewers[&peer].closed.is_none() {
                self.say(peer, message);
            }
        }
    }

    fn receive(&mut self, to: PeerId, message: TrackerMessage, replies: &mut Vec<(PeerId, ViewerMessage)>) {
        let connects = self.connects;
        let viewer = self.viewers.entry(to).or_default();
        match &message {
            TrackerMessage::Welcome(welcome) => viewer.resume.clone_from(&welcome.resume),
            TrackerMessage::Introduce { peer, .. } => {
                viewer.met.insert(*peer);
                if connects {
                    viewer.neighbors.push(*peer);
                    replies.push((to, ViewerMessage::Connected { peer: *peer, rtt_ms: 20 }));
                }
            }
            TrackerMessage::Part { peer } => viewer.neighbors.retain(|neighbor| neighbor != peer),
            TrackerMessage::Sharing { on } => {
                viewer.sharing = *on;
                if !on {
                    viewer.neighbors.clear();
                }
            }
            TrackerMessage::Plan { rendition, places, .. } => {
                for place in places {
                    viewer.places.insert((*rendition, place.stripe), place.clone());
                }
            }
            _ => {}
        }
        viewer.received.push(message);
    }

    fn errors(&self, peer: PeerId) -> Vec<ErrorCode> {
        let received = self.viewers[&peer].received.iter();
        received
            .filter_map(|message| match message {
                TrackerMessage::Error { code, .. } => Some(*code),
                _ => None,
            })
            .collect()
    }

    /// Stripes that each alive viewer fetches from the origin itself, and those that it gets from nobody.
    fn fetched_and_unfed(&self) -> (usize, usize) {
        let places = self.alive().into_iter().flat_map(|peer| self.viewers[&peer].places.values());
        places.fold((0, 0), |(fetched, unfed), place| {
            (fetched + usize::from(place.root), unfed + usize::from(!place.root && place.parent.is_none()))
        })
    }
}

#[test]
fn four_viewers_fetch_each_stripe_once_and_feed_each_other() {
    let mut world = World::new(Settings::default());
    for _ in 0..4 {
        let peer = world.join_from("127.0.0.1");
        world.report(peer, 6_000);
        world.run_for(700);
    }
    world.run_for(5_000);
    let stripes = world.viewers.values().next().unwrap().places.len();
    assert!(stripes >= 4);
    assert_eq!(world.fetched_and_unfed(), (stripes, 0), "one origin copy");
    assert_eq!(world.swarm.pairs(), 6, "full mesh");
}

#[test]
fn who_reports_that_it_can_give_nothing_is_planned_on_no_more() {
    let mut world = World::new(Settings::default());
    let peers: Vec<PeerId> = (0..4)
        .map(|_| {
            let peer = world.join_from("127.0.0.1");
            world.report(peer, 20_000);
            world.run_for(700);
            peer
        })
        .collect();
    world.run_for(5_000);
    let children = |world: &World, peer: PeerId| -> usize {
        world.viewers[&peer].places.values().map(|place| place.children.len()).sum()
    };
    let busy = *peers.iter().max_by_key(|peer| children(&world, **peer)).unwrap();
    assert!(children(&world, busy) > 0);
    world.report(busy, 0);
    world.run_for(10_000);
    assert_eq!(children(&world, busy), 0);
    world.report(busy, 20_000);
    world.run_for(60_000);
    assert!(children(&world, busy) > 0, "its line is back");
}

#[test]
fn a_joining_viewer_has_its_plan_within_50_ms_of_its_first_connection() {
    let mut world = World::new(Settings::default());
    world.join_from("127.0.0.1");
    world.run_for(2_000);
    let joiner = world.join_from("127.0.0.1");
    let joined_ms = world.now_ms;
    while world.viewers[&joiner].places.values().all(|place| place.parent.is_none()) {
        world.run_for(5);
        assert!(world.now_ms <= joined_ms + 50, "no parent after {} ms", world.now_ms - joined_ms);
    }
}

#[test]
fn a_joining_viewer_is_told_of_the_last_pieces() {
    let mut world = World::new(Settings::default());
    world.run_for(30_000);
    let peer = world.join_from("127.0.0.1");
    let received = &world.viewers[&peer].received;
    assert!(matches!(received[0], TrackerMessage::Welcome(_)));
    let pieces =
        received.iter().filter(|message| matches!(message, TrackerMessage::Published { .. })).count();
    assert!((12..=13).contains(&pieces), "6 s of half-second pieces, not {pieces}");
}

#[test]
fn one_sides_word_makes_no_neighbors_and_no_parent() {
    let mut world = World::new(Settings::default());
    world.connects = false;
    let (honest, liar) = (world.join_from("127.0.0.1"), world.join_from("127.0.0.1"));
    world.report(liar, 50_000);
    world.run_for(1_000);
    assert!(world.swarm.pairs.contains(honest, liar), "they were introduced");
    let parents = |world: &World| {
        world.viewers[&honest].places.values().filter(|place| place.parent == Some(liar)).count()
    };
    world.say(liar, ViewerMessage::Connected { peer: honest, rtt_ms: 1 });
    world.run_for(5_000);
    assert_eq!((world.swarm.counters().connections, parents(&world)), (0, 0));
    // Control: with the other side's word the stronger one feeds it.
    world.say(honest, ViewerMessage::Connected { peer: liar, rtt_ms: 1 });
    world.run_for(30_000);
    assert_eq!(world.swarm.counters().connections, 1);
    assert!(parents(&world) > 0);
}

#[test]
fn a_viewer_that_comes_back_keeps_its_id_and_its_pairs() {
    let mut world = World::new(Settings::default());
    let (one, two) = (world.join_from("127.0.0.1"), world.join_from("127.0.0.1"));
    world.run_for(1_000);
    world.close(one, false);
    world.viewers.get_mut(&one).unwrap().closed = Some(CloseReason::Silent);
    world.run_for(3_000);
    assert_eq!(world.viewers[&two].neighbors, [one], "the data channel may still be open");
    assert!(world.viewers[&two].places.values().all(|place| place.root), "nobody waits for one who is away");
    let token = world.viewers[&one].resume.clone();
    assert_eq!(world.join("127.0.0.1", Some(&token), true), one);
    world.run_for(4_000);
    assert_eq!(world.swarm.counters().introductions, 1, "they know each other");
    assert_eq!(world.fetched_and_unfed().1, 0);
    assert!(
        world.viewers[&one].places.values().any(|place| place.parent == Some(two))
            || world.viewers[&two].places.values().any(|place| place.parent == Some(one))
    );
}

#[test]
fn neighbors_are_told_of_goodbyes_at_once_and_of_broken_connections_later() {
    let mut world = World::new(Settings::default());
    let peers: Vec<PeerId> = (0..3).map(|_| world.join_from("127.0.0.1")).collect();
    world.run_for(1_000);
    world.close(peers[0], true);
    world.viewers.get_mut(&peers[0]).unwrap().closed = Some(CloseReason::Silent);
    assert!(!world.viewers[&peers[1]].neighbors.contains(&peers[0]));
    world.close(peers[2], false);
    world.viewers.get_mut(&peers[2]).unwrap().closed = Some(CloseReason::Silent);
    assert!(world.viewers[&peers[1]].neighbors.contains(&peers[2]));
    world.run_for(16_000);
    assert!(world.viewers[&peers[1]].neighbors.is_empty());
    assert_eq!(world.swarm.members.len(), 1);
}

#[test]
fn a_silent_viewer_is_closed() {
    let mut world = World::new(Settings::default());
    let peer = world.join_from("127.0.0.1");
    let settings = world.swarm.settings.clone();
    world.now_ms += u64::from(settings.silence_max_ms) - 1;
    let mut out = Vec::new();
    world.swarm.handle_deadline(world.now_ms, &mut out);
    assert!(!out.iter().any(|output| matches!(output, Output::Close { .. })));
    world.now_ms += 1;
    world.swarm.handle_deadline(world.now_ms, &mut out);
    let session = world.viewers[&peer].session.unwrap();
    assert!(out.contains(&Output::Close { session, reason: CloseReason::Silent }));
    assert_eq!(world.swarm.viewers(), 0);
}

#[test]
fn an_old_connection_cannot_speak_for_a_viewer_that_came_back() {
    let mut world = World::new(Settings::default());
    let (peer, other) = (world.join_from("127.0.0.1"), world.join_from("127.0.0.1"));
    world.run_for(1_000);
    let old = world.viewers[&peer].session.unwrap();
    let token = world.viewers[&peer].resume.clone();
    world.join("127.0.0.1", Some(&token), true);
    let signal =
        ViewerMessage::Signal { to: other, data: Signal::Candidate { candidate: String::new(), mid: None } };
    world.say_in(old, signal.clone());
    assert_eq!(world.swarm.counters().messages_stale, 1);
    assert_eq!(world.swarm.counters().signals, 0);
    let mut out = Vec::new();
    world.swarm.handle_closed(world.now_ms, old, true, &mut out);
    assert_eq!(world.swarm.viewers(), 2, "the end of the old connection is not the viewer's");
    world.say(peer, signal);
    assert_eq!(world.swarm.counters().signals, 1, "the new connection can");
}

#[test]
fn pairs_that_outlived_the_tracker_count_when_both_name_each_other() {
    let mut before = World::new(Settings::default());
    let peers = [before.join_from("127.0.0.1"), before.join_from("127.0.0.1")];
    let tokens = peers.map(|peer| (peer, before.viewers[&peer].resume.clone()));
    let mut world = World::new(Settings::default());
    world.connects = false;
    for (peer, token) in &tokens {
        assert_eq!(world.join("127.0.0.1", Some(token), true), *peer);
    }
    let stranger = world.join_from("127.0.0.1");
    let (one, two) = (tokens[0].0, tokens[1].0);
    let connected = |peer| ViewerMessage::Connected { peer, rtt_ms: 5 };
    world.say(one, connected(two));
    assert!(!world.swarm.pairs.is_connected(one, two), "one side's word is not enough");
    world.say(two, connected(one));
    assert!(world.swarm.pairs.is_connected(one, two));
    world.say(stranger, connected(12_345));
    assert_eq!(world.errors(stranger), [ErrorCode::NotIntroduced]);
}

#[test]
fn a_pair_that_cannot_connect_is_not_introduced_again_soon() {
    let mut world = World::new(Settings::default());
    world.connects = false;
    let (one, two) = (world.join_from("127.0.0.1"), world.join_from("127.0.0.1"));
    world.run_for(1_000);
    assert_eq!(world.swarm.counters().introductions, 1);
    world.say(one, ViewerMessage::Lost { peer: two, was_connected: false });
    assert!(world.viewers[&two].received.contains(&TrackerMessage::Part { peer: one }));
    world.run_for(120_000);
    assert_eq!(world.swarm.counters().introductions, 1);
    world.run_for(300_000);
    assert!(world.swarm.counters().introductions > 1, "but it is not forgotten for ever");
}

#[test]
fn sharing_is_switched_for_a_part_of_the_viewers_and_ramped_up_again() {
    let mut world = World::new(Settings::default());
    (0..200).for_each(|_| {
        world.join_from("127.0.0.1");
    });
    world.run_for(3_000);
    let sharing = |world: &World| world.viewers.values().filter(|viewer| viewer.sharing).count();
    assert_eq!(sharing(&world), 200);
    let switch = |world: &mut World, percent| {
        let mut out = Vec::new();
        world.swarm.handle_switch(world.now_ms, Switch { percent }, &mut out);
        world.deliver(out);
    };
    switch(&mut world, 30);
    let third: Vec<PeerId> = world.alive().into_iter().filter(|peer| world.viewers[peer].sharing).collect();
    assert!((30..=90).contains(&third.len()), "{}", third.len());
    for (peer, viewer) in &world.viewers {
        assert!(viewer.sharing || viewer.neighbors.is_empty());
        assert!(
            viewer.neighbors.iter().all(|other| third.contains(other)),
            "{peer} has a neighbor that is off"
        );
    }
    switch(&mut world, 60);
    assert!(third.iter().all(|peer| world.viewers[peer].sharing), "a ramp only adds");
    switch(&mut world, 0);
    assert_eq!((sharing(&world), world.swarm.pairs()), (0, 0));
    let joiner = world.join_from("127.0.0.1");
    assert!(
        matches!(&world.viewers[&joiner].received[0], TrackerMessage::Welcome(welcome) if !welcome.sharing)
    );
    switch(&mut world, 100);
    world.run_for(5_000);
    assert_eq!(sharing(&world), 201);
    assert!(world.viewers.values().all(|viewer| viewer.neighbors.len() >= 3));
}

#[test]
fn nobody_is_introduced_before_consent() {
    let mut world = World::new(Settings { consent_required: true, ..Settings::default() });
    let (one, two) = (world.join_from("127.0.0.1"), world.join_from("127.0.0.1"));
    world.say(one, ViewerMessage::Consent);
    world.run_for(5_000);
    assert_eq!(world.swarm.counters().introductions, 0);
    world.say(two, ViewerMessage::Consent);
    world.run_for(1_000);
    assert_eq!(world.swarm.counters().introductions, 1);
}

#[test]
fn a_viewer_that_gives_nothing_is_nobodys_parent() {
    let mut world = World::new(Settings::default());
    let leech = world.join("127.0.0.1", None, false);
    let giver = world.join_from("127.0.0.1");
    world.report(giver, 10_000);
    world.run_for(5_000);
    assert!(world.viewers[&leech].places.values().all(|place| place.children.is_empty()));
    assert!(world.viewers[&leech].places.values().all(|place| place.parent == Some(giver)));
    world.say(giver, ViewerMessage::Share { shares: false });
    world.run_for(5_000);
    assert!(world.viewers[&giver].places.values().all(|place| place.children.is_empty()));
}

#[test]
fn the_same_seed_and_events_give_the_same_outputs() {
    let run = || {
        let mut world = World::new(Settings::default());
        for at in 0..60 {
            let peer = world.join_from(&format!("5.6.{at}.1"));
            world.report(peer, 1_000 + 100 * at);
            world.run_for(90);
        }
        let leaver = world.alive()[7];
        world.close(leaver, true);
        world.run_for(2_000);
        world.viewers.into_values().map(|viewer| viewer.received).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

mod attacks;

#[test]
fn a_viewer_that_complains_of_a_silent_parent_gets_another() {
    let mut world = World::new(Settings::default());
    let viewers: Vec<PeerId> = (1..=8).map(|last| world.join_from(&format!("5.6.7.{last}"))).collect();
    viewers.iter().for_each(|viewer| world.report(*viewer, 20_000));
    world.run_for(10_000);
    let fed = viewers.iter().find_map(|viewer| {
        let places = &world.viewers[viewer].places;
        places.iter().find_map(|((_, stripe), place)| Some((*viewer, *stripe, place.parent?)))
    });
    let (child, stripe, parent) = fed.expect("somebody is fed by a peer");
    let stranger = viewers.iter().find(|viewer| **viewer != child && **viewer != parent).unwrap();
    let complaint = |peer| ViewerMessage::Silent { peer, rendition: 0, stripe };
    world.say(child, complaint(*stranger));
    world.run_for(3_000);
    assert_eq!(world.viewers[&child].places[&(0, stripe)].parent, Some(parent), "it is not about its parent");
    world.say(child, complaint(parent));
    world.run_for(5_000);
    assert_ne!(world.viewers[&child].places[&(0, stripe)].parent, Some(parent));
}

#[test]
fn the_share_of_connections_across_networks_is_counted() {
    let mut world = World::new(Settings::default());
    for asn in [1, 1, 2] {
        world.locality = crate::plan::Locality { country: 1, asn, subnet: u64::from(asn) };
        world.join_from(&format!("5.{asn}.7.8"));
    }
    world.run_for(3_000);
    let counters = world.swarm.counters();
    assert_eq!((counters.connections, counters.connections_cross_network), (3, 2));
}
