//! One viewer of the crowd, as the protocol wants it: joins, reports, answers introductions, pings, and comes back when
//! its connection breaks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// PROTOCOL.md, section 2: after a broken connection a random delay of up to this, then of half to all of it, doubled with
/// each failure.
const RETRY: Duration = Duration::from_secs(1);
/// The most that it doubles to.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// What the crowd counts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) welcomed: AtomicU64,
    pub(crate) introduced: AtomicU64,
    pub(crate) closed: AtomicU64,
    /// From `join` to `welcome`, and from `join` to the first `introduce`, in microseconds.
    pub(crate) welcome_us: Mutex<Vec<u64>>,
    pub(crate) introduce_us: Mutex<Vec<u64>>,
    /// When viewers were welcomed, and whether they got their old place.
    pub(crate) welcomes: Mutex<Vec<(Instant, bool)>>,
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

/// An address for a viewer that the server is told as a proxy would tell it: of 2,000 networks, so that limits for each
/// address, budgets and nearness do their work.
fn somewhere() -> String {
    let (network, host) = (rand::random::<u16>() % 2_000, 1 + rand::random::<u8>() % 254);
    format!("77.{}.{}.{host}", network / 250, network % 250)
}

/// Opens a socket for somebody with this address.
pub(crate) async fn connect(address: SocketAddr, from: &str) -> Option<Socket> {
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let config = WebSocketConfig::default().read_buffer_size(4_096).write_buffer_size(0);
    let mut request = format!("ws://{address}/tracker").into_client_request().ok()?;
    request.headers_mut().insert("x-forwarded-for", from.parse().ok()?);
    tokio_tungstenite::client_async_with_config(request, stream, Some(config))
        .await
        .ok()
        .map(|(socket, _)| socket)
}

/// A viewer that stays: it comes back as often as it has to.
pub(crate) async fn faithful(address: SocketAddr, counts: &Counts) {
    let mut place = Place::default();
    let mut failures = 0;
    loop {
        let welcomed = counts.welcomed.load(Ordering::Relaxed);
        let asked = once(address, counts, &mut place).await;
        let was_welcomed = place.is_welcomed && counts.welcomed.load(Ordering::Relaxed) > welcomed;
        failures = if was_welcomed { 0 } else { failures + 1 };
        let limit = RETRY.saturating_mul(1 << failures.min(4)).min(RETRY_MAX);
        let random: f64 = rand::random();
        let share = if failures == 0 { random } else { (1.0 + random) / 2.0 };
        let wait = asked.unwrap_or_else(|| limit.mul_f64(share));
        tokio::time::sleep(wait).await;
    }
}

/// What a viewer keeps when its connection breaks.
pub(crate) struct Place {
    from: String,
    peer: u64,
    resume: String,
    is_welcomed: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { from: somewhere(), peer: 0, resume: String::new(), is_welcomed: false }
    }
}

/// One connection, until it ends. Tells how long the tracker asked to wait, if it did.
pub(crate) async fn once(address: SocketAddr, counts: &Counts, place: &mut Place) -> Option<Duration> {
    place.is_welcomed = false;
    let mut socket = connect(address, &place.from).await?;
    let joined = Instant::now();
    let us = || u64::try_from(joined.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut join = serde_json::json!({
        "type": "join", "version": 1, "stream": "demo", "shares": true, "renditions": [0],
    });
    if !place.resume.is_empty() {
        join["resume"] = place.resume.clone().into();
    }
    socket.send(Message::text(join.to_string())).await.ok()?;
    let mut introductions = 0;
    let mut asked = None;
    let mut ping = tokio::time::interval(Duration::from_secs(10));
    ping.reset();
    loop {
        let received = tokio::select! {
            received = socket.next() => received,
            _ = ping.tick() => {
                socket.send(Message::text(r#"{"type":"ping"}"#)).await.ok()?;
                continue;
            }
        };
        let Some(Ok(Message::Text(text))) = received else { return asked };
        if text.starts_with(r#"{"type":"welcome""#) {
            let welcome: serde_json::Value = serde_json::from_str(&text).ok()?;
            let peer = welcome["peer"].as_u64()?;
            counts.welcomed.fetch_add(1, Ordering::Relaxed);
            counts.welcome_us.lock().push(us());
            counts.welcomes.lock().push((Instant::now(), peer == place.peer));
            place.peer = peer;
            welcome["resume"].as_str()?.clone_into(&mut place.resume);
            place.is_welcomed = true;
            // Of 2 to 12 Mbit/s each, so that the planner has about twice what the stream needs.
            let uplink_kbps = 2_000 + us() % 10_000;
            let report = format!(
                r#"{{"type":"report","uplink_kbps":{uplink_kbps},"renditions":[0],"buffer_ms":1500,"behind_ms":2000,"peer_bytes":0,"origin_bytes":0,"sent_bytes":0,"waste_bytes":0,"rebuffer_ms":0}}"#
            );
            socket.send(Message::text(report)).await.ok()?;
        } else if let Some(rest) = text.strip_prefix(r#"{"type":"introduce","peer":"#) {
            introductions += 1;
            counts.introduced.fetch_add(1, Ordering::Relaxed);
            if introductions == 1 {
                counts.introduce_us.lock().push(us());
            }
            let peer: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let connected = format!(r#"{{"type":"connected","peer":{peer},"rtt_ms":20}}"#);
            socket.send(Message::text(connected)).await.ok()?;
        } else if text.starts_with(r#"{"type":"error""#) {
            let error: serde_json::Value = serde_json::from_str(&text).ok()?;
            asked = error["retry_after_ms"].as_u64().map(Duration::from_millis);
        }
    }
}

/// A quantile in milliseconds.
pub(crate) fn quantile_ms(times: &Mutex<Vec<u64>>, percent: usize) -> f64 {
    let mut times = times.lock();
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * percent / 100).map_or(0.0, |us| *us as f64 / 1_000.0)
}
