//! One publisher's session: a task that drives its transport and hands frames to the segmenter.
//!
//! All of a session's state belongs to its task; HTTP handlers talk to it by [`Command`]s and read its
//! [`Status`]. The task never waits for the segmenter or for the socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_segmenter::KeyframeRequest;
use shoal_segmenter::frame::Input;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metric;
use crate::network::{Datagram, Member, Network};
use crate::rtp::receiver::Receiver;
use crate::sink::Sink;
use crate::status::{self, State, Status};
use crate::transport::{Answer, Event, StackError, Transport};

/// Datagrams handled before everything else gets a turn again.
const BATCH: usize = 64;
/// How often status and metrics are brought up to date.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// A publisher that closes its connection may be about to delete its session, as OBS does: its stream is over then, and
/// nobody has to wait for it.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The publisher deleted its session.
    Deleted,
    /// The publisher closed its connection.
    Closed,
    /// Nothing came any more.
    Vanished,
    /// It never connected.
    NeverConnected,
    /// It had fallen silent, and another publisher wanted the stream.
    Replaced,
    /// It sends what can't be published; the status says what.
    Refused,
    /// The program stops.
    Shutdown,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Closed => "closed",
            Self::Vanished => "vanished",
            Self::NeverConnected => "never_connected",
            Self::Replaced => "replaced",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What HTTP handlers ask of a session.
#[derive(Debug)]
pub(crate) enum Command {
    /// End it.
    Delete(oneshot::Sender<()>),
    /// End it for another publisher.
    Replace,
    /// Take candidates of the publisher.
    Candidates(Vec<String>),
    /// Restart ICE with a new offer.
    Restart { offer: String, reply: oneshot::Sender<Result<Answer, StackError>> },
}

/// Times that come from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) silence: Duration,
}

/// How long frames were in here; looked up once, since every frame counts.
pub(crate) struct Latencies {
    added: metrics::Histogram,
    worked: metrics::Histogram,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self { added: metrics::histogram!(metric::ADDED_MS), worked: metrics::histogram!(metric::WORKED_MS) }
    }
}

/// A session's names and addresses in the network, which forgets them however the session ends.
pub(crate) struct Registration {
    network: Arc<Network>,
    member: Arc<Member>,
    /// The names under which the network knows this session, the current one last.
    ufrags: Vec<String>,
}

impl Registration {
    pub(crate) fn new(network: Arc<Network>, member: Arc<Member>) -> Self {
        Self { network, member, ufrags: Vec::new() }
    }

    pub(crate) fn add(&mut self, ufrag: &str, password: &str) {
        self.network.register(ufrag, password, &self.member);
        self.ufrags.push(ufrag.to_owned());
        // Checks of the generation before the last one have no reason to come any more.
        while self.ufrags.len() > 2 {
            self.network.unregister(&self.ufrags.remove(0));
        }
    }

    fn clear(&mut self) {
        for ufrag in self.ufrags.drain(..) {
            self.network.unregister(&ufrag);
        }
        self.network.forget(&self.member);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Everything that a session's task owns.
pub(crate) struct Session {
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) receiver: Receiver,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) registration: Registration,
    pub(crate) inbox: mpsc::Receiver<Datagram>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) status: Arc<Mutex<Status>>,
    pub(crate) timeouts: Timeouts,
    /// Whether media could come, at some time.
    pub(crate) is_connected: bool,
    pub(crate) cancelled: CancellationToken,
    pub(crate) latencies: Latencies,
}

impl Session {
    /// Runs until the session ends, and cleans up after it.
    pub(crate) async fn run(mut self) -> End {
        let mut end = self.drive().await;
        self.transport.close(Instant::now());
        self.transmit();
        self.registration.clear();
        self.note_end(end);
        if end == End::Closed && self.is_deleted_after_all().await {
            end = End::Deleted;
            self.note_end(end);
        }
        metrics::counter!(metric::SESSIONS_ENDED, "reason" => end.name()).increment(1);
        // Who says that it stops is not waited for: viewers are told at once. All others may come back. So may one
        // that gives up a session which never came about: it may be an attempt to return.
        if end == End::Deleted && self.is_connected {
            self.sink.end();
        }
        end
    }

    fn note_end(&mut self, end: End) {
        let mut status = self.status.lock();
        status.update(Instant::now(), &mut self.receiver, self.transport.figures(Instant::now()));
        status.state = State::Ended;
        status.ended = Some(end);
    }

