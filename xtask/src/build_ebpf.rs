//! In: the sources of `agent-ebpf`; out: the objects in `target/`, touched only when their bytes change, and lints. Knows nothing of
//! the agent that embeds it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::toolchain::install::{self, Retry};
use crate::toolchain::{self, Toolchain};
use crate::workspace;

const TRIPLE: &str = "bpfel-unknown-none";
const BINARY: &str = "kernmeter-ebpf";

/// The objects the agent embeds, and the features each is built with: one that keeps the state of tasks in task storage,
/// one for kernels that have none.
const OBJECTS: [(&str, &str); 2] =
    [("kernmeter.bpf.o", "programs"), ("kernmeter-task-table.bpf.o", "programs,task_table")];

/// Where the objects are.
pub fn objects() -> Vec<PathBuf> {
    OBJECTS.iter().map(|(name, _)| workspace::target().join(name)).collect()
}

/// Builds the objects, installing what that needs.
pub fn run() -> Result<()> {
    let toolchain = install::ensure(Retry::Later)?;
    OBJECTS.iter().try_for_each(|(name, features)| build(&toolchain, name, features))
}

/// Lints the programs as they are built, warnings being errors. Why that cannot be done here, if it cannot.
pub fn lint() -> Result<Option<String>> {
    let toolchain = install::ensure(Retry::Later)?;
    let driver = toolchain.rustc.with_file_name("clippy-driver");
    // Distributions package it apart, of another release perhaps; it can use the library of its own compiler only.
    let version = workspace::output(workspace::command(&driver).args(["--rustc", "--version"]));
    match version {
        Err(_) => return Ok(Some(format!("clippy is not installed beside `{}`", toolchain.rustc.display()))),
        Ok(version) if version.trim() != toolchain.version => {
            return Ok(Some(format!(
                "clippy is of {}, the compiler is {}",
                version.trim(),
                toolchain.version
            )));
        }
        Ok(_) => {}
    }
    for (_, features) in OBJECTS {
        workspace::run(cargo(&toolchain, "clippy", features)?.args(["--", "-Dwarnings"]))?;
    }
    Ok(None)
}

/// Where cargo builds the programs: another compiler must not share the workspace's folder, nor wait for its lock.
fn target() -> PathBuf {
    workspace::target().join("ebpf")
}

/// Cargo on the programs, for their target.
fn cargo(toolchain: &Toolchain, subcommand: &str, features: &str) -> Result<Command> {
    let mut cargo = workspace::command(&toolchain.cargo);
    cargo
        .args([subcommand, "--locked", "--release", "--package", "agent-ebpf", "--bin", BINARY])
        .args(["--features", features, "--target", TRIPLE, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target());
    for setting in ["opt-level=3", "codegen-units=1", "panic=\"abort\"", "strip=false", "incremental=false"] {
        cargo.arg("--config").arg(format!("profile.release.{setting}"));
    }
    for name in [
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_INCREMENTAL",
        "CARGO_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        cargo.env_remove(name);
    }
    cargo
        .env("RUSTC", &toolchain.rustc)
        // `-Z build-std` and the intrinsics of the programs, on a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain)?);
    Ok(cargo)
}

fn build(toolchain: &Toolchain, name: &str, features: &str) -> Result<()> {
    workspace::run(&mut cargo(toolchain, "build", features)?)?;
    let built = target().join(TRIPLE).join("release").join(BINARY);
    let bytes = without_debug_info(&built, toolchain)?;
    let object = workspace::target().join(name);
    let written = workspace::write_if_changed(&object, &bytes)?;
    println!(
        "build-ebpf: {} ({} bytes, {})",
        object.display(),
        bytes.len(),
        if written { "new" } else { "unchanged" }
    );
    Ok(())
}

/// The object without DWARF, which is four fifths of it and which nobody reads: its types and lines are in BTF too. What
/// debugs it is left beside it, where the compiler put it. Without a tool for that, the object stays as it is.
fn without_debug_info(built: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let stripped = built.with_extension("stripped");
    let sysroot = toolchain.sysroot()?;
    // One folder per target of the compiler; the host's has the tool.
    let targets = fs::read_dir(sysroot.join("lib/rustlib")).into_iter().flatten().flatten();
    let own = targets.map(|target| target.path().join("bin/rust-objcopy"));
    let others = [format!("llvm-objcopy-{}", toolchain.llvm), "llvm-objcopy".to_owned()].map(PathBuf::from);
    let done = own.chain(others).any(|program| {
        let mut objcopy = workspace::command(program);
        // The compiler's own copy finds its LLVM there.
        objcopy.env("LD_LIBRARY_PATH", sysroot.join("lib")).arg("--strip-debug").arg(built).arg(&stripped);
        workspace::output(&mut objcopy).is_ok()
    });
    if !done {
        println!(
            "build-ebpf: neither rust-objcopy nor llvm-objcopy works: debug information stays in the object"
        );
    }
    let path = if done { &stripped } else { built };
    fs::read(path).with_context(|| format!("cannot read \"{}\"", path.display()))
}

/// Compiler flags, joined by the byte cargo splits them at (paths may hold spaces).
fn flags(toolchain: &Toolchain) -> Result<OsString> {
    let mut flags: Vec<OsString> = [
        "--cfg=bpf_target_arch=\"x86_64\"",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // The generic CPU has no fetching atomics.
        "-Ctarget-cpu=v3",
    ]
    .map(OsString::from)
    .to_vec();
    let mut linker = OsString::from("-Clinker=");
    linker.push(toolchain::bpf_linker());
    flags.push(linker);
    // The same bytes wherever the sources, the registry and the compiler lie.
    let mut remaps = vec![(toolchain.sources()?, "/rustc"), (workspace::root(), "/kernmeter")];
    if let Some(home) = toolchain::cargo_home() {
        remaps.push((home, "/cargo"));
    }
    for (from, to) in remaps {
        let mut remap = OsString::from("--remap-path-prefix=");
        remap.push(from);
        remap.push("=");
        remap.push(to);
        flags.push(remap);
    }
    Ok(flags.join(&OsString::from("\u{1f}")))
}
