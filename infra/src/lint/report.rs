//! What was found, gathered by rule and playlist, as text for people or JSON for machines.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::Instant;

use parking_lot::Mutex;
use reqwest::Url;
use serde::Serialize;
use shoal_playlist::lint::{Finding, Rule};

/// So many places are shown for each rule and playlist; the rest is counted.
const PLACES_MAX: usize = 3;
/// A line of a playlist is cut off for display here; tokens in URIs may be long.
const LINE_CHARS_MAX: usize = 240;

/// Findings so far.
#[derive(Debug)]
pub(super) struct Report {
    url: Url,
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By playlist, then by rule.
    broken: BTreeMap<String, BTreeMap<&'static str, Broken>>,
    /// What is said once however often it is seen: `(playlist, rule, detail)`.
    said: BTreeSet<(String, &'static str, String)>,
    revisions: BTreeMap<String, u64>,
    files: u64,
    file_bytes: u64,
    /// Playlists that were not looked at.
    left_out: usize,
}

/// A rule that a playlist breaks.
#[derive(Debug, Serialize)]
struct Broken {
    rule: &'static str,
    section: &'static str,
    demands: &'static str,
    times: u64,
    places: Vec<Place>,
}

/// Where it was seen.
#[derive(Debug, Serialize)]
struct Place {
    found: String,
    /// The line's number; absent where something is missing or it is not about a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// The line itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// The JSON object.
#[derive(Serialize)]
struct Document<'a> {
    url: &'a str,
    is_clean: bool,
    seconds: f64,
    revisions: &'a BTreeMap<String, u64>,
    /// Playlists of the stream that were not looked at, because it has too many.
    playlists_left_out: usize,
    media_files: u64,
    media_bytes: u64,
    broken: &'a BTreeMap<String, BTreeMap<&'static str, Broken>>,
}

impl Report {
    pub(super) fn new(url: Url) -> Self {
        Self { url, began: Instant::now(), inner: Mutex::default() }
    }

    /// Adds what was found in a playlist's text.
    pub(super) fn add(&self, playlist: &Url, text: &str, findings: Vec<Finding>) {
        let mut inner = self.inner.lock();
        for finding in findings {
            inner.add(playlist.as_str(), text, finding);
        }
    }

    /// The same for findings that each new text brings again, as those about media do.
    pub(super) fn add_once(&self, playlist: &Url, text: &str, findings: Vec<Finding>) {
        let mut inner = self.inner.lock();
        for finding in findings {
            if inner.said.insert((playlist.to_string(), finding.rule.id, finding.detail.clone())) {
                inner.add(playlist.as_str(), text, finding);
            }
        }
    }

    /// Adds what was found between playlists: it belongs to the stream.
    pub(super) fn add_between(&self, findings: Vec<Finding>) {
        let mut inner = self.inner.lock();
        for finding in findings {
            // Lines are those of one of several texts, which would have to be named.
            inner.add(self.url.as_str(), "", finding);
        }
    }

    /// A playlist that gave no answer at all.
    pub(super) fn add_unanswered(&self, playlist: &Url, reason: &str) {
        let rules = shoal_playlist::lint::RULES;
        let rule = rules.iter().find(|rule| rule.id == "unavailable").expect("it is in the table");
        let finding = Finding { rule, line: 0, detail: format!("the playlist: {reason}") };
        self.inner.lock().add(playlist.as_str(), "", finding);
    }

    pub(super) fn count_revision(&self, playlist: &Url) {
        *self.inner.lock().revisions.entry(playlist.to_string()).or_default() += 1;
    }

    /// Says that so many playlists are not looked at.
    pub(super) fn leave_out(&self, playlists: usize) {
        self.inner.lock().left_out = playlists;
    }

    pub(super) fn count_file(&self, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.files += 1;
        inner.file_bytes += bytes as u64;
    }

    pub(super) fn is_clean(&self) -> bool {
        self.inner.lock().broken.is_empty()
    }

