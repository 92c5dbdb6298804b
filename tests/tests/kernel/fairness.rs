//! What one user does in a subtree of his own takes nothing from others: fault 37, at default sizes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::settings::rule;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::counting::calls;
use crate::family::{DURATION, ERRORS, SYSCALLS};

trials![
    many_cgroups,
    many_cgroups_in_a_container,
    cgroups_in_cgroups,
    cgroups_that_come_and_go,
    cgroups_that_are_gone_but_for_a_task,
    calls_that_do_not_exist,
    errors_that_were_made_up,
    nobody_but_root_sets_the_pace,
    folded_cgroups_get_slots_later,
];

const USER: u32 = 65534;
/// Calls of each victim, before, while and after; and errors.
const CALLS: u64 = 1000;
const FAILED: u64 = 100;
/// Workloads that are made while the attack lasts.
const NEWCOMERS: u64 = 20;

/// So many calls of several kinds in a cgroup, `times` times.
fn work(cgroup: &Cgroup) -> Outcome {
    let (calls, failed) = (CALLS.to_string(), FAILED.to_string());
    let (workload, _) = Workload::run(cgroup, &["syscalls", "--getppid", &calls, "--openat-fail", &failed])?;
    workload.finish()?;
    Ok(())
}

/// Names, latencies and errors of a tenant that worked so many times are all there.
fn is_exact(scrape: &Scrape, tenant: &str, times: u64) -> Outcome {
    let getppid = calls(scrape, tenant, "getppid");
    ensure!(getppid == times * CALLS, "{tenant}: {getppid} calls under their name, made {}", times * CALLS);
    let errors = [("tenant_id", tenant), ("syscall", "openat"), ("errno", "ENAMETOOLONG")];
    let errors = scrape.count(ERRORS, &errors);
    ensure!(errors == times * FAILED, "{tenant}: {errors} errors under their name, made {}", times * FAILED);
    let measured =
        scrape.count(&format!("{DURATION}_count"), &[("tenant_id", tenant), ("syscall", "getppid")]);
    ensure!(measured == times * CALLS, "{tenant}: {measured} durations, made {}", times * CALLS);
    for family in [SYSCALLS, ERRORS] {
        let nameless = scrape.count(family, &[("tenant_id", tenant), ("syscall", "_overflow")]);
        ensure!(nameless == 0, "{tenant}: {nameless} of {family} without a name");
    }
    Ok(())
}

/// Everything below a tenant's cgroup is the tenant's.
fn settings(hierarchy: &Hierarchy) -> Settings {
    let mut settings = Settings::new(hierarchy);
    settings.rules = rule(&format!("{}/{{name}}/**", hierarchy.own().path()), "{name}");
    settings
}

/// One attack, out of `below`, a path of cgroups that root makes below the attacker's; what it is to be seen by.
fn attack(kind: &str, count: u64, below: &[&str], symptom: impl FnOnce(&Scrape) -> Outcome) -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&settings(&hierarchy))?;
    let victim = hierarchy.tenant("victim")?;
    let attacker = hierarchy.tenant("attacker")?;
    let mut path = vec![attacker];
    for name in below {
        path.push(path.last().context("a path")?.child(name)?);
    }
    let base = path.last().context("a path")?;
    base.delegate(USER)?;
    // A user's process is never in a cgroup that has others below it.
    let start = base.child("start")?;
    start.delegate(USER)?;
    work(&victim)?;

    let root = base.dir().to_string_lossy().into_owned();
    let count = count.to_string();
    let mut attacker =
        Workload::spawn(&start, &["attack", "--kind", kind, "--root", &root, "--count", &count])?;
    attacker.go()?;
    let said = attacker.results()?;
    let made =
        said.iter().find_map(|line| line.strip_prefix("calls=")).context("the attacker says nothing")?;
    let made: u64 = made.parse()?;
    work(&victim)?;
    let mut newcomers = Vec::new();
    for n in 0..NEWCOMERS {
        let newcomer = hierarchy.tenant(format!("newcomer{n}"))?;
        work(&newcomer)?;
        newcomers.push(newcomer);
    }
    let scrape = agent.fresh()?;
    is_exact(&scrape, "victim", 2)?;
    for n in 0..NEWCOMERS {
        is_exact(&scrape, &format!("newcomer{n}"), 1)?;
    }
    for stranger in ["_overflow", "_unknown"] {
        let seen = scrape.count(SYSCALLS, &[("tenant_id", stranger), ("syscall", "getpriority")]);
        ensure!(seen == 0, "{seen} of the attacker's calls are in {stranger}");
    }
    // Also what found no row of its own is the attacker's.
    let own = scrape.count(SYSCALLS, &[("tenant_id", "attacker")]);
    ensure!(own >= made, "the attacker made {made} calls and more, {own} are counted");
    println!("{made} calls of the attacker in all its cgroups, {own} in all");
    symptom(&scrape)?;

    if kind == "churn" {
        attacker.kill()?;
    } else {
        attacker.finish()?;
    }
    work(&victim)?;
    let last = hierarchy.tenant("last")?;
    work(&last)?;
    let scrape = agent.fresh()?;
    is_exact(&scrape, "victim", 3)?;
    is_exact(&scrape, "last", 1)?;
    agent.stop_conserved()?;
    Ok(())
}

