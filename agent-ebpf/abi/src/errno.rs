//! In: an error number; out: whether the kernel has it. Knows no names.

/// The last number of `include/uapi/asm-generic/errno.h`, `EHWPOISON`.
const LAST: u32 = 133;
/// The first and the last number of `include/linux/errno.h`, which `sys_exit` sees before they become others.
const INTERNAL: (u32, u32) = (512, 531);

/// Whether a number is that of an error.
#[inline(always)]
pub const fn is_known(errno: u32) -> bool {
    (1 <= errno && errno <= LAST) || (INTERNAL.0 <= errno && errno <= INTERNAL.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_headers() {
        assert!([1, 2, 133, 512, 516, 531].into_iter().all(is_known));
        assert!(![0, 134, 511, 532, 4095, u32::MAX].into_iter().any(is_known));
    }
}
