//! Looks at an upstream and decides how it is pulled: which renditions, from where, with which constants.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use reqwest::Url;

use super::container::{self, Kind, Reader};
use super::cursor::{Cursor, Listed, Place, Step, listed};
use super::fetch::FetchError;
use super::follow::{Loaded, Shared};
use super::init::Track;
use super::select::{Choice, Chosen, choose};
use super::ts::{Remuxer, is_ts};
use crate::config::{Config, Constants};
use crate::live::Description;
use crate::worker::unix_ms;

/// What a stream is going to be.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) constants: Constants,
    /// It is complete already.
    pub(super) is_vod: bool,
    /// Videos, best first, then audio; each makes a rendition, or two.
    pub(super) sources: Vec<Planned>,
    /// The lead's playlist, by which something new is known.
    pub(super) seen: String,
}

/// A rendition of the upstream.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) asked: Url,
    pub(super) loaded: Loaded,
    pub(super) cursor: Cursor,
    pub(super) map: Option<Place>,
    pub(super) reader: Reader,
    /// What is made of it.
    pub(super) tracks: Vec<PlannedTrack>,
    frame_rate_milli: u64,
}

/// A rendition of ours.
#[derive(Debug)]
pub(super) struct PlannedTrack {
    pub(super) init: Bytes,
    tracks: Vec<Track>,
    /// The date of its first piece, where the upstream gives none.
    pub(super) date_us: i64,
}

