//! Attacks of strangers on a swarm, each beside the same attack with the defence switched off: the test must see the
//! damage then, or it would prove nothing.

use super::*;

fn candidate(address: &str, kind: &str) -> Signal {
    let candidate = format!("candidate:1 1 udp 2122260223 {address} 50123 typ {kind}");
    Signal::Candidate { candidate, mid: None }
}

/// Messages with addresses that an attacker makes its neighbors send packets to.
fn injected(settings: Settings, targets: &[(&str, &str)]) -> usize {
    let mut world = World::new(settings);
    let victim = world.join_from("5.6.7.8");
    let attacker = world.join_from("9.8.7.6");
    world.run_for(1_000);
    for (address, kind) in targets {
        let data = candidate(address, kind);
        world.say(attacker, ViewerMessage::Signal { to: victim, data: data.clone() });
        let Signal::Candidate { candidate, .. } = data else { unreachable!() };
        let sdp = format!("v=0\r\na={candidate}\r\n");
        world.say(attacker, ViewerMessage::Signal { to: victim, data: Signal::Offer { sdp: sdp.clone() } });
        world.say(attacker, ViewerMessage::Signal { to: victim, data: Signal::Answer { sdp } });
    }
    let has_candidate = |message: &&TrackerMessage| match message {
        TrackerMessage::Signal { data: Signal::Candidate { candidate, .. }, .. } => !candidate.is_empty(),
        TrackerMessage::Signal { data: Signal::Offer { sdp } | Signal::Answer { sdp }, .. } => {
            sdp.contains("candidate:")
        }
        _ => false,
    };
    world.viewers[&victim].received.iter().filter(has_candidate).count()
}

const FOREIGN: [(&str, &str); 7] = [
    ("192.168.1.1", "host"),
    ("127.0.0.1", "host"),
    ("1.1.1.1", "srflx"),
    ("1.1.1.1", "relay"),
    ("2a01::1", "relay"),
    ("router.example", "host"),
    ("224.0.0.1", "host"),
];

#[test]
fn candidate_injection_reaches_nobody() {
    assert_eq!(injected(Settings::default(), &FOREIGN), 0);
    let own = Relays::At(vec!["7.7.7.7".parse().unwrap()]);
    let ours = Settings { relays: own, ..Settings::default() };
    assert_eq!(injected(ours.clone(), &FOREIGN), 0);
    assert_eq!(injected(ours, &[("7.7.7.7", "relay")]), 2, "control: our own relay");
}

#[test]
fn candidate_injection_control_without_the_check_they_arrive() {
    let unchecked = Settings { check_candidates: false, ..Settings::default() };
    assert_eq!(injected(unchecked, &FOREIGN), 14);
    let believed = Settings { relays: Relays::Unknown, ..Settings::default() };
    assert_eq!(injected(believed, &FOREIGN), 4, "relays that can't be told from others");
}

/// A viewer's address of the other family is not known to the tracker: few of them are believed.
#[test]
fn candidate_injection_of_the_other_family_names_few_addresses() {
    let victims: Vec<String> = (1..=20).map(|at| format!("2a01::{at:x}")).collect();
    let foreign: Vec<(&str, &str)> = victims.iter().map(|address| (address.as_str(), "host")).collect();
    let few = usize::from(Settings::default().unverified_addresses_max);
    // As a candidate of its own and inside a description.
    assert_eq!(injected(Settings::default(), &foreign), 2 * few);
    let many =
        Settings { unverified_addresses_max: 255, candidates_per_pair_max: 255, ..Settings::default() };
    assert_eq!(injected(many, &foreign), 2 * 20);
}

/// Introductions that somebody gets in two hours of joining, leaving and joining again, `join` being the way he does it.
fn harvested(settings: Settings, join: impl Fn(&mut World, u64) -> PeerId) -> usize {
    let mut world = World::new(settings);
    (0..400).for_each(|at| {
        world.join_from(&format!("5.{}.{}.1", at / 200, at % 200));
    });
    world.run_for(2_000);
    let mut met = 0;
    for at in 0..240 {
        let peer = join(&mut world, at);
        world.run_for(1_000);
        met += world.viewers[&peer].met.len();
        world.close(peer, true);
        world.viewers.get_mut(&peer).unwrap().closed = Some(CloseReason::Silent);
        world.now_ms += 29_000;
        let alive = world.alive();
        alive.into_iter().for_each(|peer| world.say(peer, ViewerMessage::Ping));
    }
    met
}

fn from_one_address(world: &mut World, _: u64) -> PeerId {
    world.join_from("9.8.7.6")
}

