//! The threads that all services run on. What runs on them is in `serve.rs`.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// Tasks that threads outside of the runtime have woken are looked for before every task, not before every 61st: these
/// are the viewers who wait for the part that a segmenter's thread has just published. The requests for the next part,
/// that come as soon as the first are answered, wait until the last has this one.
const GLOBAL_QUEUE_INTERVAL: u32 = 1;

/// Starts the threads, one for each processor.
///
/// # Errors
/// If the system does not give them.
pub fn start() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().global_queue_interval(GLOBAL_QUEUE_INTERVAL).build()
}
