//! The socket to the tracker: joins, reconnects with jitter, passes messages both ways.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use rand::Rng as _;
use reqwest::Url;
use rustls::ClientConfig;
use shoal_tracker_protocol::{ErrorCode, TrackerMessage, VERSION, ViewerMessage};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, Interval, interval, sleep, timeout},
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use crate::Token;

/// A new attempt comes after a random part of this pause, later ones after half to all of it; it doubles with each
/// failure up to [`PAUSE_MAX`]. A restarted tracker has everybody back in seconds, and the jitter spreads them. Both as
/// PROTOCOL.md says.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Who has not answered by then is not there.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A tracker with less patience is pinged no more often.
const PING_MIN: Duration = Duration::from_secs(1);
/// Who has not been taken in by then tries again.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// A tracker that has not answered a farewell by then won't.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// No message of the tracker is longer.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// What comes from the tracker.
#[derive(Debug)]
pub(crate) enum TrackerEvent {
    /// A message.
    Message(Box<TrackerMessage>),
    /// The connection is gone; another attempt follows, unless the tracker refused for good.
    Lost,
}

/// How to join.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) url: Url,
    /// Whom to believe where the URL wants TLS.
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) stream: String,
    pub(crate) token: Option<Token>,
    pub(crate) shares: bool,
    pub(crate) renditions: Vec<u8>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Keeps a connection until all senders of `outgoing` are gone: then what they said is sent, and the viewer has left for good.
