//! System calls that a seccomp filter answers: the kernel never enters them.

use std::io;

use anyhow::{Result, ensure};

use crate::{Args, calls, compat, processes, waits};

// Numbers of include/uapi/linux/seccomp.h, filter.h and audit.h.
const SET_MODE_FILTER: libc::c_uint = 1;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const RETURN_RESULT: u16 = 0x16;
const OR: u16 = 0x44;
const ARCH_I386: u32 = 0x4000_0003;
/// Where `struct seccomp_data` has them.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `getppid` of 32-bit programs.
const IA32_GETPPID: u32 = 64;

fn step(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

extern "C" fn ignore(_: libc::c_int) {}

/// `getppid` fails with EPERM (with ENOENT for 32-bit calls), `getpriority` is a SIGSYS, everything else goes on.
fn install() -> Result<()> {
    let mut program = [
        step(LOAD, ARCH, 0, 0),
        step(JUMP_IF_EQUAL, ARCH_I386, 5, 0),
        step(LOAD, NUMBER, 0, 0),
        step(JUMP_IF_EQUAL, libc::SYS_getppid as u32, 5, 0),
        step(JUMP_IF_EQUAL, libc::SYS_getpriority as u32, 5, 0),
        step(RETURN, ALLOW, 0, 0),
        step(RETURN, ALLOW, 0, 0),
        step(LOAD, NUMBER, 0, 0),
        step(JUMP_IF_EQUAL, IA32_GETPPID, 3, 2),
        step(RETURN, ERRNO | libc::EPERM as u32, 0, 0),
        step(RETURN, TRAP, 0, 0),
        step(RETURN, ALLOW, 0, 0),
        step(RETURN, ERRNO | libc::ENOENT as u32, 0, 0),
    ];
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGSYS, ignore as *const () as libc::sighandler_t) };
    set(&mut program)
}

/// Sixth argument of a call whose first the filter of [`install_crafted`] makes its error.
pub const CRAFTED: libc::c_long = 0x6b6d;

/// A call with [`CRAFTED`] fails with the error that is its first argument, everything else goes on.
pub fn install_crafted() -> Result<()> {
    set(&mut [
        step(LOAD, ARGUMENTS + 5 * 8, 0, 0),
        step(JUMP_IF_EQUAL, CRAFTED as u32, 0, 3),
        step(LOAD, ARGUMENTS, 0, 0),
        step(OR, ERRNO, 0, 0),
        step(RETURN_RESULT, 0, 0, 0),
        step(RETURN, ALLOW, 0, 0),
    ])
}

fn set(program: &mut [libc::sock_filter]) -> Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter outlives the call, which copies it.
    unsafe {
        ensure!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "{}", io::Error::last_os_error());
        let r = libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const filter);
        ensure!(r == 0, "seccomp: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// `--ms N --errors N --traps N --ia32 N --forks N --threads N`: sleeps so long under the filter, then makes so many calls that
/// it answers, so many 32-bit ones, and so many processes and threads, all of which are allowed.
pub fn filtered(args: &Args) -> Result<()> {
    install()?;
    waits::nanosleep(args.number("ms", 0)? * 1_000_000);
    calls::getppid(args.number("errors", 0)?);
    calls::getpriority(args.number("traps", 0)?);
    if args.text("ia32").is_some() {
        compat::ia32_getppid(args.number("ia32", 0)?);
    }
    processes::processes(args)
}
