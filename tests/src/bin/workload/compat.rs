//! System calls of the other x86 ABIs: `int 0x80` from 64-bit code, a whole 32-bit program, and x32 numbers.

use anyhow::{Result, bail};

use crate::Args;

/// `getppid` and `dup` in the ia32 table.
#[cfg(target_arch = "x86_64")]
const IA32: [u32; 2] = [64, 41];

/// `--calls N`: `getppid` by `int 0x80`, and as many `dup(-1)`, which fail with EBADF.
#[cfg(target_arch = "x86_64")]
pub fn int80(args: &Args) -> Result<()> {
    for _ in 0..args.number("calls", 1)? {
        for nr in IA32 {
            // SAFETY: both calls touch no memory. rbx is saved by hand, being reserved by the compiler; the entry code
            // may clear r8 to r11.
            unsafe {
                std::arch::asm!(
                    "xchg {rbx}, rbx", "int 0x80", "xchg {rbx}, rbx",
                    rbx = inout(reg) u64::from(u32::MAX) => _,
                    inlateout("rax") u64::from(nr) => _,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                );
            }
        }
    }
    Ok(())
}

/// `getppid` by `int 0x80`, so many times.
#[cfg(target_arch = "x86_64")]
pub fn ia32_getppid(times: u64) {
    for _ in 0..times {
        // SAFETY: the call touches no memory; the entry code may clear r8 to r11.
        unsafe {
            std::arch::asm!(
                "int 0x80", inlateout("rax") u64::from(IA32[0]) => _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
    }
}

/// `--calls N`: becomes a 32-bit program that calls `getppid` N times and ends.
#[cfg(target_arch = "x86_64")]
pub fn ia32_program(args: &Args) -> Result<()> {
    let image = ia32_image(args.number("calls", 1)? as u32);
    // SAFETY: the names and arrays are null-terminated and live; execveat only returns on failure.
    unsafe {
        let fd = libc::memfd_create(c"ia32".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 || libc::write(fd, image.as_ptr().cast(), image.len()) != image.len() as isize {
            bail!("write the program: {}", std::io::Error::last_os_error());
        }
        let program_args = [c"ia32".as_ptr(), std::ptr::null()];
        let envp = [std::ptr::null::<libc::c_char>()];
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            program_args.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    bail!("execute a 32-bit program: {}", std::io::Error::last_os_error())
}

/// A static 32-bit ELF file: one segment, one loop.
#[cfg(target_arch = "x86_64")]
fn ia32_image(calls: u32) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let mut code = vec![0xbf]; // mov edi, calls
    code.extend(calls.to_le_bytes());
    code.extend([0xb8, 64, 0, 0, 0]); // again: mov eax, 64 (getppid)
    code.extend([0xcd, 0x80]); // int 0x80
    code.extend([0x4f, 0x75, 0xf6]); // dec edi; jnz again
    code.extend([0x31, 0xdb]); // xor ebx, ebx
    code.extend([0xb8, 1, 0, 0, 0, 0xcd, 0x80]); // mov eax, 1 (exit); int 0x80
    let size = HEADERS + code.len() as u32;
    let mut image = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let put16 = |image: &mut Vec<u8>, v: u16| image.extend(v.to_le_bytes());
    let put32 = |image: &mut Vec<u8>, v: u32| image.extend(v.to_le_bytes());
    put16(&mut image, 2); // ET_EXEC
    put16(&mut image, 3); // EM_386
    for v in [1, BASE + HEADERS, 52, 0, 0] {
        put32(&mut image, v); // version, entry, program headers, section headers, flags
    }
    for v in [52, 32, 1, 40, 0, 0] {
        put16(&mut image, v); // header sizes and counts
    }
    for v in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        put32(&mut image, v); // PT_LOAD, offset, addresses, sizes, R+X, alignment
    }
    image.extend(code);
    image
}

/// `--calls N`: `getppid` with the x32 bit; fails with ENOSYS on kernels without x32.
#[cfg(target_arch = "x86_64")]
pub fn x32(args: &Args) -> Result<()> {
    for _ in 0..args.number("calls", 1)? {
        // SAFETY: getppid has no arguments.
        unsafe { libc::syscall(0x4000_0000 | libc::SYS_getppid) };
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::{Args, Result, bail};

    pub fn int80(_: &Args) -> Result<()> {
        bail!("x86-64 only")
    }
    pub fn ia32_getppid(_: u64) {}
    pub use int80 as ia32_program;
    pub use int80 as x32;
}
#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::*;
