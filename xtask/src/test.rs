//! In: an optional filter; out: every test run on this kernel, their output as it comes, and one closing line that sums
//! them. Knows no single test.

use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::summary::Summary;
use crate::{agent, build_ebpf, test_setup, vm, workspace};

/// The package whose tests run against the real kernel.
const KERNEL_TESTS: &str = "kernmeter-tests";

#[derive(clap::Args)]
pub struct Arguments {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Also run the whole matrix of kernels in virtual machines, as `cargo xtask vm` does
    #[arg(long, conflicts_with = "filter")]
    vm: bool,
    /// Boot no more machines after so many minutes; those left are told of as skipped
    #[arg(long, value_name = "MINUTES", requires = "vm")]
    vm_within: Option<u64>,
}

/// `cargo xtask test`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    test_setup::run()?;
    build_ebpf::run()?;
    let binary = agent::release()?;
    let filter = arguments.filter.as_deref();

    let mut unit = workspace::cargo();
    unit.args(["test", "--workspace", "--exclude", KERNEL_TESTS, "--no-fail-fast", "--"]).args(filter);

    // One at a time: they count what happens on the whole machine.
    let mut kernel = workspace::cargo();
    kernel
        .args(["test", "--package", KERNEL_TESTS, "--no-fail-fast", "--", "--test-threads=1"])
        .args(filter)
        .env("KERNMETER_BIN", &binary);

    let mut summary = Summary::default();
    for (name, suite) in [("unit and doc tests", &mut unit), ("kernel tests", &mut kernel)] {
        println!("test: {name}");
        stream(name, suite, &mut summary)?;
    }
    if let Some(filter) = filter.filter(|_| summary.is_empty()) {
        summary.broke_off("the filter", &format!("no test's name contains \"{filter}\""));
    }
    if arguments.vm {
        println!("test: other kernels, in virtual machines");
        let left = |minutes: u64| minutes.saturating_sub(began.elapsed().as_secs() / 60);
        let whole = vm::Arguments::whole(arguments.vm_within.map(left));
        if let Err(error) = vm::add(&whole, &mut summary) {
            summary.broke_off("vm", &format!("{error:#}"));
        }
    }
    println!("\n{summary}");
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a suite, passing its output on as it comes (also in the middle of a line: some tests take a while).
fn stream(name: &str, suite: &mut Command, summary: &mut Summary) -> Result<()> {
    let failed_before = summary.failed();
    let mut child = suite
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", workspace::line(suite)))?;
    let mut from = child.stdout.take().context("the suite has no output")?;
    let mut lines = Lines::default();
    let mut chunk = [0; 8192];
    loop {
        let n = from.read(&mut chunk).context("cannot read the suite's output")?;
        if n == 0 {
            break;
        }
        let mut to = io::stdout().lock();
        to.write_all(&chunk[..n]).and_then(|()| to.flush()).context("cannot pass the suite's output on")?;
        lines.feed(&chunk[..n], |line| summary.line(line));
    }
    lines.finish(|line| summary.line(line));
    let status = child.wait()?;
    if !status.success() && summary.failed() == failed_before {
        summary.broke_off(name, &status.to_string());
    }
    Ok(())
}

/// Puts lines together from pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.finish(&mut each);
            }
        }
    }

    fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.rest.is_empty() {
            each(String::from_utf8_lossy(&self.rest).trim_end());
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let text = b"one\n\xfftwo\n\nthree";
        for cut in 0..=text.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            lines.feed(&text[..cut], |line| seen.push(line.to_owned()));
            lines.feed(&text[cut..], |line| seen.push(line.to_owned()));
            lines.finish(|line| seen.push(line.to_owned()));
            assert_eq!(seen, ["one", "\u{fffd}two", "", "three"], "cut at {cut}");
        }
    }
}
