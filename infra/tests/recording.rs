//! Recordings of the running program: kept when it is killed, closed when it is asked to end.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Serving, shoal, until};

/// A server that records into `directory`. Its signing key is another one at each start.
fn serve(directory: &Path) -> Serving {
    let mut command = shoal();
    command.env("SHOAL_SEGMENTER_RECORDING", "true").env("SHOAL_SEGMENTER_STORAGE", directory);
    command.env("SHOAL_SEGMENTER_STORAGE_FREE_BYTES_MIN", "0");
    Serving::start(&mut command)
}

/// The only recording, if it stands so.
fn recording(serving: &Serving, state: &str) -> Option<Value> {
    let answer = serving.get("/api/recordings");
    let list: Vec<Value> = serde_json::from_str(answer.split("\r\n\r\n").nth(1)?).ok()?;
    assert!(list.len() <= 1, "{list:?}");
    list.into_iter().find(|recording| recording["state"] == state)
}

/// The pictures that `ffprobe` decodes, without a complaint.
fn frames(url: &str) -> u64 {
    let arguments = ["-v", "warning", "-count_frames", "-select_streams", "v:0", "-show_entries"];
    let mut command = Command::new("ffprobe");
    command.args(arguments).args(["stream=nb_read_frames", "-of", "default=nw=1:nk=1", url]);
    let output = command.output().expect("ffprobe is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A stream of a playlist is listed twice: in its program and by itself.
    text.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn killed_server_has_its_recording_closed_and_playable_after_the_next_start() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let serving = serve(directory.path());
    let publisher = serving.publish("show", &[]);
    until("the recording", || recording(&serving, "recording").filter(|it| it["bytes"].as_u64() > Some(0)));
    let playlist = serving.playlist("show").expect("it is live");
    let listed = playlist.lines().filter(|line| line.starts_with("#EXTINF")).count() as u64;
    serving.process.signal("KILL");
    drop((serving, publisher));

    let serving = serve(directory.path());
    let closed = until("the recording to be closed", || recording(&serving, "closed"));
    // A segment may have fewer pictures than its two seconds at 30: the machine may be too slow for the publisher.
    let frames_min = listed * 10;
    for url in ["url", "mp4_url"] {
        let url = serving.url(closed[url].as_str().expect("a closed recording has it"));
        let frames = frames(&url);
        assert!(frames >= frames_min, "{frames} frames of {listed} segments");
    }
}

#[test]
fn server_that_is_asked_to_end_closes_its_recordings_first() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let serving = serve(directory.path());
    let _publisher = serving.publish("show", &[]);
    let epoch = until("the recording", || recording(&serving, "recording"))["epoch"].clone();
    serving.process.stop();
    let header = directory.path().join("show").join(epoch.as_str().expect("a name")).join("recording.json");
    let header: Value = serde_json::from_slice(&std::fs::read(header).expect("it is there")).expect("JSON");
    assert_eq!(header["state"], "closed", "{header}");
}
