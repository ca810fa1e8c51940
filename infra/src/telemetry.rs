//! Logs and metrics of the whole program.
//!
//! At info and above no line holds an address, a session description or a key: our crates keep to that, and the
//! crates below us are let through from error on only, unless the operator names them. An end-to-end test reads the
//! log of a session for it.

mod table;

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::Error;
use crate::settings::Log;

/// Our crates, whose level the operator sets; all others speak from error on unless he names them.
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

/// Bounds of all histograms: they are in milliseconds, whatever they measure.
const BUCKETS_MS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0];

/// How often the exporter is asked to drop what is no longer needed for rendering.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Reads a level or a filter. A level without a target, alone or in a list, is that of our crates.
///
/// # Errors
/// [`Error::Settings`] if it is neither.
pub fn filter(level: &str) -> Result<EnvFilter, Error> {
    let (levels, named): (Vec<&str>, Vec<&str>) = level
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
        .partition(|directive| directive.parse::<LevelFilter>().is_ok());
    let mut directives = vec!["error".to_owned()];
    for level in levels {
        directives.extend(OURS.iter().map(|ours| format!("{ours}={level}")));
    }
    // Behind them: of two directives for one target the later one counts.
    directives.extend(named.into_iter().map(str::to_owned));
    EnvFilter::try_new(directives.join(",")).map_err(|error| {
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
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&settings.level)?)
        .with_writer(std::io::stderr)
        // Otherwise it would tell standard error that standard error is closed, and panic.
        .log_internal_errors(false);
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
            table::describe();
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
    fn level_in_a_list_is_for_our_crates_only_and_a_named_crate_has_its_own() {
        for level in ["info,shoal_tracker=debug,hyper=warn", " hyper=warn, shoal_tracker=debug ,info"] {
            let text = filter(level).unwrap().to_string();
            let directives: Vec<&str> = text.split(',').collect();
            for expected in ["error", "shoal_ingest=info", "shoal_tracker=debug", "hyper=warn"] {
                assert!(directives.contains(&expected), "{expected} in {text}");
            }
            for unexpected in ["info", "shoal_tracker=info"] {
                assert!(!directives.contains(&unexpected), "{unexpected} in {text}");
            }
        }
        // Without a level ours keep to what counts for all.
        assert_eq!(filter("shoal_tracker=debug").unwrap().to_string().split(',').count(), 2);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(filter("shoal=loud").is_err());
    }
}
