//! In: the name of an outside program and its arguments; out: what it printed, or a skip if it is not installed.
//! Knows none of the programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
pub use kernmeter_tests::program::{find, need_root};

/// The folder `deploy/` of this workspace.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
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
