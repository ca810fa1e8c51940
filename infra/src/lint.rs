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

use self::fetch::Fetcher;
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
    let fail = |reason: String| Error::Service { service: "lint", reason };
    let url = playlist_url(&flags.url).map_err(|reason| fail(format!("{}: {reason}", flags.url)))?;
    let first = fetcher.playlist(&url).await.map_err(|reason| fail(format!("{url}: {reason}")))?;
    if !(200..300).contains(&first.status) {
        return Err(fail(format!("{url}: status {}", first.status)));
    }
    if !first.text.starts_with("#EXTM3U") && !first.text.contains("#EXT-X-") {
        return Err(fail(format!("{url}: this is no playlist")));
    }
    let report = Arc::new(Report::new(url.clone()));
    let deadline = Instant::now() + Duration::from_secs(flags.seconds);
    let stop = CancellationToken::new();
    let _ends_with_us = stop.clone().drop_guard();
    tokio::spawn({
        let (stop, signal) = (stop.clone(), signals::terminated());
        async move {
            signal.await;
            stop.cancel();
        }
    });

    let listed = media_playlists(&first.text);
    let is_multivariant = listed.is_some();
    if is_multivariant {
        report.add(&url, &first.text, lint_answer(&first.answer()));
        report.add(&url, &first.text, lint_multivariant(&first.text));
        report.count_revision(&url);
    }
    let mut uris = listed.unwrap_or_else(|| vec![url.to_string()]);
    report.leave_out(uris.len().saturating_sub(PLAYLISTS_MAX));
    uris.truncate(PLAYLISTS_MAX);
    let mut playlists = Vec::new();
    for uri in &uris {
        match url.join(uri) {
            Ok(joined) => playlists.push((uri.clone(), joined)),
            Err(error) => return Err(fail(format!("{uri}: {error}"))),
        }
    }

    let mut followers = JoinSet::new();
    for (uri, playlist) in playlists.clone() {
        let follower = Follower {
            url: playlist,
            fetcher: fetcher.clone(),
            report: report.clone(),
            with_media: !flags.no_media,
            promises_independence: is_multivariant && promises_independence(&first.text),
            deadline,
            stop: stop.clone(),
        };
        followers.spawn(async move { (uri, follower.run().await) });
    }
    let comparing = playlists.len() > 1;
    let compared = tokio::spawn({
        let (fetcher, report, stop) = (fetcher.clone(), report.clone(), stop.clone());
        let urls: Vec<Url> = playlists.into_iter().map(|(_, playlist)| playlist).collect();
        async move {
            if comparing {
                tokio::select! {
                    () = compare(&fetcher, &report, &urls) => {}
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                }
            }
        }
    });
    let mut peaks = BTreeMap::new();
    while let Some(followed) = followers.join_next().await {
        let (uri, peak) = followed.map_err(|error| Error::service("lint", error))?;
        peaks.insert(uri, peak);
    }
    // All have ended; what is still being compared would be compared with nothing.
    compared.abort();
    let _ = compared.await;
    // Once more: a live stream's BANDWIDTH may grow with what was measured.
    if is_multivariant && let Ok(last) = fetcher.playlist(&url).await {
        let text = if (200..300).contains(&last.status) { last.text } else { first.text };
        report.add(&url, &text, lint_bandwidth(&text, &peaks));
    }
    Arc::into_inner(report).ok_or_else(|| fail("a follower is left over".to_owned()))
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
