//! Smaller renditions that are encoded here, from real encoders to the real `ffprobe`.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{AUDIO, Audio, SECOND, VIDEO, Video, World, push, until};
use shoal_playlist::lint::{
    Fetched, Fragment, Init, lint_fragments, lint_media, lint_multivariant, lint_renditions,
    promises_independence,
};
use shoal_playlist::{MediaPlaylist, parse_media};
use shoal_segmenter::{
    Config, Event, LadderRung, LadderState, LadderStatus, Publication, RecordingState, State,
};

const STREAM: &str = "show";

fn ladder(rungs: &[&str]) -> Vec<LadderRung> {
    rungs.iter().map(|rung| rung.parse().unwrap()).collect()
}

impl World {
    fn ladder(&self) -> Vec<LadderStatus> {
        self.streams.list().first().map_or_else(Vec::new, |info| info.ladder.clone())
    }

    /// Folders and texts of the media playlists in the order of their numbers, and the multivariant playlist.
    async fn playlists(&self) -> (Vec<(String, String)>, String) {
        let epoch = self.streams.stats()[0].epoch.clone();
        let mut playlists = Vec::new();
        for info in &self.streams.list()[0].renditions {
            let folder = format!("/live/{STREAM}/{epoch}/{}", info.name);
            let text = self.text(&format!("{folder}/playlist.m3u8")).await;
            playlists.push((folder, text));
        }
        (playlists, self.text(&format!("/live/{STREAM}/index.m3u8")).await)
    }

    /// Demands that the lint finds nothing in playlists and media.
    async fn lint(&self) {
        let (playlists, multivariant) = self.playlists().await;
        assert_eq!(lint_multivariant(&multivariant), [], "{multivariant}");
        for (folder, text) in &playlists {
            assert_eq!(lint_media(text), [], "{text}");
            let playlist = parse_media(text).unwrap();
            let mut inits = Vec::new();
            for map in playlist.segments.iter().filter_map(|segment| segment.head.map.as_ref()) {
                let bytes = self.get(&format!("{folder}/{}", map.uri)).await;
                inits.push((map.uri.clone(), Init::read(&bytes).expect("an initialization section")));
            }
            let mut files: BTreeMap<_, _> =
                inits.iter().map(|(uri, init)| (uri.clone(), Fetched::Init(Some(init)))).collect();
            for segment in playlist.segments.iter().filter(|segment| !segment.is_gap) {
                let parts = segment.parts.iter().filter(|part| !part.is_gap).map(|part| &part.uri);
                for uri in parts.chain([&segment.uri]) {
                    let bytes = self.get(&format!("{folder}/{uri}")).await;
                    let fragment = Fragment::read(&bytes, &inits[0].1);
                    files.insert(uri.clone(), Fetched::Fragment(fragment, bytes.len() as u64));
                }
            }
            assert_eq!(lint_fragments(text, &files, promises_independence(&multivariant)), [], "{text}");
        }
        let texts: Vec<_> = playlists.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(lint_renditions(&texts), []);
    }
}

/// Pushes frames one by one, as fast as they are worked on.
async fn publish(publication: &Publication, video: &mut Video, mut audio: Option<&mut Audio>, frames: usize) {
    for _ in 0..frames {
        while let Some(audio) = audio.as_mut().filter(|audio| audio.next_us() < video.next_us()) {
            push(publication, audio.next());
        }
        video.next(false).into_iter().for_each(|input| push(publication, input));
        until("the ladder", || publication.is_idle()).await;
    }
}

/// A playlist without what must differ: where the other renditions are, and whether a part has a keyframe that the
/// source has besides those at the start of segments.
fn comparable(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with("#EXT-X-RENDITION-REPORT"));
    lines.map(|line| line.trim_end_matches(",INDEPENDENT=YES")).collect()
}

