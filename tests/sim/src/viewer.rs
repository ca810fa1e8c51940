//! What the driver keeps for one viewer: its core, its player, its links, and books of what its piece store holds.

use std::collections::{BTreeMap, VecDeque};

use shoal_swarm::{Config, FetchId, HoldId, Peer, PieceId, RequestId, Span, block_count};

use crate::books::Books;
use crate::measure::Followed;
use crate::media::Stream;
use crate::people::{Manner, Visit};
use crate::player::Player;
use crate::shoal::{Brought, Knobs};

/// An open connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) neighbor: u32,
    /// Block bytes handed over and not yet sent.
    pub(crate) buffered: u32,
    /// The core is to be told of them.
    pub(crate) is_touched: bool,
    /// When the last control message arrives: the channel keeps the order.
    pub(crate) control_us: u64,
}

/// A running fetch.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    pub(crate) rendition: u8,
    pub(crate) number: u64,
    pub(crate) cancelled_us: Option<u64>,
    /// When the last of the blocks so far has passed the line.
    pub(crate) passed_us: u64,
}

/// A piece that the player loads by itself, the last byte of which has left the origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) request: RequestId,
    pub(crate) rendition: u8,
    pub(crate) number: u32,
    pub(crate) began_us: u64,
    pub(crate) left_us: u64,
}

/// One viewer.
#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) peer: Peer,
    pub(crate) player: Player,
    pub(crate) store: Store,
    /// By neighbor.
    pub(crate) links: Vec<Link>,
    /// Links whose queue length the core is to be told.
    pub(crate) touched: Vec<u32>,
    pub(crate) fetches: BTreeMap<FetchId, Fetch>,
    pub(crate) held: BTreeMap<HoldId, Brought>,
    /// Pieces loaded by plain HTTP that the core is to be told of: id, length, time taken.
    pub(crate) loaded: Vec<(PieceId, u32, u64)>,
    pub(crate) wake_us: u64,
    pub(crate) is_welcome: bool,
    pub(crate) manner: Manner,
    pub(crate) rendition: u8,
    pub(crate) next_rendition: u8,
    /// Pieces below this number are in the playlist.
    pub(crate) listed: u64,
    pub(crate) request: RequestId,
    /// What the player waits for.
    pub(crate) wanted: Option<(RequestId, u64)>,
    /// What it was given and has yet to append.
    pub(crate) appending: Option<u64>,
    pub(crate) followed: Followed,
    pub(crate) books: Books,
    /// When the books and the core's limits are checked next.
    pub(crate) check_us: u64,
    /// Block bytes that came from peers.
    pub(crate) received_bytes: u64,
    pub(crate) origin_bytes: u64,
    pub(crate) cancelled_bytes: u64,
    /// By the plan, for telling apart where duplicates come from.
    pub(crate) parents: Vec<Option<u32>>,
}

impl Viewer {
    pub(crate) fn new(visit: &Visit, player: Player, stream: &Stream, seed: u64, knobs: &Knobs) -> Self {
        let mut config = Config::new(stream.epoch());
        config.push = knobs.push;
        config.uplink_granted_bps = visit.granted_bps;
        if let Some(starved_ms) = knobs.starved_ms {
            config.starved_above = Span::from_ms(u64::from(starved_ms));
        }
        if let Some(burst_ms) = knobs.burst_ms {
            config.upload_burst = Span::from_ms(u64::from(burst_ms));
        }
        if let Some(spread_ms) = knobs.spread_ms {
            config.fallback_spread = Span::from_ms(u64::from(spread_ms));
        }
        let books = Books::new(config.store_bytes_max);
        Self {
            peer: Peer::new(config, seed),
            player,
            store: Store::new(stream.renditions()),
            links: Vec::new(),
            touched: Vec::new(),
            fetches: BTreeMap::new(),
            held: BTreeMap::new(),
            loaded: Vec::new(),
            wake_us: u64::MAX,
            is_welcome: false,
            manner: visit.manner,
            rendition: visit.rendition,
            next_rendition: visit.rendition,
            listed: 0,
            request: 0,
            wanted: None,
            appending: None,
            followed: Followed::default(),
            books,
            check_us: 0,
            received_bytes: 0,
            origin_bytes: 0,
            cancelled_bytes: 0,
            parents: Vec::new(),
        }
    }

