//! The servers' processes. They run until their standard input ends.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::Uri;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use shoal_tracker::{Config, Piece, Tracker};
use tokio::net::TcpListener;
use tower::ServiceExt as _;

/// How often a piece is published.
const PIECE_INTERVAL: Duration = Duration::from_secs(1);

/// The value of an option like `--port 80`.
fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).map(String::as_str)
}

/// A tracker with one stream and a piece each second. `--port`, `--joins` (a second) and `--secret` as in the settings.
pub(crate) async fn tracker(arguments: &[String]) {
    let config = Config {
        joins_per_s_max: option(arguments, "--joins")
            .map_or(100_000, |joins| joins.parse().expect("a number")),
        secret: option(arguments, "--secret").unwrap_or_default().into(),
        viewers_max: 100_000,
        // The crowd invents its addresses.
        trusted_proxies: vec!["127.0.0.0/8".into()],
        ..Config::default()
    };
    let tracker = Tracker::new(config).expect("the settings are valid");
    let port = option(arguments, "--port").unwrap_or("0");
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("a port on loopback");
    tracker.stream_started("demo", [1; 16]);
    say_address(&listener);
    let publisher = tracker.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(PIECE_INTERVAL);
        for msn in 0.. {
            interval.tick().await;
            let piece = Piece { rendition: 0, msn, part: 0 };
            let uri = format!("{}/v0/part-{msn}-0.m4s", "0".repeat(32));
            publisher.published("demo", piece, uri, &[7; 300], 187_500);
        }
    });
    let service = tracker.router().into_make_service_with_connect_info::<SocketAddr>();
    let serving = tokio::spawn(async move { axum::serve(listener, service).await });
    until_input_ends().await;
    serving.abort();
}

/// The WebTorrent protocol under TLS at `/`, where `aquatic_ws_load_test` looks for it, without limits on what a client
/// may send: each of its connections stands for many. `--certificate` and `--key` are PEM files.
pub(crate) async fn announce(arguments: &[String]) {
    let config = Config {
        viewers_max: 100_000,
        announce_messages_per_s_max: 1_000_000,
        announce_messages_burst: 1_000_000,
        announce_swarms_max: 1_000_000,
        announce_interval_s: 120,
        ..Config::default()
    };
    let router = Tracker::new(config).expect("the settings are valid").router();
    let read = |name: &str| {
        std::fs::read(option(arguments, name).unwrap_or_else(|| panic!("{name} is given"))).expect(name)
    };
    let certificate = rustls::pki_types::CertificateDer::from(read("--certificate"));
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(read("--key"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .expect("the key fits the certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    say_address(&listener);
    let serving = tokio::spawn(async move {
        loop {
            let Ok((stream, address)) = listener.accept().await else { continue };
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
                    *request.uri_mut() = Uri::from_static("/announce");
                    request.extensions_mut().insert(ConnectInfo(address));
                    router.clone().oneshot(request)
                });
                // What breaks here is the client's connection; the load test counts those that hold.
                let _ = http1::Builder::new()
                    .max_buf_size(8 * 1024)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    until_input_ends().await;
    serving.abort();
}

fn say_address(listener: &TcpListener) {
    println!("{}", listener.local_addr().expect("it is bound"));
    std::io::stdout().flush().expect("the parent reads");
}

async fn until_input_ends() {
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop))
        .await
        .expect("reading until the end");
}
