//! In: a machine whose CPUs come and go, or come late; out: whether what runs on them is counted exactly.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::{Agent, Hierarchy, Settings, Workload, skip};

use super::{all_arrive, examine, stop};
use crate::machine;

fn online(cpu: u32) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/online")
}

fn set_online(cpu: u32, state: &str) -> Result<()> {
    fs::write(online(cpu), state).with_context(|| format!("write {state} to {}", online(cpu)))
}

/// A CPU leaves and returns six times while two tenants work; each call is counted.
pub fn come_and_go() -> Result<()> {
    const CALLS: u64 = 200_000;
    if fs::read_to_string(online(1)).is_err() {
        skip!("the machine has no second CPU that can be taken away");
    }
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenants = [hierarchy.tenant("left")?, hierarchy.tenant("right")?];
    let number = CALLS.to_string();
    let mut workloads = Vec::new();
    for tenant in &tenants {
        let args = ["syscalls", "--getppid", &number, "--rounds", "200", "--pause-ms", "1"];
        let mut workload = Workload::spawn(tenant, &args)?;
        workload.go()?;
        workloads.push(workload);
    }
    for _ in 0..6 {
        for state in ["0", "1"] {
            set_online(1, state)?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    for mut workload in workloads {
        workload.results()?;
        workload.finish()?;
    }
    for tenant in ["left", "right"] {
        all_arrive(&agent, tenant, CALLS)?;
    }
    stop(agent)
}

/// Fault 35: a CPU that is offline does not idle. What tasks ran and what CPUs idled is at most what the CPUs were there for.
pub fn idle() -> Result<()> {
    const OFFLINE: Duration = Duration::from_secs(3);
    if fs::read_to_string(online(1)).is_err() {
        skip!("the machine has no second CPU that can be taken away");
    }
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let spent = || -> Result<(Instant, f64)> {
        let scrape = agent.fresh()?;
        let total = |event| scrape.sum("kernmeter_kernel_seconds_total", &[("kind", event)]);
        Ok((Instant::now(), total("idle") + total("cpu")))
    };
    // Whatever it has done since it started is told first.
    let (begin, before) = spent()?;
    set_online(1, "0")?;
    std::thread::sleep(OFFLINE);
    set_online(1, "1")?;
    let (end, after) = spent()?;
    let there = 2.0 * (end - begin).as_secs_f64() - OFFLINE.as_secs_f64();
    let seen = after - before;
    println!("two CPUs were there for {there} s together, and ran or idled for {seen} s");
    // A pass or two lie between what is read and when.
    ensure!(seen <= there + 1.0, "CPUs that were there for {there} s ran or idled for {seen} s");
    ensure!(seen >= there - 1.5, "CPUs that were there for {there} s ran or idled for {seen} s only");
    stop(agent)
}

/// Tables have room for every CPU that can come; those that come while the agent runs, in any order and with gaps in
/// their numbers, count like the first.
pub fn come_late() -> Result<()> {
    const CALLS: u64 = 20_000;
    const POSSIBLE: u32 = 4;
    let read = |what: &str| fs::read_to_string(format!("/sys/devices/system/cpu/{what}"));
    let (possible, now) = (read("possible")?, read("online")?);
    ensure!((possible.trim(), now.trim()) == ("0-3", "0"), "possible {possible}, online {now}");
    let room = examine()?.findings.into_iter().find(|finding| finding.name == "kernel memory");
    let room = room.context("doctor says nothing of kernel memory")?;
    ensure!(room.found.contains("4 possible CPUs"), "doctor: {}", room.found);

    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("kernel: {slots: 64}"))?;
    for map in aya::maps::loaded_maps() {
        let map = map?;
        if map.name_as_str() == Some("TOTALS") {
            let entries = map.max_entries();
            println!("TOTALS has {entries} entries");
            ensure!(entries == POSSIBLE, "{entries} entries of totals for {POSSIBLE} possible CPUs");
        }
    }
    for (cpu, name) in [(0, "zero"), (3, "three"), (1, "one")] {
        if cpu > 0 {
            set_online(cpu, "1")?;
        }
        let tenant = hierarchy.tenant(name)?;
        let mut workload = Workload::spawn(&tenant, &["syscalls", "--getppid", &CALLS.to_string()])?;
        machine::pin(workload.pid(), cpu as usize)?;
        workload.go()?;
        workload.results()?;
        workload.finish()?;
        all_arrive(&agent, name, CALLS)?;
    }
    let now = read("online")?;
    println!("online at the end: {now}");
    ensure!(now.trim() == "0-1,3", "online {now}");
    stop(agent)?;
    for cpu in [1, 3] {
        set_online(cpu, "0")?;
    }
    Ok(())
}
