//! In: the `access` section as written; out: who may read what, checked for contradictions. Opens none of the files it names.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::values::{file_path, one_of, shown};
use super::yaml::{ConfigProblem, Scalar, at, set};
use crate::identity::rules::tenant_name;

/// Longest name of a user or certificate, bytes.
const NAME_BYTES: usize = 256;

/// `access`: whose credentials are whose. With nothing in it and no passwords in the web configuration everyone may read
/// everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// What is said of it in a word, if anything is.
    pub mode: Option<Mode>,
    /// May read everything.
    pub operators: Credentials,
    /// May read one tenant's series, by tenant id.
    pub tenants: BTreeMap<String, Credentials>,
}

/// `access.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everyone may read everything, and a reload may open what was guarded.
    Open,
    /// Readers must show credentials; without any the agent does not start.
    Guarded,
}

const MODES: &[(&str, Option<Mode>)] = &[("open", Some(Mode::Open)), ("guarded", Some(Mode::Guarded))];

/// What a reader may show to prove who he is. Each stands in one list only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Users of the web configuration's `basic_auth_users`.
    pub basic_auth_users: Vec<String>,
    /// Files that hold one token each.
    pub bearer_token_files: Vec<PathBuf>,
    /// Subject alternative names, or `CN=` and the common name, of verified client certificates.
    pub client_certificates: Vec<String>,
}

impl Access {
    /// Every list with whose it is: `None` for operators.
    pub fn lists(&self) -> impl Iterator<Item = (Option<&str>, &Credentials)> {
        let tenants = self.tenants.iter().map(|(tenant, credentials)| (Some(tenant.as_str()), credentials));
        std::iter::once((None, &self.operators)).chain(tenants)
    }

    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        self.lists().all(|(_, credentials)| credentials.is_empty())
    }

    pub(super) fn bearer_token_files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        std::iter::once(&mut self.operators)
            .chain(self.tenants.values_mut())
            .flat_map(|credentials| &mut credentials.bearer_token_files)
    }
}

impl Credentials {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.basic_auth_users.is_empty()
            && self.bearer_token_files.is_empty()
            && self.client_certificates.is_empty()
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAccess {
    mode: Option<Scalar>,
    operators: Option<RawCredentials>,
    tenants: Option<BTreeMap<String, Spanned<RawCredentials>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCredentials {
    basic_auth_users: Option<Vec<Scalar>>,
    bearer_token_files: Option<Vec<Scalar>>,
    client_certificates: Option<Vec<Scalar>>,
}

/// Fills `access` from what is written.
pub(super) fn read(access: &mut Access, raw: RawAccess) -> Result<(), ConfigProblem> {
    let mut taken = Taken::default();
    set(&mut access.mode, raw.mode, "access.mode", one_of(MODES))?;
    if let Some(operators) = raw.operators {
        access.operators = taken.credentials("access.operators", operators)?;
    }
    for (tenant, raw) in raw.tenants.unwrap_or_default() {
        let key = format!("access.tenants.{}", shown(&tenant));
        if tenant_name(tenant.as_bytes()).is_err() {
            let message = format!(
                "{key}: no tenant has this name: write 1 to 63 letters, digits, `.`, `_` and `-`, the first a letter or digit"
            );
            return Err(at(raw.referenced, message));
        }
        let place = raw.referenced;
        let credentials = taken.credentials(&key, raw.value)?;
        if credentials.is_empty() {
            let message = format!(
                "{key}: gives nobody access: list bearer_token_files, basic_auth_users or client_certificates"
            );
            return Err(at(place, message));
        }
        access.tenants.insert(tenant, credentials);
    }
    Ok(())
}

/// What is in a list already, and in which.
#[derive(Default)]
struct Taken(HashMap<(&'static str, String), String>);

impl Taken {
    fn credentials(&mut self, key: &str, raw: RawCredentials) -> Result<Credentials, ConfigProblem> {
        Ok(Credentials {
            basic_auth_users: self.list(key, "basic_auth_users", raw.basic_auth_users, |text| {
                if text.contains(':') {
                    Err(format!("`{}`: no user name has a colon", shown(text)))
                } else {
                    name(text)
                }
            })?,
            bearer_token_files: self.list(key, "bearer_token_files", raw.bearer_token_files, file_path)?,
            client_certificates: self.list(key, "client_certificates", raw.client_certificates, name)?,
        })
    }

    fn list<T>(
        &mut self,
        key: &str,
        list: &'static str,
        raw: Option<Vec<Scalar>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigProblem> {
        let mut values = Vec::new();
        for scalar in raw.unwrap_or_default() {
            values.push(
                parse(&scalar.value)
                    .map_err(|message| at(scalar.referenced, format!("{key}.{list}: {message}")))?,
            );
            let shown = shown(&scalar.value);
            if let Some(other) = self.0.insert((list, scalar.value), key.to_owned()) {
                let message = format!("{key}.{list}: `{shown}` is already in {other}: one reader, one list");
                return Err(at(scalar.referenced, message));
            }
        }
        Ok(values)
    }
}

fn name(text: &str) -> Result<String, String> {
    let inner = text.strip_prefix("CN=").unwrap_or(text);
    if inner.is_empty() || text.len() > NAME_BYTES || text.chars().any(char::is_control) {
        return Err(format!(
            "`{}` is no name: write 1 to {NAME_BYTES} bytes without control characters",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}
