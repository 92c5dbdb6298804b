//! In: a syscall number and how it was made; out: the 16-bit key rows are indexed by. Knows no syscall names.

/// The 64-bit ABI.
pub const ABI_X86_64: u32 = 0;
/// 32-bit calls: `int 0x80`, or `sysenter`/`syscall` of a 32-bit program.
pub const ABI_IA32: u32 = 1;
/// 64-bit calls with 32-bit pointers (bit 30 of the number set).
pub const ABI_X32: u32 = 2;

/// `__X32_SYSCALL_BIT` of the kernel's `asm/unistd.h`.
pub const X32_BIT: u64 = 0x4000_0000;

/// Number used for calls whose number is out of range (negative, or larger than any table).
pub const NR_UNKNOWN: u32 = 0x3fff;

/// Numbers from here on are in no table. The last today is 470, in all ABIs, and some five a year are added. They share one
/// key, so that calls that do not exist take one row and not one each.
pub const NR_LIMIT: u64 = 512;
/// The same for x32, which has calls of its own from 512 to 547 and gets no more.
pub const NR_LIMIT_X32: u64 = 548;

/// Packs an ABI and a raw number. Numbers from [`NR_LIMIT`] on become [`NR_UNKNOWN`].
#[inline(always)]
pub const fn pack(abi: u32, nr: u64) -> u32 {
    let limit = if abi == ABI_X32 { NR_LIMIT_X32 } else { NR_LIMIT };
    let nr = if nr < limit { nr as u32 } else { NR_UNKNOWN };
    (abi << 14) | nr
}

/// The key of a call: `nr` as `sys_enter` passes it, `compat` whether the task is in a 32-bit call.
#[inline(always)]
pub const fn of(nr: i64, compat: bool) -> u32 {
    let nr = nr as u64;
    if compat {
        // 32-bit numbers arrive zero-extended or sign-extended depending on the entry path.
        pack(ABI_IA32, nr & 0xffff_ffff)
    } else if nr & X32_BIT != 0 && nr >> 31 == 0 {
        pack(ABI_X32, nr & !X32_BIT)
    } else {
        pack(ABI_X86_64, nr)
    }
}

/// Splits a key into (ABI, number).
pub const fn unpack(key: u32) -> (u32, u32) {
    ((key >> 14) & 3, key & 0x3fff)
}

/// Keys of the calls by which a signal handler returns: `rt_sigreturn` in each ABI, and `sigreturn` of 32-bit programs.
/// Numbers of the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` (15 and, for x32, 513) and `syscall_32.tbl`.
pub const SIGRETURNS: [u32; 4] =
    [pack(ABI_X86_64, 15), pack(ABI_X32, 513), pack(ABI_IA32, 119), pack(ABI_IA32, 173)];

/// Whether a call has no result: what `sys_exit` sees is a register of the code that a signal had interrupted, which may well
/// hold the number of an error.
#[inline(always)]
pub const fn is_sigreturn(key: u32) -> bool {
    let [native, x32, ia32_old, ia32] = SIGRETURNS;
    key == native || key == x32 || key == ia32_old || key == ia32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(unpack(of(39, false)), (ABI_X86_64, 39));
        assert_eq!(unpack(of(20, true)), (ABI_IA32, 20));
        assert_eq!(unpack(of(0x4000_0000 | 39, false)), (ABI_X32, 39));
        assert_eq!(unpack(of(-1, false)), (ABI_X86_64, NR_UNKNOWN));
        assert_eq!(unpack(of(-1, true)), (ABI_IA32, NR_UNKNOWN));
        assert_eq!(unpack(of(512, false)), (ABI_X86_64, NR_UNKNOWN));
        assert_eq!(unpack(of(511, false)), (ABI_X86_64, 511));
        assert_eq!(unpack(of(512, true)), (ABI_IA32, NR_UNKNOWN));
        assert_eq!(unpack(of(0x4000_0000 | 547, false)), (ABI_X32, 547));
        assert_eq!(unpack(of(0x4000_0000 | 548, false)), (ABI_X32, NR_UNKNOWN));
        assert!(of(-1, true) < 1 << 16);
    }

    /// Fault 32.
    #[test]
    fn returns_of_handlers_in_every_abi() {
        let x32 = X32_BIT as i64;
        for (nr, compat) in [(15, false), (x32 | 513, false), (119, true), (173, true)] {
            assert!(is_sigreturn(of(nr, compat)), "{nr} {compat}");
        }
        // Numbers that mean it in another ABI only: `exit`-like neighbours, `ioctl`, `swapon` and the x32 number without its bit.
        for (nr, compat) in [
            (14, false),
            (16, false),
            (119, false),
            (173, false),
            (15, true),
            (513, false),
            (x32 | 15, false),
            (-1, true),
        ] {
            assert!(!is_sigreturn(of(nr, compat)), "{nr} {compat}");
        }
    }
}
