//! Publishers on real sockets: what the endpoint does from the offer to the end of a session.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use shoal_ingest::Config;
use shoal_segmenter::frame::{Input, TrackId};
use support::live::{Endpoint, Live, PATIENCE, config, text, until};
use support::{picture, picture_number};

#[tokio::test]
async fn pictures_and_sound_arrive_as_they_were_sent() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    let recorder = &endpoint.recorder;
    until("30 pictures and 50 sounds", || recorder.frames(1).len() >= 30 && recorder.frames(0).len() >= 50)
        .await;
    assert_eq!(recorder.expected(), [TrackId(0), TrackId(1)]);
    let (bytes, style) = {
        let publisher = live.publisher.lock();
        (publisher.picture_bytes, publisher.style)
    };
    for frame in recorder.frames(1) {
        assert!(frame.data == picture(picture_number(&frame.data), frame.is_keyframe, bytes, style));
    }
    assert!(matches!(recorder.inputs()[0], Input::Format { .. }));

    let stats = endpoint.stats(&live.session).await;
    assert_eq!((&stats["state"], &stats["stream"]), (&"live".into(), &"cam".into()), "{stats}");
}

#[tokio::test]
async fn the_status_tells_size_rate_and_codec() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 45).await;
    let stats = endpoint.stats(&live.session).await;
    let video = &stats["tracks"][1];
    assert_eq!(
        (&video["codec"], &video["width"], &video["height"]),
        (&"H.264".into(), &1280.into(), &720.into())
    );
    let (rate, frames) = (video["bitrate_bps"].as_u64().unwrap(), video["frames_per_s"].as_f64().unwrap());
    assert!((300_000..3_000_000).contains(&rate), "{stats}");
    assert!((10.0..60.0).contains(&frames), "{stats}");
}

#[tokio::test]
async fn a_wish_for_a_keyframe_reaches_the_publisher_and_is_rate_limited() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 10).await;
    for _ in 0..5 {
        endpoint.recorder.wish_keyframe();
    }
    let keyframes = || endpoint.recorder.frames(1).iter().filter(|frame| frame.is_keyframe).count();
    until("a second keyframe", || keyframes() >= 2).await;
    assert!(live.publisher.lock().asked().keyframes <= 2, "{:?}", live.publisher.lock().asked());
}

#[tokio::test]
async fn delete_frees_the_stream_before_it_is_answered() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    assert!(endpoint.recorder.is_busy("cam"));
    let response = endpoint.call(Method::DELETE, &live.session).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!endpoint.recorder.is_busy("cam"));
    assert_eq!(endpoint.recorder.ended(), ["cam"], "who stops on purpose isn't waited for");
    let again = Live::publish(&endpoint, "cam").await;
    assert_ne!(again.session, live.session);
}

/// Closes the connection, and waits until the server has noticed.
async fn close(endpoint: &Endpoint, live: &Live) {
    live.publisher.lock().close();
    let noticed = tokio::time::timeout(PATIENCE, async {
        while endpoint.stats(&live.session).await["state"] != "ended" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    noticed.await.expect("the server notices a closed connection");
}

#[tokio::test]
async fn a_publisher_that_closes_its_connection_and_then_deletes_has_stopped_on_purpose() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    close(&endpoint, &live).await;
    let response = endpoint.call(Method::DELETE, &live.session).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!endpoint.recorder.is_busy("cam"));
    assert_eq!(endpoint.recorder.ended(), ["cam"]);
}

#[tokio::test]
async fn a_publisher_that_closes_its_connection_and_comes_back_is_let_in_at_once() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    close(&endpoint, &live).await;
    let _again = Live::publish(&endpoint, "cam").await;
    assert!(endpoint.recorder.ended().is_empty(), "it came back");
}

#[tokio::test]
async fn a_publisher_that_returns_continues_the_timeline() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 10).await;
    endpoint.call(Method::DELETE, &live.session).await;
    let (before, last) = (endpoint.recorder.frames(1).len(), endpoint.recorder.frames(1).last().unwrap().pts);
    let _again = Live::publish(&endpoint, "cam").await;
    until("pictures again", || endpoint.recorder.frames(1).len() > before).await;
    assert!(endpoint.recorder.frames(1)[before].pts > last);
}

