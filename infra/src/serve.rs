//! `shoal serve`: the services joined into one program.
//!
//! ```text
//! WHIP, UDP ──> ingest ──frames──> segmenter ──published──> tracker ──> viewers' sockets
//!                                      └──────> origin ──> playlists and media over HTTP
//! ```
//! Each service brings its own routes and its own metrics; here they get one port, one set of limits and one end.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ed25519_dalek::SigningKey;
use http::header;
use metrics_exporter_prometheus::PrometheusHandle;
use shoal_ingest::Ingest;
use shoal_segmenter::{Event, Origin, Streams};
use shoal_tracker::Tracker;
use tokio::sync::broadcast::Receiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::http::Port;
use crate::settings::{self, Http, Settings};
use crate::signals::{terminal_closed, terminated};
use crate::tls::Certificates;
use crate::{Error, api, cli, http as port, keys, pages, publish, telemetry, wiring};

/// Closing recordings may take so long when the program ends: their playlists are written then.
const RECORDINGS_MAX: Duration = Duration::from_secs(10);

/// Runs `shoal serve` until SIGINT or SIGTERM, or until the terminal that it was started in is closed.
///
/// # Errors
/// [`Error`], before anything is served.
pub async fn run(flags: &cli::Serve) -> Result<(), Error> {
    let settings = effective(flags)?;
    telemetry::start_logs(&settings.log)?;
    let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    for variable in settings::unknown_variables(names.iter().map(String::as_str)) {
        warn!(variable, "this environment variable is no setting and has no effect");
    }
    if flags.print_config {
        print!("{}", settings.to_file());
        return Ok(());
    }

    let server = Server::start(&settings).await?;
    let (signal, hangup) = (terminated(), terminal_closed(|| tell_what_is_read_again(&settings)));
    let pattern = flags.test_pattern.as_ref().map(|stream| publish::test_pattern(server.address, stream));
    server.announce(&settings, flags.test_pattern.as_deref());
    tokio::select! {
        () = signal => {}
        () = hangup => {}
    }
    info!("stopping");
    let stopping = async {
        if let Some(pattern) = pattern {
            pattern.stop().await;
        }
        server.stop().await;
    };
    tokio::select! {
        () = stopping => info!("stopped"),
        // Whoever asks twice does not want to wait.
        () = terminated() => warn!("stopped at once"),
    }
    Ok(())
}

/// Answers a SIGHUP, which `systemctl reload` sends. What comes of reading a certificate is told where that is done.
fn tell_what_is_read_again(settings: &Settings) {
    if settings.http.tls_certificate_file.is_empty() {
        info!(
            "SIGHUP: there is no certificate file to read again; other settings take effect at the next start"
        );
    } else {
        info!("SIGHUP: the certificate is read again; other settings take effect at the next start");
    }
}

