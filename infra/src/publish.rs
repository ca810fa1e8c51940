//! `shoal publish`, and the test pattern of `shoal serve --test-pattern`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use shoal_publisher::{Options, Progress, Source, State, Summary};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::line::ProgressLine;
use crate::{Error, signals};

/// How long the test pattern waits before it publishes again after an error: its own server may be restarting
/// nothing, so an error is a name that somebody else holds for the moment, or a machine out of breath.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Publishes until the time is over, the source ends, or a signal comes; shows a progress line.
///
/// # Errors
/// [`Error::Service`] with the reason in words.
pub async fn run(options: Options) -> Result<(), Error> {
    let stop = CancellationToken::new();
    signals::cancel_when_terminated(&stop);
    let (sender, receiver) = watch::channel(Progress::default());
    let shown = tokio::spawn(show(receiver));
    let result = shoal_publisher::run(options, stop, sender).await;
    // Ends by itself when the sender is gone.
    let _ = shown.await;
    let summary = result.map_err(|error| Error::service("publish", error))?;
    eprintln!("{}", in_words(&summary));
    Ok(())
}

async fn show(mut progress: watch::Receiver<Progress>) {
    let mut line = ProgressLine::new();
    let mut note = None;
    while progress.changed().await.is_ok() {
        let progress = progress.borrow_and_update().clone();
        if progress.note != note {
            note.clone_from(&progress.note);
            if let Some(note) = &note {
                line.say(note);
            }
        }
        line.show(&match progress.state {
            State::Preparing => "preparing".to_owned(),
            State::Connecting => "connecting".to_owned(),
            State::Live => live(&progress),
            State::Ended => "ended".to_owned(),
        });
    }
    line.end();
}

fn live(progress: &Progress) -> String {
    let seconds = progress.live_for.as_secs();
    let mut text = format!(
        "live {:02}:{:02}  {:.1} Mbit/s  {:.0} fps",
        seconds / 60,
        seconds % 60,
        progress.bitrate_bps as f64 / 1e6,
        progress.fps
    );
    if progress.live > 1 {
        text = format!("{} publishers {text}", progress.live);
    }
    if let Some(rtt_ms) = progress.rtt_ms {
        text.push_str(&format!("  round trip {rtt_ms:.0} ms"));
    }
    if progress.loss > 0.0 {
        text.push_str(&format!("  loss {:.1} %", 100.0 * progress.loss));
    }
    text
}

fn in_words(summary: &Summary) -> String {
    format!(
        "published {:.1} s, {} frames, {:.1} MB; {} keyframe requests, {} packets sent again, {} frames skipped",
        summary.live_for.as_secs_f64(),
        summary.frames_sent,
        summary.bytes_sent as f64 / 1e6,
        summary.keyframe_requests,
        summary.nacked_packets,
        summary.frames_skipped
    )
}

/// A test pattern that is published to this server for as long as it runs.
#[derive(Debug)]
pub(crate) struct TestPattern {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts to publish the test pattern to the server at `address`, by WHIP like anybody else.
pub(crate) fn test_pattern(address: SocketAddr, stream: &str) -> TestPattern {
    // A server that listens everywhere is reached by loopback.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let url = format!("http://{}/whip/{stream}", SocketAddr::new(ip, address.port()));
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            let options = Options::new(Source::TestPattern, url.clone());
            let (progress, _) = watch::channel(Progress::default());
            if let Err(error) = shoal_publisher::run(options, stopped.clone(), progress).await {
                warn!(reason = %error, "the test pattern is published again in a moment");
            }
            tokio::select! {
                () = stopped.cancelled() => {}
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        }
    });
    TestPattern { stop, task }
}

impl TestPattern {
    /// Says goodbye to the server and waits for that.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        // A panic in there was printed by the runtime already.
        let _ = self.task.await;
    }
}