    async fn is_deleted_after_all(&mut self) -> bool {
        let mut patience = std::pin::pin!(tokio::time::sleep(GOODBYE_MAX));
        loop {
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => return false,
                command = self.commands.recv() => match command {
                    Some(Command::Delete(reply)) => {
                        // Whoever waits for it has gone when this fails.
                        let _ = reply.send(());
                        return true;
                    }
                    None | Some(Command::Replace) => return false,
                    // There is no connection any more that they could be for.
                    Some(Command::Candidates(_) | Command::Restart { .. }) => {}
                },
                () = &mut patience => return false,
            }
        }
    }

    async fn drive(&mut self) -> End {
        let mut wishes = Some(self.sink.keyframe_requests());
        let started = Instant::now();
        let mut heard_at = started;
        let mut status_at = started + STATUS_INTERVAL;
        let mut batch = Vec::with_capacity(BATCH);
        let mut timer = std::pin::pin!(tokio::time::sleep_until(started.into()));
        loop {
            let give_up = if self.is_connected {
                heard_at + self.timeouts.silence
            } else {
                started + self.timeouts.connect
            };
            let deadlines = [self.transport.poll_timeout(), self.receiver.poll_timeout()];
            let wake = deadlines.into_iter().flatten().fold(give_up.min(status_at), Instant::min).into();
            // Deadlines move on with every datagram. A timer that is early is let go off rather than set anew each time,
            // which wakes the thread that waits for all timers.
            if timer.is_elapsed() || wake < timer.deadline() {
                timer.as_mut().reset(wake);
            }
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => return End::Shutdown,
                Some(command) = self.commands.recv() => {
                    if let Some(end) = self.handle_command(command) { return end }
                }
                count = self.inbox.recv_many(&mut batch, BATCH) => {
                    if count == 0 { return End::Shutdown }
                    self.status.lock().heard_at = Instant::now();
                    for Datagram { arrival, route, bytes } in batch.drain(..) {
                        heard_at = arrival;
                        self.transport.handle_datagram(arrival, route, &bytes);
                        if let Some(end) = self.take_events(arrival) { return end }
                        self.hand_over();
                    }
                }
                Some(_) = next_wish(&mut wishes) => self.receiver.want_keyframes(Instant::now()),
                () = &mut timer => {}
            }
            let now = Instant::now();
            if self.transport.poll_timeout().is_some_and(|at| at <= now) {
                self.transport.handle_timeout(now);
            }
            if let Some(end) = self.take_events(now) {
                return end;
            }
            self.receiver.handle_timeout(now);
            self.hand_over();
            while let Some(ssrc) = self.receiver.poll_keyframe_request() {
                metrics::counter!(metric::KEYFRAME_REQUESTS).increment(1);
                self.transport.request_keyframe(ssrc);
            }
            self.transmit();
            if now >= give_up {
                return if self.is_connected { End::Vanished } else { End::NeverConnected };
            }
            if now >= status_at {
                status_at = now + STATUS_INTERVAL;
                self.status.lock().update(now, &mut self.receiver, self.transport.figures(now));
                if let Some(words) = self.receiver.refusal(now).or_else(|| self.sink.problem()) {
                    self.status.lock().problem = Some(words);
                    return End::Refused;
                }
            }
        }
    }

    fn handle_command(&mut self, command: Command) -> Option<End> {
        match command {
            Command::Delete(reply) => {
                // Whoever waits for it has gone when this fails.
                let _ = reply.send(());
                return Some(End::Deleted);
            }
            Command::Replace => return Some(End::Replaced),
            Command::Candidates(candidates) => {
                for candidate in candidates {
                    // A candidate that can't be used isn't an error (RFC 8840, 4.3).
                    if let Err(error) = self.transport.add_candidate(&candidate) {
                        tracing::debug!(%error, "candidate ignored");
                    }
                }
            }
            Command::Restart { offer, reply } => {
                let answer = self.transport.restart(Instant::now(), &offer);
                if let Ok(answer) = &answer {
                    self.registration.add(&answer.ufrag, &answer.password);
                }
                let _ = reply.send(answer);
            }
        }
        None
    }

    fn take_events(&mut self, now: Instant) -> Option<End> {
        while let Some(event) = self.transport.poll_event() {
            match event {
                Event::Connected => {
                    self.is_connected = true;
                    self.status.lock().state = State::Live;
                    tracing::info!("connected");
                }
                Event::Closed => {
                    return Some(if self.is_connected { End::Closed } else { End::NeverConnected });
                }
                event => self.receiver.handle_event(now, event),
            }
        }
        None
    }

    fn hand_over(&mut self) {
        while let Some((input, arrivals)) = self.receiver.poll_timed_input() {
            if let Some(arrivals) = arrivals {
                let now = Instant::now();
                let ms = |since| now.saturating_duration_since(since).as_secs_f64() * 1000.0;
                self.latencies.added.record(ms(arrivals.first));
                self.latencies.worked.record(ms(arrivals.last));
            }
            status::count_input(&self.status, &input);
            if matches!(input, Input::Discontinuity) {
                tracing::debug!("times had to be re-synchronised");
            }
            let track = match &input {
                Input::Frame(frame) => Some(frame.track),
                Input::Format { .. } | Input::Discontinuity => None,
            };
            if !self.sink.push(input) {
                metrics::counter!(metric::INPUTS_REFUSED).increment(1);
                if let Some(track) = track {
                    self.receiver.note_refused(track);
                }
            }
        }
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.transport.poll_transmit() {
            self.registration.network.send(transmit.route, transmit.bytes);
        }
    }
}

async fn next_wish(wishes: &mut Option<mpsc::Receiver<KeyframeRequest>>) -> Option<KeyframeRequest> {
    match wishes {
        Some(receiver) => {
            let wish = receiver.recv().await;
            if wish.is_none() {
                *wishes = None;
            }
            wish
        }
        None => std::future::pending().await,
    }
}
