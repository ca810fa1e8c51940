//! The WebTorrent protocol on WebSockets: `/announce`.
//!
//! Swarms are dealt to shards by info hash, each behind a lock of its own that is held for microseconds; a connection
//! that is in several swarms may speak to several shards.
//!
//! An info hash says nothing of the stream behind it, so what holds for one stream holds for all here: `Shared` says for
//! how many of the clients the protocol is open, by the strictest switch of any live stream or watched recording.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use dashmap::DashMap;
use futures::{SinkExt as _, StreamExt as _};
use metrics::{Counter, counter};
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Clock;
use super::gate::Place;
use crate::Config;
use crate::swarm::{Accounts, Bucket, Ledger, Rate, Relays};
use crate::webtorrent::message::{InMessage, OutMessage};
use crate::webtorrent::{Asks, Connection, Registry, Replies, Settings};

/// As many as keep a dozen processors from waiting for each other.
const SHARDS: usize = 16;
/// Messages that wait for one client to read them.
const QUEUE_MAX: usize = 32;
/// Places in a queue that offers leave free: an answer that is lost has cost two clients their work, an offer that does
/// not find anybody only one.
const QUEUE_FOR_ANSWERS: usize = 8;

/// What clients are told for which the protocol is not open.
const CLOSED: &str = "the operator does not let viewers share by this protocol";

/// One connection.
#[derive(Clone, Copy)]
struct Client {
    connection: Connection,
    address: IpAddr,
    /// On which side of the operator's share it is.
    side: u8,
}

/// All swarms of the WebTorrent protocol and the connections of their peers.
#[derive(Debug)]
pub(super) struct Announces {
    shards: Vec<Mutex<Registry>>,
    queues: DashMap<Connection, mpsc::Sender<Utf8Bytes>>,
    next: AtomicU64,
    /// For how many of the clients the protocol is open.
    percent: AtomicU8,
    /// Introductions of viewers of different networks, of all swarms.
    ledger: Mutex<Ledger>,
    introductions: Rate,
    messages: Rate,
    silence_max: Duration,
    stall_max: Duration,
    counters: Counters,
}

/// Looked up once: each message counts.
struct Counters {
    announces: Counter,
    limited: Counter,
    dropped: Counter,
    withheld: Counter,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counters")
    }
}

