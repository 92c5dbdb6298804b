//! In: a CPU; out: a worker process that runs on that CPU only, and its readings. Ended when dropped.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::spread::Spread;

/// A worker on one CPU.
pub struct Pinned {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Pinned {
    /// Starts one, somewhat preferred over other work of the machine.
    pub fn start(cpu: u32) -> Result<Self> {
        let mut child = Command::new("nice")
            .args(["-n", "-10", "taskset", "-c", &cpu.to_string()])
            .arg(std::env::current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a worker with `nice` and `taskset` (packages coreutils and util-linux)")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, to, from })
    }

    /// Nanoseconds per system call: one median of many short rounds.
    pub fn call(&mut self, rounds: u32) -> Result<f64> {
        self.ask(&format!("call {rounds}")).map(median)
    }

    /// Nanoseconds per switch to a process that is ready to run, made by a call.
    pub fn switch(&mut self, rounds: u32) -> Result<f64> {
        self.ask(&format!("yield {rounds}")).map(median)
    }

    /// Nanoseconds per byte through a pipe to a process that waits for it.
    pub fn pipe(&mut self, rounds: u32) -> Result<f64> {
        self.ask(&format!("pipe {rounds}")).map(median)
    }

    /// Starts a process in each of the cgroups `dir/0`, `dir/1`, ...
    pub fn ring(&mut self, size: u32, dir: &Path) -> Result<()> {
        self.ask(&format!("ring {size} {}", dir.display())).map(drop)
    }

    /// Nanoseconds per switch to the process in the next cgroup.
    pub fn hop(&mut self, rounds: u32) -> Result<f64> {
        self.ask(&format!("hop {rounds}")).map(median)
    }

    /// Has every process of the ring make some calls.
    pub fn busy(&mut self, rounds: u32) -> Result<()> {
        self.ask(&format!("busy {rounds}")).map(drop)
    }

    fn ask(&mut self, command: &str) -> Result<Vec<f64>> {
        let to = self.to.as_mut().context("the worker is ended")?;
        writeln!(to, "{command}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the worker broke off at `{command}`: its message is above");
        line.split_whitespace().map(|word| Ok(word.parse()?)).collect()
    }
}

fn median(readings: Vec<f64>) -> f64 {
    Spread::of(readings).median
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.to = None;
        let _ = self.child.wait();
    }
}
