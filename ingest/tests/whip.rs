//! RFC 9725, requirement by requirement, against the router of a real endpoint. The README's table names these
//! tests.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::{Method, Request, StatusCode};
use shoal_credentials::Secret;
use shoal_ingest::{Config, IceServer, OpenTo};
use support::live::{Endpoint, Live, PATIENCE, config, header, text, until};

const OFFER: &str = include_str!("support/chromium-offer.sdp");
const TRICKLE: &str = "a=group:BUNDLE 0 1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
    a=ice-ufrag:5wlI\r\na=ice-pwd:EVEpmvWg4m8GxKkTJJ0bnT31\r\n\
    a=candidate:1 1 udp 2122260223 127.0.0.1 61764 typ host\r\n\
    a=candidate:2 1 udp 2122260223 ab12.local 61764 typ host\r\n\
    a=candidate:3 1 tcp 1518280447 127.0.0.1 9 typ host tcptype active\r\n";
const RESTART: &str = "a=group:BUNDLE 0 1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
    a=ice-ufrag:ysXw\r\na=ice-pwd:vw5LmwG4y/e6dPP/zAP9Gp5k\r\n";

async fn endpoint() -> Endpoint {
    Endpoint::start(config()).await
}

async fn created(endpoint: &Endpoint, stream: &str) -> (String, String) {
    let response = endpoint.post(stream, OFFER).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    (header(&response, "location"), header(&response, "etag"))
}

fn assert_cors(response: &Response) {
    assert_eq!(header(response, "access-control-allow-origin"), "*");
    let exposed = header(response, "access-control-expose-headers");
    for name in ["Location", "ETag", "Link"] {
        assert!(exposed.contains(name), "{exposed}");
    }
}

#[tokio::test]
async fn post_is_answered_201_with_location_etag_and_a_recvonly_answer() {
    let endpoint = endpoint().await;
    let response = endpoint.post("cam", OFFER).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(header(&response, "content-type"), "application/sdp");
    assert!(header(&response, "location").starts_with("/whip/session/"));
    assert_cors(&response);
    let etag = header(&response, "etag");
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 10, "not a strong tag: {etag}");
    let answer = text(response).await;
    let count = |line: &str| answer.lines().filter(|l| *l == line).count();
    assert_eq!((count("a=recvonly"), count("a=sendonly") + count("a=sendrecv")), (2, 0), "{answer}");
    assert_eq!((count("a=rtcp-mux"), count("a=rtcp-mux-only")), (2, 2), "{answer}");
    assert_eq!(count("a=setup:passive"), 2, "{answer}");
    assert_eq!(count("a=group:BUNDLE 0 1"), 1, "{answer}");
}

#[tokio::test]
async fn the_answer_has_all_candidates_in_the_first_section_only() {
    let endpoint = endpoint().await;
    let answer = text(endpoint.post("cam", OFFER).await).await;
    let sections: Vec<&str> = answer.split("m=").collect();
    let port = endpoint.media_address.port();
    assert!(sections[1].contains(&format!("udp 2130706431 127.0.0.1 {port} typ host")), "{answer}");
    assert!(sections[1].contains(&format!("127.0.0.1 {port} typ host tcptype passive")), "{answer}");
    assert!(sections[1].contains("a=end-of-candidates"));
    assert!(!sections[0].contains("a=candidate") && !sections[2].contains("a=candidate"), "{answer}");
    assert!(
        !answer.lines().any(|line| line.starts_with("a=candidate") && line.contains(" 2 udp")),
        "{answer}"
    );
}

#[tokio::test]
async fn configured_public_addresses_are_offered_in_their_order_and_then_the_machines_own() {
    // Addresses that this machine doesn't have, as behind 1:1 NAT, and a name that we resolve.
    let public_ips = ["203.0.113.7", "2001:db8::7", "localhost"].map(str::to_owned).to_vec();
    let endpoint =
        Endpoint::start(Config { public_ips, media_address: "127.0.0.2:0".parse().unwrap(), ..config() })
            .await;
    let answer = text(endpoint.post("cam", OFFER).await).await;
    let port = endpoint.media_address.port();
    let addresses: Vec<&str> = answer
        .lines()
        .filter(|line| line.starts_with("a=candidate:") && line.contains(" udp "))
        .map(|line| line.split(' ').nth(4).unwrap())
        .collect();
    assert_eq!(addresses[..2], ["203.0.113.7", "2001:db8::7"], "{answer}");
    // Of the name's addresses only those that the socket hears.
    assert_eq!(addresses[2..], ["127.0.0.1", "127.0.0.2"], "{answer}");
    assert!(answer.contains(&format!("203.0.113.7 {port} typ host tcptype passive")), "{answer}");
}

