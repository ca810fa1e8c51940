//! The operator's routes: what is going on, in numbers, and the switches. Described by `openapi.json` beside this file.
//!
//! Never an address, never a list of viewers: an operator's token that leaks must not tell who watches.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Shared;
use super::room::Snapshot;
use super::switches::Switches;
use crate::PeerPolicy;
use crate::swarm::Counters;

/// Streams have no longer names.
const NAME_CHARS_MAX: usize = 64;

/// The tracker in numbers.
#[derive(Debug, Serialize)]
struct Overview {
    viewers: u32,
    /// Clients of the WebTorrent protocol.
    announce_clients: u32,
    sharing_percent: u8,
    streams: Vec<StreamReport>,
}

/// One stream's swarm in numbers.
#[derive(Debug, Serialize)]
struct StreamReport {
    name: String,
    viewers: usize,
    pairs: usize,
    /// Groups that the viewers are dealt to; they meet within their group only.
    groups: usize,
    policy: PeerPolicy,
    /// Whether viewers need a token.
    private: bool,
    sharing_percent: u8,
    joins: u64,
    resumes: u64,
    introductions: u64,
    introductions_cross_network: u64,
    connections: u64,
    connections_cross_network: u64,
    unreachable: u64,
    accusations: u64,
    bans: u64,
    piece_bytes: u64,
    peer_bytes: u64,
    origin_bytes: u64,
    waste_bytes: u64,
    rebuffer_ms: u64,
    /// Bytes from peers in all that viewers reported, in percent.
    offload_percent: f64,
    plans: Vec<PlanReport>,
}

/// One rendition's seeding plan in numbers.
#[derive(Debug, Serialize)]
struct PlanReport {
    rendition: u8,
    seats: u32,
    roots: u32,
    unfed: u32,
    slots: u32,
    depth_max: u32,
    expected_max_ms: u32,
}

/// The body of the switches.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sharing {
    percent: u8,
}

/// The body of the route that makes a stream private or open.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Private {
    private: bool,
}

/// The body of the route that sets how viewers connect.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    policy: PeerPolicy,
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/api/tracker", get(overview))
        .route("/api/tracker/sharing", put(set_sharing))
        .route("/api/tracker/streams/{name}", get(stream))
        .route("/api/tracker/streams/{name}/sharing", put(set_stream_sharing))
        .route("/api/tracker/streams/{name}/private", put(set_stream_private))
        .route("/api/tracker/streams/{name}/policy", put(set_stream_policy))
        // Not `layer`: that would answer for every path which nobody serves, in the program's whole router.
        .route_layer(from_fn_with_state(Arc::clone(&shared), authorise))
        // The description holds no secrets.
        .route("/api/tracker/openapi.json", get(openapi))
        .with_state(shared)
}

/// Lets requests with the operator's token pass. Compares hashes, so that the time says nothing about the token.
async fn authorise(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let wanted = &shared.config.admin_token;
    if wanted.is_empty() {
        let why = "the operator's routes are closed: set admin_token in [tracker]";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = header.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if Sha256::digest(given) != Sha256::digest(wanted.expose()) {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, "the operator's token is needed").into_response();
    }
    next.run(request).await
}

async fn overview(State(shared): State<Arc<Shared>>) -> Json<Overview> {
    let names: Vec<String> = shared.streams.iter().map(|stream| stream.key().clone()).collect();
    let mut streams = Vec::with_capacity(names.len());
    for name in names {
        if let Some(report) = report(&shared, &name).await {
            streams.push(report);
        }
    }
    streams.sort_by(|one, other| one.name.cmp(&other.name));
    let sharing_percent = shared.percent.load(Ordering::Relaxed);
    let (viewers, announce_clients) = (shared.gate.viewers(), shared.gate.announcing());
    Json(Overview { viewers, announce_clients, sharing_percent, streams })
}

async fn stream(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    match report(&shared, &name).await {
        Some(report) => Json(report).into_response(),
        None => unknown(),
    }
}

