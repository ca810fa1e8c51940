//! The sockets of the relay: one UDP port for STUN and TURN, TCP on the same number, and a UDP port for each allocation.
//!
//! One task owns the server (`../turn`) and all its decisions; small tasks read from TCP connections and relayed ports
//! and pass on what comes. What finds no room in a queue is dropped, as UDP drops it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge};
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use super::Clock;
use super::gate::{Gate, Proxies};
use super::stun;
use crate::Config;
use crate::swarm::is_inside;
use crate::turn::{Action, Client, Counters, Limits, Turn, World};

/// Larger datagrams are no WebRTC: DTLS keeps below the usual path MTU.
const DATAGRAM_BYTES_MAX: usize = 1_600;
/// What waits for the owner, from all TCP connections and relayed ports together.
const INBOX_MAX: usize = 2_048;
/// Messages that wait for one TCP client to take them.
const TCP_QUEUE_MAX: usize = 256;
/// TCP connections at a time.
const TCP_CONNECTIONS_MAX: usize = 2_048;
/// A TCP connection without traffic is closed after this time; ICE checks its pairs every few seconds.
const TCP_SILENCE_MAX: Duration = Duration::from_secs(60);
/// Ports that are tried before an allocation is refused.
const PORT_TRIES: usize = 16;
const TICK: Duration = Duration::from_secs(1);

/// What comes from other tasks.
enum Event {
    TcpOpened(u64, SocketAddr, mpsc::Sender<Vec<u8>>),
    Tcp(Client, Vec<u8>),
    TcpClosed(Client),
    Peer(u64, SocketAddr, Vec<u8>),
}

/// Ports of the system's choice that are tried.
const CHOSEN_PORT_TRIES: usize = 16;

/// A relay that is about to run.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: std::net::UdpSocket,
    /// None where TURN is off.
    pub(super) tcp: Option<std::net::TcpListener>,
}

impl Sockets {
    /// Opens the port before anything else runs, so that a port that is taken ends the program with a clear word.
    pub(super) fn bind(address: SocketAddr, with_tcp: bool) -> std::io::Result<Self> {
        // A port that the system chose is free for UDP; for TCP it may be somebody's.
        let tries = if address.port() == 0 { CHOSEN_PORT_TRIES } else { 1 };
        let is_taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        (1..tries)
            .map(|_| Self::bind_once(address, with_tcp))
            .find(|bound| !bound.as_ref().is_err_and(is_taken))
            .unwrap_or_else(|| Self::bind_once(address, with_tcp))
    }

    fn bind_once(address: SocketAddr, with_tcp: bool) -> std::io::Result<Self> {
        let udp = std::net::UdpSocket::bind(address)?;
        udp.set_nonblocking(true)?;
        let tcp = with_tcp.then(|| {
            let tcp = std::net::TcpListener::bind(udp.local_addr()?)?;
            tcp.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(tcp)
        });
        Ok(Self { udp, tcp: tcp.transpose()? })
    }
}

/// What [`World`] needs beside the sockets.
struct Ports {
    /// Where relayed ports are opened; the address by which the client reached us if it is none.
    advertised: Option<IpAddr>,
    range: std::ops::RangeInclusive<u16>,
    allowed: Proxies,
    gate: Arc<Gate>,
    inbox: mpsc::Sender<Event>,
    /// Told the addresses that are given out: candidates of type relay may name no others.
    learned: mpsc::UnboundedSender<IpAddr>,
    open: HashMap<u64, (Arc<UdpSocket>, AbortHandle)>,
}

impl World for Ports {
    fn open(&mut self, allocation: u64, client: Client, is_ipv4: bool) -> Option<SocketAddr> {
        let (Client::Udp(from) | Client::Tcp(_, from)) = client;
        let address =
            self.advertised.or_else(|| local_towards(from)).filter(|own| own.is_ipv4() == is_ipv4)?;
        // An advertised address may be a NAT's in front of us: then it can't be bound.
        let any: IpAddr = if is_ipv4 { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = (0..PORT_TRIES).find_map(|_| {
            let port = rand::rng().random_range(self.range.clone());
            let socket = std::net::UdpSocket::bind((address, port))
                .or_else(|_| std::net::UdpSocket::bind((any, port)))
                .ok()?;
            socket.set_nonblocking(true).ok()?;
            UdpSocket::from_std(socket).ok()
        })?;
        let relayed = SocketAddr::new(address, socket.local_addr().ok()?.port());
        let socket = Arc::new(socket);
        let reading = tokio::spawn(read_peer(Arc::clone(&socket), allocation, self.inbox.clone()));
        self.open.insert(allocation, (socket, reading.abort_handle()));
        // Nobody to hear it: the program is about to end.
        let _ = self.learned.send(address);
        Some(relayed)
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        self.allowed.trusts(address) || (!is_inside(address) && self.gate.has_viewer(address))
    }
}

/// The address that packets to somebody leave from; nothing is sent.
fn local_towards(peer: SocketAddr) -> Option<IpAddr> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn read_peer(socket: Arc<UdpSocket>, allocation: u64, inbox: mpsc::Sender<Event>) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        // An error tells that something sent earlier reached nobody; the socket goes on.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if let Err(mpsc::error::TrySendError::Closed(_)) =
            inbox.try_send(Event::Peer(allocation, from, buffer[..length].to_vec()))
        {
            return;
        }
    }
}

