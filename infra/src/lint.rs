//! `shoal lint`: follows anybody's live HLS or LL-HLS for a while and says which rules it breaks.
//!
//! The rules are pure and live in `shoal_playlist::lint`; here is only what a client does: fetching, waiting, and
//! showing. Nothing is played and nothing is kept.

mod fetch;
mod follow;
mod media;
mod report;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use shoal_playlist::lint::{
    Outline, lint_answer, lint_bandwidth, lint_multivariant, lint_renditions, media_playlists,
    promises_independence,
};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::fetch::{Fetcher, Playlist};
use self::follow::Follower;
use self::report::Report;
use crate::{Error, signals, watch};

/// Playlists of one stream beyond this many are left out: a mistake of the stream's, or an attack on us.
const PLAYLISTS_MAX: usize = 32;

/// Flags of `shoal lint`.
#[derive(Clone, Debug, Args)]
pub struct Lint {
    /// A multivariant or media playlist's URL, or a watch page of Shoal.
    pub url: String,
    /// How long a live stream is followed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Judge playlists only and fetch no media.
    #[arg(long)]
    pub no_media: bool,
    /// A header to send with each request, such as `Authorization: Bearer abc`; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// Accept any TLS certificate: for self-signed ones on trial systems.
    #[arg(long)]
    pub insecure: bool,
}

/// Follows a stream and prints what is wrong with it. Exit codes: 0 nothing, 1 something, 2 it could not be judged.
pub async fn run(flags: Lint) -> ExitCode {
    match judge(&flags).await {
        Ok(report) => {
            // Nobody reading is no reason to hide the exit code.
            let _ = report.print(flags.json);
            ExitCode::from(u8::from(!report.is_clean()))
        }
        Err(error) => {
            eprintln!("shoal: {error}");
            ExitCode::from(2)
        }
    }
}

async fn judge(flags: &Lint) -> Result<Report, Error> {
    let fetcher = Fetcher::new(&flags.headers, flags.insecure)?;
    let url = playlist_url(&flags.url).map_err(|reason| fail(format!("{}: {reason}", flags.url)))?;
    let first = first_playlist(&fetcher, &url).await?;
    let report = Arc::new(Report::new(url.clone()));
    let stop = CancellationToken::new();
    let _ends_with_us = stop.clone().drop_guard();
    signals::cancel_when_terminated(&stop);
    let visit = Visit {
        fetcher: fetcher.clone(),
        report: report.clone(),
        with_media: !flags.no_media,
        promises_independence: false,
        deadline: Instant::now() + Duration::from_secs(flags.seconds),
        stop,
    };

    match media_playlists(&first.text) {
        None => {
            visit.follow(vec![(url.to_string(), url)]).await?;
        }
        Some(uris) => {
            report.add(&url, &first.text, lint_answer(&first.answer()));
            report.add(&url, &first.text, lint_multivariant(&first.text));
            report.count_revision(&url);
            let playlists = listed(&url, uris, &report)?;
            let promises_independence = promises_independence(&first.text);
            let peaks = Visit { promises_independence, ..visit }.follow(playlists).await?;
            judge_bandwidth(&fetcher, &url, first.text, &peaks, &report).await;
        }
    }
    Arc::into_inner(report).ok_or_else(|| fail("a follower is left over".to_owned()))
}

fn fail(reason: String) -> Error {
    Error::Service { service: "lint", reason }
}

/// Fetches what the user named, which has to be a playlist.
async fn first_playlist(fetcher: &Fetcher, url: &Url) -> Result<Playlist, Error> {
    let first = fetcher.playlist(url).await.map_err(|reason| fail(format!("{url}: {reason}")))?;
    if !(200..300).contains(&first.status) {
        return Err(fail(format!("{url}: status {}", first.status)));
    }
    if !first.text.starts_with("#EXTM3U") && !first.text.contains("#EXT-X-") {
        return Err(fail(format!("{url}: this is no playlist")));
    }
    Ok(first)
}