#[tokio::test]
async fn a_second_publisher_of_a_stream_is_refused_and_the_first_goes_on() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    let mut second = support::Publisher::new(Instant::now(), ([127, 0, 0, 1], 9).into());
    let response = endpoint.post("cam", second.offer(Instant::now())).await;
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert!(text(response).await.contains("already has a publisher"));
    let frames = endpoint.recorder.frames(1).len();
    until("more pictures", || endpoint.recorder.frames(1).len() > frames + 5).await;
    assert_eq!(endpoint.stats(&live.session).await["state"], "live");
}

#[tokio::test]
async fn a_publisher_that_vanishes_is_noticed_and_its_stream_freed() {
    let endpoint = Endpoint::start(Config { silence_max_ms: 1000, ..config() }).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 3).await;
    live.vanish();
    let since = Instant::now();
    until("the stream is free", || !endpoint.recorder.is_busy("cam")).await;
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    assert!(endpoint.recorder.ended().is_empty(), "who vanishes may come back");
    let stats = endpoint.stats(&live.session).await;
    assert_eq!((&stats["state"], &stats["ended"]), (&"ended".into(), &"vanished".into()));
}

#[tokio::test]
async fn a_publisher_that_comes_back_doesnt_wait_for_its_vanished_predecessor() {
    let endpoint =
        Endpoint::start(Config { takeover_silence_ms: 300, silence_max_ms: 60_000, ..config() }).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 3).await;
    live.vanish();
    let mut successor = support::Publisher::new(Instant::now(), ([127, 0, 0, 1], 9).into());
    let offer = successor.offer(Instant::now());
    let taken_over = tokio::time::timeout(support::live::PATIENCE, async {
        while endpoint.post("cam", offer.clone()).await.status() != StatusCode::CREATED {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(taken_over.await.is_ok());
    assert_eq!(endpoint.stats(&live.session).await["ended"], "replaced");
}

#[test]
fn by_default_a_vanished_publisher_is_noticed_within_ten_seconds() {
    assert!(Config::default().silence_max_ms < 10_000);
}

#[tokio::test]
async fn a_publisher_that_never_connects_is_given_up() {
    let endpoint = Endpoint::start(Config { connect_timeout_ms: 1000, ..config() }).await;
    let mut publisher = support::Publisher::new(Instant::now(), ([127, 0, 0, 1], 9).into());
    let response = endpoint.post("cam", publisher.offer(Instant::now())).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert!(endpoint.recorder.is_busy("cam"));
    until("the stream is free", || !endpoint.recorder.is_busy("cam")).await;
}

#[tokio::test]
async fn shutdown_says_goodbye_to_publishers_and_ends_in_time() {
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    endpoint.cancelled.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(3), endpoint.running).await;
    assert!(ended.expect("it ends in time").unwrap().is_ok());
    assert!(!endpoint.recorder.is_busy("cam"));
    drop(live);
}

#[tokio::test]
async fn a_publisher_with_ipv6_alone_is_offered_an_ipv6_candidate_and_publishes() {
    let Ok(socket) = tokio::net::UdpSocket::bind("[::1]:0").await else {
        eprintln!("this machine has no IPv6: nothing to test");
        return;
    };
    // Dual stack: the same port hears IPv4.
    let endpoint = Endpoint::start(Config { media_address: "[::]:0".parse().unwrap(), ..config() }).await;
    let live = Live::publish_from(&endpoint, "cam", socket).await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 10).await;
    assert_eq!(endpoint.stats(&live.session).await["state"], "live");
    let four = Live::publish(&endpoint, "four").await;
    assert_eq!(endpoint.stats(&four.session).await["state"], "live");
    let mut publisher = support::Publisher::new(Instant::now(), ([127, 0, 0, 1], 9).into());
    let answer = text(endpoint.post("third", publisher.offer(Instant::now())).await).await;
    let port = endpoint.media_address.port();
    for address in ["::1", "127.0.0.1"] {
        let is_there = answer.lines().any(|candidate| {
            candidate.starts_with("a=candidate:")
                && candidate.contains(&format!(" {address} {port} typ host"))
        });
        assert!(is_there, "{address}: {answer}");
    }
}

