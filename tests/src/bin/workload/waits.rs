//! Time: sleeping, waiting, blocking and spinning for known durations.

use std::io;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{Args, say, wait_for_go};

/// The `nanosleep` system call itself (libc's function is `clock_nanosleep`).
pub fn nanosleep(ns: u64) {
    let time = libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    // SAFETY: the pointer is to a live local; the second may be null.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, std::ptr::null::<libc::timespec>()) };
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: u64) -> Result<()> {
    // SAFETY: all-zero is the empty set; CPU_SET writes within it, for CPUs below 1024.
    let r = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(r == 0, "pin to CPU {cpu}: {}", io::Error::last_os_error());
    Ok(())
}

/// Gives the calling thread a real-time policy of the lowest priority.
pub fn real_time(policy: libc::c_int) -> Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a live local.
    let r = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    ensure!(r == 0, "real-time priority: {}", io::Error::last_os_error());
    Ok(())
}

fn say_ns(took: Duration) {
    say(&format!("ns={}", took.as_nanos()));
}

/// `--ms N --times N [--fifo]`: says how long each `nanosleep` took, seen from outside.
pub fn sleep(args: &Args) -> Result<()> {
    if args.flag("fifo") {
        real_time(libc::SCHED_FIFO)?;
    }
    let ns = args.number("ms", 1)? * 1_000_000;
    let mut took = Vec::new();
    for _ in 0..args.number("times", 1)? {
        let begin = Instant::now();
        nanosleep(ns);
        took.push(begin.elapsed());
    }
    took.into_iter().for_each(say_ns);
    Ok(())
}

/// `--ms N`: waits for a futex nobody wakes.
pub fn futex(args: &Args) -> Result<()> {
    let word = 0u32;
    let ms = args.number("ms", 1)?;
    let time = libc::timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000 * 1_000_000) as i64 };
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let begin = Instant::now();
    // SAFETY: both pointers are to live locals.
    unsafe { libc::syscall(libc::SYS_futex, &raw const word, op, 0, &raw const time) };
    say_ns(begin.elapsed());
    Ok(())
}

/// `--ms N`: reads from a pipe that a child writes to after that time.
pub fn pipe_read(args: &Args) -> Result<()> {
    let ms = args.number("ms", 1)?;
    let mut fds = [0; 2];
    // SAFETY: the array has room for both descriptors.
    ensure!(unsafe { libc::pipe(fds.as_mut_ptr()) } == 0, "pipe: {}", io::Error::last_os_error());
    // SAFETY: the child makes plain system calls and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        nanosleep(ms * 1_000_000);
        // SAFETY: one byte of a live constant is written to our own pipe.
        unsafe {
            libc::write(fds[1], c"x".as_ptr().cast(), 1);
            libc::_exit(0);
        }
    }
    let mut byte = 0u8;
    let begin = Instant::now();
    // SAFETY: one byte is read into one live byte.
    let n = unsafe { libc::read(fds[0], (&raw mut byte).cast(), 1) };
    let took = begin.elapsed();
    ensure!(n == 1, "read: {}", io::Error::last_os_error());
    // SAFETY: the child is ours; no status is wanted.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    say_ns(took);
    Ok(())
}

/// `--ms N --threads N [--cpu N] [--real-time]`: threads that spin until so much wall time has passed, then stay,
/// blocked, so that their accounts can be read. Real-time threads take turns among themselves, and leave little to the
/// rest of the host; once they are ready they wait to be let go on.
pub fn spin(args: &Args) -> Result<()> {
    let threads = args.number("threads", 1)?;
    let time = Duration::from_millis(args.number("ms", 1)?);
    if args.text("cpu").is_some() {
        pin(args.number("cpu", 0)?)?;
    }
    if args.flag("real-time") {
        real_time(libc::SCHED_RR)?;
        say("done");
        wait_for_go();
    }
    let barrier = Arc::new(Barrier::new(threads as usize));
    let work = move |barrier: &Barrier| {
        barrier.wait();
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::hint::spin_loop();
        }
        barrier.wait();
    };
    for _ in 1..threads {
        // They inherit where and how this one runs.
        let barrier = Arc::clone(&barrier);
        std::thread::spawn(move || {
            work(&barrier);
            loop {
                std::thread::park();
            }
        });
    }
    work(&barrier);
    Ok(())
}

/// `--ms N --cpu N`: with real-time priority, spins for so long, then gives its CPU away as often as it can, to others of this
/// kind, until killed.
pub fn yields(args: &Args) -> Result<()> {
    pin(args.number("cpu", 0)?)?;
    real_time(libc::SCHED_RR)?;
    let (begin, time) = (Instant::now(), Duration::from_millis(args.number("ms", 1)?));
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
    say("done");
    loop {
        std::thread::yield_now();
    }
}
