//! The one media port: datagrams of all publishers in, sorted to their sessions; datagrams out.
//!
//! A datagram belongs to the session whose user name fragment its STUN USERNAME names, once its integrity has
//! proven the session's password; from then on everything from that address does. One thread of its own reads the
//! socket and never waits: sessions at work on all of the runtime's threads don't make it late, and a session that
//! doesn't keep up loses datagrams, which are counted, and nobody else's.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::Mutex;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metric;
use crate::stun::{self, BindingRequest};
use crate::transport::{Protocol, Route};

/// Addresses that one publisher may have at the same time: its interfaces, and those of its NATs over time. The
/// oldest makes room for a new one.
const ADDRESSES_MAX: usize = 16;
/// With GRO the kernel hands over up to 64 datagrams of one sender at once.
const BUFFER_BYTES: usize = 65_535;
/// Buffers handed to one `recvmmsg`.
const BATCH: usize = 8;

/// No datagram lies in the socket for longer; if it seems so, somebody has set the clock.
const WAITED_MAX: Duration = Duration::from_secs(1);

/// So often the thread that reads the socket looks whether it is to end.
const CANCELLED_WITHIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A datagram for a session.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) arrival: Instant,
    pub(crate) route: Route,
    pub(crate) bytes: Bytes,
}

/// A session as the network knows it.
#[derive(Debug)]
pub(crate) struct Member {
    inbox: mpsc::Sender<Datagram>,
    /// The addresses that have proven to be this session's, oldest first.
    addresses: Mutex<VecDeque<(Protocol, SocketAddr)>>,
}

impl Member {
    pub(crate) fn new(inbox: mpsc::Sender<Datagram>) -> Arc<Self> {
        Arc::new(Self { inbox, addresses: Mutex::new(VecDeque::new()) })
    }
}

#[derive(Debug)]
struct Ufrag {
    password: String,
    member: Arc<Member>,
}

#[derive(Debug)]
struct Address {
    ufrag: String,
    member: Arc<Member>,
    /// Our address that the publisher sends to, which may differ from the advertised one behind a NAT.
    local: Option<IpAddr>,
    /// The way back of a TCP connection.
    stream: Option<mpsc::Sender<Bytes>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Network {
    /// Only sent from, by whoever has something to send; never waited for.
    socket: std::net::UdpSocket,
    state: UdpSocketState,
    candidates: Vec<SocketAddr>,
    is_ipv6: bool,
    ufrags: DashMap<String, Ufrag>,
    addresses: DashMap<(Protocol, SocketAddr), Address>,
}

impl Network {
    /// Wraps a bound socket; `candidates` are the addresses that publishers are told.
    pub(crate) fn new(socket: std::net::UdpSocket, candidates: Vec<SocketAddr>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let is_ipv6 = socket.local_addr()?.is_ipv6();
        let (ufrags, addresses) = (DashMap::new(), DashMap::new());
        Ok(Self { socket, state, candidates, is_ipv6, ufrags, addresses })
    }

    pub(crate) fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// Lets a session's datagrams come to it; more than one name at a time while ICE restarts.
    pub(crate) fn register(&self, ufrag: &str, password: &str, member: &Arc<Member>) {
        let entry = Ufrag { password: password.to_owned(), member: Arc::clone(member) };
        self.ufrags.insert(ufrag.to_owned(), entry);
    }

    /// Takes one of a session's names away; its addresses stay.
    pub(crate) fn unregister(&self, ufrag: &str) {
        self.ufrags.remove(ufrag);
    }

    /// Forgets a session's addresses.
    pub(crate) fn forget(&self, member: &Arc<Member>) {
        for key in member.addresses.lock().drain(..) {
            self.addresses.remove_if(&key, |_, address| Arc::ptr_eq(&address.member, member));
        }
    }

    /// Reads the socket until cancelled.
    pub(crate) async fn run(self: &Arc<Self>, cancelled: CancellationToken) -> io::Result<()> {
        let (sender, ended) = oneshot::channel();
        let network = Arc::clone(self);
        std::thread::Builder::new().name("ingest-udp".to_owned()).spawn(move || {
            // Nobody listens when the program is ending.
            let _ = sender.send(network.read(&cancelled));
        })?;
        ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread that reads the socket has panicked")))
    }

