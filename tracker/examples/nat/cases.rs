//! The pairs, and what is expected of each.

use crate::network::{Kind, host};

/// What becomes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Direct,
    Relay,
    /// The origin serves both.
    Neither,
}

/// With what the two of a pair connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Viewers {
    Native,
    Browser,
}

/// Whose STUN and TURN they use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relay {
    Ours,
    Coturn,
}

/// Two sites, and two hosts of one site where the second is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    one: (Kind, usize),
    two: Option<(Kind, usize)>,
    pub(crate) viewers: Viewers,
    pub(crate) relay: Relay,
    pub(crate) expected: Path,
}

/// All cases; those with the same viewers follow each other.
pub(crate) fn cases() -> Vec<Case> {
    use Kind::{Blocked, Open, PortRestricted, Symmetric};
    let both = |viewers| {
        let case = move |one, two: Option<Kind>, expected| Case {
            one: (one, 0),
            two: two.map(|two| (two, 1)),
            viewers,
            relay: Relay::Ours,
            expected,
        };
        let pair = move |one, two, expected| case(one, Some(two), expected);
        // Browsers reach a relay by TCP where UDP is blocked. Our native stack can't; the origin serves it.
        let blocked = if viewers == Viewers::Browser { Path::Relay } else { Path::Neither };
        let by_coturn = move |case: Case| Case { relay: Relay::Coturn, ..case };
        [
            pair(Open, Open, Path::Direct),
            pair(Open, PortRestricted, Path::Direct),
            pair(Open, Symmetric, Path::Direct),
            pair(PortRestricted, PortRestricted, Path::Direct),
            // The symmetric side sends from a port that the other side's router has not heard of.
            pair(PortRestricted, Symmetric, Path::Relay),
            pair(Symmetric, Symmetric, Path::Relay),
            pair(Open, Blocked, blocked),
            pair(PortRestricted, Blocked, blocked),
            pair(Symmetric, Blocked, blocked),
            pair(Blocked, Blocked, blocked),
            case(PortRestricted, None, Path::Direct),
            case(Symmetric, None, Path::Direct),
            case(Blocked, None, Path::Direct),
            by_coturn(pair(PortRestricted, PortRestricted, Path::Direct)),
            by_coturn(pair(Symmetric, Symmetric, Path::Relay)),
            by_coturn(pair(Open, Blocked, blocked)),
        ]
    };
    [both(Viewers::Native), both(Viewers::Browser)].concat()
}

impl Case {
    pub(crate) fn name(&self) -> String {
        match self.two {
            Some(two) => format!("{} - {}", self.one.0.name(), two.0.name()),
            None => format!("both behind one router, {}", self.one.0.name()),
        }
    }

    /// The namespaces of the two.
    pub(crate) fn hosts(&self) -> [String; 2] {
        match self.two {
            Some(two) => [host(self.one, 0), host(two, 0)],
            None => [host(self.one, 0), host(self.one, 1)],
        }
    }
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Neither => "none",
        }
    }
}

impl Viewers {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Browser => "Chromium",
        }
    }
}

impl Relay {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Coturn => "coturn",
        }
    }
}