    pub(super) fn print(&self, as_json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if as_json { self.write_json(&mut out) } else { self.write_text(&mut out) }
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let inner = self.inner.lock();
        let document = Document {
            url: self.url.as_str(),
            is_clean: inner.broken.is_empty(),
            seconds: (self.began.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            revisions: &inner.revisions,
            playlists_left_out: inner.left_out,
            media_files: inner.files,
            media_bytes: inner.file_bytes,
            broken: &inner.broken,
        };
        serde_json::to_writer(&mut *out, &document)?;
        writeln!(out)
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let inner = self.inner.lock();
        for (playlist, rules) in &inner.broken {
            writeln!(out, "{playlist}")?;
            for Broken { rule, section, demands, times, places } in rules.values() {
                writeln!(out, "  {rule} (section {section}): {demands}")?;
                for Place { found, line, text } in places {
                    match line {
                        Some(line) => writeln!(out, "    line {line}: {found}")?,
                        None => writeln!(out, "    {found}")?,
                    }
                    if let Some(text) = text {
                        writeln!(out, "      | {text}")?;
                    }
                }
                let more = times - places.len() as u64;
                if more > 0 {
                    writeln!(out, "    and {more} more")?;
                }
            }
        }
        if inner.left_out > 0 {
            writeln!(out, "{} more playlists of the stream were not looked at", inner.left_out)?;
        }
        let broken: usize = inner.broken.values().map(BTreeMap::len).sum();
        let verdict = match broken {
            0 => "no rule is broken".to_owned(),
            1 => "1 rule is broken".to_owned(),
            _ => format!("{broken} rules are broken"),
        };
        writeln!(
            out,
            "{verdict}: {} playlists, {} revisions, {} media files ({:.1} MB) in {:.0} s",
            inner.revisions.len(),
            inner.revisions.values().sum::<u64>(),
            inner.files,
            inner.file_bytes as f64 / 1e6,
            self.began.elapsed().as_secs_f64()
        )
    }
}

impl Inner {
    fn add(&mut self, playlist: &str, text: &str, finding: Finding) {
        let Finding { rule, line, detail } = finding;
        let Rule { id, section, text: demands } = rule;
        let broken = self
            .broken
            .entry(playlist.to_owned())
            .or_default()
            .entry(id)
            .or_insert_with(|| Broken { rule: id, section, demands, times: 0, places: Vec::new() });
        broken.times += 1;
        // The same in each revision is one place.
        if broken.places.len() < PLACES_MAX && broken.places.iter().all(|place| place.found != detail) {
            let shown = text.lines().nth(line.wrapping_sub(1)).filter(|_| line > 0);
            let shown = shown.map(|shown| shown.chars().take(LINE_CHARS_MAX).collect());
            broken.places.push(Place { found: detail, line: (line > 0).then_some(line), text: shown });
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_playlist::lint::lint_media;

    use super::*;

    #[test]
    fn report_names_rule_section_line_and_its_text() {
        let url = Url::parse("http://h/a.m3u8").unwrap();
        let report = Report::new(url.clone());
        assert!(report.is_clean());
        let text = "#EXTM3U\n#EXT-X-TARGETDURATION:x\n";
        for _ in 0..5 {
            report.add(&url, text, lint_media(text));
        }
        assert!(!report.is_clean());
        let mut out = Vec::new();
        report.write_text(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        for needed in [
            "http://h/a.m3u8\n",
            "syntax (section 4.2)",
            "line 2: ",
            "| #EXT-X-TARGETDURATION:x",
            "and 4 more",
        ] {
            assert!(out.contains(needed), "{needed} is not in {out}");
        }
        let mut out = Vec::new();
        report.write_json(&mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["is_clean"], false);
        assert_eq!(json["broken"]["http://h/a.m3u8"]["syntax"]["times"], 5);
        assert_eq!(json["broken"]["http://h/a.m3u8"]["syntax"]["places"][0]["line"], 2);
    }

    #[test]
    fn what_was_not_looked_at_is_said() {
        let written = |left_out| {
            let report = Report::new(Url::parse("http://h/a.m3u8").unwrap());
            report.leave_out(left_out);
            let (mut text, mut json) = (Vec::new(), Vec::new());
            report.write_text(&mut text).unwrap();
            report.write_json(&mut json).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            (String::from_utf8(text).unwrap(), json)
        };
        let (text, json) = written(3);
        assert!(text.contains("3 more playlists of the stream were not looked at\n"), "{text}");
        assert_eq!(json["playlists_left_out"], 3);
        assert!(!written(0).0.contains("not looked at"));
    }

    #[test]
    fn what_each_text_repeats_is_counted_once() {
        let url = Url::parse("http://h/a.m3u8").unwrap();
        let report = Report::new(url.clone());
        for _ in 0..5 {
            report.add_once(&url, "x\n", lint_media("x\n"));
        }
        let inner = report.inner.lock();
        assert_eq!(inner.broken[url.as_str()]["header"].times, 1);
    }
}
