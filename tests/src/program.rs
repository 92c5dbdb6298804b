//! In: the name of an outside program; out: where it is, or a [`Skip`] if it is not installed; whether this process may load
//! programs. Starts nothing.

use std::path::PathBuf;

use anyhow::Result;

use crate::Skip;

/// A program on `PATH`, or where administrators' programs are.
///
/// # Errors
/// A [`Skip`] when it is not there.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| Skip(format!("`{program}` is not installed")).into())
}

/// Whether this process is root, without whom no test loads programs.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Ends the trial as skipped unless this process is root.
///
/// # Errors
/// A [`Skip`] when it is not.
pub fn need_root() -> Result<()> {
    if is_root() { Ok(()) } else { Err(Skip("only root can load programs".to_owned()).into()) }
}