/// Serves STUN, and TURN if it is on, until it is dropped.
pub(super) async fn serve(
    sockets: Sockets,
    config: Config,
    secret: String,
    gate: Arc<Gate>,
    learned: mpsc::UnboundedSender<IpAddr>,
    clock: Clock,
) {
    let Ok(udp) = UdpSocket::from_std(sockets.udp) else { return };
    let (inbox, mut events) = mpsc::channel(INBOX_MAX);
    // Dropped with this task: ends the tasks of TCP connections.
    let mut tasks = JoinSet::new();
    let is_relay = sockets.tcp.is_some();
    if let Some(listener) = sockets.tcp.and_then(|tcp| TcpListener::from_std(tcp).ok()) {
        let per_address_max = config.turn_allocations_per_address_max as usize;
        tasks.spawn(accept(listener, per_address_max, inbox.clone()));
    }
    let limits = Limits {
        allocations_max: config.turn_allocations_max as usize,
        allocations_per_user_max: config.turn_allocations_per_user_max as usize,
        allocations_per_address_max: config.turn_allocations_per_address_max as usize,
        total_kbps: config.turn_kbps_max,
        user_kbps: config.turn_user_kbps_max,
    };
    let ports = Ports {
        advertised: config.turn_relay_address.parse().ok(),
        range: config.turn_port_min..=config.turn_port_max,
        allowed: Proxies::parse("turn_peers_allowed", &config.turn_peers_allowed).unwrap_or_default(),
        gate,
        inbox,
        learned,
        open: HashMap::new(),
    };
    let turn = is_relay.then(|| Turn::new(secret, limits, rand::random()));
    let mut relay = Relay {
        udp,
        turn,
        ports,
        clock,
        tcp: HashMap::new(),
        out: Vec::new(),
        exported: Counters::default(),
    };
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            received = relay.udp.recv_from(&mut buffer) => match received {
                Ok((length, from)) => relay.handle_datagram(&buffer[..length], from),
                // The kernel reports that a former answer reached nobody; that is no fault of the socket.
                Err(error) => debug!(%error, "receiving on the STUN socket"),
            },
            event = events.recv() => match event {
                Some(event) => relay.handle_event(event),
                None => return,
            },
            _ = tick.tick() => relay.handle_tick(),
        }
        relay.act();
    }
}

struct Relay {
    udp: UdpSocket,
    turn: Option<Turn>,
    ports: Ports,
    clock: Clock,
    tcp: HashMap<Client, mpsc::Sender<Vec<u8>>>,
    out: Vec<Action>,
    exported: Counters,
}

impl Relay {
    fn handle_datagram(&mut self, bytes: &[u8], from: SocketAddr) {
        if let Some(answer) = stun::answer(bytes, from) {
            counter!("tracker_stun_answers_total").increment(1);
            // A full send buffer means that the request is lost, which clients expect of UDP.
            let _ = self.udp.try_send_to(&answer, from);
        } else if self.turn.is_some() {
            self.handle_client(Client::Udp(from), bytes);
        } else {
            counter!("tracker_stun_ignored_total").increment(1);
        }
    }

    fn handle_client(&mut self, client: Client, bytes: &[u8]) {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Some(turn) = &mut self.turn {
            let now_ms = self.clock.now_ms();
            turn.handle_client(now_ms, unix_s, client, bytes, &mut self.ports, &mut self.out);
        }
    }

    fn handle_event(&mut self, event: Event) {
        let now_ms = self.clock.now_ms();
        match event {
            Event::TcpOpened(number, from, sender) => {
                self.tcp.insert(Client::Tcp(number, from), sender);
            }
            Event::Tcp(client @ Client::Tcp(_, from), bytes) => match stun::answer(&bytes, from) {
                Some(answer) => self.out.push(Action::ToClient(client, answer)),
                None => self.handle_client(client, &bytes),
            },
            Event::Tcp(Client::Udp(_), _) => {}
            Event::TcpClosed(client) => {
                self.tcp.remove(&client);
                if let Some(turn) = &mut self.turn {
                    turn.handle_gone(now_ms, client, &mut self.out);
                }
            }
            Event::Peer(allocation, from, bytes) => {
                if let Some(turn) = &mut self.turn {
                    turn.handle_peer(now_ms, allocation, from, &bytes, &mut self.out);
                }
            }
        }
    }

