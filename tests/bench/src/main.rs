//! In: names of benchmarks, agents and this machine; out: a report of what metering costs. Judges nothing: figures depend on
//! the machine and on what else it does.
//!
//! `cargo xtask bench` runs it: `kernmeter-bench report [--quick] [--against BINARY] NAME...`. `worker`, `relay`, `yielder`
//! and `sweep DIR` are the parts it starts itself.

mod agent_cost;
mod alone;
mod attacks;
mod encode;
mod event_cost;
mod lookup;
mod pinned;
mod pods;
mod report;
mod sharing;
mod spread;
mod subject;
mod sweeper;
mod worker;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let result = match words[..] {
        ["worker"] => worker::serve(),
        ["relay"] => worker::relay(),
        ["yielder"] => worker::yielder(),
        ["sweep", dir] => sweeper::sweep(Path::new(dir)),
        ["report", ref words @ ..] => report::Request::parse(words).and_then(|request| report::run(&request)),
        _ => (|| bail!("run `cargo xtask bench`"))(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
