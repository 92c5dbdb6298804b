//! Threads that the kernel makes for a process without a fork are metered like the others.

use anyhow::ensure;
use kernmeter_tests::kernel::{online_cpus, task_times};
use kernmeter_tests::trial::with_retries;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, skip, trials};

use crate::family::{CPU, LOST, WAIT};

trials![workers_of_io_uring];

/// How far the clock of a run queue may stand behind, at the beginning of a wait or its end. Between 0.5 and 4 µs a wait
/// were seen.
const CLOCK_SECONDS: f64 = 5e-6;

fn own_tasks(pid: i32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// Fault 30: the workers of `io_uring` have state from their first run. They are threads of their process; their waits and
/// their time on a CPU are its tenant's, and none of their switches is one of a task without state.
///
/// Another tenant keeps every CPU busy, so that waits are long. The kernel takes time from a clock of the run queue that
/// stands still between two scheduler events: its sum over thousands of waits of some microseconds is not exact.
fn workers_of_io_uring() -> Outcome {
    if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0") {
        skip!("io_uring is switched off (kernel.io_uring_disabled)");
    }
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy))?;
        let tenant = hierarchy.tenant("rings")?;
        let stateless = |s: &Scrape| s.count(LOST, &[("reason", "no_task_state")]);
        let before = stateless(&agent.fresh()?);
        let (others, spinners) = (hierarchy.tenant("others")?, online_cpus().to_string());
        let mut rivals = Workload::spawn(&others, &["spin", "--threads", &spinners, "--ms", "600000"])?;
        rivals.go()?;
        let args = ["io-uring", "--reads", "8", "--kib", "4096", "--rounds", "400"];
        let (workload, _) = Workload::run(&tenant, &args)?;
        // Workers without work end after a while: the scrape is of a time at which their number was the same.
        let (scrape, tasks) = loop {
            let tasks = own_tasks(workload.pid())?;
            let scrape = agent.fresh()?;
            if own_tasks(workload.pid())? == tasks {
                break (scrape, tasks);
            }
        };
        ensure!(tasks > 1, "no worker was made");
        let own = [("tenant_id", "rings")];
        let threads = scrape.count("kernmeter_threads_started_total", &own);
        println!("{threads} threads started, {tasks} tasks are left");
        ensure!(threads as usize + 1 >= tasks, "{threads} threads started, {tasks} tasks are left");
        let seen = scrape.sum("kernmeter_tasks", &own);
        ensure!(seen == tasks as f64, "{seen} tasks of a process with {tasks}");
        let times = task_times(workload.pid())?;
        let waits = scrape.count(&format!("{WAIT}_count"), &own);
        println!("{waits} waits, {times:?}");
        rivals.kill()?;
        let switches = times.voluntary + times.involuntary;
        ensure!(waits >= switches - switches / 20, "{waits} waits in {switches} switches");
        for (what, seen, expected) in [
            ("on CPU", scrape.sum(CPU, &own), times.cpu),
            ("waiting", scrape.sum(&format!("{WAIT}_sum"), &own), times.wait),
        ] {
            println!("{what}: {seen:.6} s, the kernel says {expected:.6} s");
            let clock = if what == "waiting" { CLOCK_SECONDS * waits as f64 } else { 0.0 };
            ensure!(
                (seen - expected).abs() <= expected * 0.02 + clock,
                "{what} {seen} s, the kernel says {expected} s"
            );
        }
        // Each of the two sides of a switch would count.
        let lost = stateless(&scrape) - before;
        ensure!(lost < switches / 10, "{lost} switches of tasks without state beside {switches} of ours");
        workload.finish()?;
        agent.stop_conserved()?;
        Ok(())
    })
}
