//! In: commands on standard input; out: nanoseconds per event on standard output. The measured loops themselves; they
//! know nothing of the agent. Reads and writes here are unbuffered: one call, one system call.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// Short, so that a round usually fits between two interruptions; the median over rounds passes over the others.
const CALLS: u32 = 2_000;
const ROUND_TRIPS: u32 = 100;
/// Calls of `sched_yield` in a round, as many by each of two processes.
const YIELDS: u32 = 200;
/// Yields between two processes at the same priority of this policy always switch; the default policy may go on.
const YIELDING: libc::c_int = libc::SCHED_FIFO;
/// The token of a round in which each relay only reads and writes.
const PLAIN: u8 = b'p';
/// The token of a round in which each relay also makes [`BUSY_CALLS`] calls and as many failing ones.
const BUSY: u8 = b'b';
/// More calls of a relay in a busy round.
const BUSY_CALLS: u32 = 10;

/// Serves commands until standard input ends: `call ROUNDS`, `yield ROUNDS`, `pipe ROUNDS`, `ring SIZE DIR`, `hop ROUNDS`,
/// `busy ROUNDS`. One line of answer each: the readings in nanoseconds.
pub fn serve() -> Result<()> {
    let mut peer = Ring::new(1, None)?;
    let mut ring = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.splitn(3, ' ');
        let command = words.next().unwrap_or_default();
        let number: u32 = words.next().unwrap_or_default().parse()?;
        let readings = match (command, &mut ring) {
            ("call", _) => (0..number).map(|_| Ok(calls())).collect::<Result<Vec<_>>>()?,
            ("yield", _) => yields(number)?,
            // Both directions of a round trip are one switch each.
            ("pipe", _) => {
                (0..number).map(|_| Ok(peer.round(PLAIN, ROUND_TRIPS)? / 2.0)).collect::<Result<Vec<_>>>()?
            }
            ("ring", _) => {
                ring = Some(Ring::new(number, words.next().map(PathBuf::from).as_deref())?);
                vec![]
            }
            ("hop", Some(ring)) => {
                let hops = (ring.relays.len() + 1) as f64;
                (0..number).map(|_| Ok(ring.round(PLAIN, 1)? / hops)).collect::<Result<Vec<_>>>()?
            }
            ("busy", Some(ring)) => (0..number).map(|_| ring.round(BUSY, 1)).collect::<Result<Vec<_>>>()?,
            _ => bail!("unknown command {line:?}"),
        };
        let text: Vec<String> = readings.iter().map(|ns| format!("{ns:.2}")).collect();
        println!("{}", text.join(" "));
    }
    Ok(())
}

/// Nanoseconds per getppid.
fn calls() -> f64 {
    let begin = Instant::now();
    for _ in 0..CALLS {
        black_box(parent_id());
    }
    begin.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

/// Nanoseconds per switch to a process that is ready to run anyway: nobody is woken.
fn yields(rounds: u32) -> Result<Vec<f64>> {
    let mut other = Command::new(std::env::current_exe()?)
        .arg("yielder")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a yielder")?;
    let mut to = other.stdin.take().context("no stdin")?;
    let mut ready = [0];
    other.stdout.take().context("no stdout")?.read_exact(&mut ready).context("the yielder did not start")?;
    policy(YIELDING, 1)?;
    let mut round = || {
        // It becomes ready to run here, and runs from our first yield on.
        to.write_all(&[PLAIN])?;
        let before = switches()?;
        let begin = Instant::now();
        for _ in 0..YIELDS {
            std::thread::yield_now();
        }
        let elapsed = begin.elapsed().as_nanos() as f64;
        let made = switches()? - before;
        // The other one leaves last in most rounds: it is still to wait for the next byte.
        ensure!(made + 1 >= u64::from(YIELDS), "{YIELDS} yields made only {made} switches");
        Ok(elapsed / f64::from(2 * YIELDS))
    };
    let readings = (0..rounds).map(|_| round()).collect::<Result<Vec<_>>>();
    policy(libc::SCHED_OTHER, 0)?;
    drop(to);
    other.wait().context("wait for the yielder")?;
    readings
}

/// For each byte, yields as often as [`yields`] does.
pub fn yielder() -> Result<()> {
    policy(YIELDING, 1)?;
    // No ordinary process runs on this CPU now until we wait for the first byte.
    let mut stdout = std::io::stdout();
    stdout.write_all(&[PLAIN])?;
    stdout.flush()?;
    let mut from = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        for _ in 0..YIELDS {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Sets the scheduling policy of this process.
fn policy(policy: libc::c_int, priority: libc::c_int) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters are read during the call only.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context("set the scheduling policy") }
}

/// Switches away from this process so far, although it could have run on.
fn switches() -> Result<u64> {
    // SAFETY: all zero is a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `rusage`, which there is.
    let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    ensure!(done == 0, "getrusage: {}", std::io::Error::last_os_error());
    Ok(usage.ru_nivcsw as u64)
}

/// Processes that pass a byte on from pipe to pipe, from us and back to us.
struct Ring {
    relays: Vec<Child>,
    first: Option<PipeWriter>,
    last: PipeReader,
}

impl Ring {
    /// Starts the relays, relay `n` in the cgroup `dir/n`.
    fn new(size: u32, dir: Option<&Path>) -> Result<Self> {
        let program = std::env::current_exe()?;
        let (mut last, first) = std::io::pipe()?;
        let mut relays = Vec::new();
        for n in 0..size {
            let (read, write) = std::io::pipe()?;
            let relay = Command::new(&program)
                .arg("relay")
                .stdin(last)
                .stdout(write)
                .stderr(Stdio::null())
                .spawn()
                .context("start a relay")?;
            last = read;
            if let Some(dir) = dir {
                let procs = dir.join(n.to_string()).join("cgroup.procs");
                fs::write(&procs, relay.id().to_string())
                    .with_context(|| format!("write {}", procs.display()))?;
            }
            relays.push(relay);
        }
        let mut ring = Self { relays, first: Some(first), last };
        // Once round: all have started.
        ring.round(PLAIN, 1)?;
        Ok(ring)
    }

    /// Nanoseconds of one time round, the mean of `times`.
    fn round(&mut self, token: u8, times: u32) -> Result<f64> {
        let first = self.first.as_mut().context("the ring is closed")?;
        let mut byte = [token];
        let begin = Instant::now();
        for _ in 0..times {
            first.write_all(&byte)?;
            self.last.read_exact(&mut byte).context("a relay ended")?;
        }
        Ok(begin.elapsed().as_nanos() as f64 / f64::from(times))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The end of input goes round like a byte.
        self.first = None;
        for relay in &mut self.relays {
            let _ = relay.wait();
        }
    }
}

/// Passes bytes on until input ends.
pub fn relay() -> Result<()> {
    // The standard streams of the library are buffered.
    let mut from = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut to = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        if byte[0] == BUSY {
            for _ in 0..BUSY_CALLS {
                black_box(parent_id());
                black_box(File::open("").is_err());
            }
        }
        to.write_all(&byte)?;
    }
    Ok(())
}
