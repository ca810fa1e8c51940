//! Messages of the WebTorrent tracker protocol, as JSON text frames.
//!
//! The protocol is written down nowhere; this is what bittorrent-tracker, WebTorrent and p2p-media-loader send and
//! expect. Hashes and ids are 20 bytes in strings of 20 characters below U+0100.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Offers of one announce that are looked at. Clients make 5 to 10.
pub const OFFERS_MAX: usize = 10;

/// An info hash, a peer id or an offer id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 20]);

impl Id {
    /// Hands over the id as the text that it is in messages.
    fn with_text<T>(self, take: impl FnOnce(&str) -> T) -> T {
        // A byte above 0x7f is two bytes of UTF-8. Ids are half of what is written: no allocation for each.
        let mut text = [0; 40];
        let mut length = 0;
        for byte in self.0 {
            length += char::from(byte).encode_utf8(&mut text[length..]).len();
        }
        take(std::str::from_utf8(&text[..length]).expect("characters were written"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("20 characters below U+0100")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                let mut bytes = [0; 20];
                let mut letters = text.chars();
                for byte in &mut bytes {
                    let letter = letters.next().and_then(|letter| u8::try_from(letter).ok());
                    *byte = letter.ok_or_else(|| E::custom("not 20 characters below U+0100"))?;
                }
                match letters.next() {
                    None => Ok(Id(bytes)),
                    Some(_) => Err(E::custom("more than 20 characters")),
                }
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// What a client sends. Borrows from its text.
#[derive(Clone, Debug)]
pub enum InMessage<'a> {
    /// "I am here", with offers for others; or an answer to an offer.
    Announce(Announce<'a>),
    /// How many are there?
    Scrape(Scrape),
}

/// An announce.
#[derive(Clone, Debug)]
pub struct Announce<'a> {
    /// The swarm.
    pub info_hash: Id,
    /// The sender's name for itself in this swarm.
    pub peer_id: Id,
    /// Whether the client says that nothing is missing: it is a seeder.
    pub has_all: bool,
    /// What has happened.
    pub event: Option<Event>,
    /// How many offers the client wants passed on.
    pub numwant: Option<u32>,
    /// Offers, one for each peer that it wants to meet.
    pub offers: Vec<Unread<'a, Offer<'a>>>,
    /// An answer, instead of offers.
    pub answer: Option<Unread<'a, Description<'a>>>,
    /// To whom the answer goes.
    pub to_peer_id: Option<Id>,
    /// Which offer it answers.
    pub offer_id: Option<Id>,
}

/// Why a client announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It leaves.
    Stopped,
    /// It has everything now.
    Completed,
    /// `started`, `update`, empty, or something new.
    #[serde(other)]
    Other,
}

/// A part of a message that is JSON and has not been looked into: most offers of a busy swarm find nobody who has room
/// for them, and descriptions are most of what is sent.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Unread<'a, T> {
    #[serde(borrow)]
    text: &'a RawValue,
    #[serde(skip)]
    kind: std::marker::PhantomData<T>,
}

impl<T> Clone for Unread<'_, T> {
    fn clone(&self) -> Self {
        Self { text: self.text, kind: self.kind }
    }
}

impl<'a, T: Deserialize<'a>> Unread<'a, T> {
    /// What it says; none if that is not what it should be.
    #[must_use]
    pub fn read(&self) -> Option<T> {
        serde_json::from_str(self.text.get()).ok()
    }
}

/// An offer in an announce.
#[derive(Clone, Debug, Deserialize)]
pub struct Offer<'a> {
    /// The session description.
    #[serde(borrow)]
    pub offer: Description<'a>,
    /// Its id, that the answer repeats.
    pub offer_id: Id,
}

/// A WebRTC session description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description<'a> {
    /// `offer` or `answer`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The text.
    #[serde(borrow)]
    pub sdp: Cow<'a, str>,
}

/// What a description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An offer.
    Offer,
    /// An answer.
    Answer,
}

/// A scrape.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The swarms asked for. None means all, which nobody is told.
    pub info_hash: Vec<Id>,
}

