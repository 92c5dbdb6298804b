//! In: the built agent and this host; out: what a console block of the documents shows, from a real run. Compares nothing.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::scene::Scene;
use crate::workspace;

/// How long the agent may take for its table, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// Totals that the documents show, of all that are logged.
const TOTALS: [&str; 4] = ["syscalls", "syscall_error", "cpu_ns", "blocked_ns"];

/// How a block is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// What the host has.
    Doctor,
    /// The first table, beside the three tenants of `cargo xtask scene`.
    FirstMinute,
    /// What the same run logs at its end.
    FinalTotals,
}

const NAMES: [(&str, Recipe); 3] = [
    ("kernmeter doctor", Recipe::Doctor),
    ("kernmeter run --show, beside `cargo xtask scene`", Recipe::FirstMinute),
    ("the same run, ended by SIGTERM: some of its final totals", Recipe::FinalTotals),
];

impl FromStr for Recipe {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = || NAMES.map(|(name, _)| format!("`{name}`")).join(", ");
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, recipe)| *recipe);
        found.with_context(|| format!("there is no recipe `{name}`; there are {}", known()))
    }
}

/// The runs behind the blocks; each is made at most once.
pub struct Runs<'a> {
    binary: &'a Path,
    /// Where the agent serves meanwhile; none: at its own default.
    address: Option<&'static str>,
    first_minute: Option<Ran>,
}

/// What an agent printed and logged.
struct Ran {
    table: String,
    log: String,
}

impl<'a> Runs<'a> {
    /// Runs whose output can stand in a document: with default settings only.
    pub const fn to_show(binary: &'a Path) -> Self {
        Self { binary, address: None, first_minute: None }
    }

    /// Runs whose output is compared: at a port that no other agent has.
    pub const fn to_compare(binary: &'a Path) -> Self {
        Self { binary, address: Some("127.0.0.1:0"), first_minute: None }
    }

    /// What the block holds: the command, and what it printed.
    pub fn block(&mut self, recipe: Recipe) -> Result<String> {
        match recipe {
            Recipe::Doctor => {
                let report = workspace::output(workspace::command(self.binary).arg("doctor"))?;
                Ok(format!("# kernmeter doctor\n{report}"))
            }
            Recipe::FirstMinute => Ok(format!("# kernmeter run --show\n{}", self.first_minute()?.table)),
            Recipe::FinalTotals => {
                let log = &self.first_minute()?.log;
                let wanted = |line: &&str| {
                    line.contains("msg=\"final totals\"")
                        && TOTALS.iter().any(|total| line.contains(&format!(" event={total} ")))
                };
                Ok(log.lines().filter(wanted).fold(String::new(), |text, line| text + line + "\n"))
            }
        }
    }

    fn first_minute(&mut self) -> Result<&Ran> {
        if self.first_minute.is_none() {
            let _scene = Scene::start()?;
            self.first_minute = Some(first_minute(self.binary, self.address)?);
        }
        self.first_minute.as_ref().context("the run has no output")
    }
}

/// `timeout` with the agent below it, which ends even if this process is killed. Ended when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // It passes the signal on, and ends an agent that does not listen.
            let _ = terminate(&self.0);
            let _ = self.0.wait();
        }
    }
}

fn first_minute(binary: &Path, address: Option<&str>) -> Result<Ran> {
    let mut command = workspace::command("timeout");
    command.args(["--foreground", "--kill-after=5s", "2m"]).arg(binary).args(["run", "--show"]);
    if let Some(address) = address {
        command.args(["--web.listen-address", address]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut agent = Agent(child.context("cannot start the agent")?);
    let said = agent.0.stdout.take().context("the agent has no output")?;
    let mut logged = agent.0.stderr.take().context("the agent has no log")?;
    let log = thread::spawn(move || {
        let mut log = String::new();
        // What was read before a failure is still worth showing.
        let _ = logged.read_to_string(&mut log);
        log
    });
    let (send, lines) = channel();
    thread::spawn(move || {
        BufReader::new(said).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    let mut table = String::new();
    let mut asked = false;
    // Its output ends with it.
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        if line.starts_with("TENANT") {
            // The rest of the table was printed with it.
            terminate(&agent.0)?;
            asked = true;
        }
        table.push_str(&line);
        table.push('\n');
    }
    if !asked {
        drop(agent);
        let log = log.join().unwrap_or_default();
        bail!("the agent printed no table; its log ends with: {}", log.lines().last().unwrap_or("nothing"));
    }
    let status = agent.0.wait()?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(Ran { table, log: log.join().unwrap_or_default() })
}

fn terminate(child: &Child) -> Result<()> {
    let signal = format!("kill -TERM {}", child.id());
    workspace::run(Command::new("sh").args(["-c", &signal]))
}
