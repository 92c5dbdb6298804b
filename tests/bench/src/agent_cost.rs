//! In: a ring of cgroups kept busy; out: what the agent itself uses for it: CPU time per drain, memory, and what a scrape
//! takes. CPU time is the kernel's own, in nanoseconds (`/proc/PID/task/*/schedstat`).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernmeter_tests::{Agent, Hierarchy, Scrape, Settings, Workload, http};

use crate::pinned::Pinned;
use crate::spread::Spread;
use crate::subject::Subject;

/// Scrapes timed.
const SCRAPES: u32 = 30;

/// Lets the agent drain `drains` times while every process of the ring is active, then prints what it used.
pub fn run(
    worker: &mut Pinned,
    subject: &Subject,
    settings: &Settings,
    cgroups: u32,
    drains: u32,
) -> Result<()> {
    let agent = subject.start(&settings.clone().every_ms(1000))?;
    // The first drains build series; what follows is the steady state.
    worker.busy(1)?;
    std::thread::sleep(Duration::from_millis(2500));

    let before = agent.scrape()?;
    let cpu_before = cpu_seconds(&agent)?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(u64::from(drains)) {
        worker.busy(1)?;
        std::thread::sleep(Duration::from_millis(400));
    }
    let cpu = cpu_seconds(&agent)? - cpu_before;
    let wall = begin.elapsed().as_secs_f64();
    let after = agent.scrape()?;

    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    let passes = grown("kernmeter_drain_duration_seconds_count");
    let drained = grown("kernmeter_drain_duration_seconds_sum");
    println!(
        "\n{}: {cgroups} active cgroups more, draining every second, {passes} drains in {wall:.0} s",
        subject.name()
    );
    println!("  CPU time per drain, everything included     {:.2} ms", cpu / passes * 1e3);
    println!("  duration of a drain                         {:.2} ms", drained / passes * 1e3);
    println!("  of one CPU, at an interval of 5 s           {:.3} %", cpu / passes / 5.0 * 100.0);
    println!(
        "  resident memory                             {:.1} MiB",
        after.sum("process_resident_memory_bytes", &[]) / f64::from(1 << 20)
    );
    println!(
        "  kernel maps                                 {:.1} MiB",
        after.sum("kernmeter_map_memory_bytes", &[]) / f64::from(1 << 20)
    );
    println!("  calls without a row of their own             {}", row_losses(&after));
    scrapes(&agent)?;
    agent.stop()?;
    Ok(())
}

/// Prints what passes take while every process of the ring is active, beside so many cgroups that were and are not any more.
pub fn beside_idle(
    worker: &mut Pinned,
    subject: &Subject,
    hierarchy: &Hierarchy,
    settings: &Settings,
    idle: u32,
) -> Result<()> {
    const PASSES: u32 = 15;
    let agent = subject.start(&settings.clone().every_ms(1000))?;
    let parent = hierarchy.tenant("idle")?;
    let (root, count) = (parent.dir().to_string_lossy().into_owned(), idle.to_string());
    if idle > 0 {
        let start = hierarchy.tenant("start")?;
        let args = ["swarm", "--root", &root, "--count", &count, "--calls", "1", "--names", "20", "--keep"];
        Workload::run(&start, &args)?.0.finish()?;
    }
    worker.busy(1)?;
    std::thread::sleep(Duration::from_millis(2500));
    let (before, cpu) = (agent.scrape()?, cpu_seconds(&agent)?);
    for _ in 0..PASSES {
        worker.busy(1)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let (after, cpu) = (agent.scrape()?, cpu_seconds(&agent)? - cpu);
    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    let passes = grown("kernmeter_drain_duration_seconds_count");
    println!(
        "{}: 100 active cgroups beside {idle} idle ones ({} slots live): a pass takes {:.2} ms, {:.2} ms of CPU time with everything",
        subject.name(),
        after.sum("kernmeter_slots", &[("state", "live")]),
        grown("kernmeter_drain_duration_seconds_sum") / passes * 1e3,
        cpu / passes * 1e3
    );
    agent.stop()?;
    let made = fs::read_dir(parent.dir())?.flatten().filter(|entry| entry.path().is_dir());
    made.for_each(|entry| drop(fs::remove_dir(entry.path())));
    Ok(())
}

/// More workloads than the memory budget has rows for: their calls are counted, without the system call's name.
fn row_losses(scrape: &Scrape) -> f64 {
    let reasons = ["syscall_row_exhausted", "syscall_row_quota"];
    reasons.iter().map(|reason| scrape.sum("kernmeter_events_lost_total", &[("reason", reason)])).sum()
}

fn scrapes(agent: &Agent) -> Result<()> {
    for (name, encoding) in [("plain", "identity"), ("gzip", "gzip")] {
        let headers =
            [("Accept", "application/openmetrics-text;version=1.0.0"), ("Accept-Encoding", encoding)];
        let mut times = Vec::new();
        let mut used = Vec::new();
        let (mut bytes, mut samples) = (0, 0);
        for _ in 0..SCRAPES {
            let cpu = cpu_seconds(agent)?;
            let begin = Instant::now();
            let answer = http::get(agent.address(), "/metrics", &headers)?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            used.push((cpu_seconds(agent)? - cpu) * 1e3);
            bytes = answer.body.len();
            samples = answer
                .body
                .split(|&byte| byte == b'\n')
                .filter(|l| l.first().is_some_and(|&b| b != b'#'))
                .count();
        }
        if encoding == "identity" {
            println!("  samples in a scrape                         {samples}");
        }
        println!(
            "  scrape, {name:<5}: latency, CPU time           {} ms, {} ms; {bytes} bytes",
            Spread::of(times),
            Spread::of(used)
        );
    }
    Ok(())
}

/// CPU time of all threads of the agent.
pub fn cpu_seconds(agent: &Agent) -> Result<f64> {
    let mut ns = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        // A thread may end while we look.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        ns += stat.split(' ').next().context("empty schedstat")?.parse::<u64>()?;
    }
    Ok(ns as f64 / 1e9)
}
