//! Media over TCP on the port number of the UDP port.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use support::live::{Endpoint, PATIENCE, config, text, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_publisher_without_udp_publishes_over_tcp() {
    let endpoint = Endpoint::start(config()).await;
    let stream = TcpStream::connect(endpoint.media_address).await.unwrap();
    let mut publisher = support::Publisher::over_tcp(Instant::now(), stream.local_addr().unwrap());
    let response = endpoint.post("cam", publisher.offer(Instant::now())).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let answer = text(response).await;
    // Without UDP candidates there is only one way.
    let lines = answer.lines().filter(|line| !line.contains(" udp "));
    publisher.accept(Instant::now(), lines.flat_map(|line| [line, "\r\n"]).collect());
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut frames) = tokio::sync::mpsc::channel::<Vec<u8>>(64);
    let reading = tokio::spawn(async move {
        loop {
            let length = reader.read_u16().await.unwrap();
            let mut frame = vec![0; length.into()];
            reader.read_exact(&mut frame).await.unwrap();
            sender.send(frame).await.unwrap();
        }
    });
    let publishing = async {
        loop {
            while let Some((_, bytes)) = publisher.poll_transmit() {
                writer.write_u16(bytes.len() as u16).await.unwrap();
                writer.write_all(&bytes).await.unwrap();
            }
            tokio::select! {
                frame = frames.recv() => {
                    let (now, from) = (Instant::now(), endpoint.media_address);
                    publisher.handle_datagram(now, from, &frame.unwrap());
                }
                () = tokio::time::sleep(Duration::from_millis(10)) => {
                    publisher.handle_timeout(Instant::now());
                    if publisher.is_connected { publisher.send_picture(Instant::now()) }
                }
            }
        }
    };
    tokio::select! {
        () = publishing => {}
        () = until("pictures over TCP", || endpoint.recorder.frames(1).len() >= 20) => {}
    }
    reading.abort();
}

/// In virtual time, which passes whenever nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_silent_or_slow_is_closed_within_five_seconds() {
    let endpoint = Endpoint::start(config()).await;
    for beginning in [&[][..], &[0], &[0, 20, 0]] {
        let mut stream = TcpStream::connect(endpoint.media_address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(5), "{beginning:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_connection_that_proves_nothing_is_closed() {
    let endpoint = Endpoint::start(config()).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 4, 1, 2, 3, 4], &[0xff, 0xff, 0]] {
        let mut stream = TcpStream::connect(endpoint.media_address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest));
        // Closed, or reset because there was more to read: both will do.
        let _ = closed.await.expect("it stays open");
        assert!(rest.is_empty());
    }
}
