//! Who may send signaling to whom, how much of it, and what of it is passed on.
//!
//! Pure. A pair exists here from its introduction until one of the two is gone or lost the other; without it nothing is
//! passed on. Candidates are judged in `candidate.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_tracker_protocol::{ErrorCode, PeerId, Signal};

use super::candidate::{self, Ends, Verdict};
use super::description;
use super::settings::Settings;

/// An `mid` longer than this was made by no browser.
const MID_BYTES_MAX: usize = 32;
/// A candidate line. The longest legitimate ones have about 200 bytes.
const CANDIDATE_BYTES_MAX: usize = 512;

/// A pair of viewers that were introduced, as the tracker guards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The one that makes the offer.
    offerer: PeerId,
    sent: [Sent; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    signals: u8,
    candidates: u8,
    /// Whether this side said that the data channel is open.
    connected: bool,
}

/// All introduced pairs of a swarm.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    pairs: BTreeMap<(PeerId, PeerId), Pair>,
    /// The peers of each viewer that has any.
    peers: BTreeMap<PeerId, Vec<PeerId>>,
}

/// Why a signal is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: ErrorCode,
    pub(super) why: &'static str,
}

/// What became of a signal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// What to pass on, if anything is left of it.
    pub(super) data: Option<Signal>,
    pub(super) stripped: u32,
}

fn key(a: PeerId, b: PeerId) -> (PeerId, PeerId) {
    (a.min(b), a.max(b))
}

impl Pairs {
    pub(super) fn introduce(&mut self, offerer: PeerId, other: PeerId) {
        let pair = Pair { offerer, sent: [Sent::default(); 2] };
        if self.pairs.insert(key(offerer, other), pair).is_none() {
            self.peers.entry(offerer).or_default().push(other);
            self.peers.entry(other).or_default().push(offerer);
        }
    }

    pub(super) fn remove(&mut self, a: PeerId, b: PeerId) -> bool {
        let was_there = self.pairs.remove(&key(a, b)).is_some();
        if was_there {
            self.unlist(a, b);
            self.unlist(b, a);
        }
        was_there
    }

    /// Those who were introduced to a viewer.
    pub(super) fn peers(&self, of: PeerId) -> &[PeerId] {
        self.peers.get(&of).map_or(&[], Vec::as_slice)
    }

    fn unlist(&mut self, of: PeerId, other: PeerId) {
        if let Some(peers) = self.peers.get_mut(&of) {
            peers.retain(|peer| *peer != other);
            if peers.is_empty() {
                self.peers.remove(&of);
            }
        }
    }

    pub(super) fn contains(&self, a: PeerId, b: PeerId) -> bool {
        self.pairs.contains_key(&key(a, b))
    }

    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Notes that `from` reached `to`; true when both sides have now said so for the first time.
    pub(super) fn connected(&mut self, from: PeerId, to: PeerId) -> bool {
        let Some(pair) = self.pairs.get_mut(&key(from, to)) else { return false };
        let [mine, theirs] = sides(pair, from, to);
        let is_news = !mine.connected && theirs.connected;
        mine.connected = true;
        is_news
    }

    /// Whether both sides have said that they are connected.
    pub(super) fn is_connected(&self, a: PeerId, b: PeerId) -> bool {
        self.pairs.get(&key(a, b)).is_some_and(|pair| pair.sent.iter().all(|sent| sent.connected))
    }

