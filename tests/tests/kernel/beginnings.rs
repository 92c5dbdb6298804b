//! Whoever meets a task first, and whatever happens meanwhile: it is counted once, and nothing it did before is billed. What could
//! go wrong takes nanoseconds, so these try often; why it cannot go wrong is argued in `agent-ebpf/src/task.rs`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kernmeter_tests::kernel::{online_cpus, task_times};
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, trials};

use crate::family::CPU;

trials![agents_that_start_in_a_storm, agents_that_start_beside_switches];

/// Fault 33: agents start while processes and threads are made and end all the time. In the end the tasks counted are those that
/// are there.
fn agents_that_start_in_a_storm() -> Outcome {
    const ROUNDS: u32 = 8;
    const STORMS: usize = 3;
    let hierarchy = Hierarchy::new()?;
    let mut wrong = Vec::new();
    for round in 1..=ROUNDS {
        let tenant = hierarchy.tenant(format!("storm{round}"))?;
        let mut storms = Vec::new();
        for _ in 0..STORMS {
            let mut storm = Workload::spawn(&tenant, &["storm"])?;
            storm.go()?;
            storm.results()?;
            storms.push(storm);
        }
        let agent = Agent::start(&Settings::new(&hierarchy).every_ms(100))?;
        std::thread::sleep(Duration::from_millis(150));
        for storm in &mut storms {
            storm.go()?;
            storm.results()?;
        }
        let scrape = agent.fresh()?;
        let own = [("tenant_id", tenant.name())];
        let [forked, threads] = ["processes_forked", "threads_started"]
            .map(|what| scrape.count(&format!("kernmeter_{what}_total"), &own));
        println!("round {round}: {forked} processes and {threads} threads made since the agent came");
        let tasks = scrape.sum("kernmeter_tasks", &own);
        if tasks != STORMS as f64 {
            wrong.push(format!("round {round}: {tasks} tasks instead of {STORMS}"));
        }
        storms.into_iter().try_for_each(|storm| storm.finish().map(drop))?;
        agent.stop_conserved()?;
    }
    ensure!(wrong.is_empty(), "{} of {ROUNDS} rounds: {}", wrong.len(), wrong.join("; "));
    Ok(())
}

/// Fault 33: agents start while two tasks that have run for long switch without a pause on another CPU. No more time is billed
/// than CPUs had, to nobody else, and each task is counted once.
fn agents_that_start_beside_switches() -> Outcome {
    const ROUNDS: u32 = 8;
    let hierarchy = Hierarchy::new()?;
    let tenant = hierarchy.tenant("old")?;
    let last = (online_cpus() - 1).to_string();
    let mut elders = Vec::new();
    for _ in 0..2 {
        let mut elder = Workload::spawn(&tenant, &["yield", "--ms", "2500", "--cpu", &last])?;
        elder.go()?;
        elders.push(elder);
    }
    for elder in &mut elders {
        elder.results()?;
    }
    let mut wrong = Vec::new();
    for round in 1..=ROUNDS {
        let begin = Instant::now();
        let agent = Agent::start(&Settings::new(&hierarchy).every_ms(100))?;
        let scrape = agent.fresh()?;
        let life = begin.elapsed().as_secs_f64();
        let tasks = scrape.sum("kernmeter_tasks", &[("tenant_id", "old")]);
        if tasks != elders.len() as f64 {
            wrong.push(format!("round {round}: {tasks} tasks instead of {}", elders.len()));
        }
        let total = scrape.sum("kernmeter_kernel_seconds_total", &[("kind", "cpu")]);
        let billed = scrape.sum(CPU, &[]);
        let own = scrape.sum(CPU, &[("tenant_id", "old")]);
        println!("round {round}: {own} s of two tasks on one CPU, {billed} s of all, in {life} s");
        if own > life || billed.max(total) > life * online_cpus() as f64 {
            wrong.push(format!(
                "round {round}: {own} s of one CPU, {billed} and {total} s of all, in {life} s"
            ));
        }
        agent.stop_conserved()?;
    }
    for elder in elders {
        let ran = task_times(elder.pid())?.cpu;
        ensure!(ran > 1.0, "an old task had run for {ran} s only: this shows nothing");
        elder.kill()?;
    }
    ensure!(wrong.is_empty(), "{} of {ROUNDS} rounds: {}", wrong.len(), wrong.join("; "));
    Ok(())
}
