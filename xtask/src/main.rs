//! In: the command line of `cargo xtask`; out: one call into the file of that subcommand, and its exit code.
//! Knows nothing of what the subcommands do.

mod agent;
mod bench;
mod build_ebpf;
mod check;
mod deb;
mod debian;
mod docs;
mod image;
mod miri;
mod scene;
mod setup;
mod summary;
mod test;
mod test_setup;
mod tidy;
mod toolchain;
mod vm;
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
    /// Build the eBPF object and the agent
    Build(agent::BuildArguments),
    /// Build the container image: the one static binary, packed without a registry
    Image(image::Arguments),
    /// Build the Debian package
    Deb(deb::Arguments),
    /// Build everything and start the agent (as root)
    Run(agent::RunArguments),
    /// Run all tests, on this kernel (as root)
    Test(test::Arguments),
    /// Measure what metering costs on this machine (as root)
    Bench(bench::Arguments),
    /// Formatting, lints, house rules, generated files, licences and advisories
    Check(check::Arguments),
    /// Generate METRICS.md, and on request the man page, shell completions and the documents' console blocks
    Docs(docs::Arguments),
    /// Three small tenants at work, to look at while they last (as root)
    Scene(scene::Arguments),
    /// Run the agent on many kernels in virtual machines (needs no root, no KVM)
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Setup(arguments) => setup::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::BuildEbpf => build_ebpf::run().map(|()| ExitCode::SUCCESS),
        Task::Build(arguments) => agent::build(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Image(arguments) => image::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Deb(arguments) => deb::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Run(arguments) => agent::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Check(arguments) => check::run(&arguments),
        Task::Docs(arguments) => docs::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Scene(arguments) => scene::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Vm(arguments) => vm::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
