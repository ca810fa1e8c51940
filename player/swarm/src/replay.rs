//! A log of everything a peer was told, and how to tell it again.
//!
//! The core is deterministic, so a log of its inputs with the configuration and the seed gives back every decision: a
//! viewer's log from a browser can be looked at natively, step by step. The log holds no media and no addresses; it holds
//! ids, lengths, digests, times and the messages between neighbors.
//!
//! The encoding: the magic bytes, the configuration, the seed, then for each input the time since the one before, a tag
//! and the fields. Integers are variable-length (7 bits in a byte, the least significant first). It is read by the same
//! version of this crate that wrote it and makes no promise beyond.

use shoal_digest::{BlockDigest, Epoch, PieceId};

use crate::{Config, Input, Peer, Place, SignedRecord, Span, Target, Time};

const MAGIC: &[u8; 8] = b"shoalog4";
/// A recorder stops here: an hour of a viewer with a dozen neighbors.
const LOG_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why bytes are not a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an input log of this version, or cut off in the middle of an input")]
pub struct Malformed;

/// Writes a log.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: Writer,
    last: Time,
    /// Bytes that were handed out before.
    taken: usize,
}

impl Recorder {
    pub(crate) fn new(config: &Config, seed: u64) -> Self {
        let mut writer = Writer(MAGIC.to_vec());
        writer.config(config);
        writer.number(seed);
        Self { writer, last: Time::ZERO, taken: 0 }
    }

    pub(crate) fn add(&mut self, now: Time, input: &Input<'_>) {
        if self.taken + self.writer.0.len() < LOG_BYTES_MAX {
            self.writer.number(now.since(self.last).as_us());
            self.writer.input(input);
            self.last = now;
        }
    }

    pub(crate) fn take_bytes(&mut self) -> Vec<u8> {
        self.taken += self.writer.0.len();
        std::mem::take(&mut self.writer.0)
    }
}

