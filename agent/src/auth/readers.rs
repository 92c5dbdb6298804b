//! In: who has which credentials; a request's credentials; out: the reader they stand for, if any. Reads no file.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use ring::digest::{SHA256, digest};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::passwords::{Passwords, Verdict};
use super::{CertificateNames, Reader};

/// Shortest and longest bearer token, bytes.
pub(super) const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;

/// Why a request has no reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It shows no credentials.
    Missing,
    /// It shows something that cannot be read as credentials.
    Malformed,
    /// A token that nobody has.
    Token,
    /// A user that is not there or a password that is not his.
    Password,
    /// A verified certificate whose names are nobody's, or of several readers.
    Certificate,
    /// Too many passwords are being checked: come back later.
    Busy,
    /// The TLS handshake failed: nothing was asked.
    Handshake,
}

impl Refusal {
    /// As metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Token => "token",
            Self::Password => "password",
            Self::Certificate => "certificate",
            Self::Busy => "busy",
            Self::Handshake => "tls",
        }
    }
}

/// Who has which credentials. Built whole and then only read.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// SHA-256 of each token.
    tokens: Vec<([u8; 32], Reader)>,
    /// bcrypt hash by user, and whose he is.
    users: HashMap<String, (String, Reader)>,
    certificates: HashMap<String, Reader>,
    /// Takes as long to refuse as the dearest hash there is.
    dummy: String,
    /// Whether anybody needs credentials.
    credentials_required: bool,
}

impl Readers {
    /// Nobody reads without credentials from now on.
    pub(super) fn require_credentials(&mut self) {
        self.credentials_required = true;
    }

    pub(super) fn requires_credentials(&self) -> bool {
        self.credentials_required
    }

    /// False if the token is another reader's already.
    pub(super) fn add_token(&mut self, token: &str, reader: Reader) -> bool {
        let mut hashed = [0; 32];
        hashed.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if self.tokens.iter().any(|(known, _)| *known == hashed) {
            return false;
        }
        self.tokens.push((hashed, reader));
        true
    }

    pub(super) fn add_user(&mut self, user: String, hash: String, reader: Reader) {
        let cost = |hash: &str| hash.parse::<bcrypt::HashParts>().map_or(0, |parts| parts.get_cost());
        if cost(&hash) > cost(&self.dummy) {
            // The hash of nothing: salt and digest are zero.
            self.dummy = format!("$2b${:02}${}", cost(&hash), ".".repeat(53));
        }
        self.users.insert(user, (hash, reader));
    }

    pub(super) fn add_certificate(&mut self, name: String, reader: Reader) {
        self.certificates.insert(name, reader);
    }

    /// What a 401 asks for.
    pub(super) fn challenges(&self) -> Vec<HeaderValue> {
        let mut challenges = Vec::new();
        if !self.users.is_empty() {
            challenges.push(HeaderValue::from_static("Basic realm=\"kernmeter\", charset=\"UTF-8\""));
        }
        if !self.tokens.is_empty() || challenges.is_empty() {
            challenges.push(HeaderValue::from_static("Bearer realm=\"kernmeter\""));
        }
        challenges
    }

    /// The reader of a request. An `Authorization` header alone decides if there is one, else the certificate.
    pub(super) async fn identify(
        &self,
        passwords: &Passwords,
        headers: &HeaderMap,
        certificate: Option<&CertificateNames>,
        peer: IpAddr,
    ) -> Result<Reader, Refusal> {
        if !self.credentials_required {
            return Ok(Reader::Operator);
        }
        let mut authorization = headers.get_all(AUTHORIZATION).iter();
        let Some(first) = authorization.next() else {
            return certificate.map_or(Err(Refusal::Missing), |names| self.of_certificate(names));
        };
        if authorization.next().is_some() {
            return Err(Refusal::Malformed);
        }
        let (scheme, value) =
            first.to_str().ok().and_then(|text| text.trim().split_once(' ')).ok_or(Refusal::Malformed)?;
        let value = value.trim_start();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.of_token(value).ok_or(Refusal::Token);
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Refusal::Malformed);
        }
        let decoded = STANDARD.decode(value).map_err(|_| Refusal::Malformed)?;
        let colon = decoded.iter().position(|byte| *byte == b':').ok_or(Refusal::Malformed)?;
        let user = std::str::from_utf8(&decoded[..colon]).map_err(|_| Refusal::Malformed)?;
        self.of_password(passwords, user, &decoded[colon + 1..], peer).await
    }

    /// Every token is compared, all of each, whatever came before.
    fn of_token(&self, token: &str) -> Option<Reader> {
        let hashed = digest(&SHA256, token.as_bytes());
        let mut found = u32::MAX;
        for (index, (known, _)) in (0..).zip(&self.tokens) {
            found.conditional_assign(&index, known.ct_eq(hashed.as_ref()));
        }
        self.tokens.get(found as usize).map(|(_, reader)| reader.clone())
    }

    async fn of_password(
        &self,
        passwords: &Passwords,
        user: &str,
        password: &[u8],
        peer: IpAddr,
    ) -> Result<Reader, Refusal> {
        if self.users.is_empty() {
            return Err(Refusal::Password);
        }
        // Who is not there is refused after the same work.
        let known = self.users.get(user);
        let hash = known.map_or(self.dummy.as_str(), |(hash, _)| hash);
        match (passwords.check(user, password, hash, peer).await, known) {
            (Verdict::Right, Some((_, reader))) => Ok(reader.clone()),
            (Verdict::Busy, _) => Err(Refusal::Busy),
            _ => Err(Refusal::Password),
        }
    }

    /// A certificate with names of several readers is nobody's.
    fn of_certificate(&self, names: &CertificateNames) -> Result<Reader, Refusal> {
        let mut readers = names.iter().filter_map(|name| self.certificates.get(name));
        let reader = readers.next().ok_or(Refusal::Certificate)?;
        if readers.all(|other| other == reader) { Ok(reader.clone()) } else { Err(Refusal::Certificate) }
    }
}

/// Whose a list is.
pub(super) fn reader_of(tenant: Option<&str>) -> Reader {
    tenant.map_or(Reader::Operator, |tenant| Reader::Tenant(Arc::from(tenant)))
}

#[cfg(test)]
mod tests;
