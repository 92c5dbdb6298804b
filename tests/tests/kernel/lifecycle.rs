//! The agent comes and goes without a trace, and takes the last counts with it in its log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::kernel::{bpf_objects, check_nothing_left, descriptors};
use kernmeter_tests::settings::rule;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, trials};

use crate::counting::calls;

trials![
    starts_and_stops_leave_nothing,
    kills_leave_nothing,
    the_last_interval_is_in_the_final_totals,
    a_second_signal_ends_at_once,
    reload_loses_no_count,
    a_changed_file_is_reloaded_by_itself,
    a_bad_reload_changes_nothing,
    an_emptied_file_changes_nothing,
    no_capability_comes_back,
    two_agents_at_once,
];

/// Cycles of starting and stopping: `KERNMETER_TEST_CYCLES`, or 200; kills are a tenth of them.
fn cycles() -> Result<u32> {
    match std::env::var("KERNMETER_TEST_CYCLES") {
        Ok(text) => text.parse().with_context(|| format!("bad KERNMETER_TEST_CYCLES {text:?}")),
        Err(_) => Ok(200),
    }
}

fn starts_and_stops_leave_nothing() -> Outcome {
    let cycles = cycles()?;
    let hierarchy = Hierarchy::new()?;
    let (before, own) = (bpf_objects()?, descriptors(std::process::id() as i32)?);
    let begin = Instant::now();
    let (mut slowest_start, mut slowest_stop) = (Duration::ZERO, Duration::ZERO);
    for n in 0..cycles {
        let start = Instant::now();
        let agent = Agent::start(&Settings::new(&hierarchy)).with_context(|| format!("cycle {n}"))?;
        slowest_start = slowest_start.max(start.elapsed());
        let stopped = agent.stop()?;
        stopped.check().with_context(|| format!("cycle {n}"))?;
        slowest_stop = slowest_stop.max(stopped.took);
    }
    println!(
        "{cycles} cycles in {:?}; slowest start {slowest_start:?}, stop {slowest_stop:?}",
        begin.elapsed()
    );
    let after = descriptors(std::process::id() as i32)?;
    ensure!(after <= own, "the test held {own} descriptors, now {after}");
    check_nothing_left(&before)
}

fn kills_leave_nothing() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let before = bpf_objects()?;
    for _ in 0..cycles()?.div_ceil(10) {
        let mut agent = Agent::start(&Settings::new(&hierarchy))?;
        let stopped = agent.stop_by(libc::SIGKILL)?;
        ensure!(!stopped.status.success(), "a killed agent ended with {}", stopped.status);
    }
    check_nothing_left(&before)?;
    // The next one finds nothing in its way.
    Agent::start(&Settings::new(&hierarchy))?.stop_conserved()?;
    check_nothing_left(&before)
}

fn the_last_interval_is_in_the_final_totals() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    // No drain but the first and the last.
    let agent = Agent::start(&Settings::new(&hierarchy).every_ms(60_000))?;
    let early = agent.scrape()?;
    let tenant = hierarchy.tenant("last")?;
    let (workload, _) = Workload::run(&tenant, &["syscalls", "--getppid", "1000000"])?;
    workload.finish()?;
    let scrape = agent.scrape()?;
    ensure!(calls(&scrape, "last", "getppid") == 0, "there was a drain in between: the test proves nothing");
    let stopped = agent.stop()?;
    let totals = stopped.check()?;
    let entered = totals.iter().find(|t| t.event == "syscalls").context("no syscalls")?;
    let before = early.count(crate::family::SYSCALLS, &[]);
    ensure!(entered.attributed >= before + 1_000_000, "{entered:?} after {before} calls and a million more");
    Ok(())
}

fn a_second_signal_ends_at_once() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let before = bpf_objects()?;
    let mut agent = Agent::start(&Settings::new(&hierarchy))?;
    agent.signal(libc::SIGTERM);
    let stopped = agent.stop_by(libc::SIGINT)?;
    ensure!(stopped.took < Duration::from_secs(2), "took {:?}", stopped.took);
    check_nothing_left(&before)
}

fn reload_loses_no_count() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let settings = Settings::new(&hierarchy);
    let mut agent = Agent::start(&settings)?;
    let cgroup = hierarchy.tenant("one")?;
    let own = hierarchy.own().path();
    let args = ["syscalls", "--getppid", "1000000", "--rounds", "200", "--pause-ms", "10"];
    let mut workload = Workload::spawn(&cgroup, &args)?;
    workload.go()?;
    let early_descriptors = descriptors(agent.pid())?;
    for n in 1..=4 {
        std::thread::sleep(Duration::from_millis(500));
        let rules = rule(&format!("{own}/one"), &format!("epoch{n}"));
        agent.reload(&Settings { rules, ..settings.clone() }.yaml())?;
        agent.wait_for(Duration::from_secs(5), |l| l.get("msg").is_some_and(|m| m.contains("reload")))?;
    }
    workload.results()?;
    workload.finish()?;
    let of = |s: &kernmeter_tests::Scrape, tenant: &str| calls(s, tenant, "getppid");
    let all = |s: &kernmeter_tests::Scrape| {
        of(s, "one") + (1..=4).map(|n| of(s, &format!("epoch{n}"))).sum::<u64>()
    };
    let scrape = agent.settle(1_000_000, all)?;
    ensure!(of(&scrape, "epoch4") > 0, "the last rules were never used");
    let late_descriptors = descriptors(agent.pid())?;
    ensure!(
        late_descriptors <= early_descriptors + 1,
        "descriptors: {early_descriptors}, then {late_descriptors}"
    );
    agent.stop_conserved()?;
    Ok(())
}

