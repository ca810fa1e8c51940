//! `shoal watch`: native viewers, for load, for measuring, and as helpers that only give.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use clap::Args;
use serde::Serialize;
use shoal_player::{Identity, Mode, Options, Records, Snapshot, Token};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::line::ProgressLine;
use crate::settings::Log;
use crate::{Error, keys, signals, telemetry};

/// Without `--join-over`, viewers start within this time of each other.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// The piece store of one viewer, in MiB: 45 s of 12 Mbit/s.
const STORE_MB: u32 = 64;
/// What the stores of many viewers for load share, in MiB.
const STORES_MB: u32 = 512;
/// What each of them has at least, in MiB: 10 s of 3 Mbit/s, three times what one of them buffers.
const STORE_MB_MIN: u32 = 4;

/// Flags of `shoal watch`.
#[derive(Clone, Debug, Args)]
pub struct Watch {
    /// The watch page's or the multivariant playlist's URL. With https, the certificate has to be one that this machine
    /// trusts or that is in the file which the variable SSL_CERT_FILE names, unless --insecure is given.
    #[arg(required_unless_present = "fingerprint")]
    pub url: Option<String>,
    /// How many viewers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
    /// Send at most this much media, in kbit/s; without, what the line carries is measured and half of it used.
    #[arg(long)]
    pub uplink_kbps: Option<u32>,
    /// Keep at most so many MiB of media for others, each viewer. Without: 64 for one viewer, and for each helper; several viewers
    /// share 512, but have 4 each.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub store_mb: Option<u32>,
    /// Take from others without giving.
    #[arg(long)]
    pub no_share: bool,
    /// Use no peers at all: a plain LL-HLS client.
    #[arg(long)]
    pub no_peers: bool,
    /// Play nothing, give all renditions: a helper near the viewers.
    #[arg(long, conflicts_with_all = ["no_share", "no_peers"])]
    pub seed: bool,
    /// Let the viewers join evenly over so many seconds, so that their start-up is measured and not the machine's load; without,
    /// 20 join in a second.
    #[arg(long)]
    pub join_over: Option<u32>,
    /// Stop after this time.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// A viewer token, where the stream wants one.
    #[arg(long, env = "SHOAL_VIEWER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with the viewer token, read for each connection to the tracker: for a viewer that is left running, renew it there
    /// before it ends.
    #[arg(long, env = "SHOAL_VIEWER_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// A file with the certificate that the viewers show their neighbors, made if it does not exist: a token may be bound to
    /// it. Without, each connection has another one.
    #[arg(long, env = "SHOAL_VIEWER_IDENTITY")]
    pub identity: Option<PathBuf>,
    /// Print the identity's fingerprint, which a token is bound to, and end.
    #[arg(long, requires = "identity")]
    pub fingerprint: bool,
    /// Accept any TLS certificate, of the stream's origin and of the tracker: for self-signed ones on trial systems.
    #[arg(long)]
    pub insecure: bool,
    /// What is logged to standard error: a level, or a filter such as warn,shoal_player=debug.
    #[arg(long, default_value = "warn", env = "SHOAL_LOG_LEVEL")]
    pub log_level: String,
}

/// What all viewers together went through; the last line that is printed, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Sum {
    viewers: usize,
    playing: usize,
    peer_bytes: u64,
    origin_bytes: u64,
    sent_bytes: u64,
    waste_bytes: u64,
    rejected_bytes: u64,
    /// Now.
    store_bytes: u64,
    origin_requests: u64,
    pieces_lost: u64,
    /// Now, where all the others are since the start.
    neighbors: u32,
    /// Those that were left because they took no messages.
    neighbors_stuck: u64,
    rebuffer_ms: u64,
    startup_p50_ms: Option<u64>,
    startup_p95_ms: Option<u64>,
    latency_p50_ms: Option<u64>,
    latency_p95_ms: Option<u64>,
}

/// Watches until the stream ends, the time is over or a signal comes; shows a progress line, and ends with a line of
/// JSON on standard output.
///
/// # Errors
/// [`Error::Service`] if a viewer cannot start.
pub async fn run(flags: Watch) -> Result<(), Error> {
    let identity = flags.identity.as_deref().map(load_identity).transpose()?;
    if let Some(identity) = identity.as_ref().filter(|_| flags.fingerprint) {
        let fingerprint = identity.fingerprint().map_err(|error| Error::service("watch", error))?;
        println!("{fingerprint}");
        return Ok(());
    }
    telemetry::start_logs(&Log { level: flags.log_level.clone(), ..Log::default() })?;
    let stop = CancellationToken::new();
    signals::cancel_when_terminated(&stop);
    if let Some(seconds) = flags.seconds {
        cancel_after(Duration::from_secs(seconds), &stop);
    }
    let (mut viewers, snapshots) = start_viewers(&flags, identity.as_ref(), &stop);
    let latest = show(snapshots, flags.count).await;
    while let Some(ended) = viewers.join_next().await {
        match ended {
            Ok(result) => result.map_err(|error| Error::service("watch", error))?,
            Err(error) => return Err(Error::service("watch", error)),
        }
    }
    let sum = add_up(&latest);
    println!("{}", serde_json::to_string(&sum).expect("numbers can be written as JSON"));
    Ok(())
}

