//! WebTorrent clients on real sockets.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::time::Duration;

use common::{PATIENCE, SECRET, Server, now_s, token};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use shoal_tracker::{Config, PeerPolicy};
use shoal_tracker_protocol::{ErrorCode, TrackerMessage, ViewerMessage};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(server: &Server) -> Socket {
    connect_async(format!("ws://{}/announce", server.address)).await.unwrap().0
}

/// Through a proxy, for somebody with this address.
async fn connect_from(server: &Server, address: &str) -> Socket {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    let mut request = format!("ws://{}/announce", server.address).into_client_request().unwrap();
    request.headers_mut().insert("x-forwarded-for", address.parse().unwrap());
    connect_async(request).await.unwrap().0
}

fn announce(peer: char, offers: usize) -> Value {
    let offer = |at: usize| {
        let letter = char::from(b'a' + u8::try_from(at).unwrap());
        json!({ "offer": { "type": "offer", "sdp": "v=0" }, "offer_id": id(letter) })
    };
    let offers: Vec<Value> = (0..offers).map(offer).collect();
    json!({ "action": "announce", "info_hash": id('h'), "peer_id": id(peer), "numwant": 10, "offers": offers })
}

async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn next(socket: &mut Socket) -> Value {
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("nothing came").unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Close(frame) => panic!("closed: {frame:?}"),
            _ => {}
        }
    }
}

/// Twenty characters, some of them bytes that are no ASCII.
fn id(letter: char) -> String {
    format!("{}\u{ff}\u{1}", letter.to_string().repeat(18))
}

