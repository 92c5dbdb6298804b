//! In: a command on the command line, bytes on descriptor 0 that let it go on; out: exactly so many system calls, and
//! lines about what it measured on descriptor 1. Knows nothing of the agent or of cgroups it was not told of.
//!
//! The control descriptor is a socket read with `recvfrom`, so that waiting for it is not seen as `read`.

#[path = "workload/attacks.rs"]
mod attacks;
#[path = "workload/calls.rs"]
mod calls;
#[path = "workload/compat.rs"]
mod compat;
#[path = "workload/filtered.rs"]
mod filtered;
#[path = "workload/moves.rs"]
mod moves;
#[path = "workload/processes.rs"]
mod processes;
#[path = "workload/rings.rs"]
mod rings;
#[path = "workload/signals.rs"]
mod signals;
#[path = "workload/waits.rs"]
mod waits;

use std::io::Write;

use anyhow::{Context, Result, bail};

/// Arguments after the command: `--name value` pairs.
struct Args(Vec<String>);

impl Args {
    fn text(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .position(|a| a.strip_prefix("--") == Some(name))
            .and_then(|i| self.0.get(i + 1))
            .map(String::as_str)
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        self.text(name).map_or(Ok(default), |t| t.parse().with_context(|| format!("bad --{name} {t:?}")))
    }

    fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|a| a.strip_prefix("--") == Some(name))
    }
}

/// Waits until the test lets the workload go on. False at the end of the conversation.
fn wait_for_go() -> bool {
    let mut byte = 0u8;
    loop {
        // SAFETY: one byte is read into one live byte.
        let n = unsafe { libc::recv(0, (&raw mut byte).cast(), 1, 0) };
        if n >= 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return n == 1;
        }
    }
}

/// Says something to the test.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() {
        bail!("which workload?");
    }
    let command = args.remove(0);
    let args = Args(args);
    if command == "exit" {
        return Ok(());
    }
    if !wait_for_go() {
        return Ok(());
    }
    match command.as_str() {
        "syscalls" => calls::syscalls(&args)?,
        "steps" => return calls::steps(&args),
        "long-call" => calls::long_call(&args)?,
        "flood" => calls::flood(&args)?,
        "attack" => attacks::attack(&args)?,
        "x32" => compat::x32(&args)?,
        "int80" => compat::int80(&args)?,
        "ia32" => compat::ia32_program(&args)?,
        "filtered" => filtered::filtered(&args)?,
        "signals" => signals::returns(&args)?,
        "stopped" => signals::stopped(&args)?,
        "io-uring" => rings::reads(&args)?,
        "self-mover" => moves::itself(&args)?,
        "born-movers" => moves::at_birth(&args)?,
        "storm" => processes::storm(&args)?,
        "processes" => processes::processes(&args)?,
        "odd-ends" => processes::odd_ends(&args)?,
        "swarm" => processes::swarm(&args)?,
        "sleep" => waits::sleep(&args)?,
        "futex" => waits::futex(&args)?,
        "pipe-read" => waits::pipe_read(&args)?,
        "spin" => waits::spin(&args)?,
        "yield" => waits::yields(&args)?,
        other => bail!("no workload {other:?}"),
    }
    say("done");
    wait_for_go();
    Ok(())
}
