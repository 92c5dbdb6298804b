//! In: the workspace; out: a Debian package of the shipped binary with its unit, manual, completions and configuration, and on
//! request the tests that install it. What it holds is written in agent/Cargo.toml. Installs nothing on this machine but tools.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{agent, build_ebpf, debian, docs, workspace};

/// The release of cargo-deb that is used.
const CARGO_DEB: &str = "3.8.0";
/// The Debian release the package is installed into when it is tested.
const RELEASE: &str = "bookworm";

#[derive(clap::Args)]
pub struct Arguments {
    /// Also install, start, remove and purge it in a Debian of its own (as root; fetches about 80 MB once)
    #[arg(long)]
    check: bool,
    /// Who answers for the package: `Name <address>`
    #[arg(long)]
    maintainer: Option<String>,
}

/// `cargo xtask deb`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let cargo_deb = cargo_deb()?;
    build_ebpf::run()?;
    let binary = agent::dist()?;
    let folder = binary.parent().context("the binary is in no folder")?;
    let parts = folder.join("package");
    docs::man(&binary, &parts)?;
    compress(&parts.join("kernmeter.1"), &parts.join("kernmeter.1.gz"))?;
    compress(&workspace::root().join("CHANGELOG.md"), &parts.join("changelog.gz"))?;

    let out = workspace::target().join("debian");
    fs::create_dir_all(&out).with_context(|| format!("cannot create \"{}\"", out.display()))?;
    let mut package = workspace::command(&cargo_deb);
    package
        // Called by itself, without cargo in front.
        .args([
            "--package",
            "kernmeter",
            "--no-build",
            "--no-strip",
            "--no-dbgsym",
            "--profile",
            "dist",
            "--target",
        ])
        .arg(agent::host()?)
        .arg("--output")
        .arg(&out);
    if let Some(maintainer) = &arguments.maintainer {
        package.arg("--maintainer").arg(maintainer);
    }
    let said = workspace::output(&mut package).context("the package cannot be made")?;
    // It says where it put it, and that alone, on standard output.
    let path = said.lines().rfind(|line| !line.trim().is_empty()).context("cargo-deb names no package")?;
    let path = PathBuf::from(path.trim());
    let size = fs::metadata(&path).with_context(|| format!("cannot read \"{}\"", path.display()))?.len();
    println!("deb: {} ({:.1} MB)", path.display(), size as f64 / 1e6);
    println!("deb: to use it: apt install {}", path.display());
    if arguments.check { check(&path) } else { Ok(()) }
}

/// Compresses a file as Debian wants it: as well as can be, the same on every machine.
fn compress(from: &Path, to: &Path) -> Result<()> {
    let out = fs::File::create(to).with_context(|| format!("cannot write \"{}\"", to.display()))?;
    workspace::run(workspace::command("gzip").args(["--best", "--no-name", "--stdout"]).arg(from).stdout(out))
}

/// cargo-deb of the release we use, built if need be.
fn cargo_deb() -> Result<PathBuf> {
    let program = workspace::tools().join("bin/cargo-deb");
    let version = |program: &Path| workspace::output(workspace::command(program).arg("--version"));
    if version(&program).is_ok_and(|version| version.split_whitespace().last() == Some(CARGO_DEB)) {
        return Ok(program);
    }
    println!("deb: cargo-deb {CARGO_DEB} is not in .tools; building it (a minute)");
    let mut install = workspace::cargo();
    install
        .args(["install", "cargo-deb", "--locked", "--force", "--version", CARGO_DEB, "--root"])
        .arg(workspace::tools());
    workspace::run(&mut install).context("cargo-deb cannot be built")?;
    Ok(program)
}

/// The tests of the package.
fn check(package: &Path) -> Result<()> {
    let root = debian_root()?;
    if let Err(error) = debian::install(&["lintian"]) {
        println!("deb: {error:#}; the package is not examined by lintian");
    }
    let mut tests = workspace::cargo();
    tests
        .args(["test", "--package", "kernmeter-tests", "--test", "deploy", "--", "--nocapture", "package::"])
        .env("KERNMETER_DEB", package)
        .env("KERNMETER_DEBIAN", root);
    workspace::run(&mut tests)
}

/// An archive of a small Debian to install into, fetched once from the mirror that this machine uses.
fn debian_root() -> Result<PathBuf> {
    let folder = workspace::root().join(".cache");
    let archive = folder.join(format!("debian-{RELEASE}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    if !workspace::is_root() {
        bail!("only root can make a Debian to install into");
    }
    debian::install(&["mmdebstrap"])?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create \"{}\"", folder.display()))?;
    let unfinished = folder.join(format!("debian-{RELEASE}.new.tar"));
    println!("deb: a Debian to install into (half a minute)");
    // Sources and keys are those of this machine.
    workspace::run(
        workspace::command("mmdebstrap").args(["--quiet", "--variant=minbase", RELEASE]).arg(&unfinished),
    )?;
    fs::rename(&unfinished, &archive).with_context(|| format!("cannot write \"{}\"", archive.display()))?;
    Ok(archive)
}
