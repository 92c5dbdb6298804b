//! In: the text of a web configuration file; out: what it asks for, checked, or a problem with its place. Opens no file.
//! The format is that of Prometheus' exporters; what this agent does not do is refused, not ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hyper::header::{HeaderName, HeaderValue};
use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::ring::{ALL_CIPHER_SUITES, kx_group};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::config::values::{did_you_mean, file_path, one_of, shown};
use crate::config::yaml::{ConfigProblem, Scalar, at, read, set};

/// Users beyond this many are refused.
const MAX_USERS: usize = 1000;
/// bcrypt's cost: beyond, one password takes seconds.
const MAX_COST: u32 = 14;

/// What a web configuration file asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct WebConfigFile {
    pub tls: Option<TlsSettings>,
    /// Sent with every answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// bcrypt hashes by user.
    pub users: BTreeMap<String, String>,
    /// Asked for, harmless, and not done.
    pub warnings: Vec<String>,
}

/// `tls_server_config`.
#[derive(Clone, Debug)]
pub(super) struct TlsSettings {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
    /// Of these a client's certificate must carry one, if there are any.
    pub allowed_names: Vec<String>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// TLS 1.2 suites by name; TLS 1.3 has no weak ones to leave out.
    pub suites: Option<Vec<SupportedCipherSuite>>,
    pub groups: Option<Vec<&'static dyn SupportedKxGroup>>,
    pub prefer_server_suites: bool,
}

/// `client_auth_type`, as far as it verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuth {
    None,
    IfGiven,
    Required,
}

/// TLS versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TlsVersion {
    Tls12,
    Tls13,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFile {
    tls_server_config: Option<Spanned<RawTls>>,
    http_server_config: Option<RawHttp>,
    basic_auth_users: Option<BTreeMap<String, Scalar>>,
    rate_limit: Option<Spanned<BTreeMap<String, Scalar>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTls {
    cert_file: Option<Scalar>,
    key_file: Option<Scalar>,
    client_ca_file: Option<Scalar>,
    cert: Option<Scalar>,
    key: Option<Scalar>,
    client_ca: Option<Scalar>,
    client_auth_type: Option<Scalar>,
    client_allowed_sans: Option<Vec<Scalar>>,
    min_version: Option<Scalar>,
    max_version: Option<Scalar>,
    cipher_suites: Option<Vec<Scalar>>,
    curve_preferences: Option<Vec<Scalar>>,
    prefer_server_cipher_suites: Option<Scalar>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHttp {
    http2: Option<Scalar>,
    headers: Option<BTreeMap<String, Scalar>>,
}

const BOOLEANS: &[(&str, bool)] = &[("true", true), ("false", false)];
const VERSIONS: &[(&str, Option<TlsVersion>)] = &[
    ("TLS13", Some(TlsVersion::Tls13)),
    ("TLS12", Some(TlsVersion::Tls12)),
    ("TLS11", None),
    ("TLS10", None),
];
const CLIENT_AUTH: &[(&str, Option<ClientAuth>)] = &[
    ("NoClientCert", Some(ClientAuth::None)),
    ("RequestClientCert", None),
    ("RequireClientCert", None),
    ("RequireAnyClientCert", None),
    ("VerifyClientCertIfGiven", Some(ClientAuth::IfGiven)),
    ("RequireAndVerifyClientCert", Some(ClientAuth::Required)),
];
/// Headers that may be set.
const HEADERS: [&str; 5] = [
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
];

/// Checks a web configuration; relative paths in it are below `directory`.
pub(super) fn parse(text: &str, directory: &Path) -> Result<WebConfigFile, ConfigProblem> {
    let mut settings = WebConfigFile::default();
    // An empty file asks for nothing, as it does in other exporters.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(settings);
    }
    let raw: RawFile = read(text)?;
    if let Some(limit) = raw.rate_limit {
        let message =
            "rate_limit: this agent limits connections, with `web.max_connections`: remove it".into();
        return Err(at(limit.referenced, message));
    }
    if let Some(raw) = raw.tls_server_config {
        settings.tls = tls(raw, directory)?;
    }
    let http = raw.http_server_config.unwrap_or_default();
    let mut http2 = false;
    set(&mut http2, http.http2, "http_server_config.http2", one_of(BOOLEANS))?;
    if http2 {
        settings.warnings.push("http_server_config.http2: this agent serves HTTP/1.1 only".into());
    }
    for (name, value) in http.headers.unwrap_or_default() {
        settings.headers.push(header(&name, &value)?);
    }
    let users = raw.basic_auth_users.unwrap_or_default();
    if users.len() > MAX_USERS {
        let place = users.values().next().map_or(Location::UNKNOWN, |user| user.referenced);
        return Err(at(
            place,
            format!("basic_auth_users: more than {MAX_USERS}: use bearer tokens for tenants"),
        ));
    }
    for (user, hash) in users {
        let problem =
            |message: String| at(hash.referenced, format!("basic_auth_users.{}: {message}", shown(&user)));
        if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) || user.len() > 256 {
            return Err(problem("no user has such a name: write 1 to 256 bytes without `:`".into()));
        }
        check_hash(&hash.value).map_err(problem)?;
        settings.users.insert(user, hash.value);
    }
    Ok(settings)
}

