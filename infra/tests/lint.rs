//! `shoal lint` as people and CI use it: our own live stream is clean, a broken one is named, exit codes tell.

mod support;

use std::process::Output;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{Serving, shoal, until};

fn lint(url: &str, flags: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        shoal().args(["lint", url]).args(flags).output().expect("shoal starts");
    (
        status.code(),
        String::from_utf8_lossy(&stdout).into_owned(),
        String::from_utf8_lossy(&stderr).into_owned(),
    )
}

#[test]
fn our_own_live_stream_with_a_publisher_that_came_back_breaks_no_rule() {
    let serving = Serving::start(&mut shoal());
    // Killed, so that it says no goodbye and the stream waits for it.
    drop(serving.publish("show", &[]));
    let mut publisher = serving.start_publisher("show", &[]);
    until("the discontinuity", || {
        // Refused until the server has noticed that the first one is gone.
        if publisher.has_ended() {
            publisher = serving.start_publisher("show", &[]);
        }
        serving.playlist("show").filter(|text| text.contains("DISCONTINUITY\n"))
    });
    let (code, stdout, stderr) = lint(&serving.url("/watch/show"), &["--seconds", "8", "--json"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(stdout.trim()).unwrap();
    assert_eq!(report["is_clean"], true);
    // It did look: two playlists by blocking reload, and their media.
    let revisions: u64 = report["revisions"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(revisions >= 10, "{report}");
    assert!(report["media_files"].as_u64().unwrap() >= 20, "{report}");
}

/// A server whose stream is wrong in ways that only a client over time sees.
async fn broken(State(requests): State<Arc<AtomicU64>>, uri: axum::http::Uri) -> axum::response::Response {
    let count = requests.fetch_add(1, Ordering::Relaxed);
    match uri.path() {
        "/index.m3u8" => {
            let text = "#EXTM3U\n#EXT-X-INDEPENDENT-SEGMENTS\n\
                #EXT-X-STREAM-INF:BANDWIDTH=1000,AVERAGE-BANDWIDTH=1000,RESOLUTION=320x180,FRAME-RATE=30\nv.m3u8\n";
            ([(header::CONTENT_TYPE, "application/vnd.apple.mpegurl")], text).into_response()
        }
        "/v.m3u8" => {
            let mut text = format!(
                "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n\
                #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=3.0\n\
                #EXT-X-PART-INF:PART-TARGET=0.{}\n#EXT-X-MAP:URI=\"init.mp4\"\n",
                5 + count % 2
            );
            for number in 0..8 {
                text += &format!("#EXTINF:2.0,\nseg-{number}.m4s\n");
            }
            ([(header::CONTENT_TYPE, "text/plain")], text).into_response()
        }
        "/init.mp4" => "this is no film".into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test]
async fn each_rule_that_a_broken_stream_breaks_is_named_with_its_line() {
    let router = Router::new().fallback(get(broken)).with_state(Arc::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/index.m3u8", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (code, stdout, stderr) =
        tokio::task::spawn_blocking(move || lint(&url, &["--seconds", "4"])).await.unwrap();
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    for needed in [
        "codecs-missing (section A9)",
        "part-target-changed (section 4.4.3.7)",
        "| #EXT-X-PART-INF:PART-TARGET=0.",
        "playlist-type (section 4)",
        "blocking-reload-early (section 6.2.5.2)",
        "directives-unchecked",
        "not-updated (section 6.2.1)",
        "date-missing (section A8.4)",
        "init-broken (section 3.1.2)",
        "| #EXT-X-MAP:URI=\"init.mp4\"",
        "unavailable (section 6.2.2)",
        "seg-7.m4s: status 404",
    ] {
        assert!(stdout.contains(needed), "{needed} is not in:\n{stdout}");
    }
}

#[test]
fn what_cannot_be_judged_is_exit_code_2_and_one_line() {
    let serving = Serving::start(&mut shoal());
    for (url, words) in [
        ("http://127.0.0.1:1/index.m3u8".to_owned(), "refused"),
        (serving.url("/live/nobody/index.m3u8"), "status 404"),
        (serving.url("/healthz"), "no playlist"),
        ("host.example/x".to_owned(), "give the whole URL, with http:// or https://"),
        ("localhost:8080/watch/show".to_owned(), "give the whole URL, with http:// or https://"),
        ("http://".to_owned(), "empty host"),
    ] {
        let (code, stdout, stderr) = lint(&url, &[]);
        assert_eq!(code, Some(2), "{url}: {stdout}{stderr}");
        assert!(stdout.is_empty(), "{stdout}");
        assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
        assert!(stderr.to_lowercase().contains(&words.to_lowercase()), "{words} is not in {stderr}");
    }
}