    /// Checks and filters a signal. `unverified` holds the addresses that the sender named and that can't be
    /// compared with its own.
    pub(super) fn check(
        &mut self,
        from: PeerId,
        to: PeerId,
        data: Signal,
        ends: &Ends<'_>,
        unverified: &mut Vec<IpAddr>,
        settings: &Settings,
    ) -> Result<Checked, Refused> {
        let refused = |code, why| Err(Refused { code, why });
        // Peer ids are visible to every neighbor: without this check anybody could ring at anybody's door, and make
        // a stranger gather candidates for him.
        let Some(pair) = self.pairs.get_mut(&key(from, to)) else {
            return refused(ErrorCode::NotIntroduced, "signal for a peer that was not introduced");
        };
        let is_offerer = pair.offerer == from;
        let [mine, _] = sides(pair, from, to);
        if mine.signals >= settings.signals_per_pair_max {
            return refused(ErrorCode::RateLimited, "too many signals for one peer");
        }
        mine.signals += 1;
        let mut filter = Filter { ends, settings, unverified, candidates: &mut mine.candidates, stripped: 0 };
        let data = match data {
            Signal::Offer { .. } if !is_offerer => {
                return refused(ErrorCode::OutOfOrder, "the other peer makes the offer");
            }
            Signal::Answer { .. } if is_offerer => {
                return refused(ErrorCode::OutOfOrder, "the other peer makes the answer");
            }
            Signal::Offer { sdp } | Signal::Answer { sdp }
                if sdp.len() > settings.description_bytes_max as usize =>
            {
                return refused(ErrorCode::Malformed, "session description too long");
            }
            Signal::Candidate { candidate, mid }
                if candidate.len() > CANDIDATE_BYTES_MAX
                    || mid.as_ref().is_some_and(|mid| mid.len() > MID_BYTES_MAX) =>
            {
                return refused(ErrorCode::Malformed, "candidate too long");
            }
            Signal::Offer { sdp } => Some(Signal::Offer { sdp: filter.description(sdp) }),
            Signal::Answer { sdp } => Some(Signal::Answer { sdp: filter.description(sdp) }),
            Signal::Candidate { candidate, mid } if candidate.is_empty() => {
                Some(Signal::Candidate { candidate, mid })
            }
            Signal::Candidate { candidate, mid } => {
                filter.line(&candidate).map(|candidate| Signal::Candidate { candidate, mid })
            }
        };
        Ok(Checked { data, stripped: filter.stripped })
    }
}

/// The side of `from` and the side of `to`.
fn sides(pair: &mut Pair, from: PeerId, to: PeerId) -> [&mut Sent; 2] {
    let [low, high] = &mut pair.sent;
    if from < to { [low, high] } else { [high, low] }
}

struct Filter<'a> {
    ends: &'a Ends<'a>,
    settings: &'a Settings,
    unverified: &'a mut Vec<IpAddr>,
    candidates: &'a mut u8,
    stripped: u32,
}