/// Never repeats the hash: the line may be logged.
fn check_hash(hash: &str) -> Result<(), String> {
    const FORM: &str =
        "not a bcrypt hash: write one such as `htpasswd -nBC 10 USER` prints after the colon, in quotes";
    let known = ["$2a$", "$2b$", "$2y$"].iter().any(|version| hash.starts_with(version));
    let parts: bcrypt::HashParts = hash.parse().map_err(|_| FORM.to_owned())?;
    if !known || parts.get_cost() < 4 {
        return Err(FORM.into());
    }
    if parts.get_cost() > MAX_COST {
        return Err(format!(
            "bcrypt cost {} would take seconds for each password: use 10 to {MAX_COST}",
            parts.get_cost()
        ));
    }
    Ok(())
}

fn header(name: &str, value: &Scalar) -> Result<(HeaderName, HeaderValue), ConfigProblem> {
    let key = format!("http_server_config.headers.{}", shown(name));
    let Some(known) = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(name)) else {
        let message = format!(
            "{key}: may not be set: use one of {}{}",
            HEADERS.join(", "),
            did_you_mean(name, &HEADERS)
        );
        return Err(at(value.referenced, message));
    };
    let allowed: &[&str] = match *known {
        "X-Content-Type-Options" => &["nosniff"],
        "X-Frame-Options" => &["deny", "sameorigin"],
        _ => &[],
    };
    let text = value.value.trim();
    if !allowed.is_empty() && !allowed.iter().any(|word| word.eq_ignore_ascii_case(text)) {
        return Err(at(
            value.referenced,
            format!("{key}: `{}`: write {}", shown(text), allowed.join(" or ")),
        ));
    }
    let valid = HeaderValue::from_str(text).ok().filter(|_| text.len() <= 4096 && text.is_ascii());
    match (HeaderName::from_bytes(known.as_bytes()), valid) {
        (Ok(name), Some(value)) => Ok((name, value)),
        _ => Err(at(value.referenced, format!("{key}: no header has this value: write printable ASCII"))),
    }
}

