//! What goes wrong between a publisher and a server is said in words that help.

#![allow(clippy::unwrap_used)]

mod common;

use axum::http::StatusCode;
use common::{Behavior, Command, Endpoint, Seen};
use shoal_publisher::{Error, Options, Publisher, Size, Source};
use std::time::{Duration, Instant};

fn options(url: String) -> Options {
    let mut options = Options::new(Source::TestPattern, url);
    options.size = Some(Size { width: 320, height: 180 });
    options
}

async fn refused(status: StatusCode, body: &'static str) -> Error {
    let endpoint = Endpoint::start(Behavior { refuse: Some((status, body)), ..Behavior::default() }).await;
    Publisher::start(options(endpoint.url("a"))).ended().await.unwrap_err()
}

#[tokio::test]
async fn each_status_has_its_own_words() {
    assert!(matches!(refused(StatusCode::CONFLICT, "").await, Error::NameTaken));
    assert!(matches!(refused(StatusCode::UNAUTHORIZED, "").await, Error::Unauthorized { status: 401 }));
    assert!(matches!(refused(StatusCode::NOT_FOUND, "").await, Error::NotWhip { status: 404, .. }));
    assert!(matches!(refused(StatusCode::SERVICE_UNAVAILABLE, "").await, Error::Overloaded { .. }));
    assert!(matches!(refused(StatusCode::OK, "v=0").await, Error::BadAnswer(_)));
    let error = refused(StatusCode::NOT_ACCEPTABLE, "want VP9").await;
    assert!(error.to_string().contains("want VP9"), "{error}");
    let error = refused(StatusCode::INTERNAL_SERVER_ERROR, "no disk").await;
    assert!(error.to_string().contains("500") && error.to_string().contains("no disk"), "{error}");
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/whip/a", listener.local_addr().unwrap());
    drop(listener);
    let error = Publisher::start(options(url.clone())).ended().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&url) && error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn blocked_udp_is_named_after_8_s_and_the_session_is_deleted() {
    let mut endpoint = Endpoint::start(Behavior { is_udp_dead: true, ..Behavior::default() }).await;
    let start = Instant::now();
    let error = Publisher::start(options(endpoint.url("a"))).ended().await.unwrap_err();
    assert!(matches!(error, Error::UdpBlocked { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    endpoint.until(|seen| matches!(seen, Seen::Deleted { .. })).await;
}

#[tokio::test]
async fn a_server_that_closes_ends_the_publisher() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let publisher = Publisher::start(options(endpoint.url("a")));
    endpoint.until(|seen| matches!(seen, Seen::Rtp { is_video: true, .. })).await;
    endpoint.command(Command::Close);
    let error = tokio::time::timeout(Duration::from_secs(5), publisher.ended()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::ClosedByServer | Error::ConnectionLost), "{error:?}");
}

#[tokio::test]
async fn a_stop_while_connecting_is_quick_and_no_error() {
    let mut endpoint = Endpoint::start(Behavior { is_udp_dead: true, ..Behavior::default() }).await;
    let publisher = Publisher::start(options(endpoint.url("a")));
    endpoint.until(|seen| matches!(seen, Seen::Offer { .. })).await;
    let summary = tokio::time::timeout(Duration::from_secs(3), publisher.stop()).await.unwrap().unwrap();
    assert_eq!(summary.frames_sent, 0);
    endpoint.until(|seen| matches!(seen, Seen::Deleted { .. })).await;
}
