//! In: names of benchmarks and this machine; out: what metering costs on it. Gates nothing: the figures are the machine's as
//! much as the agent's. docs/benchmarks.md says how to read them.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{agent, build_ebpf, workspace};

/// The package that measures, and its program.
const PACKAGE: &str = "kernmeter-bench";
/// The package whose program makes system calls, and cgroups, in exact numbers.
const WORKLOADS: &str = "kernmeter-tests";

#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure [default: all; with --against: call, switch and ring]
    names: Vec<Name>,
    /// Fewer turns and sizes: about four minutes instead of twenty
    #[arg(long)]
    quick: bool,
    /// Measure another agent in the same run, in turns with the one just built, and print the ratio
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// What is added to a system call
    Call,
    /// What is added to a switch and to a wake-up
    Switch,
    /// What is added to a system call on both CPUs at once, with private rows and with shared ones
    Sharing,
    /// What the agent itself uses while an ordinary user attacks it
    Attacks,
    /// A pass over 100 active cgroups, alone and beside 10,000 idle ones
    Idle,
    /// The same as `switch`, through 1,000 cgroups in turn
    Ring,
    /// The agent's own CPU time, memory and scrapes, with 10 to 3,000 cgroups
    Agent,
    /// 5,000 pods on a node
    Pods,
    /// Rendering and compressing a snapshot
    Encode,
    /// Finding a pod by container, UID and name
    Lookup,
}

impl Name {
    /// Whether it starts agents, which only root can.
    fn runs_agents(self) -> bool {
        !matches!(self, Self::Encode | Self::Lookup)
    }

    /// Whether two agents can be compared by it.
    fn compares(self) -> bool {
        matches!(self, Self::Call | Self::Switch | Self::Ring | Self::Agent)
    }
}

/// `cargo xtask bench`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let names = names(arguments)?;
    if names.iter().any(|name| name.runs_agents()) {
        may_run_agents()?;
    }
    if let Some(other) = arguments.against.as_deref().filter(|other| !other.is_file()) {
        bail!("there is no agent \"{}\" to compare with", other.display());
    }
    build_ebpf::run()?;
    let binary = agent::release()?;
    // As the agent, so that what both are made of is built once.
    let (mut cargo, built) = agent::static_build()?;
    workspace::run(cargo.args(["--release", "--package", PACKAGE, "--package", WORKLOADS, "--bins"]))?;

    let mut measuring = workspace::command(built.join("release").join(PACKAGE));
    measuring.env("KERNMETER_BIN", &binary).arg("report");
    if arguments.quick {
        measuring.arg("--quick");
    }
    if let Some(other) = &arguments.against {
        measuring.arg("--against").arg(std::path::absolute(other)?);
    }
    measuring.args(names.iter().filter_map(Name::to_possible_value).map(|name| name.get_name().to_owned()));
    workspace::run(&mut measuring)
}

/// What to measure: what is asked for, or all that goes with the options.
fn names(arguments: &Arguments) -> Result<Vec<Name>> {
    let compared = arguments.against.is_some();
    if let Some(name) = arguments.names.iter().find(|name| compared && !name.compares()) {
        let name = name.to_possible_value();
        let name = name.as_ref().map_or("it", |name| name.get_name());
        bail!(
            "--against compares agents by `call`, `switch`, `ring` or `agent`; `{name}` is not measured in turns"
        );
    }
    if !arguments.names.is_empty() {
        return Ok(arguments.names.clone());
    }
    let all = Name::value_variants().iter().copied();
    Ok(all.filter(|name| !compared || name.compares() && *name != Name::Agent).collect())
}

fn may_run_agents() -> Result<()> {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[Name], against: Option<&str>) -> Result<usize> {
        let arguments =
            Arguments { names: names.to_vec(), quick: false, against: against.map(PathBuf::from) };
        super::names(&arguments).map(|names| names.len())
    }

    #[test]
    fn names_go_with_the_options() {
        assert_eq!(chosen(&[], None).unwrap(), Name::value_variants().len());
        assert_eq!(chosen(&[], Some("old")).unwrap(), 3);
        assert_eq!(chosen(&[Name::Agent, Name::Call], Some("old")).unwrap(), 2);
        let error = chosen(&[Name::Call, Name::Pods], Some("old")).unwrap_err().to_string();
        assert!(error.contains("`pods` is not measured in turns"), "{error}");
    }
}
