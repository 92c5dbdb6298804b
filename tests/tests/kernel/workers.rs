//! Threads that the kernel makes for a process without a fork are metered like the others.

use anyhow::ensure;
use kernmeter_tests::kernel::task_times;
use kernmeter_tests::trial::with_retries;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, skip, trials};

use crate::family::{CPU, LOST, WAIT};

trials![workers_of_io_uring];

fn own_tasks(pid: i32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// Fault 30: the workers of `io_uring` have state from their first run. They are threads of their process; their waits and
/// their time on a CPU are its tenant's, and none of their switches is one of a task without state.
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
        let switches = times.voluntary + times.involuntary;
        ensure!(waits >= switches - switches / 20, "{waits} waits in {switches} switches");
        for (what, seen, expected) in [
            ("on CPU", scrape.sum(CPU, &own), times.cpu),
            ("waiting", scrape.sum(&format!("{WAIT}_sum"), &own), times.wait),
        ] {
            println!("{what}: {seen:.6} s, the kernel says {expected:.6} s");
            ensure!(
                (seen - expected).abs() <= expected * 0.02,
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
