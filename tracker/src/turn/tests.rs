//! The relay against scripted clients: what it gives, and the abuse that it withstands, each attack beside its control.

use rtc_stun::attributes::{
    ATTR_ERROR_CODE, ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS,
};
use rtc_stun::message::{CLASS_SUCCESS_RESPONSE, MessageType, Method, Setter as _};
use rtc_stun::xoraddr::XorMappedAddress;

use super::*;

const SECRET: &str = "north";
const NOW_S: u64 = 1_700_000_000;

/// A world in which every port can be had and some addresses are viewers'.
struct Net {
    viewers: Vec<IpAddr>,
    next_port: u16,
}

impl World for Net {
    fn open(&mut self, _: u64, _: Client, is_ipv4: bool) -> Option<SocketAddr> {
        self.next_port += 1;
        is_ipv4.then(|| SocketAddr::new("198.51.99.1".parse().unwrap(), self.next_port))
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        self.viewers.contains(&address)
    }
}

struct Bench {
    turn: Turn,
    net: Net,
    now_ms: u64,
    actions: Vec<Action>,
}

/// A client and its credential.
#[derive(Clone)]
struct Caller {
    client: Client,
    user: String,
    password: String,
    nonce: String,
}

fn limits() -> Limits {
    Limits {
        allocations_max: 100,
        allocations_per_user_max: 4,
        allocations_per_address_max: 8,
        total_kbps: 10_000,
        user_kbps: 1_000,
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let viewers = vec!["5.6.7.8".parse().unwrap(), "9.8.7.6".parse().unwrap()];
        let turn = Turn::new(SECRET.into(), limits, [3; 32]);
        Self { turn, net: Net { viewers, next_port: 50_000 }, now_ms: 1_000, actions: Vec::new() }
    }

    fn send(&mut self, client: Client, bytes: &[u8]) -> Vec<Action> {
        self.turn.handle_client(self.now_ms, NOW_S, client, bytes, &mut self.net, &mut self.actions);
        std::mem::take(&mut self.actions)
    }

    /// The answer to a request, with its error code.
    fn ask(&mut self, client: Client, request: &Message) -> Option<(Message, Option<u16>)> {
        let answers = self.send(client, &request.raw);
        let bytes = answers.into_iter().find_map(|action| match action {
            Action::ToClient(to, bytes) if to == client => Some(bytes),
            _ => None,
        })?;
        let mut answer = Message::new();
        answer.unmarshal_binary(&bytes).unwrap();
        let code = answer.get(ATTR_ERROR_CODE).ok().map(|code| u16::from(code[2]) * 100 + u16::from(code[3]));
        assert_eq!(code.is_none(), answer.typ.class == CLASS_SUCCESS_RESPONSE);
        Some((answer, code))
    }

    /// A caller that has got its nonce.
    fn caller(&mut self, from: &str, user: &str) -> Caller {
        let client = Client::Udp(address(from));
        let (challenge, code) = self.ask(client, &request(METHOD_ALLOCATE, &[transport()])).unwrap();
        assert_eq!(code, Some(401));
        let nonce = String::from_utf8(challenge.get(ATTR_NONCE).unwrap()).unwrap();
        assert_eq!(challenge.get(ATTR_REALM).unwrap(), REALM.as_bytes());
        let user = format!("{}:{user}", NOW_S + 100);
        Caller { client, password: credential(SECRET, &user), user, nonce }
    }

    fn code(&mut self, caller: &Caller, method: Method, attributes: &[Attribute]) -> Option<u16> {
        self.ask(caller.client, &caller.signed(method, attributes)).unwrap().1
    }

    /// Allocates, and tells the relayed address.
    fn allocate(&mut self, caller: &Caller) -> Result<SocketAddr, u16> {
        let request = caller.signed(METHOD_ALLOCATE, &[transport()]);
        let (answer, code) = self.ask(caller.client, &request).unwrap();
        match code {
            Some(code) => Err(code),
            None => {
                let mut relayed = XorMappedAddress::default();
                relayed.get_from_as(&answer, ATTR_XOR_RELAYED_ADDRESS).unwrap();
                let mut mapped = XorMappedAddress::default();
                mapped.get_from_as(&answer, ATTR_XORMAPPED_ADDRESS).unwrap();
                assert_eq!(SocketAddr::new(mapped.ip, mapped.port), caller.client.address());
                Ok(SocketAddr::new(relayed.ip, relayed.port))
            }
        }
    }

    /// Bytes that reach a peer when a client sends `count` datagrams of 1,000 bytes to it.
    fn relayed(&mut self, caller: &Caller, peer: &str, count: usize) -> usize {
        let indication = {
            let mut message = Message::new();
            message.set_type(MessageType { method: METHOD_SEND, class: CLASS_INDICATION });
            message.transaction_id = TransactionId(rand::random());
            message.write_header();
            add(&mut message, &Attribute::Peer(address(peer)));
            message.add(ATTR_DATA, &[7; 1_000]);
            message.raw
        };
        (0..count)
            .flat_map(|_| self.send(caller.client, &indication))
            .map(|action| match action {
                Action::ToPeer(_, to, data) if to == address(peer) => data.len(),
                other => panic!("{other:?}"),
            })
            .sum()
    }
}

