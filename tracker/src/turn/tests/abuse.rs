//! Abuse of the relay, each attack beside its control: the same attempt where the check does not apply.

use super::*;

/// What becomes of an allocation asked for with a credential that does not hold.
fn denied(change: impl FnOnce(&mut Caller)) -> Result<SocketAddr, u16> {
    let mut bench = Bench::new(limits());
    let mut caller = bench.caller("5.6.7.8:1000", "one");
    change(&mut caller);
    bench.allocate(&caller)
}

#[test]
fn turn_abuse_without_a_credential_that_holds_nothing_is_relayed() {
    assert!(denied(|_| {}).is_ok(), "control");
    assert_eq!(denied(|caller| caller.password = "guess".into()), Err(401));
    assert_eq!(denied(|caller| caller.user = format!("{}:one", NOW_S + 99_999)), Err(401), "a longer life");
    let ended = |caller: &mut Caller| {
        caller.user = format!("{}:one", NOW_S - 1);
        caller.password = credential(SECRET, &caller.user);
    };
    assert_eq!(denied(ended), Err(401));
    let named = |letters: usize| {
        move |caller: &mut Caller| {
            caller.user.push_str(&"x".repeat(letters));
            caller.password = credential(SECRET, &caller.user);
        }
    };
    assert_eq!(denied(named(600)), Err(401), "a name to fill the memory with");
    assert!(denied(named(400)).is_ok(), "control");
    assert_eq!(
        denied(|caller| caller.client = Client::Udp(address("9.8.7.6:1000"))),
        Err(438),
        "stolen nonce"
    );
    assert_eq!(denied(|caller| caller.nonce = "f".repeat(32)), Err(438));
    let mut bench = Bench::new(limits());
    let (one, mut thief) = (bench.caller("5.6.7.8:1000", "one"), bench.caller("5.6.7.8:1000", "two"));
    bench.allocate(&one).unwrap();
    thief.client = one.client;
    assert_eq!(
        bench.code(&thief, METHOD_REFRESH, &[Attribute::Lifetime(0)]),
        Some(441),
        "another's allocation"
    );
}

/// What a request for a permission and one for a channel to an address are answered, and whether something is sent.
fn reaches(bench: &mut Bench, peer: &str) -> (Option<u16>, Option<u16>, bool) {
    let caller = bench.caller("5.6.7.8:1000", "one");
    let _ = bench.allocate(&caller);
    let peer_is = || Attribute::Peer(address(peer));
    let permitted = bench.code(&caller, METHOD_CREATE_PERMISSION, &[peer_is()]);
    let bound = bench.code(&caller, METHOD_CHANNEL_BIND, &[Attribute::Channel(0x4000), peer_is()]);
    (permitted, bound, bench.relayed(&caller, peer, 1) > 0)
}

#[test]
fn turn_abuse_nobody_but_viewers_and_relayed_addresses_is_reached() {
    let strangers = ["127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "1.1.1.1:53", "224.0.0.1:9"];
    for stranger in strangers {
        let refused = (Some(403), Some(403), false);
        assert_eq!(reaches(&mut Bench::new(limits()), stranger), refused, "{stranger}");
    }
    let mut of_another_family = Bench::new(limits());
    of_another_family.net.viewers.push("::1".parse().unwrap());
    assert_eq!(reaches(&mut of_another_family, "[::1]:80"), (Some(443), Some(443), false));
    // The relay's own host is permitted, since relayed addresses are there; its other ports are services.
    assert_eq!(reaches(&mut Bench::new(limits()), "198.51.99.1:22"), (None, None, false));
    assert_eq!(reaches(&mut Bench::new(limits()), "9.8.7.6:4000"), (None, None, true), "control: a viewer");
    assert_eq!(reaches(&mut Bench::new(limits()), "9.8.7.6:53"), (None, None, false), "a viewer's router");
    let mut open = Bench::new(limits());
    open.net.viewers.push("10.0.0.1".parse().unwrap());
    assert_eq!(reaches(&mut open, "10.0.0.1:8080"), (None, None, true), "control: with the check off");
}

#[test]
fn turn_abuse_a_viewer_that_has_gone_is_not_sent_to_any_more() {
    let mut bench = Bench::new(limits());
    let caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    assert_eq!(
        bench.code(&caller, METHOD_CREATE_PERMISSION, &[Attribute::Peer(address("9.8.7.6:4001"))]),
        None
    );
    assert_eq!(bench.relayed(&caller, "9.8.7.6:4001", 1), 1_000);
    bench.net.viewers.clear();
    assert_eq!(bench.relayed(&caller, "9.8.7.6:4001", 1), 0);
}

/// Allocations that one credential gets, and those that one address gets with ten.
fn hoarded(limits: Limits) -> (usize, usize) {
    let mut bench = Bench::new(limits);
    let ports = 1_000..1_020_u16;
    let with_one = ports
        .clone()
        .filter(|port| {
            let caller = bench.caller(&format!("5.6.7.8:{port}"), "one");
            bench.allocate(&caller).is_ok()
        })
        .count();
    let mut bench = Bench::new(limits);
    let with_ten = ports
        .filter(|port| {
            let caller = bench.caller(&format!("5.6.7.8:{port}"), &format!("user{}", port % 10));
            bench.allocate(&caller).is_ok()
        })
        .count();
    (with_one, with_ten)
}

#[test]
fn turn_abuse_allocations_are_limited_for_each_user_and_address() {
    assert_eq!(hoarded(limits()), (4, 8));
    assert_eq!(hoarded(Limits { allocations_max: 3, ..limits() }), (3, 3), "in all");
    let open = Limits { allocations_per_user_max: 1_000, allocations_per_address_max: 1_000, ..limits() };
    assert_eq!(hoarded(open), (20, 20), "control");
}

/// Bytes that one user moves in a second of sending 4 Mbyte, with a second allocation half-way.
fn moved(limits: Limits) -> usize {
    let mut bench = Bench::new(limits);
    let one = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&one).unwrap();
    let permit = [Attribute::Peer(address("9.8.7.6:4001"))];
    assert_eq!(bench.code(&one, METHOD_CREATE_PERMISSION, &permit), None);
    let mut sum = 0;
    for _ in 0..20 {
        bench.now_ms += 50;
        sum += bench.relayed(&one, "9.8.7.6:4001", 200);
    }
    // Giving up and allocating anew fills no bucket.
    let give_up = one.signed(METHOD_REFRESH, &[Attribute::Lifetime(0)]);
    bench.send(one.client, &give_up.raw);
    bench.turn.handle_deadline(bench.now_ms, &mut bench.actions);
    bench.actions.clear();
    bench.allocate(&one).unwrap();
    assert_eq!(bench.code(&one, METHOD_CREATE_PERMISSION, &permit), None);
    sum + bench.relayed(&one, "9.8.7.6:4001", 200)
}

