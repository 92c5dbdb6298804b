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

/// Numbers from here on are in no table (the last today is 547, of x32). They share one key, so that a program that makes
/// calls up cannot use up the rows of others.
pub const NR_LIMIT: u64 = 600;

/// Packs an ABI and a raw number. Numbers from [`NR_LIMIT`] on become [`NR_UNKNOWN`].
#[inline(always)]
pub const fn pack(abi: u32, nr: u64) -> u32 {
    let nr = if nr < NR_LIMIT { nr as u32 } else { NR_UNKNOWN };
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
        assert_eq!(unpack(of(600, false)), (ABI_X86_64, NR_UNKNOWN));
        assert_eq!(unpack(of(599, false)), (ABI_X86_64, 599));
        assert!(of(-1, true) < 1 << 16);
    }
}