/// What file, environment and flags make together, checked.
fn effective(flags: &cli::Serve) -> Result<Settings, Error> {
    let mut settings = Settings::load(flags.config.as_deref(), std::env::vars())?;
    if let Some(listen) = &flags.listen {
        settings.http.listen.clone_from(listen);
    }
    if flags.tls_self_signed {
        settings.http.tls_self_signed = true;
    }
    if !flags.public_ip.is_empty() {
        settings.ingest.public_ips.clone_from(&flags.public_ip);
    }
    if let Some(level) = &flags.log {
        settings.log.level.clone_from(level);
    }
    if !flags.ladder.is_empty() {
        settings.segmenter.ladder.clone_from(&flags.ladder);
    }
    if let Some(place) = &flags.record {
        settings.segmenter.recording = true;
        if !place.is_empty() {
            settings.segmenter.storage.clone_from(place);
        }
    }
    settings.pull.streams.extend(flags.pull.iter().cloned());
    settings.validate()?;
    Ok(settings)
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    media_address: SocketAddr,
    streams: Streams,
    /// Stops what makes media and meetings.
    stop_services: CancellationToken,
    /// Stops what answers; after the services, so that viewers hear their goodbyes.
    stop_http: CancellationToken,
    services: Vec<JoinHandle<()>>,
    http: Vec<JoinHandle<()>>,
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
        shoal_segmenter::check_ffmpeg().map_err(|error| Error::service("FFmpeg", error))?;
        let key = SigningKey::from_bytes(&keys::load(&settings.keys)?);
        let certificates = Certificates::load(&settings.http)?;
        let ports = open_ports(settings, certificates.as_ref()).await?;
        let (address, tls_address) = (ports[0].address, ports.get(1).map(|port| port.address));
        let services = Services::open(settings, key).await?;
        let (media_address, streams) = (services.ingest.media_address(), services.streams.clone());

        let router = services.router(settings, metrics.clone());
        let (stop_services, stop_http) = (CancellationToken::new(), CancellationToken::new());
        let mut services = services.run(&stop_services, &stop_http);
        if let Some(certificates) = certificates {
            services.push(tokio::spawn(certificates.keep(stop_http.clone())));
        }
        let http = serve_ports(ports, &router, &settings.http, &stop_http);
        let upkeep = tokio::spawn(telemetry::keep_metrics(metrics));
        Ok(Self {
            address,
            tls_address,
            media_address,
            streams,
            stop_services,
            stop_http,
            services,
            http,
            upkeep,
        })
    }

    /// Where the HTTP port is, with the number that the system chose for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the port with TLS is, if there is one.
    #[must_use]
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// The registry of streams, for publishing from within the process, as load tests do.
    #[must_use]
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Where media from publishers is received.
    #[must_use]
    pub fn media_address(&self) -> SocketAddr {
        self.media_address
    }

    /// Stops: publishers and viewers are told, streams end, requests under way are finished, then everything is gone.
    pub async fn stop(self) {
        self.stop_services.cancel();
        self.streams.close();
        self.stop_http.cancel();
        for service in self.services {
            // A panic in there was printed by the runtime already.
            let _ = service.await;
        }
        for port in self.http {
            let _ = port.await;
        }
        // Whoever does not want to wait asks twice; the next start then closes what is open.
        self.streams.recorded(RECORDINGS_MAX).await;
        self.upkeep.abort();
    }

    /// Prints where people find it.
    fn announce(&self, settings: &Settings, pattern: Option<&str>) {
        let base = base_url(&settings.http.public_url, self.address);
        // Not log lines: this is what an operator, or a test that chose port 0, waits for.
        let watch = match pattern {
            Some(stream) => format!("{base}/watch/{stream}   (the test pattern)\n  all      {base}/"),
            None => format!("{base}/"),
        };
        let tls = self.tls_address.map_or_else(String::new, |address| {
            let note = if settings.http.tls_self_signed { "   (self-signed)" } else { "" };
            format!("\n  TLS      {}/{note}", local_url("https", address))
        });
        let pulled: String = settings
            .pull
            .streams
            .iter()
            .map(|source| format!("\n  watch    {base}/watch/{}   (pulled)", source.name))
            .collect();
        let recorded = settings.segmenter.storage_target().filter(|_| settings.segmenter.recording);
        let recorded = recorded.map_or_else(String::new, |place| format!("\n  recorded in {place}"));
        // In one write, and whether or not anybody reads it: a closed pipe is no reason to end the service.
        let _ = writeln!(
            std::io::stdout(),
            "Shoal is ready.\n  publish  {base}/publish\n  WHIP     {base}/whip/NAME{tls}\n  watch    {watch}{pulled}{recorded}"
        );
    }
}

/// Opens the port in clear, and behind it in the list the one with TLS if there is a certificate.
async fn open_ports(
    settings: &Settings,
    certificates: Option<&Arc<Certificates>>,
) -> Result<Vec<Port>, Error> {
    let clear = port::bind("HTTP", "http.listen or --listen", settings.http.address()?, None).await?;
    let mut ports = vec![clear];
    if let (Some(certificates), Some(address)) = (certificates, settings.http.tls_address()?) {
        ports.push(port::bind("TLS", "http.tls_listen", address, Some(certificates.acceptor())).await?);
    }
    Ok(ports)
}

