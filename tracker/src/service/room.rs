//! The task that owns one swarm: feeds it events and time, and hands its messages to the viewers' connections.
//!
//! One task for each swarm, so that no lock is held and one swarm's trouble is not another's. Viewers' messages come
//! through a bounded inbox: who floods waits in his own connection. Joins come through a door of their own and go first: a
//! viewer can do nothing before its welcome, and in a rush each joiner causes two dozen messages of others. What the
//! program says (publications, switches) comes beside both, since it is little and must not wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::counter;
use shoal_tracker_protocol::{IceServer, PeerId, ViewerMessage};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Clock;
use super::queue::{Frame, Goodbye, Queue};
use crate::plan;
use crate::swarm::{
    CloseReason, Counters, Credential, Joining, Output, Published, Relays, Session, Swarm, Switch,
};

/// Viewers' messages that wait for the swarm.
const INBOX_MAX: usize = 1_024;
/// Joins that wait for the swarm.
const JOINS_MAX: usize = 256;
/// Messages worked off before what the program says is looked at again.
const BATCH_MAX: usize = 128;
/// Joins worked off before messages are looked at again, so that a rush of joins does not starve those who have joined.
const JOINS_BATCH_MAX: usize = 16;
/// Counters are exported this often.
const METRICS_INTERVAL: Duration = Duration::from_secs(2);
/// A swarm whose stream has ended is kept this long for viewers that still swap.
const LINGER: Duration = Duration::from_secs(120);

/// What a viewer's connection tells the room.
#[derive(Debug)]
pub(super) enum Event {
    Message(Session, Box<ViewerMessage>),
    Closed { session: Session, is_final: bool },
}

#[derive(Debug)]
pub(super) struct Join {
    pub(super) address: IpAddr,
    pub(super) locality: plan::Locality,
    pub(super) shares: bool,
    pub(super) renditions: Vec<u8>,
    pub(super) resume: Option<String>,
    pub(super) credential: Option<Credential>,
    pub(super) ice_servers: Vec<IceServer>,
    pub(super) queue: Queue,
}

/// What the program tells the room.
#[derive(Debug)]
pub(super) enum Control {
    Published(Published),
    Switch(Switch),
    Relays(Relays),
    Stop,
    Ended,
    Inspect(oneshot::Sender<Snapshot>),
}

/// A swarm in numbers.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) viewers: usize,
    pub(super) pairs: usize,
    pub(super) groups: usize,
    pub(super) switch: Switch,
    pub(super) counters: Counters,
    pub(super) plans: Vec<(u8, plan::Summary)>,
}

/// The end of the tracker, as every room follows it: also one whose stream has ended and that nobody else knows any more.
#[derive(Clone, Debug)]
pub(super) struct Life {
    /// Viewers are told to come back.
    pub(super) draining: CancellationToken,
    /// Within this time.
    pub(super) reconnect_within_ms: u32,
    /// All connections are closed.
    pub(super) stop: CancellationToken,
}

/// The way to a room.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) joins: mpsc::Sender<Box<Join>>,
    pub(super) inbox: mpsc::Sender<Event>,
    control: mpsc::UnboundedSender<Control>,
    viewers: Arc<AtomicUsize>,
}

impl Room {
    /// Starts the task of a swarm.
    pub(super) fn start(swarm: Swarm, clock: Clock, life: Life) -> Self {
        let (joins, arrivals) = mpsc::channel(JOINS_MAX);
        let (inbox, events) = mpsc::channel(INBOX_MAX);
        let (control, controls) = mpsc::unbounded_channel();
        let viewers = Arc::new(AtomicUsize::new(0));
        let task = Task {
            swarm,
            clock,
            queues: HashMap::new(),
            viewers: Arc::clone(&viewers),
            exported: Counters::default(),
            out: Vec::new(),
            ends_at: None,
        };
        tokio::spawn(task.run(arrivals, events, controls, life));
        Self { joins, inbox, control, viewers }
    }

    pub(super) fn viewers(&self) -> usize {
        self.viewers.load(Ordering::Relaxed)
    }

    /// Whether the task is gone: after the stream's end, or because of a bug in it.
    pub(super) fn is_gone(&self) -> bool {
        self.inbox.is_closed()
    }

    /// Tells the room something; a room that is gone needs to know nothing.
    pub(super) fn tell(&self, control: Control) {
        let _ = self.control.send(control);
    }

    /// The swarm in numbers; none if the room is gone.
    pub(super) async fn inspect(&self) -> Option<Snapshot> {
        let (reply, snapshot) = oneshot::channel();
        self.tell(Control::Inspect(reply));
        snapshot.await.ok()
    }
}

