//! The client's side of WHIP (RFC 9725): an offer out, an answer and a session URL back, DELETE at the end.
//!
//! No trickle: the offer carries all candidates, which are few, since no STUN server is asked.

use crate::{error::Error, options::Options};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER},
};
use std::time::Duration;

/// A server on a slow machine may take long to make a certificate; longer than this and something is wrong.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// DELETE is a courtesy: the server notices a vanished publisher by itself.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer is a few KiB.
const BODY_MAX: usize = 64 * 1024;

/// A WHIP endpoint to publish to.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
}

/// What the server made of an offer.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) answer: String,
    pub(crate) session: Session,
}

/// A WHIP session at the server, to be deleted at the end.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    client: Client,
    url: Url,
    authorization: Option<HeaderValue>,
}

impl Endpoint {
    pub(crate) fn new(options: &Options, number: u32) -> Result<Self, Error> {
        let url = options.url_of(number);
        let parsed = Url::parse(&url).map_err(|error| Error::Option(format!("{url} is no URL: {error}")))?;
        let authorization = options
            .token
            .as_ref()
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| Error::Option("the token has characters that HTTP can't carry".into()))?;
                value.set_sensitive(true);
                Ok::<_, Error>(value)
            })
            .transpose()?;
        // The first caller decides; an error means that the program has chosen a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(REQUEST_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tls_danger_accept_invalid_certs(options.insecure)
            .user_agent(concat!("shoal-publisher/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Option(format!("can't set up HTTP: {}", innermost(&error))))?;
        Ok(Self { client, url: parsed, authorization })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Posts the offer.
    pub(crate) async fn offer(&self, sdp: String) -> Result<Accepted, Error> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/sdp")
            .header(ACCEPT, "application/sdp")
            .body(sdp);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status() != StatusCode::CREATED {
            return Err(self.refusal(response).await);
        }
        // Redirects have been followed: a relative Location refers to where the answer came from.
        let location = response
            .headers()
            .get(LOCATION)
            .ok_or_else(|| Error::BadAnswer("201 without a Location header".into()))?
            .to_str()
            .ok()
            .and_then(|location| response.url().join(location).ok())
            .filter(|location| matches!(location.scheme(), "http" | "https"))
            .ok_or_else(|| Error::BadAnswer("its Location header is no URL".into()))?;
        // The token goes to the origin that was named by the person, and nowhere else.
        let authorization = self.authorization.clone().filter(|_| location.origin() == self.url.origin());
        let session = Session { client: self.client.clone(), url: location, authorization };
        match body(response).await {
            Ok(answer) => Ok(Accepted { answer, session }),
            Err(error) => {
                session.delete().await;
                Err(error)
            }
        }
    }

    async fn refusal(&self, response: Response) -> Error {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|seconds| seconds.parse().ok())
            .map_or(Duration::from_secs(1), Duration::from_secs);
        let body = body(response).await.unwrap_or_default();
        let body = body.trim().chars().take(500).collect::<String>();
        match status {
            401 | 403 => Error::Unauthorized { status },
            404 | 405 => Error::NotWhip { url: self.url.to_string(), status },
            406 | 415 => Error::CodecsRefused { status, body },
            409 => Error::NameTaken,
            503 => Error::Overloaded { retry_after },
            200..=299 => Error::BadAnswer(format!("status {status} instead of 201")),
            _ => Error::Refused { status, body },
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        Error::Unreachable { url: self.url.to_string(), reason: innermost(error) }
    }
}

impl Session {
    /// Ends the session at the server. Failure is logged only: there is nothing left to do about it.
    pub(crate) async fn delete(&self) {
        let mut request = self.client.delete(self.url.clone()).timeout(DELETE_TIMEOUT);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        match request.send().await {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => tracing::debug!(status = response.status().as_u16(), "delete refused"),
            Err(error) => tracing::debug!(error = innermost(&error), "delete failed"),
        }
    }
}

/// A body of bounded length as text.
async fn body(mut response: Response) -> Result<String, Error> {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(more)) if bytes.len() + more.len() <= BODY_MAX => bytes.extend_from_slice(&more),
            Ok(Some(_)) => return Err(Error::BadAnswer(format!("it is longer than {BODY_MAX} bytes"))),
            Ok(None) => break,
            Err(error) => return Err(Error::BadAnswer(innermost(&error))),
        }
    }
    String::from_utf8(bytes).map_err(|_| Error::BadAnswer("it is no text".into()))
}

/// reqwest's own message repeats the URL and says little; the last cause is what people need.
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("timed out after {} s", REQUEST_TIMEOUT.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