enum Attribute {
    Transport(u8),
    Peer(SocketAddr),
    Channel(u16),
    Lifetime(u32),
}

fn transport() -> Attribute {
    Attribute::Transport(17)
}

fn add(message: &mut Message, attribute: &Attribute) {
    match attribute {
        Attribute::Transport(number) => message.add(ATTR_REQUESTED_TRANSPORT, &[*number, 0, 0, 0]),
        Attribute::Peer(peer) => XorMappedAddress { ip: peer.ip(), port: peer.port() }
            .add_to_as(message, ATTR_XOR_PEER_ADDRESS)
            .unwrap(),
        Attribute::Channel(number) => {
            let [a, b] = number.to_be_bytes();
            message.add(ATTR_CHANNEL_NUMBER, &[a, b, 0, 0]);
        }
        Attribute::Lifetime(seconds) => message.add(ATTR_LIFETIME, &seconds.to_be_bytes()),
    }
}

fn request(method: Method, attributes: &[Attribute]) -> Message {
    let mut message = Message::new();
    message.set_type(MessageType { method, class: CLASS_REQUEST });
    message.transaction_id = TransactionId(rand::random());
    message.write_header();
    attributes.iter().for_each(|attribute| add(&mut message, attribute));
    message
}

impl Caller {
    fn signed(&self, method: Method, attributes: &[Attribute]) -> Message {
        let mut message = request(method, attributes);
        message.add(ATTR_USERNAME, self.user.as_bytes());
        message.add(ATTR_REALM, REALM.as_bytes());
        message.add(ATTR_NONCE, self.nonce.as_bytes());
        let provider = rtc_stun::crypto::default_provider().unwrap();
        let integrity = MessageIntegrity::new_long_term_integrity_with_provider(
            self.user.clone(),
            REALM.into(),
            self.password.clone(),
            provider.crypto(),
        );
        integrity.unwrap().add_to(&mut message).unwrap();
        message
    }
}

#[test]
fn two_viewers_reach_each_other_through_two_relayed_addresses() {
    let mut bench = Bench::new(limits());
    let (one, two) = (bench.caller("5.6.7.8:1000", "one"), bench.caller("9.8.7.6:2000", "two"));
    let (at_one, at_two) = (bench.allocate(&one).unwrap(), bench.allocate(&two).unwrap());
    assert_eq!(bench.code(&one, METHOD_CREATE_PERMISSION, &[Attribute::Peer(at_two)]), None);
    assert_eq!(bench.relayed(&one, &at_two.to_string(), 1), 1_000);

    // The other side has not permitted it yet, then it has: an indication, and with a channel four bytes of header.
    let arrive = |bench: &mut Bench| {
        let mut actions = Vec::new();
        bench.turn.handle_peer(bench.now_ms, 1, at_one, b"hello", &mut actions);
        actions
    };
    assert!(arrive(&mut bench).is_empty());
    assert_eq!(bench.code(&two, METHOD_CREATE_PERMISSION, &[Attribute::Peer(at_one)]), None);
    let [Action::ToClient(to, bytes)] = &arrive(&mut bench)[..] else { panic!() };
    let mut indication = Message::new();
    indication.unmarshal_binary(bytes).unwrap();
    assert_eq!((*to, indication.get(ATTR_DATA).unwrap()), (two.client, b"hello".to_vec()));
    assert_eq!(peers(&indication), [at_one]);
    let channel = [Attribute::Channel(0x4001), Attribute::Peer(at_one)];
    assert_eq!(bench.code(&two, METHOD_CHANNEL_BIND, &channel), None);
    let framed = b"\x40\x01\x00\x05hello\0\0\0".to_vec();
    assert_eq!(arrive(&mut bench), [Action::ToClient(two.client, framed.clone())]);
    assert_eq!(bench.send(two.client, &framed), [Action::ToPeer(1, at_one, b"hello".to_vec())]);
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_another_one_a_mismatch() {
    let mut bench = Bench::new(limits());
    let one = bench.caller("5.6.7.8:1000", "one");
    let request = one.signed(METHOD_ALLOCATE, &[transport()]);
    let first = bench.ask(one.client, &request).unwrap().0;
    let again = bench.ask(one.client, &request).unwrap().0;
    assert_eq!(first.get(ATTR_XOR_RELAYED_ADDRESS).unwrap(), again.get(ATTR_XOR_RELAYED_ADDRESS).unwrap());
    assert_eq!(bench.allocate(&one), Err(437));
    let two = bench.caller("9.8.7.6:1000", "two");
    assert_eq!(bench.code(&two, METHOD_ALLOCATE, &[Attribute::Transport(6)]), Some(442));
    assert_eq!(bench.code(&two, METHOD_ALLOCATE, &[]), Some(400));
    assert_eq!(bench.code(&two, METHOD_REFRESH, &[]), Some(437));
}

#[test]
fn allocations_end_when_they_are_not_refreshed_or_given_up_or_their_connection_ends() {
    let mut bench = Bench::new(limits());
    let one = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&one).unwrap();
    bench.now_ms += 500_000;
    assert_eq!(bench.code(&one, METHOD_REFRESH, &[Attribute::Lifetime(600)]), None);
    bench.now_ms += 500_000;
    bench.turn.handle_deadline(bench.now_ms, &mut bench.actions);
    assert!(bench.actions.is_empty(), "it was refreshed");
    bench.now_ms += 200_000;
    bench.turn.handle_deadline(bench.now_ms, &mut bench.actions);
    assert_eq!(std::mem::take(&mut bench.actions), [Action::Close(0)]);

    bench.allocate(&one).unwrap();
    let give_up = one.signed(METHOD_REFRESH, &[Attribute::Lifetime(0)]);
    assert!(bench.send(one.client, &give_up.raw).contains(&Action::Close(1)));
    let tcp = Client::Tcp(7, address("5.6.7.8:3000"));
    let three = Caller { client: tcp, ..bench.caller("5.6.7.8:3000", "one") };
    bench.allocate(&three).unwrap();
    bench.turn.handle_gone(bench.now_ms, tcp, &mut bench.actions);
    assert_eq!((bench.actions.pop(), bench.turn.allocations()), (Some(Action::Close(2)), 0));
}

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