struct Task {
    swarm: Swarm,
    clock: Clock,
    queues: HashMap<PeerId, (Session, Queue)>,
    viewers: Arc<AtomicUsize>,
    exported: Counters,
    out: Vec<Output>,
    /// Set when the stream has ended.
    ends_at: Option<Instant>,
}

impl Task {
    async fn run(
        mut self,
        mut arrivals: mpsc::Receiver<Box<Join>>,
        mut events: mpsc::Receiver<Event>,
        mut controls: mpsc::UnboundedReceiver<Control>,
        life: Life,
    ) {
        let mut is_draining = false;
        let mut joins = Vec::with_capacity(JOINS_BATCH_MAX);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut metrics_tick = tokio::time::interval(METRICS_INTERVAL);
        loop {
            let deadline = self.swarm.next_deadline().map(|at_ms| self.clock.instant(at_ms));
            let deadline = [deadline, self.ends_at].into_iter().flatten().min();
            let sleep = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = life.stop.cancelled() => break,
                () = life.draining.cancelled(), if !is_draining => {
                    is_draining = true;
                    self.swarm.handle_drain(life.reconnect_within_ms, &mut self.out);
                }
                control = controls.recv() => match control {
                    Some(control) => {
                        if !self.handle_control(control) {
                            break;
                        }
                    }
                    None => break,
                },
                () = sleep => {
                    let now_ms = self.clock.now_ms();
                    self.swarm.handle_deadline(now_ms, &mut self.out);
                    if self.ends_at.is_some_and(|at| at <= Instant::now()) {
                        break;
                    }
                }
                _ = metrics_tick.tick() => self.export(),
                count = arrivals.recv_many(&mut joins, JOINS_BATCH_MAX) => {
                    if count == 0 {
                        break;
                    }
                    joins.drain(..).for_each(|join| self.handle_join(*join));
                    while batch.len() < BATCH_MAX && let Ok(event) = events.try_recv() {
                        batch.push(event);
                    }
                    batch.drain(..).for_each(|event| self.handle_event(event));
                }
                count = events.recv_many(&mut batch, BATCH_MAX) => {
                    if count == 0 {
                        break;
                    }
                    batch.drain(..).for_each(|event| self.handle_event(event));
                }
            }
            self.dispatch();
        }
        self.close_all(Goodbye::Away);
        self.export();
        self.viewers.store(0, Ordering::Relaxed);
    }

    fn handle_join(&mut self, join: Join) {
        let now_ms = self.clock.now_ms();
        let joining = Joining {
            address: join.address,
            locality: join.locality,
            shares: join.shares,
            renditions: &join.renditions,
            resume: join.resume.as_deref(),
            credential: join.credential.as_ref(),
        };
        let mut out = Vec::new();
        let session = self.swarm.handle_join(now_ms, &joining, join.ice_servers, &mut out);
        // An old connection of the same viewer is closed by the first of `out`: it needs its queue still.
        if let Some((_, old)) = self.queues.remove(&session.peer) {
            let _ = old.try_send(Frame::Close(Goodbye::Done));
        }
        let _ = join.queue.try_send(Frame::Joined(session));
        self.queues.insert(session.peer, (session, join.queue));
        self.out.append(&mut out);
        self.dispatch();
    }

    fn handle_event(&mut self, event: Event) {
        let now_ms = self.clock.now_ms();
        match event {
            Event::Message(session, message) => {
                self.swarm.handle_message(now_ms, session, *message, &mut self.out);
            }
            Event::Closed { session, is_final } => {
                if self.queues.get(&session.peer).is_some_and(|(owner, _)| *owner == session) {
                    self.queues.remove(&session.peer);
                }
                self.swarm.handle_closed(now_ms, session, is_final, &mut self.out);
            }
        }
        self.dispatch();
    }

    /// False when the room shall end.
    fn handle_control(&mut self, control: Control) -> bool {
        let now_ms = self.clock.now_ms();
        match control {
            Control::Published(published) => self.swarm.handle_published(now_ms, published, &mut self.out),
            Control::Switch(switch) => self.swarm.handle_switch(now_ms, switch, &mut self.out),
            Control::Relays(relays) => self.swarm.handle_relays(relays),
            Control::Ended => {
                self.swarm.handle_ended(&mut self.out);
                self.ends_at = Some(Instant::now() + LINGER);
            }
            Control::Inspect(reply) => {
                let snapshot = Snapshot {
                    viewers: self.swarm.viewers(),
                    pairs: self.swarm.pairs(),
                    groups: self.swarm.groups(),
                    switch: self.swarm.switch(),
                    counters: self.swarm.counters(),
                    plans: self.swarm.plans(),
                };
                // Whoever asked may have gone.
                let _ = reply.send(snapshot);
            }
            Control::Stop => return false,
        }
        true
    }

    /// Hands out what the swarm wants sent. A viewer whose queue is full is closed: waiting for it would make all the
    /// others wait, and remembering more for it would let slow readers fill the memory.
    fn dispatch(&mut self) {
        let mut slow = Vec::new();
        while !self.out.is_empty() {
            for output in std::mem::take(&mut self.out) {
                match output {
                    Output::Send { to, message } => self.send(to, Frame::Own(message), &mut slow),
                    Output::Notify { to, notice } => self.send(to, Frame::Shared(notice), &mut slow),
                    Output::NotifyAll { notice } => {
                        for (session, queue) in self.queues.values() {
                            if queue.try_send(Frame::Shared(Arc::clone(&notice))).is_err() {
                                slow.push(*session);
                            }
                        }
                    }
                    Output::Close { session, reason } => self.close(session, reason),
                }
            }
            slow.sort_unstable();
            slow.dedup();
            let now_ms = self.clock.now_ms();
            for session in slow.drain(..) {
                counter!("tracker_viewers_slow_total").increment(1);
                debug!(peer = session.peer, "closed: its queue is full");
                self.queues.remove(&session.peer);
                self.swarm.handle_closed(now_ms, session, false, &mut self.out);
            }
        }
        self.viewers.store(self.swarm.viewers(), Ordering::Relaxed);
    }

    fn send(&self, to: PeerId, frame: Frame, slow: &mut Vec<Session>) {
        if let Some((session, queue)) = self.queues.get(&to)
            && queue.try_send(frame).is_err()
        {
            slow.push(*session);
        }
    }

    fn close(&mut self, session: Session, reason: CloseReason) {
        let goodbye = match reason {
            CloseReason::Superseded | CloseReason::Refused => Goodbye::Done,
            CloseReason::Silent => Goodbye::Policy,
        };
        if self.queues.get(&session.peer).is_some_and(|(owner, _)| *owner == session)
            && let Some((_, queue)) = self.queues.remove(&session.peer)
        {
            // If there is no room for it, the end of the queue says the same.
            let _ = queue.try_send(Frame::Close(goodbye));
        }
    }

    fn close_all(&mut self, goodbye: Goodbye) {
        for (_, (_, queue)) in self.queues.drain() {
            let _ = queue.try_send(Frame::Close(goodbye));
        }
    }

    /// Adds what the swarm has counted since the last time to the metrics.
    fn export(&mut self) {
        let now = self.swarm.counters();
        let old = std::mem::replace(&mut self.exported, now);
        let counts = [
            ("tracker_joins_total", now.joins - old.joins),
            ("tracker_resumes_total", now.resumes - old.resumes),
            ("tracker_introductions_total", now.introductions - old.introductions),
            (
                "tracker_introductions_cross_network_total",
                now.introductions_cross_network - old.introductions_cross_network,
            ),
            ("tracker_introductions_withheld_total", now.introductions_withheld - old.introductions_withheld),
            ("tracker_connections_total", now.connections - old.connections),
            (
                "tracker_connections_cross_network_total",
                now.connections_cross_network - old.connections_cross_network,
            ),
            ("tracker_unreachable_total", now.unreachable - old.unreachable),
            ("tracker_signals_total", now.signals - old.signals),
            ("tracker_signals_refused_total", now.signals_refused - old.signals_refused),
            ("tracker_candidates_stripped_total", now.candidates_stripped - old.candidates_stripped),
            ("tracker_messages_limited_total", now.messages_limited - old.messages_limited),
            ("tracker_messages_stale_total", now.messages_stale - old.messages_stale),
            ("tracker_accusations_total", now.accusations - old.accusations),
            ("tracker_bans_total", now.bans - old.bans),
            ("tracker_pieces_total", now.pieces - old.pieces),
            ("tracker_piece_bytes_total", now.piece_bytes - old.piece_bytes),
            ("tracker_reported_peer_bytes_total", now.peer_bytes - old.peer_bytes),
            ("tracker_reported_origin_bytes_total", now.origin_bytes - old.origin_bytes),
            ("tracker_reported_waste_bytes_total", now.waste_bytes - old.waste_bytes),
            ("tracker_reported_rebuffer_ms_total", now.rebuffer_ms - old.rebuffer_ms),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            counter!(name).increment(count);
        }
    }
}
