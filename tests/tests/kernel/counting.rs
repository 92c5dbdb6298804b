//! Calls are counted exactly, for whom they were made, and nothing is counted twice or lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kernmeter::catalog::PROBES;
use kernmeter_tests::scrape::Sample;
use kernmeter_tests::settings::rule;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, harmless, skip, trials};

use crate::NATIVE;
use crate::family::{DENIED, ERRORS, KERNEL_EVENTS, LOST, SYSCALLS};
use crate::limits::swarm;

trials![
    exact_across_many_drains,
    exact_on_trace_events,
    exact_when_the_cgroup_is_removed_at_once,
    exact_for_500_short_lived_cgroups,
    exact_for_cgroups_made_while_drained,
    exact_names_of_a_burst_right_after_the_start,
    exact_names_after_more_cgroups_than_there_are_rows_for,
    exact_sum_for_a_task_that_moves,
    sums_over_tenants_are_the_kernel_totals,
];

const GETPPID: u64 = 1_000_000;
const OPENAT: u64 = 10_000;

/// Calls of a tenant by name.
pub fn calls(scrape: &Scrape, tenant: &str, syscall: &str) -> u64 {
    scrape.count(SYSCALLS, &[("tenant_id", tenant), ("syscall", syscall), ("abi", NATIVE)])
}

/// The exact counts of the acceptance test, in a tenant's cgroup.
pub fn check_counts(scrape: &Scrape, tenant: &str) -> Outcome {
    let own = [("tenant_id", tenant), ("abi", NATIVE)];
    let getppid = calls(scrape, tenant, "getppid");
    ensure!(getppid == GETPPID, "{getppid} getppid instead of {GETPPID}");
    let failed = scrape.count(ERRORS, &[own[0], own[1], ("syscall", "openat"), ("errno", "ENAMETOOLONG")]);
    ensure!(failed == OPENAT, "{failed} failed openat instead of {OPENAT}");
    ensure!(calls(scrape, tenant, "openat") >= OPENAT, "fewer openat calls than failures");
    ensure!(scrape.count(ERRORS, &[own[0], ("syscall", "getppid")]) == 0, "getppid cannot fail");
    let finished =
        scrape.count("kernmeter_syscall_duration_seconds_count", &[own[0], own[1], ("syscall", "getppid")]);
    ensure!(finished == GETPPID, "{finished} measured getppid instead of {GETPPID}");
    Ok(())
}

/// The workload of [`check_counts`], spread over some seconds.
pub const WORKLOAD: [&str; 9] =
    ["syscalls", "--getppid", "1000000", "--openat-fail", "10000", "--rounds", "20", "--pause-ms", "100"];

fn exact_across_many_drains() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("exact")?;
    let (workload, _) = Workload::run(&tenant, &WORKLOAD)?;
    let scrape = agent.settle(GETPPID, |s| calls(s, "exact", "getppid"))?;
    check_counts(&scrape, "exact")?;
    workload.finish()?;
    check_counts(&agent.fresh()?, "exact")?;
    agent.stop_conserved()?;
    Ok(())
}

/// As programs run on kernels that would preempt them on the tracepoints.
fn exact_on_trace_events() -> Outcome {
    if std::fs::read_dir("/sys/kernel/tracing/events").is_err() {
        skip!("no tracefs at /sys/kernel/tracing");
    }
    let hierarchy = Hierarchy::new()?;
    let settings = Settings::new(&hierarchy).section("kernel: {attach: event}");
    let agent = Agent::start(&settings)?;
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?;
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let events = targets.filter(|target| target.to_string_lossy().contains("perf_event")).count();
    let hooks = PROBES.iter().filter(|probe| probe.by_default).flat_map(|probe| probe.hooks);
    let expected = hooks.filter(|hook| hook.event_variant.is_some()).count();
    ensure!(events == expected, "{events} trace events in use instead of {expected}");
    let tenant = hierarchy.tenant("events")?;
    let (workload, _) = Workload::run(&tenant, &WORKLOAD)?;
    let scrape = agent.settle(GETPPID, |s| calls(s, "events", "getppid"))?;
    check_counts(&scrape, "events")?;
    workload.finish()?;
    agent.stop_conserved()?;
    Ok(())
}

