//! In: the files of web configuration and credentials; out: an [`Authenticator`] that follows them. New files are
//! read whole before they count; broken ones change nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::authenticator::{AccessPolicy, Authenticator};
use super::error::AuthError;
use super::files::{Secrecy, read_text, shown};
use super::readers::{Readers, TOKEN_BYTES, reader_of};
use super::schema::{self, WebConfigFile};
use super::{Reader, tls};
use crate::config::Access;
use crate::filewatch::FileWatch;

/// Files of tokens beyond this many are refused: each is looked at once a second.
const MAX_TOKENS: usize = 1000;

/// The files that say who may read what, and the authenticator that follows them.
#[derive(Debug)]
pub struct AuthFiles {
    web_file: Option<PathBuf>,
    files: FileWatch,
    authenticator: Arc<Authenticator>,
}

impl AuthFiles {
    /// Reads the web configuration, if there is one, and every file that it and `access` name.
    ///
    /// # Errors
    /// What is wrong first, in one line.
    pub fn load(web_file: Option<&Path>, access: &Access) -> Result<Self, AuthError> {
        let mut watched = Self {
            web_file: web_file.map(Path::to_owned),
            files: FileWatch::default(),
            authenticator: Arc::default(),
        };
        watched.reload(access)?;
        Ok(watched)
    }

    /// What the server asks; the same for the life of the agent.
    pub fn authenticator(&self) -> Arc<Authenticator> {
        Arc::clone(&self.authenticator)
    }

    /// Whether one of the files is another than when it was last read or asked for: then [`Self::reload`] is due. Costs one
    /// `stat` a file.
    pub fn changed(&mut self) -> bool {
        self.files.changed()
    }

    /// Reads everything again, with the `access` section as it is now.
    ///
    /// # Errors
    /// What is wrong. The old configuration stays; the files that the new one names are watched all the same, so that one
    /// which comes late is noticed.
    pub fn reload(&mut self, access: &Access) -> Result<(), AuthError> {
        // Watched from before they are read: what changes meanwhile is seen at the next look.
        let settings = read_settings(self.web_file.as_deref())?;
        self.files = FileWatch::new(named_files(self.web_file.as_deref(), &settings, access));
        let settings =
            if self.web_file.is_some() { read_settings(self.web_file.as_deref())? } else { settings };
        let tls = settings.tls.as_ref().map(tls::load).transpose()?;
        let readers = readers(&settings, access)?;
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        self.authenticator.replace(AccessPolicy { readers, tls, headers: settings.headers });
        Ok(())
    }
}

fn read_settings(web_file: Option<&Path>) -> Result<WebConfigFile, AuthError> {
    let Some(path) = web_file else { return Ok(WebConfigFile::default()) };
    // Hashes are no secrets in the eyes of other exporters either, but who can write them can let himself in.
    let text = read_text(path, "web configuration", Secrecy::Public)?;
    schema::parse(&text, path.parent().unwrap_or(Path::new(""))).map_err(|problem| AuthError::Invalid {
        file: shown(path),
        line: problem.line.max(1),
        column: problem.column.max(1),
        message: problem.message,
    })
}

fn named_files(web_file: Option<&Path>, settings: &WebConfigFile, access: &Access) -> Vec<PathBuf> {
    let tls =
        settings.tls.iter().flat_map(|tls| [Some(&tls.certificate), Some(&tls.key), tls.client_ca.as_ref()]);
    let tokens = access.lists().flat_map(|(_, credentials)| &credentials.bearer_token_files);
    web_file.into_iter().map(Path::to_owned).chain(tls.flatten().chain(tokens).cloned()).collect()
}

/// Who is who. With tenants configured, a user in no list is nobody: a tenant whose line was forgotten must not see
/// everything. Without them every user is an operator, as with other exporters.
fn readers(settings: &WebConfigFile, access: &Access) -> Result<Readers, AuthError> {
    let mut readers = Readers::default();
    if !settings.users.is_empty() || !access.is_empty() {
        readers.require_credentials();
    }
    let has_lists = !access.tenants.is_empty() || !access.operators.basic_auth_users.is_empty();
    let mut users = settings.users.clone();
    let mut tokens = 0;
    for (tenant, credentials) in access.lists() {
        let reader = reader_of(tenant);
        for user in &credentials.basic_auth_users {
            if let Some(hash) = users.remove(user) {
                readers.add_user(user.clone(), hash, reader.clone());
            } else {
                tracing::warn!(
                    user,
                    "`access` names a user who is not in basic_auth_users of the web configuration"
                );
            }
        }
        for path in &credentials.bearer_token_files {
            tokens += 1;
            if tokens > MAX_TOKENS {
                return Err(AuthError::Access(format!(
                    "access: more than {MAX_TOKENS} token files: use client certificates or users for some"
                )));
            }
            add_token(&mut readers, path, reader.clone())?;
        }
        if !credentials.client_certificates.is_empty()
            && settings.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none())
        {
            return Err(AuthError::Access(
                "access: client_certificates needs a `client_ca_file` and a `client_auth_type` in the web \
                 configuration's tls_server_config (`--web.config.file`)"
                    .into(),
            ));
        }
        for name in &credentials.client_certificates {
            readers.add_certificate(name.clone(), reader.clone());
        }
    }
    for (user, hash) in users {
        if has_lists {
            tracing::warn!(
                user,
                "user of the web configuration is in no list of `access` and may read nothing"
            );
        } else {
            readers.add_user(user, hash, Reader::Operator);
        }
    }
    Ok(readers)
}

fn add_token(readers: &mut Readers, path: &Path, reader: Reader) -> Result<(), AuthError> {
    let text = read_text(path, "bearer token", Secrecy::Secret)?;
    let token = text.trim();
    let refused = |message: String| AuthError::File { what: "bearer token", file: shown(path), message };
    if !TOKEN_BYTES.contains(&token.len()) {
        return Err(refused(format!(
            "holds {} bytes: write a token of {} to {}, such as `openssl rand -hex 32` prints",
            token.len(),
            TOKEN_BYTES.start(),
            TOKEN_BYTES.end()
        )));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if !token.bytes().all(allowed) {
        return Err(refused(
            "holds more than a token: write one line of letters, digits and -._~+/=, nothing else".into(),
        ));
    }
    if !readers.add_token(token, reader) {
        return Err(refused("holds a token that another file holds too: make one for each".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
