//! One connection to one peer: signaling, two data channels, and the way of blocks through the uplink.
//!
//! A neighbor is a task. The viewer talks to it through [`Neighbor`] and hears [`NeighborEvent`]s; each carries the
//! generation of the connection, so that late words of a closed one are recognised.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use shoal_swarm::{
    PeerId,
    wire::{BLOCK_HEADER_BYTES, BLOCKS_CHANNEL, CONTROL_CHANNEL},
};
use shoal_tracker_protocol::{IceServer, Signal};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use webrtc::{
    data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit},
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
        RTCIceCandidateInit, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnectionIceEvent,
        RTCPeerConnectionState, RTCSessionDescription,
    },
};

use crate::identity::Identity;
use crate::uplink::Uplink;

/// How often the send queue is looked at while it drains: a block of 16 KiB takes as long at 6 Mbit/s.
const QUEUE_INTERVAL: Duration = Duration::from_millis(20);
/// webrtc (0.21) loses what arrives together with the end of SCTP's handshake, before it has opened the channels. Whoever is
/// ready first therefore waits so long before its first word, the hello without which nothing else is understood.
const SETTLE: Duration = Duration::from_millis(100);
/// How long what was said last has to leave before a connection is closed, such as a goodbye. Browsers give it about as much.
const GOODBYE_MAX: Duration = Duration::from_millis(200);
/// How often that is looked at. A round trip in one house or town takes about as long.
const GOODBYE_STEP: Duration = Duration::from_millis(5);
/// Signaling messages that may wait; a browser trickles about a dozen candidates.
const SIGNALS_MAX: usize = 64;
/// Bytes of control messages that may wait for their channel. Most is said at once in greeting: the sets of up to 480 pieces, less
/// than 10 KiB, and to one without a tracker the last 16 records, 5 KiB with parts of 500 ms at 3 Mbit/s. About twice what it is with the
/// longest records that fit into a message, of pieces of 16 MB.
const CONTROL_QUEUED_MAX: u64 = 512 * 1024;
/// Bytes that a channel takes before whoever sends waits; by itself it takes everything. Blocks don't wait for it: of them the core
/// hands over no more while 64 KiB are under way to a neighbor.
const CHANNEL_BYTES_MAX: usize = 128 * 1024;

/// What happened on a connection.
#[derive(Debug)]
pub(crate) struct NeighborEvent {
    pub(crate) peer: PeerId,
    pub(crate) generation: u64,
    pub(crate) kind: NeighborEventKind,
}

#[derive(Debug)]
pub(crate) enum NeighborEventKind {
    /// To be sent to the peer through the tracker.
    Signal(Signal),
    /// Both channels are open.
    Open,
    /// A message on the control channel.
    Control(Bytes),
    /// A message on the blocks channel.
    Block(Bytes),
    /// So many bytes wait to be sent on the blocks channel.
    Queue(u32),
    /// The connection is gone or never came to be.
    Closed,
}

/// How to make connections.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionOptions {
    pub(crate) ice_servers: Vec<IceServer>,
    pub(crate) relay_only: bool,
    /// Whether the loopback address is a candidate too: of use, and passed on by the tracker, where that is on this machine.
    pub(crate) loopback: bool,
    /// Who this viewer is to the other one; somebody new if none.
    pub(crate) identity: Option<Identity>,
    pub(crate) connect_timeout: Duration,
}

/// The viewer's handle of a connection; dropping it closes the connection at once.
#[derive(Debug)]
pub(crate) struct Neighbor {
    pub(crate) generation: u64,
    pub(crate) is_open: bool,
    signals: mpsc::Sender<Signal>,
    // Bounded by `control_queued`, and blocks by the core, which is told how much of them is queued.
    control: mpsc::UnboundedSender<Bytes>,
    control_queued: Arc<AtomicU64>,
    blocks: mpsc::UnboundedSender<Bytes>,
    blocks_queued: Arc<AtomicU64>,
    close: DropGuard,
}

