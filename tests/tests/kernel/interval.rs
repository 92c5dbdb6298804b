//! Under load the agent drains less often, afterwards as often as before; counts stay exact meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kernmeter_tests::kernel::{host_cpu, online_cpus};
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, skip, trials};

use crate::counting::{calls, check_counts};

trials![load_lengthens_the_interval_and_rest_shortens_it];

/// The interval under stress, milliseconds; the others are shorter.
const STRESSED: u32 = 1000;
/// How long a change may take.
const CHANGE: Duration = Duration::from_mins(1);

fn interval(agent: &Agent) -> Result<f64> {
    Ok(agent.scrape()?.sum("kernmeter_interval_seconds", &[]))
}

/// Waits until the interval is as wanted. False when that takes too long.
fn reaches(agent: &Agent, wanted: impl Fn(f64) -> bool) -> Result<bool> {
    let until = Instant::now() + CHANGE;
    while Instant::now() < until {
        if wanted(interval(agent)?) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// The part of the host's CPU time in use over a second.
fn use_of_host() -> Result<f64> {
    let before = host_cpu()?;
    std::thread::sleep(Duration::from_secs(1));
    let after = host_cpu()?;
    Ok((after.0 - before.0) / (after.1 - before.1).max(1.0))
}

fn load_lengthens_the_interval_and_rest_shortens_it() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let mut settings = Settings::new(&hierarchy);
    settings.intervals_ms = [200, 300, STRESSED];
    settings.drain = String::from("  dwell: 1s\n  cpu: {low: 30%, high: 95%}\n");
    let stressed = f64::from(STRESSED) / 1e3;
    let agent = Agent::start(&settings)?;
    if !reaches(&agent, |i| i < stressed)? {
        skip!("the host is {:.0} % busy without the test", use_of_host()? * 100.0);
    }
    let (load, metered) = (hierarchy.tenant("load")?, hierarchy.tenant("metered")?);
    let threads = (2 * online_cpus()).to_string();
    let mut spinner = Workload::spawn(&load, &["spin", "--threads", &threads, "--ms", "600000"])?;
    let args =
        ["syscalls", "--getppid", "1000000", "--openat-fail", "10000", "--rounds", "100", "--pause-ms", "50"];
    let mut workload = Workload::spawn(&metered, &args)?;
    workload.go()?;
    spinner.go()?;
    ensure!(
        reaches(&agent, |i| i == stressed)?,
        "the interval is {} s while every CPU spins",
        interval(&agent)?
    );
    let scrape = agent.scrape()?;
    let unfinished = calls(&scrape, "metered", "getppid");
    ensure!(unfinished < 1_000_000, "the work was over before the interval changed: the test proves nothing");
    std::thread::sleep(Duration::from_secs(2));
    spinner.kill()?;
    if !reaches(&agent, |i| i < stressed)? {
        let busy = use_of_host()?;
        ensure!(
            busy > 0.8,
            "the interval is {} s on a host that is {:.0} % busy",
            interval(&agent)?,
            busy * 100.0
        );
        skip!("the host is {:.0} % busy without the test", busy * 100.0);
    }
    workload.results()?;
    workload.finish()?;
    let scrape = agent.settle(1_000_000, |s| calls(s, "metered", "getppid"))?;
    check_counts(&scrape, "metered")?;
    agent.stop_conserved()?;
    Ok(())
}
