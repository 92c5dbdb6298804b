//! In: settings; out: a running agent with its log and its scrapes. Stopped, at worst killed, with its guard.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::settings::TempDir;
use crate::{Scrape, Settings, http};

/// How long the agent may take from its start until it serves.
const START: Duration = Duration::from_secs(30);
/// How long it may take from SIGTERM until it is gone: far more than it takes, as machines are emulated and shared.
const STOP: Duration = Duration::from_secs(30);
/// How long counts may take to arrive in a scrape, on a busy machine.
const ARRIVAL: Duration = Duration::from_secs(15);

/// The agent's program: `KERNMETER_BIN`, or the workspace's release build.
pub fn program() -> PathBuf {
    std::env::var_os("KERNMETER_BIN").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
                || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")),
                PathBuf::from,
            );
            target.join("release/kernmeter")
        },
        PathBuf::from,
    )
}

/// One conserved counter as it stood when nothing could change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalTotal {
    /// Name of the total.
    pub event: String,
    /// Counted by the hook, before anything was attributed.
    pub kernel: u64,
    /// Sum over all tenants.
    pub attributed: u64,
}

/// How an agent ended.
#[derive(Debug)]
pub struct Stopped {
    /// Its exit status.
    pub status: ExitStatus,
    /// From the signal to the end.
    pub took: Duration,
    /// Its whole log.
    pub log: Vec<String>,
}

impl Stopped {
    /// The totals of the last drain.
    pub fn totals(&self) -> Vec<FinalTotal> {
        let lines =
            self.log.iter().map(|l| logfmt(l)).filter(|l| l.get("msg").is_some_and(|m| m == "final totals"));
        lines
            .filter_map(|l| {
                let number = |key: &str| l.get(key)?.parse().ok();
                Some(FinalTotal {
                    event: l.get("event")?.clone(),
                    kernel: number("kernel")?,
                    attributed: number("attributed")?,
                })
            })
            .collect()
    }

    /// Holds the agent to its conservation law: for every conserved counter, the sum over tenants is the hook's own count.
    ///
    /// # Errors
    /// The counters for which that is not so, or when there are no totals.
    pub fn check(&self) -> Result<Vec<FinalTotal>> {
        ensure!(
            self.status.success(),
            "the agent ended with {}; its log:\n{}",
            self.status,
            self.log.join("\n")
        );
        let totals = self.totals();
        let missing: Vec<_> = CONSERVED.iter().filter(|e| totals.iter().all(|t| t.event != **e)).collect();
        ensure!(missing.is_empty(), "no final totals of {missing:?}; the log:\n{}", self.log.join("\n"));
        let wrong: Vec<_> = totals.iter().filter(|t| t.kernel != t.attributed).collect();
        ensure!(wrong.is_empty(), "sum over tenants is not the kernel's total: {wrong:?}");
        Ok(totals)
    }
}

/// Totals that must be in the final lines.
pub const CONSERVED: [&str; 14] = [
    "syscalls",
    "syscall_exit",
    "syscall_error",
    "switches",
    "cpu_ns",
    "waits",
    "wait_ns",
    "blocked_ns",
    "migrations",
    "forked",
    "threads",
    "exec",
    "exited",
    "moved",
];

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    address: SocketAddr,
    lines: Receiver<String>,
    log: Vec<String>,
    config: PathBuf,
    dir: TempDir,
}

impl Agent {
    /// Starts the agent and waits until it serves, which it does once every probe is attached.
    ///
    /// # Errors
    /// When it ends or is silent before; the log is in the message.
    pub fn start(settings: &Settings) -> Result<Self> {
        Self::start_with(settings, &[])
    }

