//! In: nothing, or Debian's package of it; out: a command that starts the emulator. Installs nothing on the machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::{Apt, Sources};
use super::places::cache;
use crate::workspace;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// How to start the emulator.
pub struct Emulator {
    program: PathBuf,
    /// Where it was unpacked, if it is not the machine's own.
    root: Option<PathBuf>,
}

/// The machine's own emulator, or Debian's, unpacked into the cache: installing it could remove other packages.
pub fn find() -> Result<Emulator> {
    if let Some(program) = workspace::which(PROGRAM) {
        return Ok(Emulator { program, root: None });
    }
    let root = cache().join("qemu");
    let emulator = Emulator { program: root.join("usr/bin").join(PROGRAM), root: Some(root.clone()) };
    if !emulator.runs() {
        println!("vm: fetching {PACKAGE} into {} (nothing is installed)", root.display());
        let apt = Apt::open(&cache().join("apt-machine"), &Sources::Machine)?;
        apt.unpack_with_dependencies(PACKAGE, &root)
            .with_context(|| format!("cannot fetch the emulator; install {PACKAGE}"))?;
        if !emulator.runs() {
            bail!("the emulator in \"{}\" does not start; install {PACKAGE}", root.display());
        }
    }
    Ok(emulator)
}

impl Emulator {
    /// Where it is.
    pub fn name(&self) -> String {
        self.program.display().to_string()
    }

    fn runs(&self) -> bool {
        self.program.is_file() && workspace::output(self.command().arg("--version")).is_ok()
    }

    /// The emulator with what it needs to find its own files.
    pub fn command(&self) -> Command {
        // Emulation takes all it gets; whoever else works on this machine goes first.
        let mut command = workspace::command("nice");
        command.args(["-n", "10"]).arg(&self.program);
        if let Some(root) = &self.root {
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
            // Packages of releases in which /lib was not yet a part of /usr have libraries in both.
            let folders =
                ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| root.join(folder));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).unwrap_or_default());
        }
        command
    }
}
