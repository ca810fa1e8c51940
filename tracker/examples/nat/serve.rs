//! The trackers of the matrix: one with STUN and TURN of its own, one that sends its viewers to coturn.

use std::io::Write as _;
use std::net::SocketAddr;

use axum::response::Html;
use axum::routing::get;
use shoal_tracker::{Config, Tracker};
use shoal_tracker_protocol::IceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::coturn;

/// HTTP port of the tracker with its own relay, inside its namespace.
pub(crate) const PORT: u16 = 8080;
/// Of the one with coturn.
pub(crate) const PORT_COTURN: u16 = 8081;

/// Serves one stream for each case on both, until its standard input ends.
pub(crate) async fn run(address: String, streams: usize) {
    let own = Config {
        stun_listen: format!("{address}:3478"),
        turn: true,
        turn_relay_address: address.clone(),
        ..Config::default()
    };
    let server = format!("{address}:{}", coturn::PORT);
    let stun = IceServer { urls: vec![format!("stun:{server}")], username: None, credential: None };
    let coturn = Config {
        ice_servers: vec![stun],
        turn_urls: ["udp", "tcp"].map(|transport| format!("turn:{server}?transport={transport}")).into(),
        turn_secret: coturn::SECRET.into(),
        ..Config::default()
    };
    let mut running = tokio::task::JoinSet::new();
    for (config, port) in [(own, PORT), (coturn, PORT_COTURN)] {
        let tracker = Tracker::new(config).expect("the settings are valid");
        let listener = TcpListener::bind((address.as_str(), port)).await.expect("the port is free here");
        (0..streams).for_each(|number| tracker.stream_started(&format!("case{number}"), [1; 16]));
        let page = get(async || Html(include_str!("viewer.html")));
        let router = tracker.router().route("/viewer", page);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        running.spawn(async move { tracker.run(CancellationToken::new()).await });
        running.spawn(async move { axum::serve(listener, service).await.expect("it serves") });
    }
    println!("ready");
    std::io::stdout().flush().expect("the parent reads");
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop))
        .await
        .expect("reading until the end");
    running.shutdown().await;
}