#[test]
fn turn_abuse_bandwidth_is_limited_for_each_user_and_in_all() {
    // 1 Mbit/s is 125 kB in the second, and the bucket held half of that.
    let sum = moved(limits());
    assert!((150_000..=200_000).contains(&sum), "{sum}");
    let small = moved(Limits { total_kbps: 100, ..limits() });
    assert!(small <= 20_000, "all together: {small}");
    let open = moved(Limits { total_kbps: 1_000_000, user_kbps: 1_000_000, ..limits() });
    assert_eq!(open, 4_200_000, "control");
}

#[test]
fn turn_abuse_permissions_and_channels_are_limited() {
    let mut bench = Bench::new(limits());
    bench.net.viewers = (0..100).map(|last| IpAddr::from([9, 8, 7, last])).collect();
    let caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    let permitted = (0..100)
        .filter(|last| {
            let peer = Attribute::Peer(address(&format!("9.8.7.{last}:1")));
            bench.code(&caller, METHOD_CREATE_PERMISSION, &[peer]).is_none()
        })
        .count();
    assert_eq!(permitted, PERMISSIONS_MAX);
    let bound = (0..100)
        .filter(|number| {
            let channel = [
                Attribute::Channel(0x4000 + number),
                Attribute::Peer(address(&format!("9.8.7.1:{}", number + 1))),
            ];
            bench.code(&caller, METHOD_CHANNEL_BIND, &channel).is_none()
        })
        .count();
    assert_eq!(bound, CHANNELS_MAX);
    let taken = [Attribute::Channel(0x4000), Attribute::Peer(address("9.8.7.1:999"))];
    assert_eq!(bench.code(&caller, METHOD_CHANNEL_BIND, &taken), Some(400), "a number is bound once");
}

#[test]
fn turn_abuse_challenges_are_limited() {
    let mut bench = Bench::new(limits());
    let answered = (0..5_000)
        .filter(|at| {
            let client = Client::Udp(SocketAddr::new("1.2.3.4".parse().unwrap(), 1_000 + at));
            bench.ask(client, &request(METHOD_ALLOCATE, &[transport()])).is_some()
        })
        .count();
    assert_eq!(answered, 1_000, "and nothing is remembered for them");
    assert_eq!(bench.turn.counters().unauthorised, 5_000);
}

#[test]
fn turn_abuse_a_channel_is_no_way_around_the_limit_of_permissions() {
    let mut bench = Bench::new(limits());
    bench.net.viewers = (0..100).map(|last| IpAddr::from([9, 8, 7, last])).collect();
    let caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    for last in 0..PERMISSIONS_MAX {
        let peer = Attribute::Peer(address(&format!("9.8.7.{last}:1")));
        assert_eq!(bench.code(&caller, METHOD_CREATE_PERMISSION, &[peer]), None);
    }
    let bind = |last: u8| [Attribute::Channel(0x4000), Attribute::Peer(address(&format!("9.8.7.{last}:1")))];
    assert_eq!(bench.code(&caller, METHOD_CHANNEL_BIND, &bind(99)), Some(508));
    assert_eq!(bench.code(&caller, METHOD_CHANNEL_BIND, &bind(0)), None, "control: permitted already");
}