#[tokio::test]
async fn two_clients_exchange_offer_and_answer_and_leave() {
    let server = Server::start(Config::default()).await;
    let (mut one, mut two) = (connect(&server).await, connect(&server).await);
    let hash = id('h');
    say(
        &mut one,
        json!({ "action": "announce", "info_hash": hash, "peer_id": id('1'), "event": "started",
        "uploaded": 0, "downloaded": 0, "left": null, "numwant": 5, "offers": [] }),
    )
    .await;
    let reply = next(&mut one).await;
    assert_eq!(reply["action"], "announce");
    assert_eq!((&reply["complete"], &reply["incomplete"]), (&json!(0), &json!(1)));
    assert!(reply["interval"].is_u64() && reply["info_hash"] == hash);

    let sdp = "v=0\r\na=candidate:1 1 udp 1 127.0.0.1 5000 typ host\r\n";
    let offers = json!([{ "offer": { "type": "offer", "sdp": sdp }, "offer_id": id('o') }]);
    say(&mut two, json!({ "action": "announce", "info_hash": hash, "peer_id": id('2'), "numwant": 5, "offers": offers }))
        .await;
    assert_eq!(next(&mut two).await["incomplete"], 2);
    let offer = next(&mut one).await;
    let expected = json!({ "action": "announce", "info_hash": hash, "peer_id": id('2'), "offer_id": id('o'),
        "offer": { "type": "offer", "sdp": sdp } });
    assert_eq!(offer, expected);

    say(
        &mut one,
        json!({ "action": "announce", "info_hash": hash, "peer_id": id('1'), "to_peer_id": id('2'),
        "offer_id": id('o'), "answer": { "type": "answer", "sdp": "v=0\r\n" } }),
    )
    .await;
    let answer = next(&mut two).await;
    assert_eq!((&answer["peer_id"], &answer["offer_id"]), (&json!(id('1')), &json!(id('o'))));
    assert_eq!(answer["answer"], json!({ "type": "answer", "sdp": "v=0\r\n" }));

    say(&mut one, json!({ "action": "scrape", "info_hash": [hash] })).await;
    let counts = json!({ "complete": 0, "incomplete": 2, "downloaded": 0 });
    assert_eq!(next(&mut one).await, json!({ "action": "scrape", "files": { hash.clone(): counts } }));
    // One vanishes without a word; the other asks until it is gone.
    drop(one);
    let gone = async {
        loop {
            say(&mut two, json!({ "action": "scrape", "info_hash": hash })).await;
            if next(&mut two).await["files"][&hash]["incomplete"] == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it is forgotten");
}

#[tokio::test]
async fn nonsense_is_answered_and_a_flood_is_cut_off() {
    let server = Server::start(Config::default()).await;
    let mut client = connect(&server).await;
    say(&mut client, json!({ "action": "dance" })).await;
    assert!(next(&mut client).await["failure reason"].is_string());
    say(&mut client, json!({ "action": "announce", "info_hash": "short", "peer_id": id('1') })).await;
    assert!(next(&mut client).await["failure reason"].is_string());
    let mut sent = 0;
    while sent < 10_000 && client.send(Message::text("{}")).await.is_ok() {
        sent += 1;
        if sent % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let ended = async { while let Some(Ok(_)) = client.next().await {} };
    timeout(PATIENCE, ended).await.expect("the connection is ended");
}

#[tokio::test]
async fn the_protocol_can_be_switched_off() {
    let server = Server::start(Config { announce: false, ..Config::default() }).await;
    match connect_async(format!("ws://{}/announce", server.address)).await {
        Err(WsError::Http(response)) => assert_eq!(response.status(), 404),
        _ => panic!("it is answered"),
    }
}

/// Whether a client may announce.
async fn is_served(server: &Server) -> bool {
    let mut client = connect(server).await;
    say(&mut client, announce('1', 0)).await;
    let reply = next(&mut client).await;
    assert_ne!(reply["interval"].is_u64(), reply["failure reason"].is_string(), "{reply}");
    reply["interval"].is_u64()
}

#[tokio::test]
async fn what_this_protocol_cannot_ask_for_is_not_given_by_it() {
    let base = Config {
        viewer_token_secret: SECRET.into(),
        turn_urls: vec!["turn:r".into()],
        turn_secret: "x".into(),
        ..Config::default()
    };
    let refusing = [
        ("tokens", Config { tokens_required: true, ..base.clone() }),
        ("consent", Config { consent_required: true, ..base.clone() }),
        ("off", Config { peer_policy: PeerPolicy::Off, ..base.clone() }),
        ("relay only", Config { peer_policy: PeerPolicy::RelayOnly, ..base.clone() }),
        ("no sharing", Config { sharing_percent: 0, ..base.clone() }),
    ];
    for (what, config) in refusing {
        assert!(!is_served(&Server::live(config).await).await, "{what}");
    }
    let server = Server::live(base).await;
    let tracker = &server.tracker;
    assert!(is_served(&server).await, "control");
    assert!(tracker.set_stream_private("demo", true));
    assert!(!is_served(&server).await);
    assert!(tracker.set_stream_private("demo", false));
    assert!(is_served(&server).await);
    for policy in [PeerPolicy::Off, PeerPolicy::RelayOnly] {
        assert!(tracker.set_stream_policy("demo", policy));
        assert!(!is_served(&server).await);
    }
    assert!(tracker.set_stream_policy("demo", PeerPolicy::Direct));
    assert!(is_served(&server).await);
    assert!(tracker.set_stream_sharing("demo", 0));
    assert!(!is_served(&server).await);
    server.tracker.stream_ended("demo");
    assert!(is_served(&server).await, "a stream that has ended concerns nobody");
}

#[tokio::test]
async fn a_recording_counts_while_it_is_watched_and_not_because_a_stranger_asked_for_it() {
    let server = Server::start(Config { viewer_token_secret: SECRET.into(), ..Config::default() }).await;
    server.tracker.watch_recordings(|_, _| true);
    assert!(!server.tracker.set_stream_private("demo", true), "it is not live");
    let join = |token: Option<&String>| ViewerMessage::Join {
        version: 1,
        stream: format!("demo/{}", "02".repeat(16)),
        token: token.cloned(),
        resume: None,
        shares: true,
        renditions: vec![0],
    };
    let once = token(&json!({ "stream": "demo", "exp": now_s() + 60, "uses": 1, "jti": "x" }), SECRET);
    let refused = async |token| {
        let mut stranger = server.connect(&[]).await.unwrap();
        stranger.say(&join(token)).await;
        let first = stranger.next().await;
        assert!(matches!(first, Some(TrackerMessage::Error { code: ErrorCode::Refused, .. })), "{first:?}");
    };
    refused(None).await;
    assert!(is_served(&server).await);
    let _viewer = server.join_as(join(Some(&once))).await;
    assert!(!is_served(&server).await);
    // Who opened the swarm has used his token like anybody else, and once.
    refused(Some(&once)).await;
}

#[tokio::test]
async fn a_client_that_was_let_in_gets_no_offers_when_sharing_is_switched_off() {
    let server = Server::live(Config::default()).await;
    let mut client = connect(&server).await;
    say(&mut client, announce('1', 0)).await;
    assert!(next(&mut client).await["interval"].is_u64());
    server.tracker.set_sharing(0);
    say(&mut client, announce('1', 0)).await;
    assert!(next(&mut client).await["failure reason"].is_string());
    server.tracker.set_sharing(100);
    let mut other = connect(&server).await;
    say(&mut other, announce('2', 5)).await;
    assert_eq!(next(&mut other).await["incomplete"], 1, "the first one is out");
    assert_eq!(server.tracker.viewers("demo"), 0, "they are no viewers");
}

/// Viewers of other networks whom one address reaches with its offers.
async fn reached(introductions_burst: u32) -> usize {
    let trusted_proxies = vec!["127.0.0.0/8".into()];
    let config =
        Config { trusted_proxies, introductions_burst, introductions_per_hour: 1, ..Config::default() };
    let server = Server::start(config).await;
    let mut victims = Vec::new();
    for at in 0..12_u8 {
        let mut victim = connect_from(&server, &format!("5.6.{at}.1")).await;
        say(&mut victim, announce(char::from(b'A' + at), 0)).await;
        next(&mut victim).await;
        victims.push(victim);
    }
    // Each time as somebody new.
    for at in 0..3_u8 {
        let mut attacker = connect_from(&server, "9.8.7.6").await;
        say(&mut attacker, announce(char::from(b'1' + at), 10)).await;
        next(&mut attacker).await;
    }
    let mut reached = 0;
    for mut victim in victims {
        // Whatever was sent to it is before the answer to this.
        say(&mut victim, json!({ "action": "scrape", "info_hash": [id('h')] })).await;
        loop {
            let message = next(&mut victim).await;
            match message["action"].as_str() {
                Some("scrape") => break,
                _ => reached += usize::from(message["offer"].is_object()),
            }
        }
    }
    reached
}

#[tokio::test]
async fn harvest_by_announcing_ends_at_the_budget_of_an_address() {
    assert_eq!(reached(7).await, 7);
    assert!(reached(1_000).await >= 25, "control");
}

#[tokio::test]
async fn clients_do_not_delay_the_end_of_the_tracker() {
    let mut server =
        Server::live(Config { drain_ms: 60_000, write_stall_max_ms: 60_000, ..Config::default() }).await;
    let mut client = connect(&server).await;
    say(&mut client, announce('1', 0)).await;
    next(&mut client).await;
    let mut mute = server.connect(&[]).await.unwrap();
    server.stop.cancel();
    match timeout(PATIENCE, client.next()).await.expect("it is closed") {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001),
        other => panic!("{other:?}"),
    }
    assert_eq!(mute.close_code().await, 1001, "nor do those who have not joined");
    drop((client, mute));
    timeout(PATIENCE, &mut server.running).await.expect("it stops").unwrap();
}
