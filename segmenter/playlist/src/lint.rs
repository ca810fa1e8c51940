//! Finds what is wrong with anybody's playlists: rules of draft-pantos-hls-rfc8216bis, and of Apple's authoring
//! specification (sections with an `A`).
//!
//! Pure: texts and times in, findings out; `shoal lint` fetches and prints. Each rule stands in [`RULES`], with a seeded
//! violation in the tests and a line in `../README.md`. A text is judged as it stands, so that a broken one is still
//! judged further, and each finding names its line.

mod delivery;
mod fragments;
mod lines;
mod media;
mod mp4;
mod multivariant;
mod outline;
mod renditions;
mod rules;
mod updates;

pub use delivery::{Answer, Asked, lint_answer, lint_delta, lint_directives};
pub use fragments::{Fetched, lint_bandwidth, lint_fragments, peak_bps};
pub use media::lint_media;
pub use mp4::{Fragment, Init};
pub use multivariant::lint_multivariant;
pub use outline::{Listed, Outline, media_playlists, promises_independence};
pub use renditions::lint_renditions;
pub use rules::{RULES, Rule};
pub use updates::{Snapshot, lint_updates};

/// A rule that is broken somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// Where, counted from 1; 0 where it is something that is missing.
    pub line: usize,
    /// What was found.
    pub detail: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rule { id, section, text } = self.rule;
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        write!(f, "{} [{id}, section {section}: {text}]", self.detail)
    }
}

/// Gathers findings.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, rule: &'static Rule, line: usize, detail: impl Into<String>) {
        self.0.push(Finding { rule, line, detail: detail.into() });
    }
}

#[cfg(test)]
mod served_tests;
#[cfg(test)]
mod tests;
