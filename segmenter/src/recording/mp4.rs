//! One MP4 file of a recording's renditions, made while it is being downloaded.
//!
//! A fragmented MP4: picture and sound, segment by segment, with an index in front, so that players can seek. Nothing
//! is re-muxed: the fragments are those of the recording with their track numbers, sequence numbers and times changed
//! in place. So the length of the file and the place of every segment in it are known beforehand, and any range of it
//! can be made from the segments that it touches. Pure: bytes in, bytes out.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::layout::Row;

/// The file's name in URLs.
pub(crate) const FILE: &str = "recording.mp4";

/// The index counts its entries in 16 bits. A longer recording has none, and players look for themselves.
const INDEX_MAX: usize = u16::MAX as usize;

/// What was read is not what our muxer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an MP4 of ours: {0}")]
pub(crate) struct BadMp4(&'static str);

/// A rendition that becomes a track.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) rendition: String,
    /// The initialization sections that its segments need.
    pub(crate) inits: BTreeMap<u32, Bytes>,
    pub(crate) rows: Vec<Row>,
}

/// A segment of a rendition, where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The index of its source.
    pub(crate) track: usize,
    pub(crate) msn: u64,
    /// Its bytes in the file.
    pub(crate) range: Range<u64>,
    change: Change,
}

/// What is changed in a segment's fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    track_id: u32,
    sample_entry: u32,
    /// Of its first fragment.
    sequence: u32,
    /// Taken off decode times.
    skipped_ticks: u64,
}

/// The file: what it begins with, and the segments that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) head: Bytes,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) length: u64,
}

/// Lays out the file. The first source's segments are what the index knows.
pub(crate) fn plan(sources: &[Source]) -> Result<Plan, BadMp4> {
    let tracks = sources.iter().zip(1..).map(|(source, id)| Track::new(source, id));
    let tracks: Vec<Track> = tracks.collect::<Result<_, _>>()?;
    let lead = tracks.first().ok_or(BadMp4("there is no track"))?;
    let duration_us: i64 = sources[0].rows.iter().map(|row| row.duration_us).sum();
    let mut head = file_type();
    head.extend_from_slice(&movie(&lead.movie_header, &tracks, duration_us.unsigned_abs() / 1000)?);

    let (pieces, entries) = pieces(sources, &tracks);
    if entries.len() <= INDEX_MAX {
        head.extend_from_slice(&index(lead, &entries));
    }
    let start = head.len() as u64;
    let pieces: Vec<_> = pieces
        .into_iter()
        .map(|piece| Piece { range: piece.range.start + start..piece.range.end + start, ..piece })
        .collect();
    let length = pieces.last().map_or(start, |last| last.range.end);
    Ok(Plan { head: head.into(), pieces, length })
}

/// An entry of the index: the length and the duration of one segment of all tracks.
struct Entry {
    bytes: u64,
    duration_us: i64,
}

/// The segments in their order, from byte 0, and the index of them.
fn pieces(sources: &[Source], tracks: &[Track]) -> (Vec<Piece>, Vec<Entry>) {
    let mut by_msn: BTreeMap<u64, Vec<(usize, &Row)>> = BTreeMap::new();
    for (index, source) in sources.iter().enumerate() {
        for row in &source.rows {
            by_msn.entry(row.msn).or_default().push((index, row));
        }
    }
    let (mut pieces, mut entries) = (Vec::new(), Vec::new());
    let (mut at, mut sequence) = (0, 1);
    for (msn, rows) in by_msn {
        let start = at;
        for (track, row) in rows.iter().filter(|(_, row)| row.bytes > 0) {
            let Track { id, timescale, entries, .. } = &tracks[*track];
            let skipped_us = row.skipped_us.unsigned_abs();
            pieces.push(Piece {
                track: *track,
                msn,
                range: at..at + row.bytes,
                change: Change {
                    track_id: *id,
                    sample_entry: entries.numbers.get(&row.init).copied().unwrap_or(1),
                    sequence,
                    skipped_ticks: skipped_us * u64::from(*timescale) / 1_000_000,
                },
            });
            at += row.bytes;
            sequence += row.parts;
        }
        if let Some((_, row)) = rows.first() {
            entries.push(Entry { bytes: at - start, duration_us: row.duration_us });
        }
    }
    (pieces, entries)
}

