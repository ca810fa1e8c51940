//! A request to open a WebSocket, on whichever route, that has been let in: with its place, and its socket's limits set.
//!
//! What is spoken on the socket is the routes' business.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use metrics::counter;

use super::Shared;
use super::gate::{Closed, Place};

/// What is written at once to a socket. Longer messages grow the buffer for as long as the connection lives, and it
/// is held for every idle viewer.
const WRITE_BUFFER_BYTES: usize = 1024;
/// What may wait in a socket's write buffer. The queue in front of it holds messages in a smaller form.
const WRITE_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// Somebody who may open a WebSocket.
pub(super) struct Visitor {
    pub(super) upgrade: WebSocketUpgrade,
    pub(super) address: IpAddr,
    pub(super) place: Place,
    /// How it reached us.
    pub(super) host: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Response> {
        let ConnectInfo(socket) = ConnectInfo::<SocketAddr>::from_request_parts(parts, shared)
            .await
            .map_err(IntoResponse::into_response)?;
        let upgrade =
            WebSocketUpgrade::from_request_parts(parts, shared).await.map_err(IntoResponse::into_response)?;
        let address = shared.gate.address(socket, &parts.headers);
        let place = if shared.gate.allows_origin(&parts.headers) {
            shared.gate.enter(address, shared.clock.now_ms())
        } else {
            Err(Closed::Origin)
        };
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        let config = &shared.config;
        let upgrade = upgrade
            .read_buffer_size(config.read_buffer_bytes as usize)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(config.message_bytes_max as usize)
            .max_frame_size(config.message_bytes_max as usize);
        place.map(|place| Self { upgrade, address, place, host }).map_err(refuse)
    }
}

/// What somebody is answered who is not let in.
fn refuse(closed: Closed) -> Response {
    let (status, why, label) = match closed {
        Closed::Full => (StatusCode::SERVICE_UNAVAILABLE, "no room for more viewers", "full"),
        Closed::Origin => (StatusCode::FORBIDDEN, "this page may not connect", "origin"),
        Closed::Draining => (StatusCode::SERVICE_UNAVAILABLE, "the tracker is stopping", "draining"),
    };
    counter!("tracker_connections_refused_total", "why" => label).increment(1);
    (status, why).into_response()
}
