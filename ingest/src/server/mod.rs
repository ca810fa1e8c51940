//! The sessions of all publishers, and what changes and ends them; `publish.rs` starts them.

mod publish;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::publish::Origins;
use crate::admission::{Admission, Bucket, Rate};
use crate::auth::{Auth, Denied};
use crate::config::Config;
use crate::network::Network;
use crate::sdp::{self, Offer, Refusal};
use crate::session::Command;
use crate::sink::Streams;
use crate::status::{State, Status};
use crate::transport::Protocol;
use crate::transport::stack;

/// Sessions that ended stay known this long, so that the publish page can read why.
const ENDED_KEPT: Duration = Duration::from_secs(60);
/// Ended sessions that stay known.
const ENDED_MAX: usize = 256;

/// Refused publishers are logged, but not more often than this.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a request is refused; `whip.rs` knows the status codes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Offer(Refusal),
    #[error("a stream's name has 1 to 64 characters out of A-Z a-z 0-9 _ -")]
    BadName,
    #[error("the stream already has a publisher")]
    Busy,
    #[error(
        "a token is needed that permits publishing this stream: send its stream key as \"Authorization: Bearer KEY\""
    )]
    Unauthorized,
    #[error(
        "this server lets nobody publish from where you are: its operator has to set ingest.stream_keys and give you a \
         key, or to set ingest.auth_open_to"
    )]
    Closed,
    #[error("it can't be decided at the moment who may publish")]
    AuthUnavailable,
    #[error("too many requests")]
    TooManyRequests,
    #[error("the server takes no more publishers at the moment")]
    Overloaded,
    #[error("the server has no room to transcode VP8 at the moment; offer H264, VP9 or AV1")]
    NoTranscoder,
    #[error("unacceptable offer: {0}")]
    Stack(String),
    #[error("the server receives no media any more")]
    Deaf,
}

/// Why ICE wasn't restarted.
#[derive(Debug)]
pub(crate) enum RestartError {
    /// The session is over.
    Gone,
    /// The stack refused; the session goes on.
    Impossible,
}

/// A session as HTTP handlers see it.
struct Handle {
    commands: mpsc::Sender<Command>,
    status: Arc<Mutex<Status>>,
    offer: Offer,
    ice: Mutex<Ice>,
    /// One restart at a time.
    restarting: tokio::sync::Mutex<()>,
    /// The limit of its PATCH requests.
    bucket: Mutex<Bucket>,
}

struct Ice {
    etag: String,
    /// The publisher's.
    ufrag: String,
    pwd: String,
}

/// See the module.
pub(crate) struct Server {
    config: Config,
    streams: Arc<dyn Streams>,
    network: Arc<Network>,
    auth: Auth,
    stack: Arc<stack::Shared>,
    links: Vec<String>,
    sessions: DashMap<String, Arc<Handle>>,
    live: AtomicUsize,
    ended: Mutex<std::collections::VecDeque<(Instant, String)>>,
    origins: Mutex<Origins>,
    admission: Admission,
    refusal_logged_at: Mutex<Option<Instant>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancelled: CancellationToken,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("live", &self.live).finish_non_exhaustive()
    }
}

impl Server {
    pub(crate) fn new(config: Config, auth: Auth, streams: Arc<dyn Streams>, network: Arc<Network>) -> Self {
        let mut candidates: Vec<String> = Vec::new();
        for (index, address) in network.candidates().iter().enumerate() {
            candidates.push(stack::candidate_line(index, Protocol::Udp, *address));
        }
        if config.tcp_enabled {
            let first = candidates.len();
            for (index, address) in network.candidates().iter().enumerate() {
                candidates.push(stack::candidate_line(first + index, Protocol::Tcp, *address));
            }
        }
        let stack = stack::Shared { candidates, hold: Duration::from_millis(config.loss_hold_ms) };
        Self {
            links: config.ice_servers.iter().map(ice_server_link).collect(),
            admission: Admission::new(Rate {
                per_s: config.requests_per_s_max.into(),
                burst: config.requests_burst_max.into(),
            }),
            refusal_logged_at: Mutex::default(),
            config,
            streams,
            network,
            auth,
            stack: Arc::new(stack),
            sessions: DashMap::new(),
            live: AtomicUsize::new(0),
            ended: Mutex::default(),
            origins: Mutex::default(),
            tasks: TaskTracker::new(),
            cancelled: CancellationToken::new(),
        }
    }

