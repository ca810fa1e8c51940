//! Those who watch a recording, on real sockets.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use common::{Server, Viewer};
use shoal_tracker::Config;
use shoal_tracker_protocol::{ErrorCode, TrackerMessage, ViewerMessage};

fn join(stream: &str) -> ViewerMessage {
    ViewerMessage::Join {
        version: 1,
        stream: stream.into(),
        token: None,
        resume: None,
        shares: true,
        renditions: vec![0],
    }
}

fn recording() -> String {
    format!("demo/{}", "02".repeat(16))
}

async fn start(config: Config) -> Server {
    let server = Server::live(config).await;
    server.tracker.watch_recordings(|stream, epoch| stream == "demo" && epoch == [2; 16]);
    server
}

/// Joins and returns what came first.
async fn try_join(server: &Server, stream: &str) -> TrackerMessage {
    let mut viewer = server.connect(&[]).await.unwrap();
    viewer.say(&join(stream)).await;
    viewer.next().await.unwrap()
}

fn is_error(message: &TrackerMessage, wanted: ErrorCode) -> bool {
    matches!(message, TrackerMessage::Error { code, .. } if *code == wanted)
}

#[tokio::test]
async fn who_watches_the_same_recording_is_introduced_and_nobody_else() {
    let server = start(Config::default()).await;
    let _live = server.join().await;
    let mut viewers: Vec<Viewer> =
        vec![server.join_as(join(&recording())).await, server.join_as(join(&recording())).await];
    assert_eq!((server.tracker.viewers("demo"), server.tracker.viewers(&recording())), (1, 2));
    let peers = [viewers[0].peer(), viewers[1].peer()];
    for (at, viewer) in viewers.iter_mut().enumerate() {
        let met = viewer.until(|message| matches!(message, TrackerMessage::Introduce { .. })).await;
        let TrackerMessage::Introduce { peer, .. } = met else { unreachable!() };
        assert_eq!(peer, peers[1 - at]);
    }
    for unknown in
        [format!("demo/{}", "03".repeat(16)), "demo/".to_owned(), recording().replace("demo", "else")]
    {
        assert!(is_error(&try_join(&server, &unknown).await, ErrorCode::UnknownStream), "{unknown}");
    }
}

#[tokio::test]
async fn a_recording_is_as_private_as_its_stream_and_viewers_join_anew_when_that_changes() {
    let secret = "a secret of the broadcaster's back end".to_owned();
    let server = start(Config { viewer_token_secret: secret, ..Config::default() }).await;
    let mut viewer = server.join_as(join(&recording())).await;
    assert!(server.tracker.set_stream_private("demo", true));
    while viewer.next().await.is_some() {}
    assert!(is_error(&try_join(&server, &recording()).await, ErrorCode::Refused));
    assert!(server.tracker.set_stream_private("demo", false));
    assert!(matches!(try_join(&server, &recording()).await, TrackerMessage::Welcome(_)));
}
