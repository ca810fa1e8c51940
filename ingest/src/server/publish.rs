//! How a session starts: its offer is answered, its stream taken, its task set going.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{Handle, Ice, Refused, Server, random_hex};
use crate::admission::Bucket;
use crate::metric;
use crate::network::Member;
use crate::rtp::receiver::{Limits, Receiver};
use crate::sdp::Offer;
use crate::session::{Command, Latencies, Registration, Session, Timeouts};
use crate::sink::{PublishError, Sink};
use crate::status::{State, Status};
use crate::transport::Answer;
use crate::transport::stack::Stack;

/// Streams whose timeline goes on when a publisher returns. The oldest are forgotten; the segmenter has long
/// ended them by then.
const ORIGINS_MAX: usize = 4096;
/// Requests that may wait for a session's task.
const COMMANDS_MAX: usize = 16;

/// What a publisher is answered.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) answer: String,
    pub(crate) location: String,
    pub(crate) etag: String,
}

impl Server {
    /// Starts a session.
    pub(crate) async fn publish(self: &Arc<Self>, stream: &str, offer: Offer) -> Result<Published, Refused> {
        if self.cancelled.is_cancelled() {
            return Err(Refused::Deaf);
        }
        self.forget_ended(Instant::now());
        let slot = Slot::take(self)?;
        let (transport, answer) = self.answer(&offer).await?;
        let sink = self.take_stream(stream, &offer).await?;
        let (session, commands) = self.session(stream, &offer, (transport, &answer), sink);
        let id = random_hex::<16>();
        let etag = format!("\"{}\"", random_hex::<8>());
        let (ufrag, pwd) = offer.ice.clone();
        let handle = Handle {
            commands,
            status: Arc::clone(&session.status),
            offer,
            ice: Mutex::new(Ice { etag: etag.clone(), ufrag, pwd }),
            restarting: tokio::sync::Mutex::new(()),
            bucket: Mutex::new(Bucket::full(self.admission.rate(), Instant::now())),
        };
        self.sessions.insert(id.clone(), Arc::new(handle));
        let location = format!("{}/whip/session/{id}", self.config.path_prefix);
        self.run(session, stream, Place { slot: Some(slot), server: Arc::clone(self), id });
        Ok(Published { answer: answer.sdp, location, etag })
    }

    async fn answer(&self, offer: &Offer) -> Result<(Stack, Answer), Refused> {
        let (offer, shared) = (offer.clone(), Arc::clone(&self.stack));
        // Making a certificate takes milliseconds, which would be missing to the media of others.
        let answered =
            tokio::task::spawn_blocking(move || Stack::answer(Instant::now(), offer, shared)).await;
        answered.map_err(|_| Refused::Overloaded)?.map_err(|error| Refused::Stack(error.0))
    }

    /// Takes the stream, and what the segmenter needs for the tracks that were announced.
    async fn take_stream(&self, stream: &str, offer: &Offer) -> Result<Box<dyn Sink>, Refused> {
        let published = match self.streams.publish(stream) {
            Err(PublishError::Busy) if self.end_silent(stream).await => self.streams.publish(stream),
            published => published,
        };
        let mut sink = published.map_err(|error| match error {
            PublishError::Busy => Refused::Busy,
            PublishError::BadName => Refused::BadName,
            PublishError::Overloaded => Refused::Overloaded,
        })?;
        let vp8_tracks = offer.vp8_tracks();
        if vp8_tracks > 0 && !sink.reserve_transcoders(vp8_tracks) {
            return Err(Refused::NoTranscoder);
        }
        sink.expect_tracks(&offer.tracks());
        Ok(sink)
    }