fn cancel_after(time: Duration, stop: &CancellationToken) {
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        stop.cancel();
    });
}

/// What a viewer tells of itself about every second, with its number.
type Snapshots = mpsc::UnboundedReceiver<(usize, Snapshot)>;

/// Lets the viewers join one after the other.
fn start_viewers(
    flags: &Watch,
    identity: Option<&Identity>,
    stop: &CancellationToken,
) -> (JoinSet<Result<(), shoal_player::Error>>, Snapshots) {
    let (sender, snapshots) = mpsc::unbounded_channel();
    let records = Records::default();
    let mut viewers = JoinSet::new();
    let interval =
        flags.join_over.map_or(START_INTERVAL, |over| Duration::from_secs(over.into()) / flags.count.max(1));
    for index in 0..flags.count {
        let options = Options { records: records.clone(), ..options(flags, identity) };
        let (sender, stop) = (sender.clone(), stop.clone());
        viewers.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(interval * index) => {}
            }
            shoal_player::run(options, stop, |snapshot| {
                // Nobody reads any more when the program ends.
                let _ = sender.send((index as usize, *snapshot));
            })
            .await
            .map(|_| ())
        });
    }
    (viewers, snapshots)
}

/// How one viewer behaves.
fn options(flags: &Watch, identity: Option<&Identity>) -> Options {
    let mut options = Options::new(playlist_url(flags.url.as_deref().unwrap_or_default()));
    options.mode = if flags.seed { Mode::Seed } else { Mode::Watch };
    options.peers = !flags.no_peers;
    options.shares = !flags.no_share;
    options.uplink_kbps = flags.uplink_kbps;
    options.store_bytes_max = u64::from(store_mb(flags)) * 1024 * 1024;
    let from_file = flags.token_file.clone().map(Token::File);
    options.token = from_file.or_else(|| flags.token.clone().map(Token::Fixed));
    options.identity = identity.cloned();
    options.insecure = flags.insecure;
    options.seed = rand::random();
    options
}

/// What one viewer keeps for others, in MiB. A thousand with the store of one would want 64 GiB.
fn store_mb(flags: &Watch) -> u32 {
    let of_one =
        if flags.seed { STORE_MB } else { (STORES_MB / flags.count.max(1)).clamp(STORE_MB_MIN, STORE_MB) };
    flags.store_mb.unwrap_or(of_one)
}

/// Shows how the viewers do until the last of them has ended. Gives what each said last.
async fn show(mut snapshots: Snapshots, count: u32) -> Vec<Option<Snapshot>> {
    let mut line = ProgressLine::new();
    let mut latest = vec![None; count as usize];
    while let Some((index, snapshot)) = snapshots.recv().await {
        latest[index] = Some(snapshot);
        line.show(&in_words(&add_up(&latest)));
    }
    line.end();
    latest
}

