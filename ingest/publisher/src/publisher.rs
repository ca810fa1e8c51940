//! Puts sources and sessions together: [`run`] for the command line, [`Publisher`] for tests and load.

use crate::{
    error::Error,
    options::Options,
    progress::{Progress, State, Summary},
    session,
    source::Media,
};
use std::time::Duration;
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// How often the figures of several publishers are added up.
const MERGE_INTERVAL: Duration = Duration::from_millis(500);

/// Before the first further attempt, and the most between attempts: a server keeps a lost stream open for longer.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(8);

/// Publishes until `stop` is cancelled, the time given in the options is over, the source ends, or an error occurs.
/// With several publishers, the first error ends all of them.
///
/// `progress` is told each change of state, and figures once a second.
pub async fn run(
    options: Options,
    stop: CancellationToken,
    progress: watch::Sender<Progress>,
) -> Result<Summary, Error> {
    let result = open_and_send(options, &stop, &progress).await;
    progress.send_modify(|progress| {
        progress.state = State::Ended;
        progress.live = 0;
    });
    result
}

async fn open_and_send(
    options: Options,
    stop: &CancellationToken,
    progress: &watch::Sender<Progress>,
) -> Result<Summary, Error> {
    options.validate()?;
    // Opening files and encoders blocks.
    let opened = tokio::task::spawn_blocking(move || Media::open(&options).map(|media| (options, media)));
    let (options, media) = opened.await.unwrap_or_else(|error| resume(error))?;
    let source = EndOnDrop(media.clone());
    progress.send_modify(|progress| progress.state = State::Connecting);
    let result = if options.count == 1 {
        send_one(&options, 1, &media, stop, progress).await.map(|progress| {
            let mut summary = Summary::default();
            summary.add(&progress);
            summary
        })
    } else {
        send_many(&options, &media, stop, progress).await
    };
    drop(source);
    let mut summary = result?;
    summary.frames_skipped = media.finish();
    media.take_failure().map_or(Ok(summary), Err)
}

/// Ends the source's thread however the call that uses it ends: also when it is dropped.
struct EndOnDrop(Media);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.finish();
    }
}

async fn send_one(
    options: &Options,
    number: u32,
    media: &Media,
    stop: &CancellationToken,
    progress: &watch::Sender<Progress>,
) -> Result<Progress, Error> {
    let span = options.seconds.map(Duration::from_secs);
    let mut carried = Progress { note: media.note.clone(), ..Progress::default() };
    let mut failures = 0;
    loop {
        let left = span.map(|span| span.saturating_sub(carried.live_for));
        let (error, live_for) = match session::connect(options, number, &media.offered, stop).await {
            Ok(None) => return Ok(Progress { state: State::Ended, ..carried }),
            Ok(Some(session)) => {
                let before = carried.live_for;
                match session.send(media.feed(), carried.clone(), left, stop, progress).await {
                    Ok(ended) => return Ok(ended),
                    Err(error) => {
                        carried = Progress { note: media.note.clone(), ..progress.borrow().clone() };
                        (error, carried.live_for - before)
                    }
                }
            }
            Err(error) => (error, Duration::ZERO),
        };
        let was_live = carried.live_for > Duration::ZERO;
        let Some(wanted) = error.retry_after(was_live).filter(|_| options.retry) else { return Err(error) };
        failures = if live_for > RETRY_WAIT_MAX { 1 } else { failures + 1 };
        let wait = wanted.max(retry_wait(failures, rand::random()));
        let note = Some(format!("{error}; trying again in {:.1} s", wait.as_secs_f64()));
        progress.send_replace(Progress { state: State::Connecting, live: 0, note, ..carried.clone() });
        tokio::select! {
            () = stop.cancelled() => return Ok(Progress { state: State::Ended, ..carried }),
            () = tokio::time::sleep(wait) => {}
        }
        carried.reconnects += u64::from(was_live);
    }
}

