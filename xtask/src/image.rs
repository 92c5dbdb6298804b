//! In: the workspace; out: a container image as an OCI archive, holding the one static binary, and on request the tests that
//! run it. Nothing is pulled from a registry or pushed to one; the user's own image storage is left alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, elf};

use crate::{agent, build_ebpf, debian, workspace};

/// The largest image that is accepted, bytes.
const LARGEST: u64 = 12_000_000;
/// What can build it; either will do. `buildah` is enough, and comes with less.
const BUILDERS: [&str; 2] = ["buildah", "podman"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Also run the image, confined as in Kubernetes (as root, with runc)
    #[arg(long)]
    check: bool,
    /// Name of the image in the archive
    #[arg(long, default_value_t = format!("localhost/kernmeter:{}", env!("CARGO_PKG_VERSION")))]
    tag: String,
}

/// `cargo xtask image`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let builder = builder()?;
    build_ebpf::run()?;
    let binary = agent::dist()?;
    let folder = workspace::target().join("image");
    let context = folder.join("context");
    let archive = folder.join("kernmeter.oci.tar");
    take_in(&binary, &context)?;
    remove(&archive)?;

    let engine = || engine(&builder, &folder.join("storage"));
    let mut build = engine();
    build
        .args(["build", "--isolation", "chroot", "--pull-never", "--timestamp", "0", "--tag", &arguments.tag])
        .args(labels())
        .arg("--file")
        .arg(workspace::root().join("deploy/Dockerfile"))
        .arg(&context);
    workspace::run(&mut build)?;
    let mut target = std::ffi::OsString::from("oci-archive:");
    target.push(&archive);
    target.push(format!(":{}", arguments.tag));
    workspace::run(engine().args(["push", "--quiet", &arguments.tag]).arg(target))?;

    // The archive is all that is kept.
    workspace::output(engine().args(["rmi", "--all", "--force"]))?;

    let size = fs::metadata(&binary)?.len();
    let packed = fs::metadata(&archive)?.len();
    println!("image: {} ({})", archive.display(), arguments.tag);
    println!("image: {:.1} MB unpacked, {:.1} MB in the archive", size as f64 / 1e6, packed as f64 / 1e6);
    if size > LARGEST {
        bail!("the image is larger than {:.0} MB: see what grew with `cargo bloat`", LARGEST as f64 / 1e6);
    }
    println!("image: to use it: podman load --input {}", archive.display());
    if arguments.check { check(&archive) } else { Ok(()) }
}

/// The first builder there is, installed if need be.
fn builder() -> Result<PathBuf> {
    let found = || BUILDERS.iter().find_map(|name| workspace::which(name));
    if let Some(builder) = found() {
        return Ok(builder);
    }
    debian::install(&BUILDERS[..1])?;
    found().context("neither `buildah` nor `podman` is on PATH; install one of them")
}

/// The builder with a storage of its own that works everywhere, also where overlay mounts do not.
fn engine(builder: &Path, storage: &Path) -> Command {
    let mut command = workspace::command(builder);
    command.args(["--storage-driver", "vfs", "--root"]).arg(storage.join("root"));
    command.arg("--runroot").arg(storage.join("run"));
    command
}

/// Puts the binary, and nothing else, where the builder looks.
fn take_in(binary: &Path, context: &Path) -> Result<()> {
    let data = fs::read(binary).with_context(|| format!("cannot read \"{}\"", binary.display()))?;
    if !is_static(&data)? {
        bail!("\"{}\" needs a dynamic linker, which the image does not have", binary.display());
    }
    if context.exists() {
        fs::remove_dir_all(context).with_context(|| format!("cannot clear \"{}\"", context.display()))?;
    }
    fs::create_dir_all(context)?;
    let place = context.join("kernmeter");
    fs::write(&place, data).with_context(|| format!("cannot write \"{}\"", place.display()))?;
    fs::set_permissions(&place, Permissions::from_mode(0o555))?;
    Ok(())
}

fn is_static(data: &[u8]) -> Result<bool> {
    let file: ElfFile64<Endianness> = ElfFile64::parse(data).context("the agent is no ELF file")?;
    let endian = file.endian();
    Ok(file.elf_program_headers().iter().all(|header| header.p_type(endian) != elf::PT_INTERP))
}

fn labels() -> Vec<String> {
    let revision =
        workspace::output(workspace::command("git").args(["rev-parse", "HEAD"])).unwrap_or_default();
    [
        ("title", "kernmeter"),
        ("description", "System calls and scheduling per tenant, for Prometheus"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("revision", revision.trim()),
    ]
    .iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| format!("--label=org.opencontainers.image.{name}={value}"))
    .collect()
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove \"{}\"", file.display()))
        }
        _ => Ok(()),
    }
}

/// The tests of containers, on the image instead of a stand-in.
fn check(archive: &Path) -> Result<()> {
    debian::install(&["runc"])?;
    let mut tests = workspace::cargo();
    tests
        .args([
            "test",
            "--package",
            "kernmeter-tests",
            "--test",
            "deploy",
            "--",
            "--nocapture",
            "container::",
        ])
        .env("KERNMETER_IMAGE", archive);
    workspace::run(&mut tests)
}
