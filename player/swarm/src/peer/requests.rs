//! What the player asked for, and when it is answered.

use shoal_digest::PieceId;

use super::{Peer, fetches::ORIGIN_FAULTS_MAX, records::RECORD_WAIT_MAX};
use crate::{
    Output, Span, Time,
    input::{RequestId, Target},
    output::FallbackReason,
    piece::Piece,
    player::Request,
};

/// A player asks for a few things at a time; more is a driver that lost count.
const REQUESTS_MAX: usize = 64;
/// So many of the last things that the player was to load itself are remembered: it loads one or two at a time.
const PLAIN_LOADS_MAX: usize = 8;
/// Blocks of a piece without a record: half a second of a 3 Mbit/s stream, as good a guess as any.
const PIECE_BLOCKS: u32 = 12;

/// What can be said about a request now.
enum Answer {
    Deliver { first: PieceId, parts: u16 },
    Fallback(FallbackReason),
    Wait,
}

impl Request {
    /// Whether the request asks for this piece, among others.
    pub(crate) fn covers(&self, id: PieceId) -> bool {
        match self.target {
            Target::Piece(piece) => piece == id,
            Target::Segment { rendition, msn } => id.rendition == rendition && id.msn == msn,
        }
    }

    fn first(&self) -> PieceId {
        match self.target {
            Target::Piece(piece) => piece,
            Target::Segment { rendition, msn } => PieceId { rendition, msn, part: 0 },
        }
    }
}

impl Peer {
    pub(super) fn accept_want(&mut self, id: RequestId, target: Target, deadline: Option<Time>) {
        let due = deadline.unwrap_or_else(|| self.player.reaches(self.now, self.player.buffered_until_ms));
        let due = due.before(self.config.append_margin).min(self.now + RECORD_WAIT_MAX);
        let give_up = due.before(self.origin.estimate(PIECE_BLOCKS)).max(self.now + Span::from_us(1));
        let request = Request { id, target, deadline, since: self.now, give_up, record_fetched: None };
        // If the player was loading this or some of it itself, that came to nothing.
        let is_of_it = |load: &Request| load.covers(request.first()) || request.covers(load.first());
        while let Some(at) = self.plain_loads.iter().position(is_of_it) {
            self.plain_loads.remove(at);
        }
        if self.requests.len() >= REQUESTS_MAX || self.requests.iter().any(|request| request.id == id) {
            self.stats.refused += 1;
            self.fall_back(request, FallbackReason::Refused);
            return;
        }
        let pieces = self.pieces.keys_where(&|piece, _| request.covers(piece));
        self.requests.push(request);
        for piece in pieces {
            self.mark_wanted(piece);
        }
        self.check_requests();
    }

    /// The player waits: what it asked for without a record is not waited for any longer.
    pub(super) fn hurry_requests(&mut self) {
        if self.player.is_stalled {
            self.requests.iter_mut().for_each(|request| request.give_up = request.give_up.min(self.now));
        }
    }

    pub(super) fn drop_request(&mut self, id: RequestId) {
        if let Some(at) = self.requests.iter().position(|request| request.id == id) {
            self.end_request(at);
            self.wake_pieces();
        }
    }

    /// Forgets a request; what nobody else asked for is no longer wanted.
    fn end_request(&mut self, at: usize) -> Request {
        let ended = self.requests.remove(at);
        let mut over = Vec::new();
        for (id, piece) in self.pieces.iter_mut() {
            if ended.covers(*id) {
                piece.is_wanted = self.requests.iter().any(|request| request.covers(*id));
                if piece.is_past && !piece.is_wanted {
                    for block in &piece.blocks {
                        if let Some(fetch) = block.fetch {
                            over.push(fetch);
                        }
                    }
                }
            }
        }
        // Whoever asked loads it another way, or has gone elsewhere.
        for fetch in over {
            self.cancel_fetch(fetch);
        }
        ended
    }

    /// Notes that the player asked for a piece, and takes up its search again if it was given up.
    pub(super) fn mark_wanted(&mut self, id: PieceId) {
        if !self.requests.iter().any(|request| request.covers(id)) {
            return;
        }
        let now = self.now;
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let Some(count) = piece.record().map(|record| record.blocks.len()) else { return };
        piece.is_wanted = true;
        if !piece.is_complete && piece.is_retired {
            piece.is_retired = false;
            piece.begin(count);
            self.active.push((id, now));
        }
        self.wake_piece(id);
    }

    /// Answers the requests that can be answered.
    pub(super) fn check_requests(&mut self) {
        let mut at = 0;
        while at < self.requests.len() {
            match self.answer_to(&self.requests[at]) {
                Answer::Deliver { first, parts } => {
                    let request = self.end_request(at).id;
                    self.stats.delivered += 1;
                    for part in first.part..first.part.saturating_add(parts) {
                        let given = self.pieces.get(&PieceId { part, ..first });
                        given
                            .and_then(Piece::record)
                            .into_iter()
                            .for_each(|record| self.player.was_given(record));
                    }
                    self.outputs.push(Output::Deliver { request, first, parts });
                }
                Answer::Fallback(reason) => {
                    let request = self.end_request(at);
                    self.fall_back(request, reason);
                }
                Answer::Wait => {
                    self.fetch_record_for(at);
                    // Records came meanwhile; the piece's own moments decide from here on.
                    let request = &mut self.requests[at];
                    if request.give_up <= self.now {
                        request.give_up = Time::NEVER;
                    }
                    at += 1;
                }
            }
        }
    }