    fn read(&self, cancelled: &CancellationToken) -> io::Result<()> {
        let mut buffers = vec![[0u8; BUFFER_BYTES]; BATCH];
        let mut metas = [RecvMeta::default(); BATCH];
        while !cancelled.is_cancelled() {
            // Not by the runtime, which would listen for room to write too: whatever a session sends would wake this thread.
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&CANCELLED_WITHIN)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let received = {
                let mut slices = buffers.iter_mut().map(|buffer| io::IoSliceMut::new(buffer));
                let mut slices: [io::IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| slices.next().expect("there are as many buffers"));
                self.state.recv((&self.socket).into(), &mut slices, &mut metas)
            };
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // ICMP errors of datagrams sent earlier come back here; they are some publisher's, not the socket's.
                Err(error) => {
                    tracing::debug!(%error, "receive");
                    metrics::counter!(metric::UDP_ERRORS).increment(1);
                    continue;
                }
            };
            let (now, wall) = (Instant::now(), SystemTime::now());
            for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
                let arrival = now - waited(wall, meta.timestamp);
                let peer = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
                let local = meta.dst_ip.map(|ip| ip.to_canonical());
                for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                    self.sort(arrival, Protocol::Udp, peer, local, datagram, None);
                }
            }
        }
        Ok(())
    }

    /// Gives a datagram to the session that it belongs to; false when it belongs to none.
    pub(crate) fn sort(
        &self,
        now: Instant,
        protocol: Protocol,
        peer: SocketAddr,
        local: Option<IpAddr>,
        datagram: &[u8],
        stream: Option<&mpsc::Sender<Bytes>>,
    ) -> bool {
        let request = BindingRequest::parse(datagram);
        let known = self.addresses.get(&(protocol, peer)).and_then(|address| {
            // The same address may come to belong to another session: a browser that publishes again.
            let is_same = request.is_none_or(|request| request.ufrag == address.ufrag);
            is_same.then(|| (Arc::clone(&address.member), address.local))
        });
        let member = match known {
            Some((member, known_local)) => {
                if known_local != local
                    && let Some(mut address) = self.addresses.get_mut(&(protocol, peer))
                {
                    address.local = local;
                }
                member
            }
            None => match self.authenticate(protocol, peer, local, request, stream) {
                Some(member) => member,
                None => {
                    let reason = if stun::is_stun(datagram) { "not_authentic" } else { "unknown_address" };
                    metrics::counter!(metric::DATAGRAMS_REFUSED, "reason" => reason).increment(1);
                    return false;
                }
            },
        };
        let route = Route { protocol, local: self.candidate(local), peer };
        let datagram = Datagram { arrival: now, route, bytes: Bytes::copy_from_slice(datagram) };
        if member.inbox.try_send(datagram).is_err() {
            metrics::counter!(metric::DATAGRAMS_REFUSED, "reason" => "session_busy").increment(1);
        }
        true
    }

    /// Believes an address to be a session's if its request proves it.
    fn authenticate(
        &self,
        protocol: Protocol,
        peer: SocketAddr,
        local: Option<IpAddr>,
        request: Option<BindingRequest<'_>>,
        stream: Option<&mpsc::Sender<Bytes>>,
    ) -> Option<Arc<Member>> {
        let request = request?;
        let member = {
            let entry = self.ufrags.get(request.ufrag)?;
            // A user name fragment is seen by everybody on the path; only the two ends know the password.
            if !request.is_authentic(&entry.password) {
                return None;
            }
            Arc::clone(&entry.member)
        };
        let key = (protocol, peer);
        let evicted = {
            let mut addresses = member.addresses.lock();
            if !addresses.contains(&key) {
                addresses.push_back(key);
            }
            if addresses.len() > ADDRESSES_MAX { addresses.pop_front() } else { None }
        };
        if let Some(evicted) = evicted {
            self.addresses.remove_if(&evicted, |_, address| Arc::ptr_eq(&address.member, &member));
        }
        let (ufrag, stream) = (request.ufrag.to_owned(), stream.cloned());
        self.addresses.insert(key, Address { ufrag, member: Arc::clone(&member), local, stream });
        Some(member)
    }

    /// Forgets the address of a TCP connection that ended.
    pub(crate) fn disconnect(&self, peer: SocketAddr) {
        self.addresses.remove(&(Protocol::Tcp, peer));
    }

    /// The candidate that a datagram came in by. Behind a NAT none has our own address: then the first of its
    /// family will do, since the WebRTC stack only needs one that it knows.
    fn candidate(&self, local: Option<IpAddr>) -> SocketAddr {
        let exact = self.candidates.iter().find(|candidate| Some(candidate.ip()) == local);
        let family = || {
            let is_ipv6 = local.is_some_and(|local| local.is_ipv6());
            self.candidates.iter().find(|candidate| candidate.is_ipv6() == is_ipv6)
        };
        *exact.or_else(family).unwrap_or(&self.candidates[0])
    }

    /// Sends a datagram, or drops it when the socket or the connection is full, as a network would.
    pub(crate) fn send(&self, route: Route, bytes: Bytes) {
        let (local, stream) = self
            .addresses
            .get(&(route.protocol, route.peer))
            .map_or((None, None), |address| (address.local, address.stream.clone()));
        if route.protocol == Protocol::Tcp {
            if stream.is_none_or(|stream| stream.try_send(bytes).is_err()) {
                metrics::counter!(metric::UDP_ERRORS).increment(1);
            }
            return;
        }
        let map = |ip: IpAddr| match ip {
            IpAddr::V4(ip) if self.is_ipv6 => IpAddr::V6(ip.to_ipv6_mapped()),
            ip => ip,
        };
        let transmit = Transmit {
            destination: SocketAddr::new(map(route.peer.ip()), route.peer.port()),
            ecn: None,
            contents: &bytes,
            segment_size: None,
            src_ip: local.map(map),
        };
        if let Err(error) = self.state.try_send((&self.socket).into(), &transmit) {
            tracing::debug!(%error, "send");
            metrics::counter!(metric::UDP_ERRORS).increment(1);
        }
    }
}

