//! In: syscall keys and error numbers; out: their names. Knows tables of numbers, nothing that happened.

use std::borrow::Cow;

use kernmeter_abi::syscall_key::{ABI_IA32, ABI_X32, ABI_X86_64, NR_UNKNOWN, unpack};
use syscalls::{Errno, x86, x86_64};

/// First number that only the x32 ABI has, of the kernel's `arch/x86/entry/syscalls/syscall_64.tbl`.
const X32_FIRST: u32 = 512;
/// The calls of those numbers.
const X32: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// Name and ABI of a syscall key. A number no table knows is `nr_N`; one out of every range `unknown`.
pub fn syscall(key: u32) -> (Cow<'static, str>, &'static str) {
    let (abi, nr) = unpack(key);
    let name = match abi {
        ABI_IA32 => x86::Sysno::new(nr as usize).map(|call| call.name()),
        ABI_X32 if nr >= X32_FIRST => X32.get((nr - X32_FIRST) as usize).copied(),
        ABI_X86_64 | ABI_X32 => x86_64::Sysno::new(nr as usize).map(|call| call.name()),
        _ => None,
    };
    let abi = match abi {
        ABI_X86_64 => "x86_64",
        ABI_IA32 => "ia32",
        ABI_X32 => "x32",
        _ => "unknown",
    };
    let name = match name {
        Some(name) => Cow::Borrowed(name),
        None if nr == NR_UNKNOWN => Cow::Borrowed("unknown"),
        None => Cow::Owned(format!("nr_{nr}")),
    };
    (name, abi)
}

/// Name of an error number, as in errno(3); the kernel's own restart codes included. Unknown ones are `errno_N`.
pub fn errno(number: u32) -> Cow<'static, str> {
    match Errno::new(number as i32).name() {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("errno_{number}")),
    }
}

#[cfg(test)]
mod tests {
    use kernmeter_abi::syscall_key::of;

    use super::*;

    #[test]
    fn names() {
        for (nr, compat, expected) in [
            (39, false, ("getpid", "x86_64")),
            (110, false, ("getppid", "x86_64")),
            (64, true, ("getppid", "ia32")),
            (1, true, ("exit", "ia32")),
            (0x4000_0000 | 39, false, ("getpid", "x32")),
            (0x4000_0000 | 520, false, ("execve", "x32")),
            (0x4000_0000 | 547, false, ("pwritev2", "x32")),
            (511, false, ("nr_511", "x86_64")),
            (512, false, ("unknown", "x86_64")),
            (-1, false, ("unknown", "x86_64")),
            (99_999, true, ("unknown", "ia32")),
        ] {
            let (name, abi) = syscall(of(nr, compat));
            assert_eq!((&*name, abi), expected);
        }
        for (number, expected) in
            [(2, "ENOENT"), (11, "EAGAIN"), (36, "ENAMETOOLONG"), (512, "ERESTARTSYS"), (4000, "errno_4000")]
        {
            assert_eq!(errno(number), expected);
        }
    }
}
