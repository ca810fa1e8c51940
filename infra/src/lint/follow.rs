//! Follows one media playlist as a player would: blocking reload where it is offered, else polling.

use std::time::Duration;

use reqwest::Url;
use shoal_playlist::lint::{
    Asked, Finding, Outline, Snapshot, lint_answer, lint_delta, lint_directives, lint_media, lint_updates,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fetch::Fetcher;
use super::media::Judge;
use super::report::Report;

/// Between tries of a playlist that could not be had, and between requests in any case: a server that answers at
/// once whatever is asked must not be asked in a loop.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Follower {
    pub(super) url: Url,
    pub(super) fetcher: Fetcher,
    pub(super) report: std::sync::Arc<Report>,
    pub(super) with_media: bool,
    /// What the multivariant playlist says of all.
    pub(super) promises_independence: bool,
    pub(super) deadline: Instant,
    pub(super) stop: CancellationToken,
}

/// A text with the moment of its arrival.
struct Seen {
    at: Instant,
    text: String,
    outline: Outline,
}

impl Follower {
    /// Follows until the deadline, the stop or the end of the playlist. Gives the highest bit rate of its segments.
    pub(super) async fn run(self) -> u64 {
        let (sender, texts) = watch::channel(String::new());
        let media = self.with_media.then(|| {
            let (url, fetcher, report) = (self.url.clone(), self.fetcher.clone(), self.report.clone());
            let (deadline, stop) = (self.deadline, self.stop.clone());
            let judge = Judge::new(url, fetcher, report, self.promises_independence);
            tokio::spawn(judge.run(texts, deadline, stop))
        });
        tokio::select! {
            () = self.follow(&sender) => {}
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep_until(self.deadline) => {}
        }
        // Its end tells the judge of the media that no text will come any more.
        drop(sender);
        match media {
            Some(media) => media.await.unwrap_or(0),
            None => 0,
        }
    }

    async fn follow(&self, texts: &watch::Sender<String>) {
        // The newest text, and the one with which the playlist last grew.
        let mut last: Option<Seen> = None;
        let mut grown: Option<(Instant, String)> = None;
        let mut has_probed = false;
        loop {
            let (url, asked) = self.next_request(last.as_ref());
            let began = Instant::now();
            let playlist = match self.fetcher.playlist(&url).await {
                // The server held the request for as long as it may: nothing was published.
                Ok(playlist) if playlist.status == 503 => {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    last = None;
                    continue;
                }
                Ok(playlist) => playlist,
                Err(reason) => {
                    self.report.add_unanswered(&self.url, &reason);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                }
            };
            self.add(&playlist.text, lint_answer(&playlist.answer()));
            if !(200..300).contains(&playlist.status) {
                tokio::time::sleep(RETRY_INTERVAL).await;
                last = None;
                continue;
            }
            if let Some(asked) = asked {
                self.add(&playlist.text, lint_directives(asked, &playlist.answer()));
            }
            let now = Seen { at: Instant::now(), outline: Outline::of(&playlist.text), text: playlist.text };
            self.report.count_revision(&self.url);
            self.add(&now.text, lint_media(&now.text));
            self.over_time(last.as_ref(), &mut grown, &now);
            texts.send_replace(now.text.clone());
            if now.outline.is_ended {
                return;
            }
            if !std::mem::replace(&mut has_probed, true) {
                self.probe(&now.outline).await;
            }
            let target = Duration::from_secs(now.outline.target_s.clamp(1, 60));
            if !now.outline.can_block {
                // Section 6.3.4: a target duration after a change, half of it otherwise.
                let has_changed = last.as_ref().is_none_or(|last| last.text != now.text);
                tokio::time::sleep_until(began + if has_changed { target } else { target / 2 }).await;
            }
            tokio::time::sleep(PAUSE_MIN).await;
            last = Some(now);
        }
    }

    /// The next request's URL: without directives at first.
    fn next_request(&self, last: Option<&Seen>) -> (Url, Option<Asked>) {
        match last {
            Some(Seen { outline, .. }) if outline.can_block => {
                let part = outline.has_parts.then_some(outline.next_part);
                (
                    self.with_directives(outline.next_msn, part, false),
                    Some(Asked::Next(outline.next_msn, part)),
                )
            }
            _ => (self.url.clone(), None),
        }
    }

    fn with_directives(&self, msn: u64, part: Option<u64>, with_skip: bool) -> Url {
        let mut url = self.url.clone();
        let mut query = url.query_pairs_mut();
        query.append_pair("_HLS_msn", &msn.to_string());
        if let Some(part) = part {
            query.append_pair("_HLS_part", &part.to_string());
        }
        if with_skip {
            query.append_pair("_HLS_skip", "YES");
        }
        drop(query);
        url
    }

    /// What shows only over time. A text is compared with the one before; how long nothing came, with the one that
    /// last brought something.
    fn over_time(&self, last: Option<&Seen>, grown: &mut Option<(Instant, String)>, now: &Seen) {
        let compare = |at: Instant, text: &str| {
            let ms = i64::try_from((now.at - at).as_millis()).unwrap_or(i64::MAX);
            lint_updates(&[Snapshot { at_ms: 0, text }, Snapshot { at_ms: ms, text: &now.text }])
        };
        let is_stale = |finding: &Finding| finding.rule.id == "not-updated";
        let mut findings = last.map_or_else(Vec::new, |last| compare(last.at, &last.text));
        findings.retain(|finding| !is_stale(finding));
        let place = |outline: &Outline| (outline.next_msn, outline.next_part);
        let has_grown = last.is_none_or(|last| place(&now.outline) > place(&last.outline));
        if let Some((at, text)) = grown.as_ref().filter(|_| !has_grown) {
            let stale: Vec<_> = compare(*at, text).into_iter().filter(is_stale).collect();
            // Said once for each time that it is too long.
            if !stale.is_empty() {
                *grown = Some((now.at, now.text.clone()));
            }
            findings.extend(stale);
        }
        if has_grown {
            *grown = Some((now.at, now.text.clone()));
        }
        self.add(&now.text, findings);
    }

    /// Asks once what no player would, and for a delta.
    async fn probe(&self, outline: &Outline) {
        if outline.can_block {
            let far = outline.next_msn.saturating_add(100);
            let mut alone = self.url.clone();
            alone.query_pairs_mut().append_pair("_HLS_part", "0");
            for (url, asked) in
                [(alone, Asked::PartAlone), (self.with_directives(far, None, false), Asked::FarAhead(far))]
            {
                if let Ok(playlist) = self.fetcher.playlist(&url).await {
                    self.add(&playlist.text, lint_directives(asked, &playlist.answer()));
                }
            }
        }
        if outline.can_skip {
            let mut skip = self.url.clone();
            skip.query_pairs_mut().append_pair("_HLS_skip", "YES");
            let (full, delta) = tokio::join!(self.fetcher.playlist(&self.url), self.fetcher.playlist(&skip));
            if let (Ok(full), Ok(delta)) = (full, delta)
                && [&full, &delta].iter().all(|playlist| playlist.status == 200)
            {
                self.add(&delta.text, lint_answer(&delta.answer()));
                self.add(&delta.text, lint_media(&delta.text));
                self.add(&delta.text, lint_delta(&full.text, &delta.text));
            }
        }
    }

    fn add(&self, text: &str, findings: Vec<Finding>) {
        self.report.add(&self.url, text, findings);
    }
}