/// Both messages as they are written. Read as one, because an enum tagged by a field that may stand anywhere is read
/// into a tree of copies first.
#[derive(Deserialize)]
struct Either<'a> {
    action: Action,
    #[serde(default)]
    info_hash: Hashes,
    peer_id: Option<Id>,
    /// Bytes that are missing. Clients write what their JSON makes of infinity.
    #[serde(borrow)]
    left: Option<&'a RawValue>,
    event: Option<Event>,
    numwant: Option<u32>,
    #[serde(borrow)]
    offers: Option<Offers<'a>>,
    #[serde(borrow)]
    answer: Option<Unread<'a, Description<'a>>>,
    to_peer_id: Option<Id>,
    offer_id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Announce,
    Scrape,
}

impl<'de: 'a, 'a> Deserialize<'de> for InMessage<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let either = Either::deserialize(deserializer)?;
        match (either.action, either.info_hash) {
            (Action::Scrape, hashes) => Ok(Self::Scrape(Scrape { info_hash: hashes.into() })),
            (Action::Announce, Hashes::One(info_hash)) => Ok(Self::Announce(Announce {
                info_hash,
                peer_id: either.peer_id.ok_or_else(|| D::Error::missing_field("peer_id"))?,
                has_all: either.left.is_some_and(|left| left.get() == "0"),
                event: either.event,
                numwant: either.numwant,
                offers: either.offers.map_or_else(Vec::new, |offers| offers.0),
                answer: either.answer,
                to_peer_id: either.to_peer_id,
                offer_id: either.offer_id,
            })),
            (Action::Announce, Hashes::Many(_)) => Err(D::Error::custom("an announce is about one swarm")),
        }
    }
}

/// The swarms that a message names: one, several, or none.
enum Hashes {
    One(Id),
    Many(Vec<Id>),
}

impl Default for Hashes {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl From<Hashes> for Vec<Id> {
    fn from(hashes: Hashes) -> Self {
        match hashes {
            Hashes::One(id) => vec![id],
            Hashes::Many(ids) => ids,
        }
    }
}

impl<'de> Deserialize<'de> for Hashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Hashes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an info hash or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Hashes, E> {
                Id::deserialize(serde::de::value::StrDeserializer::new(text)).map(Hashes::One)
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Hashes, E> {
                Ok(Hashes::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<Hashes, A::Error> {
                let mut all = Vec::new();
                while let Some(id) = ids.next_element()? {
                    all.push(id);
                }
                Ok(Hashes::Many(all))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// The first offers of a list.
struct Offers<'a>(Vec<Unread<'a, Offer<'a>>>);

impl<'de: 'a, 'a> Deserialize<'de> for Offers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First<'a>(std::marker::PhantomData<Offers<'a>>);
        impl<'de: 'a, 'a> Visitor<'de> for First<'a> {
            type Value = Offers<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of offers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Offers<'a>, A::Error> {
                let mut offers = Vec::with_capacity(list.size_hint().unwrap_or(OFFERS_MAX).min(OFFERS_MAX));
                while offers.len() < OFFERS_MAX {
                    let Some(offer) = list.next_element()? else { return Ok(Offers(offers)) };
                    offers.push(offer);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Offers(offers))
            }
        }
        deserializer.deserialize_seq(First(std::marker::PhantomData))
    }
}

/// What the tracker sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OutMessage<'a> {
    /// The reply to an announce.
    Announced {
        /// `announce`.
        action: &'static str,
        /// Seconds until the next announce.
        interval: u32,
        /// The swarm.
        info_hash: Id,
        /// Seeders.
        complete: u32,
        /// The others.
        incomplete: u32,
    },
    /// An offer of another peer.
    Offered {
        /// `announce`.
        action: &'static str,
        /// The offer.
        offer: Description<'a>,
        /// Its id.
        offer_id: Id,
        /// Who makes it.
        peer_id: Id,
        /// The swarm.
        info_hash: Id,
    },
    /// The answer to an offer.
    Answered {
        /// `announce`.
        action: &'static str,
        /// The answer.
        answer: Description<'a>,
        /// Which offer it answers.
        offer_id: Id,
        /// Who answers.
        peer_id: Id,
        /// The swarm.
        info_hash: Id,
    },
    /// The reply to a scrape.
    Scraped {
        /// `scrape`.
        action: &'static str,
        /// Counts for each swarm that exists.
        files: BTreeMap<Text, Counts>,
    },
    /// A message was refused.
    Failed {
        /// Why, in words.
        #[serde(rename = "failure reason")]
        reason: &'static str,
        /// The swarm that it was about, if it was about one.
        #[serde(skip_serializing_if = "Option::is_none")]
        info_hash: Option<Id>,
    },
}

