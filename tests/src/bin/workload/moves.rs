//! Tasks that move themselves between cgroups, and what they ran in each by their own clock.

use std::fs::{File, OpenOptions};
use std::io::Write;

use anyhow::{Context, Result};

use crate::processes::{child, reap};
use crate::{Args, say};

/// Nanoseconds the calling thread has run: read from the scheduler, which brings its count up to date for that.
fn thread_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs until the thread's clock shows this; returns what it shows.
fn run_until(ns: u64) -> u64 {
    loop {
        let now = thread_ns();
        if now >= ns {
            return now;
        }
    }
}

/// The file of a cgroup that moves whoever writes `0` to it.
fn entrance(args: &Args, name: &str) -> Result<File> {
    let path = format!("{}/cgroup.procs", args.text(name).context("no cgroup given")?);
    OpenOptions::new().write(true).open(&path).with_context(|| path)
}

/// `--left DIR --right DIR --left-us N --right-us N --rounds N`: runs so long in one cgroup, so long in the other, and again.
/// Says the nanoseconds it ran in each (`left=`, `right=`), and how long it ran to get there (`moves=`), which may be either's.
pub fn itself(args: &Args) -> Result<()> {
    let mut cgroups = [entrance(args, "left")?, entrance(args, "right")?];
    let us = [args.number("left-us", 300)?, args.number("right-us", 300)?];
    let (mut ran, mut moving) = ([0; 2], 0);
    for _ in 0..args.number("rounds", 1)? {
        for side in 0..2 {
            let asked = thread_ns();
            cgroups[side].write_all(b"0")?;
            let there = thread_ns();
            moving += there - asked;
            ran[side] += run_until(there + us[side] * 1000) - there;
        }
    }
    say(&format!("left={}", ran[0]));
    say(&format!("right={}", ran[1]));
    say(&format!("moves={moving}"));
    Ok(())
}

/// `--from DIR --into DIR --count N --us N`: so many processes, each of which moves itself before it does anything else (also
/// before it reads a clock), runs so long there, and ends. Says the nanoseconds they ran in all (`children=`).
pub fn at_birth(args: &Args) -> Result<()> {
    let (mut from, mut into) = (entrance(args, "from")?, entrance(args, "into")?);
    let ns = args.number("us", 2000)? * 1000;
    for _ in 0..args.number("count", 1)? {
        // The first move in a while waits for other CPUs, the next one does not: the child is moved in its first stint.
        from.write_all(b"0")?;
        reap(child(|| {
            if into.write_all(b"0").is_err() {
                // SAFETY: ends the child.
                unsafe { libc::_exit(1) };
            }
            run_until(thread_ns() + ns);
        })?)?;
    }
    // SAFETY: all-zero is a valid rusage; the pointer is to a live local.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let ns = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    say(&format!("children={}", ns(usage.ru_utime) + ns(usage.ru_stime)));
    Ok(())
}
