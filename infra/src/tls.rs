//! TLS for the HTTP port: the operator's certificate, read again when it is renewed, or one of our own for trying out.
//!
//! HTTP/2 is offered, and HTTP/1.1 for sockets. What is answered is the same as in clear; see `http.rs`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use shoal_segmenter::with_causes;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Error;
use crate::settings::Http;
use crate::signals::Hangups;

/// How often the files' times are looked at. A certificate is renewed weeks before it ends, so a minute is soon.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a certificate of our own is valid: it lives as long as the process, and clients refuse longer ones than
/// 825 days.
const SELF_SIGNED_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clients' clocks may be behind.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);

/// The certificate of new connections.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// Certificate chain and key; none where the certificate is our own.
    files: Option<[String; 2]>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Loads the certificate that the settings name, or makes one; none where they ask for no TLS.
    ///
    /// # Errors
    /// [`Error::Settings`] naming the file and what is wrong with it.
    pub(crate) fn load(settings: &Http) -> Result<Option<Arc<Self>>, Error> {
        let Some(address) = settings.tls_address()? else { return Ok(None) };
        let (files, key) = if settings.tls_self_signed {
            (None, self_signed(settings, address)?)
        } else {
            let files = [settings.tls_certificate_file.clone(), settings.tls_key_file.clone()];
            let key = read(&files)?;
            (Some(files), key)
        };
        Ok(Some(Arc::new(Self { files, current: RwLock::new(Arc::new(key)) })))
    }

    /// What accepts connections with whatever is the certificate by then.
    pub(crate) fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the suites of TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Reads the files again when they change or SIGHUP comes, until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let Some(files) = &self.files else { return };
        let mut hangups = Hangups::new();
        let mut seen = times(files);
        loop {
            let is_asked = tokio::select! {
                () = stop.cancelled() => return,
                () = hangups.next() => true,
                () = tokio::time::sleep(LOOK_INTERVAL) => false,
            };
            let now = times(files);
            if !is_asked && now == seen {
                continue;
            }
            seen = now;
            // Both files are small; a certificate tool replaces them one after the other, and a pair that does not
            // fit is an error here and read again at the next change.
            match read(files) {
                Ok(key) => {
                    *self.current.write() = Arc::new(key);
                    info!("the TLS certificate was read again");
                }
                Err(error) => warn!(%error, "the old TLS certificate stays in use"),
            }
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

fn times(files: &[String; 2]) -> [Option<SystemTime>; 2] {
    files.each_ref().map(|file| std::fs::metadata(file).and_then(|data| data.modified()).ok())
}

fn read([certificate, key]: &[String; 2]) -> Result<CertifiedKey, Error> {
    let fail = |setting: &str, file: &str, reason: &dyn std::error::Error| {
        Error::Settings(format!("{setting} = {file:?}: {}", with_causes(reason)))
    };
    let of_certificate =
        |error: &dyn std::error::Error| fail("http.tls_certificate_file", certificate, error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(Path::new(certificate))
        .and_then(Iterator::collect)
        .map_err(|error| of_certificate(&error))?;
    let secret = PrivateKeyDer::from_pem_file(Path::new(key))
        .map_err(|error| fail("http.tls_key_file", key, &error))?;
    certified(chain, secret).map_err(|error| of_certificate(&error))
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    secret: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    if chain.is_empty() {
        return Err(rustls::Error::NoCertificatesPresented);
    }
    let provider: CryptoProvider = default_provider();
    CertifiedKey::from_der(chain, secret, &provider)
}

/// A certificate for this machine, signed by itself.
fn self_signed(settings: &Http, address: SocketAddr) -> Result<CertifiedKey, Error> {
    let fail = |error: &dyn std::error::Error| {
        Error::Settings(format!("http.tls_self_signed: {}", with_causes(error)))
    };
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let ip: IpAddr = address.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        names.push(ip.to_string());
    }
    let public_host = settings.public_url.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next());
    names.extend(public_host.filter(|host| !host.is_empty()).map(str::to_owned));
    let mut parameters = rcgen::CertificateParams::new(names).map_err(|error| fail(&error))?;
    let now = SystemTime::now();
    parameters.not_before = (now - CLOCK_SLACK).into();
    parameters.not_after = (now + SELF_SIGNED_VALIDITY).into();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "Shoal, for trying out");
    let key = rcgen::KeyPair::generate().map_err(|error| fail(&error))?;
    let certificate = parameters.self_signed(&key).map_err(|error| fail(&error))?;
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    certified(vec![certificate.der().clone()], secret).map_err(|error| fail(&error))
}
