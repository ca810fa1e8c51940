//! A stream's worker: takes its inbox in order and knows when a stream starts, waits, goes on and ends.
//!
//! The media work is in `session.rs`; here are only the life cycle and the wall clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc as tokio_mpsc;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::frame::{Frame, Input, TrackFormat, TrackId, VideoCodec};
use crate::live::Shared;
use crate::session::{Session, SessionError, count_dropped};
use crate::streams::{Entry, KeyframeRequest, weight};

/// What comes in a stream's inbox.
#[derive(Debug)]
pub(crate) enum Message {
    /// A publisher came.
    Attach { keyframes: tokio_mpsc::Sender<KeyframeRequest>, has_lost: Arc<AtomicBool> },
    /// It will send these tracks.
    Expect(Vec<TrackId>),
    /// It sent something.
    Input(Input),
    /// It is gone.
    Detach,
    /// The stream is to end now.
    End,
}

/// The first frames of a publisher, kept until it is known which tracks there are.
#[derive(Debug)]
struct Gathering {
    first_format: Option<Instant>,
    /// With the wall-clock time of its arrival.
    frames: Vec<(Frame, i64)>,
    frames_bytes: usize,
    /// When a keyframe to begin with was asked for.
    asked_at: Option<Instant>,
}

impl Gathering {
    fn of(&self, track: TrackId) -> impl Iterator<Item = &Frame> {
        self.frames.iter().map(|(frame, _)| frame).filter(move |frame| frame.track == track)
    }

    /// Whether what leads can be decoded from somewhere on.
    fn can_begin(&self, lead: Option<TrackId>) -> bool {
        match lead {
            Some(lead) => self.of(lead).any(|frame| frame.is_keyframe),
            None => !self.frames.is_empty(),
        }
    }
}

/// See the module.
pub(crate) struct Worker {
    entry: Arc<Entry>,
    inbox: mpsc::Receiver<Message>,
    config: Config,
    shared: Shared,
    session: Option<Session>,
    gathering: Option<Gathering>,
    formats: BTreeMap<TrackId, TrackFormat>,
    expected: Vec<TrackId>,
    keyframes: Option<tokio_mpsc::Sender<KeyframeRequest>>,
    has_lost: Arc<AtomicBool>,
    /// When the newest frame came.
    heard_at: Instant,
    /// When the stream ends if no publisher comes.
    grace_until: Option<Instant>,
    /// When an ended stream is forgotten.
    forget_at: Option<Instant>,
}