impl Neighbor {
    /// Starts to connect. Must be called on a tokio runtime.
    pub(crate) fn connect(
        peer: PeerId,
        generation: u64,
        offers: bool,
        options: ConnectionOptions,
        uplink: Arc<Uplink>,
        events: mpsc::Sender<NeighborEvent>,
    ) -> Self {
        let (signals, signals_in) = mpsc::channel(SIGNALS_MAX);
        let (control, control_in) = mpsc::unbounded_channel();
        let (blocks, blocks_in) = mpsc::unbounded_channel();
        let control_queued = Arc::new(AtomicU64::new(0));
        let blocks_queued = Arc::new(AtomicU64::new(0));
        let close = CancellationToken::new();
        let link = Link { peer, generation, events, is_told: CancellationToken::new(), close: close.clone() };
        let outgoing = Outgoing {
            control: control_in,
            control_queued: control_queued.clone(),
            blocks: blocks_in,
            blocks_queued: blocks_queued.clone(),
            uplink,
        };
        tokio::spawn(async move {
            let end = link.clone();
            // Whatever goes wrong with a peer is normal: the viewer hears that the connection is gone.
            if let Err(error) = link.run(offers, options, signals_in, outgoing).await {
                tracing::debug!(peer, %error, "connection failed");
            }
            end.tell(NeighborEventKind::Closed).await;
        });
        Self {
            generation,
            is_open: false,
            signals,
            control,
            control_queued,
            blocks,
            blocks_queued,
            close: close.drop_guard(),
        }
    }

    /// Hands in signaling from the peer; too much of it is dropped.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = self.signals.try_send(signal);
    }

    /// Sends a message on the control channel. False if the neighbor takes nothing: then it is not sent, and those before it wait.
    #[must_use]
    pub(crate) fn send_control(&self, bytes: Vec<u8>) -> bool {
        let length = bytes.len() as u64;
        // Only the viewer's task adds to it, so that nothing comes between the check and the addition.
        if self.control_queued.load(Ordering::Relaxed) + length > CONTROL_QUEUED_MAX {
            return false;
        }
        self.control_queued.fetch_add(length, Ordering::Relaxed);
        // A connection that has just ended says so by itself.
        let _ = self.control.send(bytes.into());
        true
    }

    /// Sends a block; returns how many bytes wait now.
    pub(crate) fn send_block(&self, header: [u8; BLOCK_HEADER_BYTES], block: &[u8]) -> u32 {
        let mut message = BytesMut::with_capacity(header.len() + block.len());
        message.extend_from_slice(&header);
        message.extend_from_slice(block);
        let length = message.len() as u64;
        let queued = self.blocks_queued.fetch_add(length, Ordering::Relaxed) + length;
        let _ = self.blocks.send(message.freeze());
        u32::try_from(queued).unwrap_or(u32::MAX)
    }

    /// Closes the connection when the other end has got the control messages, at the latest after [`GOODBYE_MAX`].
    pub(crate) async fn close_soon(self) {
        if !self.is_open {
            return;
        }
        let closed = self.close.disarm();
        let _close = closed.clone().drop_guard();
        // Whoever writes the messages closes the connection after the last one.
        drop(self.control);
        let _ = timeout(GOODBYE_MAX, closed.cancelled()).await;
    }
}

struct Outgoing {
    control: mpsc::UnboundedReceiver<Bytes>,
    control_queued: Arc<AtomicU64>,
    blocks: mpsc::UnboundedReceiver<Bytes>,
    blocks_queued: Arc<AtomicU64>,
    uplink: Arc<Uplink>,
}

/// One connection's identity and its way back to the viewer.
#[derive(Clone, Debug)]
struct Link {
    peer: PeerId,
    generation: u64,
    events: mpsc::Sender<NeighborEvent>,
    /// Set when the viewer knows that the connection is open: no message may reach it before.
    is_told: CancellationToken,
    close: CancellationToken,
}

/// What webrtc calls back with.
enum Callback {
    Candidate(RTCIceCandidateInit),
    State(RTCPeerConnectionState),
}

struct Handler(mpsc::UnboundedSender<Callback>);

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        if let Ok(candidate) = event.candidate.to_json() {
            let _ = self.0.send(Callback::Candidate(candidate));
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let _ = self.0.send(Callback::State(state));
    }
}

impl Link {
    async fn tell(&self, kind: NeighborEventKind) {
        let event = NeighborEvent { peer: self.peer, generation: self.generation, kind };
        let _ = self.events.send(event).await;
    }

