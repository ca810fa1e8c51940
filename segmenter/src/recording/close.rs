//! Turns what is stored of a stream into a recording that can be played: at the stream's end, and after a restart for
//! what a killed program left behind. Both go the same way, from nothing but the storage.

use std::collections::{BTreeMap, BTreeSet};

use shoal_digest::Record;
use shoal_playlist::{Head, Map, MediaPlaylist, PlaylistKind, Segment};

use super::layout::{
    HEADER, Header, OpenPart, Page, RecordingState, RenditionHeader, Row, SegmentMeta, VERSION, json,
    parse_open, rows_name,
};
use super::writer::{OpenSegment, end_segment};
use crate::live::Description;
use crate::multivariant::{self, Source};
use crate::pictures::POSTER;
use crate::pictures::sheet::{Cell, Cue, FOLDER, VTT, cells_name, picture_name, sheet_number, vtt};
use crate::storage::{Storage, StorageError};

/// Closes the recording that `header` describes; none if there is nothing to be kept of it. May be interrupted and
/// done again.
pub(super) async fn close(
    storage: &Storage,
    mut header: Header,
    tracker_url: &str,
    now_ms: u64,
) -> Result<Option<Header>, StorageError> {
    let folder = header.folder();
    let mut segments = Vec::new();
    for rendition in &mut header.renditions {
        segments.push(complete(storage, &folder, rendition).await?);
    }
    let rows = timeline(&segments);
    if rows.iter().all(Vec::is_empty) {
        storage.delete_folder(&folder, HEADER).await?;
        return Ok(None);
    }
    for (rendition, rows) in header.renditions.iter().zip(&rows) {
        storage.put(&rows_name(&folder, &rendition.name), vec![json(rows)]).await?;
        let text = playlist(header.target_duration_s, rows).render();
        storage.put(&format!("{folder}/{}/playlist.m3u8", rendition.name), vec![text.into()]).await?;
    }
    header.has_pictures = thumbnails(storage, &header, &rows).await?;
    // The multivariant playlist can't name what has no media, such as a layer that never came.
    let named = header.renditions.iter().zip(&rows).filter(|(_, rows)| !rows.is_empty());
    let named: Vec<_> = named.map(|(rendition, _)| rendition).collect();
    // Viewers number renditions by their order there, and signed records say the live stream's numbers. Where one is left
    // out before another, media would be taken for another rendition's: such a recording has no swarm.
    let is_numbered = named.iter().zip(0..).all(|(rendition, place)| rendition.number == place);
    let named: Vec<_> =
        named.iter().map(|rendition| (rendition.name.clone(), rendition.description.clone())).collect();
    let text = multivariant::playlist(&Source {
        // Those who watch the recording are a swarm of their own.
        stream: &folder,
        epoch: &header.epoch,
        origin_key: &header.origin_key,
        tracker_url: if is_numbered { tracker_url } else { "" },
        folder: "",
        has_pictures: header.has_pictures,
        renditions: &named,
        has_independent_segments: segments.iter().flatten().all(is_independent),
        is_complete: true,
    })
    .render();
    storage.put(&format!("{folder}/index.m3u8"), vec![text.into()]).await?;

    let duration_us = |rows: &Vec<Row>| rows.iter().map(|row| row.duration_us).sum::<i64>();
    header.duration_ms = rows.iter().map(duration_us).max().unwrap_or(0).unsigned_abs() / 1000;
    header.bytes = rows.iter().flatten().map(|row| row.bytes).sum();
    header.closed_ms = now_ms;
    header.state = RecordingState::Closed;
    // Last: what is called closed is whole.
    storage.put(&format!("{folder}/{HEADER}"), vec![json(&header)]).await?;
    Ok(Some(header))
}

/// Whether the segment's media begins with a keyframe, as the record of its first part says.
fn is_independent(segment: &SegmentMeta) -> bool {
    let first = segment.parts.iter().find(|part| !part.is_gap);
    first.is_none_or(|part| Record::decode_unverified(&part.record).is_ok_and(|record| record.is_independent))
}