/// A publisher that announced tracks which do not come holds the start up for so long.
const EXPECTED_MAX: Duration = Duration::from_secs(3);
/// A keyframe to begin with is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The best layer is waited for while another one brings so much: longer than a lost keyframe takes to be replaced.
const BEST_WAIT_US: i64 = 1_000_000;
/// The track of a publisher's audio, see [`TrackId`].
const AUDIO: TrackId = TrackId(0);
/// The wall clock is looked at this often while something waits for it.
const TICK: Duration = Duration::from_millis(50);

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Worker {
    pub(crate) fn new(
        entry: Arc<Entry>,
        inbox: mpsc::Receiver<Message>,
        config: Config,
        shared: Shared,
    ) -> Self {
        Self {
            entry,
            inbox,
            config,
            shared,
            session: None,
            gathering: None,
            formats: BTreeMap::new(),
            expected: Vec::new(),
            keyframes: None,
            has_lost: Arc::default(),
            heard_at: Instant::now(),
            grace_until: None,
            forget_at: None,
        }
    }

    pub(crate) fn run(mut self) {
        let span = tracing::info_span!("stream", name = %self.entry.name);
        let _entered = span.enter();
        loop {
            let message = match self.inbox.recv_timeout(TICK) {
                Ok(message) => Some(message),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            if let Some(message) = message {
                self.handle(message);
            }
            if self.tick(Instant::now()) {
                return;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Attach { keyframes, has_lost } => {
                debug!("publisher attached");
                self.keyframes = Some(keyframes);
                self.has_lost = has_lost;
                self.grace_until = None;
                self.formats.clear();
                self.expected.clear();
                self.gather();
            }
            Message::Expect(tracks) => self.expected = tracks,
            Message::Input(input) => {
                let weight = weight(&input);
                if let Err(cause) = self.input(input) {
                    warn!(%cause, "stream failed");
                    self.end();
                }
                self.entry.queued_bytes.fetch_sub(weight, Ordering::AcqRel);
            }
            Message::Detach => {
                info!("publisher left");
                self.keyframes = None;
                self.gathering = None;
                self.grace_until = Some(Instant::now() + Duration::from_millis(self.config.grace_ms.into()));
                if let Some(session) = &mut self.session
                    && let Err(cause) = session.pause()
                {
                    warn!(%cause, "stream failed");
                    self.end();
                }
            }
            Message::End => self.end(),
        }
    }

    fn input(&mut self, input: Input) -> Result<(), SessionError> {
        if self.forget_at.is_some() {
            if matches!(input, Input::Frame(_)) {
                count_dropped("ended", 1);
            }
            return Ok(());
        }
        if self.has_lost.swap(false, Ordering::AcqRel)
            && let Some(session) = &mut self.session
        {
            session.frames_were_lost();
        }
        match input {
            Input::Format { track, format } => self.format(track, format),
            Input::Discontinuity => {
                if let Some(session) = &mut self.session {
                    session.pause()?;
                    self.gather();
                }
                Ok(())
            }
            Input::Frame(frame) => match (&mut self.gathering, &mut self.session) {
                (Some(gathering), _) => {
                    gathering.frames_bytes += frame.data.len();
                    gathering.frames.push((frame, unix_ms()));
                    if gathering.frames_bytes > self.config.queue_bytes_max {
                        count_dropped("waited_too_long", gathering.frames.len());
                        gathering.frames.clear();
                        gathering.frames_bytes = 0;
                    }
                    self.ask_to_begin(Instant::now());
                    self.start_if_ready()
                }
                (None, Some(session)) => {
                    self.heard_at = Instant::now();
                    session.frame(frame)?;
                    if let Some(keyframes) = &self.keyframes {
                        for track in session.take_keyframe_requests() {
                            // A full channel holds the same request already.
                            let _ = keyframes.try_send(KeyframeRequest { track });
                        }
                    }
                    Ok(())
                }
                (None, None) => {
                    count_dropped("no_rendition", 1);
                    Ok(())
                }
            },
        }
    }

    fn format(&mut self, track: TrackId, format: TrackFormat) -> Result<(), SessionError> {
        if matches!(format, TrackFormat::Video { codec: VideoCodec::Vp8, .. }) {
            warn!(track = track.0, "no room to transcode VP8; the track is left out");
            self.expected.retain(|expected| *expected != track);
            return Ok(());
        }
        let before = self.formats.insert(track, format.clone());
        let is_opus = |format: &TrackFormat| matches!(format, TrackFormat::Opus { .. });
        if is_opus(&format) && before.as_ref().is_some_and(is_opus) {
            // Each Opus packet says for itself whether it is stereo; what comes out always is.
            return Ok(());
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.first_format.get_or_insert_with(Instant::now);
            // Frames of the old format are of no use.
            if before.is_some_and(|before| before != format) {
                let before = gathering.frames.len();
                gathering.frames.retain(|(frame, _)| frame.track != track);
                count_dropped("old_format", before - gathering.frames.len());
            }
        } else if before.as_ref() != Some(&format)
            && let Some(session) = &mut self.session
        {
            if !session.wants(track, &self.formats) {
                // It came too late for the multivariant playlist that viewers have, and there are better ones.
                info!(track = track.0, "a layer came too late and is left out");
                metrics::counter!("segmenter_layers_ignored_total").increment(1);
                return Ok(());
            }
            // A changed size or a late track: cut all renditions here and go on with the new set.
            info!(track = track.0, "format changed");
            session.pause()?;
            self.gather();
        }
        Ok(())
    }

    fn gather(&mut self) {
        let first_format = (!self.formats.is_empty()).then(Instant::now);
        self.gathering =
            Some(Gathering { first_format, frames: Vec::new(), frames_bytes: 0, asked_at: None });
    }

    /// The video that there is to begin with: the best, unless it does not come while another one does. None for sound alone.
    fn lead(&self) -> Option<TrackId> {
        let is_video = |format: &TrackFormat| matches!(format, TrackFormat::Video { .. });
        let mut videos = self.formats.iter().filter(|(_, format)| is_video(format)).map(|(track, _)| *track);
        let best = videos.next()?;
        let gathering = self.gathering.as_ref()?;
        if gathering.of(best).next().is_some() {
            return Some(best);
        }
        let comes = |track: &TrackId| {
            let times = || gathering.of(*track).map(|frame| frame.pts.0);
            times().max().zip(times().min()).is_some_and(|(last, first)| last - first >= BEST_WAIT_US)
        };
        Some(videos.find(comes).unwrap_or(best))
    }

    /// Nothing can begin without a keyframe of the video that leads, and browsers send none unasked: this is for frames that
    /// came without one, behind a jump of the clock or a late layer.
    fn ask_to_begin(&mut self, now: Instant) {
        let Some(lead) = self.lead() else { return };
        let (Some(gathering), Some(keyframes)) = (&mut self.gathering, &self.keyframes) else { return };
        let waits = gathering.of(lead).next().is_some() && !gathering.can_begin(Some(lead));
        if waits && gathering.asked_at.is_none_or(|at| now >= at + ASK_AGAIN) {
            gathering.asked_at = Some(now);
            // A full channel holds the same request already.
            let _ = keyframes.try_send(KeyframeRequest { track: lead });
        }
    }

    /// Starts or continues the stream if it is known which tracks there are and each can be decoded from here.
    fn start_if_ready(&mut self) -> Result<(), SessionError> {
        let Some(gathering) = &self.gathering else { return Ok(()) };
        let Some(first_format) = gathering.first_format else { return Ok(()) };
        let waited = first_format.elapsed();
        let is_known = |track: &TrackId| self.formats.contains_key(track);
        // A publisher that was here before has the same tracks again.
        let knows_all = if !self.expected.is_empty() {
            self.expected.iter().all(is_known) || waited >= EXPECTED_MAX
        } else {
            let is_complete =
                self.session.as_ref().is_some_and(|session| session.tracks().iter().all(is_known));
            is_complete || waited >= Duration::from_millis(self.config.settle_ms.into())
        };
        let lead = self.lead();
        if !knows_all || !gathering.can_begin(lead) {
            return Ok(());
        }
        let Some(gathering) = self.gathering.take() else { return Ok(()) };
        if self.expected.contains(&AUDIO) {
            // Announced but silent so far, as a muted microphone is: silence holds its place, so that it can speak up
            // later without another multivariant playlist.
            self.formats.entry(AUDIO).or_insert(TrackFormat::Opus { channels: 2 });
        }
        self.start(lead, gathering)
    }

    fn start(&mut self, lead: Option<TrackId>, gathering: Gathering) -> Result<(), SessionError> {
        let is_first = |frame: &Frame| lead.is_none_or(|lead| frame.track == lead && frame.is_keyframe);
        let Some((first, arrived_ms)) = gathering.frames.iter().find(|(frame, _)| is_first(frame)) else {
            return Ok(());
        };
        let arrived_ms = *arrived_ms;
        let continues = match &mut self.session {
            Some(session) if session.accepts(&self.formats) => {
                session.resume(&self.formats, first.pts.0, arrived_ms)?;
                true
            }
            _ => false,
        };
        if !continues {
            // Another set of tracks needs another multivariant playlist: the old stream ends here.
            if let Some(session) = self.session.take() {
                session.end(unix_ms());
            }
            let session = Session::start(
                &self.entry.name,
                &self.config,
                &self.shared,
                &self.formats,
                first,
                arrived_ms,
            )?;
            self.entry.live.send_replace(Some(session.live().clone()));
            self.session = Some(session);
        }
        info!(tracks = self.formats.len(), continues, "stream goes live");
        self.heard_at = Instant::now();
        if let Some(session) = &mut self.session {
            for (frame, _) in gathering.frames {
                session.frame(frame)?;
            }
            session.ask_for_missing_keyframes();
        }
        Ok(())
    }

    /// Does what the wall clock says; true if the worker is done.
    fn tick(&mut self, now: Instant) -> bool {
        if let Err(cause) = self.start_if_ready() {
            warn!(%cause, "stream failed");
            self.end();
        }
        if self.grace_until.is_some_and(|until| now >= until) {
            self.end();
        }
        self.pause_if_silent(now);
        // Also while one who has come back sends nothing that could begin: players would take a playlist that does not grow
        // for a broken one.
        let lead = self.lead();
        if self.gathering.as_ref().is_none_or(|gathering| !gathering.can_begin(lead))
            && let Some(session) = &mut self.session
        {
            session.fill_with_gaps(unix_ms());
        }
        self.forget_at.is_some_and(|at| now >= at)
    }

    /// A publisher who sends nothing for a target duration is away, connected or not: what comes later could not be in
    /// one segment with what came before.
    fn pause_if_silent(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        let silence = Duration::from_secs(self.config.constants().target_duration_s);
        // What came may last for longer than it took to come.
        let is_over = || session.end_ms().saturating_add_unsigned(silence.as_millis() as u64) <= unix_ms();
        if self.gathering.is_some() || self.keyframes.is_none() || now < self.heard_at + silence || !is_over()
        {
            return;
        }
        info!("publisher is silent");
        if let Err(cause) = session.pause() {
            warn!(%cause, "stream failed");
            self.end();
            return;
        }
        self.gather();
    }

    fn end(&mut self) {
        if self.forget_at.is_some() {
            return;
        }
        self.entry.is_closed.store(true, Ordering::Release);
        self.grace_until = None;
        self.gathering = None;
        self.keyframes = None;
        let mut keep = Duration::ZERO;
        if let Some(session) = self.session.take() {
            session.end(unix_ms());
            info!("stream ended");
            keep = Duration::from_millis(self.config.ended_keep_ms.into());
        }
        self.forget_at = Some(Instant::now() + keep);
    }
}
