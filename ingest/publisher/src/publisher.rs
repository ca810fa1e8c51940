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
    let Some(session) = session::connect(options, number, &media.offered, stop).await? else {
        return Ok(Progress { state: State::Ended, ..Progress::default() });
    };
    let span = options.seconds.map(Duration::from_secs);
    session.send(media.feed(), media.note.clone(), span, stop, progress).await
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