    async fn run(
        &self,
        offers: bool,
        options: ConnectionOptions,
        signals: mpsc::Receiver<Signal>,
        outgoing: Outgoing,
    ) -> webrtc::error::Result<()> {
        let (callbacks, callbacks_in) = mpsc::unbounded_channel();
        let connection: Arc<dyn PeerConnection> = Arc::new(build(&options, callbacks).await?);
        let ended = self.drive(&connection, offers, &options, signals, callbacks_in, outgoing).await;
        self.close.cancel();
        let _ = connection.close().await;
        ended
    }

    async fn drive(
        &self,
        connection: &Arc<dyn PeerConnection>,
        offers: bool,
        options: &ConnectionOptions,
        mut signals: mpsc::Receiver<Signal>,
        mut callbacks: mpsc::UnboundedReceiver<Callback>,
        outgoing: Outgoing,
    ) -> webrtc::error::Result<()> {
        let channel = |id: u16, ordered: bool| RTCDataChannelInit {
            ordered,
            negotiated: Some(id),
            ..RTCDataChannelInit::default()
        };
        let [(control, control_id), (blocks, blocks_id)] = [CONTROL_CHANNEL, BLOCKS_CHANNEL];
        let control = connection.create_data_channel(control, Some(channel(control_id, true))).await?;
        let blocks = connection.create_data_channel(blocks, Some(channel(blocks_id, false))).await?;
        let (opened, mut opened_in) = mpsc::channel(2);
        tokio::spawn(self.clone().read(control.clone(), NeighborEventKind::Control, opened.clone()));
        tokio::spawn(self.clone().read(blocks.clone(), NeighborEventKind::Block, opened));
        let mut outgoing = Some((control, blocks, outgoing));
        if offers {
            let offer = connection.create_offer(None).await?;
            let sdp = offer.sdp.clone();
            connection.set_local_description(offer).await?;
            self.tell(NeighborEventKind::Signal(Signal::Offer { sdp })).await;
        }
        let too_late = sleep(options.connect_timeout);
        tokio::pin!(too_late);
        let mut open_count = 0;
        loop {
            tokio::select! {
                () = self.close.cancelled() => return Ok(()),
                () = &mut too_late, if open_count < 2 => return Ok(()),
                Some(signal) = signals.recv() => self.handle_signal(connection, signal).await?,
                Some(callback) = callbacks.recv() => match callback {
                    Callback::Candidate(candidate) => {
                        let signal = Signal::Candidate { candidate: candidate.candidate, mid: None };
                        self.tell(NeighborEventKind::Signal(signal)).await;
                    }
                    Callback::State(
                        state @ (RTCPeerConnectionState::Failed
                        | RTCPeerConnectionState::Disconnected
                        | RTCPeerConnectionState::Closed),
                    ) => {
                        tracing::debug!(peer = self.peer, %state, open_count, "connection ended");
                        return Ok(());
                    }
                    Callback::State(_) => {}
                },
                Some(()) = opened_in.recv() => {
                    open_count += 1;
                    if open_count == 2 && let Some((control, blocks, outgoing)) = outgoing.take() {
                        sleep(SETTLE).await;
                        let Outgoing { control: messages, control_queued, .. } = outgoing;
                        tokio::spawn(self.clone().write_control(control, messages, control_queued));
                        let Outgoing { blocks: messages, blocks_queued, uplink, .. } = outgoing;
                        tokio::spawn(self.clone().write_blocks(blocks, messages, blocks_queued, uplink));
                        self.tell(NeighborEventKind::Open).await;
                        self.is_told.cancel();
                    }
                }
            }
        }
    }

    async fn handle_signal(
        &self,
        connection: &Arc<dyn PeerConnection>,
        signal: Signal,
    ) -> webrtc::error::Result<()> {
        match signal {
            Signal::Offer { sdp } => {
                connection.set_remote_description(RTCSessionDescription::offer(sdp)?).await?;
                let answer = connection.create_answer(None).await?;
                let sdp = answer.sdp.clone();
                connection.set_local_description(answer).await?;
                self.tell(NeighborEventKind::Signal(Signal::Answer { sdp })).await;
            }
            Signal::Answer { sdp } => {
                connection.set_remote_description(RTCSessionDescription::answer(sdp)?).await?;
            }
            Signal::Candidate { candidate, mid } if !candidate.is_empty() => {
                let candidate = RTCIceCandidateInit {
                    candidate,
                    sdp_mid: mid,
                    sdp_mline_index: Some(0),
                    ..RTCIceCandidateInit::default()
                };
                // A candidate of a kind that we do not know is no reason to give the others up.
                if let Err(error) = connection.add_ice_candidate(candidate).await {
                    tracing::debug!(peer = self.peer, %error, "candidate refused");
                }
            }
            Signal::Candidate { .. } => {}
        }
        Ok(())
    }

