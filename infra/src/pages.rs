//! The pages, embedded at build time, with the headers that keep them safe.
//!
//! What the pages do is in `player/web`. Nothing here knows of streams: `/watch/{stream}` is the same file for
//! every name, as is that of recordings, and its script asks the origin.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use shoal_segmenter::origin::{accepts_coding, has_copy};

/// `(path below /, contents)` of `player/web/dist`, made by the build script.
static EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// Content codings, the smallest first, each with the ending of the files that the pages' build compressed with it. Browsers take
/// Brotli over https and from the machine itself.
const CODINGS: [(&str, &str); 2] = [("br", ".br"), ("gzip", ".gz")];

/// Served when the program was built before the pages.
const NOT_BUILT: &str = "<!doctype html><meta charset=utf-8><title>Shoal</title><h1>The pages are not built</h1>\
    <p>This program was built without its pages. Run <code>cargo xtask web</code>, then build it again. \
    WHIP, playlists, media and the tracker work without them.</p>";

/// Fetching and sockets only to this server, scripts only from files, WebAssembly allowed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
    img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; font-src 'self'; manifest-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'self'; connect-src 'self'";

/// One file, ready to be sent.
struct File {
    content_type: &'static str,
    /// As it is, and then compressed, in the order of [`CODINGS`].
    variants: Vec<Variant>,
}

/// What is sent of a file to a client that takes this content coding.
struct Variant {
    coding: Option<&'static str>,
    etag: String,
    contents: &'static [u8],
}

struct Pages {
    files: HashMap<&'static str, File>,
    /// More sources that pages may connect to: a tracker on another host.
    connect: Vec<String>,
}

/// The routes of the pages. `connect` lists further origins that scripts may connect to.
pub(crate) fn router(connect: Vec<String>) -> Router {
    let embedded: HashMap<_, _> = EMBEDDED.iter().copied().collect();
    let is_variant = |path: &str| CODINGS.iter().any(|(_, ending)| path.ends_with(ending));
    let files = embedded
        .iter()
        .filter(|(path, _)| !is_variant(path))
        .map(|(path, contents)| (*path, File::new(path, contents, &embedded)))
        .collect();
    let page = |path| {
        get(move |State(pages): State<Arc<Pages>>, headers: HeaderMap| {
            let response = pages.page(path, &headers);
            std::future::ready(response)
        })
    };
    let asset = |State(pages): State<Arc<Pages>>, uri: Uri, headers: HeaderMap| {
        let response = pages.asset(uri.path(), &headers);
        std::future::ready(response)
    };
    Router::new()
        .route("/", page("/index.html"))
        .route("/publish", page("/publish.html"))
        .route("/watch/{stream}", page("/watch.html"))
        .route("/recording/{stream}/{epoch}", page("/recording.html"))
        .route("/assets/{*path}", get(asset))
        .with_state(Arc::new(Pages { files, connect }))
}

impl File {
    fn new(path: &str, contents: &'static [u8], embedded: &HashMap<&str, &'static [u8]>) -> Self {
        let hash = fnv1a(contents);
        let plain = Variant { coding: None, etag: format!("\"{hash:016x}\""), contents };
        let compressed = CODINGS.iter().filter_map(|(coding, ending)| {
            let contents = embedded.get(format!("{path}{ending}").as_str())?;
            // Other bytes have another strong tag (RFC 9110, section 8.8.3.3).
            Some(Variant { coding: Some(coding), etag: format!("\"{hash:016x}{ending}\""), contents })
        });
        let content_type = content_type(path);
        Self { content_type, variants: std::iter::once(plain).chain(compressed).collect() }
    }

    fn answer(&self, request: &HeaderMap, caching: &'static str) -> Response {
        let is_taken =
            |variant: &&Variant| variant.coding.is_some_and(|coding| accepts_coding(request, coding));
        let variant = self.variants.iter().find(is_taken).unwrap_or(&self.variants[0]);
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
        headers.insert(header::ETAG, HeaderValue::from_str(&variant.etag).expect("ASCII in quotes"));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if has_copy(request, &variant.etag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        if let Some(coding) = variant.coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        *response.body_mut() = Body::from(Bytes::from_static(variant.contents));
        response
    }
}

impl Pages {
    fn page(&self, path: &str, request: &HeaderMap) -> Response {
        let response = match self.files.get(path) {
            Some(file) => file.answer(request, "no-cache"),
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "text/html; charset=utf-8", NOT_BUILT),
        };
        self.secured(response, request)
    }

    fn asset(&self, path: &str, request: &HeaderMap) -> Response {
        let Some(file) = self.files.get(path) else {
            return plain(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "no such file\n");
        };
        // Names without a hash of the contents must be asked for again; with the ETag that costs no bytes.
        let caching = if has_hash(path) { "public, max-age=31536000, immutable" } else { "no-cache" };
        let mut response = self.secured(file.answer(request, caching), request);
        // The player's files are made to be used from other sites' pages.
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        response
    }

