//! The whole agent while the API server fails: metering goes on and is exact, and when the server is well again everything
//! is billed to its pod, also what is long dead.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kernmeter_tests::apiserver::{ApiServer, Fault, PodSpec, Verb};
use kernmeter_tests::runc::Qos;
use kernmeter_tests::{Agent, Driver, Outcome, Pod, Runtime, Scrape, Settings, agent, program, skip, trial};
use libtest_mimic::{Completion, Failed, Trial};

use super::subject::NODE;

const SYSCALLS: &str = "kernmeter_syscalls_total";
/// What each container does: a number that nobody makes by chance.
const CALLS: u64 = 54_321;
const WORK: [&str; 3] = ["syscalls", "--getpriority", "54321"];

/// What fails, how.
const FAULTS: &[(&str, Verb, Fault)] = &[
    ("watch_gone_and_list_throttled", Verb::List, Fault::Status(429, Some(1))),
    ("list_forbidden", Verb::List, Fault::Status(403, None)),
    ("list_garbage", Verb::List, Fault::Garbage),
    ("list_truncated", Verb::List, Fault::Truncated),
    ("list_hung", Verb::List, Fault::Silent),
    ("watch_unauthorized", Verb::Watch, Fault::Status(401, None)),
    ("watch_server_error", Verb::Watch, Fault::Status(500, None)),
    ("watch_hung", Verb::Watch, Fault::HeadOnly),
    ("watch_cut_in_an_event", Verb::Watch, Fault::Truncated),
    ("watch_ends_at_once", Verb::Watch, Fault::EndAtOnce),
];

pub fn trials() -> Vec<Trial> {
    let table = FAULTS.iter().map(|&(name, verb, fault)| {
        Trial::ignorable_test(format!("agent::{name}"), move || match survives(verb, fault) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<kernmeter_tests::Skip>() {
                Some(reason) => {
                    println!("SKIP agent: {reason}");
                    Ok(Completion::ignored_with(reason.to_string()))
                }
                None => Err(Failed::from(format!("{error:#}"))),
            },
        })
    });
    table
        .chain([
            trial("agent::a_pod_told_of_long_after_its_end", a_pod_told_of_long_after_its_end),
            trial("agent::hostile_names_and_labels", hostile_names_and_labels),
        ])
        .collect()
}

fn start(server: &ApiServer) -> Result<(Runtime, Agent)> {
    if !program::is_root() {
        skip!("the agent loads programs into the kernel and must run as root");
    }
    let runtime = Runtime::find()?;
    ensure!(agent::program().exists(), "no agent at {}: build it", agent::program().display());
    let settings = Settings {
        intervals_ms: [200; 3],
        drain: String::new(),
        rules: "    - match: {namespace: \"{ns}\"}\n      tenant: \"of-{ns}\"\n".to_owned(),
        sections: String::new(),
    };
    let settings = settings
        .section("detail:\n  families:\n    kernmeter_syscalls: container")
        .section(&format!(
            "kubernetes: {{pods: api, node_name: {NODE}, kubeconfig: '{}', start_jitter: 0s, request_timeout: 500ms, \
             watch_timeout: 1s}}",
            server.kubeconfig()?.display()
        ));
    Ok((runtime, Agent::start(&settings)?))
}

/// Calls billed to a container by all its names.
fn calls(scrape: &Scrape, pod: &str) -> u64 {
    let labels = [
        ("tenant_id", "of-shop"),
        ("k8s_namespace", "shop"),
        ("pod", pod),
        ("container", "main"),
        ("syscall", "getpriority"),
    ];
    scrape.count(SYSCALLS, &labels)
}

/// Calls of all that is known by name. Others on this machine may make the same call elsewhere.
fn all_calls(scrape: &Scrape) -> u64 {
    scrape.count(SYSCALLS, &[("tenant_id", "of-shop"), ("syscall", "getpriority")])
}

/// Calls shown under a pod's UID, which nobody may do while its name is awaited.
fn guessed(scrape: &Scrape, uid: &str) -> u64 {
    scrape.count(SYSCALLS, &[("pod", uid), ("syscall", "getpriority")])
}

fn object(name: &str, pod: &Pod, id: &str) -> PodSpec {
    PodSpec::new(NODE, "shop", name, pod.uid()).container("main", id)
}