/// How long a datagram lay in the socket, by the kernel's stamp: on a busy machine what matters is when it came, not
/// when there was time for it. The wall clock may have been set in between.
fn waited(wall: SystemTime, stamp: Option<Duration>) -> Duration {
    let now = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let waited = stamp.map_or(Duration::ZERO, |stamp| now.saturating_sub(stamp));
    if waited < WAITED_MAX { waited } else { Duration::ZERO }
}

/// The addresses to offer for a socket bound to `bound`, the reachable ones first.
pub(crate) fn own_addresses(bound: SocketAddr) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let interfaces = rtc::shared::ifaces::ifaces().unwrap_or_default();
    let mut ips: Vec<IpAddr> =
        interfaces.iter().filter_map(|interface| Some(interface.addr?.ip().to_canonical())).collect();
    ips.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_unspecified(),
        // An IPv4 socket doesn't hear IPv6. Link-local addresses need a zone, which candidates can't carry.
        IpAddr::V6(ip) => bound.is_ipv6() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    });
    if ips.is_empty() {
        ips.push(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    }
    ips.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    ips.dedup();
    ips.into_iter().map(|ip| SocketAddr::new(ip, bound.port())).collect()
}

/// Whether an address can be reached from the whole internet, as far as the address itself tells.
pub(crate) fn is_global(ip: IpAddr) -> bool {
    // An IPv4 address in IPv6 clothes (`::ffff:a.b.c.d`) is the IPv4 address.
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let is_shared = ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1]);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || is_shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, Mac};
    use sha1::Sha1;

    use super::*;

    const PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";

    fn network() -> Network {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        Network::new(socket, vec![address]).unwrap()
    }

    fn request(ufrag: &str, password: &str) -> Vec<u8> {
        let username = format!("{ufrag}:them");
        let mut attributes = vec![0, 6, 0, username.len() as u8];
        attributes.extend(username.as_bytes());
        attributes.resize(attributes.len().next_multiple_of(4), 0);
        let mut datagram = vec![0, 1, 0, attributes.len() as u8 + 24, 0x21, 0x12, 0xa4, 0x42];
        datagram.extend([7; 12]);
        datagram.extend(attributes);
        let mut mac = Hmac::<Sha1>::new_from_slice(password.as_bytes()).unwrap();
        mac.update(&datagram);
        datagram.extend([0, 8, 0, 20]);
        datagram.extend(mac.finalize().into_bytes());
        datagram
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn arrives(network: &Network, from: SocketAddr, datagram: &[u8]) -> bool {
        network.sort(Instant::now(), Protocol::Udp, from, None, datagram, None)
    }

    #[test]
    fn a_kernel_stamp_counts_unless_the_clock_was_set() {
        let wall = UNIX_EPOCH + Duration::from_millis(5_000);
        for (stamp_ms, waited_ms) in [(4_990, 10), (5_000, 0), (6_000, 0), (3_000, 0)] {
            assert_eq!(waited(wall, Some(Duration::from_millis(stamp_ms))), Duration::from_millis(waited_ms));
        }
        assert_eq!(waited(wall, None), Duration::ZERO);
    }

    #[tokio::test]
    async fn only_who_knows_the_password_gets_to_a_session() {
        let network = network();
        let (sender, mut inbox) = mpsc::channel(8);
        let member = Member::new(sender);
        network.register("ours", PASSWORD, &member);
        let media = [0x80, 96, 0, 1];
        assert!(!arrives(&network, address(1), &media), "an unknown address");
        assert!(!arrives(&network, address(1), &request("ours", "guessed-password-guessed")));
        assert!(!arrives(&network, address(1), &request("other", PASSWORD)));
        assert!(!arrives(&network, address(1), &media), "the failed attempts have no effect");
        assert!(inbox.try_recv().is_err());
        assert!(arrives(&network, address(1), &request("ours", PASSWORD)));
        assert!(arrives(&network, address(1), &media));
        assert!(!arrives(&network, address(2), &media), "another port is another address");
        assert_eq!(inbox.try_recv().unwrap().route.peer, address(1));
        network.unregister("ours");
        network.forget(&member);
        assert!(!arrives(&network, address(1), &media), "the session is over");
    }

    #[tokio::test]
    async fn a_sessions_names_and_addresses_go_with_it_however_it_ends() {
        let network = Arc::new(network());
        let (sender, _inbox) = mpsc::channel(8);
        let mut registration = crate::session::Registration::new(Arc::clone(&network), Member::new(sender));
        registration.add("ours", PASSWORD);
        assert!(arrives(&network, address(1), &request("ours", PASSWORD)));
        drop(registration);
        assert!(!arrives(&network, address(1), &[0x80, 96, 0, 1]));
        assert!(!arrives(&network, address(1), &request("ours", PASSWORD)));
    }

    #[tokio::test]
    async fn an_address_that_proves_another_session_moves_there() {
        let network = network();
        let (one, mut inbox_one) = mpsc::channel(8);
        let (two, mut inbox_two) = mpsc::channel(8);
        let (one, two) = (Member::new(one), Member::new(two));
        network.register("one1", PASSWORD, &one);
        network.register("two2", "another-password-of-22-chars", &two);
        assert!(arrives(&network, address(1), &request("one1", PASSWORD)));
        assert!(!arrives(&network, address(1), &request("two2", PASSWORD)), "not without proof");
        assert!(arrives(&network, address(1), &request("two2", "another-password-of-22-chars")));
        assert!(arrives(&network, address(1), &[0x80]));
        assert_eq!((inbox_one.len(), inbox_two.len()), (1, 2));
        // The first session's end must not take away what has become the other's.
        network.forget(&one);
        assert!(arrives(&network, address(1), &[0x80]));
        drop((inbox_one.try_recv(), inbox_two.try_recv()));
    }

    #[tokio::test]
    async fn a_session_has_a_bounded_number_of_addresses_and_the_oldest_goes() {
        let network = network();
        let (sender, _inbox) = mpsc::channel(1024);
        let member = Member::new(sender);
        network.register("ours", PASSWORD, &member);
        for port in 1..=ADDRESSES_MAX as u16 + 3 {
            assert!(arrives(&network, address(port), &request("ours", PASSWORD)));
        }
        assert_eq!(network.addresses.len(), ADDRESSES_MAX);
        assert!(!arrives(&network, address(1), &[0x80]));
        assert!(arrives(&network, address(ADDRESSES_MAX as u16 + 3), &[0x80]));
    }

    #[tokio::test]
    async fn a_session_that_does_not_keep_up_blocks_nobody() {
        let network = network();
        let (sender, inbox) = mpsc::channel(2);
        let member = Member::new(sender);
        network.register("ours", PASSWORD, &member);
        for _ in 0..100 {
            assert!(arrives(&network, address(1), &request("ours", PASSWORD)));
        }
        assert_eq!(inbox.len(), 2);
    }

    #[test]
    fn a_wildcard_address_offers_real_addresses_and_a_real_one_itself() {
        let all = own_addresses(SocketAddr::from(([0, 0, 0, 0], 8189)));
        assert!(
            all.iter().all(|address| !address.ip().is_unspecified() && address.port() == 8189),
            "{all:?}"
        );
        assert!(all.iter().any(|address| address.ip().is_loopback()), "{all:?}");
        let one = SocketAddr::from(([192, 0, 2, 3], 8189));
        assert_eq!(own_addresses(one), [one]);
    }

    #[test]
    fn private_addresses_are_known_as_such() {
        for ip in [
            "10.1.2.3",
            "192.168.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
        ] {
            assert!(!is_global(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["8.8.8.8", "100.128.0.1", "2a00::1", "::ffff:8.8.8.8"] {
            assert!(is_global(ip.parse().unwrap()), "{ip}");
        }
    }
}
