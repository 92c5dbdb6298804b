//! In: the files of web configuration and credentials; out: an [`Authenticator`] that follows them. New files are read whole
//! before they count. Broken ones let nobody in who was not let in before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;

use super::authenticator::{AccessPolicy, Authenticator};
use super::error::AuthError;
use super::files::{Secrecy, read_text, shown};
use super::readers::{Readers, TOKEN_BYTES, reader_of};
use super::schema::{self, ClientAuth, WebConfigFile};
use super::{Reader, tls};
use crate::config::{Access, Mode};
use crate::filewatch::FileWatch;

/// Files of tokens beyond this many are refused: each is looked at once a second.
const MAX_TOKENS: usize = 1000;

/// The files that say who may read what, and the authenticator that follows them.
#[derive(Debug)]
pub struct AuthFiles {
    web_file: Option<PathBuf>,
    files: FileWatch,
    authenticator: Arc<Authenticator>,
    in_force: InForce,
}

/// What was read last and will do.
#[derive(Clone, Debug, Default)]
struct InForce {
    settings: WebConfigFile,
    access: Access,
    tls: Option<Arc<ServerConfig>>,
}

/// What stands between a stranger and the series, lock by lock: see [`LOCKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guard([bool; LOCKS.len()]);

/// What would be so without each lock.
const LOCKS: [&str; 5] = [
    "everyone could read everything without credentials",
    "connections would no longer be encrypted",
    "clients would no longer need a certificate",
    "client certificates of any name would do",
    "every user of the web configuration would be an operator",
];

impl Guard {
    fn of(settings: &WebConfigFile, access: &Access) -> Guard {
        let tls = settings.tls.as_ref();
        Guard([
            needs_credentials(settings, access),
            tls.is_some(),
            tls.is_some_and(|tls| tls.client_auth == ClientAuth::Required),
            tls.is_some_and(|tls| !tls.allowed_names.is_empty()),
            has_user_lists(access),
        ])
    }

    /// What would be so after `new`, which lacks a lock of this one.
    fn lost_in(self, new: Guard) -> Option<&'static str> {
        let locks = self.0.into_iter().zip(new.0).zip(LOCKS);
        locks.into_iter().find_map(|((was, is), what)| (was && !is).then_some(what))
    }
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
            in_force: InForce::default(),
        };
        match watched.reload(access).into_iter().next() {
            None => Ok(watched),
            Some(problem) => Err(problem),
        }
    }

    /// What the server asks; the same for the life of the agent.
    pub fn authenticator(&self) -> Arc<Authenticator> {
        Arc::clone(&self.authenticator)
    }

    /// Whether one of the files is another than when it was last read or asked for, or is gone: then [`Self::reload`] is due.
    /// Costs one `stat` a file.
    pub fn changed(&mut self) -> bool {
        self.files.changed()
    }

    /// Reads the files again that are in force.
    pub fn reload_files(&mut self) -> Vec<AuthError> {
        let access = self.in_force.access.clone();
        self.reload(&access)
    }

    /// Reads everything again, with the `access` section as it is now, and returns what is wrong. Each on its own: a web
    /// configuration or a certificate that cannot be used leaves the one before in force; a token whose file cannot be used,
    /// or is gone, lets nobody in any more; and what would let more in than before by saying less, rather than by
    /// [`Mode::Open`], is left out. The files that are named now, and those in force, are
    /// watched in any case.
    pub fn reload(&mut self, access: &Access) -> Vec<AuthError> {
        let mut problems = Vec::new();
        let web_file = self.web_file.as_deref();
        // Watched from before they are read: what changes meanwhile is seen at the next look. Those in force too, which may stay.
        let old = self.in_force.clone();
        let named = read_settings(web_file).unwrap_or_default();
        let mut files = named_files(web_file, &named, access);
        files.extend(named_files(None, &old.settings, &old.access));
        files.sort();
        files.dedup();
        self.files = FileWatch::new(files);
        let read = read_settings(web_file).and_then(|settings| {
            let tls = settings.tls.as_ref().map(tls::load).transpose()?;
            Ok(InForce { settings, access: access.clone(), tls })
        });
        let new = read.unwrap_or_else(|problem| {
            problems.push(problem);
            InForce { access: access.clone(), ..old.clone() }
        });
        let before = Guard::of(&old.settings, &old.access);
        let lost = |taken: &InForce| before.lost_in(Guard::of(&taken.settings, &taken.access));
        self.in_force = match lost(&new) {
            Some(what) if access.mode != Some(Mode::Open) => {
                let remedy = if what == LOCKS[0] {
                    "a reload does that only where `access.mode` is `open`: write that, or start the agent anew"
                } else {
                    "a reload does not do that: start the agent anew"
                };
                problems.push(AuthError::Access(format!("{what}: {remedy}")));
                // Whichever of the two says less is not taken; neither, if both do.
                let web_as_before = InForce { access: new.access.clone(), ..old.clone() };
                let access_as_before = InForce { access: old.access.clone(), ..new };
                let mut parts = [web_as_before, access_as_before].into_iter();
                parts.find(|taken| lost(taken).is_none()).unwrap_or(old)
            }
            _ => new,
        };
        let InForce { settings, access, tls } = &self.in_force;
        let readers = readers(settings, access, &mut problems);
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        self.authenticator.replace(AccessPolicy {
            readers,
            tls: tls.clone(),
            headers: settings.headers.clone(),
        });
        problems
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

/// Whether readers must show credentials: also where that is said and none are named, so that nobody reads.
fn needs_credentials(settings: &WebConfigFile, access: &Access) -> bool {
    !settings.users.is_empty() || !access.is_empty() || access.mode == Some(Mode::Guarded)
}

/// Whether it is said which users may read what.
fn has_user_lists(access: &Access) -> bool {
    !access.tenants.is_empty() || !access.operators.basic_auth_users.is_empty()
}

/// Who is who. With tenants configured, a user in no list is nobody: a tenant whose line was forgotten must not see
/// everything. Without them every user is an operator, as with other exporters.
fn readers(settings: &WebConfigFile, access: &Access, problems: &mut Vec<AuthError>) -> Readers {
    let mut readers = Readers::default();
    let has_credentials = !settings.users.is_empty() || !access.is_empty();
    match (has_credentials, access.mode) {
        (false, Some(Mode::Guarded)) => problems.push(AuthError::Access(
            "access.mode is `guarded`, but there are no credentials, so nobody may read: name some in `access`, or basic_auth_users in the web \
             configuration (`--web.config.file`)"
                .into(),
        )),
        (true, Some(Mode::Open)) => problems.push(AuthError::Access(
            "access.mode is `open`, but there are credentials: remove one of the two".into(),
        )),
        _ => {}
    }
    if needs_credentials(settings, access) {
        readers.require_credentials();
    }
    let has_lists = has_user_lists(access);
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
            if tokens == MAX_TOKENS + 1 {
                problems.push(AuthError::Access(format!(
                    "access: more than {MAX_TOKENS} token files: use client certificates or users for some"
                )));
            }
            if tokens <= MAX_TOKENS {
                problems.extend(add_token(&mut readers, path, reader.clone()).err());
            }
        }
        if !credentials.client_certificates.is_empty()
            && settings.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none())
        {
            problems.push(AuthError::Access(
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
    readers
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
