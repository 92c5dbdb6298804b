//! In: cgroups that come and go for a while, beside tenants that stay; out: whether everybody has exactly the calls that were
//! made. How long, is set from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::settings::rule;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, trials};

use crate::counting::calls;

trials![slots_and_private_rows_that_change_hands];

/// Seconds that it takes: `KERNMETER_TEST_CHURN_SECONDS`, or 20.
fn span() -> Result<Duration> {
    let text = std::env::var("KERNMETER_TEST_CHURN_SECONDS").unwrap_or_else(|_| "20".into());
    let seconds = text.parse().with_context(|| format!("bad KERNMETER_TEST_CHURN_SECONDS {text:?}"))?;
    Ok(Duration::from_secs(seconds))
}

/// Far fewer private rows than are wanted, so that they are given, refused and taken back all the time, while slots and shared
/// rows go from cgroup to cgroup.
fn slots_and_private_rows_that_change_hands() -> Outcome {
    const CGROUPS: u64 = 40;
    const CALLS: u64 = 500;
    const STEADY_CALLS: u64 = 20_000;
    let hierarchy = Hierarchy::new()?;
    let (own, root) = (hierarchy.own().path(), hierarchy.own().dir().display().to_string());
    let mut settings = Settings::new(&hierarchy).section("kernel: {private_rows: 24}");
    settings.rules = rule(&format!("{own}/swarm-*"), "gone") + &settings.rules;
    let (parent, steady) =
        (hierarchy.tenant("parent")?, [hierarchy.tenant("one")?, hierarchy.tenant("two")?]);
    let agent = Agent::start(&settings)?;
    let until = Instant::now() + span()?;
    let mut rounds = 0;
    while Instant::now() < until {
        let mut workloads = Vec::new();
        for cgroup in &steady {
            let args =
                ["syscalls", "--getppid", &STEADY_CALLS.to_string(), "--rounds", "20", "--pause-ms", "5"];
            let mut workload = Workload::spawn(cgroup, &args)?;
            workload.go()?;
            workloads.push(workload);
        }
        let (count, each, prefix) = (CGROUPS.to_string(), CALLS.to_string(), format!("swarm-{rounds}"));
        let args = ["swarm", "--root", &root, "--count", &count, "--calls", &each, "--prefix", &prefix];
        Workload::run(&parent, &args)?.0.finish()?;
        for mut workload in workloads {
            workload.results()?;
            workload.finish()?;
        }
        rounds += 1;
    }
    let scrape = agent.settle(rounds * CGROUPS * CALLS, |scrape| calls(scrape, "gone", "getppid"))?;
    for tenant in ["one", "two"] {
        let seen = calls(&scrape, tenant, "getppid");
        ensure!(seen == rounds * STEADY_CALLS, "{seen} calls of {tenant} in {rounds} rounds");
    }
    let recycled = scrape.count("kernmeter_slots_recycled_total", &[]);
    let [private, shared] =
        ["private", "shared"].map(|row| scrape.count("kernmeter_row_events_total", &[("row", row)]));
    println!(
        "{rounds} rounds, {recycled} slots recycled, {private} events in private rows, {shared} in shared ones"
    );
    ensure!(recycled > CGROUPS && private > 0 && shared > 0, "this shows nothing");
    agent.stop_conserved()?;
    Ok(())
}