/// `stop` ends what would take longer, the waiting for a tracker that is not there.
pub(crate) async fn run(
    join: Join,
    mut outgoing: mpsc::Receiver<ViewerMessage>,
    events: mpsc::Sender<TrackerEvent>,
    stop: CancellationToken,
) {
    let mut resume = None;
    let mut pause = PAUSE_MIN;
    loop {
        let opened = tokio::select! {
            () = stop.cancelled() => return,
            opened = open(&join, resume.clone()) => opened,
        };
        let ended = match opened {
            Some(socket) => connection(socket, &join, &mut resume, &mut outgoing, &events).await,
            None => Ended::default(),
        };
        // Also where there won't be another: the swarm goes on without a tracker.
        if events.send(TrackerEvent::Lost).await.is_err() || ended.is_final {
            return;
        }
        if ended.was_welcome {
            pause = PAUSE_MIN;
        }
        let wait = ended.wait(pause, rand::rng().random());
        pause = (pause * 2).min(PAUSE_MAX);
        // Messages of the time without a connection are out of date.
        let drain = async { while outgoing.recv().await.is_some() {} };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
            () = drain => return,
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

    /// What a message says about the end of the connection, which may come only later.
    fn learn(&mut self, message: &TrackerMessage, token: Option<&Token>) {
        match message {
            TrackerMessage::Welcome(_) => self.was_welcome = true,
            TrackerMessage::Drain { reconnect_within_ms } => {
                self.within = Some(Duration::from_millis(u64::from(*reconnect_within_ms)));
            }
            TrackerMessage::Error { fatal: true, code, retry_after_ms, .. } => {
                // The token has ended, and may be another when it is read again.
                let may_be_renewed = *code == ErrorCode::Refused && matches!(token, Some(Token::File(_)));
                self.is_final = retry_after_ms.is_none() && !may_be_renewed;
                self.turn = retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
            }
            _ => {}
        }
    }
}

/// How long a connection may be silent, and when to break the silence from this side.
struct Patience {
    silence_max: Duration,
    ping: Interval,
    heard: Instant,
}

impl Patience {
    fn new(silence_max: Duration) -> Self {
        // Three pings fit into the tracker's patience, and into ours.
        Self { silence_max, ping: interval(silence_max / 3), heard: Instant::now() }
    }

    fn learn(&mut self, silence_max: Duration) {
        self.silence_max = silence_max;
        self.ping = interval((silence_max / 3).max(PING_MIN));
    }

    /// A machine or a router that vanished does not close its connections.
    fn is_over(&self) -> bool {
        self.heard.elapsed() > self.silence_max + self.ping.period()
    }
}

/// One connection, until it ends or the viewer leaves.
async fn connection(
    mut socket: Socket,
    join: &Join,
    resume: &mut Option<String>,
    outgoing: &mut mpsc::Receiver<ViewerMessage>,
    events: &mpsc::Sender<TrackerEvent>,
) -> Ended {
    let mut ended = Ended::default();
    let mut patience = Patience::new(WELCOME_MAX);
    loop {
        tokio::select! {
            message = outgoing.recv() => match message {
                Some(message) if send(&mut socket, &message).await.is_ok() => {}
                None => {
                    say_farewell(socket).await;
                    ended.is_final = true;
                    return ended;
                }
                Some(_) => return ended,
            },
            _ = patience.ping.tick() => {
                if patience.is_over() {
                    tracing::warn!("nothing was heard from the tracker");
                    return ended;
                }
                if send(&mut socket, &ViewerMessage::Ping).await.is_err() {
                    return ended;
                }
            }
            frame = socket.next() => {
                patience.heard = Instant::now();
                let text = match frame {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return ended,
                    Some(Ok(_)) => continue,
                };
                let Some(message) = parse(&text) else { continue };
                ended.learn(&message, join.token.as_ref());
                if let TrackerMessage::Welcome(welcome) = &message {
                    patience.learn(Duration::from_millis(u64::from(welcome.silence_max_ms)));
                    *resume = Some(welcome.resume.clone());
                }
                // Who leaves hears no more, but may have things to say.
                let _ = events.send(TrackerEvent::Message(Box::new(message))).await;
            }
        }
    }
}

/// Connects and asks to be taken in; none if that failed, which is told in the log.
async fn open(join: &Join, resume: Option<String>) -> Option<Socket> {
    let token = match token(join.token.as_ref()).await {
        Ok(token) => token,
        Err(error) => {
            tracing::warn!(%error, "the viewer token can't be read");
            return None;
        }
    };
    let limits = WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let (url, tls) = (join.url.as_str(), Connector::Rustls(join.tls.clone()));
    let connect = tokio_tungstenite::connect_async_tls_with_config(url, Some(limits), true, Some(tls));
    let mut socket = match timeout(CONNECT_MAX, connect).await {
        Ok(Ok((socket, _))) => socket,
        Ok(Err(error)) => {
            tracing::warn!(%error, "no connection to the tracker");
            return None;
        }
        Err(_) => {
            tracing::warn!("no answer from the tracker");
            return None;
        }
    };
    let hello = ViewerMessage::Join {
        version: VERSION,
        stream: join.stream.clone(),
        token,
        resume,
        shares: join.shares,
        renditions: join.renditions.clone(),
    };
    send(&mut socket, &hello).await.ok().map(|()| socket)
}

/// Closes the connection for good: where one only breaks, the tracker expects the viewer back and holds its place.
async fn say_farewell(mut socket: Socket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let closed = async {
        if let Err(error) = socket.close(Some(frame)).await {
            return tracing::debug!(%error, "no farewell to the tracker");
        }
        // A connection that is closed before everything in it was read is reset, and the frame is lost with it.
        while let Some(Ok(_)) = socket.next().await {}
    };
    if timeout(FAREWELL_MAX, closed).await.is_err() {
        tracing::debug!("the tracker did not answer a farewell");
    }
}

/// A message of a later version is not an error: it is skipped.
fn parse(text: &str) -> Option<TrackerMessage> {
    match serde_json::from_str(text) {
        Ok(message) => {
            tracing::trace!(?message, "from the tracker");
            Some(message)
        }
        Err(error) => {
            tracing::debug!(%error, "a message that this version does not know");
            None
        }
    }
}

async fn token(from: Option<&Token>) -> io::Result<Option<String>> {
    Ok(match from {
        None => None,
        Some(Token::Fixed(token)) => Some(token.clone()),
        Some(Token::File(path)) => Some(tokio::fs::read_to_string(path).await?.trim().to_owned()),
    })
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
    use crate::tls::Tls;

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

    /// A tracker that is played by the test, and a viewer that is about to connect to it.
    struct Scene {
        listener: tokio::net::TcpListener,
        to_tracker: mpsc::Sender<ViewerMessage>,
        inbox: mpsc::Receiver<TrackerEvent>,
        stop: CancellationToken,
        running: tokio::task::JoinHandle<()>,
    }

    impl Scene {
        async fn begin() -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let join = Join {
                url: Url::parse(&format!("ws://{}/", listener.local_addr().expect("bound"))).expect("a URL"),
                tls: Tls::new(true, true).expect("nobody has to be trusted").socket(),
                stream: "demo".into(),
                token: None,
                shares: true,
                renditions: vec![0],
            };
            let (to_tracker, outgoing) = mpsc::channel(8);
            let (events, inbox) = mpsc::channel(8);
            let stop = CancellationToken::new();
            let running = tokio::spawn(run(join, outgoing, events, stop.clone()));
            Self { listener, to_tracker, inbox, stop, running }
        }

        /// Takes the viewer in.
        async fn welcome(&mut self) -> WebSocketStream<TcpStream> {
            let (socket, _) = self.listener.accept().await.expect("it connects");
            let mut socket = tokio_tungstenite::accept_async(socket).await.expect("a WebSocket");
            let welcome = r#"{"type":"welcome","version":1,"peer":7,"swarm":"s","resume":"r","sharing":true,
                "ice_servers":[],"neighbors_max":4,"upload_ratio_max_percent":200,"report_interval_ms":5000,
                "silence_max_ms":200,"recent":[]}"#;
            socket.send(Message::text(welcome)).await.expect("it listens");
            let event = self.inbox.recv().await.expect("the welcome");
            assert!(matches!(event, TrackerEvent::Message(_)), "{event:?}");
            socket
        }
    }

    #[tokio::test]
    async fn a_tracker_that_says_nothing_any_more_is_lost() {
        let mut scene = Scene::begin().await;
        let socket = scene.welcome().await;
        // The connection stays open, as it does where a router on the way vanishes.
        let event = timeout(Duration::from_secs(10), scene.inbox.recv()).await.expect("it is noticed");
        assert!(matches!(event, Some(TrackerEvent::Lost)), "{event:?}");
        timeout(Duration::from_secs(10), scene.listener.accept())
            .await
            .expect("it comes back")
            .expect("open");
        scene.stop.cancel();
        scene.running.await.expect("it ends");
        drop(socket);
    }

    #[tokio::test]
    async fn who_leaves_says_everything_and_closes_for_good() {
        let mut scene = Scene::begin().await;
        let mut socket = scene.welcome().await;
        // More than one chance to break off: it is stopped, nobody hears it, and the tracker is in the middle of a sentence.
        scene
            .to_tracker
            .send(ViewerMessage::Lost { peer: 9, was_connected: true })
            .await
            .expect("it listens");
        scene.stop.cancel();
        drop((scene.to_tracker, scene.inbox));
        socket.send(Message::text(r#"{"type":"part","peer":9}"#)).await.expect("it listens");
        let mut heard = Vec::new();
        let close = loop {
            match timeout(Duration::from_secs(10), socket.next()).await.expect("something in time") {
                Some(Ok(Message::Text(text))) => heard.push(text),
                Some(Ok(Message::Close(frame))) => break frame,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(close.map(|frame| frame.code), Some(CloseCode::Normal));
        assert!(heard.iter().any(|text| text.contains("lost")), "{heard:?}");
        drop(socket);
        scene.running.await.expect("it ends");
    }

    #[tokio::test]
    async fn who_leaves_does_not_wait_for_a_tracker_that_is_not_there() {
        let scene = Scene::begin().await;
        // It connects, but nobody answers.
        drop(scene.to_tracker);
        scene.stop.cancel();
        timeout(Duration::from_secs(5), scene.running).await.expect("at once").expect("it ends");
    }
}
