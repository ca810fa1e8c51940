//! Where viewers are, as far as it is known, and how far that is apart.
//!
//! Only an order of preference: what a pair is really worth is its measured round trip, which counts as soon as the two
//! are connected.

/// Where a viewer is. 0 means that it is not known.
///
/// The order is that of a hierarchy, so that viewers near each other are neighbors in a sorted set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// The country: two letters of ISO 3166 as a number.
    pub country: u16,
    /// The autonomous system: one operator's network.
    pub asn: u32,
    /// The subnet: any number that viewers of the same subnet share.
    pub subnet: u64,
}

/// Within one subnet packets meet one or two routers.
const SAME_SUBNET_MS: u32 = 0;
/// Within one operator's network: no border, usually no congestion.
const SAME_NETWORK_MS: u32 = 10;
/// Within one country: usually one exchange point.
const SAME_COUNTRY_MS: u32 = 25;
/// Everything else, and what is not known.
const ELSEWHERE_MS: u32 = 60;

impl Locality {
    /// Whether anything is known.
    #[must_use]
    pub fn is_known(self) -> bool {
        self != Self::default()
    }

    /// What it costs that the two are not at the same place: half of a typical difference of round trips, and for the
    /// sake of those who pay for traffic across networks.
    pub(super) fn distance_ms(self, other: Self) -> u32 {
        if self.subnet != 0 && self == other {
            SAME_SUBNET_MS
        } else if self.asn != 0 && self.asn == other.asn {
            SAME_NETWORK_MS
        } else if self.country != 0 && self.country == other.country {
            SAME_COUNTRY_MS
        } else {
            ELSEWHERE_MS
        }
    }

    /// The first and the last locality of the same subnet, of the same network, and of the same country, as far as they
    /// are known.
    pub(super) fn surroundings(self) -> impl Iterator<Item = (Self, Self)> {
        let subnet = (self.subnet != 0).then_some((self, self));
        let network =
            (self.asn != 0).then_some((Self { subnet: 0, ..self }, Self { subnet: u64::MAX, ..self }));
        let country = (self.country != 0).then_some((
            Self { country: self.country, ..Self::default() },
            Self { country: self.country, asn: u32::MAX, subnet: u64::MAX },
        ));
        subnet.into_iter().chain(network).chain(country)
    }
}
