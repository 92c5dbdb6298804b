//! A task that is moved between cgroups is billed where it is, whatever it remembers of where it was.

use anyhow::{Context, Result, ensure};
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::counting::calls;
use crate::family::CPU;
use crate::limits::cgroups_below;

trials![rows_of_a_slot_that_was_given_away, tasks_that_move_themselves, tasks_that_move_themselves_at_birth,];

/// Moves a task and lets it make calls.
fn step(task: &mut Workload, cgroup: &Cgroup) -> Outcome {
    cgroup.enter(task.pid())?;
    task.go()?;
    task.results().map(drop)
}

/// Fault 29: tasks make calls in a cgroup, leave it, and the cgroup goes. Its slot gets another owner, and its rows other
/// keys. The tasks are then moved to new cgroups, one of which is that owner: each call is its cgroup's, under its own name.
fn rows_of_a_slot_that_was_given_away() -> Outcome {
    const CALLS: u64 = 1000;
    const ROOM: usize = 16;
    let hierarchy = Hierarchy::new()?;
    // Whatever else runs here has cgroups too, at any depth.
    let existing = cgroups_below(hierarchy.own().dir().parent().unwrap_or(hierarchy.own().dir()));
    let settings = Settings::new(&hierarchy)
        .every_ms(100)
        .section(&format!("kernel: {{slots: {}, syscall_rows: 1024}}", existing + ROOM));
    let agent = Agent::start(&settings)?;
    let (first, refuge) = (hierarchy.tenant("first")?, hierarchy.tenant("refuge")?);
    let mut tasks = Vec::new();
    for _ in 0..ROOM {
        // What it calls in the refuge would take the place of what it remembers.
        let mut task = Workload::spawn(&first, &["steps", "--getppid", "1000", "--pass", "2"])?;
        step(&mut task, &first)?;
        step(&mut task, &refuge)?;
        tasks.push(task);
    }
    agent.settle(CALLS * ROOM as u64, |s| calls(s, "first", "getppid"))?;
    first.remove()?;
    // A slot is free again two drains after its cgroup is gone, which takes one more to be seen.
    for _ in 0..4 {
        agent.fresh()?;
    }
    // These take every free slot: one of them that of `first`. So with the free rows, for calls of other names.
    let owners = (0..ROOM).map(|n| hierarchy.tenant(format!("next{n}"))).collect::<Result<Vec<_>, _>>()?;
    for owner in &owners {
        let (other, _) = Workload::run(owner, &["syscalls", "--getpriority", "10"])?;
        other.finish()?;
    }
    for (task, owner) in tasks.iter_mut().zip(&owners) {
        step(task, owner)?;
    }
    let in_owners = |s: &Scrape| (0..ROOM).map(|n| calls(s, &format!("next{n}"), "getppid")).sum::<u64>();
    let settled = agent.settle(CALLS * ROOM as u64, |s| in_owners(s) + calls(s, "_overflow", "getppid"));
    let scrape = agent.fresh()?;
    let mut with_slot = 0;
    for n in 0..ROOM {
        let tenant = format!("next{n}");
        let (getppid, getpriority) =
            (calls(&scrape, &tenant, "getppid"), calls(&scrape, &tenant, "getpriority"));
        ensure!(
            (getppid, getpriority) == (CALLS, 10) || (getppid, getpriority) == (0, 0),
            "{getppid} getppid and {getpriority} getpriority of `{tenant}` instead of {CALLS} and 10; the error ratio is {}",
            scrape.sum("kernmeter_accounting_error_ratio", &[])
        );
        with_slot += u64::from(getppid != 0);
    }
    settled?;
    ensure!(with_slot > 2, "only {with_slot} cgroups found a slot: this shows nothing");
    tasks.into_iter().try_for_each(|task| task.finish().map(drop))?;
    agent.stop_conserved()?;
    Ok(())
}

/// What a workload says it measured, seconds.
fn seconds(lines: &[String], name: &str) -> Result<f64> {
    let value = lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Ok(value.with_context(|| format!("no {name} in {lines:?}"))?.parse::<f64>()? / 1e9)
}

fn cpu(scrape: &Scrape, cgroup: &Cgroup) -> f64 {
    scrape.sum(CPU, &[("tenant_id", cgroup.name())])
}

/// A task that moves itself every few hundred microseconds, many times in each of its stints on a CPU, has its own clock for
/// what it ran in each cgroup. Only what the moves themselves took may be in either.
fn tasks_that_move_themselves() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let start = hierarchy.tenant("start")?;
    // Unequal, so that what is billed to the wrong one of the two does not cancel out.
    for (n, us) in [["300", "100"], ["100", "300"]].iter().enumerate() {
        let [left, right] = ["left", "right"].map(|side| hierarchy.tenant(format!("{side}{n}")));
        let (left, right) = (left?, right?);
        let [to_left, to_right] = [&left, &right].map(|c| c.dir().display().to_string());
        let args =
            ["self-mover", "--left", &to_left, "--right", &to_right, "--left-us", us[0], "--right-us", us[1]];
        let (workload, lines) = Workload::run(&start, &[&args[..], &["--rounds", "2500"]].concat())?;
        let scrape = agent.fresh()?;
        let moving = seconds(&lines, "moves")?;
        let mut sum = -moving;
        for (cgroup, side) in [(&left, "left"), (&right, "right")] {
            let (seen, own, kernel) = (cpu(&scrape, cgroup), seconds(&lines, side)?, cgroup.cpu_seconds()?);
            println!(
                "{}: {seen:.6} s, by its own clock {own:.6} s and {moving:.6} s for the moves, cpu.stat {kernel:.6} s",
                cgroup.name()
            );
            ensure!(
                seen > own * 0.99 && seen < own * 1.01 + moving,
                "{} has {seen} s, by the task's own clock {own} s, and {moving} s for all moves",
                cgroup.name()
            );
            sum += seen - own;
        }
        ensure!(sum.abs() < 0.02, "both together differ by {sum} s from the task's own clock");
        workload.finish()?;
    }
    agent.stop_conserved()?;
    Ok(())
}

/// A process that moves itself first of all has not run yet by the scheduler's count. It pays where it is from then on.
fn tasks_that_move_themselves_at_birth() -> Outcome {
    const COUNT: f64 = 100.0;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let (start, into) = (hierarchy.tenant("start")?, hierarchy.tenant("into")?);
    let [from, to] = [&start, &into].map(|cgroup| cgroup.dir().display().to_string());
    let args = ["born-movers", "--from", &from, "--into", &to, "--count", "100", "--us", "2000"];
    let (workload, lines) = Workload::run(&start, &args)?;
    let scrape = agent.fresh()?;
    let (seen, own, kernel) = (cpu(&scrape, &into), COUNT * 0.002, into.cpu_seconds()?);
    let most = seconds(&lines, "children")?;
    println!("{seen:.6} s, by their own clocks from {own:.6} s to {most:.6} s, cpu.stat {kernel:.6} s");
    // A child's own clock ends before its exit does, which is long on a busy machine: the kernel's count has it.
    ensure!(
        seen >= own && seen < most.max(kernel) * 1.01,
        "processes that ran {own} s after they moved, and {most} s in all, have {seen} s, by cpu.stat {kernel} s"
    );
    workload.finish()?;
    agent.stop_conserved()?;
    Ok(())
}
