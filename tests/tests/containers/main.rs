//! Real containers, run by runc in the cgroups of pods, and what the agent says of them. Needs root, runc, busybox and a
//! cgroup-v2 hierarchy; a trial that cannot run prints `SKIP` with its reason and counts as ignored.

mod by_name;
mod by_path;

use std::path::Path;
use std::process::ExitCode;

use kernmeter_tests::{agent, workload};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each agent meters the whole host: one at a time unless somebody insists.
    arguments.test_threads.get_or_insert(1);
    workload::set_program(Path::new(env!("CARGO_BIN_EXE_workload")));
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIP all: the tests load programs into the kernel and must run as root");
        return ExitCode::SUCCESS;
    }
    if !arguments.list && !agent::program().exists() {
        eprintln!("no agent at {}: build it, or set KERNMETER_BIN", agent::program().display());
        return ExitCode::FAILURE;
    }
    let trials: Vec<Trial> = [by_path::trials(), by_name::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