/// What a harvester gets in two hours, by the settings.
fn budget(settings: &Settings) -> usize {
    (settings.introductions_burst + 2 * settings.introductions_per_hour) as usize
}

#[test]
fn harvest_by_one_address_ends_at_its_budget() {
    let settings = Settings::default();
    let (met, budget) = (harvested(settings.clone(), from_one_address), budget(&settings));
    assert!((budget / 2..=budget).contains(&met), "{met} of {budget}");
}

#[test]
fn harvest_from_one_customers_ipv6_addresses_ends_at_the_same_budget() {
    let settings = Settings { introductions_burst: 20, introductions_per_hour: 25, ..Settings::default() };
    let met = harvested(settings.clone(), |world, at| world.join_from(&format!("2a01:1:2:{at:x}::1")));
    assert!(met <= budget(&settings), "{met}");
}

#[test]
fn harvest_with_a_new_token_for_each_join_ends_at_the_same_budget() {
    let settings = Settings { introductions_burst: 20, introductions_per_hour: 25, ..Settings::default() };
    let credential = |id| Credential { id, fingerprint: None, remaining_ms: 10_000_000 };
    let met = harvested(settings.clone(), |world, at| {
        world.join_with("9.8.7.6", None, true, Some(&credential(at)))
    });
    assert!(met <= budget(&settings), "{met}");
    // And one token from many addresses.
    let met = harvested(settings.clone(), |world, at| {
        world.join_with(&format!("9.{at}.7.6"), None, true, Some(&credential(7)))
    });
    assert!(met <= budget(&settings), "{met}");
}

#[test]
fn harvest_control_without_a_budget_one_address_learns_more_than_twice_as_many() {
    let unlimited =
        Settings { introductions_burst: 1_000_000, introductions_per_hour: 1_000_000, ..Settings::default() };
    let met = harvested(unlimited, from_one_address);
    assert!(met > 2 * budget(&Settings::default()), "{met}");
    // From many addresses each has a budget of its own: that is what they cost.
    let small = Settings { introductions_burst: 20, introductions_per_hour: 25, ..Settings::default() };
    let met = harvested(small.clone(), |world, at| world.join_from(&format!("9.{at}.7.6")));
    assert!(met > 2 * budget(&small), "{met}");
}

/// Twenty victims join a swarm of 30 honest viewers and 70 attackers who own two networks. For the worst-off of them:
/// its honest neighbors, and the attackers among its neighbors.
fn surrounded(settings: Settings) -> (usize, usize) {
    let mut world = World::new(settings);
    (0..30).for_each(|at| {
        world.join_from(&format!("5.6.{at}.1"));
    });
    (0..70).for_each(|at| {
        world.join_from(&format!("9.9.{}.{}", at % 2, 1 + at));
    });
    world.run_for(5_000);
    let victims: Vec<PeerId> = (0..20).map(|at| world.join_from(&format!("77.1.{at}.3"))).collect();
    world.run_for(60_000);
    let is_attacker = |peer: &&PeerId| world.swarm.members[peer].address.to_string().starts_with("9.9.");
    let neighbors = victims.iter().map(|victim| {
        let peers = world.swarm.pairs.peers(*victim);
        let attackers = peers.iter().filter(is_attacker).count();
        (peers.len() - attackers, attackers)
    });
    neighbors.max_by_key(|(honest, attackers)| (*attackers, std::cmp::Reverse(*honest))).unwrap()
}

#[test]
fn eclipse_by_sybils_of_a_few_networks_fails() {
    let settings = Settings { neighbors_per_network_max: 2, ..Settings::default() };
    let (honest, attackers) = surrounded(settings);
    assert!(honest >= 3 && attackers <= 4, "{honest} honest, {attackers} attackers");
}

#[test]
fn eclipse_control_without_the_cap_attackers_take_as_many_places_as_they_are() {
    let settings = Settings { neighbors_per_network_max: 200, ..Settings::default() };
    let (honest, attackers) = surrounded(settings);
    assert!(attackers >= 8 && 3 * attackers >= honest, "{honest} honest, {attackers} attackers");
}