    /// Passes a channel's messages to the viewer until it closes; then the connection is of no use.
    async fn read(
        self,
        channel: Arc<dyn DataChannel>,
        kind: fn(Bytes) -> NeighborEventKind,
        opened: mpsc::Sender<()>,
    ) {
        loop {
            let event = tokio::select! {
                () = self.close.cancelled() => return,
                event = channel.poll() => event,
            };
            match event {
                Some(DataChannelEvent::OnOpen) => {
                    let _ = opened.send(()).await;
                }
                Some(DataChannelEvent::OnMessage(message)) => {
                    // The other end may have seen both channels open earlier, and have begun.
                    tokio::select! {
                        () = self.close.cancelled() => return,
                        () = self.is_told.cancelled() => {}
                    }
                    self.tell(kind(message.data.freeze())).await;
                }
                Some(DataChannelEvent::OnClose) | None => {
                    tracing::debug!(peer = self.peer, "channel closed");
                    return self.close.cancel();
                }
                Some(_) => {}
            }
        }
    }

    /// Sends control messages until there won't be any more; then the connection has served.
    async fn write_control(
        self,
        channel: Arc<dyn DataChannel>,
        mut messages: mpsc::UnboundedReceiver<Bytes>,
        queued: Arc<AtomicU64>,
    ) {
        loop {
            let message = tokio::select! {
                () = self.close.cancelled() => return,
                message = messages.recv() => message,
            };
            let Some(message) = message else { break };
            let sent = tokio::select! {
                // It may wait for a neighbor that takes nothing, and that is left for it.
                () = self.close.cancelled() => return,
                sent = channel.send(BytesMut::from(&message[..])) => sent,
            };
            queued.fetch_sub(message.len() as u64, Ordering::Relaxed);
            if let Err(error) = sent {
                tracing::debug!(peer = self.peer, %error, "message not sent");
                return self.close.cancel();
            }
        }
        while channel.outstanding_bytes().await.is_ok_and(|bytes| bytes > 0) && !self.close.is_cancelled() {
            sleep(GOODBYE_STEP).await;
        }
        self.close.cancel();
    }

    /// Sends blocks one after the other at the uplink's rate and tells how many bytes wait.
    async fn write_blocks(
        self,
        channel: Arc<dyn DataChannel>,
        mut messages: mpsc::UnboundedReceiver<Bytes>,
        queued: Arc<AtomicU64>,
        uplink: Arc<Uplink>,
    ) {
        let mut is_draining = false;
        loop {
            let message = tokio::select! {
                () = self.close.cancelled() => return,
                message = messages.recv() => message,
                () = sleep(QUEUE_INTERVAL), if is_draining => {
                    is_draining = self.tell_queue(&channel, &queued).await > 0;
                    continue;
                }
            };
            let Some(message) = message else { return };
            let length = message.len();
            uplink.send(length).await;
            let sent = tokio::select! {
                () = self.close.cancelled() => return,
                sent = channel.send(BytesMut::from(&message[..])) => sent,
            };
            queued.fetch_sub(length as u64, Ordering::Relaxed);
            if let Err(error) = sent {
                tracing::debug!(peer = self.peer, %error, length, "block not sent");
                return self.close.cancel();
            }
            is_draining = self.tell_queue(&channel, &queued).await > 0;
        }
    }

    async fn tell_queue(&self, channel: &Arc<dyn DataChannel>, queued: &AtomicU64) -> u32 {
        let outstanding = channel.outstanding_bytes().await.unwrap_or(0) as u64;
        let all = u32::try_from(queued.load(Ordering::Relaxed) + outstanding).unwrap_or(u32::MAX);
        self.tell(NeighborEventKind::Queue(all)).await;
        all
    }
}

