//! One viewer's WebSocket: bytes to messages and back, and nothing else.
//!
//! What is kept for an idle viewer is what ten thousand of them cost, so: small buffers, one task, no copies of what
//! the swarm sends to all.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures::{SinkExt as _, StreamExt as _};
use metrics::counter;
use shoal_tracker_protocol::{ErrorCode, TrackerMessage, VERSION, ViewerMessage};
use tokio::time::timeout;

use super::Shared;
use super::gate::{Place, later_ms};
use super::ice;
use super::queue::{self, Frame, Frames, Goodbye};
use super::room::{Event, Join, Room};
use crate::swarm::Session;

/// Messages written before the socket is flushed.
const WRITE_BATCH_MAX: usize = 32;
/// What is no message of the protocol, including WebSocket pings, before the viewer is refused.
const STRIKES_MAX: u32 = 50;

/// What those are told who have no token that holds.
const TOKEN_WANTED: &str = "this stream wants a valid viewer token";

/// A refusal to be told to the viewer.
struct Refusal {
    code: ErrorCode,
    message: &'static str,
    retry_after_ms: Option<u32>,
}

/// How a connection ended.
enum End {
    /// The viewer said goodbye.
    Final,
    /// It broke, or we closed it.
    Broken,
}

/// Serves a connection until it ends. `place` is given back then.
pub(super) async fn serve(
    mut socket: WebSocket,
    shared: Arc<Shared>,
    address: IpAddr,
    place: Place,
    host: Option<String>,
) {
    let within = Duration::from_millis(shared.config.join_within_ms.into());
    let closing = place.closing();
    let joined = tokio::select! {
        joined = timeout(within, join(&mut socket, &shared, address, &place, host.as_deref())) => joined
            .unwrap_or_else(|_| Err(Some(refusal(ErrorCode::OutOfOrder, "no join came in time", None)))),
        () = closing.cancelled() => {
            // The tracker stops, and who has not joined has nothing to lose.
            let close = Message::Close(Some(close_frame(Goodbye::Away)));
            let _ = timeout(within, socket.send(close)).await;
            Err(None)
        }
    };
    match joined {
        Ok((room, frames)) => {
            let stall_max = Duration::from_millis(shared.config.write_stall_max_ms.into());
            let mut viewer = Viewer { socket, stall_max, strikes: 0 };
            // The task lives as long as the viewer: what only joining needed goes now.
            drop(shared);
            viewer.run(&room, frames).await;
        }
        Err(None) => {}
        Err(Some(Refusal { code, message, retry_after_ms })) => {
            counter!("tracker_joins_refused_total", "code" => label(code)).increment(1);
            let error = TrackerMessage::Error { code, message: message.into(), fatal: true, retry_after_ms };
            let _ = timeout(within, async {
                socket.send(Message::Text(json(&error))).await?;
                socket.send(Message::Close(Some(close_frame(Goodbye::Done)))).await
            })
            .await;
        }
    }
    drop(place);
}

fn refusal(code: ErrorCode, message: &'static str, retry_after_ms: Option<u32>) -> Refusal {
    Refusal { code, message, retry_after_ms }
}