/// The decode time of a part.
fn decode_time(part: &[u8]) -> u64 {
    let at = part.windows(4).position(|name| name == b"tfdt").unwrap();
    u64::from_be_bytes(part[at + 8..at + 16].try_into().unwrap())
}

fn all_parts(playlist: &MediaPlaylist) -> impl Iterator<Item = &str> {
    playlist.segments.iter().flat_map(|segment| &segment.parts).map(|part| part.uri.as_str())
}

/// The frames that `ffprobe` decodes of a playlist's picture, and the picture's size.
async fn decode(url: String) -> String {
    let show = "stream=codec_name,width,height,nb_read_frames";
    let arguments = ["-v", "warning", "-count_frames", "-select_streams", "v", "-show_entries", show, "-of"];
    let run =
        move || Command::new("ffprobe").args(arguments).args(["csv=p=0", &url]).stdin(Stdio::null()).output();
    let output = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rungs_have_the_source_s_segments_parts_and_times_and_each_decodes() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::new(Config {
        ladder: ladder(&["72", "120:200", "180"]),
        recording: true,
        storage: directory.path().to_str().unwrap().to_owned(),
        storage_free_bytes_min: 0,
        ..Config::default()
    })
    .await;
    let mut events = world.streams.subscribe();
    let publication = world.streams.publish(STREAM).unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    // Not what segments are meant to have: their ends are the source's all the same.
    video.rhythm = Some(50);
    push(&publication, Audio::format());
    publish(&publication, &mut video, Some(&mut audio), 310).await;

    let names: Vec<_> =
        world.streams.list()[0].renditions.iter().map(|info| (info.name.clone(), info.resolution)).collect();
    let expected =
        [("v0", Some((320, 180))), ("v1", Some((214, 120))), ("v2", Some((128, 72))), ("a0", None)];
    assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
    let states: Vec<_> = world.ladder().into_iter().map(|status| (status.rendition, status.state)).collect();
    let expected = [("", LadderState::Refused), ("v1", LadderState::Running), ("v2", LadderState::Running)];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
    assert_eq!(world.ladder()[0].reason, "the publisher's picture is not larger");

    world.lint().await;
    let (playlists, multivariant) = world.playlists().await;
    for needed in ["RESOLUTION=214x120", "RESOLUTION=128x72", "avc1.4d", "FRAME-RATE=30"] {
        assert!(multivariant.contains(needed), "{needed}: {multivariant}");
    }
    let source = parse_media(&playlists[0].1).unwrap();
    assert!(source.segments.len() >= 5, "{}", playlists[0].1);
    for (folder, text) in &playlists[1..3] {
        assert_eq!(comparable(text), comparable(&playlists[0].1), "{folder}");
        for uri in all_parts(&source) {
            let [ours, theirs] = [&playlists[0].0, folder].map(|folder| format!("{folder}/{uri}"));
            let [ours, theirs] = [world.get(&ours).await, world.get(&theirs).await];
            assert_eq!(decode_time(&ours), decode_time(&theirs), "{folder}/{uri}");
        }
    }
    // Every piece of every rung has its record.
    let mut records = BTreeMap::<u8, u32>::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Published(part) = event {
            let record = shoal_digest::Record::verify(&part.record, &world.streams.origin_key()).unwrap();
            assert_eq!((record.piece, record.length), (part.piece, part.length));
            *records.entry(part.piece.rendition).or_default() += 1;
        }
    }
    assert_eq!(records.len(), 4, "{records:?}");
    assert!(records[&1] > 18 && (records[&0], records[&0]) == (records[&1], records[&2]), "{records:?}");

    publication.end();
    until("the end", || world.streams.list().first().is_some_and(|info| info.state == State::Ended)).await;
    for (folder, size) in playlists.iter().map(|(folder, _)| folder).zip(["320,180", "214,120", "128,72"]) {
        let url = format!("{}{folder}/playlist.m3u8", world.base);
        assert_eq!(decode(url).await, format!("h264,{size},310"));
    }
    let is_closed = || world.streams.recordings().first().is_some_and(|r| r.state == RecordingState::Closed);
    until("the recording", is_closed).await;
    let recording = world.streams.recordings().remove(0);
    assert_eq!(recording.renditions, ["v0", "v1", "v2", "a0"]);
    let index = recording.url.unwrap();
    assert_eq!(world.text(&index).await.matches("#EXT-X-STREAM-INF").count(), 3);
    let smallest = format!("{}{}", world.base, index.replace("index", "v2/playlist"));
    assert_eq!(decode(smallest).await, "h264,128,72,310");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_size_and_a_returning_publisher_are_cut_in_all_rungs() {
    let config = Config { ladder: ladder(&["120"]), part_ms: 200, segment_ms: 400, ..Config::default() };
    let world = World::new(Config { window_ms: 60_000, ..config }).await;
    let publication = world.streams.publish(STREAM).unwrap();
    publication.expect_tracks(&[VIDEO]);
    let mut video = Video::new(VIDEO, 320, 180);
    video.rhythm = Some(12);
    publish(&publication, &mut video, None, 40).await;
    let mut upright = Video::new(VIDEO, 180, 320);
    upright.rhythm = Some(12);
    upright.skip_to(&video);
    publish(&publication, &mut upright, None, 40).await;
    drop(publication);
    until("its absence", || world.streams.list()[0].state == State::Away).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !world.playlists().await.0[1].1.contains("#EXT-X-GAP") {
        assert!(Instant::now() < deadline, "no gap");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let publication = world.streams.publish(STREAM).unwrap();
    publication.expect_tracks(&[VIDEO]);
    let mut again = Video::new(VIDEO, 192, 160);
    again.rhythm = Some(12);
    publish(&publication, &mut again, None, 40).await;
    world.lint().await;
    let (playlists, _) = world.playlists().await;
    assert_eq!(comparable(&playlists[1].1), comparable(&playlists[0].1));
    let rung = parse_media(&playlists[1].1).unwrap();
    assert_eq!(rung.segments.iter().filter(|segment| segment.head.is_discontinuity).count(), 2);
    assert_eq!(world.streams.list()[0].renditions[1].resolution, Some((144, 120)));
    // Each size decodes, with its own initialization section.
    let mut init = String::new();
    let mut sizes = Vec::new();
    for segment in rung.segments.iter().filter(|segment| !segment.is_gap) {
        let Some(map) = &segment.head.map else { continue };
        assert_ne!(std::mem::replace(&mut init, map.uri.clone()), map.uri);
        let folder = &playlists[1].0;
        let files = [
            world.get(&format!("{folder}/{init}")).await,
            world.get(&format!("{folder}/{}", segment.uri)).await,
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), files.concat()).unwrap();
        sizes.push(decode(file.path().to_str().unwrap().to_owned()).await);
    }
    assert_eq!(sizes, ["h264,214,120,12", "h264,120,214,20", "h264,144,120,12"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_has_no_room_for_is_refused_in_words_and_smaller_rungs_are_kept() {
    let config =
        Config { ladder: ladder(&["360", "180", "other=90"]), transcodes_max: 1, ..Config::default() };
    let world = World::new(config).await;
    let publish_one = async |name: &str| {
        let publication = world.streams.publish(name).unwrap();
        publication.expect_tracks(&[VIDEO]);
        let mut video = Video::new(VIDEO, 1280, 720);
        video.rhythm = Some(60);
        publish(&publication, &mut video, None, 3).await;
        publication
    };
    let rungs = |name: &str| {
        let info = world.streams.list().into_iter().find(|info| info.name == name).unwrap();
        info.ladder.into_iter().map(|status| (status.height, status.state, status.reason)).collect::<Vec<_>>()
    };
    // Decoding takes 0.33; the rungs 0.25 and 0.06.
    let first = publish_one("first").await;
    let running = |height| (height, LadderState::Running, String::new());
    assert_eq!(rungs("first"), [running(360), running(180)]);
    let second = publish_one("second").await;
    let reason = |needs: &str, free: &str| {
        format!(
            "the machine has no room for its encoder: it takes {needs} transcodings, \
             and {free} of 1.00 are free (segmenter.transcodes_max)"
        )
    };
    let refused = |height, needs: &str, free: &str| (height, LadderState::Refused, reason(needs, free));
    assert_eq!(rungs("second"), [refused(360, "0.58", "0.35"), refused(180, "0.40", "0.35")]);
    let renditions = |name: &str| {
        world.streams.list().into_iter().find(|info| info.name == name).unwrap().renditions.len()
    };
    assert_eq!((renditions("first"), renditions("second")), (3, 1), "the stream itself is not refused");
    first.end();
    until("its end", || world.streams.list().iter().any(|info| info.state == State::Ended)).await;
    let other = publish_one("other").await;
    assert_eq!(rungs("other"), [running(90)], "the first one's going makes room");
    drop((second, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_with_layers_of_its_own_gets_no_ladder() {
    let world = World::new(Config { ladder: ladder(&["72"]), ..Config::default() }).await;
    let publication = world.streams.publish(STREAM).unwrap();
    publication.expect_tracks(&[VIDEO, SECOND]);
    for (track, width, height) in [(SECOND, 160, 90), (VIDEO, 320, 180)] {
        Video::new(track, width, height).next(true).into_iter().for_each(|input| push(&publication, input));
    }
    until("the stream", || !world.ladder().is_empty()).await;
    assert_eq!(world.ladder()[0].reason, "the publisher sends smaller layers of its own");
    assert_eq!(world.streams.list()[0].renditions.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rung_that_cannot_keep_up_ends_and_the_source_loses_nothing() {
    let config = Config { ladder: ladder(&["480", "360"]), transcodes_max: 8, ..Config::default() };
    let world = World::new(Config { stream_bytes_max: 1 << 30, ..config }).await;
    let mut events = world.streams.subscribe();
    let publication = world.streams.publish(STREAM).unwrap();
    publication.expect_tracks(&[VIDEO]);
    let mut video = Video::new(VIDEO, 1280, 720);
    video.rhythm = Some(60);
    let inputs: Vec<_> = (0..60).flat_map(|_| video.next(false)).collect();
    // The same two seconds over and over, far faster than any machine encodes them.
    let (mut pushed_ms, mut source_ms) = (0, 0);
    while world.ladder().first().is_none_or(|largest| largest.state == LadderState::Running) {
        inputs.iter().for_each(|input| push(&publication, common::later(input, pushed_ms * 1000)));
        pushed_ms += 2_000;
        assert!(pushed_ms < 1_000_000, "never told");
        // The source's own worker keeps up.
        while source_ms + 8_000 < pushed_ms {
            if let Event::Published(part) = events.recv().await.unwrap() {
                source_ms += if part.piece.rendition == 0 { i64::from(part.duration_ms) } else { 0 };
            }
        }
    }
    let ladder = world.ladder();
    assert_eq!(ladder[0].height, 480, "the largest goes first");
    assert_eq!(ladder[0].reason, "the machine could not keep up with encoding it");
    until("the rest", || publication.is_idle()).await;
    let (playlists, multivariant) = world.playlists().await;
    // Still named: the numbers of the renditions behind it follow from its place.
    assert!(multivariant.contains("/v1/"), "{multivariant}");
    let [source, ended] = [0, 1].map(|index: usize| parse_media(&playlists[index].1).unwrap());
    assert!(source.segments.iter().all(|segment| !segment.is_gap && segment.duration == 2_000_000));
    assert_eq!(ended.media_sequence, source.media_sequence);
    assert_eq!(ended.segments.len(), source.segments.len());
    world.lint().await;
}
