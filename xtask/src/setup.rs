//! In: a bare machine; out: what builds the eBPF object and, on request, what tests and checks use. Says a line for each
//! thing it finds, installs or cannot have. Builds nothing of kernmeter.

use anyhow::{Context, Result};

use crate::toolchain::install::{self, Retry};
use crate::{miri, test_setup, vm, workspace};

/// The release of cargo-deny that is used.
const CARGO_DENY: &str = "0.20.2";
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Arguments {
    /// Try a download by rustup again although it failed less than a day ago
    #[arg(long)]
    retry: bool,
    /// Also install what the tests use: Prometheus, promtool, Python's parser, bpftool
    #[arg(long)]
    tests: bool,
    /// Also fetch what `cargo xtask vm` boots: the emulator, kernels, runc (nothing is installed but decompressors)
    #[arg(long)]
    vm: bool,
    /// Also install Miri, a component of rustup's nightly toolchain
    #[arg(long)]
    miri: bool,
    /// Also install cargo-deny into `.tools` (takes minutes)
    #[arg(long)]
    deny: bool,
}

/// The subcommand.
pub fn run(arguments: &Arguments) -> Result<()> {
    install::ensure(if arguments.retry { Retry::Now } else { Retry::Later })?;
    if arguments.tests {
        test_setup::run()?;
    }
    if arguments.vm {
        vm::fetch();
    }
    if arguments.miri {
        miri::install()?;
    }
    if arguments.deny {
        deny()?;
    }
    Ok(())
}

fn deny() -> Result<()> {
    println!("setup: cargo-deny {CARGO_DENY}");
    let mut install = workspace::cargo();
    install
        .args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"])
        .arg(workspace::tools());
    workspace::run(&mut install).context("cargo-deny cannot be built")
}
