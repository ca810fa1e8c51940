//! Viewers on real sockets against the real router.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::time::Duration;

use common::{PATIENCE, Server, Viewer};
use futures::{SinkExt as _, StreamExt as _};
use shoal_tracker::Config;
use shoal_tracker_protocol::{ErrorCode, Report, Signal, TrackerMessage, ViewerMessage};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

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

fn resume(token: String) -> ViewerMessage {
    ViewerMessage::Join {
        version: 1,
        stream: "demo".into(),
        token: None,
        resume: Some(token),
        shares: true,
        renditions: vec![0],
    }
}

async fn introduction(viewer: &mut Viewer) -> (u32, bool) {
    match viewer.until(|message| matches!(message, TrackerMessage::Introduce { .. })).await {
        TrackerMessage::Introduce { peer, offers } => (peer, offers),
        _ => unreachable!(),
    }
}

fn candidate(address: &str) -> Signal {
    Signal::Candidate {
        candidate: format!("candidate:1 1 udp 2122260223 {address} 50123 typ host"),
        mid: Some("0".into()),
    }
}

#[tokio::test]
async fn two_viewers_meet_signal_connect_and_one_feeds_the_other() {
    let server = Server::live(Config::default()).await;
    let (mut one, mut two) = (server.join().await, server.join().await);
    let (peer_of_one, one_offers) = introduction(&mut one).await;
    let (peer_of_two, two_offers) = introduction(&mut two).await;
    assert_eq!((peer_of_one, peer_of_two), (two.peer(), one.peer()));
    assert_ne!(one_offers, two_offers, "exactly one makes the offer");
    let (offerer, answerer) = if one_offers { (&mut one, &mut two) } else { (&mut two, &mut one) };

    let sdp = "v=0\r\na=candidate:1 1 udp 1 127.0.0.1 5000 typ host\r\na=candidate:2 1 tcp 1 1.2.3.4 9 typ host\r\n";
    let offer = Signal::Offer { sdp: sdp.into() };
    offerer.say(&ViewerMessage::Signal { to: answerer.peer(), data: offer }).await;
    let received = answerer.until(|message| matches!(message, TrackerMessage::Signal { .. })).await;
    let passed = "v=0\r\na=candidate:1 1 udp 1 127.0.0.1 5000 typ host\r\n";
    let expected =
        TrackerMessage::Signal { from: offerer.peer(), data: Signal::Offer { sdp: passed.into() } };
    assert_eq!(received, expected, "on one machine loopback passes, strangers' addresses don't");

    answerer.say(&ViewerMessage::Signal { to: offerer.peer(), data: candidate("192.168.1.5") }).await;
    let received = offerer.until(|message| matches!(message, TrackerMessage::Signal { .. })).await;
    assert_eq!(received, TrackerMessage::Signal { from: answerer.peer(), data: candidate("192.168.1.5") });

    let (one_peer, two_peer) = (one.peer(), two.peer());
    one.say(&ViewerMessage::Connected { peer: two_peer, rtt_ms: 3 }).await;
    two.say(&ViewerMessage::Connected { peer: one_peer, rtt_ms: 3 }).await;
    let is_fed = |message: &TrackerMessage, by| match message {
        TrackerMessage::Plan { places, .. } => places.iter().any(|place| place.parent == Some(by)),
        _ => false,
    };
    tokio::select! {
        _ = one.until(|message| is_fed(message, two_peer)) => {}
        _ = two.until(|message| is_fed(message, one_peer)) => {}
    }
}

#[tokio::test]
async fn pieces_reach_everybody_and_the_last_ones_whoever_comes_later() {
    let mut server = Server::live(Config::default()).await;
    let mut early = server.join().await;
    server.publish();
    let is_piece = |message: &TrackerMessage, number| matches!(message, TrackerMessage::Published { piece, .. } if piece.msn == number);
    early.until(|message| is_piece(message, 1)).await;
    let mut late = server.join().await;
    late.until(|message| is_piece(message, 0)).await;
    late.until(|message| is_piece(message, 1)).await;
    assert_eq!(server.tracker.viewers("demo"), 2);
    assert_eq!(server.tracker.viewers("other"), 0);
}

