//! The signals that the program acts on: those that end it, and SIGHUP.

use std::io::{IsTerminal as _, stderr, stdout};

use tokio_util::sync::CancellationToken;

/// SIGHUP, which asks a service to read its files again. Where there is no such signal it never comes.
pub(crate) struct Hangups {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Hangups {
    /// From now on the signal no longer ends the process.
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(unix)]
            signal: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
                .expect("a handler can be installed inside the runtime"),
        }
    }

    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        if self.signal.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}

/// Waits for a SIGHUP that a closed terminal sent: whoever closes the window in which a server runs does not want to
/// leave it behind. All other ones are for `is_told`. The handler is in place when this returns the future.
pub(crate) fn terminal_closed(is_told: impl Fn()) -> impl Future<Output = ()> {
    let mut hangups = Hangups::new();
    let has_terminal = || stdout().is_terminal() || stderr().is_terminal();
    let had_terminal = has_terminal();
    async move {
        loop {
            hangups.next().await;
            // A terminal that was closed is none any more.
            if had_terminal && !has_terminal() {
                return;
            }
            is_told();
        }
    }
}

/// Cancels `stop` when SIGINT or SIGTERM comes. The handlers are in place when this returns.
pub(crate) fn cancel_when_terminated(stop: &CancellationToken) {
    let (signal, stop) = (terminated(), stop.clone());
    tokio::spawn(async move {
        signal.await;
        stop.cancel();
    });
}

/// Waits for SIGINT or SIGTERM. The handlers are in place when this returns the future.
pub(crate) fn terminated() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let handler = |kind| signal(kind).expect("a handler can be installed inside the runtime");
        let (mut interrupt, mut terminate) =
            (handler(SignalKind::interrupt()), handler(SignalKind::terminate()));
        async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
    }
    #[cfg(not(unix))]
    async {
        let _ = tokio::signal::ctrl_c().await;
    }
}
