//! As much of fragmented MP4 (ISO/IEC 14496-12) as the rules ask about: tracks, decode times, keyframes.
//!
//! No samples are looked into, so nothing here depends on a codec. Whatever cannot be read is none, never a panic:
//! the bytes are anybody's.

/// `sample_is_non_sync_sample` of a sample's flags.
const NON_SYNC: u32 = 0x0001_0000;

/// A box's type and content.
type Box4<'a> = ([u8; 4], &'a [u8]);

/// Reads boxes one after the other; an item of none says that the rest is no box.
fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = Option<Box4<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let found = next_box(bytes);
        bytes = found.map_or(&[], |(_, _, rest)| rest);
        Some(found.map(|(kind, content, _)| (kind, content)))
    })
}

fn next_box(bytes: &[u8]) -> Option<([u8; 4], &[u8], &[u8])> {
    let size = u64::from(number32(bytes, 0)?);
    let kind = bytes.get(4..8)?.try_into().ok()?;
    let (head, size) = match size {
        // To the end of the file.
        0 => (8, bytes.len() as u64),
        1 => (16, number64(bytes, 8)?),
        size => (8, size),
    };
    let size = usize::try_from(size).ok()?;
    Some((kind, bytes.get(head..size)?, bytes.get(size..)?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn child<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).flatten().find(|(found, _)| found == kind).map(|(_, content)| content)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Track {
    id: u32,
    timescale: u32,
    is_video: bool,
    default_duration: u32,
    default_flags: u32,
}

/// An initialization section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    tracks: Vec<Track>,
}

impl Init {
    /// Reads it; none where it is not one.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let all: Vec<_> = boxes(bytes).collect::<Option<_>>()?;
        if !all.iter().any(|(kind, _)| kind == b"ftyp") {
            return None;
        }
        let moov = child(bytes, b"moov")?;
        let mvex = child(moov, b"mvex")?;
        let defaults = |id: u32| {
            let of_track = |trex: &&[u8]| number32(trex, 4) == Some(id);
            let trex = boxes(mvex).flatten().filter(|(kind, _)| kind == b"trex").map(|(_, content)| content);
            trex.into_iter().find(of_track).and_then(|trex| Some((number32(trex, 12)?, number32(trex, 20)?)))
        };
        let tracks = boxes(moov).flatten().filter(|(kind, _)| kind == b"trak").map(|(_, trak)| {
            let tkhd = child(trak, b"tkhd")?;
            let mdia = child(trak, b"mdia")?;
            let mdhd = child(mdia, b"mdhd")?;
            // Version 1 has 64-bit times in front.
            let id = number32(tkhd, if tkhd.first() == Some(&1) { 20 } else { 12 })?;
            let timescale = number32(mdhd, if mdhd.first() == Some(&1) { 20 } else { 12 })?;
            let is_video = child(mdia, b"hdlr")?.get(8..12)? == b"vide";
            let (default_duration, default_flags) = defaults(id)?;
            (timescale > 0).then_some(Track { id, timescale, is_video, default_duration, default_flags })
        });
        let tracks: Vec<_> = tracks.collect::<Option<_>>()?;
        (!tracks.is_empty()).then_some(Self { tracks })
    }
}

/// The media of one track in a segment or part: of the video track, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Decode time of the first sample in microseconds.
    pub(super) start_us: u64,
    /// Decode time behind the last sample.
    pub(super) end_us: u64,
    /// Whether decode times run on inside.
    pub(super) is_continuous: bool,
    pub(super) is_video: bool,
    pub(super) starts_with_keyframe: bool,
    pub(super) has_keyframe: bool,
    samples: u32,
}

/// The same in the track's timescale, as it is gathered.
#[derive(Default)]
struct Span {
    start: Option<u64>,
    end: u64,
    has_gap: bool,
    starts_with_keyframe: bool,
    has_keyframe: bool,
    samples: u32,
}