fn survives(verb: Verb, fault: Fault) -> Outcome {
    let server = ApiServer::start()?;
    let (runtime, agent) = start(&server)?;
    // A pod that is known, in both drivers' forms by turns.
    let known = Pod::new(Driver::Systemd, Qos::Burstable)?;
    let mut first = runtime.workload(&known, &WORK)?;
    server.put(&object("known", &known, first.id()));
    first.run()?;
    agent.settle(CALLS, |scrape| calls(scrape, "known"))?;
    first.finish()?;

    server.fail_on(verb, fault);
    if verb == Verb::List {
        server.compact();
    }
    server.break_streams();
    let before = server.asked().len();
    let begun = Instant::now();
    // While nothing can be learnt: one more container of the known pod's kind, one of a pod that nobody knows.
    let late = Pod::new(Driver::Cgroupfs, Qos::Guaranteed)?;
    let mut second = runtime.workload(&late, &WORK)?;
    let spec = object("late", &late, second.id());
    second.run()?;
    second.finish()?;
    drop(late);
    server.put(&spec);
    // The fault has struck again and again.
    let until = Instant::now() + Duration::from_secs(20);
    while server.asked().len() - before < 3 {
        ensure!(Instant::now() < until, "the agent gave up: {server}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let drained = agent.fresh()?;
    ensure!(calls(&drained, "known") == CALLS, "the known pod's counts moved");
    ensure!(calls(&drained, "late") == 0 && all_calls(&drained) == CALLS, "counts were guessed at");
    ensure!(guessed(&drained, &spec.uid) == 0, "counts are shown under the UID");
    ensure!(drained.sum("kernmeter_unresolved_slots", &[]) >= 1.0, "nothing waits");
    let (requests, span) = (server.asked().len() - before, begun.elapsed());
    // Waits are 125 ms at least, and double.
    ensure!(requests as f64 <= 6.0 + 4.0 * span.as_secs_f64(), "{requests} requests in {span:?}");

    server.heal();
    let healed = Instant::now();
    let scrape = agent.settle(CALLS, |scrape| calls(scrape, "late"))?;
    println!("{verb:?} {fault:?}: {requests} requests in {span:?}; complete {:?} after it", healed.elapsed());
    ensure!(calls(&scrape, "known") == CALLS && all_calls(&scrape) == 2 * CALLS, "{}", all_calls(&scrape));
    agent.stop_conserved()?;
    Ok(())
}

/// The pod object comes 5 s after the container's end and the cgroup's removal, and is deleted at once.
fn a_pod_told_of_long_after_its_end() -> Outcome {
    let server = ApiServer::start()?;
    let (runtime, agent) = start(&server)?;
    let pod = Pod::new(Driver::Systemd, Qos::BestEffort)?;
    let begun = Instant::now();
    let mut container = runtime.workload(&pod, &WORK)?;
    let spec = object("brief", &pod, container.id());
    container.run()?;
    container.finish()?;
    println!("lived {:?}", begun.elapsed());
    drop(pod);
    std::thread::sleep(Duration::from_secs(5));
    let scrape = agent.scrape()?;
    ensure!(all_calls(&scrape) == 0 && guessed(&scrape, &spec.uid) == 0, "counts were guessed at");
    server.put(&spec);
    server.delete(&spec.uid);
    let scrape = agent.settle(CALLS, |scrape| calls(scrape, "brief"))?;
    ensure!(all_calls(&scrape) == CALLS);
    agent.stop_conserved()?;
    Ok(())
}

/// Names and labels that would break a scrape, a label set or a page: the scrape parses, and counts are exact.
fn hostile_names_and_labels() -> Outcome {
    let server = ApiServer::start()?;
    let (runtime, agent) = start(&server)?;
    let huge = "x".repeat(1 << 20);
    let names = [
        "quote\"} 1\nkernmeter_fake 1",
        "</script><script>",
        "../../etc/passwd",
        "nul\u{0}bell\u{7}",
        "é\u{202e}",
    ];
    let mut total = 0;
    for name in names {
        let pod = Pod::new(Driver::Cgroupfs, Qos::Burstable)?;
        let mut container = runtime.workload(&pod, &WORK)?;
        server.put(&object(name, &pod, container.id()).label("huge", &huge).annotation(name, &huge));
        container.run()?;
        container.finish()?;
        total += CALLS;
        agent.settle(total, |scrape| {
            scrape.count(
                SYSCALLS,
                &[("tenant_id", "of-shop"), ("container", "main"), ("syscall", "getpriority")],
            )
        })?;
    }
    let text = agent.text("application/openmetrics-text;version=1.0.0")?;
    ensure!(!text.lines().any(|line| line.starts_with("kernmeter_fake")), "a name became a sample");
    ensure!(!text.contains("must-never-be-seen"), "an environment leaked");
    let stopped = agent.stop()?;
    let log = stopped.log.join("\n");
    for secret in ["must-never-be-seen", "secret-of-the-tests"] {
        ensure!(!log.contains(secret), "the log holds `{secret}`");
    }
    stopped.check()?;
    Ok(())
}
