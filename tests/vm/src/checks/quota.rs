//! In: a machine with the CPU controller on cgroup v2; out: whether a tenant that the kernel throttles is metered as the
//! kernel accounts it, and the tenant beside it exactly.

use std::fs;

use anyhow::{Context, Result, ensure};
use kernmeter_tests::kernel::task_times;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Settings, Workload, cgroup, skip};

use super::{scrape_of, stop};

const THREADS: &str = "2";
/// How long the throttled threads want to run.
const WALL: f64 = 2.0;

/// A value of a cgroup's `cpu.stat`.
pub fn stat(dir: &std::path::Path, name: &str) -> Result<f64> {
    let text = fs::read_to_string(dir.join("cpu.stat")).context("read cpu.stat")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("no {name} in cpu.stat"))?.parse().context("cpu.stat is no number")
}

/// Lets the children of a cgroup, and of the root, have a controller's files. False if the controller is not of v2 here.
pub fn enable(controllers: &[&str], of: &Cgroup) -> Result<bool> {
    let root = cgroup::mount()?;
    let available = fs::read_to_string(root.join("cgroup.controllers"))?;
    if !controllers.iter().all(|wanted| available.split_whitespace().any(|name| name == *wanted)) {
        return Ok(false);
    }
    for dir in [root.as_path(), of.dir()] {
        for controller in controllers {
            fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
                .with_context(|| format!("enable {controller} below {}", dir.display()))?;
        }
    }
    Ok(true)
}

/// Two threads may use a fifth of a CPU; what they get and what they wait is the kernel's account, and their neighbour's
/// counts are exact.
pub fn throttled() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    if !enable(&["cpu"], hierarchy.own())? {
        skip!("the CPU controller is one of cgroup v1 on this machine: `cpu.max` cannot be set");
    }
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let (slow, quick) = (hierarchy.tenant("slow")?, hierarchy.tenant("quick")?);
    fs::write(slow.dir().join("cpu.max"), "20000 100000").context("set cpu.max")?;
    let milliseconds = format!("{}", WALL * 1000.0);
    let mut spinner = Workload::spawn(&slow, &["spin", "--threads", THREADS, "--ms", &milliseconds])?;
    spinner.go()?;
    let (neighbour, _) = Workload::run(&quick, &["syscalls", "--getppid", "20000", "--openat-fail", "200"])?;
    neighbour.finish()?;
    agent.settle(20_000, |s| super::calls(s, "quick", "getppid"))?;
    spinner.results()?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    let scrape = scrape_of(&agent, "slow")?;

    let own = [("tenant_id", "slow")];
    let cpu = scrape.sum("kernmeter_cpu_seconds_total", &own);
    let wait = scrape.sum("kernmeter_runqueue_wait_seconds_sum", &own);
    let usage = stat(slow.dir(), "usage_usec")? / 1e6;
    let throttled = stat(slow.dir(), "throttled_usec")? / 1e6;
    let periods = stat(slow.dir(), "nr_throttled")?;
    println!(
        "cpu {cpu} s, cpu.stat {usage} s; waits {wait} s, schedstat {} s, throttled {throttled} s in {periods} periods",
        task_times(spinner.pid())?.wait
    );
    ensure!(periods > 0.0, "the kernel throttled nothing");
    ensure!((cpu - usage).abs() <= usage * 0.05, "{cpu} s on CPUs, cpu.stat says {usage} s");
    // From start to end each thread ran or was kept waiting: being throttled is waiting for a CPU.
    let wanted = WALL * THREADS.parse::<f64>()?;
    ensure!(cpu + wait >= wanted * 0.95, "{cpu} s on CPUs and {wait} s waiting of {wanted} s");
    let errors = [("tenant_id", "quick"), ("syscall", "openat"), ("errno", "ENAMETOOLONG")];
    let errors = scrape.count("kernmeter_syscall_errors_total", &errors);
    ensure!(errors == 200, "{errors} errors of the neighbour instead of 200");
    spinner.finish()?;
    stop(agent)
}
