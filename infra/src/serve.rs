//! `shoal serve`: the services joined into one program.
//!
//! ```text
//! WHIP, UDP ──> ingest ──frames──> segmenter ──published──> tracker ──> viewers' sockets
//!                                      └──────> origin ──> playlists and media over HTTP
//! ```
//! Each service brings its own routes and its own metrics; here they get one port, one set of limits and one end.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli;
use crate::settings::{self, Settings};
use crate::{Error, http as port, pages, telemetry};

/// Runs `shoal serve` until SIGINT or SIGTERM.
///
/// # Errors
/// [`Error`], before anything is served.
pub async fn run(flags: &cli::Serve) -> Result<(), Error> {
    if flags.print_config {
        print!("{}", Settings::default_file());
        return Ok(());
    }
    let mut settings = Settings::load(flags.config.as_deref(), std::env::vars())?;
    if let Some(listen) = &flags.listen {
        settings.http.listen.clone_from(listen);
    }
    if let Some(level) = &flags.log {
        settings.log.level.clone_from(level);
    }
    settings.validate()?;
    telemetry::start_logs(&settings.log)?;
    let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    for variable in settings::unknown_variables(names.iter().map(String::as_str)) {
        warn!(variable, "this environment variable is no setting and has no effect");
    }

    let server = Server::start(&settings).await?;
    let signal = terminated();
    server.announce(&settings);
    signal.await;
    info!("stopping");
    tokio::select! {
        () = server.stop() => info!("stopped"),
        // Whoever asks twice does not want to wait.
        () = terminated() => warn!("stopped at once"),
    }
    Ok(())
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    http: JoinHandle<()>,
    upkeep: JoinHandle<()>,
}

impl Server {
    /// Opens the ports and starts everything.
    ///
    /// # Errors
    /// [`Error::Port`], [`Error::SigningKey`] or [`Error::Service`]; nothing keeps running then.
    pub async fn start(settings: &Settings) -> Result<Self, Error> {
        // First, so that counters which services look up at their start are the exported ones.
        let metrics = telemetry::metrics();
        let listener = port::bind(&settings.http).await?;
        let address = listener.local_addr().map_err(|source| Error::Port {
            purpose: "HTTP",
            address: ([0, 0, 0, 0], 0).into(),
            source,
        })?;

        let router = Router::new()
            .route("/metrics", get(render_metrics).with_state(metrics.clone()))
            .route("/healthz", get(|| async { "ok\n" }))
            .merge(pages::router(Vec::new()))
            .fallback(|| std::future::ready(pages::not_found()));
        let stop = CancellationToken::new();
        let serving = {
            let (settings, stop) = (settings.http.clone(), stop.clone());
            async move { port::serve(listener, router, &settings, stop).await }
        };
        Ok(Self {
            address,
            stop,
            http: tokio::spawn(serving),
            upkeep: tokio::spawn(telemetry::keep_metrics(metrics)),
        })
    }

    /// Where the HTTP port is, with the number that the system chose for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: no new connections, requests under way are finished, then everything is gone.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic in there was printed by the runtime already.
        let _ = self.http.await;
        self.upkeep.abort();
    }

    /// Prints where people find it.
    fn announce(&self, settings: &Settings) {
        let base = base_url(&settings.http.public_url, self.address);
        // Not a log line: this is what an operator, or a test that chose port 0, waits for.
        println!(
            "Shoal is ready.\n  publish  {base}/publish\n  watch    {base}/\n  WHIP     {base}/whip/<stream>"
        );
    }
}

/// The address for links: as configured, or by the port on this machine.
fn base_url(public_url: &str, address: SocketAddr) -> String {
    if !public_url.is_empty() {
        return public_url.trim_end_matches('/').to_owned();
    }
    // Browsers give camera and microphone to pages from `localhost` without TLS, not to those from other names.
    if address.ip().is_unspecified() || address.ip().is_loopback() {
        return format!("http://localhost:{}", address.port());
    }
    format!("http://{address}")
}

async fn render_metrics(State(metrics): State<PrometheusHandle>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
}

/// Waits for SIGINT or SIGTERM. The handlers are in place when this returns the future.
fn terminated() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let handler = |kind| signal(kind).expect("a handler can be installed inside the runtime");
        let (mut interrupt, mut terminate) =
            (handler(SignalKind::interrupt()), handler(SignalKind::terminate()));
        async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
    }
    #[cfg(not(unix))]
    async {
        let _ = tokio::signal::ctrl_c().await;
    }
}

#[cfg(test)]
mod tests {
    use super::base_url;

    #[test]
    fn links_are_ones_that_a_browser_can_open() {
        for (public_url, address, expected) in [
            ("", "0.0.0.0:8080", "http://localhost:8080"),
            ("", "[::1]:1", "http://localhost:1"),
            ("", "192.0.2.1:80", "http://192.0.2.1:80"),
            ("https://live.example/", "0.0.0.0:8080", "https://live.example"),
        ] {
            assert_eq!(base_url(public_url, address.parse().unwrap()), expected);
        }
    }
}