async fn set_sharing(State(shared): State<Arc<Shared>>, Json(sharing): Json<Sharing>) -> Response {
    if sharing.percent > 100 {
        return out_of_range();
    }
    shared.set_sharing(sharing.percent);
    StatusCode::NO_CONTENT.into_response()
}

async fn set_stream_sharing(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Json(sharing): Json<Sharing>,
) -> Response {
    if sharing.percent > 100 {
        return out_of_range();
    }
    switch(&shared, &name, |switches| switches.percent = sharing.percent)
}

async fn set_stream_private(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Json(private): Json<Private>,
) -> Response {
    if shared.tokens.is_none() {
        let why = "no viewer_token_secret is set in [tracker]: nobody could join a private stream";
        return (StatusCode::CONFLICT, why).into_response();
    }
    switch(&shared, &name, |switches| switches.is_private = private.private)
}

async fn set_stream_policy(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Json(policy): Json<Policy>,
) -> Response {
    if policy.policy == PeerPolicy::RelayOnly && !shared.has_relay() {
        let why = "neither turn nor turn_urls is set in [tracker]: nobody could reach anybody";
        return (StatusCode::CONFLICT, why).into_response();
    }
    switch(&shared, &name, |switches| switches.policy = policy.policy)
}

/// Changes a name's switches. They may be set before the stream is live: one that is to be private must not be open for
/// its first seconds.
fn switch(shared: &Shared, name: &str, change: impl FnOnce(&mut Switches)) -> Response {
    let is_of_a_name = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'-';
    if !(1..=NAME_CHARS_MAX).contains(&name.len()) || !name.bytes().all(is_of_a_name) {
        return (StatusCode::NOT_FOUND, "no stream can have this name").into_response();
    }
    if shared.switch_stream(name, change) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let why = "no stream of this name is live: it counts as soon as one is";
        (StatusCode::ACCEPTED, why).into_response()
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "no stream of this name is live").into_response()
}

fn out_of_range() -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, "percent must be 0 to 100").into_response()
}

async fn report(shared: &Shared, name: &str) -> Option<StreamReport> {
    let (room, switches) = shared.streams.get(name).map(|stream| (stream.room.clone(), stream.switches))?;
    let snapshot = room.inspect().await?;
    Some(StreamReport::of(name, switches, &snapshot))
}

impl StreamReport {
    fn of(name: &str, switches: Switches, snapshot: &Snapshot) -> Self {
        let Counters { peer_bytes, origin_bytes, .. } = snapshot.counters;
        let counters = snapshot.counters;
        #[expect(clippy::cast_precision_loss, reason = "for people to read")]
        let offload_percent = match peer_bytes + origin_bytes {
            0 => 0.0,
            all => (1_000.0 * peer_bytes as f64 / all as f64).round() / 10.0,
        };
        let plans = snapshot.plans.iter().map(|(rendition, plan)| PlanReport {
            rendition: *rendition,
            seats: plan.seats,
            roots: plan.roots,
            unfed: plan.unfed,
            slots: plan.slots,
            depth_max: plan.depth_max,
            expected_max_ms: plan.expected_max_ms,
        });
        Self {
            name: name.to_owned(),
            viewers: snapshot.viewers,
            pairs: snapshot.pairs,
            groups: snapshot.groups,
            policy: switches.policy,
            private: switches.is_private,
            sharing_percent: snapshot.switch.percent,
            joins: counters.joins,
            resumes: counters.resumes,
            introductions: counters.introductions,
            introductions_cross_network: counters.introductions_cross_network,
            connections: counters.connections,
            connections_cross_network: counters.connections_cross_network,
            unreachable: counters.unreachable,
            accusations: counters.accusations,
            bans: counters.bans,
            piece_bytes: counters.piece_bytes,
            peer_bytes,
            origin_bytes,
            waste_bytes: counters.waste_bytes,
            rebuffer_ms: counters.rebuffer_ms,
            offload_percent,
            plans: plans.collect(),
        }
    }
}
