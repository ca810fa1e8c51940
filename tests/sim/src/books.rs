//! The driver's books of one viewer: what was handed to its core and what the core had done with it. They must agree with the
//! core's own counters to the byte, and no request may be answered twice. Broken books end the run.
//!
//! What came and went is booked as it happens; [`Books::check`] compares, whenever the driver asks for it.

use shoal_swarm::{RequestId, Stats};

/// Where block bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Peer,
    Origin,
}

/// What was handed in, and what became of it.
#[derive(Debug)]
pub(crate) struct Books {
    store_bytes_max: u64,
    /// Requests that the core has yet to answer.
    open: Vec<RequestId>,
    delivered: u64,
    fallbacks: u64,
    /// The block that was just handed in; nothing once the core has said what to do with it.
    brought: Option<(From, u64)>,
    /// Block bytes that came from peers and over fetches.
    from_peers: u64,
    fetched: u64,
    /// Whole pieces that the player loaded itself.
    loaded: u64,
    stored_from_peers: u64,
    /// Kept aside now.
    held: u64,
    /// Of no use: those from peers, and all.
    wasted_from_peers: u64,
    wasted: u64,
    sent: u64,
    /// In the piece store now: a piece takes its whole length from its first block on.
    store: u64,
}

impl Books {
    pub(crate) fn new(store_bytes_max: u64) -> Self {
        Self {
            store_bytes_max,
            open: Vec::new(),
            delivered: 0,
            fallbacks: 0,
            brought: None,
            from_peers: 0,
            fetched: 0,
            loaded: 0,
            stored_from_peers: 0,
            held: 0,
            wasted_from_peers: 0,
            wasted: 0,
            sent: 0,
            store: 0,
        }
    }

    /// The player asked for something.
    pub(crate) fn asked(&mut self, request: RequestId) {
        assert!(!self.open.contains(&request), "request {request} is made once");
        self.open.push(request);
    }

    /// The player no longer waits for it.
    pub(crate) fn withdrew(&mut self, request: RequestId) {
        self.open.retain(|open| *open != request);
    }

    fn answered(&mut self, request: RequestId) {
        let at = self.open.iter().position(|open| *open == request);
        let at = at.unwrap_or_else(|| panic!("request {request} is open: each is answered at most once"));
        self.open.remove(at);
    }

    /// A request was answered from the piece store.
    pub(crate) fn delivered(&mut self, request: RequestId) {
        self.answered(request);
        self.delivered += 1;
    }

    /// A request was answered with the advice to load it over plain HTTP.
    pub(crate) fn fell_back(&mut self, request: RequestId) {
        self.answered(request);
        self.fallbacks += 1;
    }

    /// A peer's block is handed in.
    pub(crate) fn came_from_peer(&mut self, bytes: u32) {
        self.from_peers += u64::from(bytes);
        self.brought = Some((From::Peer, u64::from(bytes)));
    }

    /// The origin's block is handed in.
    pub(crate) fn was_fetched(&mut self, bytes: u32) {
        self.fetched += u64::from(bytes);
        self.brought = Some((From::Origin, u64::from(bytes)));
    }

    /// The core has handled the last input, and has said what to do with its bytes, or they are in vain.
    pub(crate) fn handled(&mut self) {
        match self.brought.take() {
            Some((From::Peer, bytes)) => {
                self.wasted_from_peers += bytes;
                self.wasted += bytes;
            }
            Some((From::Origin, bytes)) => self.wasted += bytes,
            None => {}
        }
    }

    /// The block just handed in was stored.
    pub(crate) fn stored_brought(&mut self) {
        let (from, bytes) = self.brought.take().expect("bytes are stored or held once");
        self.stored_from_peers += if from == From::Peer { bytes } else { 0 };
    }

    /// The block just handed in is kept aside.
    pub(crate) fn held(&mut self) {
        let (from, bytes) = self.brought.take().expect("bytes are stored or held once");
        assert_eq!(from, From::Peer, "what is fetched has a record");
        self.held += bytes;
    }

    /// A block that was kept aside was stored.
    pub(crate) fn stored_held(&mut self, bytes: u32) {
        self.held -= u64::from(bytes);
        self.stored_from_peers += u64::from(bytes);
    }

    /// A block that was kept aside was dropped.
    pub(crate) fn dropped_held(&mut self, bytes: u32) {
        self.held -= u64::from(bytes);
        self.wasted_from_peers += u64::from(bytes);
        self.wasted += u64::from(bytes);
    }

