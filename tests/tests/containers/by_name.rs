//! With an API server that knows the pods: exact counts arrive under the right tenant, namespace, pod and container, also if
//! it tells of them after their death.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kernmeter_tests::apiserver::{ApiServer, PodSpec};
use kernmeter_tests::runc::Qos;
use kernmeter_tests::{Agent, Driver, Outcome, Pod, Runtime, Scrape, Settings, trials};

trials![
    exact_in_both_drivers_forms,
    exact_for_a_static_pod,
    exact_for_init_main_and_restart,
    exact_for_a_container_that_lives_for_a_moment,
    exact_for_a_pod_told_of_five_seconds_after_its_death,
];

const NODE: &str = "node-1";
const SYSCALLS: &str = "kernmeter_syscalls_total";
const ERRORS: &str = "kernmeter_syscall_errors_total";
const CALLS: u64 = 54_321;
const FAILURES: u64 = 1_234;
const WORK: [&str; 5] = ["syscalls", "--getpriority", "54321", "--openat-fail", "1234"];

/// How long what the API never names may take to be billed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Namespaces `shop-*` are one tenant, the others tenants of their own.
fn settings(server: &ApiServer) -> anyhow::Result<Settings> {
    let settings = Settings {
        intervals_ms: [200; 3],
        drain: String::new(),
        rules: "    - match: {namespace: \"shop-*\"}\n      tenant: shop\n".to_owned(),
        sections: String::new(),
    };
    let api = format!(
        "kubernetes:\n  pods: api\n  node_name: {NODE}\n  kubeconfig: {}\n  start_jitter: 0s\n",
        server.kubeconfig()?.display()
    );
    Ok(settings.section(&api).section(
        "detail:\n  families:\n    kernmeter_syscalls: container\n    kernmeter_syscall_errors: container",
    ))
}

/// Whose something is: tenant, namespace, pod, container.
type Whose<'a> = [&'a str; 4];

fn labels([tenant, namespace, pod, container]: Whose<'_>) -> [(&str, &str); 4] {
    [("tenant_id", tenant), ("k8s_namespace", namespace), ("pod", pod), ("container", container)]
}

fn calls(scrape: &Scrape, whose: Whose<'_>) -> u64 {
    let [a, b, c, d] = labels(whose);
    scrape.count(SYSCALLS, &[a, b, c, d, ("syscall", "getpriority")])
}

/// Calls of all pods that anybody named, and of `_unknown`. Not those of the host and of pods that the API server never heard
/// of: others may work on the machine too.
fn all_calls(scrape: &Scrape) -> u64 {
    let others = |tenant: &str| tenant == "_host" || tenant.starts_with("pod-");
    scrape
        .find(SYSCALLS, &[("syscall", "getpriority")])
        .filter(|sample| !sample.label("tenant_id").is_some_and(others))
        .map(|sample| sample.value() as u64)
        .sum()
}

/// Exactly so many runs of [`WORK`] are this one's.
fn check(scrape: &Scrape, whose: Whose<'_>, runs: u64) -> Outcome {
    let seen = calls(scrape, whose);
    ensure!(
        seen == runs * CALLS,
        "{seen} calls of {whose:?} instead of {}: {}",
        runs * CALLS,
        owners(scrape)
    );
    let [a, b, c, d] = labels(whose);
    let failed = scrape.count(ERRORS, &[a, b, c, d, ("errno", "ENAMETOOLONG")]);
    ensure!(failed == runs * FAILURES, "{failed} failures of {whose:?}");
    Ok(())
}

/// Whose the calls went to, for messages.
fn owners(scrape: &Scrape) -> String {
    let found = scrape.find(SYSCALLS, &[("syscall", "getpriority")]);
    found.map(|sample| format!("{:?} {}", sample.labels, sample.text)).collect::<Vec<_>>().join("; ")
}

