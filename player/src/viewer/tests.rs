//! A viewer without its loop: the test plays tracker, origin and clock.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
use shoal_digest::{Epoch, OriginKey, Record};
use shoal_tracker_protocol::{Piece, TrackerMessage, Welcome};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::source::SwarmInfo;

const EPOCH: Epoch = Epoch([7; 16]);
const PIECE_MS: u32 = 500;
const START_MS: u64 = 1_700_000_000_000;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn part(part: u16) -> PieceId {
    PieceId { rendition: 0, msn: 4, part }
}

fn media(piece: PieceId) -> Vec<u8> {
    (0..30_000).map(|at| (at % 251) as u8 ^ piece.part as u8).collect()
}

fn record(piece: PieceId) -> Record {
    let start_ms = START_MS + u64::from(PIECE_MS) * u64::from(piece.part);
    Record::of(EPOCH, piece, false, piece.part == 0, start_ms, PIECE_MS, &media(piece))
}

/// What the tracker says of a piece.
fn notice(piece: PieceId, uri: &str, record: &[u8]) -> TrackerEvent {
    let piece = Piece { rendition: piece.rendition, msn: piece.msn, part: piece.part };
    let message = TrackerMessage::Published { piece, uri: uri.into(), record: BASE64.encode(record) };
    TrackerEvent::Message(Box::new(message))
}

fn uri(piece: PieceId) -> String {
    format!("e/v0/part-{}-{}.m4s", piece.msn, piece.part)
}

/// A viewer of a stream at this port that the tracker has taken in.
struct Scene {
    viewer: Viewer,
    outlets: Outlets,
    _outgoing: mpsc::Receiver<ViewerMessage>,
}

impl Scene {
    fn new(mode: Mode, port: u16) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = Url::parse(&format!("http://127.0.0.1:{port}/live/demo/index.m3u8")).expect("a URL");
        let mut options = Options::new(base.clone());
        options.mode = mode;
        let key = OriginKey::of(&key());
        let swarm = SwarmInfo {
            key: key.clone(),
            epoch: EPOCH,
            tracker: Url::parse("ws://127.0.0.1:1/").expect("a URL"),
            stream: "demo".into(),
        };
        let renditions = vec![base.join("e/v0/playlist.m3u8").expect("a URL")];
        let stream = Stream { renditions, played: vec![0], swarm: Some(swarm) };
        let (inbox, outlets) = Inbox::new();
        let mut viewer = Viewer::new(options, Client::new(), stream, inbox);
        let (to_tracker, outgoing) = mpsc::channel(EVENTS_MAX);
        viewer.swarm = Some(Swarm {
            peer: Peer::new(Config::new(EPOCH), 1),
            to_tracker,
            socket: tokio::spawn(async {}),
            connection: ConnectionOptions {
                ice_servers: Vec::new(),
                relay_only: false,
                loopback: true,
                identity: None,
                connect_timeout: Duration::from_secs(1),
            },
            sharing: true,
        });
        viewer.input(&Input::Playing { renditions: &[0] }, None);
        let welcome: Welcome = serde_json::from_str(
            r#"{"version":1,"peer":7,"swarm":"s","resume":"r","sharing":true,"ice_servers":[],"neighbors_max":4,
                "upload_ratio_max_percent":200,"report_interval_ms":5000,"silence_max_ms":15000,"recent":[]}"#,
        )
        .expect("a welcome");
        viewer.handle_tracker(TrackerEvent::Message(Box::new(TrackerMessage::Welcome(welcome))));
        Self { viewer, outlets, _outgoing: outgoing }
    }

    fn publish(&mut self, piece: PieceId) {
        self.viewer.handle_tracker(notice(piece, &uri(piece), &record(piece).sign(&key())));
    }

    /// Lets the viewer live until something is true, for ten seconds at most.
    async fn until(&mut self, what: &str, is_true: impl Fn(&Viewer) -> bool) {
        let (viewer, outlets) = (&mut self.viewer, &mut self.outlets);
        let mut tick = tokio::time::interval(TICK);
        let give_up = Instant::now() + Duration::from_secs(10);
        while !is_true(viewer) {
            assert!(Instant::now() < give_up, "waited in vain for {what}");
            let wake = viewer.wake_at();
            tokio::select! {
                _ = tick.tick() => viewer.handle_tick(),
                () = sleep_until(wake.into()) => viewer.input(&Input::Wake, None),
                Some(event) = outlets.origin.recv() => viewer.handle_origin(event),
            }
        }
    }
}

/// An origin that answers each request with the same piece.
async fn origin_of(piece: PieceId) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let body = media(piece);
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = socket.write_all(&[head.into_bytes(), body].concat()).await;
        }
    });
    port
}