    fn answer_to(&self, request: &Request) -> Answer {
        let first = request.first();
        let mut id = first;
        let mut parts = 0;
        let is_over = request.give_up <= self.now || request.give_up == Time::NEVER;
        loop {
            let piece = self.pieces.get(&id);
            let record = piece.and_then(|piece| piece.record());
            let (Some(piece), Some(record)) = (piece, record) else {
                let is_alone = !self.has_tracker && self.neighbors.is_empty();
                let wait = self.player.has_started && !is_over && !is_alone;
                return if wait { Answer::Wait } else { self.give_up_reason() };
            };
            if !piece.is_complete {
                if !self.player.has_started && request.deadline.is_none() {
                    return Answer::Fallback(FallbackReason::Starting);
                }
                if piece.origin_faults >= ORIGIN_FAULTS_MAX && is_over {
                    return Answer::Fallback(FallbackReason::BadOrigin);
                }
                return Answer::Wait;
            }
            parts += 1;
            if matches!(request.target, Target::Piece(_)) || record.is_last_in_segment {
                return Answer::Deliver { first, parts };
            }
            id.part = match id.part.checked_add(1) {
                Some(part) => part,
                None => return Answer::Fallback(FallbackReason::Refused),
            };
        }
    }

    fn give_up_reason(&self) -> Answer {
        let started = self.player.has_started;
        Answer::Fallback(if started { FallbackReason::NoRecord } else { FallbackReason::Starting })
    }

    /// The first piece of a request whose record is not known.
    fn without_record(&self, request: &Request) -> Option<PieceId> {
        let mut piece = request.first();
        while let Some(record) = self.pieces.get(&piece).and_then(Piece::record) {
            if record.is_last_in_segment || piece.part == u16::MAX {
                return None;
            }
            piece.part += 1;
        }
        request.covers(piece).then_some(piece)
    }

    /// There are no more records of a piece's segment: what can't be verified the player has to load itself.
    pub(super) fn end_requests_without_records(&mut self, piece: PieceId) {
        let lacks = |peer: &Self, at: &usize| {
            let request = &peer.requests[*at];
            request.covers(piece) && peer.without_record(request).is_some()
        };
        while let Some(at) = (0..self.requests.len()).find(|at| lacks(self, at)) {
            let request = self.end_request(at);
            self.fall_back(request, FallbackReason::NoRecord);
        }
    }

    /// Without a tracker somebody has to get the record over HTTP: those that bring the piece into the swarm at once,
    /// the others when half of the time has passed without a relayed one.
    fn fetch_record_for(&mut self, at: usize) {
        let request = &self.requests[at];
        let Some(piece) = self.without_record(request) else { return };
        if request.record_fetched >= Some(piece) {
            return;
        }
        // The tracker sends records at publication: those of the past have to be asked for, with or without it.
        let is_past = self.is_past(piece);
        if self.has_tracker && !is_past {
            return;
        }
        let half = request.since + request.give_up.since(request.since).percent(50);
        // What is hunted for anyway is asked for there.
        let is_hunted = self.hunts.get(&piece.rendition).is_some_and(|hunt| hunt.piece <= piece);
        if is_past || (!is_hunted && self.seeds_without_tracker(piece)) || self.now >= half {
            let of_segment = matches!(request.target, Target::Segment { .. }) && piece.part == 0;
            let last = if of_segment { u16::MAX } else { piece.part };
            self.requests[at].record_fetched = Some(PieceId { part: last, ..piece });
            self.outputs.push(Output::FetchRecord { piece, of_segment });
        }
    }

    /// Whether a piece was published before others whose records have long come, or is of a recording.
    pub(super) fn is_past(&self, id: PieceId) -> bool {
        let newest = self.pieces.iter().rev().find(|(other, piece)| {
            other.rendition == id.rendition && piece.record.is_some() && !piece.is_past
        });
        self.config.is_recording || newest.is_some_and(|(other, _)| other.msn > id.msn.saturating_add(1))
    }

    fn fall_back(&mut self, mut request: Request, reason: FallbackReason) {
        self.stats.fallbacks += 1;
        self.outputs.push(Output::Fallback { request: request.id, reason });
        request.give_up = self.now + self.origin.estimate(PIECE_BLOCKS) + self.origin.patience();
        if self.plain_loads.len() >= PLAIN_LOADS_MAX {
            self.plain_loads.remove(0);
        }
        self.plain_loads.push(request);
    }

    /// Until when a piece counts as being loaded by the player itself, if it does.
    pub(super) fn loads_plainly_until(&self, id: PieceId) -> Option<Time> {
        let load = self.plain_loads.iter().find(|load| load.covers(id) && load.give_up > self.now);
        load.map(|load| load.give_up)
    }
}
