//! In: a cgroup and a command of the workload program; out: a process that was in that cgroup from its first
//! instruction. Talks to it by lines: `go` starts it, it answers with its results and `done`, another line ends it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::Cgroup;

/// How long a workload may be silent.
const DEADLINE: Duration = Duration::from_mins(2);
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Says where the workload program is. Called once, before any test.
pub fn set_program(path: &Path) {
    let _ = PROGRAM.set(path.to_owned());
}

/// Where the workload program is.
///
/// # Errors
/// When nobody said so.
pub fn program() -> Result<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path).context("workload::set_program was not called")
}

/// `struct clone_args` of the kernel, as of version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks, the child in a cgroup from its first instruction: 0 in the child, its process id here, negative on failure.
///
/// # Safety
/// The child has its own copy of all memory, but of the threads only the calling one: it must make only async-signal-safe
/// calls.
unsafe fn fork_into(cgroup: &File) -> libc::c_long {
    let clone = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM nothing is shared; the caller vouches for what the child does.
    unsafe { libc::syscall(libc::SYS_clone3, &raw const clone, size_of::<CloneArgs>()) }
}

/// A workload's descriptors 0 and 1, ours first.
///
/// # Errors
/// When there are no descriptors left.
pub fn control() -> Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(DEADLINE))?;
    Ok((ours, theirs))
}

/// What the kernel accounted to a process that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// User and system time, seconds.
    pub cpu: f64,
    /// Page faults, of user and kernel mode, that the kernel resolved.
    pub faults: u64,
}

/// A running workload; killed and reaped when dropped.
#[derive(Debug)]
pub struct Workload {
    pid: i32,
    control: UnixStream,
    lines: BufReader<UnixStream>,
    reaped: bool,
}

impl Workload {
    /// Starts the program in a cgroup; it waits for [`go`](Self::go).
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn spawn(cgroup: &Cgroup, args: &[&str]) -> Result<Self> {
        let program = CString::new(program()?.as_os_str().as_encoded_bytes())?;
        let args: Vec<CString> = args.iter().map(|a| CString::new(*a)).collect::<Result<_, _>>()?;
        let pointers: Vec<*const libc::c_char> = std::iter::once(program.as_ptr())
            .chain(args.iter().map(|a| a.as_ptr()))
            .chain([std::ptr::null()])
            .collect();
        let envp = [std::ptr::null()];
        let (ours, theirs) = control()?;
        let directory = cgroup.open()?;
        // SAFETY: the child makes only plain system calls.
        let pid = unsafe { fork_into(&directory) };
        if pid == 0 {
            // SAFETY: plain system calls on descriptors and null-terminated arrays that were made before the clone.
            unsafe {
                libc::dup2(theirs.as_raw_fd(), 0);
                libc::dup2(theirs.as_raw_fd(), 1);
                libc::execve(program.as_ptr(), pointers.as_ptr(), envp.as_ptr());
                libc::_exit(127);
            }
        }
        if pid < 0 {
            return Err(io::Error::last_os_error()).context("clone3 into the cgroup");
        }
        Self::adopt(pid as i32, ours)
    }

    /// Runs a function in a new process in a cgroup and waits for its end: for workloads that only one test needs.
    ///
    /// # Errors
    /// The process cannot be made.
    ///
    /// # Safety
    /// `work` runs in a copy of this process that has only the calling thread: it must do nothing but plain system calls and
    /// computation on memory of its own (no allocation, no locks, no output).
    pub unsafe fn call(cgroup: &Cgroup, work: fn()) -> Result<Ended> {
        let (ours, _theirs) = control()?;
        let directory = cgroup.open()?;
        // SAFETY: the caller vouches for `work`; `_exit` is a plain system call.
        let pid = unsafe { fork_into(&directory) };
        if pid == 0 {
            work();
            // SAFETY: ends this process, and runs nothing that was meant to run at the end of its parent.
            unsafe { libc::_exit(0) };
        }
        if pid < 0 {
            return Err(io::Error::last_os_error()).context("clone3 into the cgroup");
        }
        Self::adopt(pid as i32, ours)?.finish()
    }

    /// Takes over a child that somebody else made: its process id and our end of its [`control`].
    ///
    /// # Errors
    /// When the descriptor cannot be doubled.
    pub fn adopt(pid: i32, control: UnixStream) -> Result<Self> {
        let lines = BufReader::new(control.try_clone()?);
        Ok(Self { pid, control, lines, reaped: false })
    }

    /// Starts the program, lets it do its work and reads the results; it then waits for [`finish`](Self::finish).
    ///
    /// # Errors
    /// When it fails or is silent for too long.
    pub fn run(cgroup: &Cgroup, args: &[&str]) -> Result<(Self, Vec<String>)> {
        let mut workload = Self::spawn(cgroup, args)?;
        workload.go()?;
        let lines = workload.results()?;
        Ok((workload, lines))
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it begin, or go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn go(&mut self) -> Result<()> {
        self.control.write_all(b"g").context("tell the workload to go on")
    }

    /// Reads its lines up to `done`.
    ///
    /// # Errors
    /// When it ends or is silent before.
    pub fn results(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let n = self.lines.read_line(&mut line).context("the workload is silent")?;
            ensure!(n > 0, "the workload ended before it was done; it said {lines:?}");
            match line.trim_end() {
                "done" => return Ok(lines),
                line => lines.push(line.to_owned()),
            }
        }
    }

    /// Lets it end and waits for it.
    ///
    /// # Errors
    /// When it ended with an error.
    pub fn finish(mut self) -> Result<Ended> {
        let _ = self.control.shutdown(std::net::Shutdown::Write);
        let ended = self.wait()?;
        ensure!(ended.code == 0, "the workload ended with {}", ended.code);
        Ok(ended)
    }

    /// Kills it and waits for it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<Ended> {
        // SAFETY: the child is not reaped yet, so the id is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.wait()
    }

    /// Kills it, and leaves it a zombie.
    ///
    /// # Errors
    /// When it does not become one.
    pub fn kill_unreaped(&self) -> Result<()> {
        // SAFETY: the child is not reaped yet, so the id is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        for _ in 0..1000 {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
            if stat.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('Z')) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the workload does not die")
    }

    fn wait(&mut self) -> Result<Ended> {
        let mut status = 0;
        // SAFETY: all-zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals.
        let r = unsafe { libc::wait4(self.pid, &raw mut status, 0, &raw mut usage) };
        if r != self.pid {
            bail!("wait for the workload: {}", io::Error::last_os_error());
        }
        self.reaped = true;
        let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        let code =
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
        let faults = (usage.ru_minflt + usage.ru_majflt) as u64;
        Ok(Ended { code, cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime), faults })
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: the child is not reaped yet, so the id is its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = self.wait();
        }
    }
}
