//! The source of pods and its cache against an API server in this process that does everything wrong a real one can. Needs
//! no privileges; the trials with the whole agent need root and say so when they are skipped.

mod agent;
mod faults;
mod protocol;
mod subject;

use std::path::Path;
use std::process::ExitCode;

use kernmeter_tests::workload;
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each trial looks at the pace of requests, or meters the whole host.
    arguments.test_threads.get_or_insert(1);
    workload::set_program(Path::new(env!("CARGO_BIN_EXE_workload")));
    let trials: Vec<Trial> =
        [protocol::trials(), faults::trials(), agent::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