/// Reads the identity, makes and stores a new one where the file does not exist.
fn load_identity(file: &Path) -> Result<Identity, Error> {
    let fail = |reason: String| Error::Identity { path: file.display().to_string(), reason };
    match fs::read_to_string(file) {
        Ok(text) => Identity::from_pem(&text).map_err(|error| fail(error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let identity = Identity::generate().map_err(|error| fail(error.to_string()))?;
            keys::store(file, identity.to_pem()).map_err(|error| fail(error.to_string()))?;
            Ok(identity)
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// The multivariant playlist behind a watch page.
pub(crate) fn playlist_url(url: &str) -> String {
    match url.split_once("/watch/") {
        Some((base, stream)) => {
            let stream = stream.split(['?', '#', '/']).next().unwrap_or_default();
            format!("{base}/live/{stream}/index.m3u8")
        }
        None => url.to_owned(),
    }
}

fn add_up(latest: &[Option<Snapshot>]) -> Sum {
    let mut sum = Sum { viewers: latest.len(), ..Sum::default() };
    let (mut startups, mut latencies) = (Vec::new(), Vec::new());
    for snapshot in latest.iter().flatten() {
        let (swarm, experience) = (&snapshot.swarm, &snapshot.experience);
        sum.peer_bytes += swarm.peer_bytes;
        sum.origin_bytes += swarm.origin_bytes + snapshot.direct_bytes;
        sum.sent_bytes += swarm.sent_bytes;
        sum.waste_bytes += swarm.duplicate_bytes + swarm.late_bytes;
        sum.rejected_bytes += swarm.rejected_bytes;
        sum.store_bytes += swarm.store_bytes;
        sum.origin_requests += snapshot.origin_requests;
        sum.pieces_lost += snapshot.pieces_lost;
        sum.neighbors += swarm.neighbors;
        sum.neighbors_stuck += snapshot.neighbors_stuck;
        sum.rebuffer_ms += experience.rebuffer_ms;
        if let Some(startup_ms) = experience.startup_ms {
            sum.playing += 1;
            startups.push(startup_ms);
            latencies.push(experience.latency_ms);
        }
    }
    startups.sort_unstable();
    latencies.sort_unstable();
    (sum.startup_p50_ms, sum.startup_p95_ms) = (percentile(&startups, 50), percentile(&startups, 95));
    (sum.latency_p50_ms, sum.latency_p95_ms) = (percentile(&latencies, 50), percentile(&latencies, 95));
    sum
}

/// The value below which so many percent of sorted values lie (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn in_words(sum: &Sum) -> String {
    let all = sum.peer_bytes + sum.origin_bytes;
    let share = if all == 0 { 0.0 } else { 100.0 * sum.peer_bytes as f64 / all as f64 };
    let seconds = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.1}", ms as f64 / 1e3));
    format!(
        "{}/{} playing  from peers {share:.0} % ({:.1} of {:.1} MB)  {} neighbors  latency p50 {} p95 {} s  rebuffered {:.1} s",
        sum.playing,
        sum.viewers,
        sum.peer_bytes as f64 / 1e6,
        all as f64 / 1e6,
        sum.neighbors,
        seconds(sum.latency_p50_ms),
        seconds(sum.latency_p95_ms),
        sum.rebuffer_ms as f64 / 1e3
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_page_and_playlist_lead_to_the_same_stream() {
        for url in [
            "http://h:1/watch/a",
            "http://h:1/watch/a?x=1",
            "http://h:1/watch/a/",
            "http://h:1/live/a/index.m3u8",
        ] {
            assert_eq!(playlist_url(url), "http://h:1/live/a/index.m3u8", "{url}");
        }
    }

    #[test]
    fn identity_is_made_once_and_a_damaged_one_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("me.pem");
        let made = load_identity(&file).unwrap();
        assert_eq!(load_identity(&file).unwrap().fingerprint().unwrap(), made.fingerprint().unwrap());
        fs::write(&file, "abc").unwrap();
        assert!(load_identity(&file).unwrap_err().to_string().contains("me.pem"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "abc");
    }

    #[test]
    fn viewers_that_do_not_play_yet_have_no_start_up_time() {
        let mut playing = Snapshot::default();
        playing.experience.startup_ms = Some(300);
        playing.swarm.peer_bytes = 10;
        let sum = add_up(&[Some(playing), Some(Snapshot::default()), None]);
        assert_eq!((sum.viewers, sum.playing, sum.startup_p50_ms), (3, 1, Some(300)));
    }

    #[test]
    fn what_all_viewers_together_went_through_is_printed() {
        let viewer = Snapshot { pieces_lost: 1, neighbors_stuck: 2, ..Snapshot::default() };
        let sum = serde_json::to_value(add_up(&[Some(viewer), Some(viewer), None])).unwrap();
        assert_eq!((&sum["pieces_lost"], &sum["neighbors_stuck"]), (&2.into(), &4.into()), "{sum}");
    }

    #[test]
    fn many_viewers_share_what_one_or_a_helper_may_keep() {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            watch: Watch,
        }
        let bytes = |line: &str| {
            let program =
                <Program as clap::Parser>::try_parse_from(line.split(' ')).map_err(|error| error.kind())?;
            Ok(options(&program.watch, None).store_bytes_max >> 20)
        };
        assert_eq!(bytes("watch http://h/watch/a"), Ok(64));
        assert_eq!(bytes("watch http://h/watch/a --count 32"), Ok(16));
        assert_eq!(bytes("watch http://h/watch/a --count 1000"), Ok(4));
        assert_eq!(bytes("watch http://h/watch/a --count 3 --seed"), Ok(64));
        assert_eq!(bytes("watch http://h/watch/a --count 1000 --store-mb 64"), Ok(64));
        assert_eq!(
            bytes("watch http://h/watch/a --store-mb 0"),
            Err(clap::error::ErrorKind::ValueValidation)
        );
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[7], 95), Some(7));
        assert_eq!(percentile(&[1, 2, 3, 4], 50), Some(2));
        assert_eq!(percentile(&[1, 2, 3, 4], 95), Some(4));
    }
}
