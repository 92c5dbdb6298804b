//! Time on CPUs, waiting for them and blocked agrees with the kernel's own accounts. Spinners that
//! share a CPU are real-time tasks, so that other load on the host takes little of their time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::kernel::{TaskTimes, task_times};
use kernmeter_tests::trial::with_retries;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::family::{BLOCKED, CPU, DURATION, SWITCHES, WAIT};

trials![
    cpu_and_wait_agree_with_schedstat,
    cpu_of_processes_that_ended,
    two_spinners_on_one_cpu,
    blocked_in_nanosleep,
    blocked_in_futex,
    blocked_in_pipe_read,
    sleepers_older_than_the_agent,
];

/// One part in a hundred.
fn close(what: &str, seen: f64, expected: f64) -> Outcome {
    println!("{what}: {seen:.6} s, the kernel says {expected:.6} s");
    ensure!((seen - expected).abs() <= expected * 0.01, "{what}: {seen} s, the kernel says {expected} s");
    Ok(())
}

fn cpu(scrape: &Scrape, tenant: &str) -> f64 {
    scrape.sum(CPU, &[("tenant_id", tenant)])
}

fn wait(scrape: &Scrape, tenant: &str) -> f64 {
    scrape.sum(&format!("{WAIT}_sum"), &[("tenant_id", tenant)])
}

/// A tenant against the sum of its processes' own accounts, all of which are blocked.
fn check_tenant(scrape: &Scrape, tenant: &str, workloads: &[&Workload]) -> Result<TaskTimes> {
    let mut sum = TaskTimes::default();
    for workload in workloads {
        let times = task_times(workload.pid())?;
        sum.cpu += times.cpu;
        sum.wait += times.wait;
        sum.voluntary += times.voluntary;
        sum.involuntary += times.involuntary;
    }
    close("on CPU", cpu(scrape, tenant), sum.cpu)?;
    close("waiting for a CPU", wait(scrape, tenant), sum.wait)?;
    let switches = |kind| scrape.count(SWITCHES, &[("tenant_id", tenant), ("kind", kind)]);
    let seen = (switches("voluntary"), switches("involuntary"));
    println!("switches {seen:?}, the kernel says {:?}", (sum.voluntary, sum.involuntary));
    ensure!(
        seen == (sum.voluntary, sum.involuntary),
        "voluntary and involuntary switches {seen:?}, the kernel says {:?}",
        (sum.voluntary, sum.involuntary)
    );
    Ok(sum)
}

/// Lets real-time spinners get ready, then spin together, to the end.
fn spin(workloads: &mut [&mut Workload]) -> Outcome {
    for _ in ["ready", "spun"] {
        workloads.iter_mut().try_for_each(|w| w.go())?;
        workloads.iter_mut().try_for_each(|w| w.results().map(drop))?;
    }
    Ok(())
}

fn cpu_and_wait_agree_with_schedstat() -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy))?;
        let tenant = hierarchy.tenant("contended")?;
        let args = ["spin", "--cpu", "0", "--real-time", "--threads", "3", "--ms", "2000"];
        let mut first = Workload::spawn(&tenant, &args)?;
        let mut second = Workload::spawn(&tenant, &args)?;
        spin(&mut [&mut first, &mut second])?;
        std::thread::sleep(Duration::from_millis(50));
        let scrape = agent.fresh()?;
        let sum = check_tenant(&scrape, "contended", &[&first, &second])?;
        ensure!(sum.wait > 4.0, "six tasks on one CPU waited {} s only", sum.wait);
        first.finish()?;
        second.finish()?;
        agent.stop_conserved()?;
        Ok(())
    })
}

fn cpu_of_processes_that_ended() -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy).every_ms(1000))?;
        let tenant = hierarchy.tenant("ended")?;
        let mut expected = 0.0;
        for _ in 0..3 {
            let mut workload = Workload::spawn(&tenant, &["spin", "--ms", "300", "--real-time"])?;
            spin(&mut [&mut workload])?;
            expected += workload.finish()?.cpu;
        }
        tenant.remove()?;
        let scrape = agent.fresh()?;
        close("on CPU", cpu(&scrape, "ended"), expected)?;
        agent.stop_conserved()?;
        Ok(())
    })
}

