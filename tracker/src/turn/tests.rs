//! The relay against scripted clients: what it gives. The abuse that it withstands is in `tests/abuse.rs`.

mod abuse;

use rtc_stun::attributes::{
    ATTR_CHANNEL_NUMBER, ATTR_DATA, ATTR_ERROR_CODE, ATTR_EVEN_PORT, ATTR_LIFETIME, ATTR_NONCE, ATTR_REALM,
    ATTR_REQUESTED_ADDRESS_FAMILY, ATTR_REQUESTED_TRANSPORT, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS,
    ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS,
};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    CLASS_SUCCESS_RESPONSE, METHOD_ALLOCATE, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION, MessageType,
    Method, Setter as _, TransactionId,
};
use rtc_stun::xoraddr::XorMappedAddress;

use super::allocation::{CHANNEL_MS, CHANNELS_MAX, PERMISSION_MS, PERMISSIONS_MAX};
use super::message::peers;
use super::requests::{LIFETIME_MAX_MS, LIFETIME_MS};
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
    unix_s: u64,
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
        Self {
            turn,
            net: Net { viewers, next_port: 50_000 },
            now_ms: 1_000,
            unix_s: NOW_S,
            actions: Vec::new(),
        }
    }

    fn send(&mut self, client: Client, bytes: &[u8]) -> Vec<Action> {
        self.turn.handle_client(self.now_ms, self.unix_s, client, bytes, &mut self.net, &mut self.actions);
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
        let user = format!("{}:{user}", self.unix_s + 100);
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
    EvenPort,
    Family(u8),
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
        Attribute::EvenPort => message.add(ATTR_EVEN_PORT, &[0x80]),
        Attribute::Family(number) => message.add(ATTR_REQUESTED_ADDRESS_FAMILY, &[*number, 0, 0, 0]),
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