/// The same with 150 attackers who own one autonomous system, in which each has a /24 of his own. For the worst-off victim:
/// its honest neighbors, and the attackers among its neighbors.
fn surrounded_by_one_as(settings: Settings) -> (usize, usize) {
    let mut world = World::new(settings);
    let is_in = |world: &mut World, asn: u32, subnet: u64| {
        world.locality = crate::plan::Locality { country: 1, asn, subnet };
    };
    for honest in 0..30 {
        is_in(&mut world, 100 + honest % 10, honest.into());
        let peer = world.join_from(&format!("5.6.{honest}.1"));
        world.report(peer, 6_000);
    }
    for attacker in 0..150_u32 {
        is_in(&mut world, 64_500, 1_000 + u64::from(attacker));
        let peer = world.join_from(&format!("9.9.{attacker}.1"));
        world.report(peer, 50_000);
    }
    world.run_for(5_000);
    let victims = (0..20).map(|victim| {
        is_in(&mut world, 3_320, 2_000 + victim);
        let peer = world.join_from(&format!("77.1.{victim}.3"));
        world.report(peer, 3_000);
        peer
    });
    let victims: Vec<PeerId> = victims.collect();
    world.run_for(60_000);
    let is_attacker = |peer: &&PeerId| world.swarm.members[peer].address.to_string().starts_with("9.");
    let neighbors = victims.iter().map(|victim| {
        let peers = world.swarm.pairs.peers(*victim);
        let attackers = peers.iter().filter(is_attacker).count();
        (peers.len() - attackers, attackers)
    });
    neighbors.min_by_key(|(honest, attackers)| (*honest, std::cmp::Reverse(*attackers))).unwrap()
}

#[test]
fn eclipse_by_sybils_of_one_autonomous_system_fails() {
    let (honest, attackers) = surrounded_by_one_as(Settings::default());
    assert!(honest >= 3 && attackers <= honest + 1, "{honest} honest, {attackers} attackers");
}

#[test]
fn eclipse_control_without_the_limit_for_autonomous_systems_attackers_outnumber_the_others() {
    let off = Settings { neighbors_per_asn_max_percent: 100, ..Settings::default() };
    let (honest, attackers) = surrounded_by_one_as(off);
    assert!(attackers >= 2 * honest + 2, "{honest} honest, {attackers} attackers");
}

/// Whether `colluders` of one network and `others` of further networks get an honest viewer shut out.
fn slandered(accusers_min: u32, colluders: u8, others: u8) -> bool {
    let mut world =
        World::new(Settings { accusers_min, neighbors_per_network_max: 100, ..Settings::default() });
    let victim = world.join_from("5.6.7.8");
    let same = (0..colluders).map(|at| format!("9.9.9.{}", 1 + at));
    let different = (0..others).map(|at| format!("8.8.{at}.1"));
    let accusers: Vec<PeerId> = same.chain(different).map(|address| world.join_from(&address)).collect();
    world.run_for(3_000);
    let piece = Piece { rendition: 0, msn: 1, part: 0 };
    for accuser in accusers {
        for _ in 0..3 {
            world.say(accuser, ViewerMessage::Accuse { peer: victim, piece });
        }
    }
    let is_off = !world.viewers[&victim].sharing;
    assert_eq!(is_off, world.swarm.counters().bans == 1);
    is_off
}

#[test]
fn slander_by_sybils_of_fewer_than_three_networks_shuts_nobody_out() {
    assert!(!slandered(3, 5, 0), "five sockets of one network are one accuser");
    assert!(!slandered(3, 3, 1));
    assert!(slandered(3, 0, 3), "three networks are evidence");
}

#[test]
fn slander_control_with_single_accusers_believed_it_works() {
    assert!(slandered(1, 1, 0));
}

/// Who is shut out and joins again, by whichever way: whether peers may be used then.
fn shut_out_and_back(settings: Settings, join: impl Fn(&mut World, &str) -> PeerId, after_ms: u64) -> bool {
    let mut world = World::new(Settings { accusers_min: 3, neighbors_per_network_max: 100, ..settings });
    let victim = world.join_with("5.6.7.8", None, true, Some(&TOKEN));
    let accusers: Vec<PeerId> = (0..3).map(|at| world.join_from(&format!("8.8.{at}.1"))).collect();
    world.run_for(3_000);
    let piece = Piece { rendition: 0, msn: 1, part: 0 };
    for accuser in accusers {
        world.say(accuser, ViewerMessage::Accuse { peer: victim, piece });
    }
    assert!(!world.viewers[&victim].sharing);
    let resume = world.viewers[&victim].resume.clone();
    world.close(victim, false);
    world.run_for(after_ms);
    let again = join(&mut world, &resume);
    world.run_for(3_000);
    let is_told = world.viewers[&again].received.iter().rev().find_map(|message| match message {
        TrackerMessage::Welcome(welcome) => Some(welcome.sharing),
        _ => None,
    });
    assert_eq!(is_told == Some(true), !world.swarm.pairs.peers(again).is_empty());
    is_told == Some(true)
}

