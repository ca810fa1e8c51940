//! On whom not to plan for a while: parents of whom several children say that nothing comes from them.
//!
//! What a viewer says of its uplink is believed, because nobody else can measure it. One that says much and pushes nothing would
//! be given child after child, each of which loses some seconds with it.

use shoal_tracker_protocol::PeerId;

use super::Ms;

/// A complaint counts for so long.
const COMPLAINT_COUNTS_MS: Ms = 20_000;
/// One child may be wrong, or lie, and so may two.
const COMPLAINERS_MIN: usize = 3;
/// And for each one that is content there must be so many that complain. With one for one, viewers with too much to send were
/// put out, too, where uplinks are scarce; and who wants to put a good parent out has to be three quarters of its children.
const COMPLAINERS_PER_CONTENT: usize = 3;
/// A parent is left out for so long, and for twice as long each further time.
const DISTRUST_MS: Ms = 60_000;
const DISTRUST_MAX_MS: Ms = 16 * DISTRUST_MS;

/// What children have said of a viewer.
#[derive(Debug, Default)]
pub(super) struct Trust {
    complaints: Vec<(PeerId, Ms)>,
    times: u32,
    until: Ms,
}

impl Trust {
    /// Whether nothing is planned on the viewer now.
    pub(super) fn is_lost(&self, now: Ms) -> bool {
        now < self.until
    }

    /// Whether nothing was planned on the viewer before.
    pub(super) fn was_lost(&self) -> bool {
        self.times > 0
    }

    /// A child complains; so many are content. Gives until when nothing is planned on the viewer, if that begins now.
    pub(super) fn complain(&mut self, now: Ms, child: PeerId, content: usize) -> Option<Ms> {
        self.complaints.retain(|(other, at)| *other != child && at + COMPLAINT_COUNTS_MS > now);
        self.complaints.push((child, now));
        if self.complaints.len() < COMPLAINERS_MIN.max(COMPLAINERS_PER_CONTENT * content) || self.is_lost(now)
        {
            return None;
        }
        self.complaints.clear();
        self.until = now + (DISTRUST_MS << self.times).min(DISTRUST_MAX_MS);
        self.times = (self.times + 1).min(8);
        Some(self.until)
    }

    /// Whether a child is among those that complained lately.
    pub(super) fn has_complained(&self, child: PeerId) -> bool {
        self.complaints.iter().any(|(other, _)| *other == child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_children_are_believed_each_time_for_longer() {
        let mut trust = Trust::default();
        let mut now = 0;
        for minutes in [1, 2, 4, 8, 16, 16] {
            assert_eq!([1, 1, 2].map(|child| trust.complain(now, child, 0)), [None; 3], "one of them twice");
            assert_eq!(trust.complain(now, 3, 0), Some(now + minutes * 60_000));
            assert!(trust.is_lost(now + minutes * 60_000 - 1));
            now += minutes * 60_000;
            assert!(!trust.is_lost(now));
        }
    }

    #[test]
    fn a_minority_and_what_was_said_long_ago_do_not_count() {
        let mut trust = Trust::default();
        assert!((1..=5).all(|child| trust.complain(0, child, 6).is_none()));
        assert!((6..=7).all(|child| trust.complain(COMPLAINT_COUNTS_MS, child, 0).is_none()));
        assert!(trust.complain(COMPLAINT_COUNTS_MS, 8, 0).is_some());
    }
}
