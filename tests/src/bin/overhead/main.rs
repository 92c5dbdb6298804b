//! In: the agent's release build and this machine; out: a report of what metering costs, per event and for the agent
//! itself. Judges nothing: figures depend on the machine and on what else it does.
//!
//! `overhead [--quick]` reports; `worker`, `relay` and `sweep DIR` are the parts it starts itself.

mod agent_cost;
mod alone;
mod event_cost;
mod pinned;
mod spread;
mod subject;
mod sweeper;
mod worker;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use event_cost::Effort;
use kernmeter_tests::{Cgroup, Hierarchy, Settings};
use pinned::Pinned;
use subject::Subject;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let result = match words[..] {
        ["worker"] => worker::serve(),
        ["relay"] => worker::relay(),
        ["sweep", dir] => sweeper::sweep(Path::new(dir)),
        [] => report(false),
        ["--quick"] => report(true),
        _ => Err(anyhow::anyhow!("usage: overhead [--quick]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn report(quick: bool) -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let sweeper = sweeper::start(hierarchy.own().dir())?;
    let result = measure(&hierarchy, quick);
    drop(hierarchy);
    sweeper::finish(sweeper)?;
    result
}

fn measure(hierarchy: &Hierarchy, quick: bool) -> Result<()> {
    let effort = if quick { Effort { turns: 4, rounds: 300 } } else { Effort { turns: 16, rounds: 600 } };
    let drains = if quick { 5 } else { 15 };
    // More tenants than the agent allows by default, so that none is folded away.
    let settings = Settings::new(hierarchy).every_ms(5000).section("limits:\n  tenants: 10000");

    let cpus = std::thread::available_parallelism()?.get() as u32;
    let subject = Subject::new(hierarchy)?;
    let mut worker = Pinned::start(cpus - 1)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!(
        "kernel {}, {cpus} CPUs, loops on CPU {}, load average {}",
        kernel_release()?,
        cpus - 1,
        load.split(' ').next().unwrap_or_default()
    );
    event_cost::run(&mut worker, &subject, &settings, 0, effort)?;
    for size in if quick { &[10, 100, 1000][..] } else { &[10, 100, 1000, 3000][..] } {
        let cgroups = ring(hierarchy, &mut worker, *size)?;
        if *size == 1000 {
            event_cost::run(&mut worker, &subject, &settings, *size, effort)?;
        }
        agent_cost::run(&mut worker, &subject, &settings, *size, drains)?;
        worker = Pinned::start(cpus - 1)?;
        drop(cgroups);
    }
    Ok(())
}

/// Makes cgroups and starts a process in each.
fn ring(hierarchy: &Hierarchy, worker: &mut Pinned, size: u32) -> Result<Vec<Cgroup>> {
    let cgroups = (0..size).map(|n| hierarchy.tenant(n.to_string())).collect::<Result<Vec<_>>>()?;
    worker.ring(size, hierarchy.own().dir())?;
    Ok(cgroups)
}

fn kernel_release() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if release.trim().is_empty() {
        bail!("the kernel has no release");
    }
    Ok(release.trim().to_owned())
}