const TOKEN: Credential = Credential { id: 77, fingerprint: None, remaining_ms: 10_000_000 };

#[test]
fn who_was_shut_out_stays_out_when_he_joins_anew() {
    let out =
        |join: &dyn Fn(&mut World, &str) -> PeerId| !shut_out_and_back(Settings::default(), join, 1_000);
    assert!(out(&|world, resume| world.join("5.6.7.8", Some(resume), true)), "on his old place");
    assert!(out(&|world, resume| world.join("44.1.2.3", Some(resume), true)), "the same from elsewhere");
    assert!(out(&|world, _| world.join_from("5.6.7.8")), "as somebody new");
    assert!(out(&|world, _| world.join_with("44.1.2.3", None, true, Some(&TOKEN))), "with his token");
    // Control: somebody else is let in, and so is he when the accusations count no longer.
    assert!(!out(&|world, _| world.join_from("44.1.2.3")));
    let short = Settings { accusation_ms: 5_000, ..Settings::default() };
    assert!(shut_out_and_back(short, |world, _| world.join_from("5.6.7.8"), 6_000));
}

#[test]
fn who_is_shut_out_in_a_private_network_does_not_put_out_its_other_viewers() {
    let settings = Settings { accusers_min: 1, ..Settings::default() };
    let mut world = World::new(settings);
    let (victim, accuser) = (world.join_from("192.168.1.2"), world.join_from("192.168.1.2"));
    world.run_for(1_000);
    let piece = Piece { rendition: 0, msn: 1, part: 0 };
    world.say(accuser, ViewerMessage::Accuse { peer: victim, piece });
    assert!(!world.viewers[&victim].sharing);
    let other = world.join_from("192.168.1.2");
    world.run_for(1_000);
    assert_eq!(world.swarm.pairs.peers(other), [accuser], "behind one proxy all have one address");
}

#[test]
fn slander_only_by_neighbors_and_at_the_price_of_the_neighbor() {
    let mut world = World::new(Settings::default());
    world.connects = false;
    let victim = world.join_from("5.6.7.8");
    let accuser = world.join_from("9.9.9.9");
    world.run_for(1_000);
    let accuse = ViewerMessage::Accuse { peer: victim, piece: Piece { rendition: 0, msn: 1, part: 0 } };
    world.say(accuser, accuse.clone());
    assert_eq!(world.errors(accuser), [ErrorCode::NotIntroduced]);
    assert_eq!(world.swarm.counters().accusations, 0);
    world.say(victim, ViewerMessage::Connected { peer: accuser, rtt_ms: 1 });
    world.say(accuser, ViewerMessage::Connected { peer: victim, rtt_ms: 1 });
    world.say(accuser, accuse);
    assert_eq!(world.swarm.counters().accusations, 1);
    assert!(!world.swarm.pairs.contains(victim, accuser));
    world.run_for(60_000);
    assert!(!world.swarm.pairs.contains(victim, accuser), "they are not introduced again");
}

/// Messages of a flooding viewer that had an effect, and whether it was shut out.
fn flooded(settings: Settings) -> (usize, bool) {
    let mut world = World::new(settings);
    let (victim, attacker) = (world.join_from("5.6.7.8"), world.join_from("9.9.9.9"));
    world.run_for(1_000);
    let before = world.viewers[&victim].received.len() + world.viewers[&attacker].received.len();
    for at in 0..20_000_u32 {
        // Some hundred a second: what the rate lets through in between must not make the rest forgiven.
        world.now_ms += u64::from(at % 10 == 0) * 20;
        if world.viewers[&attacker].closed.is_some() {
            break;
        }
        let data = Signal::Candidate { candidate: String::new(), mid: None };
        world.say(attacker, ViewerMessage::Signal { to: if at % 2 == 0 { victim } else { at }, data });
    }
    let after = world.viewers[&victim].received.len() + world.viewers[&attacker].received.len();
    (after - before, world.viewers[&attacker].closed == Some(CloseReason::Refused))
}

#[test]
fn signaling_flood_is_cut_off() {
    let (effects, is_closed) = flooded(Settings::default());
    assert!(is_closed);
    assert!(effects <= 2 * Settings::default().messages_burst as usize, "{effects}");
}

#[test]
fn signaling_flood_control_without_a_rate_it_goes_on() {
    let settings = Settings { messages_burst: 1_000_000, ..Settings::default() };
    let (effects, is_closed) = flooded(settings);
    assert!(!is_closed && effects >= 10_000, "{effects}");
}