fn tls(raw: Spanned<RawTls>, directory: &Path) -> Result<Option<TlsSettings>, ConfigProblem> {
    let (place, raw) = (raw.referenced, raw.value);
    for (name, value) in [("cert", raw.cert), ("key", raw.key), ("client_ca", raw.client_ca)] {
        if let Some(value) = value {
            let message = format!("tls_server_config.{name}: PEM is read from files only: use `{name}_file`");
            return Err(at(value.referenced, message));
        }
    }
    let file = |raw: Option<Scalar>, key: &str| -> Result<Option<PathBuf>, ConfigProblem> {
        let mut path = None;
        set(&mut path, raw, &format!("tls_server_config.{key}"), |text| {
            if text.is_empty() { Ok(None) } else { file_path(text).map(|path| Some(directory.join(path))) }
        })?;
        Ok(path)
    };
    let certificate = file(raw.cert_file, "cert_file")?;
    let key = file(raw.key_file, "key_file")?;
    let client_ca = file(raw.client_ca_file, "client_ca_file")?;
    let client_auth = client_auth(raw.client_auth_type)?;
    let (certificate, key) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) if client_ca.is_none() && client_auth == ClientAuth::None => return Ok(None),
        (None, _) => return Err(at(place, "tls_server_config: `cert_file` is missing".into())),
        (_, None) => return Err(at(place, "tls_server_config: `key_file` is missing".into())),
    };
    let problem = |message: &str| Err(at(place, format!("tls_server_config: {message}")));
    let allowed_names: Vec<String> =
        raw.client_allowed_sans.unwrap_or_default().into_iter().map(|name| name.value).collect();
    if client_auth == ClientAuth::None && client_ca.is_some() {
        return problem("`client_ca_file` without `client_auth_type`: add RequireAndVerifyClientCert");
    }
    if client_auth != ClientAuth::None && client_ca.is_none() {
        return problem("`client_auth_type` without `client_ca_file`: name the CA of your clients");
    }
    if client_auth == ClientAuth::None && !allowed_names.is_empty() {
        return problem("`client_allowed_sans` without `client_auth_type`: add RequireAndVerifyClientCert");
    }
    let (mut min_version, mut max_version) = (TlsVersion::Tls12, TlsVersion::Tls13);
    set(&mut min_version, raw.min_version, "tls_server_config.min_version", version)?;
    let max = set(&mut max_version, raw.max_version, "tls_server_config.max_version", version)?;
    if min_version > max_version {
        let message = "tls_server_config: min_version is above max_version: swap them".into();
        return Err(at(max.unwrap_or(place), message));
    }
    let mut prefer_server_suites = true;
    let key_name = "tls_server_config.prefer_server_cipher_suites";
    set(&mut prefer_server_suites, raw.prefer_server_cipher_suites, key_name, one_of(BOOLEANS))?;
    let suites = raw.cipher_suites.filter(|names| !names.is_empty()).map(suites).transpose()?;
    if suites.as_ref().is_some_and(Vec::is_empty) && max_version == TlsVersion::Tls12 {
        return problem(
            "cipher_suites leaves nothing for TLS 1.2: add TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        );
    }
    let groups = raw.curve_preferences.filter(|names| !names.is_empty()).map(groups).transpose()?;
    Ok(Some(TlsSettings {
        certificate,
        key,
        client_ca,
        client_auth,
        allowed_names,
        min_version,
        max_version,
        suites,
        groups,
        prefer_server_suites,
    }))
}

fn client_auth(raw: Option<Scalar>) -> Result<ClientAuth, ConfigProblem> {
    let mut found = ClientAuth::None;
    set(&mut found, raw, "tls_server_config.client_auth_type", |text| {
        if text.is_empty() {
            return Ok(ClientAuth::None);
        }
        one_of(CLIENT_AUTH)(text)?.ok_or_else(|| {
            format!(
                "`{text}` takes any certificate without verifying it: use VerifyClientCertIfGiven or \
                 RequireAndVerifyClientCert"
            )
        })
    })?;
    Ok(found)
}

fn version(text: &str) -> Result<TlsVersion, String> {
    one_of(VERSIONS)(text)?.ok_or_else(|| format!("`{text}` is broken and not offered: use TLS12 or TLS13"))
}

/// The TLS 1.2 suites among the named ones. Names are those of the IANA, as Go has them.
fn suites(names: Vec<Scalar>) -> Result<Vec<SupportedCipherSuite>, ConfigProblem> {
    let mut found = Vec::new();
    for name in names {
        // Go's older names of two suites.
        let full = match name.value.as_str() {
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => {
                format!("{}_SHA256", name.value)
            }
            other => other.to_owned(),
        };
        let all = || ALL_CIPHER_SUITES.iter().map(|suite| (suite_name(*suite), *suite));
        match all().find(|(known, _)| *known == full) {
            Some((_, suite)) if suite.version() == &rustls::version::TLS12 => found.push(suite),
            Some(_) => {}
            None => {
                let known: Vec<String> = all().map(|(name, _)| name).collect();
                let message = format!(
                    "tls_server_config.cipher_suites: `{}` is not offered: use {}",
                    shown(&name.value),
                    known.join(", ")
                );
                return Err(at(name.referenced, message));
            }
        }
    }
    Ok(found)
}

fn suite_name(suite: SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

fn groups(names: Vec<Scalar>) -> Result<Vec<&'static dyn SupportedKxGroup>, ConfigProblem> {
    let mut found: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    for name in names {
        found.push(match name.value.as_str() {
            "X25519" => kx_group::X25519,
            "CurveP256" => kx_group::SECP256R1,
            "CurveP384" => kx_group::SECP384R1,
            other => {
                let message = format!(
                    "tls_server_config.curve_preferences: `{}` is not offered: use X25519, CurveP256, CurveP384",
                    shown(other)
                );
                return Err(at(name.referenced, message));
            }
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
