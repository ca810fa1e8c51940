//! The threads that all services run on. What runs on them is in `serve.rs`.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// Tasks that threads outside of the runtime have woken are looked for before every task, not before every 61st: these
/// are the viewers who wait for the part that a segmenter's thread has just published. The requests for the next part,
/// that come as soon as the first are answered, wait until the last has this one.
const GLOBAL_QUEUE_INTERVAL: u32 = 1;

/// Allocations of at least so many bytes, which is what parts and segments are, get pages of their own, and these go back
/// to the system when the window moves on. By itself, glibc raises its limit to 32 MB as soon as such a block is freed, and
/// from then on media lies between what stays, in each thread's heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_PAGES_BYTES: i32 = 64 * 1024;

/// Starts the threads, one for each processor.
///
/// # Errors
/// If the system does not give them.
pub fn start() -> io::Result<Runtime> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: it takes two numbers, and locks what it changes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES_BYTES);
    }
    Builder::new_multi_thread().enable_all().global_queue_interval(GLOBAL_QUEUE_INTERVAL).build()
}
