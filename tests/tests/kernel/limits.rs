//! What a limit folds together is exact in sum, and the limit is seen to be reached.

use std::path::Path;

use anyhow::ensure;
use kernmeter_tests::settings::rule;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::counting::calls;
use crate::family::{LOST, SYSCALLS};

trials![
    exact_with_every_slot_taken,
    exact_with_every_row_taken,
    exact_past_the_limit_of_tenants,
    exact_past_the_limit_of_series,
    exact_when_workloads_are_gone,
    slots_are_used_again,
];

fn exact_with_every_slot_taken() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("kernel: {slots: 16}"))?;
    let early = agent.scrape()?;
    ensure!(
        early.count(LOST, &[("reason", "slot_exhausted")]) == 0 || early.samples.len() > 1,
        "empty scrape"
    );
    let cgroups: Vec<_> = (0..40).map(|n| hierarchy.tenant(format!("t{n}"))).collect::<Result<_, _>>()?;
    for cgroup in &cgroups {
        let (workload, _) = Workload::run(cgroup, &["syscalls", "--getppid", "1000"])?;
        workload.finish()?;
    }
    let in_tenants = |s: &Scrape| (0..40).map(|n| calls(s, &format!("t{n}"), "getppid")).sum::<u64>();
    let overflow = |s: &Scrape| calls(s, "_overflow", "getppid");
    let scrape = agent.settle(40_000, |s| in_tenants(s) + overflow(s))?;
    for n in 0..40 {
        let seen = calls(&scrape, &format!("t{n}"), "getppid");
        ensure!(seen == 0 || seen == 1000, "t{n} has {seen} calls: neither its own nor none");
    }
    ensure!(overflow(&scrape) >= 24_000, "16 slots cannot hold 40 cgroups");
    let lost = scrape.count(LOST, &[("reason", "slot_exhausted")]);
    ensure!(lost >= 24, "{lost} refused slots are counted");
    agent.stop_conserved()?;
    Ok(())
}

fn exact_with_every_row_taken() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let settings = Settings::new(&hierarchy).section("kernel: {syscall_rows: 64, errno_rows: 64}");
    let agent = Agent::start(&settings)?;
    let mut floods = Vec::new();
    for n in 0..8 {
        let tenant = hierarchy.tenant(format!("wide{n}"))?;
        let mut workload = Workload::spawn(&tenant, &["flood"])?;
        workload.go()?;
        floods.push((workload, tenant));
    }
    std::thread::sleep(std::time::Duration::from_millis(600));
    for (flood, _) in &mut floods {
        flood.kill_unreaped()?;
    }
    let tenant = hierarchy.tenant("late")?;
    let (workload, _) = Workload::run(&tenant, &["syscalls", "--getppid", "1000"])?;
    workload.finish()?;
    let scrape = agent.fresh()?;
    let late: u64 = scrape.count(SYSCALLS, &[("tenant_id", "late")]);
    ensure!(late >= 1000, "{late} calls of the tenant that found no row");
    let refused = ["syscall_row_exhausted", "syscall_row_quota"];
    let refused: u64 = refused.iter().map(|reason| scrape.count(LOST, &[("reason", reason)])).sum();
    ensure!(refused > 0, "refused rows are not counted");
    agent.stop_conserved()?;
    Ok(())
}

/// Runs so many short-lived cgroups with so many calls each; returns what the workload said.
pub fn swarm(hierarchy: &Hierarchy, more: &[&str]) -> anyhow::Result<Vec<String>> {
    let root = hierarchy.own().dir().to_string_lossy().into_owned();
    let parent = hierarchy.tenant("parent")?;
    let (workload, lines) = Workload::run(&parent, &[&["swarm", "--root", &root], more].concat())?;
    workload.finish()?;
    Ok(lines)
}

fn of_swarm(scrape: &Scrape) -> u64 {
    scrape
        .find(SYSCALLS, &[("syscall", "getppid")])
        .filter(|s| s.label("tenant_id").is_some_and(|t| t.starts_with("swarm-")))
        .map(|s| s.value() as u64)
        .sum()
}

