//! A line on standard error that is renewed in place on a terminal, and now and then printed anew elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// In a log file a line each second would be noise.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct ProgressLine {
    is_terminal: bool,
    printed: Option<Instant>,
    last: String,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), printed: None, last: String::new() }
    }

    /// Renews the line.
    pub(crate) fn show(&mut self, text: &str) {
        if self.is_terminal {
            // Erases the rest of a longer line before.
            let _ = write!(io::stderr(), "\r{text}\x1b[K");
            text.clone_into(&mut self.last);
            return;
        }
        let is_due = self.printed.is_none_or(|printed| printed.elapsed() >= PLAIN_INTERVAL);
        // A change of state is worth a line at once; its first word tells.
        let word = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        if is_due || word(text) != word(&self.last) {
            let _ = writeln!(io::stderr(), "{text}");
            self.printed = Some(Instant::now());
            text.clone_into(&mut self.last);
        }
    }

    /// Prints a line that stays.
    pub(crate) fn say(&mut self, text: &str) {
        let start = if self.is_terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stderr(), "{start}{text}");
    }

    /// Leaves the line as it is.
    pub(crate) fn end(self) {
        if self.is_terminal && !self.last.is_empty() {
            let _ = writeln!(io::stderr());
        }
    }
}
