//! In: a kernel, a variant, an initial file system; out: what the machine said on both serial ports. Reads none of it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result};

use super::emulator::Emulator;
use super::matrix::Variant;

/// What to boot.
pub struct Order<'a> {
    /// Names its logs.
    pub name: &'a str,
    /// The machine.
    pub variant: &'a Variant,
    /// The kernel.
    pub kernel: &'a Path,
    /// Its initial file system.
    pub initrd: &'a Path,
    /// More parameters for what runs in it.
    pub parameters: String,
    /// How long it may take.
    pub limit: Duration,
    /// What its console says before it takes that long, if it comes so far: it has five times as long to say so.
    pub words: &'a str,
}

/// A machine that has ended.
pub struct Ended {
    /// What came over the second serial port: the results.
    pub report: String,
    /// What came over the first one: the kernel's console.
    pub console: String,
    /// It had to be ended.
    pub timed_out: bool,
    /// Wall time.
    pub took: Duration,
}

/// Boots a machine and waits for its end.
pub fn run(order: &Order, emulator: &Emulator, logs: &Path) -> Result<Ended> {
    let Order { name, variant, kernel, initrd, parameters, limit, words } = order;
    let log = |kind: &str| logs.join(format!("{}.{kind}", name.replace(' ', "-")));
    let (console, report) = (log("console"), log("report"));
    for path in [&console, &report] {
        let _ = fs::remove_file(path);
    }
    let parameters = format!(
        "console=ttyS0 panic=-1 mitigations=off no_timer_check quiet kernmeter.variant={} {} {parameters}",
        variant.name, variant.parameters
    );
    let mut command = emulator.command();
    command
        // Emulation on several threads crashed now and then.
        .args(["-accel", "tcg,thread=single", "-cpu", "max", "-M", "pc", "-nodefaults", "-no-reboot"])
        .args(["-m", &variant.memory.to_string(), "-smp", variant.cpus, "-display", "none"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-serial")
        .arg(format!("file:{}", report.display()))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", parameters.trim()])
        .stdin(Stdio::null());
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "");
    let begin = Instant::now();
    let mut child = command.spawn().context("cannot start the emulator")?;
    let mut timed_out = false;
    while child.try_wait()?.is_none() {
        let took = begin.elapsed();
        if took > *limit && (read(&console).contains(words) || took > 5 * *limit) {
            timed_out = true;
            child.kill()?;
            child.wait()?;
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Ended { report: read(&report), console: read(&console), timed_out, took: begin.elapsed() })
}
