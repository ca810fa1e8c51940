//! The HTTP side: RFC 9725 on an axum router.
//!
//! | request | does |
//! |---|---|
//! | `POST /whip/{stream}` | publishes: offer in, answer out |
//! | `PATCH /whip/session/{id}` | trickles candidates, restarts ICE |
//! | `DELETE /whip/session/{id}` | ends the session |
//! | `GET /whip/session/{id}/stats` | the session's status as JSON (ours, not of the RFC) |
//! | `OPTIONS`, `GET`, `HEAD` on all of them | what the RFC wants |
//!
//! The README has the table of the RFC's requirements and the tests for them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::metric;
use crate::sdp::{Offer, Refusal};
use crate::sdpfrag::Fragment;
use crate::server::{Refused, RestartError, Server};

const SDP: &str = "application/sdp";
const SDPFRAG: &str = "application/trickle-ice-sdpfrag";
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// The routes.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/whip/{stream}", any(endpoint))
        .route("/whip/session/{id}", any(session))
        .route("/whip/session/{id}/stats", get(stats).options(stats_options))
        // So that what is misspelt is refused in words, and with CORS, too.
        .route("/whip/{stream}/{*rest}", any(nothing))
        .with_state(server)
        .layer(axum::middleware::map_response(finish))
}

/// A browser page of any origin may publish: what protects a stream is its token, not where a page came from. On
/// every status, so that the page can see what went wrong.
async fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("Location, ETag, Link, Accept-Post, Accept-Patch, Retry-After"),
    );
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn endpoint(
    State(server): State<Arc<Server>>,
    Path(stream): Path<String>,
    request: Request,
) -> Response {
    let method = request.method().clone();
    let response = match method {
        Method::POST => publish(&server, &stream, request).await,
        Method::OPTIONS => endpoint_options(&server, &stream, request).await,
        // RFC 9725, 4.1: reserved, to be answered with success and nothing.
        Method::GET | Method::HEAD => empty(StatusCode::NO_CONTENT),
        _ => not_allowed("POST, OPTIONS, GET, HEAD"),
    };
    count("endpoint", &method, response)
}

async fn session(State(server): State<Arc<Server>>, Path(id): Path<String>, request: Request) -> Response {
    let method = request.method().clone();
    let response = match method {
        Method::PATCH => patch(&server, &id, request).await,
        // Only guesses are limited: a session can be ended once.
        Method::DELETE if server.delete(&id).await => empty(StatusCode::OK),
        Method::DELETE => match server.admit(peer_ip(&request)) {
            Err(refused) => refuse(refused),
            Ok(()) => text(StatusCode::NOT_FOUND, "no such session"),
        },
        Method::OPTIONS => preflight("PATCH, DELETE, OPTIONS, GET, HEAD"),
        Method::GET | Method::HEAD if server.etag(&id).is_some() => empty(StatusCode::NO_CONTENT),
        Method::GET | Method::HEAD => text(StatusCode::NOT_FOUND, "no such session"),
        _ => not_allowed("PATCH, DELETE, OPTIONS, GET, HEAD"),
    };
    count("session", &method, response)
}

async fn stats(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Response {
    let Some(json) = server.status_json(&id) else { return text(StatusCode::NOT_FOUND, "no such session") };
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn stats_options() -> Response {
    preflight("GET, HEAD, OPTIONS")
}

async fn nothing() -> Response {
    text(StatusCode::NOT_FOUND, "neither an endpoint nor a session")
}

async fn publish(server: &Arc<Server>, stream: &str, request: Request) -> Response {
    if let Err(refused) = server.admit(peer_ip(&request)) {
        return refuse(refused);
    }
    let remote_ip = remote_ip(&request);
    if let Err(refused) = server.authorize(stream, bearer(request.headers()), remote_ip).await {
        return refuse(refused);
    }
    if !is_type(request.headers(), SDP) {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be application/sdp");
    }
    let body = match read_body(server, request).await {
        Ok(body) => body,
        Err(response) => return *response,
    };
    let offer = match Offer::parse(&body) {
        Ok(offer) => offer,
        Err(refusal) => return refuse(Refused::Offer(refusal)),
    };
    let published = match server.publish(stream, offer).await {
        Ok(published) => published,
        Err(refused) => return refuse(refused),
    };
    let mut response = Response::new(Body::from(published.answer));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(SDP));
    headers.insert(ACCEPT_PATCH, HeaderValue::from_static(SDPFRAG));
    insert(headers, header::LOCATION, &published.location);
    insert(headers, header::ETAG, &published.etag);
    add_ice_servers(server, headers);
    response
}

async fn patch(server: &Arc<Server>, id: &str, request: Request) -> Response {
    if let Err(refused) = server.admit_to(id, peer_ip(&request)) {
        return refuse(refused);
    }
    let Some(etag) = server.etag(id) else { return text(StatusCode::NOT_FOUND, "no such session") };
    if !is_type(request.headers(), SDPFRAG) {
        const WORDS: &str = "the content type must be application/trickle-ice-sdpfrag";
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, WORDS);
    }
    let Some(if_match) = request.headers().get(header::IF_MATCH) else {
        return text(StatusCode::PRECONDITION_REQUIRED, "If-Match is required");
    };
    let if_match = if_match.to_str().unwrap_or("").to_owned();
    // RFC 9110, 13.1.1; the RFC's example has the asterisk in quotes.
    let is_met = if_match.split(',').map(str::trim).any(|tag| tag == "*" || tag == "\"*\"" || tag == etag);
    if !is_met {
        return text(StatusCode::PRECONDITION_FAILED, "the ICE session has changed");
    }
    let body = match read_body(server, request).await {
        Ok(body) => body,
        Err(response) => return *response,
    };
    let fragment = match Fragment::parse(&body) {
        Ok(fragment) => fragment,
        Err(refusal) => return refuse(Refused::Offer(refusal)),
    };
    match fragment.ice {
        // Other ICE parameters than the session's are a restart (RFC 9725, 4.3.3).
        Some(ice) if !server.is_current_ufrag(id, &ice.0) => {
            restart(server, id, &ice, fragment.candidates).await
        }
        _ => {
            server.add_candidates(id, fragment.candidates).await;
            empty(StatusCode::NO_CONTENT)
        }
    }
}