fn exact_when_the_cgroup_is_removed_at_once() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    // Longer than the workload: all of it happens between two drains.
    let agent = Agent::start(&Settings::new(&hierarchy).every_ms(2000))?;
    let tenant = hierarchy.tenant("removed")?;
    let args = ["syscalls", "--getppid", "1000000", "--openat-fail", "10000"];
    let (workload, _) = Workload::run(&tenant, &args)?;
    workload.finish()?;
    tenant.remove()?;
    let scrape = agent.settle(GETPPID, |s| calls(s, "removed", "getppid"))?;
    check_counts(&scrape, "removed")?;
    // A new cgroup of the same name is the same tenant: its counter goes on where it was.
    let again = hierarchy.tenant("removed")?;
    let (workload, _) = Workload::run(&again, &["syscalls", "--getppid", "5"])?;
    workload.finish()?;
    again.remove()?;
    agent.settle(GETPPID + 5, |s| calls(s, "removed", "getppid"))?;
    agent.stop_conserved()?;
    Ok(())
}

fn exact_for_500_short_lived_cgroups() -> Outcome {
    const COUNT: u64 = 500;
    const CALLS: u64 = 1000;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let lines = swarm(&hierarchy, &["--count", &COUNT.to_string(), "--calls", &CALLS.to_string()])?;
    let longest: u64 =
        lines.iter().find_map(|l| l.strip_prefix("longest_us=")).context("no longest_us")?.parse()?;
    println!("the longest of {COUNT} cgroups lived {} ms", longest / 1000);
    let all = |s: &Scrape| {
        s.find(SYSCALLS, &[("syscall", "getppid")])
            .filter(|s| s.label("tenant_id").is_some_and(|t| t.starts_with("swarm-")))
            .map(|s| s.value() as u64)
            .sum()
    };
    let scrape = agent.settle(COUNT * CALLS, all).or_else(|e| {
        // Where did they go?
        let scrape = agent.scrape()?;
        let others = scrape.find(SYSCALLS, &[("syscall", "getppid")]);
        let others: Vec<_> = others
            .filter(|s| {
                s.label("tenant_id").is_none_or(|t| !t.starts_with("swarm-")) || s.value() != CALLS as f64
            })
            .map(|s| format!("{:?} {}", s.label("tenant_id").unwrap_or_default(), s.text))
            .collect();
        let lost: Vec<_> =
            scrape.find(LOST, &[]).filter(|s| s.text != "0").map(|s| format!("{s:?}")).collect();
        Err(e.context(format!("others: {others:?}, lost: {lost:?}")))
    })?;
    for n in 0..COUNT {
        let tenant = format!("swarm-{n}");
        let seen = calls(&scrape, &tenant, "getppid");
        ensure!(seen == CALLS, "{seen} calls of {tenant}");
        let exited = scrape.count("kernmeter_processes_exited_total", &[("tenant_id", &tenant)]);
        ensure!(exited == 1, "{exited} processes of {tenant} exited");
    }
    for reason in [
        "slot_exhausted",
        "slot_quota",
        "cgroup_map_full",
        "unknown_cgroup",
        "syscall_row_exhausted",
        "syscall_row_quota",
    ] {
        let lost = scrape.count(LOST, &[("reason", reason)]);
        ensure!(lost == 0, "{lost} events were not attributed: {reason}");
    }
    agent.stop_conserved()?;
    Ok(())
}

fn exact_for_cgroups_made_while_drained() -> Outcome {
    const COUNT: u64 = 5000;
    const CALLS: u64 = 100;
    let hierarchy = Hierarchy::new()?;
    let mut settings = Settings::new(&hierarchy).every_ms(100);
    settings.rules = rule(&format!("{}/swarm-*", hierarchy.own().path()), "swarm");
    let agent = Agent::start(&settings)?;
    let (number, each) = (COUNT.to_string(), CALLS.to_string());
    // Some thousands a second: a machine may hold the agent up for a moment, too.
    swarm(&hierarchy, &["--count", &number, "--calls", &each, "--pause-us", "100"])?;
    // Some of so many cgroups are made, used and removed in the middle of a drain: not one call goes to somebody else.
    let elsewhere = |s: &Scrape| calls(s, "_overflow", "getppid") + calls(s, "_unknown", "getppid");
    let scrape = agent.settle(COUNT * CALLS, |s| calls(s, "swarm", "getppid") + elsewhere(s))?;
    ensure!(elsewhere(&scrape) == 0, "{} calls are nobody's", elsewhere(&scrape));
    let exited = scrape.count("kernmeter_processes_exited_total", &[("tenant_id", "swarm")]);
    ensure!(exited == COUNT, "{exited} processes exited");
    agent.stop_conserved()?;
    Ok(())
}