impl Filter<'_> {
    /// A candidate line as it may be passed on.
    fn line(&mut self, line: &str) -> Option<String> {
        if !self.settings.check_candidates {
            return Some(line.to_owned());
        }
        let passed = match candidate::judge(line, self.ends) {
            _ if *self.candidates >= self.settings.candidates_per_pair_max => None,
            Verdict::Pass(line) => Some(line),
            Verdict::Uncertain(address, line) => {
                let has_room = self.unverified.len() < usize::from(self.settings.unverified_addresses_max);
                let is_known = self.unverified.contains(&address);
                if !is_known && has_room {
                    self.unverified.push(address);
                }
                (is_known || has_room).then_some(line)
            }
            Verdict::Strip => None,
        };
        match &passed {
            Some(_) => *self.candidates += 1,
            None => self.stripped += 1,
        }
        passed
    }

    fn description(&mut self, sdp: String) -> String {
        if !self.settings.check_candidates {
            return sdp;
        }
        description::strip(sdp.into(), |line| self.line(line)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Relays;
    use super::*;

    fn ends<'a>() -> Ends<'a> {
        Ends {
            sender: "5.6.7.8".parse().unwrap(),
            receiver: "9.8.7.6".parse().unwrap(),
            relays: &Relays::None,
            relay_only: false,
        }
    }

    fn check(pairs: &mut Pairs, from: PeerId, to: PeerId, data: Signal) -> Result<Checked, ErrorCode> {
        let settings = Settings::default();
        pairs.check(from, to, data, &ends(), &mut Vec::new(), &settings).map_err(|refused| refused.code)
    }

    fn offer(sdp: &str) -> Signal {
        Signal::Offer { sdp: sdp.into() }
    }

    #[test]
    fn signals_pass_only_between_introduced_peers_and_in_their_roles() {
        let mut pairs = Pairs::default();
        pairs.introduce(2, 1);
        assert!(check(&mut pairs, 2, 1, offer("v=0\r\n")).is_ok());
        assert_eq!(check(&mut pairs, 1, 2, offer("v=0\r\n")).unwrap_err(), ErrorCode::OutOfOrder);
        let answer = Signal::Answer { sdp: "v=0\r\n".into() };
        assert!(check(&mut pairs, 1, 2, answer.clone()).is_ok());
        assert_eq!(check(&mut pairs, 2, 1, answer).unwrap_err(), ErrorCode::OutOfOrder);
        assert_eq!(check(&mut pairs, 3, 1, offer("v=0\r\n")).unwrap_err(), ErrorCode::NotIntroduced);
        pairs.remove(1, 2);
        assert_eq!(check(&mut pairs, 2, 1, offer("v=0\r\n")).unwrap_err(), ErrorCode::NotIntroduced);
    }

    #[test]
    fn candidates_inside_descriptions_are_stripped_and_the_rest_stays() {
        let mut pairs = Pairs::default();
        pairs.introduce(1, 2);
        let sdp = "v=0\r\na=ice-ufrag:x\r\na=candidate:1 1 udp 1 192.168.1.1 5000 typ host\r\n\
                   a=candidate:2 1 udp 1 5.6.7.8 5000 typ srflx raddr 192.168.1.1 rport 5000\r\na=mid:0\r\n";
        let checked = check(&mut pairs, 1, 2, offer(sdp)).unwrap();
        let expected = "v=0\r\na=ice-ufrag:x\r\n\
                        a=candidate:2 1 udp 1 5.6.7.8 5000 typ srflx raddr 0.0.0.0 rport 0\r\na=mid:0\r\n";
        assert_eq!(checked, Checked { data: Some(offer(expected)), stripped: 1 });
    }

    #[test]
    fn a_stripped_candidate_is_not_passed_on_and_the_end_of_candidates_is() {
        let mut pairs = Pairs::default();
        pairs.introduce(1, 2);
        let bad =
            Signal::Candidate { candidate: "candidate:1 1 udp 1 10.0.0.1 5000 typ host".into(), mid: None };
        assert_eq!(check(&mut pairs, 1, 2, bad).unwrap(), Checked { data: None, stripped: 1 });
        let end = Signal::Candidate { candidate: String::new(), mid: Some("0".into()) };
        assert_eq!(check(&mut pairs, 1, 2, end.clone()).unwrap(), Checked { data: Some(end), stripped: 0 });
    }

    #[test]
    fn signals_of_one_pair_are_bounded() {
        let mut pairs = Pairs::default();
        pairs.introduce(1, 2);
        let sent = (0..200).filter(|_| check(&mut pairs, 1, 2, offer("v=0\r\n")).is_ok()).count();
        assert_eq!(sent, usize::from(Settings::default().signals_per_pair_max));
        let long = "x".repeat(20_000);
        assert_eq!(check(&mut pairs, 2, 1, Signal::Answer { sdp: long }).unwrap_err(), ErrorCode::Malformed);
    }

    #[test]
    fn addresses_that_cannot_be_compared_are_few() {
        let mut pairs = Pairs::default();
        let (mut unverified, settings) = (Vec::new(), Settings::default());
        let mut passed = 0;
        for to in 2..40 {
            pairs.introduce(1, to);
            let candidate = format!("candidate:1 1 udp 1 2a01::{to:x} 5000 typ host");
            let signal = Signal::Candidate { candidate, mid: None };
            let checked = pairs.check(1, to, signal, &ends(), &mut unverified, &settings).unwrap();
            passed += usize::from(checked.data.is_some());
        }
        assert_eq!(passed, usize::from(settings.unverified_addresses_max));
    }

    #[test]
    fn a_pair_is_connected_when_both_have_said_so() {
        let mut pairs = Pairs::default();
        pairs.introduce(1, 2);
        assert!(!pairs.connected(1, 2) && !pairs.connected(1, 2) && !pairs.is_connected(1, 2));
        assert!(pairs.connected(2, 1) && pairs.is_connected(1, 2));
        assert!(!pairs.connected(2, 1), "said before");
    }
}
