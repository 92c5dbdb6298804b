//! In: a path from configuration; out: the file's bytes, if they are few and nobody else can write or, where secret, read
//! them. Knows no format.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use procfs::process::Process;

use super::AuthError;
use crate::identity::path::printable;

/// Largest file, bytes.
const FILE_BYTES: u64 = 1 << 20;

/// Whether a file's content gives access to whoever knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    Public,
    Secret,
}

/// A path as error lines show it.
pub(super) fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

/// Reads `what`. Links are followed: the modes are those of what they lead to.
pub(super) fn read(path: &Path, what: &'static str, secrecy: Secrecy) -> Result<Vec<u8>, AuthError> {
    let failed = |source| AuthError::Read { what, file: shown(path), source };
    let refused = |message: &str| AuthError::File { what, file: shown(path), message: message.to_owned() };
    // Before opening: opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refused("is not a regular file: name one"));
    }
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mode = meta.mode();
    match secrecy {
        Secrecy::Secret if mode & 0o026 != 0 => {
            return Err(refused(&format!(
                "has mode {:04o}, so others may read or change it: make it 0640 or stricter with `chmod`, or with \
                 `defaultMode: 0400` in Kubernetes",
                mode & 0o7777
            )));
        }
        Secrecy::Public if mode & 0o002 != 0 => {
            return Err(refused("may be written by everybody: take that away with `chmod o-w`"));
        }
        _ => {}
    }
    if !is_mine(&meta) {
        return Err(refused(&format!(
            "belongs to user {}, and its mode does not let the agent read it once it has given up its capabilities: `chown` it to \
             the agent's user",
            meta.uid(),
        )));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(refused("is larger than 1 MiB: name another"));
    }
    Ok(bytes)
}

/// Whether the modes let this process read a file, without any capability; also if the system does not tell who it is.
fn is_mine(meta: &fs::Metadata) -> bool {
    let Ok(status) = Process::myself().and_then(|process| process.status()) else { return true };
    let bit = if meta.uid() == status.euid {
        0o400
    } else if meta.gid() == status.egid || status.groups.iter().any(|group| *group == meta.gid()) {
        0o040
    } else {
        0o004
    };
    meta.mode() & bit != 0
}

/// Reads `what` as text.
pub(super) fn read_text(path: &Path, what: &'static str, secrecy: Secrecy) -> Result<String, AuthError> {
    String::from_utf8(read(path, what, secrecy)?).map_err(|_| AuthError::Read {
        what,
        file: shown(path),
        source: io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn modes_and_kinds() {
        let dir = std::env::temp_dir().join(format!("kernmeter-web-files-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("token");
        fs::write(&path, "x").unwrap();
        for (mode, secret, public) in [
            (0o400, true, true),
            (0o600, true, true),
            (0o640, true, true),
            (0o444, false, true),
            (0o644, false, true),
            (0o660, false, true),
            (0o602, false, false),
            (0o666, false, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, "token", Secrecy::Secret).is_ok(), secret, "{mode:o}");
            assert_eq!(read(&path, "token", Secrecy::Public).is_ok(), public, "{mode:o}");
        }
        let error = read(&path, "token", Secrecy::Secret).unwrap_err().to_string();
        assert!(error.contains("has mode 0666") && error.contains("defaultMode: 0400"), "{error}");
        for odd in [dir.clone(), dir.join("absent"), "/dev/zero".into()] {
            let error = read(&odd, "token", Secrecy::Public).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.contains('`'), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(read(&path, "token", Secrecy::Secret).is_err());
        fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path, "token", Secrecy::Secret).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
