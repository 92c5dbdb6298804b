//! The integration tests: one binary, one module per subject, one trial after the other. Needs root and a cgroup-v2
//! hierarchy; a trial that cannot run prints `SKIP` with its reason and counts as ignored.
#![allow(clippy::float_cmp, reason = "what is compared for equality are integers written as floats")]

mod abi;
mod access;
mod audit;
mod beginnings;
mod churn;
mod cli;
mod counting;
mod fairness;
mod flood;
mod hostile;
mod http;
mod input;
mod interval;
mod latency;
mod lifecycle;
mod limits;
mod moves;
mod processes;
mod prometheus;
mod retirement;
mod rows;
mod time;
mod unentered;
mod workers;

use std::path::Path;
use std::process::ExitCode;

use kernmeter_tests::run_on_host;

/// Families of what the tests look at.
mod family {
    pub const SYSCALLS: &str = "kernmeter_syscalls_total";
    pub const DENIED: &str = "kernmeter_syscalls_denied_total";
    pub const ERRORS: &str = "kernmeter_syscall_errors_total";
    pub const DURATION: &str = "kernmeter_syscall_duration_seconds";
    pub const BLOCKED: &str = "kernmeter_blocked_seconds_total";
    pub const WAIT: &str = "kernmeter_runqueue_wait_seconds";
    pub const CPU: &str = "kernmeter_cpu_seconds_total";
    pub const SWITCHES: &str = "kernmeter_context_switches_total";
    pub const KERNEL_EVENTS: &str = "kernmeter_kernel_events_total";
    pub const LOST: &str = "kernmeter_events_lost_total";
}

/// The value of the `abi` label of ordinary calls.
const NATIVE: &str = if cfg!(target_arch = "x86_64") { "x86_64" } else { "aarch64" };

fn main() -> ExitCode {
    let trials = [
        counting::trials(),
        abi::trials(),
        moves::trials(),
        processes::trials(),
        beginnings::trials(),
        unentered::trials(),
        workers::trials(),
        time::trials(),
        audit::trials(),
        latency::trials(),
        prometheus::trials(),
        interval::trials(),
        lifecycle::trials(),
        flood::trials(),
        limits::trials(),
        fairness::trials(),
        retirement::trials(),
        churn::trials(),
        hostile::trials(),
        http::trials(),
        access::trials(),
        input::trials(),
        cli::trials(),
        rows::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    run_on_host(Path::new(env!("CARGO_BIN_EXE_workload")), trials)
}
