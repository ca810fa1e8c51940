//! A media file, played in a loop in real time, with time stamps that continue over the seams.
//!
//! `plan.rs` decides what is passed through; `video.rs` and `audio.rs` carry it out; this file reads ahead and paces.

mod annex_b;
mod audio;
mod plan;
mod video;

use crate::{
    error::Error,
    feed::Fanout,
    frame::{Frame, Track},
    options::Options,
    session::Offered,
    timeline::Timeline,
};
use audio::{Assembler, AudioReader};
use ffmpeg_next::{Packet, Rational, format::context::Input, frame};
use plan::{Plan, VideoMode};
use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};
use video::{Item, PictureEncoder, VideoReader};

/// Reads so much ahead of what is due: tracks lie that far apart in common files.
const LOOKAHEAD_US: i64 = 400_000;
/// Sound that lasts this much longer than the picture is cut off at the seam. Less than the lookahead: what is cut has
/// not been sent yet.
const PADDING_MAX_US: i64 = 300_000;
/// Never holds more than this, however badly a file is interleaved.
const AHEAD_ITEMS_MAX: usize = 600;
/// Between the start and the first frame, to read ahead.
const PREROLL_US: i64 = 100_000;
/// Pictures that are due for longer are left out instead of being encoded late.
const LATENESS_MAX_US: i64 = 150_000;
/// Further behind than this, leaving out pictures does not help: the rest of the file is moved to later.
const RESYNC_US: i64 = 1_000_000;

/// A source that plays a file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) fanout: Fanout,
    pub(crate) offered: Offered,
    pub(crate) note: Option<String>,
}