impl Fragment {
    /// Reads a segment or part; none where it is no sequence of movie fragments of `init`'s tracks.
    #[must_use]
    pub fn read(bytes: &[u8], init: &Init) -> Option<Self> {
        let all: Vec<_> = boxes(bytes).collect::<Option<_>>()?;
        let track = init.tracks.iter().find(|track| track.is_video).or(init.tracks.first())?;
        let mut span = Span::default();
        let mut wants_data = false;
        for (kind, content) in all {
            match &kind {
                b"moof" if wants_data => return None,
                b"moof" => {
                    wants_data = true;
                    for (_, traf) in boxes(content).flatten().filter(|(kind, _)| kind == b"traf") {
                        span.add(traf, track)?;
                    }
                }
                b"mdat" => wants_data = false,
                _ => {}
            }
        }
        let micros =
            |time: u64| u64::try_from(u128::from(time) * 1_000_000 / u128::from(track.timescale)).ok();
        let start = span.start.filter(|_| !wants_data)?;
        Some(Self {
            start_us: micros(start)?,
            end_us: micros(span.end)?,
            is_continuous: !span.has_gap,
            is_video: track.is_video,
            starts_with_keyframe: span.starts_with_keyframe,
            has_keyframe: span.has_keyframe,
            samples: span.samples,
        })
    }

    /// How long its samples last in all.
    #[must_use]
    pub fn duration_us(&self) -> u64 {
        self.end_us.saturating_sub(self.start_us)
    }

    /// Whether decoding can start with its first sample.
    #[must_use]
    pub fn starts_with_keyframe(&self) -> bool {
        self.starts_with_keyframe
    }

    /// Whether decoding can start with any of its samples.
    #[must_use]
    pub fn has_keyframe(&self) -> bool {
        self.has_keyframe
    }

    /// How many samples it has.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.samples
    }
}

impl Span {
    /// Adds a track fragment, if it is of this track; none where it cannot be read.
    fn add(&mut self, traf: &[u8], track: &Track) -> Option<()> {
        let tfhd = child(traf, b"tfhd")?;
        let flags = number32(tfhd, 0)? & 0x00ff_ffff;
        if number32(tfhd, 4)? != track.id {
            return Some(());
        }
        let (mut duration, mut sample_flags) = (track.default_duration, track.default_flags);
        let mut at = 8;
        for (bit, width) in [(0x1, 8), (0x2, 4), (0x8, 4), (0x10, 4), (0x20, 4)] {
            if flags & bit != 0 {
                match bit {
                    0x8 => duration = number32(tfhd, at)?,
                    0x20 => sample_flags = number32(tfhd, at)?,
                    _ => {}
                }
                at += width;
            }
        }
        let tfdt = child(traf, b"tfdt")?;
        let time = if tfdt.first() == Some(&1) { number64(tfdt, 4)? } else { number32(tfdt, 4)?.into() };
        let is_first = self.start.is_none();
        if is_first {
            self.start = Some(time);
        } else if time != self.end {
            self.has_gap = true;
        }
        self.end = time;
        let mut index = 0;
        for (_, trun) in boxes(traf).flatten().filter(|(kind, _)| kind == b"trun") {
            for sample in samples(trun, duration, sample_flags)? {
                let (duration, flags) = sample?;
                let is_keyframe = flags & NON_SYNC == 0;
                self.has_keyframe |= is_keyframe;
                if is_first && index == 0 {
                    self.starts_with_keyframe = is_keyframe;
                }
                self.end = self.end.checked_add(duration.into())?;
                self.samples = self.samples.saturating_add(1);
                index += 1;
            }
        }
        Some(())
    }
}

/// The durations and flags of a run's samples.
fn samples(
    trun: &[u8],
    default_duration: u32,
    default_flags: u32,
) -> Option<impl Iterator<Item = Option<(u32, u32)>> + '_> {
    let flags = number32(trun, 0)? & 0x00ff_ffff;
    let count = number32(trun, 4)? as usize;
    let mut at = 8;
    if flags & 0x1 != 0 {
        at += 4;
    }
    let mut first_flags = None;
    if flags & 0x4 != 0 {
        first_flags = Some(number32(trun, at)?);
        at += 4;
    }
    let width = [0x100, 0x200, 0x400, 0x800].iter().filter(|bit| flags & **bit != 0).count() * 4;
    // A count alone says nothing: what it counts has to be there, or be all defaults of a sensible number.
    if width > 0 && count > trun.len().saturating_sub(at) / width || count > 1_000_000 {
        return None;
    }
    Some((0..count).map(move |index| {
        let mut place = at + index * width;
        let (mut duration, mut sample_flags) = (default_duration, default_flags);
        if flags & 0x100 != 0 {
            duration = number32(trun, place)?;
            place += 4;
        }
        if flags & 0x200 != 0 {
            place += 4;
        }
        if flags & 0x400 != 0 {
            sample_flags = number32(trun, place)?;
        }
        if let (0, Some(first)) = (index, first_flags) {
            sample_flags = first;
        }
        Some((duration, sample_flags))
    }))
}
