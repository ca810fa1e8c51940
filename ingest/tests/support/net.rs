//! A publisher, a network and a receiver in virtual time: same seed, same run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_ingest::rtp::receiver::{Limits, Receiver};
use shoal_ingest::sdp::Offer;
use shoal_ingest::transport::stack::{self, Stack};
use shoal_ingest::transport::{Event, Figures, Protocol, Route, Transport};
use shoal_segmenter::frame::Input;

use super::{FRAME_INTERVAL, Publisher, SOUND_INTERVAL};

/// What the network does to datagrams, in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Added to some: up to so much, which reorders.
    pub jitter: Duration,
    pub loss_percent: u32,
    pub duplicate_percent: u32,
}

impl Link {
    pub const CLEAN: Self = Self {
        delay: Duration::from_millis(25),
        jitter: Duration::ZERO,
        loss_percent: 0,
        duplicate_percent: 0,
    };
}

/// A small generator: tests must not depend on another crate's idea of a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn percent(&mut self, percent: u32) -> bool {
        self.next() % 100 < u64::from(percent)
    }
}

enum Flight {
    ToServer { from: SocketAddr, bytes: Bytes },
    ToPublisher { bytes: Bytes },
}

/// See the module.
pub struct World {
    pub publisher: Publisher,
    pub receiver: Receiver,
    pub transport: Stack,
    pub link: Link,
    pub start: Instant,
    pub now: Instant,
    /// What came out, and when.
    pub inputs: Vec<(Duration, Input)>,
    pub is_closed: bool,
    /// Where the publisher seems to be: a NAT may change it.
    pub outside: SocketAddr,
    pub sends_media: bool,
    pub sends_reports: bool,
    flights: BTreeMap<(Instant, u64), Flight>,
    counter: u64,
    random: Random,
    next_picture: Instant,
    next_sound: Instant,
    next_report: Instant,
}

const SERVER: ([u8; 4], u16) = ([10, 0, 0, 1], 8189);
const PUBLISHER: ([u8; 4], u16) = ([10, 0, 0, 2], 5000);

pub fn limits() -> Limits {
    Limits {
        hold: Duration::from_millis(400),
        keyframe_interval_min: Duration::from_millis(500),
        frames_out_of_order_max: 30,
    }
}

impl World {
    pub fn new(seed: u64, link: Link) -> Self {
        let start = Instant::now();
        let (server, outside) = (SocketAddr::from(SERVER), SocketAddr::from(PUBLISHER));
        let mut publisher = Publisher::new(start, outside);
        let offer = publisher.offer(start);
        let parsed = Offer::parse(&offer).unwrap_or_else(|error| panic!("{error}\n{offer}"));
        let shared = stack::Shared {
            candidates: vec![stack::candidate_line(0, Protocol::Udp, server)],
            hold: limits().hold,
        };
        let receiver = Receiver::new(start, &parsed, limits());
        let (transport, answer) = Stack::answer(start, parsed, Arc::new(shared)).unwrap();
        publisher.accept(start, answer.sdp);
        Self {
            publisher,
            receiver,
            transport,
            link,
            start,
            now: start,
            inputs: Vec::new(),
            is_closed: false,
            outside,
            sends_media: true,
            sends_reports: true,
            flights: BTreeMap::new(),
            counter: 0,
            random: Random(seed * 2 + 1),
            next_picture: start,
            next_sound: start,
            next_report: start + Duration::from_millis(700),
        }
    }

    /// Runs until the connection stands; the network is clean meanwhile.
    pub fn connect(&mut self) {
        let link = std::mem::replace(&mut self.link, Link::CLEAN);
        let sends = std::mem::replace(&mut self.sends_media, false);
        for _ in 0..500 {
            self.run_for(Duration::from_millis(10));
            if self.publisher.is_connected {
                self.link = link;
                self.sends_media = sends;
                (self.next_picture, self.next_sound) = (self.now, self.now);
                self.next_report = self.now + Duration::from_millis(700);
                return;
            }
        }
        panic!("not connected after 5 s");
    }

    pub fn figures(&mut self) -> Figures {
        self.transport.figures(self.now)
    }

    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.flush();
            let deadlines = [
                self.flights.first_key_value().map(|((at, _), _)| *at),
                self.publisher.poll_timeout(),
                self.transport.poll_timeout(),
                self.receiver.poll_timeout(),
                self.sends_media.then_some(self.next_picture.min(self.next_sound).min(self.next_report)),
            ];
            let next = deadlines.into_iter().flatten().min().unwrap_or(end).max(self.now);
            if next >= end {
                self.now = end;
                return;
            }
            self.now = next;
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self.flights.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Flight::ToServer { from, bytes } => {
                    let route = Route { protocol: Protocol::Udp, local: SERVER.into(), peer: from };
                    self.transport.handle_datagram(now, route, &bytes);
                }
                Flight::ToPublisher { bytes } => {
                    self.publisher.handle_datagram(now, SERVER.into(), &bytes);
                }
            }
        }
        if self.publisher.poll_timeout().is_some_and(|at| at <= now) {
            self.publisher.handle_timeout(now);
        }
        if self.transport.poll_timeout().is_some_and(|at| at <= now) {
            self.transport.handle_timeout(now);
        }
        while let Some(event) = self.transport.poll_event() {
            self.is_closed |= event == Event::Closed;
            self.receiver.handle_event(now, event);
        }
        self.receiver.handle_timeout(now);
        while let Some(ssrc) = self.receiver.poll_keyframe_request() {
            self.transport.request_keyframe(ssrc);
        }
        while let Some(input) = self.receiver.poll_input() {
            self.inputs.push((now - self.start, input));
        }
        if self.sends_media {
            if self.next_picture <= now {
                self.next_picture += FRAME_INTERVAL;
                self.publisher.send_picture(now);
            }
            if self.next_sound <= now {
                let nanos = SOUND_INTERVAL.as_nanos() as i64;
                let ppm = self.publisher.audio_ppm.unwrap_or(0);
                self.next_sound += Duration::from_nanos((nanos - nanos * ppm / 1_000_000) as u64);
                self.publisher.send_sound(now);
            }
            if self.next_report <= now {
                self.next_report += Duration::from_secs(1);
                if self.sends_reports {
                    self.publisher.send_reports(now);
                }
            }
        }
    }

    fn flush(&mut self) {
        while let Some((_, bytes)) = self.publisher.poll_transmit() {
            let from = self.outside;
            self.fly(|bytes| Flight::ToServer { from, bytes }, bytes);
        }
        while let Some(transmit) = self.transport.poll_transmit() {
            // What goes to an address that the NAT has given up is lost.
            if transmit.route.peer == self.outside {
                self.fly(|bytes| Flight::ToPublisher { bytes }, transmit.bytes);
            }
        }
    }

    fn fly(&mut self, make: impl Fn(Bytes) -> Flight, bytes: Bytes) {
        let copies = if self.random.percent(self.link.duplicate_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if self.random.percent(self.link.loss_percent) {
                continue;
            }
            let mut delay = self.link.delay;
            if !self.link.jitter.is_zero() {
                delay += Duration::from_micros(self.random.next() % self.link.jitter.as_micros() as u64);
            }
            self.counter += 1;
            self.flights.insert((self.now + delay, self.counter), make(bytes.clone()));
        }
    }
}
