//! Which servers a viewer believes over TLS: the same ones by HTTP and on the tracker's socket.
//!
//! Neighbors are not meant: who they are, the tracker says (`identity`).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt as _;

/// What both protocols have in common, so that the machine's certificates are read once and judged alike.
#[derive(Clone, Debug)]
pub(crate) struct Tls(ClientConfig);

impl Tls {
    /// Believes whom the machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` say otherwise where they are set), or everybody.
    /// `is_needed`: whether the stream is read over https; over http a machine that trusts nobody will do.
    ///
    /// # Errors
    /// If it is needed and the machine trusts nobody at all.
    pub(crate) fn new(insecure: bool, is_needed: bool) -> Result<Self, Error> {
        // reqwest and rustls are built without a choice of cryptography; whoever comes first in the process decides.
        let _ = ring::default_provider().install_default();
        let builder = ClientConfig::builder();
        let builder = if insecure {
            let anyone = Anyone(builder.crypto_provider().clone());
            builder.dangerous().with_custom_certificate_verifier(Arc::new(anyone))
        } else {
            match builder.clone().with_platform_verifier() {
                Err(_) if !is_needed => builder.with_root_certificates(RootCertStore::empty()),
                trusting => trusting?,
            }
        };
        Ok(Self(builder.with_no_client_auth()))
    }

    /// For HTTP/2 and HTTP/1.1.
    pub(crate) fn http(&self) -> ClientConfig {
        self.offering(&["h2", "http/1.1"])
    }

    /// For a WebSocket, which begins as HTTP/1.1.
    pub(crate) fn socket(&self) -> Arc<ClientConfig> {
        Arc::new(self.offering(&["http/1.1"]))
    }

    fn offering(&self, protocols: &[&str]) -> ClientConfig {
        let mut config = self.0.clone();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }
}

/// Takes whatever a server shows.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Whose key signed is of no interest where the certificate is not.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    /// What a client and a server with a self-signed certificate agree to speak.
    fn shake_hands(client: Arc<ClientConfig>) -> Result<Option<Vec<u8>>, Error> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let server = ServerConfig::builder().with_no_client_auth();
        let mut server = server.with_single_cert(vec![made.cert.der().clone()], key).expect("they fit");
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(client, name).expect("a client");
        while client.is_handshaking() {
            let mut sent = Vec::new();
            client.write_tls(&mut sent).expect("into memory");
            server.read_tls(&mut &sent[..]).expect("from memory");
            server.process_new_packets()?;
            let mut answer = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut answer).expect("into memory");
            }
            client.read_tls(&mut &answer[..]).expect("from memory");
            client.process_new_packets()?;
        }
        Ok(client.alpn_protocol().map(<[u8]>::to_vec))
    }

    #[test]
    fn unknown_certificate_is_refused_by_both_protocols_and_taken_by_who_takes_any() {
        let careful = Tls::new(false, true).expect("this machine trusts somebody");
        for client in [Arc::new(careful.http()), careful.socket()] {
            let refused = shake_hands(client);
            assert!(matches!(refused, Err(Error::InvalidCertificate(_))), "{refused:?}");
        }
        let careless = Tls::new(true, true).expect("nobody has to be trusted");
        assert_eq!(shake_hands(Arc::new(careless.http())), Ok(Some(b"h2".to_vec())));
        assert_eq!(shake_hands(careless.socket()), Ok(Some(b"http/1.1".to_vec())));
    }
}