/// Makes the peer that a log belongs to and calls `step` for each input, which shall hand it in and drain the outputs.
///
/// # Errors
/// The bytes are not a log. What came before the damage has been replayed.
pub fn replay(log: &[u8], mut step: impl FnMut(&mut Peer, Time, Input<'_>)) -> Result<Peer, Malformed> {
    let mut reader = Reader(log);
    if &reader.take::<8>()? != MAGIC {
        return Err(Malformed);
    }
    let config = reader.config()?;
    let mut peer = Peer::new(config, reader.number()?);
    let mut now = Time::ZERO;
    while !reader.0.is_empty() {
        now += Span::from_us(reader.number()?);
        reader.input(|input| step(&mut peer, now, input))?;
    }
    Ok(peer)
}

struct Writer(Vec<u8>);

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn piece(&mut self, piece: PieceId) {
        self.0.push(piece.rendition);
        self.number(piece.msn);
        self.number(u64::from(piece.part));
    }

    /// A number that may be absent: 0 or one more than the number.
    fn maybe(&mut self, value: Option<u64>) {
        self.number(value.map_or(0, |value| value.saturating_add(1)));
    }

    fn config(&mut self, config: &Config) {
        self.0.extend_from_slice(&config.epoch.0);
        for value in numbers(config) {
            self.number(value);
        }
    }

    fn input(&mut self, input: &Input<'_>) {
        match input {
            Input::Wake => self.0.push(0),
            Input::Welcome { peer, neighbors_max, upload_ratio_percent, report_interval } => {
                self.0.push(1);
                self.number(u64::from(*peer));
                self.number(u64::from(*neighbors_max));
                self.number(u64::from(*upload_ratio_percent));
                self.number(report_interval.as_us());
            }
            Input::TrackerLost => self.0.push(2),
            Input::Record { record } => {
                self.0.push(3);
                self.bytes(record.bytes());
            }
            Input::RecordBytes { bytes } => {
                self.0.push(23);
                self.bytes(bytes);
            }
            Input::RecordChecked { check, is_signed } => {
                self.0.push(24);
                self.number(u64::from(*check));
                self.0.push(u8::from(*is_signed));
            }
            Input::RecordFailed { piece } => {
                self.0.push(4);
                self.piece(*piece);
            }
            Input::Plan { rendition, stripes, places } => {
                self.0.extend_from_slice(&[5, *rendition, *stripes]);
                self.number(places.len() as u64);
                for place in *places {
                    self.0.extend_from_slice(&[place.stripe, u8::from(place.is_root)]);
                    self.maybe(place.parent.map(u64::from));
                    self.number(place.expected.as_us());
                    self.number(place.children.len() as u64);
                    place.children.iter().for_each(|child| self.number(u64::from(*child)));
                }
            }
            Input::Sharing { on } => self.0.extend_from_slice(&[6, u8::from(*on)]),
            Input::NeighborConnected { peer, rtt } => {
                self.0.push(7);
                self.number(u64::from(*peer));
                self.maybe(rtt.map(Span::as_us));
            }
            Input::NeighborLost { peer } => {
                self.0.push(8);
                self.number(u64::from(*peer));
            }
            Input::Message { peer, bytes } => {
                self.0.push(9);
                self.number(u64::from(*peer));
                self.bytes(bytes);
            }
            Input::Block { peer, header, length, digest } => {
                self.0.push(10);
                self.number(u64::from(*peer));
                self.bytes(header);
                self.number(u64::from(*length));
                self.0.extend_from_slice(&digest.0);
            }
            Input::SendQueue { peer, buffered } => {
                self.0.push(11);
                self.number(u64::from(*peer));
                self.number(u64::from(*buffered));
            }
            Input::FetchBlock { fetch, block, length, digest } => {
                self.0.push(12);
                self.number(u64::from(*fetch));
                self.number(u64::from(*block));
                self.number(u64::from(*length));
                self.0.extend_from_slice(&digest.0);
            }
            Input::FetchFinished { fetch } => {
                self.0.push(13);
                self.number(u64::from(*fetch));
            }
            Input::FetchFailed { fetch, status } => {
                self.0.push(14);
                self.number(u64::from(*fetch));
                self.number(u64::from(*status));
            }
            Input::Loaded { piece, length, digests, took } => {
                self.0.push(15);
                self.piece(*piece);
                self.number(u64::from(*length));
                self.number(digests.len() as u64);
                digests.iter().for_each(|digest| self.0.extend_from_slice(&digest.0));
                self.number(took.as_us());
            }
            Input::Playing { renditions } => {
                self.0.push(16);
                self.bytes(renditions);
            }
            Input::Playhead { position_ms, buffered_until_ms, rate_percent, is_stalled } => {
                self.0.push(17);
                self.number(*position_ms);
                self.number(*buffered_until_ms);
                self.number(u64::from(*rate_percent));
                self.0.push(u8::from(*is_stalled));
            }
            Input::Want { request, target, deadline } => {
                self.0.push(18);
                self.number(u64::from(*request));
                match target {
                    Target::Piece(piece) => {
                        self.0.push(0);
                        self.piece(*piece);
                    }
                    Target::Segment { rendition, msn } => {
                        self.0.extend_from_slice(&[1, *rendition]);
                        self.number(*msn);
                    }
                }
                self.maybe(deadline.map(Time::as_us));
            }
            Input::Unwant { request } => {
                self.0.push(19);
                self.number(u64::from(*request));
            }
            Input::Share { on } => self.0.extend_from_slice(&[20, u8::from(*on)]),
            Input::Metered { on } => self.0.extend_from_slice(&[21, u8::from(*on)]),
            Input::Leave => self.0.push(22),
        }
    }
}