fn two_spinners_on_one_cpu() -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy))?;
        let (left, right) = (hierarchy.tenant("left")?, hierarchy.tenant("right")?);
        let args = ["spin", "--cpu", "0", "--real-time", "--ms", "3000"];
        let (mut one, mut two) = (Workload::spawn(&left, &args)?, Workload::spawn(&right, &args)?);
        spin(&mut [&mut one, &mut two])?;
        std::thread::sleep(Duration::from_millis(50));
        let scrape = agent.fresh()?;
        for (tenant, workload) in [("left", &one), ("right", &two)] {
            check_tenant(&scrape, tenant, &[workload])?;
            let (cpu, wait) = (cpu(&scrape, tenant), wait(&scrape, tenant));
            let share = wait / (cpu + wait);
            ensure!((0.45..0.55).contains(&share), "{tenant} waited {share:.3} of its time, not about half");
        }
        agent.stop_conserved()?;
        Ok(())
    })
}

/// A task blocks for 2 s in one call: so much is charged to that call, and next to nothing to others.
fn blocked_in(command: &'static str, syscall: &'static str) -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy))?;
        let tenant = hierarchy.tenant("blocked")?;
        let (workload, lines) = Workload::run(&tenant, &[command, "--ms", "2000"])?;
        let measured = nanos(&lines)?.first().copied().context("no measurement")? as f64 / 1e9;
        let scrape = agent.fresh()?;
        let own = [("tenant_id", "blocked"), ("syscall", syscall)];
        close("blocked", scrape.sum(BLOCKED, &own), measured)?;
        let sum = scrape.sum(&format!("{DURATION}_sum"), &own);
        close("duration", sum, measured)?;
        workload.finish()?;
        agent.stop_conserved()?;
        Ok(())
    })
}

/// What the workload measured itself.
pub fn nanos(lines: &[String]) -> Result<Vec<u64>> {
    lines.iter().filter_map(|l| l.strip_prefix("ns=")).map(|t| t.parse().context("bad ns")).collect()
}

fn blocked_in_nanosleep() -> Outcome {
    blocked_in("sleep", "nanosleep")
}

fn blocked_in_futex() -> Outcome {
    blocked_in("futex", "futex")
}

fn blocked_in_pipe_read() -> Outcome {
    blocked_in("pipe-read", "read")
}

fn sleepers_older_than_the_agent() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let tenant = hierarchy.tenant("asleep")?;
    let begin = Instant::now();
    let mut workload = Workload::spawn(&tenant, &["sleep", "--ms", "4000", "--times", "2"])?;
    workload.go()?;
    std::thread::sleep(Duration::from_millis(500));
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let started = begin.elapsed();
    ensure!(started < Duration::from_millis(3500), "the agent took {started:?} to start");
    workload.results()?;
    let scrape = agent.fresh()?;
    let own = [("tenant_id", "asleep"), ("syscall", "nanosleep")];
    // The first sleep began unseen: only the second one has a duration.
    let finished = scrape.count(&format!("{DURATION}_count"), &own);
    ensure!(finished == 1, "{finished} finished calls instead of the one that was seen to begin");
    let sum = scrape.sum(&format!("{DURATION}_sum"), &own);
    ensure!((3.99..4.5).contains(&sum), "a duration of {sum} s for a sleep of 4 s");
    let calls = crate::counting::calls(&scrape, "asleep", "nanosleep");
    ensure!(calls == 1, "{calls} calls");
    for family in [CPU.to_owned(), BLOCKED.to_owned(), format!("{WAIT}_sum")] {
        let seconds = scrape.sum(&family, &[("tenant_id", "asleep")]);
        let alive = begin.elapsed().as_secs_f64();
        ensure!(seconds <= alive, "{family} is {seconds} s for one task within {alive} s");
    }
    workload.finish()?;
    agent.stop_conserved()?;
    Ok(())
}
