//! An upstream that does what a test tells it: files on a real socket, ranges, failures, redirects, secrets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, Uri, header};
use bytes::Bytes;
use parking_lot::Mutex;

/// What a path answers.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) body: Bytes,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// So many answers are 500 first.
    pub(crate) failures: u32,
    /// Only who brings this `Authorization` is answered.
    pub(crate) secret: Option<&'static str>,
    /// Whether `Range` is understood.
    pub(crate) with_ranges: bool,
}

impl File {
    pub(crate) fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), status: 200, headers: vec![], failures: 0, secret: None, with_ranges: true }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self { status: 302, headers: vec![("location", to.to_owned())], ..Self::new("") }
    }

    pub(crate) fn failing(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    pub(crate) fn secret(self, secret: &'static str) -> Self {
        Self { secret: Some(secret), ..self }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
struct Inner {
    files: HashMap<String, File>,
    asked: Vec<Asked>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, inner }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn put(&self, path: &str, file: File) {
        self.inner.lock().files.insert(path.to_owned(), file);
    }

    pub(crate) fn put_text(&self, path: &str, text: impl Into<String>) {
        self.put(path, File::new(text.into()));
    }

    pub(crate) fn remove(&self, path: &str) {
        self.inner.lock().files.remove(path);
    }

    /// Serves all files of a folder below `prefix`.
    pub(crate) fn put_folder(&self, prefix: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            self.put(&path, File::new(std::fs::read(entry.path()).unwrap()));
        }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner.lock().asked.clone()
    }

    pub(crate) fn asked_for(&self, path: &str) -> usize {
        self.inner.lock().asked.iter().filter(|asked| asked.path == path).count()
    }
}

async fn answer(State(inner): State<Arc<Mutex<Inner>>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let mut inner = inner.lock();
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    inner.asked.push(Asked { path: uri.path().to_owned(), authorization: authorization.clone() });
    let status = |status: u16| Response::builder().status(status).body(Body::empty()).unwrap();
    let Some(file) = inner.files.get_mut(uri.path()) else { return status(404) };
    if file.secret.is_some() && file.secret != authorization.as_deref() {
        return status(403);
    }
    if file.failures > 0 {
        file.failures -= 1;
        return status(500);
    }
    let mut response = Response::builder().status(file.status);
    for (name, value) in &file.headers {
        response = response.header(*name, value);
    }
    let range = headers.get(header::RANGE).filter(|_| file.with_ranges).map(|value| {
        let (first, last) = value.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let end = last.parse::<usize>().map_or(file.body.len(), |last| last + 1);
        first.parse::<usize>().unwrap()..end
    });
    match range {
        Some(range) if range.end <= file.body.len() => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(
                header::CONTENT_RANGE,
                format!("bytes {}-{}/{}", range.start, range.end - 1, file.body.len()),
            )
            .body(file.body.slice(range).into())
            .unwrap(),
        Some(_) => status(416),
        None => response.body(file.body.clone().into()).unwrap(),
    }
}

/// Lets ffmpeg make a stream of `seconds` seconds: 30 pictures per second with B-frames, and a tone.
pub(crate) fn encode(folder: &Path, seconds: u32, size: &str, arguments: &[&str]) {
    let picture = format!("testsrc=size={size}:rate=30");
    let seconds = seconds.to_string();
    let output = Command::new("ffmpeg")
        .current_dir(folder)
        .args([
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            &picture,
            "-f",
            "lavfi",
            "-i",
            "sine=frequency=1000:sample_rate=48000",
        ])
        .args([
            "-t",
            &seconds,
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-bf",
            "2",
            "-g",
            "30",
            "-keyint_min",
            "30",
        ])
        .args([
            "-sc_threshold",
            "0",
            "-pix_fmt",
            "yuv420p",
            "-c:a",
            "aac",
            "-ac",
            "2",
            "-f",
            "hls",
            "-hls_time",
            "1",
        ])
        .args(["-hls_playlist_type", "vod"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("ffmpeg is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