/// Whether an allocation can be made to send to an address.
fn reaches(bench: &mut Bench, peer: &str) -> bool {
    let caller = bench.caller("5.6.7.8:1000", "one");
    let _ = bench.allocate(&caller);
    let peer_is = || Attribute::Peer(address(peer));
    let permitted = bench.code(&caller, METHOD_CREATE_PERMISSION, &[peer_is()]);
    let bound = bench.code(&caller, METHOD_CHANNEL_BIND, &[Attribute::Channel(0x4000), peer_is()]);
    let sent = bench.relayed(&caller, peer, 1) > 0;
    assert!(!(sent && (permitted.is_some() || bound.is_some())), "sent without leave");
    sent
}

#[test]
fn turn_abuse_nobody_but_viewers_and_relayed_addresses_is_reached() {
    let strangers =
        ["127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "1.1.1.1:53", "[::1]:80", "224.0.0.1:9"];
    for stranger in strangers {
        assert!(!reaches(&mut Bench::new(limits()), stranger), "{stranger}");
    }
    // The relay's own host: its other ports are services.
    assert!(!reaches(&mut Bench::new(limits()), "198.51.99.1:22"));
    assert!(reaches(&mut Bench::new(limits()), "9.8.7.6:4000"), "control: a viewer is");
    let mut open = Bench::new(limits());
    open.net.viewers.push("10.0.0.1".parse().unwrap());
    assert!(reaches(&mut open, "10.0.0.1:80"), "control: with the check off the inside is open");
}

#[test]
fn turn_abuse_a_viewer_that_has_gone_is_not_sent_to_any_more() {
    let mut bench = Bench::new(limits());
    let caller = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&caller).unwrap();
    assert_eq!(bench.code(&caller, METHOD_CREATE_PERMISSION, &[Attribute::Peer(address("9.8.7.6:1"))]), None);
    assert_eq!(bench.relayed(&caller, "9.8.7.6:1", 1), 1_000);
    bench.net.viewers.clear();
    assert_eq!(bench.relayed(&caller, "9.8.7.6:1", 1), 0);
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
    let open = Limits { allocations_per_user_max: 1_000, allocations_per_address_max: 1_000, ..limits() };
    assert_eq!(hoarded(open), (20, 20), "control");
}

/// Bytes that one user moves in a second of sending 4 Mbyte, with a second allocation half-way.
fn moved(limits: Limits) -> usize {
    let mut bench = Bench::new(limits);
    let one = bench.caller("5.6.7.8:1000", "one");
    bench.allocate(&one).unwrap();
    let permit = [Attribute::Peer(address("9.8.7.6:1"))];
    assert_eq!(bench.code(&one, METHOD_CREATE_PERMISSION, &permit), None);
    let mut sum = 0;
    for _ in 0..20 {
        bench.now_ms += 50;
        sum += bench.relayed(&one, "9.8.7.6:1", 200);
    }
    // Giving up and allocating anew fills no bucket.
    let give_up = one.signed(METHOD_REFRESH, &[Attribute::Lifetime(0)]);
    bench.send(one.client, &give_up.raw);
    bench.turn.handle_deadline(bench.now_ms, &mut bench.actions);
    bench.actions.clear();
    bench.allocate(&one).unwrap();
    assert_eq!(bench.code(&one, METHOD_CREATE_PERMISSION, &permit), None);
    sum + bench.relayed(&one, "9.8.7.6:1", 200)
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
fn what_is_no_request_is_not_answered() {
    let mut bench = Bench::new(limits());
    let client = Client::Udp(address("5.6.7.8:1000"));
    let mut truncated = request(METHOD_ALLOCATE, &[transport()]).raw;
    truncated[3] = 200;
    for bytes in [&b""[..], &[0; 20], &[0x40], &[0x40, 0, 0xff, 0xff, 1], &[0xff; 64], &truncated] {
        assert!(bench.send(client, bytes).is_empty(), "{bytes:?}");
    }
}