/// The configuration's numbers in the order in which they are written.
fn numbers(config: &Config) -> [u64; 18] {
    [
        config.store_bytes_max,
        config.pieces_max as u64,
        config.neighbors_max as u64,
        config.upload_uplink_percent,
        config.upload_ratio_percent,
        config.upload_burst.as_us(),
        config.uplink_initial_bps,
        config.uplink_granted_bps.map_or(0, |rate| rate.saturating_add(1)),
        config.pull_margin.as_us(),
        config.append_margin.as_us(),
        config.fallback_spread.as_us(),
        u64::from(config.strikes_max),
        config.starved_above.as_us(),
        config.upload_queue_max as u64,
        config.held_max as u64,
        config.fetches_max as u64,
        u64::from(config.is_recording),
        u64::from(config.push),
    ]
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        self.byte().map(|byte| byte != 0)
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.number()?).map_err(|_| Malformed)
    }

    fn maybe(&mut self) -> Result<Option<u64>, Malformed> {
        self.number().map(|value| value.checked_sub(1))
    }

    fn span(&mut self) -> Result<Span, Malformed> {
        self.number().map(Span::from_us)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length: usize = self.small()?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn piece(&mut self) -> Result<PieceId, Malformed> {
        Ok(PieceId { rendition: self.byte()?, msn: self.number()?, part: self.small()? })
    }

    fn config(&mut self) -> Result<Config, Malformed> {
        let epoch = Epoch(self.take()?);
        let config = Config {
            epoch,
            store_bytes_max: self.number()?,
            pieces_max: self.small()?,
            neighbors_max: self.small()?,
            upload_uplink_percent: self.number()?,
            upload_ratio_percent: self.number()?,
            upload_burst: self.span()?,
            uplink_initial_bps: self.number()?,
            uplink_granted_bps: self.maybe()?,
            pull_margin: self.span()?,
            append_margin: self.span()?,
            fallback_spread: self.span()?,
            strikes_max: self.small()?,
            starved_above: self.span()?,
            upload_queue_max: self.small()?,
            held_max: self.small()?,
            fetches_max: self.small()?,
            is_recording: self.number()? != 0,
            push: self.number()? != 0,
        };
        Ok(config)
    }

    fn input(&mut self, mut step: impl FnMut(Input<'_>)) -> Result<(), Malformed> {
        let input = match self.byte()? {
            0 => Input::Wake,
            1 => Input::Welcome {
                peer: self.small()?,
                neighbors_max: self.small()?,
                upload_ratio_percent: self.small()?,
                report_interval: self.span()?,
            },
            2 => Input::TrackerLost,
            3 => {
                let record = SignedRecord::vouched(self.bytes()?).map_err(|_| Malformed)?;
                step(Input::Record { record: &record });
                return Ok(());
            }
            4 => Input::RecordFailed { piece: self.piece()? },
            5 => return self.plan(step),
            6 => Input::Sharing { on: self.flag()? },
            7 => Input::NeighborConnected { peer: self.small()?, rtt: self.maybe()?.map(Span::from_us) },
            8 => Input::NeighborLost { peer: self.small()? },
            9 => Input::Message { peer: self.small()?, bytes: self.bytes()? },
            10 => Input::Block {
                peer: self.small()?,
                header: self.bytes()?,
                length: self.small()?,
                digest: BlockDigest(self.take()?),
            },
            11 => Input::SendQueue { peer: self.small()?, buffered: self.small()? },
            12 => Input::FetchBlock {
                fetch: self.small()?,
                block: self.small()?,
                length: self.small()?,
                digest: BlockDigest(self.take()?),
            },
            13 => Input::FetchFinished { fetch: self.small()? },
            14 => Input::FetchFailed { fetch: self.small()?, status: self.small()? },
            15 => {
                let (piece, length, count) = (self.piece()?, self.small()?, self.number()?);
                let digests =
                    (0..count).map(|_| self.take().map(BlockDigest)).collect::<Result<Vec<_>, _>>()?;
                let took = self.span()?;
                step(Input::Loaded { piece, length, digests: &digests, took });
                return Ok(());
            }
            16 => Input::Playing { renditions: self.bytes()? },
            17 => Input::Playhead {
                position_ms: self.number()?,
                buffered_until_ms: self.number()?,
                rate_percent: self.small()?,
                is_stalled: self.flag()?,
            },
            18 => {
                let request = self.small()?;
                let target = match self.byte()? {
                    0 => Target::Piece(self.piece()?),
                    _ => Target::Segment { rendition: self.byte()?, msn: self.number()? },
                };
                Input::Want { request, target, deadline: self.maybe()?.map(Time::from_us) }
            }
            19 => Input::Unwant { request: self.small()? },
            20 => Input::Share { on: self.flag()? },
            21 => Input::Metered { on: self.flag()? },
            22 => Input::Leave,
            23 => Input::RecordBytes { bytes: self.bytes()? },
            24 => Input::RecordChecked { check: self.small()?, is_signed: self.flag()? },
            _ => return Err(Malformed),
        };
        step(input);
        Ok(())
    }

    fn plan(&mut self, mut step: impl FnMut(Input<'_>)) -> Result<(), Malformed> {
        struct Read {
            stripe: u8,
            is_root: bool,
            parent: Option<u32>,
            expected: Span,
            children: Vec<u32>,
        }
        let (rendition, stripes, count) = (self.byte()?, self.byte()?, self.number()?);
        let mut read = Vec::new();
        for _ in 0..count {
            let (stripe, is_root) = (self.byte()?, self.flag()?);
            let parent = self.maybe()?.map(u32::try_from).transpose().map_err(|_| Malformed)?;
            let expected = self.span()?;
            let children = (0..self.number()?).map(|_| self.small()).collect::<Result<Vec<_>, _>>()?;
            read.push(Read { stripe, is_root, parent, expected, children });
        }
        let places = read.iter().map(|Read { stripe, is_root, parent, expected, children }| Place {
            stripe: *stripe,
            is_root: *is_root,
            parent: *parent,
            children,
            expected: *expected,
        });
        let places: Vec<Place<'_>> = places.collect();
        step(Input::Plan { rendition, stripes, places: &places });
        Ok(())
    }
}
