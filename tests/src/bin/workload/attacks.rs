//! What an unprivileged user can do in a subtree of his own to take room in the kernel's tables from others.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};

use crate::processes::{child, reap};
use crate::{Args, calls, filtered, say, wait_for_go, waits};

/// `nobody`.
const USER: libc::uid_t = 65534;
/// Calls of each process.
const CALLS: u64 = 10;
/// Levels of the deepest nest.
const DEPTH: u64 = 60;
/// Numbers at the end of the tables, which no kernel has given to a call.
const INVENTED: std::ops::Range<libc::c_long> = 500..2300;
const X32_BIT: libc::c_long = 0x4000_0000;

/// `--kind KIND --root DIR --count N`: becomes an ordinary user, does it, says what it did, and stops at the next word.
pub fn attack(args: &Args) -> Result<()> {
    let root = Path::new(args.text("root").context("--root")?);
    let count = args.number("count", 1)?;
    become_nobody()?;
    match args.text("kind") {
        Some("wide") => wide(root, count),
        Some("deep") => deep(root, count),
        Some("churn") => churn(root),
        Some("pinned") => pinned(root, count),
        Some("numbers") => each_in_its_own(root, count, invented_calls),
        Some("errors") => each_in_its_own(root, count, crafted_errors),
        other => bail!("no attack {other:?}"),
    }
}

fn become_nobody() -> Result<()> {
    // SAFETY: the calls take numbers, and an empty list of groups.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(USER, USER, USER) == 0
            && libc::setresuid(USER, USER, USER) == 0
            // So that its children's state can be read.
            && libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    };
    ensure!(done, "become an ordinary user: {}", io::Error::last_os_error());
    Ok(())
}

/// The attack is at its height: the test looks what it does to others.
fn hold(what: &str) {
    say(what);
    say("done");
    wait_for_go();
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))
}

/// A process in a cgroup, which it enters by itself.
fn inside(dir: &Path, what: impl FnOnce() -> Result<()>) -> Result<libc::pid_t> {
    let procs = dir.join("cgroup.procs");
    child(move || {
        if let Err(error) = fs::write(&procs, "0").map_err(Into::into).and_then(|()| what()) {
            eprintln!("in {}: {error:#}", procs.display());
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(1) };
        }
    })
}

/// What each process does, so that the tests find all of them.
fn call() -> Result<()> {
    ensure!(is_nobody(), "the calls are to be an ordinary user's");
    calls::getpriority(CALLS);
    Ok(())
}

fn is_nobody() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == USER }
}

/// Many cgroups side by side, and a process in each hundredth.
fn wide(root: &Path, count: u64) -> Result<()> {
    let dirs: Vec<PathBuf> = (0..count).map(|n| root.join(format!("w{n}"))).collect();
    dirs.iter().try_for_each(|dir| make(dir))?;
    let some: Vec<_> = dirs.iter().step_by(100).collect();
    for dir in &some {
        reap(inside(dir, call)?)?;
    }
    hold(&format!("calls={}", CALLS * some.len() as u64));
    dirs.iter().try_for_each(|dir| Ok(fs::remove_dir(dir)?))
}

/// Chains of cgroups in cgroups, and a process at the end of each tenth.
fn deep(root: &Path, count: u64) -> Result<()> {
    let mut dirs = Vec::new();
    let mut ends = Vec::new();
    for n in 0..count / DEPTH {
        let mut dir = root.join(format!("d{n}"));
        for _ in 1..DEPTH {
            make(&dir)?;
            dirs.push(dir.clone());
            dir.push("d");
        }
        make(&dir)?;
        dirs.push(dir.clone());
        ends.push(dir);
    }
    let some: Vec<_> = ends.iter().step_by(10).collect();
    for dir in &some {
        reap(inside(dir, call)?)?;
    }
    hold(&format!("calls={}", CALLS * some.len() as u64));
    dirs.iter().rev().try_for_each(|dir| Ok(fs::remove_dir(dir)?))
}

/// cgroups made and removed as fast as can be, until killed.
fn churn(root: &Path) -> Result<()> {
    say("calls=0");
    say("done");
    for n in 0u64.. {
        let dir = root.join(format!("c{n}"));
        make(&dir)?;
        fs::remove_dir(&dir)?;
    }
    Ok(())
}

/// cgroups that are gone, but for a process each that is still in a call it entered there.
fn pinned(root: &Path, count: u64) -> Result<()> {
    let home = root.join("home");
    make(&home)?;
    let mut sleepers = Vec::new();
    for n in 0..count {
        let dir = root.join(format!("p{n}"));
        make(&dir)?;
        let pid = inside(&dir, || {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
            Ok(())
        })?;
        sleepers.push(pid);
        while !is_pausing(pid) {
            waits::nanosleep(100_000);
        }
        fs::write(home.join("cgroup.procs"), pid.to_string()).with_context(|| format!("move {pid} home"))?;
        fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    hold("calls=0");
    for pid in sleepers {
        // SAFETY: the child is not reaped yet; that it was killed is no news.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    fs::remove_dir(&home)?;
    Ok(())
}

fn is_pausing(pid: libc::pid_t) -> bool {
    let call = format!("{} ", libc::SYS_pause);
    fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|text| text.starts_with(&call))
}

/// Processes in cgroups of their own, one after the other.
fn each_in_its_own(root: &Path, count: u64, what: fn() -> Result<()>) -> Result<()> {
    let dirs: Vec<PathBuf> = (0..count).map(|n| root.join(format!("n{n}"))).collect();
    for dir in &dirs {
        make(dir)?;
        reap(inside(dir, || call().and_then(|()| what()))?)?;
    }
    hold(&format!("calls={}", CALLS * count));
    dirs.iter().try_for_each(|dir| Ok(fs::remove_dir(dir)?))
}

/// Calls that do not exist, in each ABI.
fn invented_calls() -> Result<()> {
    // SAFETY: the kernel has no such calls, and says so.
    let invent = |nr: libc::c_long| unsafe { libc::syscall(nr, -1, 0, 0, 0, 0, 0) };
    for nr in INVENTED {
        ensure!(invent(nr) == -1, "the kernel has a call {nr}");
    }
    // Where the kernel has no x32, none of its numbers exists either.
    let has_x32 = invent(X32_BIT | libc::SYS_getppid) != -1;
    for nr in if has_x32 { INVENTED } else { 0..INVENTED.end } {
        invent(X32_BIT | nr);
    }
    Ok(())
}

/// Many calls, each with every error there can be.
fn crafted_errors() -> Result<()> {
    filtered::install_crafted()?;
    for nr in (0..60).filter(|nr| ![libc::SYS_write, libc::SYS_exit].contains(nr)) {
        for errno in 1..4096 {
            // SAFETY: the filter answers in place of the kernel.
            unsafe { libc::syscall(nr, errno, 0, 0, 0, 0, filtered::CRAFTED) };
        }
    }
    Ok(())
}
