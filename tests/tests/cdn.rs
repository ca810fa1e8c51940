//! Debian's Varnish and nginx with our configurations in front of a real server: a crowd costs the origin one request
//! for each playlist revision and each part. Latency is the bench's business.

use std::net::SocketAddr;

use shoal::serve::Server;
use shoal::settings::Settings;
use shoal_tests::origin::client::{Connection, metric};
use shoal_tests::origin::crowd::{Crowd, Wants};
use shoal_tests::origin::front;
use shoal_tests::origin::source::Source;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

const VIEWERS: usize = 200;
const RELEASES: u64 = 6;

async fn requests(origin: SocketAddr, class: &str) -> f64 {
    let label = format!("class=\"{class}\"");
    metric(origin, "origin_requests_total", &label).await.expect("the server has metrics")
}

/// What browsers and players send.
const ACCEPTED: [&str; 5] =
    ["gzip, deflate, br, zstd", "gzip, deflate, br", "gzip, deflate", "gzip", "gzip;q=1.0, *;q=0.5"];

/// The body for a client that takes nothing compressed and in pieces: HTTP/1.0, because a cache that uncompresses what it
/// has does not know the length.
async fn get_plain(front: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(front).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.0\r\nhost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers with text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.lines().next().is_some_and(|status| status.contains(" 200 ")), "{path}: {head}");
    body.to_owned()
}

/// Asks a CDN for a playlist as different browsers do; gives the requests that reached the origin.
async fn ask_as_browsers(origin: SocketAddr, front: SocketAddr, path: &str) -> f64 {
    let before = requests(origin, "playlist").await;
    let plain = get_plain(front, path).await;
    assert!(plain.starts_with("#EXTM3U"), "{path}: {plain}");
    let mut connection = Connection::open(front, 16 << 10).await.expect("it listens");
    for accepted in ACCEPTED {
        let answer = connection.get_coded(path, accepted).await.expect("it answers");
        let is_smaller = answer.bytes < plain.len() as u64;
        assert!(answer.status == 200 && is_smaller, "{accepted}: {answer:?} for {path}");
    }
    requests(origin, "playlist").await - before
}

/// Plays a recording as two viewers would; gives the bytes that the origin sent for what was played, and for two
/// downloads as one file.
async fn play_recording(origin: SocketAddr, front: SocketAddr, url: &str) -> [(f64, u64); 2] {
    let sent =
        async || metric(origin, "origin_vod_sent_bytes_total", "").await.expect("the server has metrics");
    let folder = url.strip_suffix("index.m3u8").expect("a multivariant playlist");
    let mut connection = Connection::open(front, 16 << 10).await.expect("it listens");
    let text = get_plain(front, &format!("{folder}v0/playlist.m3u8")).await;
    let before = sent().await;
    let mut media = 0;
    for _ in 0..2 {
        media = 0;
        for file in text.lines().filter(|line| line.ends_with(".m4s")) {
            let answer = connection.get(&format!("{folder}v0/{file}")).await.expect("it answers");
            assert_eq!(answer.status, 200, "{file}");
            media += answer.bytes;
        }
    }
    let (played, mut file) = (sent().await - before, 0);
    for _ in 0..2 {
        let answer = connection.get(&format!("{folder}recording.mp4")).await.expect("it answers");
        assert_eq!(answer.status, 200);
        file = answer.bytes;
    }
    [(played, media), (sent().await - before - played, file)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowd_behind_a_cdn_costs_the_origin_one_request_for_each_object() {
    let mut settings = Settings::default();
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.ingest.media_address = ([127, 0, 0, 1], 0).into();
    let storage = tempfile::tempdir().expect("a directory can be made");
    settings.segmenter.recording = true;
    settings.segmenter.storage = storage.path().display().to_string();
    settings.segmenter.storage_free_bytes_min = 0;
    let server = Server::start(&settings).await.expect("the ports are free");
    // Over before anybody comes.
    let past = watch::Sender::new(None);
    let publishing = {
        let past = past.clone();
        Source::start(server.streams(), "past", 48_000, move |part| {
            past.send_replace(Some(part));
        })
    };
    past.subscribe().wait_for(|part| part.as_ref().is_some_and(|part| part.msn > 3)).await.expect("it lives");
    tokio::task::spawn_blocking(move || drop(publishing)).await.expect("it ends");
    let news = watch::Sender::new(None);
    let publishing = {
        let news = news.clone();
        Source::start(server.streams(), "show", 48_000, move |part| {
            news.send_replace(Some(part));
        })
    };
    let origin = server.address();
    news.subscribe().wait_for(Option::is_some).await.expect("the source lives");

    // The control: without a CDN each viewer costs a request of each kind.
    let (playlists, parts) = (requests(origin, "playlist").await, requests(origin, "part").await);
    let crowd = Crowd { address: origin, viewers: 3, wants: Wants::Both, releases: RELEASES };
    let outcome = crowd.run(news.subscribe(), 4, || {}).await.expect("it listens");
    assert_eq!(outcome.errors, 0);
    assert_eq!(requests(origin, "playlist").await - playlists, (3 * RELEASES) as f64);
    assert_eq!(requests(origin, "part").await - parts, (3 * RELEASES) as f64);

    for (name, front) in [("varnish", front::varnish(origin)), ("nginx", front::nginx(origin))] {
        let front = front.expect("Debian's servers are there");
        let (playlists, parts) = (requests(origin, "playlist").await, requests(origin, "part").await);
        let crowd =
            Crowd { address: front.address, viewers: VIEWERS, wants: Wants::Both, releases: RELEASES };
        let outcome = crowd.run(news.subscribe(), 4, || {}).await.expect("it listens");
        assert_eq!(outcome.errors, 0, "{name}");
        let answered: usize = outcome.done_us.values().map(Vec::len).sum();
        assert_eq!(answered, VIEWERS * RELEASES as usize, "{name}");
        let asked = requests(origin, "playlist").await - playlists;
        assert_eq!(asked, outcome.playlists.len() as f64, "playlists through {name}");
        let asked = requests(origin, "part").await - parts;
        assert_eq!(asked, outcome.parts.len() as f64, "parts through {name}");

        // Browsers differ in what they accept; a cache must not keep a variant for each. Varnish makes the plain text
        // of the compressed one.
        let newest = news.borrow().clone().expect("there is one");
        let epoch = newest.uri.split('/').next().unwrap_or_default().to_owned();
        let path = format!("/live/show/{epoch}/v0/playlist.m3u8?_HLS_msn={}", newest.msn - 1);
        let asked = ask_as_browsers(origin, front.address, &path).await;
        assert_eq!(asked, if name == "nginx" { 2.0 } else { 1.0 }, "variants through {name}");

        let recordings = server.streams().recordings();
        let url = recordings.iter().find_map(|recording| recording.url.clone()).expect("one is closed");
        let [(played, media), (downloaded, file)] = play_recording(origin, front.address, &url).await;
        assert!(media > 0 && played == media as f64, "{name}: {media} bytes cost {played}");
        assert_eq!(downloaded, 2.0 * file as f64, "{name}: the file goes through");

        // What is not live media goes through as it is.
        let mut connection = Connection::open(front.address, 16 << 10).await.expect("it listens");
        let (status, streams) = connection.get_text("/api/streams").await.expect("it answers");
        assert!(status == 200 && streams.contains("\"show\""), "{name}: {streams}");
        let (status, _) = connection.get_text("/live/nobody/index.m3u8").await.expect("it answers");
        assert_eq!(status, 404, "{name}");
    }
    tokio::task::spawn_blocking(move || drop(publishing)).await.expect("it ends");
    server.stop().await;
}
