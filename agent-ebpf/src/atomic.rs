//! In: a number that several write; out: an addition that loses none. Knows no maps.

/// As [`add_atomic`], for a number of 32 bits.
#[inline(always)]
pub fn add_atomic_u32(field: &mut u32, value: u32) {
    // SAFETY: an aligned field of a map value, or of the object's own.
    unsafe {
        core::intrinsics::atomic_xadd::<u32, u32, { core::intrinsics::AtomicOrdering::Relaxed }>(
            field, value,
        );
    }
}

/// Adds with an atomic instruction: for fields with writers in several contexts.
#[inline(always)]
pub fn add_atomic(field: &mut u64, value: u64) {
    // SAFETY: an aligned field of a map value.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            field, value,
        );
    }
}
