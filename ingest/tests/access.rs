//! Who may publish, asked over HTTP: the operator's callback, and tokens that are signed.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac as _};
use http::{Request, StatusCode};
use parking_lot::Mutex;
use sha2::Sha256;
use shoal_credentials::Secret;
use shoal_ingest::Config;
use support::live::{Endpoint, config, header, text};

const OFFER: &str = include_str!("support/chromium-offer.sdp");

async fn post(endpoint: &Endpoint, stream: &str, token: Option<&str>) -> Response {
    let mut request = Request::post(format!("/whip/{stream}")).header("content-type", "application/sdp");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    endpoint.send(request.body(Body::from(OFFER)).unwrap()).await
}

/// The operator's service: its answer follows from the token, and it writes down what it was asked.
struct Service {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Service {
    async fn start() -> Self {
        let asked = Arc::<Mutex<Vec<serde_json::Value>>>::default();
        let heard = Arc::clone(&asked);
        let decide = move |Json(question): Json<serde_json::Value>| async move {
            let token = question["token"].as_str().unwrap_or("").to_owned();
            heard.lock().push(question);
            match token.as_str() {
                "good" => StatusCode::NO_CONTENT.into_response(),
                "broken" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                "elsewhere" => Redirect::temporary("/yes").into_response(),
                "slow" => std::future::pending().await,
                _ => StatusCode::FORBIDDEN.into_response(),
            }
        };
        let yes = || async { StatusCode::OK };
        let router = axum::Router::new()
            .route("/may", axum::routing::post(decide))
            .route("/yes", axum::routing::any(yes));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    fn config(&self) -> Config {
        let auth_callback_url = format!("http://{}/may", self.address);
        Config { auth_callback_url, auth_callback_timeout_ms: 300, ..config() }
    }
}

#[tokio::test]
async fn the_operators_callback_decides_who_may_publish() {
    let service = Service::start().await;
    let endpoint = Endpoint::start(service.config()).await;
    for (token, status) in [
        (Some("good"), StatusCode::CREATED),
        (Some("bad"), StatusCode::UNAUTHORIZED),
        (None, StatusCode::UNAUTHORIZED),
        (Some("broken"), StatusCode::SERVICE_UNAVAILABLE),
        (Some("elsewhere"), StatusCode::SERVICE_UNAVAILABLE),
        (Some("slow"), StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let response = post(&endpoint, "cam", token).await;
        assert_eq!(response.status(), status, "{token:?}");
        if status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(header(&response, "retry-after").parse::<u32>().is_ok());
        }
        if status == StatusCode::UNAUTHORIZED {
            assert_eq!(header(&response, "www-authenticate"), "Bearer");
        }
        let words = text(response).await;
        assert!(token.is_none_or(|token| !words.contains(token)), "{words}");
    }
    let asked = service.asked.lock().clone();
    assert_eq!(asked.len(), 5, "without a token nobody needs to be asked: {asked:?}");
    assert_eq!(asked[0], serde_json::json!({ "stream": "cam", "token": "good", "remote_ip": "127.0.0.1" }));
}

#[tokio::test]
async fn a_callback_that_is_gone_lets_nobody_in_and_keys_work_without_it() {
    let service = Service::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let auth_callback_url = format!("http://{free}/may");
    let stream_keys = vec![Secret::new("cam:sesame")];
    let endpoint = Endpoint::start(Config { auth_callback_url, stream_keys, ..service.config() }).await;
    assert_eq!(post(&endpoint, "cam", Some("good")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(post(&endpoint, "cam", Some("sesame")).await.status(), StatusCode::CREATED);
}

fn token(algorithm: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let header = format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#);
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn signed_tokens_of_both_kinds_open_the_stream_that_they_name_and_no_other() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let key = SigningKey::from_bytes(&[9; 32]);
    let endpoint = Endpoint::start(Config {
        jwt_hs256_secret: Secret::new(SECRET),
        jwt_eddsa_public_key: STANDARD.encode(key.verifying_key().as_bytes()),
        ..config()
    })
    .await;
    let hs256 = |claims: &str| {
        token("HS256", claims, |signed| {
            let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
            mac.update(signed);
            mac.finalize().into_bytes().to_vec()
        })
    };
    let eddsa = |claims: &str| token("EdDSA", claims, |signed| key.sign(signed).to_bytes().to_vec());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let (later, past) = ((now + Duration::from_secs(600)).as_secs(), now.as_secs() - 600);
    for sign in [&hs256 as &dyn Fn(&str) -> String, &eddsa] {
        let good = sign(&format!(r#"{{"stream":"cam","exp":{later}}}"#));
        let old = sign(&format!(r#"{{"stream":"cam","exp":{past}}}"#));
        assert_eq!(post(&endpoint, "dog", Some(&good)).await.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(post(&endpoint, "cam", Some(&old)).await.status(), StatusCode::UNAUTHORIZED);
        let forged = format!("{}x", &good[..good.len() - 1]);
        assert_eq!(post(&endpoint, "cam", Some(&forged)).await.status(), StatusCode::UNAUTHORIZED);
        let response = post(&endpoint, "cam", Some(&good)).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        endpoint.call(http::Method::DELETE, &header(&response, "location")).await;
    }
}

#[tokio::test]
async fn a_refused_publisher_is_in_the_log_in_words_and_not_more_often_than_once_a_second() {
    let log = support::LogBuffer::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let endpoint = Endpoint::start(config()).await;
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        let mut request = Request::post("/whip/cam%0Aforged").body(Body::from(OFFER)).unwrap();
        let far = SocketAddr::from(([192, 0, 2, 1], 4000));
        request.extensions_mut().insert(axum::extract::ConnectInfo(far));
        assert_eq!(endpoint.send(request).await.status(), StatusCode::UNAUTHORIZED);
    }
    let text = log.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("publisher refused")).collect();
    assert!((1..=2 + begun.elapsed().as_secs() as usize).contains(&lines.len()), "{text}");
    assert!(lines[0].contains("ingest.stream_keys") && lines[0].contains("ingest.auth_open_to"), "{text}");
    assert!(!text.contains("\nforged") && !text.contains("192.0.2.1"), "{text}");
}

#[tokio::test]
async fn a_token_is_in_no_log_and_no_answer() {
    let log = support::LogBuffer::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let service = Service::start().await;
    let stream_keys = vec![Secret::new("cam:open-sesame")];
    let endpoint = Endpoint::start(Config { stream_keys, ..service.config() }).await;
    for token in ["open-sesame", "open-says-me"] {
        let response = post(&endpoint, "cam", Some(token)).await;
        assert!(!text(response).await.contains("open-s"));
    }
    let ours = log.text().lines().filter(|line| line.contains("shoal_ingest")).collect::<String>();
    assert!(ours.contains("offer answered"), "the log was read: {ours}");
    assert!(!ours.contains("open-s"), "{ours}");
}
