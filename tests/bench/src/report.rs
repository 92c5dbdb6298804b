//! In: which benchmarks, how long and against which other agent; out: each of them run, in a cgroup that is swept at the end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kernmeter_tests::{Cgroup, Hierarchy, Settings, agent, workload};

use crate::event_cost::{self, Effort, Loops};
use crate::pinned::Pinned;
use crate::subject::Subject;
use crate::{agent_cost, attacks, encode, lookup, pods, sharing, sweeper};

/// What to run.
pub struct Request {
    quick: bool,
    against: Option<PathBuf>,
    names: Vec<Name>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    /// A system call.
    Call,
    /// A call, a switch and a wake-up.
    Switch,
    /// A system call on both CPUs at once.
    Sharing,
    /// The agent's own CPU time while an ordinary user attacks it.
    Attacks,
    /// A pass, alone and beside idle cgroups.
    Idle,
    /// The same as `switch`, and through a thousand cgroups in turn.
    Ring,
    /// The agent's own CPU time, memory and scrapes.
    Agent,
    /// A node's pods.
    Pods,
    /// A snapshot to text.
    Encode,
    /// A pod by container, UID and name.
    Lookup,
}

impl Name {
    fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "call" => Self::Call,
            "switch" => Self::Switch,
            "sharing" => Self::Sharing,
            "attacks" => Self::Attacks,
            "idle" => Self::Idle,
            "ring" => Self::Ring,
            "agent" => Self::Agent,
            "pods" => Self::Pods,
            "encode" => Self::Encode,
            "lookup" => Self::Lookup,
            _ => bail!("there is no benchmark \"{word}\""),
        })
    }

    /// Whether it runs agents, so that another one can be measured beside.
    fn runs_agents(self) -> bool {
        matches!(
            self,
            Self::Call | Self::Switch | Self::Sharing | Self::Attacks | Self::Idle | Self::Ring | Self::Agent
        )
    }
}

impl Request {
    /// Reads `[--quick] [--against BINARY] NAME...`.
    ///
    /// # Errors
    /// A word is not a benchmark's name, or cannot be measured against another agent.
    pub fn parse(words: &[&str]) -> Result<Self> {
        let mut request = Self { quick: false, against: None, names: Vec::new() };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--quick" => request.quick = true,
                "--against" => {
                    request.against = Some(words.next().context("--against takes a program")?.into());
                }
                _ => request.names.push(Name::parse(word)?),
            }
        }
        let is_compared =
            |name: &Name| name.runs_agents() && ![Name::Sharing, Name::Attacks, Name::Idle].contains(name);
        if request.against.is_some() && !request.names.iter().all(is_compared) {
            bail!("--against compares agents: `call`, `switch`, `ring` or `agent`");
        }
        Ok(request)
    }

    fn asks(&self, name: Name) -> bool {
        self.names.contains(&name)
    }
}

/// Runs what is asked for, the cheapest first.
///
/// # Errors
/// A measurement failed.
pub fn run(request: &Request) -> Result<()> {
    // Built beside this program.
    workload::set_program(&std::env::current_exe()?.with_file_name("workload"));
    if request.asks(Name::Encode) {
        encode::run()?;
    }
    if request.asks(Name::Lookup) {
        lookup::run();
    }
    if request.names.iter().any(|name| name.runs_agents()) {
        let hierarchy = Hierarchy::new()?;
        let sweeper = sweeper::start(hierarchy.own().dir())?;
        let result = metering(request, &hierarchy);
        drop(hierarchy);
        sweeper::finish(sweeper)?;
        result?;
    }
    if request.asks(Name::Pods) {
        pods::run(request.quick)?;
    }
    Ok(())
}

fn metering(request: &Request, hierarchy: &Hierarchy) -> Result<()> {
    let quick = request.quick;
    let effort = if quick { Effort { turns: 4, rounds: 300 } } else { Effort { turns: 16, rounds: 600 } };
    // More tenants than the agent allows by default, so that none is folded away.
    let settings = Settings::new(hierarchy).every_ms(5000).section("limits:\n  tenants: 10000");
    let subjects = subjects(request, hierarchy)?;
    let cpus = std::thread::available_parallelism()?.get() as u32;
    let start_worker = || Pinned::start(cpus - 1);
    println!(
        "\nkernel {}, {cpus} CPUs, loops on CPU {}, load average {}",
        first_word("/proc/sys/kernel/osrelease")?,
        cpus - 1,
        first_word("/proc/loadavg")?
    );

    if request.asks(Name::Call) || request.asks(Name::Switch) {
        let loops = if request.asks(Name::Switch) { Loops::Switch } else { Loops::Call };
        event_cost::run(&mut start_worker()?, &subjects, &settings, loops, effort)?;
    }
    if request.asks(Name::Sharing) {
        subjects.iter().try_for_each(|subject| sharing::run(subject, &settings, effort))?;
    }
    if request.asks(Name::Attacks) {
        let each = Duration::from_secs(if quick { 10 } else { 30 });
        subjects.iter().try_for_each(|subject| attacks::run(subject, hierarchy, &settings, each))?;
    }
    if request.asks(Name::Idle) {
        const ACTIVE: u32 = 100;
        let settings = settings.clone().section("kernel: {slots: 16384, memory_budget: 256MiB}");
        let idle = if quick { 3000 } else { 10_000 };
        for more in [0, idle] {
            let mut worker = start_worker()?;
            let _cgroups = ring(hierarchy, &mut worker, ACTIVE)?;
            for subject in &subjects {
                agent_cost::beside_idle(&mut worker, subject, hierarchy, &settings, more)?;
            }
        }
    }
    if request.asks(Name::Ring) {
        let mut worker = start_worker()?;
        let _cgroups = ring(hierarchy, &mut worker, 1000)?;
        event_cost::run(&mut worker, &subjects, &settings, Loops::Ring(1000), effort)?;
    }
    if request.asks(Name::Agent) {
        for size in if quick { &[10, 100, 1000][..] } else { &[10, 100, 1000, 3000][..] } {
            let mut worker = start_worker()?;
            let _cgroups = ring(hierarchy, &mut worker, *size)?;
            for subject in &subjects {
                agent_cost::run(&mut worker, subject, &settings, *size, if quick { 5 } else { 15 })?;
            }
        }
    }
    Ok(())
}

/// The agents to measure: the one just built and, before it, the one to compare with.
fn subjects(request: &Request, hierarchy: &Hierarchy) -> Result<Vec<Subject>> {
    let built = agent::program();
    match &request.against {
        None => Ok(vec![Subject::new(hierarchy, "agent", built)?]),
        Some(other) => {
            println!("\nold agent {}\nnew agent {}", other.display(), built.display());
            Ok(vec![
                Subject::new(hierarchy, "old agent", other.clone())?,
                Subject::new(hierarchy, "new agent", built)?,
            ])
        }
    }
}

/// Makes cgroups and starts a process in each.
fn ring(hierarchy: &Hierarchy, worker: &mut Pinned, size: u32) -> Result<Vec<Cgroup>> {
    let cgroups = (0..size).map(|n| hierarchy.tenant(n.to_string())).collect::<Result<Vec<_>>>()?;
    worker.ring(size, hierarchy.own().dir())?;
    Ok(cgroups)
}

fn first_word(path: &str) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read \"{path}\""))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