/// Says which thumbnail is of which time; false if there are none.
async fn thumbnails(storage: &Storage, header: &Header, rows: &[Vec<Row>]) -> Result<bool, StorageError> {
    let folder = header.folder();
    if storage.get(&format!("{folder}/{POSTER}")).await?.is_none() {
        return Ok(false);
    }
    let names = storage.list(&format!("{folder}/{FOLDER}")).await?;
    let mut sheets: Vec<u64> = names.iter().filter_map(|name| sheet_number(name, ".json")).collect();
    sheets.sort_unstable();
    let path = |sheet: &u64| format!("{folder}/{FOLDER}/{}", cells_name(*sheet));
    let texts = storage.get_all(sheets.iter().map(path).collect()).await?;
    // A picture is of the beginning of a video segment: its place in the playlist is its time.
    let videos = header.renditions.iter().zip(rows).filter(|(rendition, _)| rendition.description.is_video());
    let Some((_, rows)) = videos.max_by_key(|(_, rows)| rows.len()) else { return Ok(false) };
    let mut end_us = 0;
    let starts_us = rows.iter().map(|row| {
        end_us += row.duration_us;
        (row.msn, end_us - row.duration_us)
    });
    let starts_us: BTreeMap<u64, i64> = starts_us.collect();
    let mut cues = Vec::new();
    for (sheet, text) in sheets.iter().zip(texts) {
        // A sheet that can't be read is no reason to do without the recording.
        let cells: Vec<Cell> = serde_json::from_slice(&text).unwrap_or_default();
        for cell in cells {
            // Media may be missing that was not stored in time.
            let Some(start_us) = starts_us.get(&cell.msn) else { continue };
            let uri = format!("{FOLDER}/{}", picture_name(*sheet));
            cues.push(Cue { start_ms: start_us / 1000, uri, cell });
        }
    }
    let text = vtt(&cues, end_us / 1000);
    storage.put(&format!("{folder}/{VTT}"), vec![text.into()]).await?;
    Ok(true)
}

/// Ends the segments in the making and returns all of them; `rendition` learns what was known of it last.
async fn complete(
    storage: &Storage,
    folder: &str,
    rendition: &mut RenditionHeader,
) -> Result<Vec<SegmentMeta>, StorageError> {
    let name = &rendition.name;
    let damaged = |name: &str, reason: &str| StorageError::Damaged {
        name: format!("{folder}/{name}"),
        reason: reason.to_owned(),
    };
    let pages: Vec<_> = storage.list(&format!("{folder}/{name}/pages")).await?;
    let pages = pages.into_iter().map(|page| format!("{folder}/{name}/pages/{page}")).collect();
    let (mut segments, mut page) = (Vec::new(), Vec::new());
    for text in storage.get_all(pages).await? {
        let read: Page = serde_json::from_slice(&text).map_err(|error| damaged(name, &error.to_string()))?;
        if read.version != VERSION {
            return Err(damaged(name, "it was written by a newer version"));
        }
        segments.extend(read.segments.iter().cloned());
        rendition.description = read.description;
        page = read.segments;
    }

    let done = segments.last().map_or(0, |last: &SegmentMeta| last.msn + 1);
    let open: Vec<_> = storage.list(&format!("{folder}/{name}/open")).await?;
    let (rest, stale): (Vec<_>, Vec<_>) = open
        .into_iter()
        .filter_map(|name| Some((parse_open(&name)?, name)))
        .partition(|((msn, _), _)| *msn >= done);
    let path = |(_, part): &(_, String)| format!("{folder}/{name}/open/{part}");
    let objects = storage.get_all(rest.iter().map(path).collect()).await?;
    let mut opens: Vec<(OpenSegment, Description)> = Vec::new();
    for (((msn, index), _), object) in rest.iter().zip(objects) {
        let Some((part, media)) = OpenPart::decode(&object) else {
            return Err(damaged(name, "a part is not what was written"));
        };
        if opens.last().is_none_or(|(open, _)| open.msn != *msn) {
            opens.push((
                OpenSegment { msn: *msn, head: part.head, parts: Vec::new() },
                Description::default(),
            ));
        }
        if let Some((open, description)) = opens.last_mut()
            && open.parts.len() as u64 == *index
        {
            open.parts.push((part.meta, media));
            *description = part.description;
        }
    }
    for (open, mut description) in opens {
        description.end_open_segment();
        rendition.description = description.clone();
        end_segment(storage, folder, name, open, description, &mut page).await?;
        segments.extend(page.last().cloned());
    }
    storage.delete(stale.iter().map(path).collect()).await?;
    Ok(segments)
}

