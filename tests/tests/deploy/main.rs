//! The tests of `deploy/`: each artefact is examined by the tool of its trade and, where it tells how the agent runs, the
//! agent runs so. A trial whose tool is missing prints `SKIP` with its reason and counts as ignored.

mod confined;
mod container;
mod kubernetes;
mod package;
mod prometheus;
mod systemd;
mod tool;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each agent meters the whole host: one at a time unless somebody insists.
    arguments.test_threads.get_or_insert(1);
    let trials: Vec<Trial> = [
        systemd::trials(),
        prometheus::trials(),
        kubernetes::trials(),
        container::trials(),
        package::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
