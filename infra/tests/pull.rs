//! `shoal serve --pull`: one server in front of another, as an operator with a pipeline of his own has it.

mod support;

use std::process::Output;

use serde_json::Value;
use support::{Running, Serving, shoal, until};

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = shoal().args(arguments).output().expect("shoal starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn pulled_stream_is_shared_by_its_viewers_and_breaks_no_rule() {
    let upstream = Serving::start(&mut shoal());
    let publisher = upstream.publish("show", &[]);
    let pull = format!("news={}", upstream.url("/live/show/index.m3u8?token=hidden"));
    let serving = Serving::start_with(&mut shoal(), &["--pull", &pull]);
    until("the pulled stream", || serving.playlist("news").filter(|text| text.contains("#EXTINF")));

    let url = serving.url("/watch/news");
    let (code, stdout, stderr) = run(&["lint", &url, "--seconds", "6", "--json"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let report: Value = serde_json::from_str(stdout.trim()).expect("JSON");
    let revisions: u64 =
        report["revisions"].as_object().expect("an object").values().filter_map(Value::as_u64).sum();
    assert!(revisions >= 10, "by blocking reload, part by part: {report}");

    let (code, stdout, stderr) = run(&["watch", &url, "--count", "2", "--seconds", "10"]);
    assert_eq!(code, Some(0), "{stderr}");
    let sum: Value = serde_json::from_str(stdout.trim().lines().last().unwrap_or("")).expect("JSON");
    assert_eq!(sum["playing"], 2, "{sum}");
    assert_eq!(sum["rejected_bytes"], 0, "the records match: {sum}");
    assert!(sum["peer_bytes"].as_u64() > Some(0), "{sum}");

    let answer = serving.get("/api/streams");
    let list: Value = serde_json::from_str(body(&answer)).expect("JSON");
    assert_eq!(list[0]["name"], "news");
    assert_eq!(list[0]["upstream"]["url"], upstream.url("/live/show/index.m3u8"));
    assert_eq!(list[0]["upstream"]["problem"], "");
    assert!(!answer.contains("hidden"), "{answer}");
    assert!(serving.metric("pull_received_bytes_total", "news") > 0.0);

    // What is wrong is said where operators look.
    drop::<Running>(publisher);
    upstream.process.stop();
    until("the problem", || {
        let answer = serving.get("/api/streams");
        let list: Value = serde_json::from_str(body(&answer)).ok()?;
        list[0]["upstream"]["problem"].as_str().filter(|problem| !problem.is_empty()).map(str::to_owned)
    });
    assert!(serving.metric("pull_failures_total", "news") > 0.0);
}

#[test]
fn wrong_flag_is_named_without_the_url() {
    for (pull, words) in [
        ("news", "NAME=URL"),
        ("news=ftp://user:hidden@a/", "http:// or https://"),
        ("a b=http://a/", "no stream's name"),
    ] {
        let (code, stdout, stderr) = run(&["serve", "--pull", pull]);
        assert_eq!(code, Some(2), "{stdout}{stderr}");
        assert!(stderr.contains(words), "{words} is not in {stderr}");
    }
    let twice = ["serve", "--pull", "a=http://127.0.0.1:1/", "--pull", "a=http://127.0.0.1:1/"];
    let (code, _, stderr) = run(&twice);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("twice"), "{stderr}");
}
