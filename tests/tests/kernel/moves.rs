//! A task that is moved between cgroups is billed where it is, whatever it remembers of where it was.

use anyhow::ensure;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::counting::calls;
use crate::limits::cgroups_below;

trials![rows_of_a_slot_that_was_given_away];

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
