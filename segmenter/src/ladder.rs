//! The ladder: smaller renditions of a publisher's picture, encoded here.
//!
//! The source rendition is passed through as ever and never waits for anything in here. A session tells its ladder each
//! frame that it takes and each cut that it makes in the source rendition, in order; a thread decodes the frames once, and
//! for each rung a thread scales and encodes them and publishes what the source was cut into. So a rung has the
//! source's segments, parts, numbers and times by construction, some milliseconds later.
//!
//! What is asked for is in `config.rs`, what becomes of it for a picture in `plan.rs`, what can't be had or is given up in
//! `status.rs`.

mod config;
mod decode;
mod encoder;
mod plan;
mod rung;
mod status;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, info, warn};

pub use self::config::{LadderError, LadderRung};
use self::config::{Rung, rungs_of};
use self::decode::Decoding;
use self::encoder::{Encoder, LadderPictureError, Look, SourceDecoder, is_whole};
use self::rung::RungWork;
use self::status::Lane;
pub(crate) use self::status::Shared;
pub use self::status::{LadderState, LadderStatus};
use crate::config::Constants;
use crate::frame::{TrackFormat, TrackId};
use crate::live::{Live, Rendition};
use crate::mux::Muxer;
use crate::session::{SessionError, sample_entry};
use crate::transcode::{Reservation, Slots};

/// Frames that may wait for the decoder: a second and a half at 30 per second. Beyond, frames are left out up to a
/// keyframe.
const FRAMES_WAITING_MAX: usize = 45;
/// How long a stream's end waits for pictures that are still being encoded.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A third of the share that threads of normal priority get.
const NICENESS: i32 = 5;

/// A frame of the source rendition.
#[derive(Debug)]
pub(crate) struct SourceFrame {
    /// Counts the frames.
    id: u64,
    at_us: i64,
    is_keyframe: bool,
    begins_part: bool,
    begins_segment: bool,
    data: Bytes,
}

/// What a session has done to the source rendition.
#[derive(Debug)]
enum Cut {
    Part(CutOfPart),
    Gap {
        start_ms: i64,
        duration_us: i64,
        is_last: bool,
    },
    EndSegment,
    /// The media stops; the next segment is this one.
    Align {
        msn: u64,
        start_ms: i64,
        gap_us: i64,
    },
    /// The media goes on behind a discontinuity.
    Restart {
        format: TrackFormat,
    },
}

/// A part of the source rendition.
#[derive(Debug)]
pub(crate) struct CutOfPart {
    first_id: u64,
    /// When each of its frames begins.
    pub(crate) starts_us: Vec<i64>,
    pub(crate) end_us: i64,
    pub(crate) start_ms: i64,
    pub(crate) is_last: bool,
    pub(crate) frame_rate_milli: u64,
}

impl CutOfPart {
    /// One more than its last frame's number.
    fn end_id(&self) -> u64 {
        self.first_id + self.starts_us.len() as u64
    }
}

enum Message {
    Frame(SourceFrame),
    Cut(Cut),
}

/// A ladder that has been planned, with its encoders open.
pub(crate) struct Prepared {
    rungs: Vec<PreparedRung>,
    refused: Vec<LadderStatus>,
    decoding: Option<Reservation>,
    format: TrackFormat,
}

struct PreparedRung {
    rung: Rung,
    encoder: Encoder,
    rendition: Arc<Rendition>,
    reservation: Reservation,
}

impl Prepared {
    /// Plans the ladder that `entries` ask for, for a stream whose videos have `formats`, best first, and begin with
    /// `keyframe`. None where none is asked for. The rungs' renditions are numbered from `number` on.
    pub(crate) fn new(
        (stream, entries): (&str, &[LadderRung]),
        slots: &Arc<Slots>,
        formats: &[&TrackFormat],
        keyframe: &[u8],
        constants: Constants,
    ) -> Option<Self> {
        let wanted = rungs_of(entries, stream);
        let format = *formats.first()?;
        if wanted.is_empty() {
            return None;
        }
        let mut prepared =
            Self { rungs: Vec::new(), refused: Vec::new(), decoding: None, format: format.clone() };
        if formats.len() > 1 {
            prepared.refuse_all(&wanted, "the publisher sends smaller layers of its own");
            return Some(prepared);
        }
        let look = match look_of(format, keyframe) {
            Ok(look) => look,
            Err(cause) => {
                prepared.refuse_all(&wanted, &cause.to_string());
                return Some(prepared);
            }
        };
        prepared.plan(&wanted, slots, look, constants);
        Some(prepared)
    }

    fn refuse_all(&mut self, wanted: &[Rung], reason: &str) {
        wanted.iter().for_each(|rung| self.refuse(*rung, reason));
    }

    fn refuse(&mut self, rung: Rung, reason: &str) {
        warn!(height = rung.height, reason, "a rung of the ladder is left out");
        self.refused.push(LadderStatus {
            height: rung.height,
            rendition: String::new(),
            state: LadderState::Refused,
            reason: reason.to_owned(),
        });
    }

