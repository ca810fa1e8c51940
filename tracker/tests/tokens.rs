//! Viewer tokens on real sockets: who may join, and who may no longer stay.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use common::{SECRET, Server, Viewer, now_s, token};
use serde_json::json;
use shoal_tracker::Config;
use shoal_tracker_protocol::{ErrorCode, Signal, TrackerMessage, ViewerMessage};

fn join(token: Option<String>, resume: Option<String>) -> ViewerMessage {
    ViewerMessage::Join {
        version: 1,
        stream: "demo".into(),
        token,
        resume,
        shares: true,
        renditions: vec![0],
    }
}

/// Joins and returns what came first.
async fn try_join(server: &Server, token: Option<String>) -> TrackerMessage {
    let mut viewer = server.connect(&[]).await.unwrap();
    viewer.say(&join(token, None)).await;
    viewer.next().await.unwrap()
}

fn is_refused(message: &TrackerMessage) -> bool {
    matches!(message, TrackerMessage::Error { code: ErrorCode::Refused, fatal: true, .. })
}

fn config() -> Config {
    Config { viewer_token_secret: SECRET.into(), tokens_required: true, ..Config::default() }
}

#[tokio::test]
async fn free_ride_without_a_token_that_holds_is_refused() {
    let server = Server::live(config()).await;
    let exp = now_s() + 60;
    let good = token(&json!({ "stream": "demo", "exp": exp }), SECRET);
    let attempts = [
        ("no token", None),
        ("another tenant's", Some(token(&json!({ "stream": "other", "exp": exp }), SECRET))),
        ("ended", Some(token(&json!({ "stream": "demo", "exp": now_s() - 60 }), SECRET))),
        ("another secret's", Some(token(&json!({ "stream": "demo", "exp": exp }), "guess"))),
        ("without an end", Some(token(&json!({ "stream": "demo" }), SECRET))),
        ("altered", Some(good.replacen("eyJ", "eyK", 1))),
    ];
    for (what, attempt) in attempts {
        assert!(is_refused(&try_join(&server, attempt).await), "{what} was admitted");
    }
    assert!(matches!(try_join(&server, Some(good)).await, TrackerMessage::Welcome(_)));
    let twice = token(&json!({ "stream": "demo", "exp": exp, "uses": 2, "jti": "x" }), SECRET);
    for expected in [false, false, true, true] {
        assert_eq!(is_refused(&try_join(&server, Some(twice.clone())).await), expected);
    }
    // Control: without the requirement everybody comes in.
    let open = Server::live(Config::default()).await;
    assert!(matches!(try_join(&open, None).await, TrackerMessage::Welcome(_)));
}

#[tokio::test]
async fn free_ride_with_a_token_for_another_audience_is_refused() {
    let server = Server::live(Config { viewer_token_audience: "watch".into(), ..config() }).await;
    let of =
        |aud: serde_json::Value| token(&json!({ "stream": "demo", "exp": now_s() + 60, "aud": aud }), SECRET);
    let without = token(&json!({ "stream": "demo", "exp": now_s() + 60 }), SECRET);
    for attempt in [without, of(json!("publish")), of(json!(["publish"]))] {
        assert!(is_refused(&try_join(&server, Some(attempt)).await));
    }
    let good = of(json!(["publish", "watch"]));
    assert!(matches!(try_join(&server, Some(good)).await, TrackerMessage::Welcome(_)));
}

#[tokio::test]
async fn entitlement_for_one_join_is_not_spent_on_a_stream_that_is_not_live_yet() {
    let server = Server::start(config()).await;
    let once = token(&json!({ "stream": "demo", "exp": now_s() + 60, "uses": 1, "jti": "x" }), SECRET);
    for _ in 0..3 {
        let early = try_join(&server, Some(once.clone())).await;
        assert!(matches!(early, TrackerMessage::Error { code: ErrorCode::UnknownStream, .. }), "{early:?}");
    }
    assert!(is_refused(&try_join(&server, None).await), "strangers are not told what is live");
    server.tracker.stream_started("demo", [1; 16]);
    assert!(matches!(try_join(&server, Some(once.clone())).await, TrackerMessage::Welcome(_)));
    assert!(is_refused(&try_join(&server, Some(once)).await));
}