    /// The player loaded a piece itself.
    pub(crate) fn was_loaded(&mut self, bytes: u32) {
        self.loaded += u64::from(bytes);
    }

    /// What the player loaded itself was in the store already.
    pub(crate) fn was_loaded_in_vain(&mut self, bytes: u32) {
        self.wasted += u64::from(bytes);
    }

    /// A block was sent to a neighbor.
    pub(crate) fn sent(&mut self, bytes: u32) {
        self.sent += u64::from(bytes);
    }

    /// The first block of a piece of this length came into the store.
    pub(crate) fn opened_piece(&mut self, length: u32) {
        self.store += u64::from(length);
    }

    /// A piece of this length left the store.
    pub(crate) fn evicted_piece(&mut self, length: u32) {
        self.store -= u64::from(length);
    }

    /// Compares the books with the core's counters.
    pub(crate) fn check(&self, stats: &Stats) {
        assert!(self.brought.is_none(), "all bytes are accounted for between two inputs");
        let became = self.stored_from_peers + self.wasted_from_peers + self.held;
        assert_eq!(self.from_peers, became, "what peers sent was stored, is held or was in vain");
        let wasted = stats.duplicate_bytes + stats.late_bytes + stats.rejected_bytes;
        for (what, books, core) in [
            ("stored of what peers sent", self.stored_from_peers, stats.peer_bytes),
            ("from the origin", self.fetched + self.loaded, stats.origin_bytes),
            ("in vain", self.wasted, wasted),
            ("sent", self.sent, stats.sent_bytes),
            ("in the piece store", self.store, stats.store_bytes),
        ] {
            assert_eq!(books, core, "bytes {what}: the driver's books and the core's agree");
        }
        assert_eq!(self.delivered, stats.delivered, "requests answered from the store");
        assert_eq!(self.fallbacks, stats.fallbacks, "requests that fell back");
        assert!(self.store <= self.store_bytes_max, "the piece store keeps its limit");
    }
}

/// Each check can fail: the books are broken on purpose. That the driver calls them, its own tests show.
#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> Books {
        Books::new(10_000)
    }

    #[test]
    fn books_that_add_up_pass() {
        let mut books = books();
        books.asked(1);
        books.came_from_peer(100);
        books.opened_piece(300);
        books.stored_brought();
        books.handled();
        books.came_from_peer(70);
        books.handled();
        books.came_from_peer(30);
        books.held();
        books.handled();
        books.was_fetched(200);
        books.stored_brought();
        books.handled();
        books.delivered(1);
        books.sent(100);
        books.check(&Stats {
            peer_bytes: 100,
            origin_bytes: 200,
            late_bytes: 70,
            sent_bytes: 100,
            store_bytes: 300,
            delivered: 1,
            ..Stats::default()
        });
    }

    #[test]
    #[should_panic(expected = "answered at most once")]
    fn a_second_answer_is_seen() {
        let mut books = books();
        books.asked(1);
        books.fell_back(1);
        books.delivered(1);
    }

    #[test]
    #[should_panic(expected = "answered at most once")]
    fn an_answer_to_what_was_withdrawn_is_seen() {
        let mut books = books();
        books.asked(1);
        books.withdrew(1);
        books.delivered(1);
    }

    #[test]
    #[should_panic(expected = "bytes are stored or held once")]
    fn bytes_that_are_stored_twice_are_seen() {
        let mut books = books();
        books.came_from_peer(100);
        books.stored_brought();
        books.stored_brought();
    }

    #[test]
    #[should_panic(expected = "bytes in vain")]
    fn bytes_that_the_core_forgets_are_seen() {
        let mut books = books();
        books.came_from_peer(100);
        books.handled();
        books.check(&Stats::default());
    }

    #[test]
    #[should_panic(expected = "bytes in vain")]
    fn bytes_that_the_core_counts_twice_are_seen() {
        let mut books = books();
        books.came_from_peer(100);
        books.handled();
        books.check(&Stats { duplicate_bytes: 100, late_bytes: 100, ..Stats::default() });
    }

    #[test]
    #[should_panic(expected = "bytes sent")]
    fn bytes_that_are_sent_uncounted_are_seen() {
        let mut books = books();
        books.sent(100);
        books.check(&Stats::default());
    }

    #[test]
    #[should_panic(expected = "keeps its limit")]
    fn a_store_that_is_too_full_is_seen() {
        let mut books = books();
        books.opened_piece(10_001);
        books.check(&Stats { store_bytes: 10_001, ..Stats::default() });
    }
}
