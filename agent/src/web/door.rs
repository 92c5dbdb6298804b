//! In: what has been read of files; out: who comes in, and how. What is configured is swapped whole. Reads no file.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::passwords::Passwords;
use super::readers::Readers;
use super::{Names, Reader, Refusal, certificate};

/// One configuration of the entrance. Never changes; another takes its place.
#[derive(Debug, Default)]
pub struct Door {
    pub(super) readers: Readers,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Door {
    /// What handshakes need; `None` for plain TCP.
    pub fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    /// Headers sent with every answer.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Whether readers must show credentials.
    pub fn is_guarded(&self) -> bool {
        self.readers.is_guarded()
    }

    /// What an answer to a refused request asks for.
    pub fn challenges(&self) -> Vec<HeaderValue> {
        self.readers.challenges()
    }
}

/// The present door, and what outlives it: remembered verdicts on passwords.
#[derive(Debug)]
pub struct Guard {
    door: watch::Sender<Arc<Door>>,
    passwords: Passwords,
}

impl Default for Guard {
    /// Open to everybody, without TLS.
    fn default() -> Self {
        Self { door: watch::Sender::new(Arc::default()), passwords: Passwords::new() }
    }
}

impl Guard {
    pub(super) fn replace(&self, door: Door) {
        self.door.send_replace(Arc::new(door));
    }

    /// The present door.
    pub fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door.borrow())
    }

    /// Tells when there is another door; the present one is seen.
    pub fn changes(&self) -> watch::Receiver<Arc<Door>> {
        self.door.subscribe()
    }

    /// The names of a client's certificate, which the handshake has verified.
    pub fn names(certificate: &[u8]) -> Names {
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
        certificate: Option<&Names>,
        peer: IpAddr,
    ) -> Result<Reader, Refusal> {
        let door = self.door();
        door.readers.identify(&self.passwords, headers, certificate, peer).await
    }
}