    fn handle_tick(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        turn.handle_deadline(self.clock.now_ms(), &mut self.out);
        gauge!("tracker_turn_allocations").set(u32::try_from(turn.allocations()).unwrap_or(u32::MAX));
        let now = turn.counters();
        let old = std::mem::replace(&mut self.exported, now);
        let counts = [
            ("tracker_turn_allocations_total", now.allocations - old.allocations),
            ("tracker_turn_relayed_bytes_total", now.relayed_bytes - old.relayed_bytes),
            ("tracker_turn_dropped_bytes_total", now.dropped_bytes - old.dropped_bytes),
            ("tracker_turn_unauthorised_total", now.unauthorised - old.unauthorised),
            ("tracker_turn_forbidden_total", now.forbidden - old.forbidden),
            ("tracker_turn_over_quota_total", now.over_quota - old.over_quota),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            counter!(name).increment(count);
        }
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.out) {
            match action {
                Action::ToClient(Client::Udp(to), bytes) => {
                    let _ = self.udp.try_send_to(&bytes, to);
                }
                Action::ToClient(client, bytes) => {
                    if let Some(sender) = self.tcp.get(&client) {
                        let _ = sender.try_send(bytes);
                    }
                }
                Action::ToPeer(allocation, to, bytes) => {
                    if let Some((socket, _)) = self.ports.open.get(&allocation) {
                        let _ = socket.try_send_to(&bytes, to);
                    }
                }
                Action::Close(allocation) => {
                    if let Some((_, reading)) = self.ports.open.remove(&allocation) {
                        reading.abort();
                    }
                }
            }
        }
    }
}

/// Places of TCP clients, by address.
type Places = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One TCP client's place.
struct TcpPlace {
    _permit: OwnedSemaphorePermit,
    places: Places,
    /// An IPv6 client has all of its /64.
    address: IpAddr,
}

impl TcpPlace {
    /// None if this address has as many as it may.
    fn take(permit: OwnedSemaphorePermit, places: &Places, from: IpAddr, max: usize) -> Option<Self> {
        let address = match from.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
            v4 => v4,
        };
        let mut counts = places.lock();
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { _permit: permit, places: Arc::clone(places), address })
    }
}

impl Drop for TcpPlace {
    fn drop(&mut self) {
        let mut counts = self.places.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

async fn accept(listener: TcpListener, per_address_max: usize, inbox: mpsc::Sender<Event>) {
    let taken = Places::default();
    let places = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => match TcpPlace::take(permit, &taken, from.ip(), per_address_max) {
                Some(place) => {
                    connections.spawn(serve_tcp(stream, number, from, inbox.clone(), place));
                }
                None => counter!("tracker_turn_tcp_refused_total").increment(1),
            },
            // Out of file descriptors, or the client has gone: others may come in.
            Err(error) => {
                debug!(%error, "accepting on the TURN port");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One TCP client, until its connection ends.
async fn serve_tcp(
    mut stream: TcpStream,
    number: u64,
    from: SocketAddr,
    inbox: mpsc::Sender<Event>,
    place: TcpPlace,
) {
    let _ = stream.set_nodelay(true);
    let client = Client::Tcp(number, from);
    let (sender, mut queue) = mpsc::channel::<Vec<u8>>(TCP_QUEUE_MAX);
    if inbox.send(Event::TcpOpened(number, from, sender)).await.is_err() {
        return;
    }
    let (mut read, mut write) = stream.split();
    let reading = async {
        while let Ok(Some(message)) = timeout(TCP_SILENCE_MAX, read_message(&mut read)).await {
            if inbox.send(Event::Tcp(client, message)).await.is_err() {
                break;
            }
        }
    };
    let writing = async {
        while let Some(bytes) = queue.recv().await {
            if !matches!(timeout(TCP_SILENCE_MAX, write.write_all(&bytes)).await, Ok(Ok(()))) {
                break;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    let _ = inbox.send(Event::TcpClosed(client)).await;
    drop(place);
}

/// One STUN message or channel datum from a stream (RFC 8656, section 12.5); none at its end or if it is neither.
async fn read_message(read: &mut tokio::net::tcp::ReadHalf<'_>) -> Option<Vec<u8>> {
    let mut message = vec![0; 4];
    read.read_exact(&mut message).await.ok()?;
    let length = usize::from(u16::from_be_bytes([message[2], message[3]]));
    let rest = match message[0] & 0xc0 {
        // The rest of STUN's header has 16 bytes.
        0x00 => 16 + length,
        0x40 => length.next_multiple_of(4),
        _ => return None,
    };
    if rest > DATAGRAM_BYTES_MAX {
        return None;
    }
    message.resize(4 + rest, 0);
    read.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}
