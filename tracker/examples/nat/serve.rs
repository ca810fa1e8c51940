//! The tracker of the matrix, with STUN and TURN.

use std::io::Write as _;
use std::net::SocketAddr;

use shoal_tracker::{Config, Tracker};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Its HTTP port, inside its namespace.
pub(crate) const PORT: u16 = 8080;

/// Serves one stream for each case until its standard input ends.
pub(crate) async fn run(address: String, streams: usize) {
    let config = Config {
        stun_listen: format!("{address}:3478"),
        turn: true,
        turn_relay_address: address.clone(),
        ..Config::default()
    };
    let tracker = Tracker::new(config).expect("the settings are valid");
    let listener = TcpListener::bind((address.as_str(), PORT)).await.expect("the port is free here");
    (0..streams).for_each(|number| tracker.stream_started(&format!("case{number}"), [1; 16]));
    let running = tokio::spawn({
        let tracker = tracker.clone();
        async move { tracker.run(CancellationToken::new()).await }
    });
    let service = tracker.router().into_make_service_with_connect_info::<SocketAddr>();
    let serving = tokio::spawn(async move { axum::serve(listener, service).await });
    println!("ready");
    std::io::stdout().flush().expect("the parent reads");
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop))
        .await
        .expect("reading until the end");
    serving.abort();
    running.abort();
}