    /// Ends the session of a publisher that seems to be gone, for one that comes: a browser whose page was loaded
    /// anew says no goodbye. False when the publisher is alive.
    async fn end_silent(&self, stream: &str) -> bool {
        let silence = Duration::from_millis(self.config.takeover_silence_ms);
        let silent = self.sessions.iter().find_map(|entry| {
            let status = entry.status.lock();
            // One whose connection is closed only waits for a DELETE.
            let is_silent = status.stream == stream
                && !entry.commands.is_closed()
                && (status.state == State::Ended || status.heard_at.elapsed() >= silence);
            is_silent.then(|| Arc::clone(entry.value()))
        });
        let Some(handle) = silent else { return false };
        // It may have ended by itself meanwhile, which is as good.
        let _ = handle.commands.send(Command::Replace).await;
        handle.commands.closed().await;
        true
    }

    /// Puts together what the session's task will own, and makes it known to the network; returns the way to it, too.
    fn session(
        &self,
        stream: &str,
        offer: &Offer,
        (transport, answer): (Stack, &Answer),
        sink: Box<dyn Sink>,
    ) -> (Session, mpsc::Sender<Command>) {
        let now = Instant::now();
        let limits = Limits {
            hold: Duration::from_millis(self.config.loss_hold_ms),
            keyframe_interval_min: Duration::from_millis(self.config.keyframe_interval_min_ms),
            frames_out_of_order_max: self.config.frames_out_of_order_max,
        };
        let timeouts = Timeouts {
            connect: Duration::from_millis(self.config.connect_timeout_ms),
            silence: Duration::from_millis(self.config.silence_max_ms),
        };
        let origin = self.origins.lock().get(stream, now);
        let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (inbox_sender, inbox) = mpsc::channel(self.config.inbox_datagrams_max);
        let mut registration = Registration::new(Arc::clone(&self.network), Member::new(inbox_sender));
        registration.add(&answer.ufrag, &answer.password);
        let session = Session {
            transport: Box::new(transport),
            receiver: Receiver::new(origin, offer, limits),
            sink,
            registration,
            inbox,
            commands,
            status: Arc::new(Mutex::new(Status::new(stream, now))),
            timeouts,
            is_connected: false,
            cancelled: self.cancelled.child_token(),
            latencies: Latencies::new(),
        };
        (session, command_sender)
    }

    /// Sets the session's task going.
    fn run(&self, session: Session, stream: &str, place: Place) {
        // The session's id is a secret, like its URL: the span only has the stream's name.
        let span = tracing::info_span!("session", stream);
        let status = Arc::clone(&session.status);
        let task = async move {
            let _place = place;
            tracing::info!("offer answered");
            let end = session.run().await;
            match status.lock().problem {
                Some(problem) => tracing::warn!(reason = end.name(), problem, "session ended"),
                None => tracing::info!(reason = end.name(), "session ended"),
            }
        };
        self.tasks.spawn(task.instrument(span));
    }
}

/// Where each stream's timeline began, so that a publisher that returns continues it.
#[derive(Default)]
pub(super) struct Origins {
    by_name: HashMap<String, (Instant, Instant)>,
}

impl Origins {
    fn get(&mut self, name: &str, now: Instant) -> Instant {
        if self.by_name.len() >= ORIGINS_MAX && !self.by_name.contains_key(name) {
            let oldest = self.by_name.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| name.clone());
            oldest.map(|name| self.by_name.remove(&name));
        }
        let entry = self.by_name.entry(name.to_owned()).or_insert((now, now));
        entry.1 = now;
        entry.0
    }
}

/// What a session's task takes up; given back however the task ends.
struct Place {
    slot: Option<Slot>,
    server: Arc<Server>,
    id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Room first: whoever sees that the session has ended may publish the next.
        self.slot = None;
        self.server.remember_ended(std::mem::take(&mut self.id));
    }
}

/// One of the sessions that may be live at once.
struct Slot(Arc<Server>);

impl Slot {
    fn take(server: &Arc<Server>) -> Result<Self, Refused> {
        let max = server.config.sessions_max;
        let taken = server
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| (live < max).then_some(live + 1));
        let live = taken.map_err(|_| Refused::Overloaded)?;
        metrics::gauge!(metric::SESSIONS).set(live as f64 + 1.0);
        Ok(Self(Arc::clone(server)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let live = self.0.live.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!(metric::SESSIONS).set(live as f64 - 1.0);
    }
}
