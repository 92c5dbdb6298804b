//! Without anybody who knows pods: the cgroup's path tells the pod's UID and the container's id, and counts are exact.

use std::time::Instant;

use anyhow::ensure;
use kernmeter_tests::runc::Qos;
use kernmeter_tests::{Agent, Driver, Outcome, Pod, Runtime, Scrape, Settings, trials};

trials![
    exact_in_both_drivers_forms,
    exact_for_a_static_pod,
    exact_for_init_main_and_restart,
    exact_for_a_container_that_lives_for_a_moment,
];

const SYSCALLS: &str = "kernmeter_syscalls_total";
const ERRORS: &str = "kernmeter_syscall_errors_total";
/// What each container does: numbers that nobody makes by chance.
const CALLS: u64 = 123_457;
const FAILURES: u64 = 4_321;
const WORK: [&str; 5] = ["syscalls", "--getpriority", "123457", "--openat-fail", "4321"];

/// All pods are one tenant; calls and errors tell containers apart.
fn settings(every_ms: u32) -> Settings {
    let settings = Settings {
        intervals_ms: [every_ms; 3],
        drain: String::new(),
        rules: "    - match: {pod_uid: \"*\"}\n      tenant: pods\n".to_owned(),
        sections: String::new(),
    };
    settings.section(
        "detail:\n  families:\n    kernmeter_syscalls: container\n    kernmeter_syscall_errors: container",
    )
}

/// Calls of one container of one pod that no runtime makes.
fn calls(scrape: &Scrape, pod: &str, container: &str) -> u64 {
    scrape.count(
        SYSCALLS,
        &[("tenant_id", "pods"), ("pod", pod), ("container", container), ("syscall", "getpriority")],
    )
}

/// Calls and failed calls of one container, and nobody else's share in them.
fn check(scrape: &Scrape, pod: &str, container: &str, times: u64) -> Outcome {
    let seen = calls(scrape, pod, container);
    ensure!(seen == times * CALLS, "{seen} calls of {pod}/{container} instead of {}", times * CALLS);
    let own = [("pod", pod), ("container", container), ("errno", "ENAMETOOLONG")];
    let failed = scrape.count(ERRORS, &own);
    ensure!(failed == times * FAILURES, "{failed} failures of {pod}/{container}");
    Ok(())
}

fn exact_in_both_drivers_forms() -> Outcome {
    let runtime = Runtime::find()?;
    for driver in [Driver::Systemd, Driver::Cgroupfs] {
        let pods = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort]
            .map(|qos| Pod::new(driver, qos))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let agent = Agent::start(&settings(200))?;
        let mut sandboxes = Vec::new();
        let mut mains = Vec::new();
        for pod in &pods {
            sandboxes.push(runtime.sandbox(pod)?);
            mains.push(runtime.workload(pod, &WORK)?);
        }
        for main in &mut mains {
            main.run()?;
        }
        let expected = pods.len() as u64 * CALLS;
        let scrape = agent.settle(expected, |scrape| {
            pods.iter().zip(&mains).map(|(pod, main)| calls(scrape, pod.uid(), main.short_id())).sum()
        })?;
        for ((pod, main), sandbox) in pods.iter().zip(&mains).zip(&sandboxes) {
            check(&scrape, pod.uid(), main.short_id(), 1)?;
            // What holds the pod together is a container of its own.
            check(&scrape, pod.uid(), sandbox.short_id(), 0)?;
            let slept = [("pod", pod.uid()), ("container", sandbox.short_id()), ("syscall", "execve")];
            ensure!(scrape.count(SYSCALLS, &slept) == 1, "{driver:?}: the sandbox is not seen");
        }
        for main in mains {
            main.finish()?;
        }
        drop(sandboxes);
        agent.stop_conserved()?;
    }
    Ok(())
}

fn exact_for_a_static_pod() -> Outcome {
    let runtime = Runtime::find()?;
    let agent = Agent::start(&settings(200))?;
    for driver in [Driver::Systemd, Driver::Cgroupfs] {
        let pod = Pod::fixed(driver, Qos::Burstable)?;
        let mut main = runtime.workload(&pod, &WORK)?;
        main.run()?;
        let scrape = agent.settle(CALLS, |scrape| calls(scrape, pod.uid(), main.short_id()))?;
        check(&scrape, pod.uid(), main.short_id(), 1)?;
        main.finish()?;
    }
    agent.stop_conserved()?;
    Ok(())
}

fn exact_for_init_main_and_restart() -> Outcome {
    let runtime = Runtime::find()?;
    let agent = Agent::start(&settings(200))?;
    let pod = Pod::new(Driver::Systemd, Qos::Burstable)?;
    let sandbox = runtime.sandbox(&pod)?;
    let mut ids = Vec::new();
    // An init container, the main one, and the main one started again: three ids.
    for _ in 0..3 {
        let mut container = runtime.workload(&pod, &WORK)?;
        container.run()?;
        ids.push(container.short_id().to_owned());
        container.finish()?;
    }
    let scrape = agent.settle(3 * CALLS, |scrape| ids.iter().map(|id| calls(scrape, pod.uid(), id)).sum())?;
    for id in &ids {
        check(&scrape, pod.uid(), id, 1)?;
    }
    check(&scrape, pod.uid(), sandbox.short_id(), 0)?;
    drop(sandbox);
    agent.stop_conserved()?;
    Ok(())
}

fn exact_for_a_container_that_lives_for_a_moment() -> Outcome {
    const MOMENT: u64 = 777;
    let runtime = Runtime::find()?;
    // Longer than the container lives: as a rule all of it happens between two drains.
    let agent = Agent::start(&settings(3000))?;
    for driver in [Driver::Systemd, Driver::Cgroupfs] {
        let pod = Pod::new(driver, Qos::BestEffort)?;
        let begun = Instant::now();
        let mut container = runtime.workload(&pod, &["syscalls", "--getpriority", "777"])?;
        let started = Instant::now();
        container.run()?;
        let id = container.short_id().to_owned();
        let done = Instant::now();
        container.finish()?;
        println!(
            "{driver:?}: from the first cgroup to the last {} ms, of which it ran {} ms",
            begun.elapsed().as_millis(),
            (done - started).as_millis()
        );
        let uid = pod.uid().to_owned();
        drop(pod);
        let scrape = agent.settle(MOMENT, |scrape| calls(scrape, &uid, &id))?;
        let everybody = [("syscall", "execve"), ("pod", &uid)];
        ensure!(scrape.count(SYSCALLS, &everybody) == 1, "{driver:?}: not one program was executed");
    }
    agent.stop_conserved()?;
    Ok(())
}
