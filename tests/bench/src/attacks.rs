//! In: what an ordinary user does in a subtree of his own to take room from others; out: what the agent itself uses meanwhile, and
//! whether it reads when it is due. CPU time is the kernel's own.

use std::time::{Duration, Instant};

use anyhow::Result;
use kernmeter_tests::{Hierarchy, Settings, Workload};

use crate::agent_cost::cpu_seconds;
use crate::subject::Subject;

/// `nobody`.
const USER: u32 = 65534;
/// Kinds of attacks and their size: see `tests/src/bin/workload/attacks.rs`. The first is none.
const ATTACKS: [(&str, u32); 7] = [
    ("none", 0),
    ("churn", 1),
    ("wide", 10_000),
    ("deep", 6000),
    ("pinned", 4100),
    ("numbers", 30),
    ("errors", 6),
];

/// Runs one attack after the other beside the agent, each for so long; prints what the agent used.
///
/// # Errors
/// The agent or an attack failed.
pub fn run(subject: &Subject, hierarchy: &Hierarchy, settings: &Settings, each: Duration) -> Result<()> {
    println!("\n{:<12}{:>22}{:>12}{:>10}", "attack", "of one CPU, agent", "passes", "due");
    for (kind, count) in ATTACKS {
        let agent = subject.start(settings)?;
        let base = hierarchy.tenant(format!("attacked-by-{kind}"))?;
        base.delegate(USER)?;
        // A user's process is never in a cgroup that has others below it.
        let start = base.child("start")?;
        start.delegate(USER)?;
        // What it takes to start is not meant.
        std::thread::sleep(Duration::from_secs(2));
        let root = base.dir().to_string_lossy().into_owned();
        let count = count.to_string();
        let args = ["attack", "--kind", kind, "--root", &root, "--count", &count];
        let mut attacker = if kind == "none" { None } else { Some(Workload::spawn(&start, &args)?) };
        let before = agent.scrape()?;
        let (begun, used) = (Instant::now(), cpu_seconds(&agent)?);
        attacker.as_mut().map_or(Ok(()), Workload::go)?;
        std::thread::sleep(each);
        let (elapsed, used) = (begun.elapsed().as_secs_f64(), cpu_seconds(&agent)? - used);
        let passes = agent.scrape()?.sum("kernmeter_drain_duration_seconds_count", &[])
            - before.sum("kernmeter_drain_duration_seconds_count", &[]);
        println!("{kind:<12}{:>20.2} %{passes:>12}{:>10.0}", used / elapsed * 100.0, elapsed / 5.0);
        attacker.map(Workload::kill).transpose()?;
        drop((start, base));
        agent.stop()?;
    }
    Ok(())
}