async fn restart(server: &Server, id: &str, ice: &(String, String), candidates: Vec<String>) -> Response {
    let (etag, fragment) = match server.restart(id, ice).await {
        Ok(restarted) => restarted,
        Err(RestartError::Gone) => return text(StatusCode::NOT_FOUND, "no such session"),
        // The session goes on as it was (RFC 9725, 4.3.3).
        Err(RestartError::Impossible) => {
            return text(StatusCode::UNPROCESSABLE_ENTITY, "ICE could not be restarted");
        }
    };
    server.add_candidates(id, candidates).await;
    let mut response = Response::new(Body::from(fragment));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(SDPFRAG));
    insert(headers, header::ETAG, &etag);
    response
}

async fn endpoint_options(server: &Server, stream: &str, request: Request) -> Response {
    let mut response = preflight("POST, OPTIONS, GET, HEAD");
    response.headers_mut().insert(ACCEPT_POST, HeaderValue::from_static(SDP));
    // Not on a preflight, which carries no token (RFC 9725, 4.6). ICE servers come with credentials, so only who may
    // publish is told of them.
    let is_preflight = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if is_preflight || server.ice_server_links().is_empty() {
        return response;
    }
    if let Err(refused) = server.admit(peer_ip(&request)) {
        return refuse(refused);
    }
    let remote_ip = remote_ip(&request);
    let (head, _) = request.into_parts();
    if server.may_publish(stream, bearer(&head.headers), remote_ip).await {
        add_ice_servers(server, response.headers_mut());
    }
    response
}

fn preflight(methods: &'static str) -> Response {
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(methods));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type, If-Match, Link"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

fn add_ice_servers(server: &Server, headers: &mut HeaderMap) {
    for link in server.ice_server_links() {
        if let Ok(link) = HeaderValue::from_str(link) {
            headers.append(header::LINK, link);
        }
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The other end of the connection, if it is the publisher itself: a proxy on this machine must not make everybody
/// appear to be on this machine.
fn remote_ip(request: &Request) -> Option<IpAddr> {
    const PROXIES: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
    if PROXIES.iter().any(|name| request.headers().contains_key(*name)) {
        return None;
    }
    peer_ip(request)
}

/// The other end of the connection, whoever that is.
fn peer_ip(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    given.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(wanted)
}

async fn read_body(server: &Server, request: Request) -> Result<String, Box<Response>> {
    let limit = server.body_bytes_max();
    let is_announced_larger = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok())
        .is_some_and(|length| length > limit);
    let too_large = || Box::new(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
    if is_announced_larger {
        return Err(too_large());
    }
    // The one error besides the limit is a connection that broke, whose publisher won't see the answer.
    let bytes = to_bytes(request.into_body(), limit).await.map_err(|_| too_large())?;
    String::from_utf8(bytes.into()).map_err(|_| Box::new(text(StatusCode::BAD_REQUEST, "not UTF-8")))
}

fn refuse(refused: Refused) -> Response {
    let status = match &refused {
        Refused::Offer(Refusal::Malformed(_)) => StatusCode::BAD_REQUEST,
        Refused::Offer(Refusal::NoCodec(_)) => StatusCode::NOT_ACCEPTABLE,
        Refused::Offer(Refusal::Unacceptable(_)) => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::BadName => StatusCode::NOT_FOUND,
        Refused::Busy => StatusCode::CONFLICT,
        Refused::Unauthorized | Refused::Closed => StatusCode::UNAUTHORIZED,
        Refused::AuthUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Refused::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        Refused::Overloaded | Refused::NoTranscoder | Refused::Deaf => StatusCode::SERVICE_UNAVAILABLE,
        Refused::Stack(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let mut response = text(status, refused.to_string());
    match refused {
        Refused::TooManyRequests => insert(response.headers_mut(), header::RETRY_AFTER, "1"),
        Refused::Overloaded | Refused::NoTranscoder | Refused::AuthUnavailable | Refused::Deaf => {
            insert(response.headers_mut(), header::RETRY_AFTER, "10");
        }
        Refused::Unauthorized | Refused::Closed => {
            insert(response.headers_mut(), header::WWW_AUTHENTICATE, "Bearer")
        }
        _ => {}
    }
    response
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn text(status: StatusCode, words: impl Into<String>) -> Response {
    let mut words = words.into();
    words.push('\n');
    let mut response = Response::new(Body::from(words));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn not_allowed(methods: &'static str) -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

fn count(resource: &'static str, method: &Method, response: Response) -> Response {
    // Methods are the client's words: only known ones become labels.
    let method = match *method {
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::GET | Method::HEAD => "GET",
        _ => "other",
    };
    let status = response.status().as_u16().to_string();
    metrics::counter!(metric::REQUESTS, "resource" => resource, "method" => method, "status" => status)
        .increment(1);
    response
}
