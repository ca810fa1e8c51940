//! Logs and metrics of the whole program.
//!
//! At info and above no line holds an address, a session description or a key: our crates keep to that, and the
//! crates below us are let through from error on only. An end-to-end test reads the log of a session for it.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::Error;
use crate::settings::Log;

/// Our crates, whose level the operator sets; all others speak from error on.
const OURS: &[&str] = &[
    "shoal",
    "shoal_ingest",
    "shoal_publisher",
    "shoal_segmenter",
    "shoal_playlist",
    "shoal_tracker",
    "shoal_player",
    "shoal_swarm",
];

/// Histogram bounds in seconds or milliseconds would depend on the metric; ours are all in milliseconds.
const BUCKETS_MS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0];

/// How often the exporter is asked to drop what is no longer needed for rendering.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Reads a level or a filter.
///
/// # Errors
/// [`Error::Settings`] if it is neither.
pub fn filter(level: &str) -> Result<EnvFilter, Error> {
    let plain = ["off", "error", "warn", "info", "debug", "trace"];
    let directives = if plain.contains(&level) {
        OURS.iter().fold("error".to_owned(), |filter, ours| format!("{filter},{ours}={level}"))
    } else {
        level.to_owned()
    };
    EnvFilter::try_new(&directives).map_err(|error| {
        Error::Settings(format!(
            "log.level = {level:?}: {error}; allowed is a level or a filter such as info,shoal=debug"
        ))
    })
}

/// Starts logging to standard error. Only the first call of a process has an effect.
///
/// # Errors
/// [`Error::Settings`] if the level cannot be read.
pub fn start_logs(settings: &Log) -> Result<(), Error> {
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter(&settings.level)?).with_writer(std::io::stderr);
    // An error means that a test has set up logging already.
    let _ = if settings.format == "json" {
        builder.json().with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
    Ok(())
}

/// The process's metrics. The recorder is global, so there is one however many servers a test starts.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets(BUCKETS_MS)
                .expect("the bounds are not empty")
                .build_recorder();
            let handle = recorder.handle();
            // Another recorder can only be a test's own; ours then stays empty.
            let _ = metrics::set_global_recorder(recorder);
            handle
        })
        .clone()
}

/// Keeps the exporter's buffers small for as long as the program runs.
pub async fn keep_metrics(handle: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        interval.tick().await;
        // Flat while viewers come and go, or something leaks.
        metrics::gauge!("process_tasks")
            .set(tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64);
        handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn plain_level_is_for_our_crates_only() {
        let text = filter("debug").unwrap().to_string();
        assert!(text.contains("shoal_ingest=debug") && text.contains("error"), "{text}");
        assert!(!text.split(',').any(|directive| directive == "debug"), "{text}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(filter("shoal=loud").is_err());
    }
}