/// Reads the first message and takes the viewer to its swarm. None if the connection ended.
async fn join(
    socket: &mut WebSocket,
    shared: &Shared,
    address: IpAddr,
    place: &Place,
    host: Option<&str>,
) -> Result<(Room, Frames), Option<Refusal>> {
    let text = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => break text,
            Some(Ok(Message::Binary(_))) => {
                return Err(Some(refusal(ErrorCode::Malformed, "messages are text", None)));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(None),
        }
    };
    let Ok(message) = serde_json::from_str(&text) else {
        return Err(Some(refusal(ErrorCode::Malformed, "not a message of this protocol", None)));
    };
    drop(text);
    let ViewerMessage::Join { version, stream, token, resume, shares, renditions } = message else {
        return Err(Some(refusal(ErrorCode::OutOfOrder, "the first message must be join", None)));
    };
    if version != VERSION {
        return Err(Some(refusal(ErrorCode::Version, "this tracker speaks version 1", None)));
    }
    if let Err(retry_after_ms) = shared.gate.may_join(place, shared.clock.now_ms()) {
        let refusal = refusal(ErrorCode::RateLimited, "too many joins, come back", Some(retry_after_ms));
        return Err(Some(refusal));
    }
    let credential = match shared.check_token(&stream, token.as_deref(), resume.as_deref()) {
        Ok(credential) => credential,
        Err(refused) => {
            counter!("tracker_tokens_refused_total", "why" => refused.label()).increment(1);
            return Err(Some(refusal(ErrorCode::Refused, TOKEN_WANTED, None)));
        }
    };
    shared.open_recording(&stream);
    let Some((room, switches)) = shared.room(&stream) else {
        let why = "no stream of this name is live, and there is no such recording";
        return Err(Some(refusal(ErrorCode::UnknownStream, why, shared.unknown_retry_ms(&stream))));
    };
    if switches.is_private && credential.is_none() {
        // It has turned private since the token was asked for.
        return Err(Some(refusal(ErrorCode::Refused, TOKEN_WANTED, None)));
    }
    let (queue, frames) =
        queue::new(shared.config.queue_messages_max as usize, shared.config.queue_bytes_max as usize);
    let ice_servers = ice::servers(&shared.config, switches.policy, host, &shared.own_ice);
    let locality = shared.atlas.locate(address);
    let join = Join { address, locality, shares, renditions, resume, credential, ice_servers, queue };
    match room.joins.send(Box::new(join)).await {
        Ok(()) => Ok((room, frames)),
        Err(_) => Err(Some(refusal(ErrorCode::UnknownStream, "the stream has just ended", Some(later_ms())))),
    }
}

struct Viewer {
    socket: WebSocket,
    stall_max: Duration,
    strikes: u32,
}

impl Viewer {
    async fn run(&mut self, room: &Room, mut frames: Frames) {
        let mut session = None;
        let end = loop {
            tokio::select! {
                frame = frames.recv() => {
                    let Some(frame) = frame else {
                        // The swarm has dropped us without a word: our queue was full, or the room is gone.
                        let _ = self.close(Goodbye::Policy).await;
                        break End::Broken;
                    };
                    match self.write(frame, &mut frames, &mut session).await {
                        Ok(true) => {}
                        Ok(false) | Err(()) => break End::Broken,
                    }
                }
                received = self.socket.next() => {
                    if let Some(end) = self.handle(received, room, session).await {
                        break end;
                    }
                }
            }
        };
        // A session that was given while we were leaving has to be given back, too.
        frames.close();
        while let Some(frame) = frames.recv().await {
            if let Frame::Joined(joined) = frame {
                session = Some(joined);
            }
        }
        if let Some(session) = session {
            let is_final = matches!(end, End::Final);
            let _ = room.inbox.send(Event::Closed { session, is_final }).await;
        }
    }