/// The timeline of the recording: without what no rendition has, because nobody was publishing, and without what is
/// missing at the end.
fn timeline(renditions: &[Vec<SegmentMeta>]) -> Vec<Vec<Row>> {
    let with_media: BTreeSet<u64> =
        renditions.iter().flatten().map(Row::of).filter(|row| !row.is_gap).map(|row| row.msn).collect();
    let rows = |segments: &Vec<SegmentMeta>| {
        let (mut rows, mut skipped_us, mut has_skipped) = (Vec::new(), 0, false);
        for row in segments.iter().map(Row::of) {
            if !with_media.contains(&row.msn) {
                (skipped_us, has_skipped) = (skipped_us + row.duration_us, !rows.is_empty());
                continue;
            }
            let is_discontinuity = (row.is_discontinuity || has_skipped) && !rows.is_empty();
            rows.push(Row { skipped_us, is_discontinuity, ..row });
            has_skipped = false;
        }
        while rows.last().is_some_and(|row: &Row| row.is_gap) {
            rows.pop();
        }
        rows
    };
    renditions.iter().map(rows).collect()
}

/// The media playlist of a closed recording's rendition.
fn playlist(target_duration_s: u64, rows: &[Row]) -> MediaPlaylist {
    let mut init_before = None;
    let segment = |row: &Row| {
        let map = (init_before.replace(row.init) != Some(row.init))
            .then(|| Map { uri: format!("init-{}.mp4", row.init), byte_range: None });
        Segment {
            head: Head { is_discontinuity: row.is_discontinuity, map, date_time_ms: Some(row.date_time_ms) },
            parts: Vec::new(),
            duration: row.duration_us.unsigned_abs(),
            is_gap: row.is_gap,
            byte_range: None,
            uri: format!("seg-{}.m4s", row.msn),
        }
    };
    MediaPlaylist {
        // EXT-X-GAP needs 8; EXT-X-MAP without I-frames needs 6.
        version: if rows.iter().any(|row| row.is_gap) { 8 } else { 6 },
        target_duration_s,
        part_target: None,
        server_control: None,
        kind: Some(PlaylistKind::Vod),
        has_independent_segments: false,
        media_sequence: 0,
        discontinuity_sequence: 0,
        skipped: None,
        encryption: None,
        segments: rows.iter().map(segment).collect(),
        open: None,
        hints: Vec::new(),
        reports: Vec::new(),
        is_ended: true,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use shoal_playlist::lint::{lint_media, lint_renditions};

    use super::super::layout::PartMeta;
    use super::*;
    use crate::window::PartHead;

    fn segment(msn: u64, is_gap: bool, is_discontinuity: bool) -> SegmentMeta {
        let bytes = if is_gap { 0 } else { 100 };
        SegmentMeta {
            msn,
            head: PartHead {
                date_time_ms: 1_700_000_000_000 + 2_000 * i64::try_from(msn).unwrap(),
                is_discontinuity,
                init: u32::from(msn > 5),
            },
            parts: vec![PartMeta { duration_us: 2_000_000, bytes, is_gap, record: Bytes::new() }],
        }
    }

    #[test]
    fn time_without_a_publisher_is_left_out_and_one_renditions_gap_is_not() {
        // The publisher was away in 4 and 5, its camera stalled in 2, and it was gone for good after 7.
        let video: Vec<_> =
            (0..10).map(|msn| segment(msn, [2, 4, 5, 8, 9].contains(&msn), msn == 6)).collect();
        let audio: Vec<_> = (0..10).map(|msn| segment(msn, [4, 5, 8, 9].contains(&msn), msn == 6)).collect();
        let rows = timeline(&[video, audio]);
        let numbers: Vec<u64> = rows[0].iter().map(|row| row.msn).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 6, 7]);
        assert_eq!(rows[0].len(), rows[1].len());
        assert_eq!(rows[0].iter().map(|row| row.skipped_us).max(), Some(4_000_000));
        let playlists = rows.iter().map(|rows| playlist(2, rows)).collect::<Vec<_>>();
        assert!(playlists[0].segments[2].is_gap && !playlists[1].segments[2].is_gap);
        for playlist in &playlists {
            let marked: Vec<_> =
                playlist.segments.iter().map(|segment| segment.head.is_discontinuity).collect();
            assert_eq!(marked, [false, false, false, false, true, false]);
            assert_eq!(lint_media(&playlist.render()), [], "{}", playlist.render());
        }
        let texts: Vec<_> = playlists.iter().map(MediaPlaylist::render).collect();
        assert_eq!(lint_renditions(&[&texts[0], &texts[1]]), []);
    }
}
