//! A WHIP endpoint for tests: real HTTP, real UDP, the `rtc` engine as answerer, and everything that arrives handed
//! to the test. It judges nothing and repairs only what the engine repairs.

#![allow(dead_code)] // Each test file uses its part.

mod connection;
pub(crate) mod decode;

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, post},
};
use connection::{Driver, answer};
use rtc::rtcp::sender_report::SenderReport;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::mpsc,
};

/// What the endpoint saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The offer of a new session.
    Offer { name: String, sdp: String, authorization: Option<String> },
    /// A media packet, after the engine undid SRTP and RTX.
    Rtp { is_video: bool, packet: rtc::rtp::Packet, unix_us: i64 },
    /// A sender report.
    Report { is_video: bool, report: SenderReport, unix_us: i64 },
    /// An RTCP BYE.
    Goodbye,
    /// DELETE of the session URL.
    Deleted { authorization: Option<String> },
}

/// How the endpoint behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behavior {
    /// Answer POST with this instead of 201.
    pub(crate) refuse: Option<(StatusCode, &'static str)>,
    /// Answer POST for this name with 409.
    pub(crate) refuse_name: Option<&'static str>,
    /// Advertise a UDP port that nobody serves.
    pub(crate) is_udp_dead: bool,
    /// Accept media over TCP, too.
    pub(crate) has_tcp: bool,
    /// Drop each n-th video datagram on arrival (before the engine sees it); 0 drops none.
    pub(crate) drop_each: u32,
    /// `Location` is this prefix and the session's id.
    pub(crate) location_prefix: &'static str,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            refuse: None,
            refuse_name: None,
            is_udp_dead: false,
            has_tcp: false,
            drop_each: 0,
            location_prefix: "/session/",
        }
    }
}

/// What a test can make the endpoint's connections do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Ask for a keyframe by PLI.
    Pli,
    /// Ask for a keyframe by FIR.
    Fir,
    /// Close the connection from the server's side.
    Close,
}

/// A running endpoint.
pub(crate) struct Endpoint {
    address: SocketAddr,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    behavior: Behavior,
    seen: mpsc::UnboundedSender<Seen>,
    sessions: Mutex<Vec<mpsc::UnboundedSender<Command>>>,
    dropped: AtomicU32,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Endpoint {
    pub(crate) async fn start(behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            behavior,
            seen: sender,
            sessions: Mutex::default(),
            dropped: AtomicU32::new(0),
        });
        let router = Router::new()
            .route("/whip/{name}", post(offer))
            .route("/session/{id}", delete(end))
            .route("/whip/session/{id}", delete(end))
            .with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, seen, shared, server }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/whip/{name}", self.address)
    }

    pub(crate) fn command(&self, command: Command) {
        for session in self.shared.sessions.lock().unwrap().iter() {
            let _ = session.send(command);
        }
    }

    /// Datagrams that were dropped on purpose.
    pub(crate) fn dropped(&self) -> u32 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// The next thing seen; panics when nothing happens for 10 s.
    pub(crate) async fn next(&mut self) -> Seen {
        tokio::time::timeout(Duration::from_secs(10), self.seen.recv())
            .await
            .expect("the publisher does something within 10 s")
            .expect("the endpoint runs")
    }

    /// What is seen until `enough` says so.
    pub(crate) async fn until(&mut self, mut enough: impl FnMut(&Seen) -> bool) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let seen = self.next().await;
            let is_enough = enough(&seen);
            all.push(seen);
            if is_enough {
                return all;
            }
        }
    }
}

async fn offer(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    sdp: String,
) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/sdp");
    if let Some((status, body)) = shared.behavior.refuse {
        return (status, body).into_response();
    }
    if shared.behavior.refuse_name == Some(name.as_str()) {
        return StatusCode::CONFLICT.into_response();
    }
    let _ = shared.seen.send(Seen::Offer { name, sdp: sdp.clone(), authorization: authorization(&headers) });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = shared.behavior.has_tcp.then(|| listener.local_addr().unwrap());
    let (connection, answer) = answer(sdp, socket.local_addr().unwrap(), tcp);
    if !shared.behavior.is_udp_dead || shared.behavior.has_tcp {
        let (sender, commands) = mpsc::unbounded_channel();
        shared.sessions.lock().unwrap().push(sender);
        tokio::spawn(Driver::new(connection, socket, listener, shared.clone()).run(commands));
    }
    let location = format!("{}{}", shared.behavior.location_prefix, 7);
    let headers = [(header::CONTENT_TYPE, "application/sdp".to_owned()), (header::LOCATION, location)];
    (StatusCode::CREATED, headers, answer).into_response()
}

async fn end(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> StatusCode {
    let _ = shared.seen.send(Seen::Deleted { authorization: authorization(&headers) });
    StatusCode::OK
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
}
