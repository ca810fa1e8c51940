//! Headers that many responses share: caching, cross-origin access, entity tags, ranges.

use std::convert::Infallible;
use std::ops::Range;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::TryFutureExt as _;
use futures::future::{Either, MapOk, Ready, ready};
use tower::{Layer, Service};

/// How long a response may be kept by caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Not at all.
    None,
    /// For so many seconds.
    Seconds(u64),
    /// For ever: the URL names these bytes.
    Immutable,
}

impl Cache {
    pub(crate) fn value(self) -> HeaderValue {
        match self {
            Self::None => HeaderValue::from_static("no-store"),
            Self::Seconds(seconds) => HeaderValue::try_from(format!("public, max-age={seconds}"))
                .expect("digits are allowed in header values"),
            Self::Immutable => HeaderValue::from_static("public, max-age=31536000, immutable"),
        }
    }
}

/// An error with a line of text for people.
pub(crate) fn error(status: StatusCode, text: &'static str, cache: Cache) -> Response {
    let mut response = (status, text).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, cache.value());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Lets pages of any origin read every response, errors included: a player that cannot see the status cannot act
/// on it. Nothing here depends on cookies, so that the wildcard gives nothing away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossOriginLayer;

impl<S> Layer<S> for CrossOriginLayer {
    type Service = CrossOrigin<S>;

    fn layer(&self, inner: S) -> CrossOrigin<S> {
        CrossOrigin(inner)
    }
}

/// See [`CrossOriginLayer`]. Not a function between the router and its routes (`axum::middleware::from_fn`): what that
/// keeps in boxes is held for each of ten thousand requests that wait for the next part.
#[derive(Clone, Debug)]
pub(crate) struct CrossOrigin<S>(S);

impl<S> Service<Request> for CrossOrigin<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, MapOk<S::Future, fn(Response) -> Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if request.method() == Method::OPTIONS {
            return Either::Left(ready(Ok(preflight())));
        }
        Either::Right(self.0.call(request).map_ok(readable as fn(Response) -> Response))
    }
}

/// What a page's browser is told that asks before it asks.
fn preflight() -> Response {
    let mut response = readable(StatusCode::NO_CONTENT.into_response());
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "Range, If-None-Match, If-Range, Authorization"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
        (header::ALLOW, "GET, HEAD, OPTIONS"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn readable(mut response: Response) -> Response {
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "Age, Content-Length, Content-Range, Date, ETag, Link, Location, Retry-After",
        ),
        (HeaderName::from_static("timing-allow-origin"), "*"),
        // A page with cross-origin isolation may embed us.
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether the client's copy, by `If-None-Match`, is this one.
pub fn has_copy(headers: &HeaderMap, tag: &str) -> bool {
    let Some(known) = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    known
        .split(',')
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// Whether the client takes a content coding (`gzip`, `br`): it names it, or everything, and does not refuse it (RFC 9110,
/// section 12.5.3).
pub fn accepts_coding(headers: &HeaderMap, wanted: &str) -> bool {
    let values = || headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    // None where it is not named.
    let accepts = |wanted: &str| {
        values().flat_map(|value| value.split(',')).find_map(|coding| {
            let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
            let is_refused = matches!(parameters.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
            (name.trim() == wanted).then_some(!is_refused)
        })
    };
    accepts(wanted).or_else(|| accepts("*")).unwrap_or(false)
}

/// What a `Range` header asks of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: no range, one that we do not serve, or one of another version.
    Whole,
    /// These bytes.
    Range(Range<usize>),
    /// Bytes that it does not have.
    Unsatisfiable,
}

/// Reads `Range` and `If-Range` for a body of `length` bytes with the entity tag `tag`.
pub(crate) fn wanted(headers: &HeaderMap, length: usize, tag: &str) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::IF_RANGE).is_some_and(|of| of != tag) {
        return Wanted::Whole;
    }
    let Some(spec) = text(header::RANGE).and_then(|range| range.strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else { return Wanted::Whole };
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let range = match (first.trim(), last.trim()) {
        ("", "") => return Wanted::Whole,
        ("", suffix) => match number(suffix) {
            Some(suffix) => length.saturating_sub(suffix)..length,
            None => return Wanted::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => first..length,
            None => return Wanted::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(length),
            // Several ranges, or nonsense: the whole is a valid answer.
            _ => return Wanted::Whole,
        },
    };
    if range.start >= range.end { Wanted::Unsatisfiable } else { Wanted::Range(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (text, expected) in [
            ("bytes=0-9", Wanted::Range(0..10)),
            ("bytes=90-", Wanted::Range(90..100)),
            ("bytes=-10", Wanted::Range(90..100)),
            ("bytes=-1000", Wanted::Range(0..100)),
            ("bytes=0-1000", Wanted::Range(0..100)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-1", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=x-y", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("bytes=99999999999999999999999-", Wanted::Whole),
        ] {
            assert_eq!(wanted(&with(header::RANGE, text), 100, "\"a\""), expected, "{text}");
        }
        let mut headers = with(header::RANGE, "bytes=0-9");
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"old\""));
        assert_eq!(wanted(&headers, 100, "\"a\""), Wanted::Whole);
    }

    #[test]
    fn gzip_is_sent_only_to_who_takes_it() {
        for (text, expected) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, gzip;q=0.8", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("*;q=0", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(accepts_coding(&with(header::ACCEPT_ENCODING, text), "gzip"), expected, "{text}");
        }
        assert!(!accepts_coding(&HeaderMap::new(), "gzip"));
    }

    #[test]
    fn copies_are_recognised_weak_or_strong() {
        for text in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(has_copy(&with(header::IF_NONE_MATCH, text), "\"a\""), "{text}");
        }
        assert!(!has_copy(&with(header::IF_NONE_MATCH, "\"b\""), "\"a\""));
    }
}
