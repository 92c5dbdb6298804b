//! The `kernmeter` binary: command line in, exit code out. Knows no details of any command.

use std::process::ExitCode;

fn main() -> ExitCode {
    kernmeter::cli::main()
}
