//! CPU time of a cgroup is what the kernel accounts to it in `cpu.stat`, also for tasks that move; the agent compares the
//! two by itself, and finds them equal.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kernmeter_tests::kernel::task_times;
use kernmeter_tests::trial::with_retries;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::counting::calls;
use crate::family::CPU;

trials![cpu_of_a_task_that_moves_in_a_call, cpu_of_a_task_that_moves_while_it_runs, cpu_is_audited_by_cgroup,];

const RATIO: &str = "kernmeter_accounting_error_ratio";
const READINGS: &str = "kernmeter_audit_readings_total";

/// A tenant's CPU time is its cgroup's by the kernel's account, but for one part in a hundred and 5 ms.
fn check(scrape: &Scrape, tenant: &Cgroup) -> Outcome {
    let seen = scrape.sum(CPU, &[("tenant_id", tenant.name())]);
    let expected = tenant.cpu_seconds()?;
    println!("{}: {seen:.6} s, the kernel says {expected:.6} s", tenant.name());
    ensure!(expected > 0.1, "{} used {expected} s only", tenant.name());
    ensure!(
        (seen - expected).abs() <= expected * 0.01 + 0.005,
        "{} has {seen} s, the kernel says {expected} s",
        tenant.name()
    );
    Ok(())
}

/// Lets a workload go on, and waits until it has run for so long since.
fn let_run(workload: &mut Workload, seconds: f64) -> Outcome {
    let begin = task_times(workload.pid())?.cpu;
    workload.go()?;
    let until = Instant::now() + Duration::from_secs(20);
    while task_times(workload.pid())?.cpu < begin + seconds {
        ensure!(Instant::now() < until, "the workload gets no CPU time");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A runtime moves its container's first process while that is in a call of a second: each cgroup pays for what ran in it.
fn cpu_of_a_task_that_moves_in_a_call() -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy))?;
        let (old, new) = (hierarchy.tenant("old")?, hierarchy.tenant("new")?);
        let mut workload = Workload::spawn(&old, &["long-call", "--mb", "1000"])?;
        let_run(&mut workload, 0.3)?;
        new.enter(workload.pid())?;
        workload.results()?;
        let scrape = agent.fresh()?;
        check(&scrape, &old)?;
        check(&scrape, &new)?;
        // The call itself is the old one's, which made it.
        let readvs = (calls(&scrape, "old", "readv"), calls(&scrape, "new", "readv"));
        ensure!(readvs == (1, 0), "{readvs:?} readv");
        workload.finish()?;
        agent.stop_conserved()?;
        Ok(())
    })
}

/// A task that runs on without a switch while it is moved: each cgroup pays for its part of the stint.
fn cpu_of_a_task_that_moves_while_it_runs() -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy).every_ms(3000))?;
        let (old, new) = (hierarchy.tenant("old")?, hierarchy.tenant("new")?);
        let args = ["spin", "--cpu", "0", "--real-time", "--ms", "800"];
        let mut workload = Workload::spawn(&old, &args)?;
        workload.go()?;
        workload.results()?;
        let_run(&mut workload, 0.3)?;
        new.enter(workload.pid())?;
        workload.results()?;
        let scrape = agent.fresh()?;
        check(&scrape, &old)?;
        check(&scrape, &new)?;
        workload.finish()?;
        agent.stop_conserved()?;
        Ok(())
    })
}

/// The agent compares busy cgroups, and those above them, with the kernel's account and finds no difference, while
/// processes come and go and tasks move.
fn cpu_is_audited_by_cgroup() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let mut agent = Agent::start(&Settings::new(&hierarchy).section("log: {level: debug}"))?;
    let unknown = agent.fresh()?;
    ensure!(unknown.count(READINGS, &[("outcome", "compared")]) == 0, "something was compared already");
    ensure!(
        unknown.find(RATIO, &[("quantity", "cpu_by_cgroup")]).next().is_none(),
        "a ratio although nothing was compared"
    );
    let (called, forked) = (hierarchy.tenant("called")?, hierarchy.tenant("forked")?);
    let (left, right) = (hierarchy.tenant("left")?, hierarchy.tenant("right")?);
    let mut spinner = Workload::spawn(&called, &["flood"])?;
    let mut storm = Workload::spawn(&forked, &["flood", "--forks"])?;
    let mut mover = Workload::spawn(&left, &["flood"])?;
    for workload in [&mut spinner, &mut storm, &mut mover] {
        workload.go()?;
    }
    let stop = AtomicBool::new(false);
    let pid = mover.pid();
    std::thread::scope(|scope| -> Outcome {
        let turner = scope.spawn(|| -> anyhow::Result<usize> {
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return Ok(turn);
                }
                [&right, &left][turn % 2].enter(pid)?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(0)
        });
        let mut compared = HashMap::new();
        let waited = [hierarchy.own(), &called, &forked].into_iter().try_for_each(|cgroup| -> Outcome {
            // A comparison takes 4 s of CPU time and more; how long that is depends on the rest of the host.
            while !compared.contains_key(cgroup.path()) {
                let line = agent.wait_for(Duration::from_mins(10), |line| line.contains_key("cpu_stat"))?;
                println!("{line:?}");
                let of = line.get("cgroup").context("a comparison of no cgroup")?;
                *compared.entry(of.clone()).or_insert(0) += 1;
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let turns = turner.join().map_err(|_| anyhow::anyhow!("the mover panicked"))??;
        println!("{turns} moves, comparisons: {compared:?}");
        waited
    })?;
    let scrape = agent.fresh()?;
    [spinner, storm, mover].into_iter().try_for_each(|workload| workload.kill().map(drop))?;

    let compared = scrape.count(READINGS, &[("outcome", "compared")]);
    ensure!(compared >= 3, "{compared} comparisons are counted");
    for quantity in ["cpu", "syscalls", "switches", "wait"] {
        let own = [("quantity", quantity)];
        ensure!(scrape.find(RATIO, &own).any(|s| s.value() == 0.0), "no ratio of {quantity} that is 0");
    }
    let ratio = scrape.find(RATIO, &[("quantity", "cpu_by_cgroup")]).next().context("no such ratio")?.value();
    let stopped = agent.stop()?;
    ensure!(ratio < 0.01, "CPU time by cgroup differs by {ratio}; the log:\n{}", stopped.log.join("\n"));
    stopped.check()?;
    Ok(())
}
