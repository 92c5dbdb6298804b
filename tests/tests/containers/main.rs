//! Real containers, run by runc in the cgroups of pods, and what the agent says of them. Needs root, runc, busybox and a
//! cgroup-v2 hierarchy; a trial that cannot run prints `SKIP` with its reason and counts as ignored.

mod by_name;
mod by_path;

use std::path::Path;
use std::process::ExitCode;

use kernmeter_tests::run_on_host;

fn main() -> ExitCode {
    let trials = [by_path::trials(), by_name::trials()].into_iter().flatten().collect();
    run_on_host(Path::new(env!("CARGO_BIN_EXE_workload")), trials)
}