impl Planned {
    pub(super) fn description(&self, track: &PlannedTrack) -> Description {
        let mut description = container::describe(&track.tracks);
        if description.is_video() {
            description.frame_rate_milli = self.frame_rate_milli;
        }
        description
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoPlan {
    /// It may be otherwise later.
    Failed(String),
    /// There is no new segment yet.
    Nothing,
    /// Only the operator can change it.
    Refused(String),
}

impl From<FetchError> for NoPlan {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Refused(text) => Self::Refused(text),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Looks at the upstream. `seen` is the playlist at which an earlier look ended: nothing begins before it changes.
pub(super) async fn plan(
    shared: &Arc<Shared>,
    named: &Url,
    config: &Config,
    seen: Option<&str>,
) -> Result<Plan, NoPlan> {
    let patience = Duration::from_millis(shared.config.request_timeout_ms);
    let (base, text) = shared.text(named, patience).await?;
    let choice = match choose(&text, shared.config.renditions_max).map_err(NoPlan::Failed)? {
        Some(choice) => choice,
        // A media playlist: the stream is that.
        None => Choice {
            variants: vec![Chosen { uri: named.to_string(), frame_rate_milli: 0 }],
            ..Choice::default()
        },
    };
    let uris = choice.variants.iter().map(|chosen| &chosen.uri).chain(&choice.audio);
    let asked: Vec<Url> = uris
        .map(|uri| base.join(uri).map_err(|_| NoPlan::Failed("a rendition's URI is none".to_owned())))
        .collect::<Result<_, _>>()?;
    let loaded = try_join_all(asked.iter().map(|url| shared.playlist(url, patience))).await?;
    let lead = &loaded[0];
    if seen == Some(lead.text.as_str()) || loaded.iter().any(|loaded| loaded.playlist.segments.is_empty()) {
        return Err(NoPlan::Nothing);
    }
    let is_vod = loaded.iter().all(|loaded| loaded.playlist.is_ended);
    if is_vod && seen.is_some() {
        // What is left of the stream that was pulled before.
        return Err(NoPlan::Nothing);
    }
    let constants = constants(config, &loaded, is_vod);
    let starts = starts(&loaded, is_vod);
    let dates_us = dates_us(&loaded, &starts);
    let mut sources = Vec::new();
    for (index, (asked, loaded)) in asked.into_iter().zip(&loaded).enumerate() {
        let cursor = Cursor::new(starts[index], constants.has_parts);
        let chosen = choice.variants.get(index);
        // The sound in the other variants is the same, and sound beside them is better.
        let with_audio = index == 0 && choice.audio.is_none();
        let (map, reader, tracks) = open(shared, loaded, cursor, with_audio, dates_us[index]).await?;
        let frame_rate_milli = chosen.map_or(0, |chosen| chosen.frame_rate_milli);
        sources.push(Planned {
            asked,
            loaded: loaded.clone(),
            cursor,
            map,
            reader,
            tracks,
            frame_rate_milli,
        });
    }
    Ok(Plan { constants, is_vod, sources, seen: loaded[0].text.clone() })
}

/// Looks into the first segment: what it is, and what is in it.
async fn open(
    shared: &Shared,
    loaded: &Loaded,
    cursor: Cursor,
    with_audio: bool,
    date_us: i64,
) -> Result<(Option<Place>, Reader, Vec<PlannedTrack>), NoPlan> {
    let mut first = cursor;
    let steps = first.take(&loaded.playlist).map_err(|_| NoPlan::Nothing)?;
    let map = steps.iter().find_map(|step| match step {
        Step::Begin { map, .. } => Some(map.clone()),
        _ => None,
    });
    let media = steps.iter().find_map(|step| match step {
        Step::Piece { place, .. } => place.as_ref(),
        _ => None,
    });
    let (Some(map), Some(media)) = (map, media) else { return Err(NoPlan::Nothing) };
    // Before there is a stream, so that it is said where it can be seen.
    let url =
        loaded.url.join(&media.uri).map_err(|_| NoPlan::Failed("a segment's URI is none".to_owned()))?;
    shared.fetcher.check(&url)?;
    let target_s = loaded.playlist.target_duration_s;
    if let Some(place) = map {
        let init = shared.piece(&loaded.url, &place, target_s).await?;
        let tracks = container::tracks(&init).map_err(NoPlan::Refused)?;
        return Ok((Some(place), Reader::Mp4, vec![PlannedTrack { init, tracks, date_us }]));
    }
    let bytes = shared.piece(&loaded.url, media, target_s).await?;
    if !is_ts(&bytes) {
        let text = "its segments are neither fragmented MP4 (there is no EXT-X-MAP) nor MPEG-TS";
        return Err(NoPlan::Refused(text.to_owned()));
    }
    let shares = Remuxer::default().remux(&bytes).map_err(NoPlan::Refused)?;
    let (mut kinds, mut planned) = (Vec::new(), Vec::new());
    let mut lead_us = None;
    for kind in [Kind::Video, Kind::Audio] {
        let Some(share) = kind.of(&shares).filter(|_| kind == Kind::Video || with_audio || kinds.is_empty())
        else {
            continue;
        };
        let off_us = share.start_us - *lead_us.get_or_insert(share.start_us);
        let tracks = container::tracks(&share.init).map_err(NoPlan::Refused)?;
        planned.push(PlannedTrack { init: share.init.clone(), tracks, date_us: date_us + off_us });
        kinds.push(kind);
    }
    Ok((None, Reader::ts(kinds), planned))
}

/// What our playlists declare for good.
fn constants(config: &Config, loaded: &[Loaded], is_vod: bool) -> Constants {
    let playlists = || loaded.iter().map(|loaded| &loaded.playlist);
    let longest_s = |playlist: &shoal_playlist::MediaPlaylist| {
        let longest_us = playlist.segments.iter().map(|segment| segment.duration).max().unwrap_or(0);
        // As EXTINF is rounded. A segment that is much too long is a mistake, and no reason to slow everything down.
        playlist.target_duration_s.max((longest_us.saturating_add(500_000) / 1_000_000).min(60))
    };
    let target_duration_s = playlists().map(longest_s).max().unwrap_or(1).max(1);
    let target_us = i64::try_from(target_duration_s).unwrap_or(1) * 1_000_000;
    let part_targets = playlists().map(|playlist| {
        let can_block = playlist.server_control.as_ref().is_some_and(|control| control.can_block_reload);
        let target = playlist.part_target.and_then(|target| i64::try_from(target).ok());
        target.filter(|target| can_block && !is_vod && (1..=target_us).contains(target))
    });
    let part_targets: Option<Vec<i64>> = part_targets.collect();
    let part_target_us = part_targets.and_then(|targets| targets.into_iter().max());
    // Apple's rules: at least six segments.
    let window_us = (i64::from(config.window_ms) * 1_000).max(6 * target_us);
    let dvr_us = (i64::from(config.dvr_ms) * 1_000).max(window_us);
    // A recording is listed as a whole.
    let all_us = i64::MAX / 4;
    Constants {
        part_us: part_target_us.unwrap_or(target_us),
        part_target_us: part_target_us.unwrap_or(target_us),
        has_parts: part_target_us.is_some(),
        segment_us: target_us,
        target_duration_s,
        window_us: if is_vod && !config.has_dvr() { all_us } else { window_us },
        dvr_us: if is_vod { all_us } else { dvr_us },
    }
}

/// The segment of each rendition to begin with, so that all begin at the same moment: in a live stream three target
/// durations before its end, which is where players begin.
fn starts(loaded: &[Loaded], is_vod: bool) -> Vec<u64> {
    let lists: Vec<Vec<Listed>> = loaded.iter().map(|loaded| listed(&loaded.playlist)).collect();
    let lead = &lists[0];
    let enough_us = 3_000_000 * loaded[0].playlist.target_duration_s.max(1);
    let mut sum_us = 0_u64;
    let from_end = lead.iter().rev().take_while(|segment| {
        let is_needed = sum_us < enough_us;
        sum_us = sum_us.saturating_add(segment.duration_us);
        is_needed
    });
    let from_end = if is_vod { lead.len() } else { from_end.count() };
    let Some(start) = lead.get(lead.len() - from_end) else { return vec![0; loaded.len()] };
    let near = |list: &[Listed]| {
        let by_date = start.date_ms.and_then(|date_ms| {
            let off = |segment: &&Listed| segment.date_ms.map_or(u64::MAX, |own| own.abs_diff(date_ms));
            let nearest = list.iter().min_by_key(off)?;
            (off(&nearest) <= start.duration_us / 2_000).then_some(nearest.msn)
        });
        let by_number = || list.iter().find(|segment| segment.msn == start.msn).map(|segment| segment.msn);
        let by_place = || list.get(list.len().saturating_sub(from_end)).map(|segment| segment.msn);
        by_date.or_else(by_number).or_else(by_place).unwrap_or(0)
    };
    lists.iter().map(|list| near(list)).collect()
}

/// Dates for the first pieces where the upstream gives none: as if the lead's last piece had been made now.
fn dates_us(loaded: &[Loaded], starts: &[u64]) -> Vec<i64> {
    let lead = listed(&loaded[0].playlist);
    let behind = lead.iter().filter(|segment| segment.msn >= starts[0]);
    let behind_us = behind.fold(0_u64, |sum, segment| sum.saturating_add(segment.duration_us));
    let now_us = unix_ms().saturating_mul(1_000);
    let start_us = now_us.saturating_sub(i64::try_from(behind_us).unwrap_or(0));
    vec![start_us; starts.len()]
}

#[cfg(test)]
mod tests {
    use shoal_playlist::parse_media;

    use super::*;

    fn loaded(text: &str) -> Loaded {
        let text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n{text}");
        let url = "http://a.example/p.m3u8".parse().unwrap();
        Loaded { url, playlist: parse_media(&text).unwrap(), text }
    }

    fn segments(first: u64, count: u64, duration: &str, date: &str) -> Loaded {
        let date = if date.is_empty() { String::new() } else { format!("#EXT-X-PROGRAM-DATE-TIME:{date}\n") };
        let list: String =
            (first..first + count).map(|msn| format!("#EXTINF:{duration},\n{msn}\n")).collect();
        loaded(&format!("#EXT-X-MEDIA-SEQUENCE:{first}\n{date}{list}"))
    }

    #[test]
    fn live_begins_three_target_durations_before_the_end_and_a_recording_at_its_beginning() {
        let list = [segments(5, 10, "2", "")];
        assert_eq!(starts(&list, false), [12]);
        assert_eq!(starts(&list, true), [5]);
        assert_eq!(starts(&[segments(5, 2, "2", "")], false), [5]);
    }

    #[test]
    fn renditions_begin_together_by_date_or_number_or_place() {
        let date = "2026-01-01T00:00:00Z";
        let by_date = [segments(5, 10, "2", date), segments(105, 9, "2", "2026-01-01T00:00:02.020Z")];
        assert_eq!(starts(&by_date, false), [12, 111]);
        let by_number = [segments(5, 10, "2", ""), segments(6, 9, "2", "")];
        assert_eq!(starts(&by_number, false), [12, 12]);
        let by_place = [segments(5, 10, "2", ""), segments(105, 10, "2", "")];
        assert_eq!(starts(&by_place, false), [12, 112]);
    }

    #[test]
    fn parts_are_served_where_all_renditions_have_them() {
        let low_latency = loaded(
            "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=1.5\n#EXT-X-PART-INF:PART-TARGET=0.5\n#EXTINF:2,\na\n",
        );
        let plain = loaded("#EXTINF:2.6,\na\n");
        let config = Config::default();
        let both = constants(&config, &[low_latency.clone(), low_latency.clone()], false);
        assert!(both.has_parts && both.part_target_us == 500_000 && both.target_duration_s == 2);
        let mixed = constants(&config, &[low_latency, plain], false);
        assert!(!mixed.has_parts && mixed.target_duration_s == 3, "as its EXTINF is rounded");
    }
}