impl Announces {
    pub(super) fn new(config: &Config) -> Self {
        let settings = Settings {
            interval_s: config.announce_interval_s,
            swarms_per_connection_max: config.announce_swarms_max as usize,
            description_bytes_max: config.swarm_settings().description_bytes_max as usize,
            check_candidates: config.check_candidates,
        };
        let announces = Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Registry::new(settings, rand::random()))).collect(),
            queues: DashMap::new(),
            next: AtomicU64::new(0),
            percent: AtomicU8::new(100),
            ledger: Mutex::default(),
            introductions: config.swarm_settings().introduction_rate(),
            messages: Rate::per_second(config.announce_messages_per_s_max, config.announce_messages_burst),
            silence_max: Duration::from_secs(3 * u64::from(config.announce_interval_s)),
            stall_max: Duration::from_millis(config.write_stall_max_ms.into()),
            counters: Counters {
                announces: counter!("tracker_announces_total"),
                limited: counter!("tracker_announces_limited_total"),
                dropped: counter!("tracker_announces_dropped_total"),
                withheld: counter!("tracker_announces_withheld_total"),
            },
        };
        announces.set_relays(&config.swarm_settings().relays);
        announces
    }

    /// For how many of the clients the protocol is open from now on, in percent.
    pub(super) fn set_percent(&self, percent: u8) {
        self.percent.store(percent, Ordering::Relaxed);
    }

    /// What clients may name as relays, from now on.
    pub(super) fn set_relays(&self, relays: &Relays) {
        self.shards.iter().for_each(|shard| shard.lock().set_relays(relays.clone()));
    }

    /// Serves a connection until it ends. `place` is given back then.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut socket: WebSocket,
        clock: Clock,
        address: IpAddr,
        mut place: Place,
    ) {
        place.announces();
        let client = Client {
            connection: self.next.fetch_add(1, Ordering::Relaxed),
            address,
            side: rand::rng().random_range(0..100),
        };
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        self.queues.insert(client.connection, sender);
        self.talk(&mut socket, queue, clock, client, place.closing()).await;
        self.queues.remove(&client.connection);
        self.shards.iter().for_each(|shard| shard.lock().handle_closed(client.connection));
        drop(place);
    }

    /// Passes messages both ways until the client goes, breaks the rules, falls silent, or `closing` is cancelled.
    async fn talk(
        &self,
        socket: &mut WebSocket,
        mut queue: mpsc::Receiver<Utf8Bytes>,
        clock: Clock,
        client: Client,
        closing: CancellationToken,
    ) {
        let mut closing = pin!(closing.cancelled());
        let mut messages = Bucket::full(self.messages, clock.now_ms());
        // One timer for the connection, that is looked at when it fires, and not one for each message.
        let mut heard = Instant::now();
        let mut silence = pin!(sleep(self.silence_max));
        loop {
            tokio::select! {
                text = queue.recv() => {
                    let Some(text) = text else { break };
                    let write = write(socket, text, &mut queue);
                    if !matches!(timeout(self.stall_max, write).await, Ok(Ok(()))) {
                        break;
                    }
                }
                received = socket.next() => {
                    let Some(Ok(message)) = received else { break };
                    heard = Instant::now();
                    let now_ms = clock.now_ms();
                    if !messages.take(self.messages, now_ms, 1) {
                        self.counters.limited.increment(1);
                        break;
                    }
                    match message {
                        Message::Text(text) => self.handle(now_ms, client, serde_json::from_str(&text).ok()),
                        Message::Binary(bytes) => {
                            self.handle(now_ms, client, serde_json::from_slice(&bytes).ok());
                        }
                        Message::Ping(_) | Message::Pong(_) => {}
                        Message::Close(_) => break,
                    }
                }
                () = closing.as_mut() => {
                    // Clients of this protocol come back by themselves; there is nothing to wait for.
                    let frame = CloseFrame { code: 1001, reason: Utf8Bytes::from_static("going away") };
                    let _ = timeout(self.stall_max, socket.send(Message::Close(Some(frame)))).await;
                    break;
                }
                () = silence.as_mut() => {
                    let until = heard + self.silence_max;
                    if until <= Instant::now() {
                        break;
                    }
                    silence.as_mut().reset(until);
                }
            }
        }
    }

    fn handle(&self, now_ms: u64, client: Client, message: Option<InMessage<'_>>) {
        let Client { connection, address, side } = client;
        let mut replies = Replies::new();
        let may_meet = |one, other| {
            let (one, other) = (Accounts::at(one), Accounts::at(other));
            let is_paid = self.ledger.lock().charge(self.introductions, now_ms, one, other);
            self.counters.withheld.increment(u64::from(!is_paid));
            is_paid
        };
        let has_room = |connection: Connection| {
            self.queues.get(&connection).is_some_and(|queue| queue.capacity() > QUEUE_FOR_ANSWERS)
        };
        let asks = Asks { has_room: &has_room, may_meet: &may_meet };
        match message {
            None => {
                let failed = OutMessage::Failed { reason: "not a message of this protocol", info_hash: None };
                replies.push((connection, failed));
            }
            Some(InMessage::Scrape(scrape)) => {
                // A scrape may ask for swarms of several shards; the answers are joined.
                let mut files = BTreeMap::new();
                for shard in &self.shards {
                    let mut part = Replies::new();
                    let scrape = InMessage::Scrape(scrape.clone());
                    shard.lock().handle_message(now_ms, connection, address, scrape, asks, &mut part);
                    for (_, message) in part {
                        if let OutMessage::Scraped { files: found, .. } = message {
                            files.extend(found);
                        }
                    }
                }
                replies.push((connection, OutMessage::Scraped { action: "scrape", files }));
            }
            Some(InMessage::Announce(announce)) if side >= self.percent.load(Ordering::Relaxed) => {
                // Nobody gets its offers, and it gets nobody's any more.
                self.shards.iter().for_each(|shard| shard.lock().handle_closed(connection));
                let info_hash = Some(announce.info_hash);
                replies.push((connection, OutMessage::Failed { reason: CLOSED, info_hash }));
            }
            Some(InMessage::Announce(announce)) => {
                self.counters.announces.increment(1);
                let shard = usize::from(announce.info_hash.0[0] ^ announce.info_hash.0[19]) % SHARDS;
                let message = InMessage::Announce(announce);
                let mut shard = self.shards[shard].lock();
                shard.handle_message(now_ms, connection, address, message, asks, &mut replies);
            }
        }
        self.pass_on(replies);
    }

    fn pass_on(&self, replies: Replies<'_>) {
        for (to, message) in replies {
            let Some(queue) = self.queues.get(&to) else { continue };
            // Offers are worth nothing when they are late, and the client will announce again: what a slow one has no
            // room for is dropped, before it is written. One that takes nothing at all is closed when writing stalls.
            let Ok(place) = queue.try_reserve() else {
                self.counters.dropped.increment(1);
                continue;
            };
            let text =
                serde_json::to_string(&message).expect("messages have string keys and no failing parts");
            place.send(text.into());
        }
    }
}

/// Writes a text and those that already wait behind it.
async fn write(
    socket: &mut WebSocket,
    first: Utf8Bytes,
    queue: &mut mpsc::Receiver<Utf8Bytes>,
) -> Result<(), axum::Error> {
    socket.feed(Message::Text(first)).await?;
    while let Ok(text) = queue.try_recv() {
        socket.feed(Message::Text(text)).await?;
    }
    socket.flush().await
}
