//! In: the unit tests; out: those that can run in Miri, run there: an interpreter that ends at undefined behaviour. Knows the
//! agent's rooms by the names of their tests.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Miri comes with rustup's nightly toolchains only.
const TOOLCHAIN: &str = "nightly";
/// How long rustup may take for a toolchain of 100 MB.
const DOWNLOAD: Duration = Duration::from_mins(5);
/// Ends what hangs. Two idle CPUs take some three minutes, and two more for the first build.
const LIMIT: Duration = Duration::from_mins(30);

/// What runs in Miri, in two processes side by side. `identity`, `registry` and `selfmetrics` are safe code and take too long:
/// text that is matched and encoded, thousands of series. The rest calls what Miri has not: sockets, TLS in C and assembler,
/// signals, bpf(2).
const ROOMS: [&[&str]; 2] = [
    &["adapt", "attribute", "btf", "catalog", "escape", "exposition", "host"],
    &["drain", "kernel::region", "kernel::size", "table"],
];

/// Tests of these rooms that do not, by a part of their names, and why.
const LEFT_OUT: [(&str, &str); 6] = [
    ("own_figures_make_sense", "Miri has no openat(2)"),
    ("the_running_kernel", "it takes minutes: 6 MB of type information"),
    ("deliberate_mistakes_are_told", "it takes minutes: backtraces of panics"),
    ("steady_state_allocates_nothing_per_sample", "it takes minutes: 16,000 series"),
    ("memory_is_told_as_the_allocator_sees_it", "it takes minutes: 5,000 pods"),
    ("identifier::tests", "it takes minutes: regular expressions are compiled for each test"),
];

/// Files can be read; addresses are numbers the kernel is given, never made into pointers; floating point is what the
/// processor does; names of families live as long as the process.
const FLAGS: &str =
    "-Zmiri-disable-isolation -Zmiri-strict-provenance -Zmiri-deterministic-floats -Zmiri-ignore-leaks";
/// Cases of each property. One alone can take minutes, and what random values find is found outside Miri.
const CASES: &str = "0";

fn rustup(arguments: &[&str]) -> std::process::Command {
    let mut rustup = workspace::command("rustup");
    rustup.args(arguments).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    rustup
}

/// Whether Miri is there.
pub fn is_installed() -> bool {
    workspace::output(&mut rustup(&["run", TOOLCHAIN, "cargo", "miri", "--version"])).is_ok()
}

/// `cargo xtask setup --miri`.
///
/// # Errors
/// There is no rustup, or it cannot download.
pub fn install() -> Result<()> {
    if is_installed() {
        println!("setup: Miri (found)");
        return Ok(());
    }
    println!("setup: Miri from rustup (at most {} s)", DOWNLOAD.as_secs());
    let components = ["--component", "miri", "--component", "rust-src"];
    let mut install =
        rustup(&["toolchain", "install", TOOLCHAIN, "--profile", "minimal", "--no-self-update"]);
    workspace::run_within(install.args(components), DOWNLOAD).context(
        "Miri cannot be installed: without rustup, or without a network, `cargo xtask check` leaves it out",
    )
}

/// Runs the tests in Miri.
///
/// # Errors
/// A test failed, there is undefined behaviour, or a room has no tests by which Miri would see it.
pub fn run() -> Result<()> {
    for (test, why) in LEFT_OUT {
        println!("miri: `{test}` is left out: {why}");
    }
    println!("miri: properties try {CASES} random values: each takes minutes");
    interpret(&["--package", "kernmeter-abi"], &[])?;
    // Without the client of the Kubernetes API, whose tests need a network, there is half as much to build.
    let agent = ["--package", "kernmeter", "--lib", "--no-default-features"];
    let outputs: Vec<Result<String>> = thread::scope(|scope| {
        let running = ROOMS.map(|rooms| scope.spawn(move || interpret(&agent, &arguments(rooms))));
        running.map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).into()
    });
    let unseen = without_tests(&outputs.into_iter().collect::<Result<String>>()?);
    if !unseen.is_empty() {
        bail!("no tests ran of {}: bring ROOMS in xtask/src/miri.rs up to date", unseen.join(", "));
    }
    Ok(())
}

/// Arguments of the test program.
fn arguments(rooms: &[&str]) -> Vec<String> {
    let rooms = rooms.iter().map(|room| format!("{room}::"));
    rooms.chain(LEFT_OUT.iter().flat_map(|(test, _)| ["--skip".to_owned(), (*test).to_owned()])).collect()
}

/// Runs tests of a package and returns what they printed.
fn interpret(package: &[&str], tests: &[String]) -> Result<String> {
    let mut miri = workspace::command("timeout");
    miri.args(["--kill-after=10", &LIMIT.as_secs().to_string()])
        .args(["rustup", "run", TOOLCHAIN, "cargo", "miri", "test"])
        .args(package)
        .arg("--")
        .args(tests)
        .env("MIRIFLAGS", FLAGS)
        .env("PROPTEST_CASES", CASES)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = miri.output().context("cannot start `timeout` (package coreutils)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Whole, so that two that run at once do not mix.
    print!("{text}");
    match output.status.code() {
        Some(0) => Ok(text),
        Some(124 | 137) => bail!("Miri took longer than {} minutes", LIMIT.as_secs() / 60),
        _ => bail!("`{}` failed ({})", workspace::line(&miri), output.status),
    }
}

/// Rooms of which no test is in the output.
fn without_tests(output: &str) -> Vec<&'static str> {
    let ran = |room: &str| {
        let test = format!("test {room}::");
        output.lines().any(|line| line.starts_with(&test) && line.ends_with("ok"))
    };
    ROOMS.into_iter().flatten().copied().filter(|room| !ran(room)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_without_tests_is_missed() {
        let test = |room: &&str| format!("test {room}::tests::a ... ok\n");
        let all: String = ROOMS.into_iter().flatten().map(test).collect();
        assert!(without_tests(&all).is_empty());
        let less =
            all.replace("test btf::", "test btg::").replace("test table::tests::a ... ok", "running 2 tests");
        assert_eq!(without_tests(&less), ["btf", "table"]);
    }
}