fn exact_in_both_drivers_forms() -> Outcome {
    let runtime = Runtime::find()?;
    for driver in [Driver::Systemd, Driver::Cgroupfs] {
        let server = ApiServer::start_tls()?;
        let agent = Agent::start(&settings(&server)?)?;
        let cart = Pod::new(driver, Qos::Burstable)?;
        let index = Pod::new(driver, Qos::Guaranteed)?;
        let told = |pod: &Pod, namespace: &str, name: &str| PodSpec::new(NODE, namespace, name, pod.uid());
        // Scheduled, not yet running.
        server.put(&told(&cart, "shop-prod", "cart-0"));
        server.put(&told(&index, "search", "index-0"));
        let sandboxes = [runtime.sandbox(&cart)?, runtime.sandbox(&index)?];
        let mut web = runtime.workload(&cart, &WORK)?;
        let mut log = runtime.workload(&cart, &WORK)?;
        let mut main = runtime.workload(&index, &WORK)?;
        server.put(&told(&cart, "shop-prod", "cart-0").container("web", web.id()).container("log", log.id()));
        server.put(&told(&index, "search", "index-0").container("main", main.id()));
        for container in [&mut web, &mut log, &mut main] {
            container.run()?;
        }
        let scrape = agent.settle(3 * CALLS, |scrape| {
            calls(scrape, ["shop", "shop-prod", "cart-0", "web"])
                + calls(scrape, ["shop", "shop-prod", "cart-0", "log"])
                + calls(scrape, ["search", "search", "index-0", "main"])
        })?;
        check(&scrape, ["shop", "shop-prod", "cart-0", "web"], 1)?;
        check(&scrape, ["shop", "shop-prod", "cart-0", "log"], 1)?;
        check(&scrape, ["search", "search", "index-0", "main"], 1)?;
        ensure!(all_calls(&scrape) == 3 * CALLS, "somebody else has calls: {}", owners(&scrape));
        // A sandbox is no container of the API's. It belongs to the pod all the same, under its own id, once the agent has
        // waited long enough for a name.
        for (sandbox, tenant) in sandboxes.iter().zip(["shop", "search"]) {
            let own = [("tenant_id", tenant), ("container", sandbox.short_id()), ("syscall", "execve")];
            let begun = Instant::now();
            while agent.scrape()?.count(SYSCALLS, &own) != 1 {
                ensure!(begun.elapsed() < PATIENCE, "{driver:?}: the sandbox of {tenant} is not seen");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        agent.stop_conserved()?;
    }
    Ok(())
}

fn exact_for_a_static_pod() -> Outcome {
    let runtime = Runtime::find()?;
    let server = ApiServer::start_tls()?;
    let agent = Agent::start(&settings(&server)?)?;
    for (driver, name) in [(Driver::Systemd, "etcd-node-1"), (Driver::Cgroupfs, "scheduler-node-1")] {
        let pod = Pod::fixed(driver, Qos::Burstable)?;
        let mut container = runtime.workload(&pod, &WORK)?;
        // The API's UID is the mirror's; the cgroup carries the hash.
        let uid = format!("mirror-of-{name}");
        let mirror = PodSpec::new(NODE, "kube-system", name, &uid).mirror_of(pod.uid());
        server.put(&mirror.container("main", container.id()));
        container.run()?;
        let whose = ["kube-system", "kube-system", name, "main"];
        let scrape = agent.settle(CALLS, |scrape| calls(scrape, whose))?;
        check(&scrape, whose, 1)?;
        container.finish()?;
    }
    agent.stop_conserved()?;
    Ok(())
}

fn exact_for_init_main_and_restart() -> Outcome {
    let runtime = Runtime::find()?;
    let server = ApiServer::start_tls()?;
    let agent = Agent::start(&settings(&server)?)?;
    let pod = Pod::new(Driver::Systemd, Qos::BestEffort)?;
    let spec = PodSpec::new(NODE, "jobs", "report-x7k2p", pod.uid());
    server.put(&spec);
    let mut init = runtime.workload(&pod, &WORK)?;
    let spec = spec.init_container("setup", init.id());
    server.put(&spec);
    init.run()?;
    init.finish()?;
    // The same container twice: the second time it has another id, and the API knows the first no more.
    for _ in 0..2 {
        let mut main = runtime.workload(&pod, &WORK)?;
        server.put(&spec.clone().container("main", main.id()));
        main.run()?;
        main.finish()?;
        agent.fresh()?;
    }
    let (setup, main) = (["jobs", "jobs", "report-x7k2p", "setup"], ["jobs", "jobs", "report-x7k2p", "main"]);
    let scrape = agent.settle(3 * CALLS, |scrape| calls(scrape, setup) + calls(scrape, main))?;
    check(&scrape, setup, 1)?;
    check(&scrape, main, 2)?;
    agent.stop_conserved()?;
    Ok(())
}

/// A container that is gone before anybody could ask for it; what it is called is told afterwards.
fn moment(driver: Driver, late: Duration) -> Outcome {
    const MOMENT: u64 = 777;
    let runtime = Runtime::find()?;
    let server = ApiServer::start_tls()?;
    let agent = Agent::start(&settings(&server)?)?;
    let pod = Pod::new(driver, Qos::Burstable)?;
    let begun = Instant::now();
    let mut container = runtime.workload(&pod, &["syscalls", "--getpriority", "777"])?;
    container.run()?;
    let id = container.id().to_owned();
    container.finish()?;
    let lived = begun.elapsed();
    let spec = PodSpec::new(NODE, "shop-test", "probe-1", pod.uid()).container("main", &id);
    drop(pod);
    std::thread::sleep(late);
    let before = agent.fresh()?;
    ensure!(all_calls(&before) == 0, "billed before anybody said to whom: {}", owners(&before));
    let waiting = before.count("kernmeter_unresolved_slots", &[]);
    println!("{driver:?}: its cgroups lived {} ms; {waiting} slots wait {late:?} later", lived.as_millis());
    ensure!(waiting >= 1, "nothing waits for the pod");
    server.put(&spec);
    let whose = ["shop", "shop-test", "probe-1", "main"];
    let scrape = agent.settle(MOMENT, |scrape| calls(scrape, whose))?;
    ensure!(all_calls(&scrape) == MOMENT, "somebody else has calls: {}", owners(&scrape));
    agent.stop_conserved()?;
    Ok(())
}

fn exact_for_a_container_that_lives_for_a_moment() -> Outcome {
    moment(Driver::Systemd, Duration::ZERO)?;
    moment(Driver::Cgroupfs, Duration::ZERO)
}

fn exact_for_a_pod_told_of_five_seconds_after_its_death() -> Outcome {
    moment(Driver::Systemd, Duration::from_secs(5))?;
    moment(Driver::Cgroupfs, Duration::from_secs(5))
}