#[tokio::test]
async fn a_helper_gets_what_its_parent_does_not_push() {
    let port = origin_of(part(0)).await;
    let mut scene = Scene::new(Mode::Seed, port);
    scene.viewer.input(&Input::NeighborConnected { peer: 9, rtt: None }, None);
    let place = shoal_swarm::Place {
        stripe: 0,
        is_root: false,
        parent: Some(9),
        children: &[],
        expected: shoal_swarm::Span::ZERO,
    };
    scene.viewer.input(&Input::Plan { rendition: 0, stripes: 1, places: &[place] }, None);
    scene.publish(part(0));
    scene.until("the piece", |viewer| viewer.store.complete_length(part(0)).is_some()).await;
    let swarm = scene.viewer.snapshot().swarm;
    assert_eq!((swarm.pieces, swarm.peer_bytes), (1, 0), "{swarm:?}");
}

#[tokio::test]
async fn a_helper_without_a_tracker_keeps_up_with_what_its_neighbors_tell() {
    let mut scene = Scene::new(Mode::Seed, 1);
    scene.publish(part(0));
    scene.until("the first playhead", |viewer| viewer.position_ms > 0).await;
    scene.viewer.handle_tracker(TrackerEvent::Lost);
    for number in 1..20 {
        let bytes = record(part(number)).sign(&key());
        scene.viewer.input(&Input::RecordBytes { bytes: &bytes }, None);
    }
    let end_ms = START_MS + 20 * u64::from(PIECE_MS);
    scene.until("the newest", |viewer| viewer.position_ms == end_ms - SEED_BEHIND_MS).await;
}

#[tokio::test]
async fn a_tracker_cannot_send_a_helper_elsewhere() {
    let mut scene = Scene::new(Mode::Seed, 1);
    let bytes = record(part(0)).sign(&key());
    for elsewhere in
        ["http://10.0.0.1/part-4-0.m4s", "//10.0.0.1/e/v0/part-4-0.m4s", "/api/tracker", "e/v1/part-4-0.m4s"]
    {
        scene.viewer.handle_tracker(notice(part(0), elsewhere, &bytes));
        assert_eq!(scene.viewer.urls.len(), 0, "{elsewhere}");
    }
    // The control.
    scene.publish(part(0));
    let url = scene.viewer.url(part(0)).expect("it is the stream's own");
    assert_eq!(url.as_str(), "http://127.0.0.1:1/live/demo/e/v0/part-4-0.m4s");
}

#[tokio::test]
async fn what_the_origin_has_not_signed_moves_no_playhead_and_names_no_url() {
    let mut scene = Scene::new(Mode::Seed, 1);
    let far = Record { start_ms: START_MS * 2, ..record(part(0)) };
    let others = SigningKey::from_bytes(&[4; 32]);
    let of_another_time = Record { epoch: Epoch([8; 16]), ..far.clone() };
    for (piece, bytes) in [
        (part(0), far.sign(&others)),
        (part(0), of_another_time.sign(&key())),
        // The record is the origin's, of another piece than the tracker says.
        (PieceId { msn: u64::MAX, ..part(0) }, far.sign(&key())),
    ] {
        scene.viewer.handle_tracker(notice(piece, &uri(piece), &bytes));
        assert_eq!((scene.viewer.newest_ms, scene.viewer.urls.len()), (0, 0), "{piece:?}");
    }
    let refused = scene.viewer.snapshot().swarm.records_refused;
    assert_eq!(refused, 2, "what was forged, and what is of another time");
}

fn loaded(piece: PieceId) -> OriginEvent {
    OriginEvent::Loaded { piece, bytes: Some(media(piece).into()), took: Duration::from_millis(20) }
}

#[tokio::test]
async fn piece_that_was_loaded_twice_before_its_record_is_kept() {
    let mut scene = Scene::new(Mode::Watch, 1);
    scene.viewer.handle_origin(loaded(part(0)));
    scene.viewer.handle_origin(loaded(part(0)));
    scene.publish(part(0));
    let length = media(part(0)).len() as u64;
    assert_eq!(scene.viewer.store.complete_length(part(0)), Some(length));
    let snapshot = scene.viewer.snapshot();
    assert_eq!(snapshot.swarm.store_bytes, length, "the core believes so, too");
    // Each load counts once.
    assert_eq!((snapshot.swarm.origin_bytes, snapshot.direct_bytes), (length, length));
}

#[test]
fn only_this_machine_is_loopback() {
    let is_loopback = |url: &str| super::is_loopback(&Url::parse(url).expect("a URL"));
    for url in [
        "http://localhost:8080/live/a/index.m3u8",
        "http://127.0.0.1/",
        "https://127.9.9.9/",
        "http://[::1]:8080/",
    ] {
        assert!(is_loopback(url), "{url}");
    }
    for url in [
        "http://192.168.0.1/",
        "http://localhost.example.org/",
        "http://127.0.0.1.example.org/",
        "http://[::2]/",
    ] {
        assert!(!is_loopback(url), "{url}");
    }
}