#[tokio::test]
async fn the_log_warns_when_only_private_addresses_are_offered_and_says_who_may_publish() {
    for (public_ip, is_warned) in [("192.168.1.2", true), ("203.0.113.7", false)] {
        let log = support::LogBuffer::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        Endpoint::start(Config { public_ips: vec![public_ip.to_owned()], ..config() }).await;
        let text = log.text();
        assert_eq!(text.contains("only offered private addresses"), is_warned, "{public_ip}: {text}");
        for word in ["this machine only", "ingest.stream_keys", "ingest.auth_open_to"] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}

#[tokio::test]
async fn video_orientation_is_not_negotiated() {
    assert!(OFFER.contains("urn:3gpp:video-orientation"));
    let answer = text(endpoint().await.post("cam", OFFER).await).await;
    assert!(!answer.contains("video-orientation"), "{answer}");
    assert!(answer.contains("transport-wide-cc"), "{answer}");
}

#[tokio::test]
async fn stereo_is_asked_for_when_the_publisher_has_it() {
    let offer = OFFER.replace("useinbandfec=1", "useinbandfec=1;sprop-stereo=1");
    let stereo = text(endpoint().await.post("cam", offer).await).await;
    assert!(
        stereo.lines().any(|line| line.starts_with("a=fmtp:111") && line.contains("stereo=1")),
        "{stereo}"
    );
}

#[tokio::test]
async fn a_session_url_cannot_be_guessed() {
    let endpoint = endpoint().await;
    let (one, _) = created(&endpoint, "one").await;
    let (two, _) = created(&endpoint, "two").await;
    let id = one.rsplit('/').next().unwrap();
    assert!(id.len() >= 32 && one != two, "{one} {two}");
}

#[tokio::test]
async fn another_content_type_is_415() {
    let endpoint = endpoint().await;
    for content_type in ["text/plain", "application/json", ""] {
        let request = Request::post("/whip/cam").header("content-type", content_type);
        let response = endpoint.send(request.body(Body::from(OFFER)).unwrap()).await;
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
        assert_cors(&response);
    }
    let request = Request::post("/whip/cam").header("content-type", "Application/SDP; charset=utf-8");
    assert_eq!(endpoint.send(request.body(Body::from(OFFER)).unwrap()).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn malformed_sdp_is_400() {
    let endpoint = Endpoint::start(Config { requests_burst_max: 1000, ..config() }).await;
    let mut offers = vec![
        String::new(),
        "hello".into(),
        "v=0\r\n".into(),
        "{\"sdp\": 1}".into(),
        OFFER.replace("m=audio 9", "m=audio nine"),
        OFFER.replace("a=ice-ufrag:5wlI", "a=ice-ufrag:5"),
        OFFER.replace("o=-", "x"),
        format!("{OFFER}a={}\r\n", "x".repeat(5000)),
        format!("{OFFER}a=x\u{7}\r\n"),
    ];
    // Cut anywhere, it is refused or, where only the end of the last section is missing, answered; never worse.
    offers.extend((0..40).map(|part| OFFER[..OFFER.len() * part / 60].to_owned()));
    for offer in offers {
        let status = endpoint.post("cam", offer.clone()).await.status();
        assert!(matches!(status.as_u16(), 400 | 406 | 422), "{status} for {offer:?}");
    }
    let response = endpoint.post("cam", vec![0xff, 0xfe, 0x00]).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_cors(&response);
}

#[tokio::test]
async fn an_oversized_body_is_413() {
    let endpoint = endpoint().await;
    let response = endpoint.post("cam", format!("{OFFER}{}", "a=x\r\n".repeat(20_000))).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let announced = Request::post("/whip/cam")
        .header("content-type", "application/sdp")
        .header("content-length", "99999999")
        .body(Body::from("v=0"));
    assert_eq!(endpoint.send(announced.unwrap()).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn offers_that_a_publisher_may_not_make_are_422_as_a_whole() {
    let endpoint = endpoint().await;
    let video = &OFFER[OFFER.find("m=video").unwrap()..];
    let cases = [
        ("recvonly", OFFER.replace("a=sendonly", "a=recvonly")),
        ("inactive", OFFER.replacen("a=sendonly", "a=inactive", 1)),
        ("two videos", format!("{OFFER}{}", video.replace("a=mid:1", "a=mid:2"))),
        ("two streams", OFFER.replacen("a=msid:stream", "a=msid:other", 1)),
        ("no bundle", OFFER.replace("a=group:BUNDLE 0 1", "a=group:BUNDLE 0")),
        ("no rtcp-mux", OFFER.replace("a=rtcp-mux\r\n", "")),
        ("no fingerprint", OFFER.replace("a=fingerprint:", "a=finger:")),
        ("passive", OFFER.replace("a=setup:actpass", "a=setup:passive")),
        ("data channel", format!("{OFFER}m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:2\r\n")),
        ("no ice", OFFER.replace("a=ice-pwd:", "a=ice-word:")),
    ];
    for (what, offer) in cases {
        let response = endpoint.post("cam", offer).await;
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY, "{what}");
        assert!(!endpoint.recorder.is_busy("cam"), "{what}: nothing may remain");
    }
    for accepted in [
        OFFER.replace("a=sendonly", "a=sendrecv"),
        OFFER.replace("a=setup:actpass", "a=setup:active"),
        OFFER.replace("m=video 9", "m=video 0").replace("a=mid:1", "a=mid:1\r\na=bundle-only"),
    ] {
        let response = endpoint.post("cam", accepted).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        let session = header(&response, "location");
        let answer = text(response).await;
        assert!(!answer.contains("m=video 0 "), "{answer}");
        endpoint.call(Method::DELETE, &session).await;
    }
}

#[tokio::test]
async fn an_offer_without_usable_codec_is_406_and_says_what_is_taken() {
    let endpoint = endpoint().await;
    for (from, to) in [("opus/48000", "PCMU/48000"), ("H264/90000", "H265/90000")] {
        let mut offer = OFFER.replace(from, to);
        for codec in ["VP8/90000", "VP9/90000", "AV1/90000"] {
            offer = if from.starts_with("H264") { offer.replace(codec, "H265/90000") } else { offer };
        }
        let response = endpoint.post("cam", offer).await;
        assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE, "{to}");
        let words = text(response).await;
        assert!(words.contains("H264") && words.contains("opus"), "{words}");
    }
}

/// An offer of VP8 and nothing better.
fn vp8_offer() -> String {
    ["H264/90000", "VP9/90000", "AV1/90000"]
        .iter()
        .fold(OFFER.to_owned(), |offer, codec| offer.replace(codec, "H265/90000"))
}

#[tokio::test]
async fn vp8_is_taken_where_it_can_be_transcoded() {
    let endpoint = endpoint().await;
    let response = endpoint.post("cam", vp8_offer()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert!(text(response).await.contains("VP8/90000"));
    assert_eq!(endpoint.recorder.transcoders_taken(), 1);
    endpoint.post("other", OFFER).await;
    assert_eq!(endpoint.recorder.transcoders_taken(), 1, "H.264 needs none");
}

#[tokio::test]
async fn vp8_without_room_for_transcoding_is_503_and_says_what_to_send_instead() {
    let endpoint = endpoint().await;
    endpoint.recorder.refuse_transcoding();
    let response = endpoint.post("cam", vp8_offer()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&response, "retry-after").parse::<u32>().is_ok());
    let words = text(response).await;
    assert!(words.contains("VP8") && words.contains("H264"), "{words}");
    assert!(!endpoint.recorder.is_busy("cam"), "the name is free again");
    assert_eq!(endpoint.post("cam", OFFER).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_busy_stream_is_409_and_a_bad_name_404() {
    let endpoint = endpoint().await;
    created(&endpoint, "cam").await;
    assert_eq!(endpoint.post("cam", OFFER).await.status(), StatusCode::CONFLICT);
    assert_eq!(endpoint.post("c%20m", OFFER).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(endpoint.post(&"x".repeat(65), OFFER).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn overload_is_503_with_retry_after() {
    let endpoint = Endpoint::start(Config { sessions_max: 1, ..config() }).await;
    let (session, _) = created(&endpoint, "one").await;
    let response = endpoint.post("two", OFFER).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&response, "retry-after").parse::<u32>().is_ok());
    assert_cors(&response);
    endpoint.call(Method::DELETE, &session).await;
    let freed = tokio::time::timeout(PATIENCE, async {
        while endpoint.post("two", OFFER).await.status() != StatusCode::CREATED {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(freed.await.is_ok(), "the place isn't given back");
}

#[tokio::test]
async fn too_many_requests_are_429() {
    let endpoint = Endpoint::start(Config { requests_per_s_max: 1, requests_burst_max: 3, ..config() }).await;
    for _ in 0..3 {
        assert_eq!(endpoint.post("cam", "x").await.status(), StatusCode::BAD_REQUEST);
    }
    let response = endpoint.post("cam", "x").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response, "retry-after"), "1");
}

#[tokio::test]
async fn strangers_requests_lock_nobody_else_out() {
    let endpoint = Endpoint::start(Config { requests_per_s_max: 1, requests_burst_max: 3, ..config() }).await;
    let from = |method: Method, path: &str, last: u8, body: &'static str| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/sdp")
            .header("if-match", "*")
            .body(Body::from(body))
            .unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, last], 4000))));
        endpoint.send(request)
    };
    let response = from(Method::POST, "/whip/cam", 1, OFFER).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let session = header(&response, "location");
    while from(Method::POST, "/whip/cam", 1, "x").await.status() != StatusCode::TOO_MANY_REQUESTS {}
    assert_eq!(from(Method::POST, "/whip/other", 2, OFFER).await.status(), StatusCode::CREATED);
    // A session is its own: trickle and goodbye get through, whoever else has used up the address.
    let trickled = endpoint.patch(&session, Some("*"), TRICKLE).await;
    assert_eq!(trickled.status(), StatusCode::NO_CONTENT);
    let guess = "/whip/session/00112233445566778899aabbccddeeff";
    for method in [Method::PATCH, Method::DELETE] {
        assert_eq!(from(method, guess, 1, "").await.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(from(Method::DELETE, &session, 1, "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn one_sessions_patches_are_limited_too() {
    let endpoint = Endpoint::start(Config { requests_per_s_max: 1, requests_burst_max: 3, ..config() }).await;
    let (session, _) = created(&endpoint, "cam").await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(endpoint.patch(&session, Some("*"), TRICKLE).await.status());
    }
    assert_eq!(statuses[0], StatusCode::NO_CONTENT);
    assert!(statuses.contains(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
}

#[tokio::test]
async fn ice_servers_come_with_credentials_and_only_who_may_publish_is_told() {
    let server = IceServer {
        url: "turn:turn.example.org".into(),
        username: "user".into(),
        credential: "password".into(),
    };
    let endpoint = Endpoint::start(Config {
        ice_servers: vec![server],
        stream_keys: vec![Secret::new("cam:sesame")],
        ..config()
    })
    .await;
    for (token, is_told) in [(None, false), (Some("wrong"), false), (Some("sesame"), true)] {
        let mut request = Request::options("/whip/cam");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = endpoint.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK, "{token:?}");
        assert_eq!(header(&response, "accept-post"), "application/sdp");
        assert_eq!(response.headers().contains_key("link"), is_told, "{token:?}");
    }
}

#[tokio::test]
async fn options_tells_what_can_be_posted_and_allows_other_origins() {
    let server = IceServer {
        url: "turn:turn.example.org?transport=udp".into(),
        username: "user".into(),
        credential: "pass\"word".into(),
    };
    let endpoint = Endpoint::start(Config { ice_servers: vec![server], ..config() }).await;
    let response = endpoint.call(Method::OPTIONS, "/whip/cam").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "accept-post"), "application/sdp");
    assert_cors(&response);
    let link = header(&response, "link");
    assert_eq!(
        link,
        "<turn:turn.example.org?transport=udp>; rel=\"ice-server\"; username=\"user\"; \
         credential=\"pass\\\"word\"; credential-type=\"password\""
    );
    let preflight = Request::options("/whip/cam")
        .header("origin", "https://example.org")
        .header("access-control-request-method", "POST")
        .body(Body::empty());
    let response = endpoint.send(preflight.unwrap()).await;
    assert!(header(&response, "access-control-allow-methods").contains("POST"));
    let allowed = header(&response, "access-control-allow-headers");
    assert!(
        ["Authorization", "Content-Type", "If-Match"].iter().all(|name| allowed.contains(name)),
        "{allowed}"
    );
    assert!(response.headers().get("link").is_none(), "credentials in a preflight");
    let response = endpoint.post("cam", OFFER).await;
    assert_eq!(header(&response, "link"), link);
}

#[tokio::test]
async fn get_and_head_are_answered_with_success_and_nothing() {
    let endpoint = endpoint().await;
    let (session, _) = created(&endpoint, "cam").await;
    for path in ["/whip/cam", &session] {
        for method in [Method::GET, Method::HEAD] {
            let response = endpoint.call(method.clone(), path).await;
            assert!(response.status().is_success(), "{method} {path}");
            assert_cors(&response);
            assert_eq!(text(response).await, "");
        }
        let response = endpoint.call(Method::PUT, path).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert!(header(&response, "allow").contains("OPTIONS"));
    }
    assert_eq!(endpoint.call(Method::GET, "/whip/session/none").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn paths_that_are_nothing_are_404_with_cors() {
    let endpoint = endpoint().await;
    for path in ["/whip/cam/x", "/whip/session/none/stats", "/whip/session/none/other"] {
        let response = endpoint.call(Method::GET, path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert_cors(&response);
    }
}

#[tokio::test]
async fn a_server_that_receives_no_media_any_more_takes_no_publishers() {
    let endpoint = endpoint().await;
    endpoint.cancelled.cancel();
    endpoint.running.await.unwrap().unwrap();
    let request = Request::post("/whip/cam").header("content-type", "application/sdp").body(OFFER.into());
    let mut request: Request<Body> = request.unwrap();
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 4000))));
    let response = tower::ServiceExt::oneshot(endpoint.router, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(header(&response, "retry-after").parse::<u32>().is_ok());
    assert!(!endpoint.recorder.is_busy("cam"));
}

#[tokio::test]
async fn delete_ends_the_session_whatever_the_etag_and_once() {
    let endpoint = endpoint().await;
    let (session, _) = created(&endpoint, "cam").await;
    let request = Request::delete(&session).header("if-match", "\"nonsense\"").body(Body::empty());
    assert_eq!(endpoint.send(request.unwrap()).await.status(), StatusCode::OK);
    let response = endpoint.call(Method::DELETE, &session).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_cors(&response);
    assert!(!endpoint.recorder.is_busy("cam"));
}

#[tokio::test]
async fn deleting_a_session_that_never_came_about_does_not_end_its_stream() {
    let endpoint = endpoint().await;
    // An attempt to return whose media doesn't get through, given up: the stream still waits.
    let (session, _) = created(&endpoint, "cam").await;
    assert_eq!(endpoint.call(Method::DELETE, &session).await.status(), StatusCode::OK);
    assert!(!endpoint.recorder.is_busy("cam"), "the name is free");
    assert_eq!(endpoint.recorder.ended(), Vec::<String>::new());
    let live = Live::publish(&endpoint, "cam").await;
    assert_eq!(endpoint.call(Method::DELETE, &live.session).await.status(), StatusCode::OK);
    assert_eq!(endpoint.recorder.ended(), ["cam"], "but one that was live does");
}

#[tokio::test]
async fn trickled_candidates_are_204_without_etag_and_unusable_ones_are_ignored() {
    let endpoint = endpoint().await;
    let (session, etag) = created(&endpoint, "cam").await;
    for if_match in [etag.clone(), format!("\"other\", {etag}"), "*".into()] {
        let response = endpoint.patch(&session, Some(&if_match), TRICKLE).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{if_match}");
        assert!(response.headers().get("etag").is_none());
        assert_cors(&response);
        assert_eq!(text(response).await, "");
    }
}

#[tokio::test]
async fn patch_without_if_match_is_428_and_with_an_old_one_412() {
    let endpoint = endpoint().await;
    let (session, etag) = created(&endpoint, "cam").await;
    let missing = endpoint.patch(&session, None, TRICKLE).await;
    assert_eq!(missing.status(), StatusCode::PRECONDITION_REQUIRED);
    assert_cors(&missing);
    let stale = endpoint.patch(&session, Some("\"stale\""), TRICKLE).await;
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
    let weak = endpoint.patch(&session, Some(&format!("W/{etag}")), TRICKLE).await;
    assert_eq!(weak.status(), StatusCode::PRECONDITION_FAILED, "If-Match compares strongly");
}

#[tokio::test]
async fn malformed_fragments_are_400_and_other_types_415() {
    let endpoint = endpoint().await;
    let (session, etag) = created(&endpoint, "cam").await;
    for fragment in ["", "nonsense", "a=candidate:1 1 udp", "a=ice-ufrag:ysXw\r\n"] {
        let response = endpoint.patch(&session, Some(&etag), fragment).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{fragment:?}");
    }
    let request =
        Request::patch(&session).header("if-match", &etag).header("content-type", "application/sdp");
    let response = endpoint.send(request.body(Body::from(TRICKLE)).unwrap()).await;
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let response = endpoint.patch("/whip/session/none", Some("*"), TRICKLE).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let large = "a=x:y\r\n".repeat(20_000);
    assert_eq!(endpoint.patch(&session, Some("*"), &large).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_restart_is_200_with_a_new_etag_and_new_ice_parameters() {
    let endpoint = endpoint().await;
    let response = endpoint.post("cam", OFFER).await;
    let (session, etag) = (header(&response, "location"), header(&response, "etag"));
    let answer = text(response).await;
    let ufrag = |sdp: &str| sdp.lines().find(|line| line.starts_with("a=ice-ufrag:")).unwrap().to_owned();
    let response = endpoint.patch(&session, Some("*"), RESTART).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "content-type"), "application/trickle-ice-sdpfrag");
    let restarted = header(&response, "etag");
    assert_ne!(restarted, etag);
    let fragment = text(response).await;
    assert_ne!(ufrag(&fragment), ufrag(&answer));
    assert!(fragment.contains("a=ice-pwd:") && fragment.contains("a=candidate:"), "{fragment}");
    assert!(fragment.contains("a=group:BUNDLE 0 1") && fragment.contains("a=mid:0"), "{fragment}");
    let options = |sdp: &str| sdp.lines().find(|line| line.starts_with("a=ice-options")).map(str::to_owned);
    assert_eq!(options(&fragment), options(&answer), "ICE options must stay");
    // The old tag is over; the new one is good for the new session's candidates.
    let trickle = RESTART.to_owned() + "a=candidate:1 1 udp 2122260223 127.0.0.1 61764 typ host\r\n";
    assert_eq!(
        endpoint.patch(&session, Some(&etag), &trickle).await.status(),
        StatusCode::PRECONDITION_FAILED
    );
    assert_eq!(endpoint.patch(&session, Some(&restarted), &trickle).await.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn after_a_restart_media_goes_on_in_the_same_session() {
    let endpoint = endpoint().await;
    let live = Live::publish(&endpoint, "cam").await;
    until("pictures", || endpoint.recorder.frames(1).len() >= 10).await;
    let offer = live.publisher.lock().restart_offer(Instant::now());
    let find = |prefix: &str| offer.lines().find(|line| line.starts_with(prefix)).unwrap().to_owned();
    let fragment = format!("{}\r\n{}\r\n", find("a=ice-ufrag:"), find("a=ice-pwd:"));
    let response = endpoint.patch(&live.session, Some("*"), &fragment).await;
    assert_eq!(response.status(), StatusCode::OK);
    let fragment = text(response).await;
    live.publisher.lock().accept_restart(Instant::now(), &fragment);
    let before = endpoint.recorder.frames(1).len();
    until("pictures after the restart", || endpoint.recorder.frames(1).len() > before + 30).await;
    assert_eq!(endpoint.stats(&live.session).await["state"], "live");
}

#[tokio::test]
async fn a_refused_restart_leaves_the_session_as_it_was() {
    let endpoint = endpoint().await;
    let live = Live::publish(&endpoint, "cam").await;
    let bad = RESTART.replace("vw5LmwG4y/e6dPP/zAP9Gp5k", "short");
    assert_eq!(endpoint.patch(&live.session, Some("*"), &bad).await.status(), StatusCode::BAD_REQUEST);
    let before = endpoint.recorder.frames(1).len();
    until("pictures go on", || endpoint.recorder.frames(1).len() > before + 10).await;
    let trickle = "a=candidate:1 1 udp 2122260223 127.0.0.1 61764 typ host\r\n";
    let response = endpoint.patch(&live.session, Some(&live.etag), trickle).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT, "the tag is still good");
}

#[tokio::test]
async fn a_restart_with_the_old_password_is_422_and_the_session_stays_as_it_was() {
    let endpoint = endpoint().await;
    let live = Live::publish(&endpoint, "cam").await;
    let offer = live.publisher.lock().sent_offer();
    let pwd = offer.lines().find(|line| line.starts_with("a=ice-pwd:")).unwrap();
    let half = format!("a=ice-ufrag:ysXw\r\n{pwd}\r\n");
    let response = endpoint.patch(&live.session, Some("*"), &half).await;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_cors(&response);
    let before = endpoint.recorder.frames(1).len();
    until("pictures go on", || endpoint.recorder.frames(1).len() > before + 10).await;
    let trickle = "a=candidate:1 1 udp 2122260223 127.0.0.1 61764 typ host\r\n";
    let response = endpoint.patch(&live.session, Some(&live.etag), trickle).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT, "the tag is still good");
    // And a proper one is still possible.
    assert_eq!(endpoint.patch(&live.session, Some("*"), RESTART).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_wrong_or_missing_token_is_401_and_says_nothing_about_the_stream() {
    let endpoint = Endpoint::start(Config { stream_keys: vec![Secret::new("cam:sesame")], ..config() }).await;
    let post = |stream: &str, token: Option<&str>| {
        let mut request = Request::post(format!("/whip/{stream}")).header("content-type", "application/sdp");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        endpoint.send(request.body(Body::from(OFFER)).unwrap())
    };
    let mut bodies = Vec::new();
    for (stream, token) in [("cam", None), ("cam", Some("wrong")), ("unknown", Some("sesame"))] {
        let response = post(stream, token).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(header(&response, "www-authenticate"), "Bearer");
        assert_cors(&response);
        bodies.push(text(response).await);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{bodies:?}");
    assert_eq!(post("cam", Some("sesame")).await.status(), StatusCode::CREATED);
    // Preflights carry no token.
    assert_eq!(endpoint.call(Method::OPTIONS, "/whip/cam").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn without_rules_only_this_machine_may_publish_and_a_proxy_is_not_this_machine() {
    let endpoint = endpoint().await;
    let from = |address: SocketAddr, proxied: bool| {
        let mut request = Request::post("/whip/cam").header("content-type", "application/sdp");
        if proxied {
            request = request.header("x-forwarded-for", "127.0.0.1");
        }
        let mut request = request.body(Body::from(OFFER)).unwrap();
        request.extensions_mut().insert(ConnectInfo(address));
        endpoint.send(request)
    };
    let here = SocketAddr::from(([127, 0, 0, 1], 4000));
    let refused = from(([192, 0, 2, 1], 4000).into(), false).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let words = text(refused).await;
    assert!(words.contains("ingest.stream_keys") && words.contains("ingest.auth_open_to"), "{words}");
    assert_eq!(from(here, true).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(from(here, false).await.status(), StatusCode::CREATED);
    let open = Endpoint::start(Config { auth_open_to: OpenTo::Everybody, ..config() }).await;
    let mut request =
        Request::post("/whip/cam").header("content-type", "application/sdp").body(OFFER.into()).unwrap();
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4000))));
    assert_eq!(open.send(request).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn simulcast_layers_are_answered() {
    let offer = OFFER.replace(
        "a=mid:1\r\n",
        "a=mid:1\r\na=rid:h send\r\na=rid:m send\r\na=rid:l send\r\na=simulcast:send h;m;l\r\n",
    );
    let endpoint = endpoint().await;
    let response = endpoint.post("cam", offer).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let answer = text(response).await;
    assert!(answer.contains("a=simulcast:recv h;m;l"), "{answer}");
    assert!(["h", "m", "l"].iter().all(|rid| answer.contains(&format!("a=rid:{rid} recv"))), "{answer}");
    assert_eq!(endpoint.recorder.expected().len(), 4);
}