/// Answers on all ports, with one limit for all, until `stop`.
fn serve_ports(
    ports: Vec<Port>,
    router: &Router,
    settings: &Http,
    stop: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    let room = port::room(settings);
    let serve = |open| {
        let (settings, stop) = (settings.clone(), stop.clone());
        let (router, room) = (router.clone(), room.clone());
        tokio::spawn(async move { port::serve(open, router, &settings, room, stop).await })
    };
    ports.into_iter().map(serve).collect()
}

/// The services, ready to run.
struct Services {
    streams: Streams,
    /// What the streams do, for the tracker.
    events: Receiver<Event>,
    tracker: Tracker,
    ingest: Ingest,
}

impl Services {
    /// Opens their ports and files, and joins them.
    async fn open(settings: &Settings, key: SigningKey) -> Result<Self, Error> {
        let streams = Streams::open(settings.segmenter.clone(), key)
            .map_err(|error| Error::service("storage", error))?;
        let tracker = Tracker::new(settings.tracker.clone()).map_err(|error| match error {
            shoal_tracker::Error::StunPort { address, source } => {
                Error::Port { purpose: "STUN", address, setting: "tracker.stun_listen", source }
            }
            error => Error::service("tracker", error),
        })?;
        tracker.watch_recordings({
            let streams = streams.clone();
            move |stream, epoch| streams.has_recording(stream, &hex::encode(epoch))
        });
        // Before there can be a publisher: an event that nobody hears is lost.
        let events = streams.subscribe();
        let ingest = Ingest::bind(settings.ingest.clone(), Arc::new(streams.clone())).await;
        let ingest = ingest.map_err(|error| match error {
            shoal_ingest::Error::Bind { address, source } => {
                Error::Port { purpose: "media", address, setting: "ingest.media_address", source }
            }
            error => Error::service("ingest", error),
        })?;
        streams.pull(&settings.pull).map_err(|error| Error::service("pull", error))?;
        Ok(Self { streams, events, tracker, ingest })
    }

    /// All that is answered over HTTP.
    fn router(&self, settings: &Settings, metrics: PrometheusHandle) -> Router {
        Router::new()
            .route("/metrics", get(render_metrics).with_state(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .merge(api::router(self.streams.clone(), self.tracker.clone()))
            .merge(self.ingest.router())
            .merge(Origin::router(self.streams.clone()))
            .merge(self.tracker.router())
            .merge(pages::router(pages::connect_sources(&settings.segmenter.tracker_url)))
            .fallback(|| std::future::ready(pages::not_found()))
    }

    /// Starts their tasks. Publications are passed on to the tracker for as long as there is somebody to hear of them.
    fn run(self, stop: &CancellationToken, stop_http: &CancellationToken) -> Vec<JoinHandle<()>> {
        let Self { streams, events, tracker, ingest } = self;
        vec![
            tokio::spawn(wiring::run(streams, events, tracker.clone(), stop_http.clone())),
            tokio::spawn({
                let stop = stop.clone();
                async move { tracker.run(stop).await }
            }),
            tokio::spawn({
                let stop = stop.clone();
                async move {
                    if let Err(error) = ingest.run(stop).await {
                        error!(%error, "publishers cannot be received any more");
                    }
                }
            }),
        ]
    }
}

/// The address for links: as configured, or by the port on this machine.
fn base_url(public_url: &str, address: SocketAddr) -> String {
    if !public_url.is_empty() {
        return public_url.trim_end_matches('/').to_owned();
    }
    local_url("http", address)
}

fn local_url(scheme: &str, address: SocketAddr) -> String {
    // Browsers give camera and microphone to pages from `localhost` without TLS, not to those from other names.
    if address.ip().is_unspecified() || address.ip().is_loopback() {
        return format!("{scheme}://localhost:{}", address.port());
    }
    format!("{scheme}://{address}")
}

async fn render_metrics(State(metrics): State<PrometheusHandle>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
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
