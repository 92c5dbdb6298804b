//! Tenants that are gone: their series end, their totals are kept, and the room that they took is free again. Fault 39.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kernmeter_tests::settings::rule;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::counting::calls;
use crate::family::SYSCALLS;

trials![tenants_that_are_gone_go];

const RETIRED_SYSCALLS: &str = "kernmeter_retired_syscalls_total";
const ROUNDS: u64 = 5;
const CONTAINERS: u64 = 60;
const CALLS: u64 = 1000;
/// How long the agent may take to give the slots back, and to notice that the retention time is over, on a busy machine.
const END: Duration = Duration::from_secs(30);

/// All calls of all tenants, those that are gone included.
fn all(scrape: &Scrape) -> u64 {
    scrape.count(SYSCALLS, &[]) + scrape.count(RETIRED_SYSCALLS, &[])
}

/// Samples of anything that tell one of the short-lived containers by its name, the agent's own metrics included.
fn samples_of_gone(scrape: &Scrape) -> usize {
    let is_gone = |tenant: &str| tenant.starts_with("machine-gone");
    scrape.samples.iter().filter(|sample| sample.label("tenant_id").is_some_and(is_gone)).count()
}

/// Waits until no container of a swarm has series and all their calls are kept. Meanwhile, what was counted never falls.
fn wait_until_gone(agent: &Agent, expected: u64, counted: &mut u64) -> Outcome {
    let until = Instant::now() + END;
    loop {
        // Of a drain that began after the containers ended: they are in it, or gone.
        let scrape = agent.fresh()?;
        let now = all(&scrape);
        ensure!(now >= *counted, "{counted} calls in all, then {now}");
        *counted = now;
        let (left, kept) = (samples_of_gone(&scrape), calls_kept(&scrape));
        if left == 0 && kept >= expected {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "{left} samples of containers that are gone, and {kept} calls of {expected} are kept after {END:?}"
        );
    }
}

/// Calls of tenants that are gone, and of those that found no room.
fn calls_kept(scrape: &Scrape) -> u64 {
    scrape.count(RETIRED_SYSCALLS, &[("tenant_id", "_retired")]) + calls(scrape, "_overflow", "getppid")
}

fn tenants_that_are_gone_go() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let mut settings = Settings::new(&hierarchy).section("limits: {tenants: 100, retention: 1s}");
    // The built-in rules: each of these containers is a tenant.
    settings.rules = rule("/no/such/cgroup", "nobody");
    let agent = Agent::start(&settings)?;
    let root = hierarchy.own().dir().to_string_lossy().into_owned();
    let parent = hierarchy.tenant("parent")?;
    let mut counted = 0;
    for round in 1..=ROUNDS {
        let (containers, each) = (CONTAINERS.to_string(), CALLS.to_string());
        let prefix = format!("lxc.payload.gone-{round}");
        let args = ["swarm", "--root", &root, "--count", &containers, "--calls", &each, "--prefix", &prefix];
        let (workload, _) = Workload::run(&parent, &args)?;
        workload.finish()?;
        wait_until_gone(&agent, round * CONTAINERS * CALLS, &mut counted)?;
    }
    // Three times the limit of tenants has come and gone: there is room for new ones.
    let late = hierarchy.tenant("lxc.payload.late")?;
    let (workload, _) = Workload::run(&late, &["syscalls", "--getppid", "1000"])?;
    workload.finish()?;
    let scrape = agent.settle(CALLS, |s| calls(s, "machine-late", "getppid"))?;
    ensure!(all(&scrape) >= counted, "{counted} calls in all, then {}", all(&scrape));
    agent.stop_conserved()?;
    Ok(())
}
