//! The signals that end the program.

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