#[tokio::test]
async fn what_is_no_join_is_refused_in_words_and_the_connection_is_closed() {
    let server = Server::live(Config { join_within_ms: 300, ..Config::default() }).await;
    let old = ViewerMessage::Join {
        version: 99,
        stream: "demo".into(),
        token: None,
        resume: None,
        shares: true,
        renditions: Vec::new(),
    };
    let cases = [
        (serde_json::to_string(&join("nobody")).unwrap(), ErrorCode::UnknownStream),
        (serde_json::to_string(&old).unwrap(), ErrorCode::Version),
        (r#"{"type":"ping"}"#.to_owned(), ErrorCode::OutOfOrder),
        ("{".to_owned(), ErrorCode::Malformed),
        ("[".repeat(20_000), ErrorCode::Malformed),
    ];
    for (text, expected) in cases {
        let mut viewer = server.connect(&[]).await.unwrap();
        viewer.say_text(&text).await;
        let error = viewer.next().await;
        assert!(
            matches!(error, Some(TrackerMessage::Error { code, fatal: true, .. }) if code == expected),
            "{error:?} instead of {expected:?}"
        );
        assert_eq!(viewer.close_code().await, 1000);
    }
    let mut mute = server.connect(&[]).await.unwrap();
    assert!(matches!(mute.next().await, Some(TrackerMessage::Error { code: ErrorCode::OutOfOrder, .. })));
    let mut binary = server.connect(&[]).await.unwrap();
    binary.socket.send(Message::binary(vec![0; 10])).await.unwrap();
    assert!(matches!(binary.next().await, Some(TrackerMessage::Error { code: ErrorCode::Malformed, .. })));
    let mut giant = server.connect(&[]).await.unwrap();
    giant.socket.send(Message::text("x".repeat(100_000))).await.unwrap();
    assert_eq!(giant.next().await, None, "a frame over the limit ends the connection");
    // None of this hurts others.
    server.join().await;
}

#[tokio::test]
async fn nonsense_from_a_viewer_is_answered_and_then_ends_its_connection_only() {
    let server = Server::live(Config::default()).await;
    let (mut good, mut bad) = (server.join().await, server.join().await);
    bad.say_text(r#"{"type":"nonsense"}"#).await;
    let is_malformed = |message: &TrackerMessage| {
        matches!(message, TrackerMessage::Error { code: ErrorCode::Malformed, fatal: false, .. })
    };
    bad.until(is_malformed).await;
    for _ in 0..60 {
        if bad.socket.send(Message::text("{")).await.is_err() {
            break;
        }
    }
    while bad.next().await.is_some() {}
    server.eventually("the bad one is gone", |tracker| tracker.viewers("demo") == 1).await;
    good.say(&ViewerMessage::Ping).await;
    good.until(|message| *message == TrackerMessage::Pong).await;
}

#[tokio::test]
async fn nonsense_between_good_messages_ends_a_connection_too() {
    let server = Server::live(Config::default()).await;
    let mut viewer = server.join().await;
    let ping = serde_json::to_string(&ViewerMessage::Ping).unwrap();
    for text in ["{", "[]", &ping, "no"].repeat(40) {
        if viewer.socket.send(Message::text(text)).await.is_err() {
            break;
        }
    }
    while viewer.next().await.is_some() {}
    server.eventually("it is gone", |tracker| tracker.viewers("demo") == 0).await;
}

#[tokio::test]
async fn nonsense_before_the_welcome_ends_a_connection_too() {
    let server = Server::live(Config::default()).await;
    let mut viewer = server.connect(&[]).await.unwrap();
    // In one write, and on one thread: the tracker reads it all before the swarm has answered the join. As many strikes as
    // end a connection and none more, so that those before the welcome must have counted.
    viewer.socket.feed(Message::text(serde_json::to_string(&join("demo")).unwrap())).await.unwrap();
    for _ in 0..51 {
        viewer.socket.feed(Message::text("{")).await.unwrap();
    }
    viewer.socket.flush().await.unwrap();
    assert_eq!(viewer.close_code().await, 1000);
    server.eventually("it is gone", |tracker| tracker.viewers("demo") == 0).await;
}

#[tokio::test]
async fn nobody_signals_to_a_viewer_without_an_introduction() {
    let server = Server::live(Config { consent_required: true, ..Config::default() }).await;
    let (mut victim, mut stranger) = (server.join().await, server.join().await);
    let signal = ViewerMessage::Signal { to: victim.peer(), data: candidate("127.0.0.1") };
    stranger.say(&signal).await;
    let error = stranger.until(|message| matches!(message, TrackerMessage::Error { .. })).await;
    assert!(matches!(error, TrackerMessage::Error { code: ErrorCode::NotIntroduced, fatal: false, .. }));
    // Control: after both agreed they are introduced, and the same message passes.
    victim.say(&ViewerMessage::Consent).await;
    stranger.say(&ViewerMessage::Consent).await;
    introduction(&mut stranger).await;
    stranger.say(&signal).await;
    victim.until(|message| matches!(message, TrackerMessage::Signal { .. })).await;
    assert!(!victim.seen.iter().any(|message| matches!(message, TrackerMessage::Signal { .. })));
}

#[tokio::test]
async fn a_broken_connection_is_resumed_with_the_same_peer_id() {
    let server = Server::live(Config::default()).await;
    let (mut one, mut two) = (server.join().await, server.join().await);
    let (one_peer, two_peer) = (one.peer(), two.peer());
    introduction(&mut one).await;
    introduction(&mut two).await;
    one.say(&ViewerMessage::Connected { peer: two_peer, rtt_ms: 3 }).await;
    two.say(&ViewerMessage::Connected { peer: one_peer, rtt_ms: 3 }).await;
    let token = one.resume();
    drop(one); // Without a close frame.
    server.eventually("it is away", |tracker| tracker.viewers("demo") == 1).await;
    let mut again = server.join_as(resume(token.clone())).await;
    assert_eq!(again.peer(), one_peer);
    again.say(&ViewerMessage::Connected { peer: two_peer, rtt_ms: 3 }).await;
    again
        .until(|message| match message {
            TrackerMessage::Plan { places, .. } => places
                .iter()
                .any(|place| place.parent == Some(two_peer) || place.children.contains(&two_peer)),
            _ => false,
        })
        .await;
    // A second connection of the same viewer takes its place.
    let third = server.join_as(resume(token)).await;
    assert_eq!(third.peer(), one_peer);
    assert_eq!(again.close_code().await, 1000);
    assert_eq!(server.tracker.viewers("demo"), 2);
    // A token that was not made here gives a place like any other.
    let stranger = server.join_as(resume(format!("{one_peer:08x}.{}", "00".repeat(16)))).await;
    assert_ne!(stranger.peer(), one_peer);
}

#[tokio::test]
async fn goodbyes_are_passed_on_at_once() {
    let server = Server::live(Config::default()).await;
    let (mut one, mut two) = (server.join().await, server.join().await);
    introduction(&mut two).await;
    let one_peer = one.peer();
    one.socket.close(None).await.unwrap();
    two.until(|message| *message == TrackerMessage::Part { peer: one_peer }).await;
}

#[tokio::test]
async fn a_viewer_that_does_not_read_is_closed_and_the_others_are_served() {
    let config = Config { queue_messages_max: 64, write_stall_max_ms: 1_000, ..Config::default() };
    let mut server = Server::live(config).await;
    let mut good = server.join().await;
    let slow = server.join().await;
    // As much as the kernel's buffers and the queue hold, and more.
    let record = vec![7; 60_000];
    for msn in 1..2_000_u64 {
        let piece = shoal_tracker::Piece { rendition: 0, msn, part: 0 };
        server.tracker.published("demo", piece, "u".into(), &record, 1_000);
        good.until(|message| matches!(message, TrackerMessage::Published { piece, .. } if piece.msn == msn))
            .await;
        good.seen.clear();
        if server.tracker.viewers("demo") == 1 {
            break;
        }
    }
    assert_eq!(server.tracker.viewers("demo"), 1, "the slow one is closed");
    server.publish();
    drop(slow);
    good.until(|message| matches!(message, TrackerMessage::Published { .. })).await;
}

#[tokio::test]
async fn an_ended_stream_is_told_and_takes_nobody_more() {
    let server = Server::live(Config::default()).await;
    let mut viewer = server.join().await;
    let first = viewer.welcome.clone().unwrap();
    server.tracker.stream_ended("demo");
    viewer.until(|message| *message == TrackerMessage::Ended).await;
    let mut late = server.connect(&[]).await.unwrap();
    late.say(&join("demo")).await;
    assert!(matches!(late.next().await, Some(TrackerMessage::Error { code: ErrorCode::UnknownStream, .. })));
    // A new publication is another swarm.
    server.tracker.stream_started("demo", [2; 16]);
    let again = server.join_as(resume(first.resume.clone())).await;
    assert_ne!(again.welcome.as_ref().unwrap().swarm, first.swarm);
    assert_ne!(again.peer(), first.peer, "a place of yesterday's swarm is none in today's");
}

#[tokio::test]
async fn a_stopping_tracker_tells_viewers_when_to_come_back_and_lets_nobody_in() {
    let config = Config { reconnect_within_ms: 7_000, drain_ms: 300, ..Config::default() };
    let mut server = Server::live(config).await;
    let mut viewer = server.join().await;
    server.stop.cancel();
    viewer.until(|message| *message == TrackerMessage::Drain { reconnect_within_ms: 7_000 }).await;
    match server.connect(&[]).await {
        Err(WsError::Http(response)) => assert_eq!(response.status(), 503),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a viewer was let in while stopping"),
    }
    // What is published meanwhile still arrives.
    server.publish();
    viewer
        .until(|message| matches!(message, TrackerMessage::Published { piece, .. } if piece.msn == 1))
        .await;
    assert_eq!(viewer.close_code().await, 1001);
    drop(viewer);
    timeout(PATIENCE, &mut server.running).await.expect("it stops").unwrap();
}

#[tokio::test]
async fn viewers_keep_their_places_when_the_tracker_is_restarted_with_the_same_secret() {
    let config = Config { secret: "ab".repeat(32).into(), drain_ms: 0, ..Config::default() };
    let server = Server::live(config.clone()).await;
    let mut viewer = server.join().await;
    let before = viewer.welcome.clone().unwrap();
    server.stop.cancel();
    while viewer.next().await.is_some() {}
    drop(server);
    let server = Server::live(config).await;
    let after = server.join_as(resume(before.resume)).await.welcome.unwrap();
    assert_eq!((after.peer, after.swarm), (before.peer, before.swarm));
}

#[tokio::test]
async fn a_silent_viewer_is_closed_and_one_that_pings_is_not() {
    let config = Config { report_interval_ms: 500, silence_max_ms: 1_000, ..Config::default() };
    let server = Server::live(config).await;
    let (mut silent, mut alive) = (server.join().await, server.join().await);
    let pinging = tokio::spawn(async move {
        loop {
            alive.say(&ViewerMessage::Report(Report { uplink_kbps: 9, ..Report::default() })).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert_eq!(silent.close_code().await, 1008);
    assert_eq!(server.tracker.viewers("demo"), 1);
    pinging.abort();
}

#[tokio::test]
async fn joins_over_the_rate_are_told_when_to_come_back() {
    let server = Server::live(Config { joins_per_s_max: 1, ..Config::default() }).await;
    let mut delays = Vec::new();
    for _ in 0..40 {
        let mut viewer = server.connect(&[]).await.unwrap();
        viewer.say(&join("demo")).await;
        match viewer.next().await {
            Some(TrackerMessage::Error {
                code: ErrorCode::RateLimited, fatal: true, retry_after_ms, ..
            }) => {
                delays.push(retry_after_ms.unwrap());
            }
            Some(TrackerMessage::Welcome(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(delays.len() >= 15, "{}", delays.len());
    delays.sort_unstable();
    delays.dedup();
    assert!(delays.len() > 5, "they don't all come back at once");
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_where_origins_are_listed() {
    let config = Config { origins_allowed: vec!["https://good.example".into()], ..Config::default() };
    let server = Server::live(config).await;
    match server.connect(&[("origin", "https://evil.example")]).await {
        Err(WsError::Http(response)) => assert_eq!(response.status(), 403),
        _ => panic!("a foreign page was let in"),
    }
    assert!(server.connect(&[("origin", "https://good.example")]).await.is_ok());
}

#[tokio::test]
async fn addresses_behind_a_trusted_proxy_are_told_apart() {
    let config = Config {
        trusted_proxies: vec!["127.0.0.0/8".into()],
        viewers_per_address_max: 1,
        ..Config::default()
    };
    let server = Server::live(config).await;
    let mut first = server.connect(&[("x-forwarded-for", "5.6.7.8")]).await.unwrap();
    first.say(&join("demo")).await;
    assert!(matches!(first.next().await, Some(TrackerMessage::Welcome(_))));
    assert!(
        server.connect(&[("x-forwarded-for", "6.6.6.6, 5.6.7.8")]).await.is_err(),
        "the same address again"
    );
    assert!(server.connect(&[("x-forwarded-for", "5.6.7.9")]).await.is_ok());
}

#[tokio::test]
async fn a_flooding_viewer_is_cut_off_while_others_are_answered() {
    let server = Server::live(Config::default()).await;
    let (mut good, mut bad) = (server.join().await, server.join().await);
    // Offers are passed on only from the one of an introduced pair who is to make them, answers only from the other.
    let (_, offers) = introduction(&mut bad).await;
    let (good_peer, text) = (good.peer(), "x".repeat(10_000));
    let flood = tokio::spawn(async move {
        let data = if offers { Signal::Offer { sdp: text } } else { Signal::Answer { sdp: text } };
        let message = serde_json::to_string(&ViewerMessage::Signal { to: good_peer, data }).unwrap();
        for sent in 0.. {
            // Reading as well, or our own side would be the slow one.
            while let Ok(Some(Ok(_))) = timeout(Duration::ZERO, bad.socket.next()).await {}
            if bad.socket.send(Message::text(&message)).await.is_err() {
                return sent;
            }
        }
        unreachable!()
    });
    let mut slowest = Duration::ZERO;
    while !flood.is_finished() {
        let asked = std::time::Instant::now();
        good.say(&ViewerMessage::Ping).await;
        good.until(|message| *message == TrackerMessage::Pong).await;
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let sent: u32 = flood.await.unwrap();
    let passed = good.seen.iter().filter(|message| matches!(message, TrackerMessage::Signal { .. })).count();
    assert!((1..=64).contains(&passed), "{passed} of {sent} reached the victim");
    assert!(slowest < Duration::from_secs(2), "others waited {slowest:?}");
}

#[tokio::test]
async fn viewers_are_told_our_own_stun_server_and_it_answers() {
    let config = Config { stun_listen: "127.0.0.1:0".into(), ..Config::default() };
    let server = Server::live(config).await;
    let welcome = server.join().await.welcome.unwrap();
    let url = welcome.ice_servers[0].urls[0].clone();
    let address = url.strip_prefix("stun:").unwrap();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // A binding request without attributes (RFC 8489, section 5).
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend([9; 12]);
    socket.send_to(&request, address).await.unwrap();
    let mut answer = [0; 200];
    let length = timeout(PATIENCE, socket.recv(&mut answer)).await.expect("it answers").unwrap();
    assert!(length >= 32 && answer[..2] == [1, 1] && answer[8..20] == [9; 12]);
    // XOR-MAPPED-ADDRESS: our port, hidden by the magic cookie.
    let port = u16::from_be_bytes([answer[26], answer[27]]) ^ 0x2112;
    assert_eq!(port, socket.local_addr().unwrap().port());
}