fn a_changed_file_is_reloaded_by_itself() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let settings = Settings::new(&hierarchy);
    let mut agent = Agent::start(&settings)?;
    let cgroup = hierarchy.tenant("one")?;
    let own = hierarchy.own().path();
    let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", "1000"])?;
    agent.settle(1000, |s| calls(s, "one", "getppid"))?;
    let rules = rule(&format!("{own}/one"), "other");
    agent.swap_config(&Settings { rules, ..settings.clone() }.yaml())?;
    agent.wait_for(Duration::from_secs(5), |l| {
        l.get("msg").is_some_and(|m| m.contains("configuration reloaded"))
    })?;
    workload.finish()?;
    let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", "500"])?;
    workload.finish()?;
    let scrape = agent.settle(500, |s| calls(s, "other", "getppid"))?;
    ensure!(calls(&scrape, "one", "getppid") == 1000, "counted before, so the old tenant's");
    ensure!(scrape.count("kernmeter_config_reloads_total", &[("result", "success")]) == 1, "reloaded once");
    agent.stop_conserved()?;
    Ok(())
}

fn a_bad_reload_changes_nothing() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let settings = Settings::new(&hierarchy);
    let mut agent = Agent::start(&settings)?;
    let cgroup = hierarchy.tenant("same")?;
    agent.reload("tenants: {rulez: []}\n")?;
    let line = agent.wait_for(Duration::from_secs(5), |l| l.values().any(|v| v.contains("rulez")))?;
    ensure!(line.get("level").is_some_and(|l| l != "info" && l != "debug"), "said in passing only: {line:?}");
    let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", "1000"])?;
    workload.finish()?;
    agent.settle(1000, |s| calls(s, "same", "getppid"))?;
    agent.stop_conserved()?;
    Ok(())
}

/// Fault 41, a part of it: an editor or a full disk leaves an empty file, and nobody sends a signal. What the file is written
/// with in the end counts.
fn an_emptied_file_changes_nothing() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let own = hierarchy.own().path();
    let rules = |tenant: &str| rule(&format!("{own}/one"), tenant);
    let settings = Settings { rules: rules("ruled"), ..Settings::new(&hierarchy) };
    let mut agent = Agent::start(&settings)?;
    let cgroup = hierarchy.tenant("one")?;
    for text in ["", "\n \n"] {
        agent.swap_config(text)?;
        let refused = |l: &BTreeMap<String, String>| l.values().any(|v| v.contains("is empty"));
        let line = agent.wait_for(Duration::from_secs(10), refused)?;
        ensure!(line.get("level").is_some_and(|level| level == "error"), "said in passing only: {line:?}");
        Workload::run(&cgroup, &["syscalls", "--getppid", "1000"])?.0.finish()?;
    }
    agent.settle(2000, |s| calls(s, "ruled", "getppid"))?;
    agent.swap_config(&Settings { rules: rules("after"), ..settings.clone() }.yaml())?;
    agent.wait_for(Duration::from_secs(10), |l| {
        l.get("msg").is_some_and(|m| m.contains("configuration reloaded"))
    })?;
    Workload::run(&cgroup, &["syscalls", "--getppid", "500"])?.0.finish()?;
    agent.settle(500, |s| calls(s, "after", "getppid"))?;
    agent.stop_conserved()?;
    Ok(())
}

/// Fault 45: no thread can regain what the agent gave up, and the one that speaks to the network holds nothing.
fn no_capability_comes_back() -> Outcome {
    // CAP_PERFMON and CAP_BPF.
    const KEPT: u64 = 0xc0_0000_0000;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let mut names = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        // A thread may end while we look.
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.with_context(|| format!("no {name} in {status}"))
        };
        let name = field("Name")?.to_owned();
        let set = |set: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(field(set)?, 16)?);
        ensure!(field("NoNewPrivs")? == "1", "{name}: executing a program may bring privileges");
        let own = if name == "http" { 0 } else { KEPT };
        for (which, most) in
            [("CapEff", own), ("CapPrm", own), ("CapBnd", KEPT), ("CapInh", 0), ("CapAmb", 0)]
        {
            let held = set(which)?;
            ensure!(held & !most == 0, "{name}: {which} is {held:x}");
        }
        names.push(name);
    }
    ensure!(names.iter().any(|name| name == "http"), "no thread that serves: {names:?}");
    agent.stop_conserved()?;
    Ok(())
}

fn two_agents_at_once() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let first = Agent::start(&Settings::new(&hierarchy))?;
    // Either it refuses with one clear line, or both count everything.
    match Agent::start(&Settings::new(&hierarchy)) {
        Err(e) => println!("the second agent refuses: {e:#}"),
        Ok(second) => {
            let tenant = hierarchy.tenant("both")?;
            let (workload, _) = Workload::run(&tenant, &["syscalls", "--getppid", "100000"])?;
            workload.finish()?;
            first.settle(100_000, |s| calls(s, "both", "getppid"))?;
            second.settle(100_000, |s| calls(s, "both", "getppid"))?;
            second.stop_conserved()?;
        }
    }
    first.stop_conserved()?;
    Ok(())
}
