//! In: the command line of `cargo xtask`; out: one call into the file of that subcommand, and its exit code.
//! Knows nothing of what the subcommands do.

mod build_ebpf;
mod debian;
mod setup;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// kernmeter's own build, test and release commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the eBPF build needs; does nothing when it is all there
    Setup(setup::Arguments),
    /// Build the eBPF object the agent embeds
    BuildEbpf,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::BuildEbpf => build_ebpf::run().map(|_| ()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
