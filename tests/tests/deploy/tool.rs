//! In: the name of an outside program and its arguments; out: what it printed, or a [`Skip`] if it is not installed.
//! Knows none of the programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use kernmeter_tests::Skip;

/// The folder `deploy/` of this workspace.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A program on `PATH`.
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

/// Ends the trial as skipped unless this process is root.
///
/// # Errors
/// A [`Skip`] when it is not.
pub fn need_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        .context("no `Uid:` in /proc/self/status")?;
    if effective == "0" { Ok(()) } else { Err(Skip("only root can load programs".to_owned()).into()) }
}

/// Runs a command to its end; standard output, then standard error.
///
/// # Errors
/// When it fails; all it printed is in the message.
pub fn run(command: &mut Command) -> Result<(String, String)> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{}`", command.get_program().display()))?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("`{}` failed ({}):\n{out}{err}", command.get_program().display(), output.status);
    }
    Ok((out, err))
}