/// An id as the key of a JSON object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl From<Id> for Text {
    fn from(id: Id) -> Self {
        id.with_text(|text| Self(text.to_owned()))
    }
}

/// Counts of one swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Seeders.
    pub complete: u32,
    /// The others.
    pub incomplete: u32,
    /// Times that `completed` was announced.
    pub downloaded: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_twenty_latin_1_characters() {
        let id: Id =
            serde_json::from_str("\"\u{ff}\u{0}AAAAAAAAAAAAAAAAAA\"".replace('\u{0}', "\\u0000").as_str())
                .unwrap();
        assert_eq!((id.0[0], id.0[1], id.0[2]), (0xff, 0, b'A'));
        assert_eq!(serde_json::from_str::<Id>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        for bad in ["\"short\"", "\"AAAAAAAAAAAAAAAAAAAAA\"", "\"AAAAAAAAAAAAAAAAAAA\u{100}\"", "7"] {
            assert!(serde_json::from_str::<Id>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_clients_send_is_read() {
        let hash = "A".repeat(20);
        let offer = format!(r#"{{"offer":{{"type":"offer","sdp":"v=0\r\n"}},"offer_id":"{hash}"}}"#);
        let announce = format!(
            r#"{{"numwant":5,"uploaded":0,"downloaded":0,"left":null,"event":"started","action":"announce",
            "info_hash":"{hash}","peer_id":"{hash}","offers":[{offer}]}}"#
        );
        let InMessage::Announce(announce) = serde_json::from_str(&announce).unwrap() else { panic!() };
        assert_eq!(announce.offers.len(), 1);
        assert_eq!(announce.offers[0].read().unwrap().offer.sdp, "v=0\r\n");
        assert_eq!((announce.event, announce.has_all), (Some(Event::Other), false));
        for (scrape, count) in [
            (format!(r#"{{"action":"scrape","info_hash":"{hash}"}}"#), 1),
            (format!(r#"{{"action":"scrape","info_hash":["{hash}","{hash}"]}}"#), 2),
            (r#"{"action":"scrape"}"#.to_owned(), 0),
            (r#"{"action":"scrape","info_hash":null}"#.to_owned(), 0),
        ] {
            let InMessage::Scrape(scrape) = serde_json::from_str(&scrape).unwrap() else { panic!() };
            assert_eq!(scrape.info_hash.len(), count);
        }
    }

    #[test]
    fn only_nothing_left_makes_a_seeder() {
        let hash = "A".repeat(20);
        for (left, expected) in [
            ("0", true),
            ("1", false),
            ("-0", false),
            ("0.5", false),
            ("\"0\"", false),
            ("null", false),
            ("{\"a\":0}", false),
        ] {
            let text = format!(
                r#"{{"left": {left} , "action":"announce","info_hash":"{hash}","peer_id":"{hash}"}}"#
            );
            let InMessage::Announce(announce) = serde_json::from_str(&text).unwrap() else { panic!() };
            assert_eq!(announce.has_all, expected, "{left}");
        }
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        let hash = "A".repeat(20);
        for bad in [
            "{}".to_owned(),
            r#"{"action":"dance"}"#.to_owned(),
            format!(r#"{{"action":"announce","info_hash":"{hash}"}}"#),
            format!(r#"{{"action":"announce","peer_id":"{hash}"}}"#),
            format!(r#"{{"action":"announce","info_hash":["{hash}"],"peer_id":"{hash}"}}"#),
            format!(r#"{{"action":"announce","info_hash":"{hash}","peer_id":"{hash}","offers":7}}"#),
            format!(r#"{{"action":"announce","info_hash":"{hash}","peer_id":"{hash}","numwant":-1}}"#),
            format!(r#"{{"action":"announce","info_hash":"{hash}","peer_id":"{hash}""#),
        ] {
            assert!(serde_json::from_str::<InMessage<'_>>(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_offers_than_are_passed_on_are_not_kept() {
        let hash = "A".repeat(20);
        let text = format!(
            r#"{{"action":"announce","info_hash":"{hash}","peer_id":"{hash}","offers":[{}0]}}"#,
            "0,".repeat(20_000)
        );
        let InMessage::Announce(announce) = serde_json::from_str(&text).unwrap() else { panic!() };
        assert_eq!(announce.offers.len(), OFFERS_MAX);
        assert!(announce.offers[0].read().is_none());
    }
}