async fn meet(server: &Server, fingerprint: Option<&str>) -> (Viewer, Viewer) {
    let claims = match fingerprint {
        Some(fingerprint) => json!({ "stream": "demo", "exp": now_s() + 60, "fingerprint": fingerprint }),
        None => json!({ "stream": "demo", "exp": now_s() + 60 }),
    };
    let mut honest = server.join_as(join(Some(token(&claims, SECRET)), None)).await;
    let mut other = server.join_as(join(Some(token(&claims, SECRET)), None)).await;
    let is_introduction = |message: &TrackerMessage| matches!(message, TrackerMessage::Introduce { .. });
    other.until(is_introduction).await;
    match honest.until(is_introduction).await {
        TrackerMessage::Introduce { offers: true, .. } => (honest, other),
        _ => (other, honest),
    }
}

#[tokio::test]
async fn entitlement_in_a_copied_token_is_useless_without_the_key_that_it_names() {
    let server = Server::live(config()).await;
    let offer =
        |fingerprint: &str| Signal::Offer { sdp: format!("v=0\r\na=fingerprint:sha-256 {fingerprint}\r\n") };
    let (mut offerer, mut answerer) = meet(&server, Some("AB:CD:EF")).await;
    let to = answerer.peer();
    for wrong in [
        offer("00:11:22"),
        offer("AB:CD:EF\r\na=fingerprint:sha-256 00:11"),
        Signal::Offer { sdp: "v=0".into() },
    ] {
        offerer.say(&ViewerMessage::Signal { to, data: wrong }).await;
        let error = offerer.until(|message| matches!(message, TrackerMessage::Error { .. })).await;
        assert!(matches!(error, TrackerMessage::Error { code: ErrorCode::Refused, .. }));
    }
    offerer.say(&ViewerMessage::Signal { to, data: offer("ab:cd:ef") }).await;
    let signal = answerer.until(|message| matches!(message, TrackerMessage::Signal { .. })).await;
    assert!(
        matches!(signal, TrackerMessage::Signal { data: Signal::Offer { sdp }, .. } if sdp.contains("ab:cd:ef"))
    );
    // Control: a token that names no key lets any pass.
    let server = Server::live(config()).await;
    let (mut offerer, mut answerer) = meet(&server, None).await;
    offerer.say(&ViewerMessage::Signal { to: answerer.peer(), data: offer("00:11:22") }).await;
    answerer.until(|message| matches!(message, TrackerMessage::Signal { .. })).await;
}

#[tokio::test]
async fn entitlement_that_ends_puts_its_viewer_out_and_parts_it_from_its_neighbors() {
    let server = Server::live(config()).await;
    // Ten seconds of leeway for clocks that differ: it ends in one second.
    let short = token(&json!({ "stream": "demo", "exp": now_s() - 8 }), SECRET);
    let long = token(&json!({ "stream": "demo", "exp": now_s() + 60 }), SECRET);
    let mut stays = server.join_as(join(Some(long), None)).await;
    let mut goes = server.join_as(join(Some(short), None)).await;
    let peer = goes.peer();
    let error = goes.until(|message| matches!(message, TrackerMessage::Error { .. })).await;
    assert!(is_refused(&error));
    stays.until(|message| *message == TrackerMessage::Part { peer }).await;
    assert_eq!(server.tracker.viewers("demo"), 1);
}

#[tokio::test]
async fn entitlement_is_asked_of_everybody_when_a_stream_turns_private() {
    let server = Server::live(Config { tokens_required: false, ..config() }).await;
    let mut uninvited = server.join_as(join(None, None)).await;
    let before = uninvited.welcome.clone().unwrap();
    assert!(server.tracker.set_stream_private("demo", true));
    assert_eq!(uninvited.close_code().await, 1001);
    let mut again = server.connect(&[]).await.unwrap();
    again.say(&join(None, Some(before.resume.clone()))).await;
    assert!(is_refused(&again.next().await.unwrap()));
    let invited = token(&json!({ "stream": "demo", "exp": now_s() + 60 }), SECRET);
    let welcome = server.join_as(join(Some(invited), Some(before.resume))).await.welcome.unwrap();
    assert_ne!(welcome.swarm, before.swarm, "the swarm's id is another one");
    assert_ne!(welcome.peer, before.peer, "and places in the old one are worth nothing");
    assert!(server.tracker.set_stream_private("demo", false));
    assert!(matches!(try_join(&server, None).await, TrackerMessage::Welcome(_)));
    let without_secret = Server::live(Config::default()).await;
    assert!(!without_secret.tracker.set_stream_private("demo", true), "nobody could join it");
}
