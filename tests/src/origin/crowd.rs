//! Viewers by the thousand that wait for what is next: each holds one connection and asks for the next part again and
//! again, as LL-HLS clients do.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Barrier, Semaphore, watch};
use tokio::task::JoinSet;

use super::client::Connection;
use super::now_us;
use super::source::Part;

/// So many connections are being opened at any time: the listen queue is finite.
const OPENING_MAX: usize = 64;

/// What each viewer fetches of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The playlist that has it, by blocking reload.
    Playlist,
    /// The part itself, before it is there.
    Part,
    /// Both, one after the other.
    Both,
}

/// A part by its numbers: segment, part.
pub type Key = (u64, u64);

/// What happened.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For each part the times of the viewers' last bytes, in Unix microseconds.
    pub done_us: BTreeMap<Key, Vec<u64>>,
    /// Answers that were no 200, and connections that broke.
    pub errors: u64,
    /// Different URLs that were asked for.
    pub playlists: BTreeSet<Key>,
    /// The same, of parts.
    pub parts: BTreeSet<Key>,
}

/// A crowd.
#[derive(Clone, Debug)]
pub struct Crowd {
    /// The server or the CDN.
    pub address: SocketAddr,
    /// How many viewers.
    pub viewers: usize,
    /// What they fetch.
    pub wants: Wants,
    /// How many parts each of them waits for, when all are there.
    pub releases: u64,
}

impl Crowd {
    /// Lets the viewers come, fetch and go. `news` has the newest part; `ready` is called when all are connected.
    ///
    /// # Errors
    /// If nobody can connect.
    pub async fn run(
        &self,
        news: watch::Receiver<Option<Part>>,
        parts_per_segment: u64,
        ready: impl FnOnce() + Send,
    ) -> io::Result<Outcome> {
        let opening = Arc::new(Semaphore::new(OPENING_MAX));
        let all_there = Arc::new(Barrier::new(self.viewers + 1));
        let mut viewers = JoinSet::new();
        for _ in 0..self.viewers {
            let (opening, all_there, news) = (opening.clone(), all_there.clone(), news.clone());
            let crowd = self.clone();
            viewers.spawn(async move {
                let connection = {
                    let _permit = opening.acquire().await.expect("it is never closed");
                    Connection::open(crowd.address, 4096).await
                };
                all_there.wait().await;
                crowd.view(connection?, news, parts_per_segment).await
            });
        }
        all_there.wait().await;
        ready();
        let mut outcome = Outcome::default();
        let mut broken = None;
        while let Some(viewer) = viewers.join_next().await {
            match viewer.expect("viewers do not panic") {
                Ok(one) => outcome.add(one),
                Err(error) => {
                    outcome.errors += 1;
                    broken = Some(error);
                }
            }
        }
        match broken {
            Some(error) if outcome.done_us.is_empty() => Err(error),
            _ => Ok(outcome),
        }
    }

    async fn view(
        &self,
        mut connection: Connection,
        mut news: watch::Receiver<Option<Part>>,
        parts_per_segment: u64,
    ) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        let newest = news.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        let newest = newest.expect("waited for");
        // `EPOCH/v0/part-1-2.m4s`
        let folder = newest.uri.rsplit_once('/').map_or("", |(folder, _)| folder);
        let base = format!("/live/{}/{folder}", newest.stream);
        let following = |(msn, part): Key| {
            if part + 1 < parts_per_segment { (msn, part + 1) } else { (msn + 1, 0) }
        };
        let mut key = following((newest.msn, newest.part));
        let last = key.0 * parts_per_segment + key.1 + self.releases;
        while key.0 * parts_per_segment + key.1 < last {
            let (msn, part) = key;
            let mut is_good = true;
            if self.wants != Wants::Part {
                outcome.playlists.insert(key);
                let path = format!("{base}/playlist.m3u8?_HLS_msn={msn}&_HLS_part={part}");
                is_good &= connection.get(&path).await?.status == 200;
            }
            if self.wants != Wants::Playlist {
                outcome.parts.insert(key);
                is_good &= connection.get(&format!("{base}/part-{msn}-{part}.m4s")).await?.status == 200;
            }
            if is_good {
                outcome.done_us.entry(key).or_default().push(now_us());
            } else {
                outcome.errors += 1;
                // Not in a loop without a pause, whatever is wrong.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            key = following(key);
        }
        Ok(outcome)
    }
}

impl Outcome {
    fn add(&mut self, other: Self) {
        for (key, times) in other.done_us {
            self.done_us.entry(key).or_default().extend(times);
        }
        self.errors += other.errors;
        self.playlists.extend(other.playlists);
        self.parts.extend(other.parts);
    }

    /// The times from publication to each viewer's last byte, and to the last viewer's of each part, in
    /// microseconds. The first part is left out: some viewers came late for it.
    #[must_use]
    pub fn delays_us(&self, published_us: &BTreeMap<Key, u64>) -> (Vec<u64>, Vec<u64>) {
        let (mut each, mut last) = (Vec::new(), Vec::new());
        for (key, times) in self.done_us.iter().skip(1) {
            let Some(published) = published_us.get(key) else { continue };
            let delays = times.iter().map(|time| time.saturating_sub(*published));
            last.extend(delays.clone().max());
            each.extend(delays);
        }
        (each, last)
    }
}