/// The media playlists of a multivariant playlist, each as it is written there and as a URL.
fn listed(multivariant: &Url, mut uris: Vec<String>, report: &Report) -> Result<Vec<(String, Url)>, Error> {
    report.leave_out(uris.len().saturating_sub(PLAYLISTS_MAX));
    uris.truncate(PLAYLISTS_MAX);
    let join = |uri: String| match multivariant.join(&uri) {
        Ok(url) => Ok((uri, url)),
        Err(error) => Err(fail(format!("{uri}: {error}"))),
    };
    uris.into_iter().map(join).collect()
}

/// How all playlists of a stream are followed.
struct Visit {
    fetcher: Fetcher,
    report: Arc<Report>,
    with_media: bool,
    promises_independence: bool,
    deadline: Instant,
    stop: CancellationToken,
}

impl Visit {
    /// Follows media playlists to the end of the visit, each by itself and all beside each other. Gives the most
    /// bits per second that were measured of each, by the URI that it was listed with.
    async fn follow(self, playlists: Vec<(String, Url)>) -> Result<BTreeMap<String, u64>, Error> {
        let urls: Vec<Url> = playlists.iter().map(|(_, url)| url.clone()).collect();
        let mut followers = JoinSet::new();
        for (uri, url) in playlists {
            let follower = self.follower(url);
            followers.spawn(async move { (uri, follower.run().await) });
        }
        let compared = tokio::spawn(self.compare(urls));
        let mut peaks = BTreeMap::new();
        while let Some(followed) = followers.join_next().await {
            let (uri, peak) = followed.map_err(|error| Error::service("lint", error))?;
            peaks.insert(uri, peak);
        }
        // All have ended; what is still being compared would be compared with nothing.
        compared.abort();
        let _ = compared.await;
        Ok(peaks)
    }

    fn follower(&self, url: Url) -> Follower {
        Follower {
            url,
            fetcher: self.fetcher.clone(),
            report: self.report.clone(),
            with_media: self.with_media,
            promises_independence: self.promises_independence,
            deadline: self.deadline,
            stop: self.stop.clone(),
        }
    }

    /// Judges playlists against each other, where there are several.
    async fn compare(self, urls: Vec<Url>) {
        if urls.len() > 1 {
            tokio::select! {
                () = compare(&self.fetcher, &self.report, &urls) => {}
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep_until(self.deadline) => {}
            }
        }
    }
}

/// Compares what was measured with what the multivariant playlist says. It is fetched once more: a live stream's BANDWIDTH
/// may grow with what was measured.
async fn judge_bandwidth(
    fetcher: &Fetcher,
    url: &Url,
    first: String,
    peaks: &BTreeMap<String, u64>,
    report: &Report,
) {
    if let Ok(last) = fetcher.playlist(url).await {
        let text = if (200..300).contains(&last.status) { last.text } else { first };
        report.add(url, &text, lint_bandwidth(&text, peaks));
    }
}

/// The playlist's URL behind what the user gave.
fn playlist_url(given: &str) -> Result<Url, String> {
    let whole = "give the whole URL, with http:// or https://";
    match Url::parse(&watch::playlist_url(given)) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        Err(error) if given.contains("://") => Err(error.to_string()),
        // `host:8080/x` is one with the scheme `host`.
        _ => Err(whole.to_owned()),
    }
}

/// Fetches all media playlists together, again and again, and judges them against each other.
async fn compare(fetcher: &Fetcher, report: &Report, urls: &[Url]) {
    loop {
        let fetched = futures::future::join_all(urls.iter().map(|url| fetcher.playlist(url))).await;
        let texts: Vec<String> = fetched
            .into_iter()
            .filter_map(Result::ok)
            .filter(|playlist| (200..300).contains(&playlist.status))
            .map(|playlist| playlist.text)
            .collect();
        // A playlist that is missing is the followers' finding.
        if texts.len() == urls.len() {
            let views: Vec<&str> = texts.iter().map(String::as_str).collect();
            let findings = lint_renditions(&views);
            report.add_between(findings);
        }
        let target_s = texts.first().map_or(0, |text| Outline::of(text).target_s);
        tokio::time::sleep(Duration::from_secs(target_s.clamp(1, 10))).await;
    }
}