/// Doubles with each failure in a row, and is spread: a restarted server shall not meet all publishers at once.
fn retry_wait(failures: u32, random: u32) -> Duration {
    let base = (RETRY_WAIT_MIN * 2u32.saturating_pow(failures.saturating_sub(1).min(8))).min(RETRY_WAIT_MAX);
    base.mul_f64(0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

async fn send_many(
    options: &Options,
    media: &Media,
    stop: &CancellationToken,
    progress: &watch::Sender<Progress>,
) -> Result<Summary, Error> {
    // Dropped at every way out: no publisher outlives this call.
    let mut sessions = JoinSet::new();
    let stop = stop.child_token();
    let mut watches = Vec::new();
    for number in 1..=options.count {
        let (sender, receiver) = watch::channel(Progress { state: State::Connecting, ..Progress::default() });
        watches.push(receiver);
        let (options, media, stop) = (options.clone(), media.clone(), stop.clone());
        sessions.spawn(async move {
            let result = send_one(&options, number, &media, &stop, &sender).await;
            sender.send_modify(|progress| progress.state = State::Ended);
            result
        });
    }
    let mut summary = Summary::default();
    let mut first_error = None;
    let mut merge_tick = tokio::time::interval(MERGE_INTERVAL);
    loop {
        tokio::select! {
            _ = merge_tick.tick() => {}
            ended = sessions.join_next() => match ended {
                None => break,
                Some(ended) => match ended.unwrap_or_else(|error| resume(error)) {
                    Ok(progress) => summary.add(&progress),
                    Err(error) => {
                        first_error.get_or_insert(error);
                        stop.cancel();
                    }
                },
            },
        }
        progress.send_replace(merge(watches.iter().map(|watch| watch.borrow().clone())));
    }
    first_error.map_or(Ok(summary), Err)
}

fn merge(all: impl Iterator<Item = Progress>) -> Progress {
    let mut sum = Progress { state: State::Ended, ..Progress::default() };
    for one in all {
        let is_live = one.state == State::Live;
        // Connecting is less advanced than live, and one that has ended counts no more.
        sum.state = match (sum.state, one.state) {
            (State::Ended, state) | (state, State::Ended) => state,
            (State::Connecting, _) | (_, State::Connecting) => State::Connecting,
            (_, state) => state,
        };
        sum.live += u32::from(is_live);
        sum.live_for = sum.live_for.max(one.live_for);
        if is_live {
            sum.bitrate_bps += one.bitrate_bps;
            sum.fps += one.fps;
        }
        sum.rtt_ms = sum.rtt_ms.into_iter().chain(one.rtt_ms).reduce(f64::max);
        sum.loss = sum.loss.max(one.loss);
        sum.frames_sent += one.frames_sent;
        sum.keyframes_sent += one.keyframes_sent;
        sum.keyframe_requests += one.keyframe_requests;
        sum.nacked_packets += one.nacked_packets;
        sum.bytes_sent += one.bytes_sent;
        sum.reconnects += one.reconnects;
        sum.note = sum.note.or(one.note);
    }
    sum
}

/// A panic of a task of ours goes on in its caller.
fn resume(error: JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => unreachable!("nobody aborts these tasks: {error}"),
    }
}

/// A publisher that runs in the background: the handle for tests and load generators. Dropping it stops it at
/// once, without telling the server.
#[derive(Debug)]
pub struct Publisher {
    task: Option<JoinHandle<Result<Summary, Error>>>,
    stop: CancellationToken,
    progress: watch::Receiver<Progress>,
}

impl Publisher {
    /// Starts publishing; must be called within a tokio runtime.
    pub fn start(options: Options) -> Self {
        let stop = CancellationToken::new();
        let (sender, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(run(options, stop.clone(), sender));
        Self { task: Some(task), stop, progress }
    }

    /// Waits until all its publishers are live, or gives the error that prevented it.
    pub async fn wait_until_live(&mut self) -> Result<(), Error> {
        let live =
            self.progress.wait_for(|progress| matches!(progress.state, State::Live | State::Ended)).await;
        let is_live = live.is_ok_and(|progress| progress.state == State::Live);
        if is_live { Ok(()) } else { self.join().await.map(|_| ()) }
    }

    /// Its latest figures. The receiver also tells when they change.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Result<Summary, Error> {
        self.join().await
    }

    /// Ends it properly: the server is told.
    pub async fn stop(mut self) -> Result<Summary, Error> {
        self.stop.cancel();
        self.join().await
    }

    async fn join(&mut self) -> Result<Summary, Error> {
        match self.task.take() {
            Some(task) => task.await.unwrap_or_else(|error| resume(error)),
            // It was joined before, by `wait_until_live`.
            None => Ok(Summary::default()),
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_are_spread() {
        let waits =
            |random| [1, 2, 3, 5, 9, u32::MAX].map(|failures| retry_wait(failures, random).as_millis());
        assert_eq!(waits(0), [375, 750, 1500, 6000, 6000, 6000]);
        assert_eq!(waits(u32::MAX), [625, 1250, 2500, 10_000, 10_000, 10_000]);
    }
}