fn exact_past_the_limit_of_tenants() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("limits: {tenants: 20}"))?;
    swarm(&hierarchy, &["--count", "60", "--calls", "1000"])?;
    let scrape = agent.settle(60_000, |s| of_swarm(s) + calls(s, "_overflow", "getppid"))?;
    ensure!(of_swarm(&scrape) <= 20_000, "more tenants than the limit");
    ensure!(calls(&scrape, "_overflow", "getppid") >= 40_000, "the rest is not in the overflow tenant");
    ensure!(scrape.count("kernmeter_series_limited_total", &[]) > 0, "the limit is not seen");
    agent.stop_conserved()?;
    Ok(())
}

fn exact_past_the_limit_of_series() -> Outcome {
    const LIMIT: usize = 60;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("limits: {series_per_tenant: 60}"))?;
    let tenant = hierarchy.tenant("wide")?;
    let mut flood = Workload::spawn(&tenant, &["flood"])?;
    flood.go()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    flood.kill_unreaped()?;
    let own = [("tenant_id", "wide")];
    let before = agent.fresh()?.count(SYSCALLS, &own);
    // New series that have no room any more.
    let (workload, _) = Workload::run(&tenant, &["syscalls", "--openat-fail", "1000"])?;
    workload.finish()?;
    let scrape = agent.fresh()?;
    let after = scrape.count(SYSCALLS, &own);
    ensure!(after >= before + 1000, "{before} calls, then {after}");
    let lines = scrape.samples.iter().filter(|s| s.label("tenant_id") == Some("wide")).count();
    // A family that had no series before the limit was reached still needs one for what is folded.
    ensure!(lines <= LIMIT + 60, "{lines} lines of a tenant that may have {LIMIT}");
    ensure!(scrape.count("kernmeter_series_limited_total", &[]) > 0, "the limit is not seen");
    agent.stop_conserved()?;
    Ok(())
}

fn exact_when_workloads_are_gone() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let mut settings =
        Settings::new(&hierarchy).section("detail: {default: container}\nlimits: {retention: 0s}");
    settings.rules = rule(&format!("{}/swarm-*", hierarchy.own().path()), "gone");
    // The tenant itself stays as long as one of its cgroups does.
    let _stays = hierarchy.tenant("swarm-stays.service")?;
    let agent = Agent::start(&settings)?;
    let own = [("tenant_id", "gone")];
    let all = |s: &Scrape| s.count(SYSCALLS, &own) + s.count("kernmeter_retired_syscalls_total", &own);
    for round in 1..=5 {
        swarm(&hierarchy, &["--count", "50", "--calls", "1000", "--suffix", ".service"])?;
        // Each process ends with one more call.
        agent.settle(round * 50 * 1001, all)?;
    }
    let scrape = agent.fresh()?;
    let units = scrape.find(SYSCALLS, &[("tenant_id", "gone"), ("syscall", "getppid")]).count();
    ensure!(units < 50, "{units} series of units that are gone");
    agent.stop_conserved()?;
    Ok(())
}

/// cgroups below a directory, at any depth.
pub fn cgroups_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let inside = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    inside.map(|entry| 1 + cgroups_below(&entry.path())).sum()
}

fn slots_are_used_again() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    // Whatever else runs here has cgroups too, at any depth.
    let existing = cgroups_below(hierarchy.own().dir().parent().unwrap_or(hierarchy.own().dir()));
    let slots = 64 + existing;
    let agent = Agent::start(&Settings::new(&hierarchy).section(&format!("kernel: {{slots: {slots}}}")))?;
    // Six times as many cgroups as slots, a few at a time.
    for round in 1..=20 {
        swarm(&hierarchy, &["--count", "20", "--calls", "100", "--prefix", &format!("swarm-{round}")])?;
        agent.settle(round * 2000, of_swarm)?;
        // A slot is free again two drains after its cgroup is gone, which takes one more to be seen.
        agent.fresh()?;
        agent.fresh()?;
    }
    let scrape = agent.fresh()?;
    for round in 1..=20 {
        for n in 0..20 {
            let seen = calls(&scrape, &format!("swarm-{round}-{n}"), "getppid");
            ensure!(seen == 100, "{seen} calls of cgroup {n} of round {round}");
        }
    }
    let refused = scrape.count(LOST, &[("reason", "slot_exhausted")]);
    ensure!(refused == 0, "{refused} cgroups found no slot");
    agent.stop_conserved()?;
    Ok(())
}