    pub(crate) fn network(&self) -> &Arc<Network> {
        &self.network
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn body_bytes_max(&self) -> usize {
        self.config.body_bytes_max
    }

    pub(crate) fn ice_server_links(&self) -> &[String] {
        &self.links
    }

    /// The rate limit of requests that cost something, for each address.
    pub(crate) fn admit(&self, address: Option<IpAddr>) -> Result<(), Refused> {
        let is_admitted = self.admission.admit(address, Instant::now());
        if is_admitted { Ok(()) } else { Err(Refused::TooManyRequests) }
    }

    /// The same for requests that name a session: one that exists has a limit of its own, so that no stranger's
    /// requests get in its way.
    pub(crate) fn admit_to(&self, id: &str, address: Option<IpAddr>) -> Result<(), Refused> {
        let Some(handle) = self.handle(id) else { return self.admit(address) };
        let is_admitted = handle.bucket.lock().take(self.admission.rate(), Instant::now());
        if is_admitted { Ok(()) } else { Err(Refused::TooManyRequests) }
    }

    /// Whether somebody with this token may publish to this stream.
    pub(crate) async fn authorize(
        &self,
        stream: &str,
        token: Option<&str>,
        remote_ip: Option<IpAddr>,
    ) -> Result<(), Refused> {
        let denied = match self.auth.check(stream, token, remote_ip).await {
            Ok(()) => return Ok(()),
            Err(denied) => denied,
        };
        let refused = match denied {
            Denied::Refused => Refused::Unauthorized,
            Denied::Closed => Refused::Closed,
            Denied::Unavailable => Refused::AuthUnavailable,
        };
        self.log_refusal(stream, token.is_some(), &refused);
        Err(refused)
    }

    /// The same for those who only ask.
    pub(crate) async fn may_publish(
        &self,
        stream: &str,
        token: Option<&str>,
        remote_ip: Option<IpAddr>,
    ) -> bool {
        self.auth.check(stream, token, remote_ip).await.is_ok()
    }

    /// An operator whose publisher doesn't get in has to find out why. Strangers must not fill the log.
    fn log_refusal(&self, stream: &str, has_token: bool, refused: &Refused) {
        let (now, mut logged_at) = (Instant::now(), self.refusal_logged_at.lock());
        if logged_at.is_some_and(|at| now < at + REFUSAL_LOG_INTERVAL) {
            return;
        }
        *logged_at = Some(now);
        // Anybody's text: in quotes, and not all of it.
        let stream: String = stream.chars().take(64).collect();
        match refused {
            Refused::Closed => tracing::warn!(
                ?stream,
                "publisher refused: it isn't on this machine, or comes by a proxy; set ingest.stream_keys, or \
                 ingest.auth_open_to = \"everybody\""
            ),
            _ => tracing::info!(?stream, has_token, "publisher refused: {refused}"),
        }
    }

    /// Ends a session; false when there is none.
    pub(crate) async fn delete(&self, id: &str) -> bool {
        let Some(handle) = self.handle(id) else { return false };
        let (reply, done) = oneshot::channel();
        // A session that has ended by itself has got what was asked for.
        if handle.commands.send(Command::Delete(reply)).await.is_ok() {
            let _ = done.await;
            // Until the task has given the stream back, a new POST would find it busy.
            handle.commands.closed().await;
        }
        self.sessions.remove(id);
        true
    }

    /// The entity tag of a session's ICE session, if there is such a session and it goes on.
    pub(crate) fn etag(&self, id: &str) -> Option<String> {
        let handle = self.handle(id)?;
        if handle.commands.is_closed() || handle.status.lock().state == State::Ended {
            return None;
        }
        let etag = handle.ice.lock().etag.clone();
        Some(etag)
    }

    /// Whether this is the publisher's user name fragment of the current ICE session.
    pub(crate) fn is_current_ufrag(&self, id: &str, ufrag: &str) -> bool {
        self.handle(id).is_some_and(|handle| handle.ice.lock().ufrag == ufrag)
    }

    pub(crate) async fn add_candidates(&self, id: &str, candidates: Vec<String>) {
        if let Some(handle) = self.handle(id).filter(|_| !candidates.is_empty()) {
            // A session that ends needs no candidates.
            let _ = handle.commands.send(Command::Candidates(candidates)).await;
        }
    }

    /// Restarts ICE; gives the new entity tag and our part of the new ICE session.
    pub(crate) async fn restart(
        &self,
        id: &str,
        (ufrag, pwd): &(String, String),
    ) -> Result<(String, String), RestartError> {
        let handle = self.handle(id).ok_or(RestartError::Gone)?;
        let _one_at_a_time = handle.restarting.lock().await;
        // RFC 8445, 9: a restart changes both. With the old password, checks of the old session would pass for new ones.
        if handle.ice.lock().pwd == *pwd {
            return Err(RestartError::Impossible);
        }
        let offer = handle.offer.reduce(Some((ufrag, pwd)));
        let (reply, answer) = oneshot::channel();
        let command = Command::Restart { offer, reply };
        handle.commands.send(command).await.map_err(|_| RestartError::Gone)?;
        let answer = answer.await.map_err(|_| RestartError::Gone)?.map_err(|error| {
            tracing::debug!(%error, "restart refused");
            RestartError::Impossible
        })?;
        let etag = format!("\"{}\"", random_hex::<8>());
        *handle.ice.lock() = Ice { etag: etag.clone(), ufrag: ufrag.clone(), pwd: pwd.clone() };
        let mut fragment = sdp::fragment_head(&handle.offer, &answer.sdp);
        fragment.push_str(&format!("a=ice-ufrag:{}\r\na=ice-pwd:{}\r\n", answer.ufrag, answer.password));
        for candidate in &self.stack.candidates {
            fragment.push_str(&format!("a={candidate}\r\n"));
        }
        fragment.push_str("a=end-of-candidates\r\n");
        Ok((etag, fragment))
    }

    pub(crate) fn status_json(&self, id: &str) -> Option<String> {
        self.forget_ended(Instant::now());
        let handle = self.handle(id)?;
        let status = handle.status.lock().clone();
        serde_json::to_string(&status).ok()
    }

    fn handle(&self, id: &str) -> Option<Arc<Handle>> {
        self.sessions.get(id).map(|handle| Arc::clone(&handle))
    }

    fn remember_ended(&self, id: String) {
        let now = Instant::now();
        self.ended.lock().push_back((now, id));
        self.forget_ended(now);
    }

    fn forget_ended(&self, now: Instant) {
        let mut ended = self.ended.lock();
        while ended.len() > ENDED_MAX || ended.front().is_some_and(|(at, _)| now - *at > ENDED_KEPT) {
            if let Some((_, id)) = ended.pop_front() {
                self.sessions.remove(&id);
            }
        }
    }
}

fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0u8; BYTES];
    rand::rng().fill(&mut bytes[..]);
    hex::encode(bytes)
}

/// RFC 9725, 4.6.
fn ice_server_link(server: &crate::config::IceServer) -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut link = format!("<{}>; rel=\"ice-server\"", server.url.replace(['<', '>'], ""));
    if !server.username.is_empty() {
        let (username, credential) = (quote(&server.username), quote(server.credential.expose()));
        link.push_str(&format!(
            "; username=\"{username}\"; credential=\"{credential}\"; credential-type=\"password\""
        ));
    }
    link
}
