//! In: the workspace; out: the agent's binary, built around a fresh eBPF object, and on request started in our place.
//! Knows none of the agent's own options.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, workspace};

#[derive(clap::Args)]
pub struct BuildArguments {
    /// Build what is shipped: link-time optimised, stripped, statically linked
    #[arg(long)]
    dist: bool,
}

#[derive(clap::Args)]
pub struct RunArguments {
    /// Arguments of `kernmeter run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "AGENT ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// `cargo xtask build`.
pub fn build(arguments: &BuildArguments) -> Result<()> {
    build_ebpf::run()?;
    let binary = if arguments.dist { dist()? } else { release()? };
    let size = fs::metadata(&binary).with_context(|| format!("cannot read \"{}\"", binary.display()))?.len();
    println!("build: {} ({:.1} MB)", binary.display(), size as f64 / 1e6);
    Ok(())
}

/// A build of programs that need no shared library, and the folder that it puts them under, by profile.
pub fn static_build() -> Result<(Command, PathBuf)> {
    let triple = host()?;
    let mut cargo = workspace::cargo();
    // With a target named, the flags do not reach build scripts and macros, which cannot be static.
    cargo.args(["build", "--target", &triple]).env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    Ok((cargo, workspace::target().join(triple)))
}

/// Builds the agent in the release profile, as virtual machines need it; the eBPF object must be there. Returns the binary's
/// path.
pub fn release() -> Result<PathBuf> {
    let (mut cargo, built) = static_build()?;
    workspace::run(cargo.args(["--release", "--package", "kernmeter", "--bin", "kernmeter"]))?;
    // Where people and tests look for it.
    let (from, to) = (built.join("release/kernmeter"), workspace::target().join("release/kernmeter"));
    let link = || {
        fs::create_dir_all(workspace::target().join("release"))?;
        match fs::remove_file(&to) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::hard_link(&from, &to),
        }
    };
    link().with_context(|| format!("cannot link \"{}\"", to.display()))?;
    Ok(to)
}

/// The binary that is shipped: it runs on any distribution, since it needs no shared library.
pub fn dist() -> Result<PathBuf> {
    let (mut cargo, built) = static_build()?;
    cargo.args(["--locked", "--profile", "dist", "--package", "kernmeter", "--bin", "kernmeter"]);
    // What is shipped names the very commit it was built from.
    if let Ok(revision) =
        workspace::output(workspace::command("git").args(["rev-parse", "--short=12", "HEAD"]))
    {
        cargo.env("KERNMETER_REVISION", revision.trim());
    }
    workspace::run(&mut cargo)?;
    Ok(built.join("dist/kernmeter"))
}

/// The target triple of this machine.
pub fn host() -> Result<String> {
    let version = workspace::output(workspace::cargo().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`cargo -vV` prints no host")?.to_owned())
}

/// `cargo xtask run`: becomes the agent, so that signals and the exit code are the agent's own.
pub fn run(arguments: &RunArguments) -> Result<ExitCode> {
    build_ebpf::run()?;
    let binary = release()?;
    if !workspace::is_root() {
        bail!(
            "the agent loads programs into the kernel and must be started by root; it is built, run: sudo {} run",
            binary.display()
        );
    }
    become_agent(&binary, &arguments.arguments).map(|never| match never {})
}

fn become_agent(binary: &std::path::Path, arguments: &[OsString]) -> Result<Infallible> {
    // The first look is for whoever tries it out; the agent as a service prints none.
    let show = arguments.iter().all(|argument| argument != "--show").then_some("--show");
    let error = workspace::command(binary).arg("run").args(show).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start \"{}\"", binary.display()))
}