    fn plan(&mut self, wanted: &[Rung], slots: &Arc<Slots>, look: Look, constants: Constants) {
        let source = (look.width, look.height);
        let mut admitted = Vec::new();
        // The smallest first: where there is no room for all, those who can't watch the source are to have something.
        for rung in wanted.iter().rev() {
            if rung.height >= source.0.min(source.1) {
                self.refuse(*rung, "the publisher's picture is not larger");
                continue;
            }
            let size = plan::fit(source, rung.height);
            let decoding = if self.decoding.is_none() { plan::decoding_cost(source) } else { 0 };
            let cost = plan::encoding_cost(size);
            let Some(mut reservation) = slots.take(cost + decoding) else {
                let [needs, free, all] = [cost + decoding, slots.free(), slots.all()]
                    .map(|thousandths| format!("{:.2}", thousandths as f64 / 1000.0));
                let reason = format!(
                    "the machine has no room for its encoder: it takes {needs} transcodings, \
                     and {free} of {all} are free (segmenter.transcodes_max)"
                );
                self.refuse(*rung, &reason);
                continue;
            };
            if decoding > 0 {
                self.decoding = Some(reservation.split_off(decoding));
            }
            admitted.push((*rung, size, reservation));
        }
        for (rung, size, reservation) in admitted.into_iter().rev() {
            let opened = Encoder::open(look, size, plan::bits_per_second(rung, size), 0)
                .map_err(|cause| cause.to_string())
                .and_then(|encoder| {
                    let number = u8::try_from(self.rungs.len() + 1).map_err(|error| error.to_string())?;
                    let rendition = rendition(number, encoder.format(), constants);
                    Ok((rendition.map_err(|cause| cause.to_string())?, encoder))
                });
            match opened {
                Ok((rendition, encoder)) => {
                    let rendition = Arc::new(rendition);
                    self.rungs.push(PreparedRung { rung, encoder, rendition, reservation });
                }
                Err(reason) => self.refuse(rung, &reason),
            }
        }
        if self.rungs.is_empty() {
            self.decoding = None;
        }
    }

    /// The rungs' renditions, in the order of their numbers.
    pub(crate) fn renditions(&self) -> impl Iterator<Item = Arc<Rendition>> {
        self.rungs.iter().map(|rung| rung.rendition.clone())
    }

    /// Begins to work for a stream; none if no rung is left.
    pub(crate) fn start(self, live: &Arc<Live>) -> Option<Ladder> {
        let mut statuses = self.refused;
        let mut lanes = Vec::new();
        let mut works = Vec::new();
        for PreparedRung { rung, encoder, rendition, reservation } in self.rungs {
            statuses.push(LadderStatus {
                height: rung.height,
                rendition: rendition.name.clone(),
                state: LadderState::Running,
                reason: String::new(),
            });
            info!(rendition = rendition.name, height = rung.height, "a rung of the ladder begins");
            lanes.push(Lane::new(rung.height, reservation));
            works.push((rung, encoder, rendition));
        }
        statuses.sort_by_key(|status| std::cmp::Reverse(status.height));
        let shared = Arc::new(Shared::new(statuses, lanes, self.decoding));
        live.set_ladder(shared.clone());
        if works.is_empty() {
            return None;
        }
        let (alive, done) = mpsc::channel();
        let mut rungs = Vec::new();
        for (lane, (rung, encoder, rendition)) in works.into_iter().enumerate() {
            let (sender, inbox) = mpsc::channel();
            let name = format!("rung-{}", rendition.name);
            let (live, owned, alive) = (live.clone(), shared.clone(), alive.clone());
            spawn(&shared, name, move || {
                let _alive = alive;
                RungWork::new(live, rendition, owned, lane, rung).run(encoder, &inbox);
            });
            rungs.push(sender);
        }
        drop(alive);
        let (sender, inbox) = mpsc::channel();
        let decoding = Decoding::new(shared.clone(), rungs, &self.format);
        spawn(&shared, "ladder".to_owned(), move || decoding.run(&inbox));
        Some(Ladder {
            sender: Some(sender),
            shared,
            done,
            next_id: 0,
            cut_id: 0,
            is_skipping: false,
            owes_segment: false,
        })
    }
}

/// Gives work a thread that others on a busy machine are preferred to: a stream's own worker and its viewers must not wait
/// for encoders.
fn spawn(shared: &Arc<Shared>, name: String, work: impl FnOnce() + Send + 'static) {
    let work = move || {
        // On Linux this is about the thread, elsewhere it would be about the process.
        #[cfg(target_os = "linux")]
        if let Err(cause) = rustix::process::nice(NICENESS) {
            debug!(%cause, "encoding at normal priority");
        }
        work();
    };
    if let Err(cause) = std::thread::Builder::new().name(name).spawn(work) {
        (0..shared.lanes.len()).for_each(|lane| shared.end(lane, &format!("no thread for it: {cause}")));
    }
}

