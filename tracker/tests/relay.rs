//! The relay on real sockets, with the credentials that viewers are told; and the policy that decides who is told.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::net::SocketAddr;

use common::{PATIENCE, Server};
use rtc_stun::attributes::{
    ATTR_DATA, ATTR_ERROR_CODE, ATTR_MESSAGE_INTEGRITY, ATTR_NONCE, ATTR_REALM, ATTR_REQUESTED_TRANSPORT,
    ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS,
};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    CLASS_INDICATION, CLASS_REQUEST, METHOD_ALLOCATE, METHOD_CREATE_PERMISSION, METHOD_DATA, METHOD_SEND,
    Message, MessageClass, MessageType, Method, Setter as _, TransactionId,
};
use rtc_stun::xoraddr::XorMappedAddress;
use shoal_tracker::{Config, PeerPolicy};
use shoal_tracker_protocol::{IceServer, TrackerMessage, Welcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

fn config() -> Config {
    Config { stun_listen: "127.0.0.1:0".into(), turn: true, ..Config::default() }
}

enum Transport {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// A client of the relay with the credential of a viewer.
struct Client {
    transport: Transport,
    username: String,
    password: String,
    nonce: Vec<u8>,
}

fn message(method: Method, class: MessageClass) -> Message {
    let mut message = Message::new();
    message.set_type(MessageType { method, class });
    message.transaction_id = TransactionId(rand::random());
    message.write_header();
    message
}

fn turn(welcome: &Welcome) -> Option<&IceServer> {
    welcome.ice_servers.iter().find(|server| server.urls.iter().any(|url| url.starts_with("turn:")))
}

impl Client {
    async fn new(welcome: &Welcome, transport: &str) -> Self {
        let server = turn(welcome).expect("a relay is told");
        let url = server.urls.iter().find(|url| url.ends_with(&format!("?transport={transport}"))).unwrap();
        let address: SocketAddr = url.trim_start_matches("turn:").split('?').next().unwrap().parse().unwrap();
        let transport = if transport == "tcp" {
            Transport::Tcp(TcpStream::connect(address).await.unwrap())
        } else {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(address).await.unwrap();
            Transport::Udp(socket)
        };
        let username = server.username.clone().unwrap();
        Self { transport, username, password: server.credential.clone().unwrap(), nonce: Vec::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        match &mut self.transport {
            Transport::Udp(socket) => {
                socket.send(bytes).await.unwrap();
            }
            Transport::Tcp(stream) => stream.write_all(bytes).await.unwrap(),
        }
    }

    async fn receive(&mut self) -> Message {
        let receive = async {
            match &mut self.transport {
                Transport::Udp(socket) => {
                    let mut buffer = vec![0; 2_000];
                    let length = socket.recv(&mut buffer).await.unwrap();
                    buffer.truncate(length);
                    buffer
                }
                Transport::Tcp(stream) => {
                    let mut header = vec![0; 20];
                    stream.read_exact(&mut header).await.unwrap();
                    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                    header.resize(20 + length, 0);
                    stream.read_exact(&mut header[20..]).await.unwrap();
                    header
                }
            }
        };
        let bytes = timeout(PATIENCE, receive).await.expect("the relay answers");
        let mut message = Message::new();
        message.unmarshal_binary(&bytes).unwrap();
        message
    }

    /// The answer and its error code.
    async fn ask(&mut self, method: Method, peer: Option<SocketAddr>) -> (Message, Option<u16>) {
        let mut request = message(method, CLASS_REQUEST);
        if method == METHOD_ALLOCATE {
            request.add(ATTR_REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        }
        if let Some(peer) = peer {
            add_peer(&mut request, peer);
        }
        if !self.nonce.is_empty() {
            request.add(ATTR_USERNAME, self.username.as_bytes());
            request.add(ATTR_REALM, b"shoal");
            request.add(ATTR_NONCE, &self.nonce);
            let provider = rtc_stun::crypto::default_provider().unwrap();
            MessageIntegrity::new_long_term_integrity_with_provider(
                self.username.clone(),
                "shoal".into(),
                self.password.clone(),
                provider.crypto(),
            )
            .unwrap()
            .add_to(&mut request)
            .unwrap();
        }
        self.send(&request.raw.clone()).await;
        let answer = self.receive().await;
        assert_eq!(answer.transaction_id, request.transaction_id);
        let code = answer.get(ATTR_ERROR_CODE).ok().map(|code| u16::from(code[2]) * 100 + u16::from(code[3]));
        (answer, code)
    }

    async fn allocate(&mut self) -> SocketAddr {
        let (challenge, code) = self.ask(METHOD_ALLOCATE, None).await;
        assert_eq!(code, Some(401));
        self.nonce = challenge.get(ATTR_NONCE).unwrap();
        let (answer, code) = self.ask(METHOD_ALLOCATE, None).await;
        assert_eq!(code, None);
        assert!(answer.contains(ATTR_MESSAGE_INTEGRITY));
        let mut relayed = XorMappedAddress::default();
        relayed.get_from_as(&answer, ATTR_XOR_RELAYED_ADDRESS).unwrap();
        SocketAddr::new(relayed.ip, relayed.port)
    }

    async fn send_to(&mut self, peer: SocketAddr, data: &[u8]) {
        let mut indication = message(METHOD_SEND, CLASS_INDICATION);
        add_peer(&mut indication, peer);
        indication.add(ATTR_DATA, data);
        self.send(&indication.raw.clone()).await;
    }
}

fn add_peer(message: &mut Message, peer: SocketAddr) {
    XorMappedAddress { ip: peer.ip(), port: peer.port() }.add_to_as(message, ATTR_XOR_PEER_ADDRESS).unwrap();
}

#[tokio::test]
async fn viewers_reach_each_other_through_the_relay_by_udp_and_by_tcp() {
    let server = Server::live(config()).await;
    let viewer = server.join().await;
    let welcome = viewer.welcome.as_ref().unwrap();
    let (mut one, mut two) = (Client::new(welcome, "udp").await, Client::new(welcome, "tcp").await);
    let (at_one, at_two) = (one.allocate().await, two.allocate().await);
    assert_eq!(one.ask(METHOD_CREATE_PERMISSION, Some(at_two)).await.1, None);
    assert_eq!(two.ask(METHOD_CREATE_PERMISSION, Some(at_one)).await.1, None);
    for (from, to) in [(1, 2), (2, 1)] {
        let (sender, receiver, address) =
            if from == 1 { (&mut one, &mut two, at_two) } else { (&mut two, &mut one, at_one) };
        sender.send_to(address, format!("hello {to}").as_bytes()).await;
        let indication = receiver.receive().await;
        assert_eq!(indication.typ, MessageType { method: METHOD_DATA, class: CLASS_INDICATION });
        assert_eq!(indication.get(ATTR_DATA).unwrap(), format!("hello {to}").into_bytes());
    }
}

#[tokio::test]
async fn the_relay_is_no_door_into_the_servers_own_machine() {
    let server = Server::live(config()).await;
    let viewer = server.join().await;
    let mut client = Client::new(viewer.welcome.as_ref().unwrap(), "udp").await;
    client.allocate().await;
    for inside in ["10.0.0.1:80", "169.254.169.254:80", "192.168.1.1:53"] {
        let (_, code) = client.ask(METHOD_CREATE_PERMISSION, Some(inside.parse().unwrap())).await;
        assert_eq!(code, Some(403), "{inside}");
    }
    // Relayed addresses are on this machine too, so that the address is permitted; its services are not reached.
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = service.local_addr().unwrap();
    assert_eq!(client.ask(METHOD_CREATE_PERMISSION, Some(address)).await.1, None);
    client.send_to(address, b"to a service").await;
    // The answer to a later request shows that the datagram before it has been dealt with.
    assert_eq!(client.ask(METHOD_CREATE_PERMISSION, Some(address)).await.1, None);
    let mut buffer = [0; 64];
    assert!(service.try_recv(&mut buffer).is_err(), "nothing came");
}

#[tokio::test]
async fn control_with_a_network_allowed_its_services_are_reached() {
    let allowed = Config { turn_peers_allowed: vec!["10.0.0.0/8".into()], ..config() };
    let server = Server::live(allowed).await;
    let viewer = server.join().await;
    let mut client = Client::new(viewer.welcome.as_ref().unwrap(), "udp").await;
    client.allocate().await;
    let (_, code) = client.ask(METHOD_CREATE_PERMISSION, Some("10.0.0.1:80".parse().unwrap())).await;
    assert_eq!(code, None);
}

#[tokio::test]
async fn the_policy_of_a_stream_is_changed_while_it_is_watched() {
    let server = Server::live(config()).await;
    let mut viewer = server.join().await;
    assert!(turn(viewer.welcome.as_ref().unwrap()).is_some());

    assert!(server.tracker.set_stream_policy("demo", PeerPolicy::Off));
    viewer.until(|message| *message == TrackerMessage::Sharing { on: false }).await;
    assert!(server.tracker.set_stream_policy("demo", PeerPolicy::Direct));
    viewer.until(|message| *message == TrackerMessage::Sharing { on: true }).await;
    let direct = server.join().await;
    assert!(turn(direct.welcome.as_ref().unwrap()).is_none(), "nobody is told of relays");

    // Addresses that are known already can't be hidden: everybody joins anew.
    assert!(server.tracker.set_stream_policy("demo", PeerPolicy::RelayOnly));
    assert_eq!(viewer.close_code().await, 1001);
    let hidden = server.join().await;
    let welcome = hidden.welcome.as_ref().unwrap();
    assert!(welcome.relay_only && turn(welcome).is_some());
    assert_ne!(welcome.swarm, direct.welcome.unwrap().swarm);
}

#[tokio::test]
async fn addresses_are_not_hidden_where_there_is_no_relay() {
    let server = Server::live(Config::default()).await;
    assert!(!server.tracker.set_stream_policy("demo", PeerPolicy::RelayOnly));
    assert!(!server.tracker.set_stream_policy("nothing", PeerPolicy::Off));
    let wrong = Config { peer_policy: PeerPolicy::RelayOnly, ..Config::default() };
    assert!(wrong.validate().unwrap_err().to_string().contains("relay_only"));
}

#[tokio::test]
async fn one_address_gets_its_share_of_tcp_connections_only_and_they_come_back() {
    let is_open = async |stream: &mut TcpStream| {
        // A binding request without attributes, which is answered without credentials.
        let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        request.extend([9; 12]);
        let mut answer = [0; 20];
        stream.write_all(&request).await.is_ok() && stream.read_exact(&mut answer).await.is_ok()
    };
    for (max, expected) in [(3, 3), (20, 10)] {
        let server = Server::live(Config { turn_allocations_per_address_max: max, ..config() }).await;
        let welcome = server.join().await.welcome.unwrap();
        let url = turn(&welcome).unwrap().urls.iter().find(|url| url.ends_with("tcp")).unwrap().clone();
        let address: SocketAddr = url.trim_start_matches("turn:").split('?').next().unwrap().parse().unwrap();
        let mut held = Vec::new();
        for _ in 0..10 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if timeout(PATIENCE, is_open(&mut stream)).await.expect("answered or closed") {
                held.push(stream);
            }
        }
        assert_eq!(held.len(), expected);
        drop(held);
        let comes_back = async { while !is_open(&mut TcpStream::connect(address).await.unwrap()).await {} };
        timeout(PATIENCE, comes_back).await.expect("there is room again");
    }
}
