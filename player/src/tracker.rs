//! The socket to the tracker: joins, reconnects with jitter, passes messages both ways.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use rand::Rng as _;
use reqwest::Url;
use shoal_tracker_protocol::{TrackerMessage, VERSION, ViewerMessage};
use tokio::{sync::mpsc, time::sleep};
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_util::sync::CancellationToken;

/// The first pause before a new attempt; doubles up to [`PAUSE_MAX`]. A restarted tracker has everybody back in
/// seconds, and the jitter spreads them.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// No message of the tracker is longer.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// What comes from the tracker.
#[derive(Debug)]
pub(crate) enum TrackerEvent {
    /// A message.
    Message(Box<TrackerMessage>),
    /// The connection is gone; another attempt follows.
    Lost,
}

/// How to join.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) url: Url,
    pub(crate) stream: String,
    pub(crate) token: Option<String>,
    pub(crate) shares: bool,
    pub(crate) renditions: Vec<u8>,
}

/// Keeps a connection until cancelled.
pub(crate) async fn run(
    join: Join,
    mut outgoing: mpsc::Receiver<ViewerMessage>,
    events: mpsc::Sender<TrackerEvent>,
    stop: CancellationToken,
) {
    let mut resume = None;
    let mut pause = PAUSE_MIN;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = connection(&join, &mut resume, &mut outgoing, &events) => ended,
        };
        if ended.is_final || events.send(TrackerEvent::Lost).await.is_err() {
            return;
        }
        pause = if ended.was_welcome { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        let wait = ended.within.unwrap_or(pause);
        // Half to all of the pause, or any part of what the tracker said: so that a crowd does not come back at once.
        let from = if ended.within.is_some() { 0.0 } else { 0.5 };
        let wait = wait.mul_f64(rand::rng().random_range(from..=1.0));
        // Messages of the time without a connection are out of date.
        let drain = async {
            while outgoing.recv().await.is_some() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
            () = drain => {}
        }
    }
}

#[derive(Default)]
struct Ended {
    was_welcome: bool,
    is_final: bool,
    within: Option<Duration>,
}

/// One connection, from its opening to its end.
async fn connection(
    join: &Join,
    resume: &mut Option<String>,
    outgoing: &mut mpsc::Receiver<ViewerMessage>,
    events: &mpsc::Sender<TrackerEvent>,
) -> Ended {
    let mut ended = Ended::default();
    let limits = WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let connect = tokio_tungstenite::connect_async_with_config(join.url.as_str(), Some(limits), true);
    let mut socket = match tokio::time::timeout(Duration::from_secs(10), connect).await {
        Ok(Ok((socket, _))) => socket,
        Ok(Err(error)) => {
            tracing::warn!(%error, "no connection to the tracker");
            return ended;
        }
        Err(_) => {
            tracing::warn!("no answer from the tracker");
            return ended;
        }
    };
    let hello = ViewerMessage::Join {
        version: VERSION,
        stream: join.stream.clone(),
        token: join.token.clone(),
        resume: resume.clone(),
        shares: join.shares,
        renditions: join.renditions.clone(),
    };
    if send(&mut socket, &hello).await.is_err() {
        return ended;
    }
    let mut ping = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            message = outgoing.recv() => match message {
                Some(message) if send(&mut socket, &message).await.is_ok() => {}
                None => {
                    let _ = socket.close(None).await;
                    ended.is_final = true;
                    return ended;
                }
                Some(_) => return ended,
            },
            _ = ping.tick() => if send(&mut socket, &ViewerMessage::Ping).await.is_err() {
                return ended;
            },
            frame = socket.next() => {
                let text = match frame {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return ended,
                    Some(Ok(_)) => continue,
                };
                // A message of a later version is not an error: it is skipped.
                let message = match serde_json::from_str::<TrackerMessage>(&text) {
                    Ok(message) => message,
                    Err(error) => {
                        tracing::debug!(%error, "a message that this version does not know");
                        continue;
                    }
                };
                tracing::trace!(?message, "from the tracker");
                match &message {
                    TrackerMessage::Welcome(welcome) => {
                        ended.was_welcome = true;
                        *resume = Some(welcome.resume.clone());
                    }
                    TrackerMessage::Drain { reconnect_within_ms } => {
                        ended.within = Some(Duration::from_millis(u64::from(*reconnect_within_ms)));
                    }
                    TrackerMessage::Error { fatal: true, retry_after_ms, .. } => {
                        ended.is_final = retry_after_ms.is_none();
                        ended.within = retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms) * 2));
                    }
                    _ => {}
                }
                if events.send(TrackerEvent::Message(Box::new(message))).await.is_err() {
                    ended.is_final = true;
                    return ended;
                }
            }
        }
    }
}

async fn send<S>(socket: &mut S, message: &ViewerMessage) -> Result<(), ()>
where
    S: futures::Sink<Message> + Unpin,
{
    let text = serde_json::to_string(message).expect("viewer messages have string keys only");
    socket.send(Message::text(text)).await.map_err(|_| ())
}
