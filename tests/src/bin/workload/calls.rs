//! Plain system calls in exact numbers.

use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};

use crate::{Args, say, wait_for_go, waits};

/// `getppid` so many times.
pub fn getppid(times: u64) {
    for _ in 0..times {
        // SAFETY: getppid has no arguments and cannot fail.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
}

/// `getpriority` so many times: a call that neither the C library nor a container runtime makes by itself.
pub fn getpriority(times: u64) {
    for _ in 0..times {
        // SAFETY: getpriority of the caller itself takes two integers and changes nothing.
        unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    }
}

/// `openat` of a name longer than any file's, so many times: ENAMETOOLONG, which nothing else here provokes.
fn failing_openat(times: u64) -> Result<()> {
    let mut name = [b'x'; 300];
    name[299] = 0;
    for _ in 0..times {
        // SAFETY: the name is null-terminated and outlives the call.
        let r = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, name.as_ptr(), libc::O_RDONLY) };
        ensure!(r == -1, "openat did not fail");
    }
    Ok(())
}

/// `--getppid N --getpriority N --openat-fail N`, spread over `--rounds N` with `--pause-ms N` between them.
pub fn syscalls(args: &Args) -> Result<()> {
    let rounds = args.number("rounds", 1)?;
    let (getppids, openats) = (args.number("getppid", 0)?, args.number("openat-fail", 0)?);
    let getpriorities = args.number("getpriority", 0)?;
    let pause = args.number("pause-ms", 0)?;
    for round in 0..rounds {
        let share = |all: u64| all / rounds + u64::from(round < all % rounds);
        getppid(share(getppids));
        getpriority(share(getpriorities));
        failing_openat(share(openats))?;
        if pause > 0 {
            waits::nanosleep(pause * 1_000_000);
        }
    }
    Ok(())
}

/// `--getppid N --pass N`: so many each time the test lets it go on, until it says no more; none that one time.
pub fn steps(args: &Args) -> Result<()> {
    let (each, pass) = (args.number("getppid", 1)?, args.number("pass", 0)?);
    for step in 1.. {
        if step != pass {
            getppid(each);
        }
        say("done");
        if !wait_for_go() {
            break;
        }
    }
    Ok(())
}

/// `--mb N`: one `readv` of so many megabytes of random numbers, all of which it spends on a CPU. They go to the same
/// megabyte over and over.
pub fn long_call(args: &Args) -> Result<()> {
    const MEGABYTE: usize = 1 << 20;
    let source = std::fs::File::open("/dev/urandom")?;
    let mut buffer = vec![0u8; MEGABYTE];
    let piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: MEGABYTE };
    let pieces = vec![piece; args.number("mb", 1)?.try_into()?];
    // SAFETY: every piece is the live buffer, which nobody else looks at.
    let n = unsafe { libc::readv(source.as_raw_fd(), pieces.as_ptr(), pieces.len().try_into()?) };
    ensure!(n as usize == pieces.len() * MEGABYTE, "readv: {n}, {}", std::io::Error::last_os_error());
    Ok(())
}

/// Floods with calls of many kinds on `--cpu N` until killed; with `--forks`, with processes as well.
pub fn flood(args: &Args) -> Result<()> {
    if args.text("cpu").is_some() {
        waits::pin(args.number("cpu", 0)?)?;
    }
    say("done");
    loop {
        getppid(1000);
        for nr in SAFE {
            // SAFETY: every number in the list is harmless with all arguments invalid.
            unsafe { libc::syscall(nr, -1, 0, 0, 0, 0, 0) };
        }
        if args.flag("forks") {
            // SAFETY: the child does nothing but end; the parent waits for it.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    libc::_exit(0);
                }
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// Calls that fail or do nothing when their arguments are -1 and zeros.
const SAFE: [libc::c_long; 24] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_ioctl,
    libc::SYS_pread64,
    libc::SYS_dup,
    libc::SYS_getpid,
    libc::SYS_sendfile,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_getdents64,
    libc::SYS_fchdir,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_sched_yield,
    libc::SYS_epoll_ctl,
    libc::SYS_fallocate,
];