async fn build(
    options: &ConnectionOptions,
    callbacks: mpsc::UnboundedSender<Callback>,
) -> webrtc::error::Result<impl PeerConnection + use<>> {
    let ice_servers = options
        .ice_servers
        .iter()
        .map(|server| RTCIceServer {
            urls: server.urls.clone(),
            username: server.username.clone().unwrap_or_default(),
            credential: server.credential.clone().unwrap_or_default(),
        })
        .collect();
    let policy = if options.relay_only { RTCIceTransportPolicy::Relay } else { RTCIceTransportPolicy::All };
    let certificates = options.identity.iter().map(Identity::certificate).collect();
    let configuration = RTCConfigurationBuilder::default()
        .with_ice_servers(ice_servers)
        .with_ice_transport_policy(policy)
        .with_certificates(certificates)
        .build();
    // The wildcard stands for every interface except loopback.
    let mut addresses = vec!["0.0.0.0:0"];
    if options.loopback {
        addresses.push("127.0.0.1:0");
    }
    PeerConnectionBuilder::new()
        .with_configuration(configuration)
        .with_handler(Arc::new(Handler(callbacks)))
        .with_udp_addrs(addresses)
        .with_data_channel_send_buffer_limit(CHANNEL_BYTES_MAX)
        .build()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ConnectionOptions {
        ConnectionOptions {
            ice_servers: Vec::new(),
            relay_only: false,
            loopback: true,
            identity: None,
            connect_timeout: Duration::from_secs(20),
        }
    }

    /// Two neighbors in one process, with the tracker's part played by the test.
    struct Pair {
        left: Neighbor,
        right: Neighbor,
        events: mpsc::Receiver<NeighborEvent>,
    }

    impl Pair {
        fn connect() -> Self {
            Self::with_events(1024)
        }

        /// The two share one channel of events: when so many wait to be looked at, both stop reading.
        fn with_events(events_max: usize) -> Self {
            let (events_out, events) = mpsc::channel(events_max);
            let uplink = Arc::new(Uplink::new(None));
            let left = Neighbor::connect(1, 7, true, options(), uplink.clone(), events_out.clone());
            let right = Neighbor::connect(2, 7, false, options(), uplink, events_out);
            Self { left, right, events }
        }

        async fn next(&mut self) -> (PeerId, NeighborEventKind) {
            loop {
                let wait = tokio::time::timeout(Duration::from_secs(30), self.events.recv());
                let event = wait.await.expect("an event in time").expect("the channel is open");
                match event.kind {
                    NeighborEventKind::Signal(signal) if event.peer == 1 => self.right.signal(signal),
                    NeighborEventKind::Signal(signal) => self.left.signal(signal),
                    NeighborEventKind::Queue(_) => {}
                    kind => return (event.peer, kind),
                }
            }
        }

        async fn open(&mut self) {
            for _ in 0..2 {
                assert!(matches!(self.next().await.1, NeighborEventKind::Open));
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn full_block_and_control_message_cross_real_data_channels() {
        let mut pair = Pair::connect();
        pair.open().await;
        let block: Vec<u8> = (0..16_384_u32).map(|byte| (byte % 251) as u8).collect();
        pair.left.send_block([9; BLOCK_HEADER_BYTES], &block);
        let (peer, NeighborEventKind::Block(bytes)) = pair.next().await else { panic!("a block") };
        assert_eq!(peer, 2);
        assert_eq!(bytes[..BLOCK_HEADER_BYTES], [9; BLOCK_HEADER_BYTES]);
        assert_eq!(bytes[BLOCK_HEADER_BYTES..], block);
        assert!(pair.right.send_control(vec![1, 2, 3]));
        let (peer, NeighborEventKind::Control(bytes)) = pair.next().await else { panic!("a message") };
        assert_eq!((peer, &bytes[..]), (1, &[1, 2, 3][..]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_blocks_and_messages_at_once_arrive_whole() {
        const COUNT: usize = 300;
        let length = |number: usize| 1 + (number * 7919) % 16_384;
        let byte = |number: usize| (number % 251) as u8;
        let mut pair = Pair::connect();
        pair.open().await;
        for number in 0..COUNT {
            for end in [&pair.left, &pair.right] {
                let mut header = [0; BLOCK_HEADER_BYTES];
                header[..2].copy_from_slice(&(number as u16).to_be_bytes());
                end.send_block(header, &vec![byte(number); length(number)]);
                assert!(end.send_control(vec![byte(number); 1 + number % 900]));
            }
        }
        let mut blocks = [vec![false; COUNT], vec![false; COUNT]];
        let mut controls = [0; 2];
        while blocks.concat().contains(&false) || controls != [COUNT; 2] {
            let (peer, kind) = pair.next().await;
            let end = peer as usize - 1;
            match kind {
                NeighborEventKind::Block(bytes) => {
                    let number = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
                    assert_eq!(bytes.len(), BLOCK_HEADER_BYTES + length(number), "block {number}");
                    assert!(bytes[BLOCK_HEADER_BYTES..].iter().all(|found| *found == byte(number)));
                    assert!(!std::mem::replace(&mut blocks[end][number], true), "block {number} came twice");
                }
                NeighborEventKind::Control(bytes) => {
                    let number = controls[end];
                    assert_eq!(bytes, vec![byte(number); 1 + number % 900], "message {number}");
                    controls[end] += 1;
                }
                kind => panic!("{kind:?}"),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn more_control_messages_than_the_limit_pass_to_a_neighbor_that_reads() {
        const BYTES: usize = 16 * 1024;
        let mut pair = Pair::connect();
        pair.open().await;
        for _ in 0..2 * CONTROL_QUEUED_MAX / BYTES as u64 {
            assert!(pair.left.send_control(vec![7; BYTES]));
            let (_, NeighborEventKind::Control(bytes)) = pair.next().await else { panic!("a message") };
            assert_eq!(bytes.len(), BYTES);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_neighbor_that_reads_nothing_is_not_queued_for_without_limit() {
        const BYTES: usize = 16 * 1024;
        // What the other end's stack takes for it: SCTP's window and what is read ahead.
        const ELSEWHERE_MAX: usize = 32 * 1024 * 1024;
        let mut pair = Pair::with_events(4);
        pair.open().await;
        let mut sent = 0;
        while pair.left.send_control(vec![7; BYTES]) {
            sent += BYTES;
            assert!(sent < ELSEWHERE_MAX, "{sent} bytes wait");
            // Time for what can leave.
            sleep(Duration::from_millis(1)).await;
        }
        assert!(sent as u64 >= CONTROL_QUEUED_MAX, "{sent}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_said_last_arrives_before_the_connection_closes() {
        let mut pair = Pair::connect();
        pair.open().await;
        pair.left.is_open = true;
        for number in 0..8 {
            assert!(pair.left.send_control(vec![number; 1024]));
        }
        let Pair { left, right: _right, mut events } = pair;
        left.close_soon().await;
        let mut heard = 0;
        loop {
            let event = timeout(Duration::from_secs(30), events.recv()).await;
            let event = event.expect("an event in time").expect("the channel is open");
            match event.kind {
                NeighborEventKind::Control(bytes) => {
                    assert_eq!(bytes[0], heard);
                    heard += 1;
                }
                NeighborEventKind::Closed if event.peer == 2 => break,
                _ => {}
            }
        }
        assert_eq!(heard, 8);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_neighbor_that_reads_nothing_does_not_hold_up_the_end() {
        let mut pair = Pair::with_events(4);
        pair.open().await;
        pair.left.is_open = true;
        while pair.left.send_control(vec![7; 16 * 1024]) {
            sleep(Duration::from_millis(1)).await;
        }
        let Pair { left, right: _right, events: _events } = pair;
        timeout(Duration::from_secs(5), left.close_soon()).await.expect("it is closed all the same");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dropping_one_end_closes_both() {
        let mut pair = Pair::connect();
        pair.open().await;
        let Pair { left, right: _right, mut events } = pair;
        drop(left);
        // The other end may hear of it before this one has finished.
        let mut closed = [false; 2];
        while closed != [true; 2] {
            let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await;
            let event = event.expect("an event in time").expect("the channel is open");
            if matches!(event.kind, NeighborEventKind::Closed) {
                let end = &mut closed[event.peer as usize - 1];
                assert!(!std::mem::replace(end, true), "peer {} closed twice", event.peer);
            }
        }
    }
}