/// What the source's pictures look like, from the first of them: that it can be decoded is known before rungs are announced.
fn look_of(format: &TrackFormat, keyframe: &[u8]) -> Result<Look, LadderPictureError> {
    let mut decoder = SourceDecoder::open(format)?;
    decoder.send(0, true, keyframe)?;
    decoder.drain();
    let picture = decoder.receive().filter(is_whole).ok_or(LadderPictureError::Broken)?;
    Ok(Look::of(&picture))
}

fn rendition(number: u8, format: &TrackFormat, constants: Constants) -> Result<Rendition, SessionError> {
    let (entry, description) = sample_entry(TrackId(0), format)?;
    let (_, init) = Muxer::open(&entry)?;
    Ok(Rendition::new(number, format!("v{number}"), constants, init, description).of_ladder())
}

/// A session's end of its ladder. Never blocks, but at its end.
pub(crate) struct Ladder {
    /// None once it has ended.
    sender: Option<mpsc::Sender<Message>>,
    shared: Arc<Shared>,
    /// Disconnected when all rungs' threads have ended.
    done: mpsc::Receiver<()>,
    next_id: u64,
    /// The first frame that is in no part yet.
    cut_id: u64,
    /// The decoder is behind: frames are left out up to a keyframe.
    is_skipping: bool,
    /// A frame that begins a segment was left out.
    owes_segment: bool,
}

impl std::fmt::Debug for Ladder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ladder").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Ladder {
    /// The source took a frame.
    pub(crate) fn frame(&mut self, at_us: i64, is_keyframe: bool, begins: Begins, data: Bytes) {
        let id = self.next_id;
        self.next_id += 1;
        let waiting = self.shared.frames.load(Ordering::Acquire);
        self.is_skipping = match self.is_skipping {
            true => !is_keyframe || waiting > FRAMES_WAITING_MAX / 2,
            false => waiting >= FRAMES_WAITING_MAX,
        };
        let begins_segment = begins.segment || self.owes_segment;
        self.owes_segment = self.is_skipping && begins_segment;
        if self.is_skipping {
            metrics::counter!("segmenter_ladder_left_out_total").increment(1);
            return;
        }
        self.shared.frames.fetch_add(1, Ordering::AcqRel);
        let begins_part = begins.part;
        self.send(Message::Frame(SourceFrame { id, at_us, is_keyframe, begins_part, begins_segment, data }));
    }

    /// The source published a part of the frames that it took and that are in none before.
    pub(crate) fn part(&mut self, mut part: CutOfPart) {
        part.first_id = self.cut_id;
        self.cut_id = part.end_id();
        self.send(Message::Cut(Cut::Part(part)));
    }

    /// The source has a gap.
    pub(crate) fn gap(&mut self, start_ms: i64, duration_us: i64, is_last: bool) {
        self.send(Message::Cut(Cut::Gap { start_ms, duration_us, is_last }));
    }

    /// The source's segment ended with the parts that it has.
    pub(crate) fn end_segment(&mut self) {
        self.send(Message::Cut(Cut::EndSegment));
    }

    /// The source's media stops; its next segment is `msn`. Segments that are missing become gaps of `gap_us`, from
    /// `start_ms` on.
    pub(crate) fn align(&mut self, msn: u64, start_ms: i64, gap_us: i64) {
        self.send(Message::Cut(Cut::Align { msn, start_ms, gap_us }));
    }

    /// The source goes on with this format, behind a discontinuity.
    pub(crate) fn restart(&mut self, format: TrackFormat) {
        self.cut_id = self.next_id;
        self.is_skipping = false;
        self.owes_segment = false;
        self.send(Message::Cut(Cut::Restart { format }));
    }

    fn send(&self, message: Message) {
        self.shared.inputs.fetch_add(1, Ordering::AcqRel);
        // Refused only by a thread that has panicked: the rungs then stand still, and the stream goes on.
        let _ = self.sender.as_ref().map(|sender| sender.send(message));
    }

    /// Nothing more comes. Waits a moment for what is being encoded; what is not published when this returns never is.
    pub(crate) fn end(mut self) {
        self.sender = None;
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.done.recv_timeout(END_PATIENCE) {
            warn!("the ladder's last pictures are lost");
        }
    }
}

impl Drop for Ladder {
    fn drop(&mut self) {
        for lane in &self.shared.lanes {
            *lane.is_open.lock() = false;
        }
    }
}

/// What begins with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Begins {
    pub(crate) part: bool,
    pub(crate) segment: bool,
}

impl CutOfPart {
    /// A part whose frames begin at `starts_us`; which frames these are is known to [`Ladder::part`].
    pub(crate) fn new(
        starts_us: Vec<i64>,
        end_us: i64,
        start_ms: i64,
        is_last: bool,
        frame_rate_milli: u64,
    ) -> Self {
        Self { first_id: 0, starts_us, end_us, start_ms, is_last, frame_rate_milli }
    }
}