    fn secured(&self, mut response: Response, request: &HeaderMap) -> Response {
        let mut policy = CONTENT_SECURITY_POLICY.to_owned();
        // Not every browser counts a WebSocket to the same host as 'self', so it is named.
        let host = request.get(header::HOST).and_then(|host| host.to_str().ok()).filter(|host| is_host(host));
        if let Some(host) = host {
            policy.push_str(&format!(" ws://{host} wss://{host}"));
        }
        for source in &self.connect {
            policy.push(' ');
            policy.push_str(source);
        }
        let headers = response.headers_mut();
        if let Ok(policy) = HeaderValue::from_str(&policy) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(
            HeaderName::from_static("permissions-policy"),
            HeaderValue::from_static("camera=(self), microphone=(self), display-capture=(self)"),
        );
        headers.insert(
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        );
        response
    }
}

/// What the policy has to allow besides this server: a tracker elsewhere.
pub(crate) fn connect_sources(tracker_url: &str) -> Vec<String> {
    let Some((scheme @ ("ws" | "wss"), rest)) = tracker_url.split_once("://") else { return Vec::new() };
    let host = rest.split('/').next().unwrap_or_default();
    if is_host(host) { vec![format!("{scheme}://{host}")] } else { Vec::new() }
}

/// Where a request for an unknown path ends.
pub(crate) fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "nothing is here\n")
}

fn plain(status: StatusCode, content_type: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether a Host header is one that may be copied into a policy: anything else could add directives.
fn is_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
}

/// Whether a bundler put a hash of the contents into the name: `app-3F9A0C1B.js`.
fn has_hash(path: &str) -> bool {
    let stem = path.rsplit('/').next().unwrap_or(path).split('.').next().unwrap_or("");
    stem.rsplit_once('-').is_some_and(|(_, hash)| {
        hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    })
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or("") {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// Tells contents apart for ETags; nothing depends on it being hard to forge.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn policy(host: &str) -> String {
        let request = Request::get("/").header(header::HOST, host).body(Body::empty()).unwrap();
        let response = router(Vec::new()).oneshot(request).await.unwrap();
        response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn page_may_open_a_socket_to_its_own_host_only() {
        assert!(
            policy("live.example:8080").await.ends_with(" ws://live.example:8080 wss://live.example:8080")
        );
    }

    #[tokio::test]
    async fn host_header_cannot_add_a_directive() {
        assert!(policy("x; script-src *").await.ends_with("connect-src 'self'"));
    }

    #[test]
    fn tracker_elsewhere_may_be_connected_to_and_nothing_else() {
        assert_eq!(connect_sources("wss://t.example:444/tracker"), ["wss://t.example:444"]);
        for url in ["/tracker", "", "wss://x; script-src */tracker", "https://x/"] {
            assert!(connect_sources(url).is_empty(), "{url}");
        }
    }

    #[test]
    fn only_hashed_names_are_kept_for_ever() {
        for (path, expected) in [
            ("/assets/app-3F9A0C1B.js", true),
            ("/assets/shoal-player.js", false),
            ("/assets/hls-worker.js", false),
        ] {
            assert_eq!(has_hash(path), expected, "{path}");
        }
    }

    const SCRIPT: &[(&str, &[u8])] =
        &[("/a.js", b"alert('hello')"), ("/a.js.br", b"small"), ("/a.js.gz", b"smaller")];

    fn answer(request: &[(HeaderName, &str)]) -> Response {
        let embedded: HashMap<_, _> = SCRIPT.iter().copied().collect();
        let headers = request.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        File::new("/a.js", embedded["/a.js"], &embedded).answer(&headers, "no-cache")
    }

    #[tokio::test]
    async fn browsers_get_the_smallest_coding_that_they_take() {
        for (accepted, coding, contents) in [
            ("gzip, deflate, br, zstd", Some("br"), "small"),
            ("gzip, deflate", Some("gzip"), "smaller"),
            ("br;q=0, gzip", Some("gzip"), "smaller"),
            ("identity", None, "alert('hello')"),
        ] {
            let response = answer(&[(header::ACCEPT_ENCODING, accepted)]);
            let found = response.headers().get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap());
            assert_eq!(found, coding, "{accepted}");
            assert_eq!(response.headers()[header::VARY], "accept-encoding");
            let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
            assert_eq!(body, contents, "{accepted}");
        }
    }

    #[test]
    fn file_that_the_browser_has_is_not_sent_again() {
        let tags = ["identity", "gzip", "br"].map(|accepted| {
            let accepted = (header::ACCEPT_ENCODING, accepted);
            let tag =
                answer(std::slice::from_ref(&accepted)).headers()[header::ETAG].to_str().unwrap().to_owned();
            let again = answer(&[accepted.clone(), (header::IF_NONE_MATCH, &tag)]);
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(answer(&[accepted, (header::IF_NONE_MATCH, "\"other\"")]).status(), StatusCode::OK);
            tag
        });
        assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] != tags[2], "a tag each: {tags:?}");
    }
}
