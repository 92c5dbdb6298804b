//! In: this machine; out: what metering costs on it, measured without and with the agent in turns. Gates nothing: the
//! figures are the machine's as much as the agent's. docs/benchmarks.md says how to read them.

use anyhow::{Result, bail};

use crate::{agent, build_ebpf, workspace};

/// The measuring programs are of the tests' package; this one makes cgroups and workloads as they do.
const PACKAGE: &str = "kernmeter-tests";
const PROGRAM: &str = "overhead";
/// The one that gives the agent thousands of pods.
const PODS: &str = "pods";

#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer turns and sizes: about a minute instead of five
    #[arg(long)]
    quick: bool,
}

/// `cargo xtask bench`.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!(
            "measuring starts the agent, which loads programs into the kernel: run `cargo xtask bench` as root"
        );
    }
    for (program, package) in [("taskset", "util-linux"), ("nice", "coreutils")] {
        if workspace::which(program).is_none() {
            bail!("`{program}` is not installed: install the package \"{package}\"");
        }
    }
    build_ebpf::run()?;
    let binary = agent::release()?;
    workspace::run(
        workspace::cargo()
            .args(["build", "--release", "--package", PACKAGE])
            .args(["--bin", PROGRAM, "--bin", PODS]),
    )?;

    for program in [PROGRAM, PODS] {
        let mut measuring = workspace::command(workspace::target().join("release").join(program));
        measuring.env("KERNMETER_BIN", &binary);
        if arguments.quick {
            measuring.arg("--quick");
        }
        workspace::run(&mut measuring)?;
    }

    for (title, measurement) in [
        ("exposition", "nanoseconds_per_sample"),
        ("pods by container, UID and name", "nanoseconds_per_lookup"),
    ] {
        println!("\n{title}");
        workspace::run(
            workspace::cargo()
                .args(["test", "--quiet", "--release", "--package", "kernmeter", "--lib"])
                .args(["--", "--ignored", "--nocapture", measurement]),
        )?;
    }
    Ok(())
}
