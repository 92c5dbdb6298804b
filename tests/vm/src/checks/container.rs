//! In: a machine with runc in it; out: whether a container with limits is metered exactly under its id, and as the kernel
//! accounts its cgroup.

use std::fs;

use anyhow::{Context, Result, ensure};
use kernmeter_tests::runc::{Driver, Pod, Qos, Runtime};
use kernmeter_tests::{Agent, Hierarchy, Scrape, Settings, cgroup};

use super::quota::stat;
use super::stop;
use crate::machine;

const CALLS: u64 = 20_000;
const ERRORS: u64 = 500;

/// A container of a pod, as a kubelet with either cgroup driver would have it made, with limits of memory, CPU time and
/// processes.
pub fn is_metered() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("detail: {default: container}"))?;
    let runtime = Runtime::find()?;
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        let pod = Pod::new(driver, Qos::Burstable)?;
        let number = CALLS.to_string();
        let errors = ERRORS.to_string();
        let args = ["syscalls", "--getppid", &number, "--openat-fail", &errors];
        let mut container = runtime.workload(&pod, &args)?;
        let id = container.short_id().to_owned();
        let dir = machine::cgroup_of(container.process()?.pid(), &cgroup::mount()?)?;
        for (file, expected) in
            [("memory.max", "268435456"), ("cpu.max", "200000 100000"), ("pids.max", "64")]
        {
            let limit = fs::read_to_string(dir.join(file)).with_context(|| format!("read {file}"))?;
            ensure!(limit.trim() == expected, "{file} is {limit} instead of {expected}");
        }
        // runc's own first process asks for its parent, too, before it becomes the workload.
        let own = [("container", id.as_str()), ("syscall", "getppid")];
        let count = |scrape: &Scrape| scrape.count("kernmeter_syscalls_total", &own);
        let before = count(&agent.fresh()?);
        ensure!(before < 10, "{before} calls of `{id}` before it began");
        container.run()?;
        let scrape = agent.settle(before + CALLS, count)?;
        let own = [("container", id.as_str()), ("syscall", "openat"), ("errno", "ENAMETOOLONG")];
        let errors = scrape.count("kernmeter_syscall_errors_total", &own);
        ensure!(errors == ERRORS, "{errors} errors instead of {ERRORS}");
        let own = [("container", id.as_str())];
        let pods: Vec<_> =
            scrape.find("kernmeter_cpu_seconds_total", &own).filter_map(|s| s.label("pod")).collect();
        ensure!(pods.iter().all(|pod_label| *pod_label == pod.uid()), "container `{id}` is of pods {pods:?}");
        let cpu = scrape.sum("kernmeter_cpu_seconds_total", &own);
        let usage = stat(&dir, "usage_usec")? / 1e6;
        println!("{driver:?}: {before} calls before, cpu {cpu} s, cpu.stat {usage} s");
        // What runc's process had used before it was moved in is not the cgroup's, but may be billed to it.
        ensure!((cpu - usage).abs() <= usage * 0.05 + 0.02, "{cpu} s on CPUs, cpu.stat says {usage} s");
        container.finish()?;
        let scrape = agent.fresh()?;
        ensure!(count(&scrape) >= before + CALLS, "counts of a removed container are gone");
    }
    stop(agent)
}
