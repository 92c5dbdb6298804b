//! Signals: handlers that return, and a stop on the way to which the task is preempted.

use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, ensure};

use crate::{Args, say, waits};

extern "C" fn ignore(_: libc::c_int) {}

/// `--times N`: so many `rt_sigsuspend` that a handler interrupts. Each handler's return restores a register that holds
/// -EINTR.
pub fn returns(args: &Args) -> Result<()> {
    // SAFETY: the handler does nothing; the sets are live, and filled before they are used.
    unsafe {
        let (mut blocked, mut none): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigemptyset(&raw mut blocked);
        libc::sigaddset(&raw mut blocked, libc::SIGUSR1);
        libc::signal(libc::SIGUSR1, ignore as *const () as libc::sighandler_t);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
        for _ in 0..args.number("times", 1)? {
            libc::raise(libc::SIGUSR1);
            libc::sigsuspend(&raw const none);
        }
    }
    Ok(())
}

fn check(result: i32, what: &str) -> Result<i32> {
    ensure!(result >= 0, "{what}: {}", io::Error::last_os_error());
    Ok(result)
}

/// `--ms N`: a child stops itself. The news of that wakes this process, which has real-time priority on the same CPU: where the
/// kernel can be preempted, the child is, before it sleeps. It is then held back for so long, and only then continued. Says
/// `preempted` if it was.
pub fn stopped(args: &Args) -> Result<()> {
    waits::pin(0)?;
    let time = Duration::from_millis(args.number("ms", 100)?);
    // SAFETY: this process has one thread, and the child only stops and ends.
    let child = check(unsafe { libc::fork() }, "fork")?;
    if child == 0 {
        // Time for the parent to become what preempts, and to wait.
        waits::nanosleep(100_000_000);
        // SAFETY: a plain stop, then the end.
        unsafe {
            libc::raise(libc::SIGSTOP);
            libc::_exit(0);
        }
    }
    waits::real_time(libc::SCHED_FIFO)?;
    let mut status = 0;
    // SAFETY: the child is not reaped yet; the pointer is to a live local.
    check(unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) }, "wait")?;
    ensure!(libc::WIFSTOPPED(status), "the child did not stop: {status}");
    let text = fs::read_to_string(format!("/proc/{child}/status"))?;
    let preempted = text.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    if preempted.context("no count of switches")?.trim() != "0" {
        say("preempted");
    }
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
    // SAFETY: the child is not reaped yet; the pointer is to a live local.
    unsafe {
        check(libc::kill(child, libc::SIGCONT), "continue")?;
        check(libc::waitpid(child, &raw mut status, 0), "wait")?;
    }
    Ok(())
}