/// Looks into the file and starts the thread that plays it to whoever subscribes. It ends after [`Fanout::finish`],
/// or at the file's end with `once`.
pub(crate) fn start(options: &Options, path: &Path) -> Result<File, Error> {
    let plan = Plan::make(path, options)?;
    let video = plan.video.as_ref().map(|_| Track::Video);
    let audio = plan.audio.as_ref().map(|_| Track::Audio);
    let (codec, profile_level_id) = plan.codec(options);
    let offered = Offered { tracks: video.into_iter().chain(audio).collect(), codec, profile_level_id };
    let note = plan.note.clone();
    let fanout = Fanout::new(options.drift_ppm, f64::from(Track::Audio.clock_rate()));
    let (opened, is_open) = std::sync::mpsc::channel();
    let (options, for_player) = (options.clone(), fanout.clone());
    // The player is made on its thread: FFmpeg's scaler must not move between threads.
    let play = move || match Player::new(plan, &options, for_player) {
        Ok(mut player) => {
            let _ = opened.send(Ok(()));
            let result = player.play();
            player.fanout.finish(result.err());
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    };
    let start_thread = |source| Error::Io { step: "start the file's thread", source };
    std::thread::Builder::new().name("publisher-file".into()).spawn(play).map_err(start_thread)?;
    is_open.recv().map_err(|_| start_thread(std::io::Error::other("it ended at once")))??;
    Ok(File { fanout, offered, note })
}

struct Player {
    plan: Plan,
    fanout: Fanout,
    is_once: bool,
    encoder: Option<PictureEncoder>,
    assembler: Option<Assembler>,
    /// What has been read and is not due yet, by position and order of reading.
    ahead: BTreeMap<(i64, u64), Item>,
    read_count: u64,
    /// The file of the last loop, for formats that rewind reliably: opening again costs far more on a busy machine.
    input: Option<Input>,
    /// How far behind the latest picture was, when that is too far.
    behind_us: Option<i64>,
}

/// How far a loop has come, on the timeline.
struct Loop {
    offset_us: i64,
    /// Of video and audio: where each ends, and the latest position read.
    ends: [i64; 2],
    latest: [i64; 2],
}

impl Loop {
    /// Where the next loop begins. Encoders pad sound to whole packets: the picture must not halt for that.
    fn end_us(&self) -> i64 {
        let [video, audio] = self.ends;
        let is_padding = video > self.offset_us && audio - video < PADDING_MAX_US;
        if is_padding { video } else { video.max(audio) }
    }
}

/// What reads the tracks in one loop, and what came of it.
struct Readers {
    video: Option<VideoReader>,
    audio: Option<AudioReader>,
    items: Vec<(i64, Item)>,
    frames: Vec<Frame>,
}

impl Readers {
    fn new(input: &Input, plan: &Plan) -> Result<Self, Error> {
        let video = plan.video.as_ref().map(|video| VideoReader::new(input, video.stream, &video.mode));
        let audio = plan.audio.as_ref().map(|audio| AudioReader::new(input, audio));
        Ok(Self {
            video: video.transpose()?,
            audio: audio.transpose()?,
            items: Vec::new(),
            frames: Vec::new(),
        })
    }

    /// `is_before`: it lies before the loop's beginning.
    fn take(
        &mut self,
        packet: &mut Packet,
        (track, position_us): (Track, i64),
        is_before: bool,
        assembler: Option<&mut Assembler>,
    ) -> Result<(), Error> {
        match track {
            Track::Video => match &mut self.video {
                Some(video) => video.take(packet, position_us, &mut self.items),
                None => Ok(()),
            },
            Track::Audio => match &mut self.audio {
                // A decoder needs it to come in; whole packets would be heard.
                Some(audio) if !is_before || !audio.is_copying() => {
                    audio.take(packet, position_us, assembler, &mut self.frames)
                }
                _ => Ok(()),
            },
        }
    }

    fn finish(&mut self, assembler: Option<&mut Assembler>) -> Result<(), Error> {
        if let Some(video) = &mut self.video {
            video.finish(&mut self.items);
        }
        match &mut self.audio {
            Some(audio) => audio.finish(assembler, &mut self.frames),
            None => Ok(()),
        }
    }
}

impl Player {
    fn new(plan: Plan, options: &Options, fanout: Fanout) -> Result<Self, Error> {
        let encoder = match plan.video.as_ref().map(|video| &video.mode) {
            Some(VideoMode::Encode { size, quarter_turns, fps }) => {
                Some(PictureEncoder::new(options, *size, *quarter_turns, *fps)?)
            }
            _ => None,
        };
        let needs_opus = plan.audio.as_ref().is_some_and(|audio| !audio.is_copied);
        let assembler = needs_opus.then(|| Assembler::new(options)).transpose()?;
        Ok(Self {
            plan,
            fanout,
            is_once: options.once,
            encoder,
            assembler,
            ahead: BTreeMap::new(),
            read_count: 0,
            input: None,
            behind_us: None,
        })
    }

    fn play(&mut self) -> Result<(), Error> {
        let Some(timeline) = self.fanout.wait_for_start() else { return Ok(()) };
        let mut offset_us = timeline.position_us(Instant::now()) + PREROLL_US;
        while !self.fanout.is_stopped() {
            let end_us = self.play_once(&timeline, offset_us)?;
            if end_us <= offset_us {
                return Err(Error::Source {
                    path: self.plan.path.display().to_string(),
                    reason: "nothing in it could be decoded".into(),
                });
            }
            offset_us = end_us;
            if self.is_once {
                self.send_until(&timeline, i64::MAX)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads the file once. Returns the position at which it ends.
    fn play_once(&mut self, timeline: &Timeline, offset_us: i64) -> Result<i64, Error> {
        let mut input = self.open()?;
        let mut readers = Readers::new(&input, &self.plan)?;
        let mut progress = Loop { offset_us, ends: [offset_us; 2], latest: [offset_us; 2] };
        let mut packet = Packet::empty();
        while !self.fanout.is_stopped() && plan::read(&mut input, &mut packet)? {
            let Some((track, position_us)) = self.place(&input, &packet, &mut progress) else { continue };
            let is_before = position_us < progress.offset_us;
            readers.take(&mut packet, (track, position_us), is_before, self.assembler.as_mut())?;
            self.hold(&mut readers);
            self.send_read(timeline, &progress)?;
            self.catch_up(&mut progress);
        }
        readers.finish(self.assembler.as_mut())?;
        self.hold(&mut readers);
        if input.format().name().split(',').any(|name| matches!(name, "mp4" | "mov" | "matroska" | "webm")) {
            self.input = Some(input);
        }
        let end_us = progress.end_us();
        if !self.is_once {
            self.ahead.retain(|(position_us, _), item| {
                *position_us < end_us || !matches!(item, Item::Ready(frame) if frame.track == Track::Audio)
            });
        }
        Ok(end_us)
    }

    /// The file from its beginning.
    fn open(&mut self) -> Result<Input, Error> {
        let rewound = self.input.take().and_then(|mut input| {
            let start_us = self.plan.start_us;
            input.seek(start_us, ..start_us + 1).is_ok().then_some(input)
        });
        rewound.map_or_else(|| plan::open(&self.plan.path), Ok)
    }

    /// Which track a packet belongs to, and its place on the timeline.
    fn place(&self, input: &Input, packet: &Packet, progress: &mut Loop) -> Option<(Track, i64)> {
        let index = packet.stream();
        let is_video = self.plan.video.as_ref().is_some_and(|video| video.stream == index);
        let is_audio = self.plan.audio.as_ref().is_some_and(|audio| audio.stream == index);
        let track = match (is_video, is_audio) {
            (true, _) => Track::Video,
            (_, true) => Track::Audio,
            _ => return None,
        };
        let stream = input.stream(index)?;
        let base: Rational = stream.time_base();
        let at_us = plan::to_us(packet.pts().or(packet.dts())?, base) - self.plan.start_us;
        let mut length_us = plan::to_us(packet.duration(), base);
        if length_us <= 0 && track == Track::Video {
            let rate = f64::from(stream.avg_frame_rate());
            length_us = if rate.is_finite() && rate > 0.0 { (1e6 / rate) as i64 } else { 33_333 };
        }
        let position_us = progress.offset_us + at_us;
        let at = usize::from(track == Track::Audio);
        progress.ends[at] = progress.ends[at].max(position_us + length_us);
        progress.latest[at] = progress.latest[at].max(position_us);
        Some((track, position_us))
    }

    /// Keeps what has been read until it is due.
    fn hold(&mut self, readers: &mut Readers) {
        let ready = readers.frames.drain(..).map(|frame| (frame.position_us, Item::Ready(frame)));
        for (position_us, item) in readers.items.drain(..).chain(ready) {
            self.read_count += 1;
            self.ahead.insert((position_us, self.read_count), item);
        }
    }

    /// Both tracks have to be read up to the lookahead before anything is sent that far.
    fn send_read(&mut self, timeline: &Timeline, progress: &Loop) -> Result<(), Error> {
        if self.ahead.len() > AHEAD_ITEMS_MAX {
            let first_us = self.ahead.first_key_value().map_or(0, |((position_us, _), _)| *position_us);
            return self.send_until(timeline, first_us + 1);
        }
        let tracks = [self.plan.video.is_some(), self.plan.audio.is_some()];
        let read_us = (0..2).filter(|&at| tracks[at]).map(|at| progress.latest[at]).min();
        self.send_until(timeline, read_us.unwrap_or(i64::MAX) - LOOKAHEAD_US)
    }

    /// Moves the rest of the file to later where pictures were too far behind: viewers see a freeze, then the film goes on
    /// where it stopped.
    fn catch_up(&mut self, progress: &mut Loop) {
        let Some(behind_us) = self.behind_us.take() else { return };
        progress.offset_us += behind_us;
        progress.latest = progress.latest.map(|latest| latest + behind_us);
        progress.ends = progress.ends.map(|end| end + behind_us);
        self.ahead.retain(|_, item| matches!(item, Item::Ready(_)));
    }

    /// Sends what lies before a position, each item when it is due.
    fn send_until(&mut self, timeline: &Timeline, end_us: i64) -> Result<(), Error> {
        while let Some(entry) = self.ahead.first_entry()
            && entry.key().0 < end_us
        {
            let ((position_us, _), item) = entry.remove_entry();
            if !self.wait_until(timeline.instant(position_us)) {
                return Ok(());
            }
            match item {
                Item::Ready(frame) => self.fanout.send(&frame),
                Item::Picture(picture) => self.send_picture(timeline, &picture, position_us)?,
            }
        }
        Ok(())
    }

    /// False when the player is to stop.
    fn wait_until(&self, due: Instant) -> bool {
        while !self.fanout.is_stopped() {
            let now = Instant::now();
            if now >= due {
                return true;
            }
            std::thread::sleep((due - now).min(Duration::from_millis(50)));
        }
        false
    }

    /// Encodes a picture and sends it, unless it is late.
    fn send_picture(
        &mut self,
        timeline: &Timeline,
        picture: &frame::Video,
        position_us: i64,
    ) -> Result<(), Error> {
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        let late_us = timeline.position_us(Instant::now()) - position_us;
        if late_us > RESYNC_US {
            self.behind_us = Some(late_us);
        }
        if late_us > LATENESS_MAX_US {
            self.fanout.count_skipped();
            return Ok(());
        }
        if self.fanout.take_keyframe_request() {
            encoder.encoder.request_keyframe();
        }
        if let Some(frame) = encoder.encode(picture, position_us)? {
            self.fanout.send(&frame);
        }
        Ok(())
    }
}
