//! In: checked TLS settings and the PEM files they name; out: what a handshake needs. Knows no connection and no reader.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};

use super::AuthError;
use super::certificate::names;
use super::files::{Secrecy, read, shown};
use super::schema::{ClientAuth, TlsSettings, TlsVersion};

/// Reads certificates and key, and checks that they go together.
pub(super) fn load(tls: &TlsSettings) -> Result<Arc<ServerConfig>, AuthError> {
    let chain = certificates(&tls.certificate, "certificate")?;
    let key = read(&tls.key, "key", Secrecy::Secret)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
        refused("key", &tls.key, "holds no private key: write one in PEM, without a passphrase")
    })?;
    let mut provider = default_provider();
    if let Some(suites) = &tls.suites {
        provider
            .cipher_suites
            .retain(|suite| suite.version() != &rustls::version::TLS12 || suites.contains(suite));
    }
    if let Some(groups) = &tls.groups {
        provider.kx_groups.clone_from(groups);
    }
    // Without a suite of its own a version cannot be offered.
    let has_suite =
        |version: &SupportedProtocolVersion| provider.cipher_suites.iter().any(|s| s.version() == version);
    let versions: Vec<&'static SupportedProtocolVersion> =
        [(TlsVersion::Tls13, &rustls::version::TLS13), (TlsVersion::Tls12, &rustls::version::TLS12)]
            .into_iter()
            .filter(|(version, offered)| {
                (tls.min_version..=tls.max_version).contains(version) && has_suite(offered)
            })
            .map(|(_, offered)| offered)
            .collect();
    let provider = Arc::new(provider);
    let unusable = |error: Error| {
        refused(
            "certificate",
            &tls.certificate,
            &format!("cannot be used with key `{}`: {error}", shown(&tls.key)),
        )
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(unusable)?;
    let builder = match &tls.client_ca {
        Some(ca) if tls.client_auth != ClientAuth::None => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca, "client CA")? {
                roots.add(certificate).map_err(|error| {
                    refused("client CA", ca, &format!("holds an unusable certificate: {error}"))
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match tls.client_auth {
                ClientAuth::IfGiven => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let inner = verifier
                .build()
                .map_err(|error| refused("client CA", ca, &format!("cannot verify clients: {error}")))?;
            builder.with_client_cert_verifier(Arc::new(NamedClientVerifier {
                inner,
                allowed: tls.allowed_names.clone(),
            }))
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = tls.prefer_server_suites;
    if tls.client_auth != ClientAuth::None {
        // A resumed session would not look at the client's certificate again, which may have run out.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, AuthError> {
    let pem = read(path, what, Secrecy::Public)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(refused(what, path, "holds no certificate: write it in PEM")),
        Err(error) => Err(refused(what, path, &format!("is broken PEM: {error}"))),
    }
}

fn refused(what: &'static str, path: &Path, message: &str) -> AuthError {
    // One line, whatever the library says.
    let message = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    AuthError::File { what, file: shown(path), message }
}

/// Verifies chains as rustls does and then, if there is a list, that the certificate carries one of its names.
#[derive(Debug)]
struct NamedClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Vec<String>,
}

impl ClientCertVerifier for NamedClientVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if self.allowed.is_empty()
            || names(end_entity).alternative.iter().any(|name| self.allowed.contains(name))
        {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }
}