    pub(crate) fn link_mut(&mut self, neighbor: u32) -> Option<&mut Link> {
        let at = self.links.binary_search_by_key(&neighbor, |link| link.neighbor).ok()?;
        Some(&mut self.links[at])
    }

    pub(crate) fn add_link(&mut self, link: Link) {
        if let Err(at) = self.links.binary_search_by_key(&link.neighbor, |link| link.neighbor) {
            self.links.insert(at, link);
        }
    }

    pub(crate) fn drop_link(&mut self, neighbor: u32) -> bool {
        self.touched.retain(|touched| *touched != neighbor);
        match self.links.binary_search_by_key(&neighbor, |link| link.neighbor) {
            Ok(at) => {
                self.links.remove(at);
                true
            }
            Err(_) => false,
        }
    }
}

/// Books of a piece store: which blocks it holds, and which of these are garbage. Blocks of a piece are bits.
#[derive(Debug)]
pub(crate) struct Store {
    renditions: Vec<Shelf>,
}

/// The pieces of one rendition, by number.
#[derive(Debug, Default)]
struct Shelf {
    first: u64,
    pieces: VecDeque<(u128, u128)>,
}

impl Store {
    fn new(renditions: usize) -> Self {
        Self { renditions: (0..renditions).map(|_| Shelf::default()).collect() }
    }

    fn slot(&mut self, rendition: u8, number: u64) -> &mut (u128, u128) {
        let shelf = &mut self.renditions[usize::from(rendition)];
        if shelf.pieces.is_empty() {
            shelf.first = number;
        }
        while number < shelf.first {
            shelf.pieces.push_front((0, 0));
            shelf.first -= 1;
        }
        let at = (number - shelf.first) as usize;
        if at >= shelf.pieces.len() {
            shelf.pieces.resize(at + 1, (0, 0));
        }
        &mut shelf.pieces[at]
    }

    fn get(&self, rendition: u8, number: u64) -> (u128, u128) {
        let shelf = &self.renditions[usize::from(rendition)];
        let at = number.checked_sub(shelf.first);
        at.and_then(|at| shelf.pieces.get(at as usize)).copied().unwrap_or((0, 0))
    }

    /// Puts a block in; false if it is there.
    pub(crate) fn put(&mut self, rendition: u8, number: u64, block: u16, is_bad: bool) -> bool {
        let (held, bad) = self.slot(rendition, number);
        let bit = 1_u128 << block;
        let is_new = *held & bit == 0;
        *held |= bit;
        if is_bad {
            *bad |= bit;
        }
        is_new
    }

    pub(crate) fn put_all(&mut self, rendition: u8, number: u64, length: u32) {
        self.slot(rendition, number).0 = all(length);
    }

    /// Whether a block is held, and then whether it is garbage.
    pub(crate) fn block(&self, rendition: u8, number: u64, block: u16) -> Option<bool> {
        let (held, bad) = self.get(rendition, number);
        (held >> block & 1 == 1).then_some(bad >> block & 1 == 1)
    }

    pub(crate) fn is_complete(&self, rendition: u8, number: u64, length: u32) -> bool {
        self.get(rendition, number).0 == all(length)
    }

    /// Whether no block is held.
    pub(crate) fn is_empty(&self, rendition: u8, number: u64) -> bool {
        self.get(rendition, number).0 == 0
    }

    pub(crate) fn bad_blocks(&self, rendition: u8, number: u64) -> u64 {
        u64::from(self.get(rendition, number).1.count_ones())
    }

    pub(crate) fn evict(&mut self, rendition: u8, number: u64) {
        *self.slot(rendition, number) = (0, 0);
        let shelf = &mut self.renditions[usize::from(rendition)];
        while shelf.pieces.front() == Some(&(0, 0)) {
            shelf.pieces.pop_front();
            shelf.first += 1;
        }
    }
}

fn all(length: u32) -> u128 {
    u128::MAX >> (128 - block_count(length))
}
