//! The socket to the tracker: joins, reconnects with jitter, passes messages both ways.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use rand::Rng as _;
use reqwest::Url;
use shoal_tracker_protocol::{TrackerMessage, VERSION, ViewerMessage};
use tokio::{sync::mpsc, time::sleep};
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_util::sync::CancellationToken;

/// A new attempt comes after a random part of this pause, later ones after half to all of it; it doubles with each
/// failure up to [`PAUSE_MAX`]. A restarted tracker has everybody back in seconds, and the jitter spreads them. Both as
/// PROTOCOL.md says.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);
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
        if ended.was_welcome {
            pause = PAUSE_MIN;
        }
        let wait = ended.wait(pause, rand::rng().random());
        pause = (pause * 2).min(PAUSE_MAX);
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
    /// What a stopping tracker said: come back after any part of this.
    within: Option<Duration>,
    /// What a refusing tracker said: come back after this.
    turn: Option<Duration>,
}

impl Ended {
    /// How long to wait before the next attempt, for a random number between 0 and 1.
    fn wait(&self, pause: Duration, random: f64) -> Duration {
        match (self.turn, self.within) {
            (Some(turn), _) => turn,
            (None, Some(within)) => within.mul_f64(random),
            (None, None) if pause > PAUSE_MIN => pause.mul_f64((1.0 + random) / 2.0),
            (None, None) => pause.mul_f64(random),
        }
    }
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
                        ended.turn = retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_attempt_comes_when_the_tracker_said_and_else_after_any_part_of_the_pause() {
        let second = Duration::from_secs(1);
        let lost = Ended::default();
        assert_eq!((lost.wait(PAUSE_MIN, 0.0), lost.wait(PAUSE_MIN, 1.0)), (Duration::ZERO, PAUSE_MIN));
        assert_eq!((lost.wait(8 * second, 0.0), lost.wait(8 * second, 1.0)), (4 * second, 8 * second));
        let refused = Ended { turn: Some(2 * second), ..Ended::default() };
        assert_eq!((refused.wait(second, 0.0), refused.wait(second, 1.0)), (2 * second, 2 * second));
        let drained = Ended { within: Some(10 * second), ..Ended::default() };
        assert_eq!((drained.wait(second, 0.0), drained.wait(second, 0.5)), (Duration::ZERO, 5 * second));
    }
}
