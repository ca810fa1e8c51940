//! Who a native viewer is to its neighbors: a DTLS certificate that can be kept, so that a viewer token can be bound to it.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use webrtc::peer_connection::RTCCertificate;
use webrtc::peer_connection::crypto::{SignatureScheme, default_provider};

/// As far as WebRTC is concerned: neighbors look at the fingerprint, never at dates.
const LIFE: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// A certificate and its key. All neighbors of all viewers that have it see the same one.
#[derive(Clone)]
pub struct Identity {
    certificate: RTCCertificate,
    pem: String,
}

/// A certificate that is none, or could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(String);

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity")
    }
}

impl Identity {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`IdentityError`] if the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        // Every certificate has a name; nobody reads this one.
        let made = rcgen::generate_simple_self_signed(["shoal".to_owned()]).map_err(fail)?;
        Self::from_pem(&format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem()))
    }

    /// Reads what [`Self::to_pem`] gave: an X.509 certificate and its key on the curve P-256, in PKCS#8.
    ///
    /// # Errors
    /// [`IdentityError`] with what is missing or wrong.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(fail)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(fail)?;
        let provider = default_provider().map_err(fail)?;
        let (chain, expires) = (vec![certificate], SystemTime::now() + LIFE);
        let scheme = SignatureScheme::EcdsaP256Sha256;
        let key = key.secret_pkcs8_der();
        let certificate =
            RTCCertificate::from_pkcs8(provider.crypto(), scheme, chain, key, expires).map_err(fail)?;
        Ok(Self { certificate, pem: pem.to_owned() })
    }

    /// Certificate and key as text. Whoever has it can use tokens that are bound to it.
    #[must_use]
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// What a token is bound to: the SHA-256 of the certificate as in SDP (`AB:CD:..`).
    ///
    /// # Errors
    /// [`IdentityError`] if this build can't hash.
    pub fn fingerprint(&self) -> Result<String, IdentityError> {
        let provider = default_provider().map_err(fail)?;
        let fingerprints = self.certificate.get_fingerprints(provider.crypto()).map_err(fail)?;
        let first = fingerprints.into_iter().next();
        first.map(|first| first.value.to_uppercase()).ok_or_else(|| fail("there is no certificate"))
    }

    pub(crate) fn certificate(&self) -> RTCCertificate {
        self.certificate.clone()
    }
}

fn fail(reason: impl fmt::Display) -> IdentityError {
    IdentityError(reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_read_back_is_the_same_and_nobody_else() {
        let made = Identity::generate().unwrap();
        let read = Identity::from_pem(made.to_pem()).unwrap();
        assert_eq!(read.fingerprint().unwrap(), made.fingerprint().unwrap());
        assert_eq!(made.fingerprint().unwrap().len(), 32 * 3 - 1);
        let other = Identity::generate().unwrap();
        assert_ne!(other.fingerprint().unwrap(), made.fingerprint().unwrap());
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_lacks_a_part_is_no_identity() {
        let made = Identity::generate().unwrap();
        let (certificate, key) = made.to_pem().split_at(made.to_pem().find("-----BEGIN PRIVATE").unwrap());
        for text in ["", "abc", certificate, key] {
            assert!(Identity::from_pem(text).is_err(), "{text}");
        }
    }
}
