//! In: names of Debian packages; out: the packages installed, or one line that says what to run. Knows not what they
//! are for.

use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace;

/// The packages of `wanted` that are not installed.
pub fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    wanted.iter().copied().filter(|package| !is_installed(package)).collect()
}

fn is_installed(package: &str) -> bool {
    workspace::output(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${db:Status-Status}",
        package,
    ]))
    .is_ok_and(|status| status == "installed")
}

/// Whether apt's lists offer every one of `packages`.
fn offered(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        workspace::output(Command::new("apt-cache").args(["policy", package]))
            .is_ok_and(|policy| policy.contains("Candidate: ") && !policy.contains("Candidate: (none)"))
    })
}

fn apt_get() -> Command {
    let mut command = workspace::command("apt-get");
    command
        .args(["--yes", "--quiet", "--option", "DPkg::Lock::Timeout=120"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Maintainer scripts that go through invoke-rc.d start no service in a runlevel that has none.
        .env("RUNLEVEL", "1");
    command
}

/// Installs what is missing of `wanted`, never removing another package. Returns what was installed.
pub fn install<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    if workspace::which("dpkg-query").is_none() || workspace::which("apt-get").is_none() {
        bail!("this is not a Debian system; install what corresponds to: {}", wanted.join(" "));
    }
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(missing);
    }
    let names = missing.join(" ");
    if !workspace::is_root() {
        bail!("not root; run: apt-get update && apt-get install --no-install-recommends {names}");
    }
    let updated = !offered(&missing);
    if updated {
        println!("setup: apt-get update");
        workspace::run(apt_get().arg("update"))?;
    }
    println!("setup: apt-get install {names}");
    let install = || {
        workspace::run(apt_get().args(["install", "--no-install-recommends", "--no-remove"]).args(&missing))
    };
    if let Err(error) = install() {
        if updated {
            return Err(error);
        }
        // Lists older than the mirror name releases it no longer has.
        println!("setup: {error}; apt-get update, then once more");
        workspace::run(apt_get().arg("update"))?;
        install()?;
    }
    Ok(missing)
}
