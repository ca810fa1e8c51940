//! Fetches what one media playlist lists and lets the rules judge it.

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::Url;
use shoal_playlist::lint::{Fetched, Fragment, Init, Outline, lint_fragments, peak_bps};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fetch::Fetcher;
use super::report::Report;

/// Of the first text only so many of the newest segments are fetched; of the later ones everything that is new.
const FIRST_SEGMENTS: usize = 3;

/// What is known of a file; its bytes are not kept.
enum Known {
    Missing(u16),
    Init(Option<Arc<Init>>),
    Fragment(Option<Fragment>, u64),
    /// Before our time.
    Old,
}

/// See the module.
pub(super) struct Judge {
    url: Url,
    fetcher: Fetcher,
    report: Arc<Report>,
    promises_independence: bool,
    files: BTreeMap<String, Known>,
    peak_bps: u64,
}

impl Judge {
    pub(super) fn new(url: Url, fetcher: Fetcher, report: Arc<Report>, promises_independence: bool) -> Self {
        Self { url, fetcher, report, promises_independence, files: BTreeMap::new(), peak_bps: 0 }
    }

    /// Judges media until no more texts come or the deadline has passed. Gives the highest bit rate of a segment.
    pub(super) async fn run(
        mut self,
        mut texts: watch::Receiver<String>,
        deadline: Instant,
        stop: CancellationToken,
    ) -> u64 {
        // What came while files were fetched is skipped: the newest text lists all that matters.
        while texts.changed().await.is_ok() {
            let text = texts.borrow_and_update().clone();
            tokio::select! {
                () = self.text(&text) => {}
                () = stop.cancelled() => break,
                // A deadline in the middle of a file is no finding.
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        self.peak_bps
    }

    async fn text(&mut self, text: &str) {
        let outline = Outline::of(text);
        if self.files.is_empty() {
            let complete = outline.segments.len().saturating_sub(1);
            for segment in outline.segments.iter().take(complete.saturating_sub(FIRST_SEGMENTS)) {
                for uri in segment.parts.iter().chain([&segment.uri]) {
                    self.files.insert(uri.clone(), Known::Old);
                }
            }
        }
        let mut has_new = false;
        for segment in outline.segments.iter().filter(|segment| !segment.map.is_empty()) {
            let is_known = |uri: &String| self.files.contains_key(uri);
            if segment.parts.iter().chain([&segment.uri]).filter(|uri| !uri.is_empty()).all(is_known) {
                continue;
            }
            has_new = true;
            let init = self.init(&segment.map).await;
            for uri in segment.parts.iter().chain([&segment.uri]).filter(|uri| !uri.is_empty()) {
                if !self.files.contains_key(uri) {
                    let known = self.fragment(uri, init.as_deref()).await;
                    self.files.insert(uri.clone(), known);
                }
            }
        }
        if has_new {
            let fetched = self.fetched();
            let findings = lint_fragments(text, &fetched, self.promises_independence);
            self.peak_bps = self.peak_bps.max(peak_bps(text, &fetched));
            self.report.add_once(&self.url, text, findings);
        }
        // What is no longer listed is not asked about again.
        let listed = |uri: &String| {
            let of = |segment: &shoal_playlist::lint::Listed| {
                segment.uri == *uri || segment.map == *uri || segment.parts.contains(uri)
            };
            outline.segments.iter().any(of)
        };
        self.files.retain(|uri, _| listed(uri));
    }

    async fn init(&mut self, uri: &str) -> Option<Arc<Init>> {
        if !self.files.contains_key(uri) {
            let known = match self.get(uri).await {
                Ok(bytes) => Known::Init(Init::read(&bytes).map(Arc::new)),
                Err(status) => Known::Missing(status),
            };
            self.files.insert(uri.to_owned(), known);
        }
        match self.files.get(uri) {
            Some(Known::Init(init)) => init.clone(),
            _ => None,
        }
    }

    async fn fragment(&self, uri: &str, init: Option<&Init>) -> Known {
        match (self.get(uri).await, init) {
            (Ok(bytes), Some(init)) => Known::Fragment(Fragment::read(&bytes, init), bytes.len() as u64),
            // Without its initialization section it cannot be understood; that is the finding.
            (Ok(_), None) => Known::Old,
            (Err(status), _) => Known::Missing(status),
        }
    }

    async fn get(&self, uri: &str) -> Result<bytes::Bytes, u16> {
        let url = self.url.join(uri).map_err(|_| 0_u16)?;
        let bytes = self.fetcher.media(url).await?;
        self.report.count_file(bytes.len());
        Ok(bytes)
    }

    fn fetched(&self) -> BTreeMap<String, Fetched<'_>> {
        let fetched = self.files.iter().filter_map(|(uri, known)| {
            let fetched = match known {
                Known::Missing(status) => Fetched::Missing(*status),
                Known::Init(init) => Fetched::Init(init.as_deref()),
                Known::Fragment(fragment, bytes) => Fetched::Fragment(*fragment, *bytes),
                Known::Old => return None,
            };
            Some((uri.clone(), fetched))
        });
        fetched.collect()
    }
}
