//! The operator's routes.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use common::Server;
use http_body_util::BodyExt as _;
use shoal_tracker::{Config, Tracker};
use shoal_tracker_protocol::{ErrorCode, Report, TrackerMessage, ViewerMessage};
use tower::ServiceExt as _;

async fn call(tracker: &Tracker, method: &str, path: &str, token: &str, body: &str) -> (StatusCode, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = tracker.router().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

fn config() -> Config {
    Config { admin_token: "s3cret".into(), ..Config::default() }
}

#[tokio::test]
async fn the_operators_routes_want_his_token() {
    let server = Server::live(config()).await;
    for path in ["/api/tracker", "/api/tracker/streams/demo"] {
        assert_eq!(call(&server.tracker, "GET", path, "wrong", "").await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(call(&server.tracker, "GET", path, "", "").await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(call(&server.tracker, "GET", path, "s3cret", "").await.0, StatusCode::OK);
    }
    let body = r#"{"percent":0}"#;
    let path = "/api/tracker/sharing";
    assert_eq!(call(&server.tracker, "PUT", path, "wrong", body).await.0, StatusCode::UNAUTHORIZED);
    let open = Server::live(Config::default()).await;
    assert_eq!(call(&open.tracker, "GET", "/api/tracker", "", "").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_stream_is_shown_in_numbers_and_never_with_addresses() {
    let server = Server::live(config()).await;
    let mut viewer = server.join().await;
    let report = Report {
        uplink_kbps: 5_000,
        renditions: vec![0],
        peer_bytes: 300,
        origin_bytes: 100,
        ..Report::default()
    };
    viewer.say(&ViewerMessage::Report(report)).await;
    viewer.until(|message| matches!(message, TrackerMessage::Plan { .. })).await;
    viewer.say(&ViewerMessage::Ping).await;
    viewer.until(|message| *message == TrackerMessage::Pong).await;
    let (status, body) = call(&server.tracker, "GET", "/api/tracker", "s3cret", "").await;
    assert_eq!(status, StatusCode::OK);
    let overview: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(overview["viewers"], 1);
    let stream = &overview["streams"][0];
    assert_eq!(stream["name"], "demo");
    assert_eq!(stream["offload_percent"], 75.0);
    assert!(stream["plans"][0]["roots"].as_u64().unwrap() > 0);
    assert!(!body.contains("127.0.0.1"));
    assert_eq!(
        call(&server.tracker, "GET", "/api/tracker/streams/no", "s3cret", "").await.0,
        StatusCode::NOT_FOUND
    );
    // Every field is described, and everything described is there.
    let (_, description) = call(&server.tracker, "GET", "/api/tracker/openapi.json", "", "").await;
    let description: serde_json::Value = serde_json::from_str(&description).unwrap();
    let schemas = &description["components"]["schemas"];
    let of = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(of(&overview), of(&schemas["Overview"]["properties"]));
    assert_eq!(of(stream), of(&schemas["Stream"]["properties"]));
    assert_eq!(of(&stream["plans"][0]), of(&schemas["Plan"]["properties"]));
}

#[tokio::test]
async fn sharing_is_switched_live_for_a_stream_and_for_all() {
    let server = Server::live(config()).await;
    let mut viewer = server.join().await;
    let path = "/api/tracker/streams/demo/sharing";
    let off = TrackerMessage::Sharing { on: false };
    let on = TrackerMessage::Sharing { on: true };
    assert_eq!(
        call(&server.tracker, "PUT", path, "s3cret", r#"{"percent":0}"#).await.0,
        StatusCode::NO_CONTENT
    );
    viewer.until(|message| *message == off).await;
    assert_eq!(
        call(&server.tracker, "PUT", path, "s3cret", r#"{"percent":100}"#).await.0,
        StatusCode::NO_CONTENT
    );
    viewer.until(|message| *message == on).await;
    let all = "/api/tracker/sharing";
    assert_eq!(
        call(&server.tracker, "PUT", all, "s3cret", r#"{"percent":0}"#).await.0,
        StatusCode::NO_CONTENT
    );
    viewer.until(|message| *message == off).await;
    // A stream that starts meanwhile is off, too.
    server.tracker.stream_started("demo", [3; 16]);
    assert!(!server.join().await.welcome.unwrap().sharing);
    for (path, body, expected) in [
        (all, r#"{"percent":101}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (all, r#"{"percnt":1}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (all, "{", StatusCode::BAD_REQUEST),
        ("/api/tracker/streams/no/sharing", r#"{"percent":1}"#, StatusCode::ACCEPTED),
        ("/api/tracker/streams/no%20name/sharing", r#"{"percent":1}"#, StatusCode::NOT_FOUND),
    ] {
        assert_eq!(call(&server.tracker, "PUT", path, "s3cret", body).await.0, expected, "{path} {body}");
    }
}

#[tokio::test]
async fn what_was_switched_for_a_stream_stays_when_its_publisher_comes_back() {
    let secret = "a secret of the broadcaster's back end".into();
    let server = Server::live(Config {
        viewer_token_secret: secret,
        turn_urls: vec!["turn:r".into()],
        turn_secret: "x".into(),
        ..config()
    })
    .await;
    let put = async |what: &str, body: &str| {
        let path = format!("/api/tracker/streams/demo/{what}");
        assert_eq!(
            call(&server.tracker, "PUT", &path, "s3cret", body).await.0,
            StatusCode::NO_CONTENT,
            "{what}"
        );
    };
    let state = async || -> serde_json::Value {
        let (_, body) = call(&server.tracker, "GET", "/api/tracker/streams/demo", "s3cret", "").await;
        let stream: serde_json::Value = serde_json::from_str(&body).unwrap();
        serde_json::json!([stream["private"], stream["policy"], stream["sharing_percent"]])
    };
    assert_eq!(state().await, serde_json::json!([false, "direct_then_relay", 100]));
    put("private", r#"{"private":true}"#).await;
    put("policy", r#"{"policy":"relay_only"}"#).await;
    put("sharing", r#"{"percent":30}"#).await;
    let closed = serde_json::json!([true, "relay_only", 30]);
    assert_eq!(state().await, closed);
    // Over the old publication, and after its end.
    server.tracker.stream_started("demo", [2; 16]);
    assert_eq!(state().await, closed);
    server.tracker.stream_ended("demo");
    server.tracker.stream_started("demo", [3; 16]);
    assert_eq!(state().await, closed);
    let mut uninvited = server.connect(&[]).await.unwrap();
    uninvited
        .say(&ViewerMessage::Join {
            version: 1,
            stream: "demo".into(),
            token: None,
            resume: None,
            shares: true,
            renditions: vec![0],
        })
        .await;
    let answer = uninvited.next().await.unwrap();
    assert!(matches!(answer, TrackerMessage::Error { code: ErrorCode::Refused, .. }), "{answer:?}");
    // Control: another name has the settings' values.
    server.tracker.stream_started("other", [4; 16]);
    let (_, other) = call(&server.tracker, "GET", "/api/tracker/streams/other", "s3cret", "").await;
    assert!(other.contains(r#""private":false"#), "{other}");
}

#[tokio::test]
async fn what_is_switched_before_a_stream_is_live_counts_from_its_first_moment() {
    let secret = "a secret of the broadcaster's back end".into();
    let server = Server::start(Config { viewer_token_secret: secret, ..config() }).await;
    let put = async |name: &str, what: &str, body: &str| {
        let path = format!("/api/tracker/streams/{name}/{what}");
        call(&server.tracker, "PUT", &path, "s3cret", body).await.0
    };
    assert_eq!(put("demo", "private", r#"{"private":true}"#).await, StatusCode::ACCEPTED);
    assert_eq!(put("demo", "policy", r#"{"policy":"off"}"#).await, StatusCode::ACCEPTED);
    // What could not be carried out is not remembered either.
    assert_eq!(put("demo", "policy", r#"{"policy":"relay_only"}"#).await, StatusCode::CONFLICT);
    server.tracker.stream_started("demo", [1; 16]);
    let (_, body) = call(&server.tracker, "GET", "/api/tracker/streams/demo", "s3cret", "").await;
    let stream: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(stream["private"], true);
    assert_eq!(stream["policy"], "off");
    assert_eq!(stream["sharing_percent"], 0);
    assert_eq!(put("demo", "private", r#"{"private":false}"#).await, StatusCode::NO_CONTENT);
}

/// Paths and methods, from the source of the router.
fn served() -> Vec<(String, String)> {
    let source = include_str!("../src/service/api.rs");
    let routes = source.split(".route(\"").skip(1).map(|rest| {
        let (path, rest) = rest.split_once("\", ").unwrap();
        let method = rest.split_once('(').unwrap().0;
        (path.to_owned(), method.to_owned())
    });
    let mut routes: Vec<_> = routes.collect();
    routes.sort();
    routes
}

#[tokio::test]
async fn every_route_is_documented_and_every_documented_route_is_served() {
    let server = Server::live(config()).await;
    let (_, description) = call(&server.tracker, "GET", "/api/tracker/openapi.json", "", "").await;
    let description: serde_json::Value = serde_json::from_str(&description).unwrap();
    let mut documented = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters")
        {
            documented.push((path.clone(), method.clone()));
            // An empty body is wrong where one is wanted, but the route and the method are there.
            let (status, _) =
                call(&server.tracker, &method.to_uppercase(), &path.replace("{name}", "demo"), "s3cret", "")
                    .await;
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_ne!(status, StatusCode::NOT_FOUND, "{method} {path}");
            assert!(operation["responses"].get(status.as_str()).is_some(), "{method} {path}: {status}");
            let wants_body = operation.get("requestBody").is_some();
            for body in ["{", "{}"].into_iter().filter(|_| wants_body) {
                let path = path.replace("{name}", "demo");
                let (status, _) = call(&server.tracker, &method.to_uppercase(), &path, "s3cret", body).await;
                assert!(operation["responses"].get(status.as_str()).is_some(), "{method} {path}: {status}");
            }
            assert_eq!(status == StatusCode::OK, !wants_body, "{method} {path}: {status}");
        }
    }
    documented.sort();
    assert!(documented.len() >= 6);
    assert_eq!(documented, served());
}
