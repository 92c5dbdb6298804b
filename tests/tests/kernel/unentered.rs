//! Calls that are answered before they are entered, and calls whose result is none.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, skip, trials};

use crate::NATIVE;
use crate::counting::calls;
use crate::family::{DENIED, DURATION, ERRORS};

trials![
    calls_that_seccomp_answers,
    calls_that_seccomp_answers_on_raw_tracepoints,
    calls_that_seccomp_answers_on_trace_events,
    nothing_else_is_denied,
    returns_of_handlers,
];

/// Fault 31: what a seccomp filter answers is a call, an error by its errno if the answer is one, and a denied call, of its
/// own name and ABI; it has no duration. First returns of processes and threads under the filter are none.
fn answered(attach: &str) -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section(&format!("kernel: {{attach: {attach}}}")))?;
    let tenant = hierarchy.tenant("filtered")?;
    let args = [
        "filtered",
        "--errors",
        "5000",
        "--traps",
        "300",
        "--ia32",
        "70",
        "--forks",
        "20",
        "--threads",
        "10",
    ];
    let (workload, _) = Workload::run(&tenant, &args)?;
    workload.finish()?;
    let scrape = agent.settle(5000, |s| calls(s, "filtered", "getppid"))?;
    let own = ("tenant_id", "filtered");
    for (syscall, abi, made, errno, errors) in [
        ("getppid", NATIVE, 5000, "EPERM", 5000),
        ("getppid", "ia32", 70, "ENOENT", 70),
        // The answer to a trap is the call's own number: no error.
        ("getpriority", NATIVE, 300, "EPERM", 0),
    ] {
        let labels = [own, ("syscall", syscall), ("abi", abi)];
        let seen = [
            scrape.count(crate::family::SYSCALLS, &labels),
            scrape.count(DENIED, &labels),
            scrape.count(ERRORS, &[labels[0], labels[1], labels[2], ("errno", errno)]),
            scrape.count(ERRORS, &labels),
            scrape.count(&format!("{DURATION}_count"), &labels),
        ];
        ensure!(
            seen == [made, made, errors, errors, 0],
            "{syscall} ({abi}): calls, denied, {errno}, errors, durations are {seen:?}"
        );
    }
    let denied = scrape.count(DENIED, &[own]);
    ensure!(denied == 5370, "{denied} calls denied instead of 5370");
    agent.stop_conserved()?;
    Ok(())
}

fn calls_that_seccomp_answers() -> Outcome {
    answered("auto")
}

fn calls_that_seccomp_answers_on_raw_tracepoints() -> Outcome {
    answered("raw")
}

fn calls_that_seccomp_answers_on_trace_events() -> Outcome {
    if std::fs::read_dir("/sys/kernel/tracing/events").is_err() {
        skip!("no tracefs at /sys/kernel/tracing");
    }
    answered("event")
}

/// Fault 31, the other side: the return from a call that is older than the agent is not denied, filter or not.
fn nothing_else_is_denied() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let tenant = hierarchy.tenant("asleep")?;
    let begin = Instant::now();
    let mut workload = Workload::spawn(&tenant, &["filtered", "--ms", "3000", "--errors", "7"])?;
    workload.go()?;
    std::thread::sleep(Duration::from_millis(300));
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    ensure!(begin.elapsed() < Duration::from_millis(2800), "the agent took {:?} to start", begin.elapsed());
    workload.results()?;
    workload.finish()?;
    let scrape = agent.settle(7, |s| calls(s, "asleep", "getppid"))?;
    let denied = scrape.count(DENIED, &[("tenant_id", "asleep")]);
    ensure!(denied == 7, "{denied} calls denied instead of 7");
    let slept = calls(&scrape, "asleep", "nanosleep");
    ensure!(slept == 0, "{slept} sleeps, none of which began while the agent was there");
    agent.stop_conserved()?;
    Ok(())
}

/// Fault 32: what `rt_sigreturn` "returns" is the interrupted code's own register, here -EINTR.
fn returns_of_handlers() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("signalled")?;
    let (workload, _) = Workload::run(&tenant, &["signals", "--times", "500"])?;
    workload.finish()?;
    let scrape = agent.settle(500, |s| calls(s, "signalled", "rt_sigreturn"))?;
    let own = [("tenant_id", "signalled"), ("syscall", "rt_sigreturn")];
    ensure!(scrape.count(ERRORS, &own) == 0, "{} returns are errors", scrape.count(ERRORS, &own));
    let measured = scrape.count(&format!("{DURATION}_count"), &own);
    ensure!(measured == 500, "{measured} durations of 500 returns");
    agent.stop_conserved()?;
    Ok(())
}
