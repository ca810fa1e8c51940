//! The HTTP port: accepting connections, their limits, and ending them politely.
//!
//! `axum::serve` hides the connection-level settings that keep a public port alive: how long a header may take,
//! how many connections there may be, how long a reader may stall. What is answered is up to the router.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics::{counter, gauge};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tower::util::Oneshot;
use tracing::{debug, info, warn};

use crate::Error;
use crate::settings::Http;

/// How many requests one HTTP/2 connection may have open: a viewer has a handful, a CDN's connection more.
const HTTP2_STREAMS_MAX: u32 = 250;

/// A pause after a failed `accept`, which happens when file descriptors run out: trying again at once would
/// only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An open port.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    /// None in clear.
    tls: Option<TlsAcceptor>,
}

/// Opens a port.
///
/// # Errors
/// [`Error::Port`] if it is taken or not allowed.
pub(crate) async fn bind(
    purpose: &'static str,
    setting: &'static str,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> Result<Port, Error> {
    let fail = |source| Error::Port { purpose, address, setting, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    Ok(Port { address, listener, tls })
}

/// The places for connections, which all ports share.
pub(crate) fn room(settings: &Http) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(settings.connections_max))
}

/// Serves until `stop`; then lets requests under way finish, but not longer than the settings say.
pub(crate) async fn serve(
    Port { listener, tls, .. }: Port,
    router: Router,
    settings: &Http,
    room: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    // Requests that outlast the grace time are cut off with this.
    let abort = CancellationToken::new();
    let protocols = Arc::new(Protocols::new(settings));
    let handshake_max = Duration::from_millis(settings.header_timeout_ms);

    loop {
        let (stream, address) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    counter!("http_accept_errors_total").increment(1);
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            // Closed at once: a queue would only make every viewer wait.
            counter!("http_connections_refused_total").increment(1);
            continue;
        };
        counter!("http_connections_total").increment(1);
        set_options(&stream, settings);
        let (stop, abort) = (stop.clone(), abort.clone());
        let (router, protocols) = (router.clone(), protocols.clone());
        let connection = Connection { router, protocols, address, permit, stop, abort };
        match tls.clone() {
            None => connections.spawn(connection.run_http1(stream)),
            Some(tls) => connections.spawn(async move {
                // Whoever does not shake hands must not hold a place; one that stops in the middle is cut off too.
                let accepted = tokio::select! {
                    accepted = tokio::time::timeout(handshake_max, tls.accept(stream)) => accepted,
                    () = connection.stop.cancelled() => return,
                };
                match accepted {
                    Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                        connection.run_http2(stream).await;
                    }
                    Ok(Ok(stream)) => connection.run_http1(stream).await,
                    _ => counter!("http_tls_errors_total").increment(1),
                }
            }),
        };
    }

    connections.close();
    let grace = Duration::from_millis(settings.shutdown_grace_ms);
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        info!(connections = connections.len(), "connections are cut off after the grace time");
        abort.cancel();
        connections.wait().await;
    }
}

/// Makes small answers leave at once and stalled readers go away.
fn set_options(stream: &TcpStream, settings: &Http) {
    // Neither is essential, and a connection that is gone already refuses both.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(Duration::from_millis(settings.send_timeout_ms)));
}

/// How connections speak. Each is served by its own protocol's code and not by one that finds out which it is: what
/// both need would be held by each of ten thousand connections.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    fn new(settings: &Http) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(settings.header_timeout_ms))
            .max_buf_size(settings.header_bytes_max)
            // A request that waits for the next part does not look out for its client's end meanwhile: that would take
            // a second read buffer of 8 KiB for each. Whoever is gone is noticed when the part is written, and blocking
            // has a deadline.
            .half_close(true);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .max_header_list_size(u32::try_from(settings.header_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_millis(settings.header_timeout_ms))
            .keep_alive_timeout(Duration::from_millis(settings.send_timeout_ms));
        Self { http1, http2 }
    }
}

struct Connection {
    router: Router,
    protocols: Arc<Protocols>,
    address: SocketAddr,
    /// Gives the place back when the connection ends.
    permit: OwnedSemaphorePermit,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Connection {
    async fn run_http1<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { router, protocols, address, permit, stop, abort } = self;
        let connection = protocols
            .http1
            .serve_connection(TokioIo::new(stream), service_fn(with_address(router, address)))
            .with_upgrades();
        drive(pin!(connection), |connection| connection.graceful_shutdown(), &stop, &abort).await;
        drop(permit);
    }

    async fn run_http2<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { router, protocols, address, permit, stop, abort } = self;
        let connection =
            protocols.http2.serve_connection(TokioIo::new(stream), service_fn(with_address(router, address)));
        drive(pin!(connection), |connection| connection.graceful_shutdown(), &stop, &abort).await;
        drop(permit);
    }
}

/// Hands requests to the router, which learns from whom they come.
fn with_address(
    router: Router,
    address: SocketAddr,
) -> impl Fn(Request<Incoming>) -> Oneshot<Router, Request<Incoming>> {
    move |mut request| {
        request.extensions_mut().insert(ConnectInfo(address));
        router.clone().oneshot(request)
    }
}

/// Serves a connection to its end: its own, or politely from `stop` on, or at once on `abort`.
async fn drive<C>(
    mut connection: Pin<&mut C>,
    end: fn(Pin<&mut C>),
    stop: &CancellationToken,
    abort: &CancellationToken,
) where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let open = gauge!("http_connections_open");
    open.increment(1);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    counter!("http_connection_errors_total").increment(1);
                    debug!(%error, "a connection ended with an error");
                }
                break;
            }
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                end(connection.as_mut());
            }
            () = abort.cancelled() => break,
        }
    }
    open.decrement(1);
}
