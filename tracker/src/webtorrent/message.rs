//! Messages of the WebTorrent tracker protocol, as JSON text frames.
//!
//! The protocol is written down nowhere; this is what bittorrent-tracker, WebTorrent and p2p-media-loader send and
//! expect. Hashes and ids are 20 bytes in strings of 20 characters below U+0100.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An info hash, a peer id or an offer id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 20]);

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|byte| char::from(*byte)).collect();
        serializer.serialize_str(&text)
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

/// What a client sends.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum InMessage {
    /// "I am here", with offers for others; or an answer to an offer.
    Announce(Box<Announce>),
    /// How many are there?
    Scrape(Scrape),
}

/// An announce.
#[derive(Clone, Debug, Deserialize)]
pub struct Announce {
    /// The swarm.
    pub info_hash: Id,
    /// The sender's name for itself in this swarm.
    pub peer_id: Id,
    /// Bytes that are missing; 0 makes a seeder. Clients write what their JSON makes of infinity.
    #[serde(default)]
    pub left: Option<serde_json::Value>,
    /// `started`, `stopped`, `completed`, `update`, empty or absent.
    #[serde(default)]
    pub event: Option<String>,
    /// How many offers the client wants passed on.
    #[serde(default)]
    pub numwant: Option<u32>,
    /// Offers, one for each peer that it wants to meet.
    #[serde(default)]
    pub offers: Option<Vec<Offer>>,
    /// An answer, instead of offers.
    #[serde(default)]
    pub answer: Option<Description>,
    /// To whom the answer goes.
    #[serde(default)]
    pub to_peer_id: Option<Id>,
    /// Which offer it answers.
    #[serde(default)]
    pub offer_id: Option<Id>,
}

/// An offer in an announce.
#[derive(Clone, Debug, Deserialize)]
pub struct Offer {
    /// The session description.
    pub offer: Description,
    /// Its id, that the answer repeats.
    pub offer_id: Id,
}

/// A WebRTC session description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `offer` or `answer`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The text.
    pub sdp: String,
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
#[derive(Clone, Debug, Deserialize)]
pub struct Scrape {
    /// The swarms asked for. None means all, which nobody is told.
    #[serde(default, deserialize_with = "one_or_many")]
    pub info_hash: Vec<Id>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Id>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(Id),
        Many(Vec<Id>),
        None(()),
    }
    match OneOrMany::deserialize(deserializer).map_err(D::Error::custom)? {
        OneOrMany::One(id) => Ok(vec![id]),
        OneOrMany::Many(ids) => Ok(ids),
        OneOrMany::None(()) => Ok(Vec::new()),
    }
}

/// What the tracker sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OutMessage {
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
        offer: Description,
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
        answer: Description,
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
        Self(id.0.iter().map(|byte| char::from(*byte)).collect())
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
        let announce = format!(
            r#"{{"numwant":5,"uploaded":0,"downloaded":0,"left":null,"event":"started","action":"announce",
            "info_hash":"{hash}","peer_id":"{hash}","offers":[{{"offer":{{"type":"offer","sdp":"v=0"}},"offer_id":"{hash}"}}]}}"#
        );
        let InMessage::Announce(announce) = serde_json::from_str(&announce).unwrap() else { panic!() };
        assert_eq!(announce.offers.unwrap().len(), 1);
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
}