/// Rows and slots are made as they are needed. These are needed within a second or two, long before the first pass is due.
fn exact_names_of_a_burst_right_after_the_start() -> Outcome {
    const COUNT: u64 = 800;
    let hierarchy = Hierarchy::new()?;
    let mut settings = Settings::new(&hierarchy).every_ms(5000);
    settings.rules = rule(&format!("{}/swarm-*", hierarchy.own().path()), "swarm");
    let (number, names) = (COUNT.to_string(), harmless::CALLS.len().to_string());
    let agent = Agent::start(&settings)?;
    swarm(&hierarchy, &["--count", &number, "--calls", "1", "--names", &names, "--pause-us", "1000"])?;
    let of_swarm = |s: &Scrape| s.count(SYSCALLS, &[("tenant_id", "swarm")]);
    // `getppid`, the 60 others and `exit`, which by its name depends on the C library.
    let all = COUNT * (harmless::CALLS.len() as u64 + 2);
    let scrape = agent.settle(all, of_swarm)?;
    let kept = all - scrape.count(SYSCALLS, &[("tenant_id", "swarm"), ("syscall", "_overflow")]);
    println!("{kept} of {all} calls have a name");
    // Not all: a machine may hold the agent up when it is to make more.
    ensure!(kept * 10 >= all * 6, "only {kept} of {all} calls have a name");
    for reason in ["slot_exhausted", "slot_quota"] {
        let lost = scrape.count(LOST, &[("reason", reason)]);
        ensure!(lost == 0, "{lost} cgroups found no slot: {reason}");
    }
    agent.stop_conserved()?;
    Ok(())
}

/// Rows of cgroups that are gone come back long before the pass that is due: what is made next has its names.
fn exact_names_after_more_cgroups_than_there_are_rows_for() -> Outcome {
    const GONE: u64 = 150;
    const LATE: u64 = 20;
    let hierarchy = Hierarchy::new()?;
    let mut settings = Settings::new(&hierarchy).every_ms(5000).section("kernel: {syscall_rows: 7000}");
    let own = hierarchy.own().path();
    settings.rules = rule(&format!("{own}/swarm-*"), "swarm") + &rule(&format!("{own}/late-*"), "late");
    let names = harmless::CALLS.len().to_string();
    let swarm = |prefix: &str, count: u64| {
        let count = count.to_string();
        swarm(&hierarchy, &["--prefix", prefix, "--count", &count, "--calls", "1", "--names", &names])
    };
    let agent = Agent::start(&settings)?;
    swarm("swarm", GONE)?;
    // A pass sees them, and two more make them free. Those that are due would take some 15 s.
    let begun = Instant::now();
    while agent.scrape()?.count("kernmeter_slots_recycled_total", &[]) < GONE {
        ensure!(begun.elapsed().as_secs() < 14, "not free again after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("free again after {:?}", begun.elapsed());
    swarm("late", LATE)?;
    let all = LATE * (harmless::CALLS.len() as u64 + 2);
    let scrape = agent.settle(all, |s| s.count(SYSCALLS, &[("tenant_id", "late")]))?;
    let nameless = scrape.count(SYSCALLS, &[("tenant_id", "late"), ("syscall", "_overflow")]);
    ensure!(nameless == 0, "{nameless} of {all} calls have no name");
    agent.stop_conserved()?;
    Ok(())
}

fn exact_sum_for_a_task_that_moves() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let (left, right) = (hierarchy.tenant("left")?, hierarchy.tenant("right")?);
    let args = ["syscalls", "--getppid", "1000000", "--rounds", "1000", "--pause-ms", "1"];
    let mut workload = Workload::spawn(&left, &args)?;
    workload.go()?;
    let pid = workload.pid();
    let is_done = AtomicBool::new(false);
    // There and back, for as long as it makes calls, however slow the machine is.
    let times = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut times = 0u64;
            while !is_done.load(Ordering::Relaxed) {
                for cgroup in [&right, &left] {
                    std::thread::sleep(Duration::from_millis(20));
                    cgroup.enter(pid)?;
                    times += 1;
                }
            }
            Ok::<_, anyhow::Error>(times)
        });
        let results = workload.results();
        is_done.store(true, Ordering::Relaxed);
        let times = mover.join().expect("the mover returns what failed");
        results.and(times)
    })?;
    workload.finish()?;
    let both = |s: &Scrape| calls(s, "left", "getppid") + calls(s, "right", "getppid");
    let scrape = agent.settle(GETPPID, both)?;
    let (l, r) = (calls(&scrape, "left", "getppid"), calls(&scrape, "right", "getppid"));
    ensure!(l > GETPPID / 10 && r > GETPPID / 10, "{l} calls left and {r} right of a task that was in both");
    let moved = |tenant| scrape.count("kernmeter_task_moves_total", &[("tenant_id", tenant)]);
    ensure!(
        moved("left") == times / 2 && moved("right") == times / 2,
        "{} and {} moves",
        moved("left"),
        moved("right")
    );
    let tasks = |tenant| scrape.sum("kernmeter_tasks", &[("tenant_id", tenant)]);
    ensure!(
        tasks("left") == 0.0 && tasks("right") == 0.0,
        "tasks left over: {} {}",
        tasks("left"),
        tasks("right")
    );
    agent.stop_conserved()?;
    Ok(())
}