#[tokio::test]
async fn two_publishers_share_the_port_without_mixing() {
    let endpoint = Endpoint::start(config()).await;
    let (one, two) = tokio::join!(Live::publish(&endpoint, "one"), Live::publish(&endpoint, "two"));
    two.publisher.lock().picture_bytes = 2000;
    until("pictures of both", || endpoint.recorder.frames(1).len() >= 60).await;
    for session in [&one.session, &two.session] {
        let stats = endpoint.stats(session).await;
        assert!(
            stats["tracks"][1]["frames"].as_u64().unwrap_or(0) > 0 || stats["age_s"].as_f64() < Some(1.5)
        );
    }
    endpoint.call(Method::DELETE, &one.session).await;
    let frames = endpoint.recorder.frames(1).len();
    until("the other goes on", || endpoint.recorder.frames(1).len() > frames + 10).await;
}

#[tokio::test]
async fn what_the_server_has_against_a_publisher_is_in_its_status_and_in_the_log() {
    let log = support::LogBuffer::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    endpoint.recorder.object("its pictures are upside down");
    until("the end", || !endpoint.recorder.is_busy("cam")).await;
    let stats = endpoint.stats(&live.session).await;
    assert_eq!(
        (&stats["ended"], &stats["problem"]),
        (&"refused".into(), &"its pictures are upside down".into())
    );
    until("the log", || log.text().contains("session ended")).await;
    let text = log.text();
    let line = text.lines().find(|line| line.contains("session ended")).unwrap();
    assert!(line.contains("upside down") && line.contains("WARN"), "{line}");
}

#[tokio::test]
async fn a_session_that_breaks_down_gives_back_its_place_and_its_stream() {
    let endpoint = Endpoint::start(Config { sessions_max: 1, ..config() }).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 3).await;
    endpoint.recorder.break_down(true);
    until("the stream is free", || !endpoint.recorder.is_busy("cam")).await;
    endpoint.recorder.break_down(false);
    let count = endpoint.recorder.frames(1).len();
    let again = Live::publish(&endpoint, "cam").await;
    until("pictures of the next one", || endpoint.recorder.frames(1).len() > count + 3).await;
    assert_eq!(endpoint.stats(&again.session).await["state"], "live");
    assert_eq!(endpoint.call(Method::PATCH, &live.session).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn logs_show_no_address_no_sdp_and_no_session() {
    let log = support::LogBuffer::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let endpoint = Endpoint::start(config()).await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 3).await;
    endpoint.post("cam", "v=0\r\no=- 1 1 IN IP4 192.0.2.77\r\n").await;
    endpoint.call(Method::DELETE, &live.session).await;
    let text = log.text();
    assert!(text.contains("session ended") && text.contains("cam"), "the log was read: {text}");
    let id = live.session.rsplit('/').next().unwrap();
    for secret in ["127.0.0.1", "192.0.2.77", "a=", "ufrag", id] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn garbage_on_the_media_port_harms_nobody() {
    let endpoint = Endpoint::start(config()).await;
    let _live = Live::publish(&endpoint, "cam").await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = support::net::Random(99);
    for length in 0..400usize {
        let mut datagram: Vec<u8> = (0..length * 3).map(|_| random.next() as u8).collect();
        if length % 3 == 0 && datagram.len() >= 20 {
            // Looks like a binding request
            let size = (datagram.len() - 20) as u16;
            datagram[..2].copy_from_slice(&[0, 1]);
            datagram[2..4].copy_from_slice(&size.to_be_bytes());
            datagram[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        }
        let _ = socket.send_to(&datagram, endpoint.media_address).await;
    }
    let frames = endpoint.recorder.frames(1).len();
    until("the publisher goes on", || endpoint.recorder.frames(1).len() > frames + 10).await;
}
