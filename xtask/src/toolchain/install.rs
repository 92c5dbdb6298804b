//! In: a bare machine; out: a compiler and a linker for the eBPF object. Says a line for each thing it finds, installs or
//! cannot have. Builds nothing of kernmeter.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::toolchain::{self, BPF_LINKER, Toolchain, Way};
use crate::{debian, workspace};

/// How long rustup may take for a component of 3 MB.
const RUSTUP_LIMIT: Duration = Duration::from_mins(1);
/// How long a failed download by rustup is remembered.
const RUSTUP_RETRY: Duration = Duration::from_hours(24);
/// rustc, cargo and the library's sources of one release; LLVM comes with them.
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What to do about a download that failed less than [`RUSTUP_RETRY`] ago.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Try it again.
    Now,
    /// Leave it.
    Later,
}

/// The toolchain for the eBPF object, installed if need be.
///
/// # Errors
/// It is not there and cannot be installed; the message says what to run.
pub fn ensure(retry: Retry) -> Result<Toolchain> {
    if retry == Retry::Later
        && let Ok(toolchain) = toolchain::remembered()
    {
        println!("setup: eBPF toolchain: {} (found), bpf-linker {BPF_LINKER} (found)", describe(&toolchain));
        return Ok(toolchain);
    }
    let toolchain = compiler(retry)?;
    println!("setup: eBPF compiler: {}", describe(&toolchain));
    linker(&toolchain)?;
    toolchain.remember()?;
    Ok(toolchain)
}

fn describe(toolchain: &Toolchain) -> String {
    let from = match toolchain.way {
        Way::Rustup => "rustup, RUSTC_BOOTSTRAP=1",
        Way::Debian => "Debian packages, RUSTC_BOOTSTRAP=1",
    };
    format!("{} with LLVM {} from {from}", toolchain.version, toolchain.llvm)
}

fn compiler(retry: Retry) -> Result<Toolchain> {
    let rustup = match by_rustup(retry) {
        Ok(toolchain) => return Ok(toolchain),
        Err(error) => error,
    };
    println!("setup: rustup: no: {rustup:#}; trying Debian packages");
    if let Ok(toolchain) = toolchain::debian() {
        return Ok(toolchain);
    }
    let advice = "get `rustup component add rust-src` or the Debian packages to work, then `cargo xtask setup --retry`";
    debian::install(&COMPILER)
        .and_then(|_| toolchain::debian())
        .with_context(|| format!("no compiler for the eBPF object (rustup: {rustup:#}); {advice}"))
}

fn by_rustup(retry: Retry) -> Result<Toolchain> {
    let Some((name, folder)) = toolchain::active_rustup() else {
        bail!("not installed, or no toolchain in use")
    };
    if let Ok(toolchain) = toolchain::rustup(&folder) {
        return Ok(toolchain);
    }
    let failure = workspace::tools().join("rustup-failed");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if retry == Retry::Later && failed_lately(&failure, &name, now) {
        bail!(
            "`rust-src` of {name} could not be downloaded less than a day ago (`cargo xtask setup --retry` tries again)"
        );
    }
    println!(
        "setup: rustup component add rust-src --toolchain {name} (at most {} s)",
        RUSTUP_LIMIT.as_secs()
    );
    let mut add = workspace::command("rustup");
    add.args(["component", "add", "rust-src", "--toolchain", &name]);
    match workspace::run_within(&mut add, RUSTUP_LIMIT).and_then(|()| toolchain::rustup(&folder)) {
        Ok(toolchain) => {
            let _ = fs::remove_file(&failure);
            Ok(toolchain)
        }
        Err(error) => {
            let record = format!("toolchain={name}\nat={}\n", now.as_secs());
            workspace::write_if_changed(&failure, record.as_bytes())?;
            Err(error)
        }
    }
}

fn failed_lately(record: &Path, toolchain: &str, now: Duration) -> bool {
    let Ok(text) = fs::read_to_string(record) else { return false };
    let mut lines = text.lines();
    let same = lines.next().and_then(|line| line.strip_prefix("toolchain=")) == Some(toolchain);
    let at = lines.next().and_then(|line| line.strip_prefix("at=")).and_then(|text| text.parse().ok());
    same && at
        .is_some_and(|at| now.checked_sub(Duration::from_secs(at)).is_some_and(|age| age < RUSTUP_RETRY))
}

/// Builds bpf-linker against the compiler's LLVM, unless it is there already.
fn linker(toolchain: &Toolchain) -> Result<()> {
    let prefix = link_llvm(toolchain)?;
    let install = |force: bool| {
        let mut install = workspace::cargo();
        install
            .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER, "--no-default-features"])
            .arg(format!("--features=llvm-{}", toolchain.llvm))
            .arg("--root")
            .arg(workspace::tools())
            // Its build script links with the library in `lib` below this and makes that its run path.
            .env("LLVM_PREFIX", &prefix)
            .env("LIBRARY_PATH", prefix.join("lib"))
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", format!("-L{}", prefix.join("lib").display()))
            .env("CARGO_TARGET_DIR", workspace::target().join("bpf-linker"))
            // Its own code hardly runs: the work is LLVM's. So half the time to build it is saved.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env_remove("RUSTC_BOOTSTRAP");
        if force {
            install.arg("--force");
        }
        println!(
            "setup: bpf-linker {BPF_LINKER} with LLVM {} (about a minute if it must be built)",
            toolchain.llvm
        );
        workspace::run(&mut install)
    };
    // Cargo does nothing when the same release with the same features is there ...
    install(false).context("bpf-linker cannot be built")?;
    if let Err(error) = toolchain::check_bpf_linker() {
        // ... but it cannot see that the LLVM it was linked with has gone, or that the workspace was moved.
        println!("setup: {error:#}; building it again");
        install(true).context("bpf-linker cannot be built")?;
        toolchain::check_bpf_linker()?;
    }
    let _ = fs::remove_dir_all(workspace::target().join("bpf-linker"));
    Ok(())
}

/// Makes `.tools/llvm/lib` a folder with the LLVM in use, under the name the linker looks for and under the name the
/// loader looks for.
fn link_llvm(toolchain: &Toolchain) -> Result<PathBuf> {
    let library = toolchain.llvm_library()?;
    let prefix = workspace::tools().join("llvm");
    let folder = prefix.join("lib");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot clear \"{}\"", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create \"{}\"", folder.display()))?;
    let name = library.file_name().context("the LLVM library has no file name")?;
    for link in [folder.join("libLLVM.so"), folder.join(name)] {
        symlink(&library, &link).with_context(|| format!("cannot create \"{}\"", link.display()))?;
    }
    println!("setup: LLVM {}: {}", toolchain.llvm, library.display());
    Ok(prefix)
}