impl Piece {
    /// Makes a segment as it was stored the one that stands in the file.
    pub(crate) fn change(&self, segment: &mut [u8]) -> Result<(), BadMp4> {
        if segment.len() as u64 != self.range.end - self.range.start {
            return Err(BadMp4("a segment has another length"));
        }
        let Change { track_id, sample_entry, mut sequence, skipped_ticks } = self.change;
        for fragment in boxes(segment, 0..segment.len())? {
            if &fragment.name != b"moof" {
                continue;
            }
            for part in boxes(segment, fragment.payload)? {
                match &part.name {
                    b"mfhd" => set_u32(segment, &part.payload, 4, sequence)?,
                    b"traf" => {
                        for header in boxes(segment, part.payload)? {
                            match &header.name {
                                b"tfhd" => {
                                    let flags = get_u32(segment, &header.payload, 0)?;
                                    // With an absolute position in the file it could not be moved.
                                    if flags & 0x01 != 0 || flags & 0x02 == 0 {
                                        return Err(BadMp4("tfhd has other fields"));
                                    }
                                    set_u32(segment, &header.payload, 4, track_id)?;
                                    set_u32(segment, &header.payload, 8, sample_entry)?;
                                }
                                b"tfdt" => shift(segment, &header.payload, skipped_ticks)?,
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
            sequence += 1;
        }
        Ok(())
    }
}

fn shift(segment: &mut [u8], tfdt: &Range<usize>, ticks: u64) -> Result<(), BadMp4> {
    if get_u32(segment, tfdt, 0)? >> 24 != 1 {
        return Err(BadMp4("tfdt has 32 bits"));
    }
    let (high, low) = (get_u32(segment, tfdt, 4)?, get_u32(segment, tfdt, 8)?);
    let time = (u64::from(high) << 32 | u64::from(low)).saturating_sub(ticks);
    set_u32(segment, tfdt, 4, (time >> 32) as u32)?;
    set_u32(segment, tfdt, 8, time as u32)
}

/// What the file's head says of a track.
struct Track {
    id: u32,
    timescale: u32,
    movie_header: Vec<u8>,
    /// `trak`, with its number and all sample entries.
    track: Vec<u8>,
    defaults: Vec<u8>,
    entries: SampleEntries,
}

/// The different ways in which a track was encoded.
#[derive(Default)]
struct SampleEntries {
    entries: Vec<Vec<u8>>,
    /// From initialization sections to places in `entries`, beginning with 1.
    numbers: BTreeMap<u32, u32>,
}

impl Track {
    fn new(source: &Source, id: u32) -> Result<Self, BadMp4> {
        let mut entries = SampleEntries::default();
        for (number, init) in &source.inits {
            let description = find(init, &[b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"])?;
            let entry =
                init.get(description.start + 8..description.end).ok_or(BadMp4("stsd is too short"))?.to_vec();
            let known = entries.entries.iter().position(|known| *known == entry);
            let place = known.unwrap_or_else(|| {
                entries.entries.push(entry);
                entries.entries.len() - 1
            });
            entries.numbers.insert(*number, place as u32 + 1);
        }
        let init = source.inits.values().next().ok_or(BadMp4("there is no initialization section"))?;
        let media = find(init, &[b"moov", b"trak", b"mdia", b"mdhd"])?;
        let at = if get_u32(init, &media, 0)? >> 24 == 1 { 20 } else { 12 };
        let mut defaults = init[find(init, &[b"moov", b"mvex", b"trex"])?].to_vec();
        let all = 0..defaults.len();
        set_u32(&mut defaults, &all, 4, id)?;
        Ok(Self {
            id,
            timescale: get_u32(init, &media, at)?,
            movie_header: init[find(init, &[b"moov", b"mvhd"])?].to_vec(),
            track: rebuild(init, find(init, &[b"moov", b"trak"])?, b"trak", id, &entries)?,
            defaults,
            entries,
        })
    }
}

/// A `trak`, or what is inside, with another number and other sample entries.
fn rebuild(
    init: &[u8],
    payload: Range<usize>,
    name: &[u8; 4],
    id: u32,
    entries: &SampleEntries,
) -> Result<Vec<u8>, BadMp4> {
    match name {
        b"trak" | b"mdia" | b"minf" | b"stbl" => {
            let mut inside = Vec::new();
            for child in boxes(init, payload)? {
                inside.extend_from_slice(&rebuild(init, child.payload, &child.name, id, entries)?);
            }
            Ok(a_box(name, &inside))
        }
        b"tkhd" => {
            let at = if get_u32(init, &payload, 0)? >> 24 == 1 { 20 } else { 12 };
            let mut header = init[payload].to_vec();
            let all = 0..header.len();
            set_u32(&mut header, &all, at, id)?;
            Ok(a_box(name, &header))
        }
        b"stsd" => {
            let mut inside = vec![0; 4];
            inside.put_u32(entries.entries.len() as u32);
            entries.entries.iter().for_each(|entry| inside.extend_from_slice(entry));
            Ok(a_box(name, &inside))
        }
        _ => Ok(a_box(name, &init[payload])),
    }
}

fn file_type() -> BytesMut {
    // Fragments, `default-base-is-moof` and negative offsets: what `iso6` and before it `iso5` stand for.
    BytesMut::from(&a_box(b"ftyp", b"iso6\0\0\x02\0iso6iso5isommp41")[..])
}

fn movie(header: &[u8], tracks: &[Track], duration_ms: u64) -> Result<Vec<u8>, BadMp4> {
    let mut header = header.to_vec();
    let all = 0..header.len();
    let next_track_id = all.len().checked_sub(4).ok_or(BadMp4("mvhd is too short"))?;
    set_u32(&mut header, &all, next_track_id, tracks.len() as u32 + 1)?;
    let at = if get_u32(&header, &all, 0)? >> 24 == 1 { 20 } else { 12 };
    let timescale = u64::from(get_u32(&header, &all, at)?);
    let mut extends = {
        let mut duration = vec![1, 0, 0, 0];
        duration.put_u64(duration_ms * timescale / 1000);
        a_box(b"mehd", &duration)
    };
    let mut inside = a_box(b"mvhd", &header);
    for track in tracks {
        inside.extend_from_slice(&track.track);
        extends.extend_from_slice(&a_box(b"trex", &track.defaults));
    }
    inside.extend_from_slice(&a_box(b"mvex", &extends));
    Ok(a_box(b"moov", &inside))
}

/// `sidx`: where the segments of the first track are.
fn index(lead: &Track, entries: &[Entry]) -> Vec<u8> {
    let mut inside = vec![1, 0, 0, 0];
    inside.put_u32(lead.id);
    inside.put_u32(lead.timescale);
    // The recording begins at 0, and right behind this box.
    inside.put_u64(0);
    inside.put_u64(0);
    inside.put_u16(0);
    inside.put_u16(entries.len() as u16);
    let ticks = |us: i64| (us.unsigned_abs() * u64::from(lead.timescale) + 500_000) / 1_000_000;
    let mut at_us = 0;
    for entry in entries {
        let end_us = at_us + entry.duration_us;
        // The highest bit would say that another index follows.
        inside.put_u32((entry.bytes & 0x7fff_ffff) as u32);
        inside.put_u32((ticks(end_us) - ticks(at_us)) as u32);
        // It begins with a stream access point of type 1.
        inside.put_u32(0x9000_0000);
        at_us = end_us;
    }
    a_box(b"sidx", &inside)
}

fn a_box(name: &[u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + payload.len());
    out.put_u32((8 + payload.len()) as u32);
    out.put_slice(name);
    out.put_slice(payload);
    out
}

/// A box in a buffer.
#[derive(Debug)]
struct FoundBox {
    name: [u8; 4],
    payload: Range<usize>,
}

/// The boxes that fill `range`.
fn boxes(bytes: &[u8], range: Range<usize>) -> Result<Vec<FoundBox>, BadMp4> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let bad = BadMp4("a box is cut off");
        let header = bytes.get(at..at + 8).ok_or(bad)?;
        let (length, name) = header.split_first_chunk::<4>().ok_or(bad)?;
        let end = at + u32::from_be_bytes(*length) as usize;
        if end < at + 8 || end > range.end {
            return Err(bad);
        }
        let name = name.first_chunk().copied().ok_or(bad)?;
        found.push(FoundBox { name, payload: at + 8..end });
        at = end;
    }
    Ok(found)
}

/// The payload of the box at the end of `path`.
fn find(bytes: &[u8], path: &[&[u8; 4]]) -> Result<Range<usize>, BadMp4> {
    path.iter().try_fold(0..bytes.len(), |range, name| {
        let found = boxes(bytes, range)?.into_iter().find(|found| found.name == **name);
        found.map(|found| found.payload).ok_or(BadMp4("a box is missing"))
    })
}

fn get_u32(bytes: &[u8], range: &Range<usize>, at: usize) -> Result<u32, BadMp4> {
    let field = bytes.get(range.clone()).and_then(|bytes| bytes.get(at..at + 4));
    let field = field.and_then(|field| field.first_chunk()).ok_or(BadMp4("a field is missing"))?;
    Ok(u32::from_be_bytes(*field))
}

fn set_u32(bytes: &mut [u8], range: &Range<usize>, at: usize, value: u32) -> Result<(), BadMp4> {
    let field = bytes.get_mut(range.clone()).and_then(|bytes| bytes.get_mut(at..at + 4));
    field.ok_or(BadMp4("a field is missing"))?.copy_from_slice(&value.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mux::{Muxer, SampleEntry};

    fn track(rendition: &str, config: &'static [u8]) -> (Source, Vec<Bytes>) {
        let entry = SampleEntry::Aac { sample_rate: 48_000, channels: 2, config: Bytes::from_static(config) };
        let (mut muxer, init) = Muxer::open(&entry).unwrap();
        let (mut rows, mut segments, mut time) = (Vec::new(), Vec::new(), 0);
        for msn in 0..3 {
            let mut segment = Vec::new();
            for _ in 0..2 {
                for _ in 0..24 {
                    muxer.write(time, 1024, true, &Bytes::from_static(&[1; 100])).unwrap();
                    time += 1024;
                }
                segment.extend_from_slice(&muxer.flush().unwrap());
            }
            rows.push(Row {
                msn,
                date_time_ms: 0,
                duration_us: 1_024_000,
                bytes: segment.len() as u64,
                parts: 2,
                init: 0,
                is_discontinuity: false,
                is_gap: false,
                skipped_us: if msn == 2 { 1_024_000 } else { 0 },
            });
            segments.push(segment.into());
        }
        (Source { rendition: rendition.to_owned(), inits: BTreeMap::from([(0, init)]), rows }, segments)
    }

    fn field(bytes: &[u8], path: &[&[u8; 4]], at: usize) -> u32 {
        get_u32(bytes, &find(bytes, path).unwrap(), at).unwrap()
    }

    #[test]
    fn fragments_are_renumbered_in_the_order_of_the_file_and_times_have_no_hole() {
        let (first, segments) = track("v0", &[0x11, 0x90]);
        let (second, _) = track("a0", &[0x11, 0x90]);
        let plan = plan(&[first, second]).unwrap();
        assert_eq!(plan.pieces.len(), 6);
        let mut at = plan.head.len() as u64;
        let mut sequence = 1;
        for piece in &plan.pieces {
            assert_eq!(piece.range.start, at);
            at = piece.range.end;
            let mut segment = segments[piece.msn as usize].to_vec();
            piece.change(&mut segment).unwrap();
            let fragments: Vec<_> = boxes(&segment, 0..segment.len())
                .unwrap()
                .into_iter()
                .filter(|found| &found.name == b"moof")
                .map(|found| segment[found.payload].to_vec())
                .collect();
            assert_eq!(fragments.len(), 2);
            for (index, fragment) in fragments.iter().enumerate() {
                assert_eq!(field(fragment, &[b"mfhd"], 4), sequence);
                sequence += 1;
                assert_eq!(field(fragment, &[b"traf", b"tfhd"], 4), piece.track as u32 + 1);
                // The last segment is one too far: what was skipped before it is a segment long.
                let expected = (piece.msn - u64::from(piece.msn == 2)) * 2 + index as u64;
                assert_eq!(u64::from(field(fragment, &[b"traf", b"tfdt"], 8)), expected * 24 * 1024);
            }
        }
        assert_eq!(plan.length, at);
        assert_eq!(field(&plan.head, &[b"moov", b"mvhd"], 96), 3, "the next track's number");
        let index = find(&plan.head, &[b"sidx"]).unwrap();
        assert_eq!(get_u32(&plan.head, &index, 28).unwrap(), 3, "entries");
    }

    #[test]
    fn each_encoding_has_one_sample_entry() {
        let (mut source, _) = track("v0", &[0x11, 0x90]);
        let (other, _) = track("v0", &[0x12, 0x10]);
        source.inits.insert(1, other.inits[&0].clone());
        source.inits.insert(2, source.inits[&0].clone());
        for (msn, row) in source.rows.iter_mut().enumerate() {
            row.init = msn as u32;
        }
        let plan = plan(&[source]).unwrap();
        let entries: Vec<_> = plan.pieces.iter().map(|piece| piece.change.sample_entry).collect();
        assert_eq!(entries, [1, 2, 1]);
        let description = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"];
        assert_eq!(field(&plan.head, &description, 4), 2);
    }

    proptest! {
        #[test]
        fn damaged_media_is_refused_without_a_panic(
            at in 0usize..2_000, value: u8, cut in 0usize..2_000,
        ) {
            let (mut source, segments) = track("v0", &[0x11, 0x90]);
            let piece = plan(std::slice::from_ref(&source)).unwrap().pieces.remove(0);
            let mut segment = segments[0].to_vec();
            segment[at] = value;
            let _ = piece.change(&mut segment);
            segment.truncate(cut);
            prop_assert!(piece.change(&mut segment).is_err());
            let mut init = source.inits[&0].to_vec();
            let at = at % init.len();
            init[at] = value;
            init.truncate(cut.max(1));
            source.inits.insert(0, init.into());
            let _ = plan(&[source]);
        }
    }
}
