//! Debian's Varnish and nginx with our configurations in front of a real server: a crowd costs the origin one request
//! for each playlist revision and each part. Latency is the bench's business.

use std::net::SocketAddr;

use shoal::serve::Server;
use shoal::settings::Settings;
use shoal_tests::origin::client::{Connection, metric};
use shoal_tests::origin::crowd::{Crowd, Wants};
use shoal_tests::origin::front;
use shoal_tests::origin::source::Source;
use tokio::sync::watch;

const VIEWERS: usize = 200;
const RELEASES: u64 = 6;

async fn requests(origin: SocketAddr, class: &str) -> f64 {
    let label = format!("class=\"{class}\"");
    metric(origin, "origin_requests_total", &label).await.expect("the server has metrics")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowd_behind_a_cdn_costs_the_origin_one_request_for_each_object() {
    let mut settings = Settings::default();
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.ingest.media_address = ([127, 0, 0, 1], 0).into();
    let server = Server::start(&settings).await.expect("the ports are free");
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