#[test]
fn turn_abuse_nothing_is_sent_or_passed_on_without_a_permission_that_lasts() {
    let mut bench = Bench::new(limits());
    let caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    let peer = "9.8.7.6:4001";
    let comes_in = |bench: &mut Bench| {
        let mut actions = Vec::new();
        bench.turn.handle_peer(bench.now_ms, 0, address(peer), b"unasked", &mut actions);
        !actions.is_empty()
    };
    assert_eq!((bench.relayed(&caller, peer, 1), comes_in(&mut bench)), (0, false), "never asked for");
    assert_eq!(bench.code(&caller, METHOD_CREATE_PERMISSION, &[Attribute::Peer(address(peer))]), None);
    assert_eq!((bench.relayed(&caller, peer, 1), comes_in(&mut bench)), (1_000, true), "control");
    bench.now_ms += PERMISSION_MS;
    assert_eq!((bench.relayed(&caller, peer, 1), comes_in(&mut bench)), (0, false), "it has ended");
}

#[test]
fn turn_abuse_a_channel_ends_when_it_is_not_refreshed() {
    let mut bench = Bench::new(limits());
    let caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    let bind = [Attribute::Channel(0x4000), Attribute::Peer(address("9.8.7.6:4001"))];
    assert_eq!(bench.code(&caller, METHOD_CHANNEL_BIND, &bind), None);
    let out_and_in = |bench: &mut Bench| {
        let mut actions = Vec::new();
        bench.turn.handle_peer(bench.now_ms, 0, address("9.8.7.6:4001"), b"hi", &mut actions);
        (!bench.send(caller.client, b"\x40\x00\x00\x02hi\0\0").is_empty(), !actions.is_empty())
    };
    bench.now_ms += CHANNEL_MS - 1;
    assert_eq!(out_and_in(&mut bench), (true, true), "control");
    bench.now_ms += 1;
    assert_eq!(out_and_in(&mut bench), (false, false));
    let unbound = bench.send(caller.client, b"\x40\x01\x00\x02hi\0\0");
    assert!(unbound.is_empty(), "a number that was never bound");
}

#[test]
fn turn_abuse_a_nonce_is_worth_nothing_when_it_has_ended() {
    let allocates_after = |ms: u64| {
        let mut bench = Bench::new(limits());
        let caller = bench.caller("5.6.7.8:1000", "one");
        bench.now_ms += ms;
        bench.allocate(&caller).err()
    };
    assert_eq!(allocates_after(message::NONCE_MS - 1), None, "control");
    assert_eq!(allocates_after(message::NONCE_MS), Some(438));
}

#[test]
fn turn_abuse_a_credential_that_has_ended_refreshes_what_lives_and_makes_nothing_new() {
    let mut bench = Bench::new(limits());
    let mut caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    bench.unix_s += 1_000;
    assert_eq!(bench.code(&caller, METHOD_REFRESH, &[Attribute::Lifetime(600)]), None);
    let fresh = bench.caller("5.6.7.8:2000", "two");
    (caller.client, caller.nonce) = (fresh.client, fresh.nonce);
    assert_eq!(bench.allocate(&caller), Err(401));
}

#[test]
fn turn_abuse_an_allocation_lasts_no_longer_than_an_hour_whatever_is_asked_for() {
    let lasts = |allocated_s: u32, refreshed_s: Option<u32>, ms: u64| {
        let mut bench = Bench::new(limits());
        let caller = bench.caller("5.6.7.8:1000", "one");
        let asked = [transport(), Attribute::Lifetime(allocated_s)];
        assert_eq!(bench.code(&caller, METHOD_ALLOCATE, &asked), None);
        if let Some(refreshed_s) = refreshed_s {
            assert_eq!(bench.code(&caller, METHOD_REFRESH, &[Attribute::Lifetime(refreshed_s)]), None);
        }
        bench.now_ms += ms;
        bench.turn.handle_deadline(bench.now_ms, &mut bench.actions);
        bench.turn.allocations() == 1
    };
    assert!(lasts(u32::MAX, None, LIFETIME_MAX_MS - 1), "control");
    assert!(!lasts(u32::MAX, None, LIFETIME_MAX_MS));
    assert!(lasts(600, Some(u32::MAX), LIFETIME_MAX_MS - 1), "control");
    assert!(!lasts(600, Some(u32::MAX), LIFETIME_MAX_MS));
    assert!(!lasts(0, None, LIFETIME_MS), "the shortest that may be asked for");
}

#[test]
fn turn_abuse_only_what_viewers_need_can_be_asked_for() {
    let code = |asked: Attribute| {
        let mut bench = Bench::new(limits());
        let caller = bench.caller("5.6.7.8:1000", "one");
        bench.code(&caller, METHOD_ALLOCATE, &[transport(), asked])
    };
    assert_eq!(code(Attribute::EvenPort), Some(508), "ports next to each other");
    assert_eq!(code(Attribute::Family(2)), Some(440), "an address that this host does not have");
    assert_eq!(code(Attribute::Family(7)), Some(440));
    assert_eq!(code(Attribute::Family(1)), None, "control");
}
