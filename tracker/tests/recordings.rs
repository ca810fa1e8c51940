//! Those who watch a recording, on real sockets.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{SECRET, Server, Viewer};
use shoal_tracker::{Config, PeerPolicy, Tracker};
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
    let server = start(Config { viewer_token_secret: SECRET.into(), ..Config::default() }).await;
    let mut viewer = server.join_as(join(&recording())).await;
    assert!(server.tracker.set_stream_private("demo", true));
    while viewer.next().await.is_some() {}
    assert!(is_error(&try_join(&server, &recording()).await, ErrorCode::Refused));
    assert!(server.tracker.set_stream_private("demo", false));
    assert!(matches!(try_join(&server, &recording()).await, TrackerMessage::Welcome(_)));
}

/// Whether one who watches a recording keeps its place over a change by the operator.
async fn keeps_place(server: &Server, change: impl Fn(&Tracker)) -> bool {
    let mut viewer = server.join_as(join(&recording())).await;
    let before = viewer.welcome.clone().unwrap();
    change(&server.tracker);
    while viewer.next().await.is_some() {}
    let mut again = join(&recording());
    if let ViewerMessage::Join { resume, .. } = &mut again {
        *resume = Some(before.resume);
    }
    let after = server.join_as(again).await.welcome.unwrap();
    assert_eq!(before.swarm == after.swarm, before.peer == after.peer);
    before.peer == after.peer
}

#[tokio::test]
async fn places_in_a_recording_are_worth_nothing_once_it_was_private_or_addresses_are_hidden() {
    let server = start(Config {
        viewer_token_secret: SECRET.into(),
        turn_urls: vec!["turn:r".into()],
        turn_secret: "x".into(),
        ..Config::default()
    })
    .await;
    let private = |tracker: &Tracker| {
        assert!(tracker.set_stream_private("demo", true));
        assert!(tracker.set_stream_private("demo", false));
    };
    let policy = |policy| move |tracker: &Tracker| assert!(tracker.set_stream_policy("demo", policy));
    assert!(!keeps_place(&server, private).await);
    assert!(!keeps_place(&server, private).await, "nor the second time");
    assert!(!keeps_place(&server, policy(PeerPolicy::RelayOnly)).await);
    assert!(!keeps_place(&server, policy(PeerPolicy::DirectThenRelay)).await);
    assert!(keeps_place(&server, policy(PeerPolicy::Direct)).await, "control");
    server.tracker.stream_ended("demo");
    assert!(
        !keeps_place(&server, |tracker| assert!(!tracker.set_stream_policy("demo", PeerPolicy::RelayOnly)))
            .await
    );
}

#[tokio::test]
async fn the_swarm_of_a_deleted_recording_ends() {
    let server = Server::start(Config::default()).await;
    let exists = Arc::new(AtomicBool::new(true));
    let answer = Arc::clone(&exists);
    server.tracker.watch_recordings(move |_, _| answer.load(Ordering::Relaxed));
    let mut viewer = server.join_as(join(&recording())).await;
    exists.store(false, Ordering::Relaxed);
    viewer.until(|message| *message == TrackerMessage::Ended).await;
    assert!(is_error(&try_join(&server, &recording()).await, ErrorCode::UnknownStream));
}

#[tokio::test]
async fn who_asks_for_an_unknown_recording_comes_back_only_while_it_may_still_be_found() {
    let server = start(Config::default()).await;
    let unknown = format!("demo/{}", "03".repeat(16));
    let retry_ms = async |stream: &str| match try_join(&server, stream).await {
        TrackerMessage::Error { code: ErrorCode::UnknownStream, retry_after_ms, .. } => retry_after_ms,
        other => panic!("{other:?}"),
    };
    let advance = async |minutes: u64| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60 * minutes)).await;
        tokio::time::resume();
    };
    assert!(retry_ms(&unknown).await.is_some_and(|ms| ms < 15_000));
    advance(2).await;
    assert!(retry_ms(&unknown).await.is_some_and(|ms| ms >= 60_000));
    advance(8).await;
    assert_eq!(retry_ms(&unknown).await, None);
    assert!(retry_ms("else").await.is_some_and(|ms| ms < 5_000), "a stream may go live");
}
