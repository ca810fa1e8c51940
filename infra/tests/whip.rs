//! RFC 9725 against `shoal serve` itself: its own HTTP server, with all that stands before the endpoint. The whole list
//! is in `ingest/tests/whip.rs`; here is what a layer in between could spoil.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use support::Serving;

const OFFER: &str = include_str!("../../ingest/tests/support/chromium-offer.sdp");
const SDP: &str = "content-type: application/sdp\r\n";
const SDPFRAG: &str = "content-type: application/trickle-ice-sdpfrag\r\n";
const KEY: &str = "authorization: Bearer sesame\r\n";
const CANDIDATE: &str = "a=candidate:1 1 udp 2122260223 127.0.0.1 61764 typ host\r\n";
const RESTART: &str = "a=ice-ufrag:ysXw\r\na=ice-pwd:vw5LmwG4y/e6dPP/zAP9Gp5k\r\n";

/// `shoal serve` with a stream key.
struct Program(Serving);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Program {
    fn start() -> Self {
        Self(Serving::start(support::shoal().env("SHOAL_INGEST_STREAM_KEYS", "cam:sesame")))
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.0.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let answer = Answer { status, head: head.to_owned(), body: body.to_owned() };
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{method} {path}: {head}");
        answer
    }
}

#[test]
fn whip_over_the_programs_own_server_is_what_the_rfc_wants() {
    let program = Program::start();
    let options = program.ask("OPTIONS", "/whip/cam", "", "");
    assert_eq!((options.status, options.header("accept-post")), (200, Some("application/sdp")));
    let preflight = "origin: https://example.org\r\naccess-control-request-method: PATCH\r\n";
    let preflight = program.ask("OPTIONS", "/whip/session/x", preflight, "");
    assert!(
        preflight.header("access-control-allow-methods").is_some_and(|methods| methods.contains("PATCH"))
    );

    for (headers, body, status) in [
        (SDP.to_owned(), OFFER, 401),
        (format!("{SDP}authorization: Bearer wrong\r\n"), OFFER, 401),
        (format!("content-type: text/plain\r\n{KEY}"), OFFER, 415),
        (format!("{SDP}{KEY}"), "nonsense", 400),
        (format!("{SDP}{KEY}"), &OFFER.replace("a=sendonly", "a=recvonly"), 422),
        (format!("{SDP}{KEY}"), &"x".repeat(70_000), 413),
    ] {
        let answer = program.ask("POST", "/whip/cam", &headers, body);
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    assert_eq!(program.ask("POST", "/whip/other", &format!("{SDP}{KEY}"), OFFER).status, 401);
    let created = program.ask("POST", "/whip/cam", &format!("{SDP}{KEY}"), OFFER);
    assert_eq!(created.status, 201, "{}", created.body);
    assert_eq!(created.header("content-type"), Some("application/sdp"));
    let exposed = created.header("access-control-expose-headers").unwrap_or_default();
    assert!(exposed.contains("Location") && exposed.contains("ETag"), "{exposed}");
    assert!(created.body.contains("a=recvonly") && created.body.contains(" typ host"), "{}", created.body);
    let session = created.header("location").expect("a location").to_owned();
    let etag = created.header("etag").expect("a tag").to_owned();
    assert_eq!(program.ask("POST", "/whip/cam", &format!("{SDP}{KEY}"), OFFER).status, 409);

    let matching = |tag: &str| format!("{SDPFRAG}if-match: {tag}\r\n");
    let trickled = program.ask("PATCH", &session, &matching(&etag), CANDIDATE);
    assert_eq!((trickled.status, trickled.header("etag")), (204, None));
    assert_eq!(program.ask("PATCH", &session, SDPFRAG, CANDIDATE).status, 428);
    assert_eq!(program.ask("PATCH", &session, &matching("\"other\""), CANDIDATE).status, 412);
    let restarted = program.ask("PATCH", &session, &matching("*"), RESTART);
    assert_eq!(restarted.status, 200, "{}", restarted.body);
    assert!(restarted.header("etag").is_some_and(|tag| tag != etag));

    let stats = program.ask("GET", &format!("{session}/stats"), "", "");
    assert!(stats.status == 200 && stats.body.contains("\"connecting\""), "{}", stats.body);
    assert_eq!(program.ask("GET", &session, "", "").status, 204);
    assert_eq!(program.ask("PUT", &session, "", "").status, 405);
    assert_eq!(program.ask("DELETE", &session, "", "").status, 200);
    assert_eq!(program.ask("DELETE", &session, "", "").status, 404);
    assert_eq!(
        program.ask("POST", "/whip/cam", &format!("{SDP}{KEY}"), OFFER).status,
        201,
        "the name is free"
    );
}
