//! Processes, threads and programs in exact numbers; cgroups that live for moments.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kernmeter_tests::harmless;

use crate::{Args, calls, say, waits};

/// `--forks N --threads N --execs N`: so many children that end at once, threads that end at once, and children that
/// execute this program's `exit`.
pub fn processes(args: &Args) -> Result<()> {
    for _ in 0..args.number("forks", 0)? {
        reap(child(|| ())?)?;
    }
    for _ in 0..args.number("threads", 0)? {
        std::thread::spawn(|| ()).join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    }
    for _ in 0..args.number("execs", 0)? {
        reap(child(exec_exit)?)?;
    }
    Ok(())
}

/// Makes and ends processes and threads until the test says to stop, at which it has none left.
pub fn storm(_: &Args) -> Result<()> {
    let asked_to_stop = || {
        let mut byte = 0u8;
        // SAFETY: one byte is read into one live byte.
        unsafe { libc::recv(0, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) == 1 }
    };
    // Before everything else on the host, but not before what has to share its CPU with it.
    // SAFETY: the call takes numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    say("done");
    while !asked_to_stop() {
        reap(child(|| ())?)?;
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| ())).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        }
    }
    Ok(())
}

/// Forks a child that does something and never returns from it.
pub fn child(what: impl FnOnce()) -> Result<libc::pid_t> {
    // SAFETY: this process has one thread, so the child may do anything.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        what();
        // SAFETY: ends the child, and all its threads, without running what belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    ensure!(pid > 0, "fork: {}", io::Error::last_os_error());
    Ok(pid)
}

/// Longer than any test waits for one call.
const LONG: u64 = 100_000_000_000;
const MOMENT: u64 = 5_000_000;

/// `--times N`: so many of each unusual end of a system call. A thread that is not the leader executes a program; a
/// process exits while its other thread sleeps; one is killed in its sleep; one is stopped in it and goes on.
pub fn odd_ends(args: &Args) -> Result<()> {
    for _ in 0..args.number("times", 1)? {
        reap(child(|| {
            let thread = std::thread::spawn(exec_exit);
            let _ = thread.join();
        })?)?;
        reap(child(|| {
            std::thread::spawn(|| waits::nanosleep(LONG));
            waits::nanosleep(MOMENT);
        })?)?;
        let sleeper = child(|| waits::nanosleep(LONG))?;
        waits::nanosleep(MOMENT);
        // SAFETY: the child is not reaped yet.
        unsafe { libc::kill(sleeper, libc::SIGKILL) };
        // SAFETY: the child is ours; that it was killed is no news.
        unsafe { libc::waitpid(sleeper, std::ptr::null_mut(), 0) };
        let stopped = child(|| waits::nanosleep(4 * MOMENT))?;
        waits::nanosleep(MOMENT);
        for signal in [libc::SIGSTOP, libc::SIGCONT] {
            // SAFETY: the child is not reaped yet.
            unsafe { libc::kill(stopped, signal) };
            waits::nanosleep(MOMENT / 5);
        }
        reap(stopped)?;
    }
    Ok(())
}

/// Becomes this program's `exit`.
fn exec_exit() {
    let program_args = [c"workload".as_ptr(), c"exit".as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the arrays are null-terminated and live.
    unsafe {
        libc::execve(c"/proc/self/exe".as_ptr(), program_args.as_ptr(), envp.as_ptr());
        libc::_exit(1);
    }
}

pub fn reap(pid: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: the pointer is to a live local.
    let r = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ensure!(pid > 0 && r == pid && status == 0, "child {pid}: {r} {status} {}", io::Error::last_os_error());
    Ok(())
}

/// `--root DIR --count N --calls N [--names N] [--pause-us N] [--prefix NAME] [--suffix NAME] [--keep]`: N cgroups one after the other,
/// each with one process that makes so many `getppid`, then one call each of so many names, and ends, whereupon the cgroup is
/// removed (unless it is kept); and a pause. Says how long the longest of them lived.
pub fn swarm(args: &Args) -> Result<()> {
    let root = Path::new(args.text("root").context("--root")?);
    let prefix = args.text("prefix").unwrap_or("swarm");
    let suffix = args.text("suffix").unwrap_or_default();
    let (count, times) = (args.number("count", 1)?, args.number("calls", 1)?);
    let (names, pause) = (args.number("names", 0)?, args.number("pause-us", 0)?);
    let mut longest = Duration::ZERO;
    for n in 0..count {
        let dir = root.join(format!("{prefix}-{n}{suffix}"));
        let begin = Instant::now();
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let outcome = File::open(&dir).map_err(Into::into).and_then(|d| one(&d, times, names));
        while !args.flag("keep")
            && let Err(e) = fs::remove_dir(&dir)
        {
            if e.raw_os_error() != Some(libc::EBUSY) || begin.elapsed() > Duration::from_secs(5) {
                bail!("remove {}: {e}", dir.display());
            }
        }
        outcome?;
        longest = longest.max(begin.elapsed());
        if pause > 0 {
            waits::nanosleep(pause * 1000);
        }
    }
    say(&format!("longest_us={}", longest.as_micros()));
    Ok(())
}

/// One process in the cgroup: calls of one name so many times, then one each of so many names.
fn one(cgroup: &File, times: u64, names: u64) -> Result<()> {
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup
    let mut clone = [0u64; 11];
    clone[0] = 0x2_0000_0000; // CLONE_INTO_CGROUP
    clone[4] = libc::SIGCHLD as u64;
    clone[10] = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the child has its own copy of all memory, and only calls getppid and _exit.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, clone.as_ptr(), size_of_val(&clone)) };
    if pid == 0 {
        calls::getppid(times);
        harmless::CALLS.iter().take(names as usize).for_each(|nr| harmless::call(*nr));
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    reap(pid as libc::pid_t)
}
