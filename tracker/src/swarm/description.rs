//! The check of candidates inside a whole session description, for protocols without trickling.

use std::borrow::Cow;
use std::net::IpAddr;

use super::candidate::{Ends, Verdict, judge};
use super::settings::Relays;

/// Candidates that one description may keep. A host with several interfaces and a relay has about ten.
const CANDIDATES_MAX: usize = 16;
/// Of these, public addresses that can't be compared with the sender's.
const UNCERTAIN_MAX: usize = 4;

/// From where the tracker sees the two ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptionFilter<'a> {
    pub(crate) sender: IpAddr,
    pub(crate) receiver: IpAddr,
    pub(crate) relays: &'a Relays,
}

impl DescriptionFilter<'_> {
    /// The description without the candidates that may not be passed on.
    pub(crate) fn apply(self, sdp: Cow<'_, str>) -> Cow<'_, str> {
        let ends =
            Ends { sender: self.sender, receiver: self.receiver, relays: self.relays, relay_only: false };
        let (mut kept, mut uncertain) = (0, 0);
        strip(sdp, |line| {
            let passed = match judge(line, &ends) {
                _ if kept >= CANDIDATES_MAX => None,
                Verdict::Pass(line) => Some(line),
                Verdict::Uncertain(_, line) if uncertain < UNCERTAIN_MAX => {
                    uncertain += 1;
                    Some(line)
                }
                Verdict::Uncertain(..) | Verdict::Strip => None,
            };
            kept += usize::from(passed.is_some());
            passed
        })
    }
}

/// A description with each candidate line replaced or removed. Everything else stays as it was: the two browsers have
/// to agree on it, byte for byte.
pub(super) fn strip<'a>(sdp: Cow<'a, str>, mut judge: impl FnMut(&str) -> Option<String>) -> Cow<'a, str> {
    if !sdp.contains("candidate:") {
        return sdp;
    }
    let mut out = String::with_capacity(sdp.len());
    for line in sdp.split_inclusive('\n') {
        let text = line.trim();
        if !text.starts_with("a=candidate:") {
            out.push_str(line);
        } else if let Some(passed) = judge(text) {
            out.push_str("a=");
            out.push_str(&passed);
            out.push_str("\r\n");
        }
    }
    out.into()
}