/// Sums of all rows of a scrape by the name of the total they must add up to.
pub fn row_sums(scrape: &Scrape) -> Vec<(&'static str, u64)> {
    let switches = |kind| scrape.count("kernmeter_context_switches_total", &[("kind", kind)]);
    let finished = scrape.count("kernmeter_syscall_duration_seconds_count", &[]);
    vec![
        ("syscall_enter", scrape.count(SYSCALLS, &[]) - scrape.count(DENIED, &[])),
        ("syscall_denied", scrape.count(DENIED, &[])),
        ("syscall_error", scrape.count(ERRORS, &[])),
        ("syscall_exit", finished + scrape.count("kernmeter_syscalls_unmeasured_total", &[])),
        ("switch_voluntary", switches("voluntary")),
        ("switch_involuntary", switches("involuntary")),
        ("migrations", scrape.count("kernmeter_migrations_total", &[])),
        ("forked", scrape.count("kernmeter_processes_forked_total", &[])),
        ("threads", scrape.count("kernmeter_threads_started_total", &[])),
        ("exec", scrape.count("kernmeter_processes_exec_total", &[])),
        ("exited", scrape.count("kernmeter_processes_exited_total", &[])),
    ]
}

fn sums_over_tenants_are_the_kernel_totals() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("busy")?;
    let (few, _) = Workload::run(&tenant, &["processes", "--threads", "5", "--execs", "5"])?;
    few.finish()?;
    let mut workload = Workload::spawn(&tenant, &["flood", "--forks"])?;
    workload.go()?;
    // Rows and totals of a running host are read a moment apart: each scrape's rows lie between the totals of the scrape
    // before and of the one after.
    let mut scrapes = Vec::new();
    for _ in 0..4 {
        scrapes.push(agent.fresh()?);
    }
    workload.kill()?;
    for window in scrapes.windows(3) {
        for (event, rows) in row_sums(&window[1]) {
            let total = |s: &Scrape| s.count(KERNEL_EVENTS, &[("event", event)]);
            let (before, after) = (total(&window[0]), total(&window[2]));
            ensure!(
                before <= rows && rows <= after,
                "{event}: rows add up to {rows}, totals go from {before} to {after}"
            );
            // A quiet host need not migrate anything.
            ensure!(
                after > 0 || ["migrations", "syscall_denied"].contains(&event),
                "{event}: no events at all"
            );
        }
        // Not `cpu_by_cgroup`, which compares with another account: it has a test of its own.
        let totals = |s: &&Sample| s.label("quantity") != Some("cpu_by_cgroup");
        let error: f64 =
            window[1].find("kernmeter_accounting_error_ratio", &[]).filter(totals).map(Sample::value).sum();
        ensure!(error == 0.0, "accounting error {error}");
    }
    let last = row_sums(&scrapes[3]);
    let totals = agent.stop_conserved()?;
    for (event, rows) in last {
        // Both kinds of switches are one final total, and so are calls entered and denied.
        let event = match event {
            "switch_voluntary" | "switch_involuntary" => "switches",
            "syscall_enter" | "syscall_denied" => "syscalls",
            other => other,
        };
        let total = totals.iter().find(|t| t.event == event).with_context(|| format!("no final {event}"))?;
        ensure!(
            total.attributed >= rows,
            "{event}: {rows} were scraped, {} are left at the end",
            total.attributed
        );
    }
    Ok(())
}