fn folded(scrape: &Scrape) -> u64 {
    scrape.count("kernmeter_cgroups_folded_total", &[("tenant_id", "attacker")])
}

fn is_seen_to_fold(scrape: &Scrape) -> Outcome {
    ensure!(folded(scrape) > 0, "nothing tells that the attacker has too many cgroups");
    Ok(())
}

fn many_cgroups() -> Outcome {
    attack("wide", 4100, &[], is_seen_to_fold)
}

/// A name as container runtimes give them.
const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const POD: &str = "kubepods-burstable-pod0f5a1c52_2c1e_4cbb_9a54_6d7b3f1c0e11.slice";

fn many_cgroups_in_a_container() -> Outcome {
    attack("wide", 16_500, &[POD, CONTAINER], |scrape| {
        ensure!(folded(scrape) == 0, "what is in a container is part of it, and is not folded");
        Ok(())
    })
}

fn cgroups_in_cgroups() -> Outcome {
    attack("deep", 12_000, &["user@65534.service"], is_seen_to_fold)
}

fn cgroups_that_come_and_go() -> Outcome {
    attack("churn", 1, &["user@65534.service"], |_| Ok(()))
}

fn cgroups_that_are_gone_but_for_a_task() -> Outcome {
    attack("pinned", 4100, &["user@65534.service"], is_seen_to_fold)
}

/// The agent reads when it is due, however fast a user makes and removes cgroups.
fn nobody_but_root_sets_the_pace() -> Outcome {
    const INTERVAL: Duration = Duration::from_secs(3);
    const INTERVALS: u32 = 3;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&settings(&hierarchy).every_ms(INTERVAL.as_millis() as u32))?;
    let base = hierarchy.tenant("attacker")?;
    base.delegate(USER)?;
    let start = base.child("start")?;
    start.delegate(USER)?;
    let root = base.dir().to_string_lossy().into_owned();
    let mut attacker = Workload::spawn(&start, &["attack", "--kind", "churn", "--root", &root])?;
    attacker.go()?;
    attacker.results()?;
    let drains = |s: &Scrape| s.count("kernmeter_drain_duration_seconds_count", &[]);
    let begin = Instant::now();
    let before = drains(&agent.fresh()?);
    std::thread::sleep(INTERVAL * INTERVALS);
    let made = drains(&agent.fresh()?) - before;
    // Each of the two waits for the pass after it was asked for: one more at most.
    let due = u64::from(begin.elapsed().as_millis().div_ceil(INTERVAL.as_millis()) as u32) + 1;
    println!("{made} passes in {:?}", begin.elapsed());
    ensure!(made <= due, "{made} passes in {:?}, {due} are due", begin.elapsed());
    attacker.kill()?;
    agent.stop_conserved()?;
    Ok(())
}

fn nameless(family: &str, label: &str) -> impl FnOnce(&Scrape) -> Outcome {
    move |scrape| {
        let seen = scrape.count(family, &[("tenant_id", "attacker"), (label, "_overflow")]);
        ensure!(seen > 0, "nothing tells that the attacker has too many rows");
        Ok(())
    }
}

fn calls_that_do_not_exist() -> Outcome {
    attack("numbers", 30, &["user@65534.service"], nameless(SYSCALLS, "syscall"))
}

fn errors_that_were_made_up() -> Outcome {
    attack("errors", 6, &["user@65534.service"], nameless(ERRORS, "errno"))
}

/// A workload: what is below it is part of it.
const LATE: &str = "late.service";

/// Fault 38: what found no slot, and what is in it, gets one when there is room, and its tasks follow.
fn folded_cgroups_get_slots_later() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&settings(&hierarchy).section("kernel: {slots: 64}"))?;
    // Root's own: each is an account, and takes what there is.
    let others: Vec<_> = (0..70).map(|n| hierarchy.tenant(format!("other{n}"))).collect::<Result<_>>()?;
    let late = hierarchy.tenant(LATE)?;
    let nested = late.child("nested")?;
    let mut steps = Workload::spawn(&nested, &["steps", "--getppid", "100"])?;
    steps.go()?;
    steps.results()?;
    let scrape = agent.settle(100, |s| calls(s, LATE, "getppid") + calls(s, "_overflow", "getppid"))?;
    ensure!(calls(&scrape, LATE, "getppid") == 0, "64 slots hold 72 cgroups");
    drop(others);
    let until = Instant::now() + Duration::from_mins(2);
    let mut made = 100;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        steps.go()?;
        steps.results()?;
        made += 100;
        let both = |s: &Scrape| calls(s, LATE, "getppid") + calls(s, "_overflow", "getppid");
        let scrape = agent.settle(made, both)?;
        if calls(&scrape, LATE, "getppid") > 0 {
            break;
        }
        ensure!(Instant::now() < until, "slots are free, and {LATE} still has none");
    }
    steps.finish()?;
    agent.stop_conserved()?;
    Ok(())
}
