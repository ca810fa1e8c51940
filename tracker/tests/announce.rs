//! WebTorrent clients on real sockets.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::time::Duration;

use common::{PATIENCE, Server};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use shoal_tracker::Config;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(server: &Server) -> Socket {
    connect_async(format!("ws://{}/announce", server.address)).await.unwrap().0
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
