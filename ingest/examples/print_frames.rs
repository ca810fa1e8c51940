//! A WHIP endpoint without a segmenter: prints what publishers send, once a second. `GET /publish` is a page
//! that publishes a browser's camera. Run it with `cargo run -p shoal-ingest --example print_frames`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_ingest::sink::{PublishError, Sink, Streams};
use shoal_ingest::{Config, Ingest};
use shoal_segmenter::KeyframeRequest;
use shoal_segmenter::frame::{Input, TrackFormat, TrackId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const PAGE: &str = r#"<!doctype html><video id=v autoplay muted></video><script>
(async () => {
  const stream = await navigator.mediaDevices.getUserMedia({video: {width: 1280, height: 720}, audio: true});
  v.srcObject = stream;
  const pc = new RTCPeerConnection(); window.pc = pc;
  for (const track of stream.getTracks()) pc.addTransceiver(track, {direction: 'sendonly', streams: [stream]});
  await pc.setLocalDescription();
  const name = location.hash.slice(1) || 'example';
  const response = await fetch('/whip/' + name, {method: 'POST', body: pc.localDescription.sdp,
    headers: {'Content-Type': 'application/sdp'}});
  window.session = response.headers.get('Location');
  await pc.setRemoteDescription({type: 'answer', sdp: await response.text()});
})();
</script>"#;

struct Printer;

impl Streams for Printer {
    fn publish(&self, name: &str) -> Result<Box<dyn Sink>, PublishError> {
        let (sender, wishes) = mpsc::channel(1);
        tokio::spawn(async move {
            while sender.send(KeyframeRequest { track: TrackId(1) }).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        Ok(Box::new(Printed {
            name: name.to_owned(),
            wishes,
            line: String::new(),
            frames: [0; 8],
            printed: Instant::now(),
        }))
    }
}

struct Printed {
    name: String,
    wishes: mpsc::Receiver<KeyframeRequest>,
    line: String,
    frames: [u32; 8],
    printed: Instant,
}

impl Sink for Printed {
    fn expect_tracks(&mut self, _: &[TrackId]) {}

    fn push(&mut self, input: Input) -> bool {
        match input {
            Input::Format { track, format } => {
                let format = match format {
                    TrackFormat::Video { codec, width, height, config } => {
                        format!("{codec:?} {width}x{height}, {} bytes of configuration", config.len())
                    }
                    other => format!("{other:?}"),
                };
                println!("{} track {}: {format}", self.name, track.0);
            }
            Input::Frame(frame) => {
                self.frames[usize::from(frame.track.0.min(7))] += 1;
                if frame.is_keyframe && frame.track.0 != 0 {
                    self.line += &format!(" key@{:.3}", frame.pts.0 as f64 / 1e6);
                }
                if self.printed.elapsed() >= Duration::from_secs(1) {
                    let line = std::mem::take(&mut self.line);
                    println!("{} {:.3} frames {:?}{line}", self.name, frame.pts.0 as f64 / 1e6, self.frames);
                    (self.frames, self.printed) = ([0; 8], Instant::now());
                }
            }
            Input::Discontinuity => println!("{} discontinuity", self.name),
        }
        true
    }

    fn keyframe_requests(&mut self) -> mpsc::Receiver<KeyframeRequest> {
        std::mem::replace(&mut self.wishes, mpsc::channel(1).1)
    }

    fn reserve_transcoders(&mut self, _: usize) -> bool {
        true
    }

    fn problem(&self) -> Option<&'static str> {
        None
    }

    fn end(self: Box<Self>) {
        println!("{} ended", self.name);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config { media_address: SocketAddr::from(([0, 0, 0, 0], 0)), ..Config::default() };
    let ingest = Ingest::bind(config, Arc::new(Printer)).await?;
    let page = axum::routing::get(|| async { axum::response::Html(PAGE) });
    let app = ingest.router().route("/publish", page);
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 8081))).await?;
    println!("http://127.0.0.1:8081/publish, media on {}", ingest.media_address());
    let cancelled = CancellationToken::new();
    let running = tokio::spawn(ingest.run(cancelled.clone()));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or(()) })
        .await?;
    cancelled.cancel();
    running.await??;
    Ok(())
}