    /// As [`start`](Self::start), with more arguments.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(settings: &Settings, args: &[&str]) -> Result<Self> {
        Self::start_program(&program(), settings, args)
    }

    /// As [`start_with`](Self::start_with), an agent that was built elsewhere.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_program(program: &Path, settings: &Settings, args: &[&str]) -> Result<Self> {
        let dir = TempDir::new()?;
        let config = dir.write("kernmeter.yml", &settings.yaml())?;
        let mut child = Command::new(program)
            .args(["run", "--web.listen-address", "127.0.0.1:0", "--config.file"])
            .arg(&config)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stderr = child.stderr.take().context("no stderr")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut agent = Self { child, address, lines, log: Vec::new(), config, dir };
        let line = agent.wait_for(START, |l| l.get("msg").is_some_and(|m| m == "listening"))?;
        agent.address = line.get("address").context("no address in the listening line")?.parse()?;
        Ok(agent)
    }

    /// Reads the log until a line fits.
    ///
    /// # Errors
    /// When the agent ends or the time is over before.
    pub fn wait_for(
        &mut self,
        within: Duration,
        fits: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Result<BTreeMap<String, String>> {
        let until = Instant::now() + within;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let fields = logfmt(&line);
                    self.log.push(line);
                    if fits(&fields) {
                        return Ok(fields);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no such line in {within:?}; the log:\n{}", self.log.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("the agent ended with {status}; its log:\n{}", self.log.join("\n"))
                }
            }
        }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// A directory that lives as long as the agent.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// The exposition as text, 0.0.4 or `OpenMetrics` by the Accept header.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub fn text(&self, accept: &str) -> Result<String> {
        let response = http::get(self.address, "/metrics", &[("Accept", accept)])?;
        ensure!(response.status == 200, "/metrics answered {}", response.status);
        Ok(response.text()?.to_owned())
    }

    /// One scrape.
    ///
    /// # Errors
    /// When the answer is not 200 or cannot be parsed.
    pub fn scrape(&self) -> Result<Scrape> {
        Scrape::parse(&self.text("application/openmetrics-text;version=1.0.0")?)
    }

    /// The scrape in which a count has arrived and stays.
    ///
    /// # Errors
    /// When the count passes what is expected, does not reach it in time, or moves on afterwards.
    pub fn settle(&self, expected: u64, count: impl Fn(&Scrape) -> u64) -> Result<Scrape> {
        let until = Instant::now() + ARRIVAL;
        loop {
            let scrape = self.scrape()?;
            let seen = count(&scrape);
            if seen == expected {
                break;
            }
            ensure!(seen < expected, "counted {seen} instead of {expected}");
            ensure!(Instant::now() < until, "counted {seen} instead of {expected} after {ARRIVAL:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let scrape = self.fresh()?;
        ensure!(count(&scrape) == expected, "counted {expected}, then {}", count(&scrape));
        Ok(scrape)
    }

    /// The first scrape in which a growing count is at least this.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn reach(&self, least: u64, count: impl Fn(&Scrape) -> u64) -> Result<Scrape> {
        let until = Instant::now() + ARRIVAL;
        loop {
            let scrape = self.scrape()?;
            let seen = count(&scrape);
            if seen >= least {
                return Ok(scrape);
            }
            ensure!(Instant::now() < until, "counted {seen} instead of {least} or more after {ARRIVAL:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A scrape of a snapshot whose drain began after this call.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn fresh(&self) -> Result<Scrape> {
        const DRAINS: &str = "kernmeter_drain_duration_seconds_count";
        let until = Instant::now() + ARRIVAL;
        let before = self.scrape()?.count(DRAINS, &[]);
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let scrape = self.scrape()?;
            // One drain may have been under way when it was asked for.
            if scrape.count(DRAINS, &[]) >= before + 2 {
                return Ok(scrape);
            }
            ensure!(Instant::now() < until, "no drain in {ARRIVAL:?}");
        }
    }

    /// Writes other settings and has them read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reload(&self, yaml: &str) -> Result<()> {
        std::fs::write(&self.config, yaml)?;
        self.signal(libc::SIGHUP);
        Ok(())
    }

    /// Replaces the configuration the way a mounted `ConfigMap` changes: by renaming a link. Sends no signal.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn swap_config(&self, yaml: &str) -> Result<()> {
        let (next, link) = (self.config.with_extension("next"), self.config.with_extension("link"));
        std::fs::write(&next, yaml)?;
        std::os::unix::fs::symlink(&next, &link)?;
        std::fs::rename(&link, &self.config)?;
        Ok(())
    }

    /// Removes the configuration file.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn remove_config(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.config)?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped while this guard lives, so the id is its own.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// Asks it to stop and waits.
    ///
    /// # Errors
    /// When it does not end within 30 s.
    pub fn stop(mut self) -> Result<Stopped> {
        self.stop_by(libc::SIGTERM)
    }

    /// Sends the signal and waits for the end.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn stop_by(&mut self, signal: i32) -> Result<Stopped> {
        let begin = Instant::now();
        self.signal(signal);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(begin.elapsed() < STOP, "the agent does not stop");
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = begin.elapsed();
        self.log.extend(self.lines.iter());
        Ok(Stopped { status, took, log: std::mem::take(&mut self.log) })
    }

    /// Stops it and checks that every conserved counter's sum over tenants is the kernel's total.
    ///
    /// # Errors
    /// When a counter was not conserved or the stop was not clean.
    pub fn stop_conserved(self) -> Result<Vec<FinalTotal>> {
        self.stop()?.check()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The fields of a logfmt line.
pub fn logfmt(line: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = line;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_start().rsplit(' ').next().unwrap_or_default().to_owned();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut value = String::new();
            let mut escaped = false;
            let mut end = quoted.len();
            for (i, c) in quoted.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(if c == 'n' { '\n' } else { c });
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        end = i + 1;
                        break;
                    }
                    c => value.push(c),
                }
            }
            fields.insert(key, value);
            rest = &quoted[end..];
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            fields.insert(key, after[..end].to_owned());
            rest = &after[end..];
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::logfmt;

    #[test]
    fn quoted_and_plain_fields() {
        let fields = logfmt("ts=1 level=info msg=\"final \\\"totals\\\"\" event=exec kernel=12");
        assert_eq!(fields["msg"], "final \"totals\"");
        assert_eq!(fields["kernel"], "12");
        assert_eq!(fields["ts"], "1");
    }
}
