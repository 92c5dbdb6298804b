//! In: a command that becomes the agent, whatever it passes through first; out: the serving agent, its notifications to the
//! service manager and its end. Knows neither the restrictions nor who sets them.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernmeter_tests::agent::{logfmt, program};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Scrape, Settings, Skip, http};

/// How long anything may take before the trial fails. Only a broken agent takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Drains often whatever the load, so that a trial need not wait.
pub fn configuration() -> String {
    Settings {
        intervals_ms: [200; 3],
        drain: String::new(),
        rules: kernmeter_tests::settings::rule("/init.scope", "init"),
        sections: String::new(),
    }
    .yaml()
}

/// A copy of the agent that any user may start, or a [`Skip`] when none is built.
///
/// # Errors
/// As said, or when it cannot be copied.
pub fn copy_of_the_agent(into: &Path) -> Result<()> {
    if !program().exists() {
        return Err(Skip(format!("no agent at {}", program().display())).into());
    }
    fs::copy(program(), into).with_context(|| format!("copy the agent to {}", into.display()))?;
    fs::set_permissions(into, Permissions::from_mode(0o755))?;
    Ok(())
}

/// Where the agent sends its notifications.
pub struct Notifications {
    socket: UnixDatagram,
    /// Everything received, one assignment each.
    pub seen: Vec<String>,
}

impl Notifications {
    /// Listens in a folder.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(dir: &TempDir) -> Result<Notifications> {
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).context("bind the notification socket")?;
        fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Notifications { socket, seen: Vec::new() })
    }

    /// Waits for an assignment.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_for(&mut self, assignment: &str) -> Result<()> {
        let begun = Instant::now();
        while !self.seen.iter().any(|seen| seen == assignment) {
            let mut buffer = [0; 4096];
            match self.socket.recv(&mut buffer) {
                Ok(n) => {
                    self.seen.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("read the notification socket"),
            }
            if begun.elapsed() > PATIENCE {
                bail!("no `{assignment}` in {PATIENCE:?}; what came: {:?}", self.seen);
            }
        }
        Ok(())
    }
}

/// An agent started by somebody else's command.
pub struct Confined {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// Where it serves.
    pub address: SocketAddr,
}

impl Confined {
    /// Starts it and waits until it listens. The command's process must become the agent, or pass SIGTERM on to it.
    ///
    /// # Errors
    /// When it ends before; its log is in the message.
    pub fn start(command: &mut Command) -> Result<Confined> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{}`", command.get_program().display()))?;
        let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut log = String::new();
        loop {
            let from = log.len();
            if stderr.read_line(&mut log).context("read the agent's log")? == 0 {
                bail!("the agent ended ({}); its log:\n{log}", child.wait()?);
            }
            let line = logfmt(log[from..].trim_end());
            if line.get("msg").is_some_and(|msg| msg == "listening") {
                let address = line.get("address").context("no address in the listening line")?.parse()?;
                return Ok(Confined { child, stderr, address });
            }
        }
    }

    /// The agent's process, where the command became it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails unless it is ready, every probe is attached, calls are counted and its account is even.
    ///
    /// # Errors
    /// What is amiss.
    pub fn meters(&self) -> Result<Scrape> {
        let ready = http::get(self.address, "/readyz", &[])?;
        if ready.status != 200 {
            bail!("/readyz answers {}: {}", ready.status, ready.text()?);
        }
        let begun = Instant::now();
        loop {
            let scrape = self.scrape()?;
            let probes: Vec<_> = scrape.find("kernmeter_probe_attached", &[]).collect();
            if let Some(off) = probes.iter().find(|probe| probe.value() < 1.0) {
                bail!("a probe is not attached: {off:?}");
            }
            if probes.is_empty() {
                bail!("no probes in the scrape");
            }
            let error = scrape.sum("kernmeter_accounting_error_ratio", &[]);
            if error > 0.0 {
                bail!("the accounting error is {error}");
            }
            if scrape.sum("kernmeter_syscalls_total", &[]) > 0.0 {
                return Ok(scrape);
            }
            if begun.elapsed() > PATIENCE {
                bail!("no system call counted in {PATIENCE:?}");
            }
        }
    }

    fn scrape(&self) -> Result<Scrape> {
        Scrape::parse(http::get(self.address, "/metrics", &[])?.text()?)
    }

    /// Waits until it has read its configuration again.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_reload(&self) -> Result<()> {
        let begun = Instant::now();
        while self.scrape()?.count("kernmeter_config_reloads_total", &[("result", "success")]) == 0 {
            if begun.elapsed() > PATIENCE {
                bail!("no reload in {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When there is no such process any more.
    pub fn signal(&self, signal: &str) -> Result<()> {
        super::tool::run(Command::new("kill").args(["-s", signal, &self.child.id().to_string()]))?;
        Ok(())
    }

    /// Ends it with SIGTERM; how it ended, and the rest of its log.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn stop(self) -> Result<(ExitStatus, String)> {
        self.signal("TERM")?;
        self.ended()
    }

    /// Waits until it has ended by itself, or by somebody's signal; how it ended, and the rest of its log.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(mut self) -> Result<(ExitStatus, String)> {
        let mut log = String::new();
        while self.stderr.read_line(&mut log)? > 0 {}
        Ok((self.child.wait()?, log))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
