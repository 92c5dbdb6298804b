//! In: what has been read of files, a request's credentials; out: the reader they stand for. The policy is replaced as a whole.
//! Reads no file.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::passwords::Passwords;
use super::readers::Readers;
use super::{CertificateNames, Reader, Refusal, certificate};

/// Who may read what, and how connections are made: one configuration. Never changes; another takes its place.
#[derive(Debug, Default)]
pub struct AccessPolicy {
    pub(super) readers: Readers,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl AccessPolicy {
    /// What handshakes need; `None` for plain TCP.
    pub fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    /// Headers sent with every answer.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Whether readers must show credentials.
    pub fn requires_credentials(&self) -> bool {
        self.readers.requires_credentials()
    }

    /// What an answer to a refused request asks for.
    pub fn challenges(&self) -> Vec<HeaderValue> {
        self.readers.challenges()
    }
}

/// Tells who a request is from, by the present policy. Outlives it, with what is remembered of passwords.
#[derive(Debug)]
pub struct Authenticator {
    policy: watch::Sender<Arc<AccessPolicy>>,
    passwords: Passwords,
}

impl Default for Authenticator {
    /// Open to everybody, without TLS.
    fn default() -> Self {
        Self { policy: watch::Sender::new(Arc::default()), passwords: Passwords::new() }
    }
}

impl Authenticator {
    pub(super) fn replace(&self, policy: AccessPolicy) {
        self.policy.send_replace(Arc::new(policy));
    }

    /// The present policy.
    pub fn policy(&self) -> Arc<AccessPolicy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Tells when there is another policy; the present one is seen.
    pub fn changes(&self) -> watch::Receiver<Arc<AccessPolicy>> {
        self.policy.subscribe()
    }

    /// The names of a client's certificate, which the handshake has verified.
    pub fn names(certificate: &[u8]) -> CertificateNames {
        certificate::names(certificate)
    }

    /// Who a request is from, by its `Authorization` header or, without one, by the certificate of its connection. Nothing
    /// else is looked at. `peer` shares out the checking of passwords.
    ///
    /// # Errors
    /// Why it is from nobody.
    pub async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: Option<&CertificateNames>,
        peer: IpAddr,
    ) -> Result<Reader, Refusal> {
        let policy = self.policy();
        policy.readers.identify(&self.passwords, headers, certificate, peer).await
    }
}
