//! The WebTorrent protocol on WebSockets: `/announce`.
//!
//! Swarms are dealt to shards by info hash, each behind a lock of its own that is held for microseconds; a connection
//! that is in several swarms may speak to several shards.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use dashmap::DashMap;
use futures::{SinkExt as _, StreamExt as _};
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Clock;
use super::gate::Place;
use crate::Config;
use crate::swarm::{Bucket, Rate};
use crate::webtorrent::message::{InMessage, OutMessage};
use crate::webtorrent::{Connection, Registry, Replies, Settings};

/// As many as keep a dozen processors from waiting for each other.
const SHARDS: usize = 16;
/// Messages that wait for one client to read them.
const QUEUE_MAX: usize = 32;

/// All swarms of the WebTorrent protocol and the connections of their peers.
#[derive(Debug)]
pub(super) struct Announces {
    shards: Vec<Mutex<Registry>>,
    queues: DashMap<Connection, mpsc::Sender<Utf8Bytes>>,
    next: AtomicU64,
    messages: Rate,
    silence_max: Duration,
    stall_max: Duration,
}

impl Announces {
    pub(super) fn new(config: &Config) -> Self {
        let settings = Settings {
            interval_s: config.announce_interval_s,
            swarms_per_connection_max: config.announce_swarms_max as usize,
            description_bytes_max: config.swarm_settings().description_bytes_max as usize,
            check_candidates: config.check_candidates,
        };
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Registry::new(settings, rand::random()))).collect(),
            queues: DashMap::new(),
            next: AtomicU64::new(0),
            messages: Rate::per_second(config.announce_messages_per_s_max, config.announce_messages_burst),
            silence_max: Duration::from_secs(3 * u64::from(config.announce_interval_s)),
            stall_max: Duration::from_millis(config.write_stall_max_ms.into()),
        }
    }

    /// Serves a connection until it ends. `place` is given back then.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut socket: WebSocket,
        clock: Clock,
        address: IpAddr,
        place: Place,
    ) {
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut queue) = mpsc::channel(QUEUE_MAX);
        self.queues.insert(connection, sender);
        let mut messages = Bucket::full(self.messages, clock.now_ms());
        loop {
            tokio::select! {
                text = queue.recv() => {
                    let Some(text) = text else { break };
                    let write = async {
                        socket.feed(Message::Text(text)).await?;
                        while let Ok(text) = queue.try_recv() {
                            socket.feed(Message::Text(text)).await?;
                        }
                        socket.flush().await
                    };
                    if !matches!(timeout(self.stall_max, write).await, Ok(Ok(()))) {
                        break;
                    }
                }
                received = timeout(self.silence_max, socket.next()) => {
                    let Ok(Some(Ok(message))) = received else { break };
                    if !messages.take(self.messages, clock.now_ms(), 1) {
                        counter!("tracker_announces_limited_total").increment(1);
                        break;
                    }
                    match message {
                        Message::Text(text) => {
                            let parsed = serde_json::from_str(&text);
                            drop(text);
                            self.handle(clock.now_ms(), connection, address, parsed.ok());
                        }
                        Message::Binary(bytes) => {
                            let parsed = serde_json::from_slice(&bytes);
                            drop(bytes);
                            self.handle(clock.now_ms(), connection, address, parsed.ok());
                        }
                        Message::Ping(_) | Message::Pong(_) => {}
                        Message::Close(_) => break,
                    }
                }
            }
        }
        self.queues.remove(&connection);
        self.shards.iter().for_each(|shard| shard.lock().handle_closed(connection));
        drop(place);
    }

    fn handle(&self, now_ms: u64, connection: Connection, address: IpAddr, message: Option<InMessage>) {
        let mut replies = Replies::new();
        match message {
            None => {
                let failed = OutMessage::Failed { reason: "not a message of this protocol", info_hash: None };
                replies.push((connection, failed));
            }
            Some(InMessage::Scrape(scrape)) => {
                // A scrape may ask for swarms of several shards; the answers are joined.
                let mut files = std::collections::BTreeMap::new();
                for shard in &self.shards {
                    let mut part = Replies::new();
                    let scrape = InMessage::Scrape(scrape.clone());
                    shard.lock().handle_message(now_ms, connection, address, scrape, &mut part);
                    for (_, message) in part {
                        if let OutMessage::Scraped { files: found, .. } = message {
                            files.extend(found);
                        }
                    }
                }
                replies.push((connection, OutMessage::Scraped { action: "scrape", files }));
            }
            Some(InMessage::Announce(announce)) => {
                counter!("tracker_announces_total").increment(1);
                let shard = usize::from(announce.info_hash.0[0] ^ announce.info_hash.0[19]) % SHARDS;
                let message = InMessage::Announce(announce);
                self.shards[shard].lock().handle_message(now_ms, connection, address, message, &mut replies);
            }
        }
        for (to, message) in replies {
            let text =
                serde_json::to_string(&message).expect("messages have string keys and no failing parts");
            // Offers are worth nothing when they are late, and the client will announce again: what a slow one has no
            // room for is dropped. One that takes nothing at all is closed when writing stalls.
            if let Some(queue) = self.queues.get(&to)
                && queue.try_send(text.into()).is_err()
            {
                counter!("tracker_announces_dropped_total").increment(1);
            }
        }
    }
}