    /// Takes what came; says how the connection ends, if it does.
    async fn handle(
        &mut self,
        received: Option<Result<Message, axum::Error>>,
        room: &Room,
        session: Option<Session>,
    ) -> Option<End> {
        match received {
            Some(Ok(Message::Text(text))) => self.handle_text(text, room, session).await,
            Some(Ok(Message::Binary(_))) => {
                let _ = self.refuse_malformed(true).await;
                Some(End::Broken)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.strike().then_some(End::Broken),
            Some(Ok(Message::Close(frame))) => {
                // 1000 and 1001 (the page was closed) are goodbyes; anything else may come back.
                let is_final = frame.is_none_or(|frame| matches!(frame.code, 1000 | 1001));
                Some(if is_final { End::Final } else { End::Broken })
            }
            Some(Err(_)) | None => Some(End::Broken),
        }
    }

    async fn handle_text(&mut self, text: Utf8Bytes, room: &Room, session: Option<Session>) -> Option<End> {
        // Nobody can speak for another viewer: the session is the connection's, not the message's.
        let parsed = serde_json::from_str::<ViewerMessage>(&text);
        drop(text);
        match (parsed, session) {
            (Ok(message), Some(session)) => {
                // One good message makes up for one bad one: nonsense must not hide between them.
                self.strikes = self.strikes.saturating_sub(1);
                if room.inbox.send(Event::Message(session, Box::new(message))).await.is_ok() {
                    return None;
                }
                let _ = self.close(Goodbye::Away).await;
                Some(End::Broken)
            }
            (_, None) => {
                // It spoke before it was welcomed; a second join, or nothing that matters yet.
                if !self.strike() {
                    return None;
                }
                let _ = self.refuse_malformed(true).await;
                Some(End::Broken)
            }
            (Err(_), Some(_)) => {
                let is_fatal = self.strike();
                let is_told = self.refuse_malformed(is_fatal).await.is_ok();
                (is_fatal || !is_told).then_some(End::Broken)
            }
        }
    }

    /// Counts what is no message of the protocol; whether it was one too many.
    fn strike(&mut self) -> bool {
        self.strikes += 1;
        self.strikes > STRIKES_MAX
    }

    /// Writes a frame and those that already wait behind it. False when the connection is closed now.
    async fn write(
        &mut self,
        first: Frame,
        frames: &mut Frames,
        session: &mut Option<Session>,
    ) -> Result<bool, ()> {
        let stall_max = self.stall_max;
        let write = async {
            let mut next = Some(first);
            let mut written = 0;
            while let Some(frame) = next.take() {
                let text = match frame {
                    Frame::Joined(joined) => {
                        *session = Some(joined);
                        next = frames.try_recv();
                        continue;
                    }
                    Frame::Own(message) => json(&message),
                    Frame::Shared(notice) => Utf8Bytes::try_from(notice.json.clone()).map_err(|_| ())?,
                    Frame::Close(goodbye) => {
                        self.close(goodbye).await?;
                        return Ok(false);
                    }
                };
                self.socket.feed(Message::Text(text)).await.map_err(|_| ())?;
                written += 1;
                if written < WRITE_BATCH_MAX {
                    next = frames.try_recv();
                }
            }
            self.socket.flush().await.map_err(|_| ())?;
            Ok(true)
        };
        match timeout(stall_max, write).await {
            Ok(result) => result,
            Err(_) => {
                counter!("tracker_viewers_stalled_total").increment(1);
                Err(())
            }
        }
    }

    async fn refuse_malformed(&mut self, fatal: bool) -> Result<(), ()> {
        counter!("tracker_messages_malformed_total").increment(1);
        let error = TrackerMessage::Error {
            code: ErrorCode::Malformed,
            message: "not a message of this protocol".into(),
            fatal,
            retry_after_ms: None,
        };
        let write = async {
            self.socket.send(Message::Text(json(&error))).await.map_err(|_| ())?;
            if fatal { self.close(Goodbye::Done).await } else { Ok(()) }
        };
        timeout(Duration::from_secs(5), write).await.unwrap_or(Err(()))
    }

    async fn close(&mut self, goodbye: Goodbye) -> Result<(), ()> {
        let close = self.socket.send(Message::Close(Some(close_frame(goodbye))));
        timeout(self.stall_max, close).await.map_err(|_| ())?.map_err(|_| ())
    }
}

fn close_frame(goodbye: Goodbye) -> CloseFrame {
    let (code, reason) = match goodbye {
        Goodbye::Done => (1000, "done"),
        Goodbye::Away => (1001, "going away"),
        Goodbye::Policy => (1008, "silent or slow"),
    };
    CloseFrame { code, reason: Utf8Bytes::from_static(reason) }
}

fn json(message: &TrackerMessage) -> Utf8Bytes {
    serde_json::to_string(message).expect("messages have string keys and no failing parts").into()
}

fn label(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Malformed => "malformed",
        ErrorCode::OutOfOrder => "out_of_order",
        ErrorCode::Version => "version",
        ErrorCode::UnknownStream => "unknown_stream",
        ErrorCode::Refused => "refused",
        ErrorCode::NotIntroduced => "not_introduced",
        ErrorCode::RateLimited => "rate_limited",
        ErrorCode::Full => "full",
    }
}
