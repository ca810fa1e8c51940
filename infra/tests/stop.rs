//! The program's end under viewers: they hear of it, and nobody delays it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Serving, shoal};

/// A WebSocket of which everything is kept that came.
struct Socket {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Socket {
    fn open(serving: &Serving, path: &str) -> Self {
        let mut stream = serving.connect();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        .unwrap();
        let mut socket = Self { stream, seen: Vec::new() };
        socket.until(b"\r\n\r\n");
        assert!(socket.seen.starts_with(b"HTTP/1.1 101"));
        socket
    }

    /// Sends text of some length in one frame, masked with zeros.
    fn say(&mut self, text: &str) {
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        self.stream.write_all(&frame).unwrap();
    }

    fn until(&mut self, wanted: &[u8]) {
        let mut buffer = [0; 4_096];
        while !self.has(wanted) {
            let length = self.stream.read(&mut buffer).expect("something comes in time");
            assert!(length > 0, "it ended without {:?}", String::from_utf8_lossy(wanted));
            self.seen.extend_from_slice(&buffer[..length]);
        }
    }

    fn has(&self, wanted: &[u8]) -> bool {
        self.seen.windows(wanted.len()).any(|window| window == wanted)
    }
}

/// Close frame with code 1001.
const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

#[test]
fn viewers_are_told_to_come_back_and_the_program_ends_in_time() {
    let mut command = shoal();
    // Whoever had to be waited for would be waited for that long.
    command.env("SHOAL_TRACKER_WRITE_STALL_MAX_MS", "60000").env("SHOAL_TRACKER_JOIN_WITHIN_MS", "60000");
    command.env("SHOAL_TRACKER_DRAIN_MS", "300").env("SHOAL_TRACKER_RECONNECT_WITHIN_MS", "7000");
    let mut serving = Serving::start(&mut command);
    let _publisher = serving.publish("demo", &[]);
    let mut viewers: Vec<Socket> = (0..3).map(|_| Socket::open(&serving, "/tracker")).collect();
    for viewer in &mut viewers {
        viewer.say(r#"{"type":"join","version":1,"stream":"demo","shares":true,"renditions":[0],"comment":"some words, so that the frame has its longer form"}"#);
        viewer.until(br#""type":"welcome""#);
    }
    let mut mute = Socket::open(&serving, "/tracker");
    let mut announcing = Socket::open(&serving, "/announce");
    let id = "0".repeat(20);
    announcing.say(&format!(r#"{{"action":"announce","info_hash":"{id}","peer_id":"{id}","numwant":0,"offers":[],"uploaded":0,"downloaded":0}}"#));
    announcing.until(b"interval");
    let asked = Instant::now();
    serving.process.signal("TERM");
    for viewer in &mut viewers {
        viewer.until(br#"{"type":"drain","reconnect_within_ms":7000}"#);
        viewer.until(&GOING_AWAY);
    }
    announcing.until(&GOING_AWAY);
    mute.until(&GOING_AWAY);
    assert_eq!(serving.process.0.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}
