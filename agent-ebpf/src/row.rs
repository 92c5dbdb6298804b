//! In: a shard-relative index; out: counters and the ways to add to them. Knows no hooks.
use kernmeter_abi::task::ROW_OVERFLOW;
use kernmeter_abi::{Loss, Resource, SlotRow, SyscallRow, Total, errno};

pub use crate::atomic::add_atomic;
use crate::maps::{
    ERR_FREE, ERR_INDEX, ERR_META, ERR_ROWS, LOSSES, NOEXIST, SLOT_ROWS, SYS_FREE, SYS_INDEX, SYS_META,
    SYS_ROWS, TOTALS,
};
use crate::quota::Refusal;
use crate::{kernel, quota};

/// Adds to a field whose only writer on this CPU is the caller; atomic where CPUs share the shard.
#[inline(always)]
pub fn add(field: &mut u64, value: u64) {
    if kernel::shared() {
        add_atomic(field, value);
    } else {
        *field = field.wrapping_add(value);
    }
}

/// As [`add`], one, for bucket counts.
#[inline(always)]
fn add_bucket(field: &mut u32) {
    if kernel::shared() {
        // SAFETY: an aligned field of a map value.
        unsafe {
            core::intrinsics::atomic_xadd::<u32, u32, { core::intrinsics::AtomicOrdering::Relaxed }>(
                field, 1,
            );
        }
    } else {
        *field = field.wrapping_add(1);
    }
}

/// Counts one event of a histogram.
#[inline(always)]
pub fn observe(buckets: &mut [u32; kernmeter_abi::histogram::BUCKETS], ns: u64) {
    let bucket = kernmeter_abi::histogram::bucket_of(ns);
    if let Some(count) = buckets.get_mut(bucket) {
        add_bucket(count);
    }
}

/// Counts a loss. Atomic: every hook counts them, also those that interrupt others. Returns how many this CPU has counted
/// now, so that a message can be sent rarely.
#[inline(always)]
pub fn lose(reason: Loss) -> u64 {
    let Some(losses) = LOSSES.get_ptr_mut(kernel::cpu()) else { return 0 };
    // SAFETY: a live map value; the index is a constant below the array's length.
    let field = unsafe { &mut (*losses).values[reason as usize] };
    add_atomic(field, 1);
    *field
}

/// Adds one to an independent total that hooks share which interrupt each other.
#[inline(always)]
pub fn count_atomic(total: Total) {
    if let Some(totals) = TOTALS.get_ptr_mut(kernel::cpu()) {
        // SAFETY: a live map value of this CPU; the index is a constant below the array's length.
        add_atomic(unsafe { &mut (*totals).values[total as usize] }, 1);
    }
}

/// Adds to an independent total of one hook, or of hooks that never interrupt each other.
#[inline(always)]
pub fn count(total: Total, value: u64) {
    if let Some(totals) = TOTALS.get_ptr_mut(kernel::cpu()) {
        // SAFETY: a live map value of this CPU; the index is a constant below the array's length.
        let field = unsafe { &mut (*totals).values[total as usize] };
        *field = field.wrapping_add(value);
    }
}

/// The counters of a slot on this shard.
#[inline(always)]
pub fn of_slot<'a>(slot: u32) -> Option<&'a mut SlotRow> {
    let slots = kernel::slots();
    if slot >= slots {
        return None;
    }
    // SAFETY: a live map value; every field is written as its documentation says.
    SLOT_ROWS.get_ptr_mut(kernel::shard() * slots + slot).map(|row| unsafe { &mut *row })
}

/// Bills CPU time to a slot, and counts it in the total.
#[inline(always)]
pub fn charge_cpu(slot: u32, ns: u64) {
    count(Total::CpuNs, ns);
    if let Some(row) = of_slot(slot) {
        add(&mut row.cpu_ns, ns);
    }
}

/// The counters of a syscall row on this shard; `None` for the two pseudo rows.
#[inline(always)]
pub fn of_syscall<'a>(row: u32) -> Option<&'a mut SyscallRow> {
    let rows = kernel::syscall_rows();
    if row >= rows {
        return None;
    }
    // SAFETY: a live map value; every field is written as its documentation says.
    SYS_ROWS.get_ptr_mut(kernel::shard() * rows + row).map(|row| unsafe { &mut *row })
}

/// The row of a (slot, syscall) key, allocated on first use, or [`ROW_OVERFLOW`].
#[inline(always)]
pub fn find_syscall(key: u32) -> u32 {
    // SAFETY: the value is copied at once; entries are deleted only when no task of the slot is left.
    if let Some(row) = unsafe { SYS_INDEX.get(key) } {
        return *row;
    }
    allocate_syscall(key)
}

#[inline(always)]
fn allocate_syscall(key: u32) -> u32 {
    // Asked first: the queue has one lock for all CPUs.
    let account = quota::account_of(key >> 16);
    if let Err(refusal) = quota::ask(account, Resource::SyscallRows) {
        lose(match refusal {
            Refusal::NoneLeft => Loss::RowExhausted,
            Refusal::Quota => Loss::RowQuota,
        });
        return ROW_OVERFLOW;
    }
    let Ok(Some(row)) = SYS_FREE.pop() else {
        lose(Loss::RowExhausted);
        return ROW_OVERFLOW;
    };
    if SYS_INDEX.insert(key, row, NOEXIST).is_err() {
        // Another CPU was first, or the index is full.
        let _ = SYS_FREE.push(row, 0);
        // SAFETY: as in `find_syscall`.
        if let Some(row) = unsafe { SYS_INDEX.get(key) } {
            return *row;
        }
        lose(Loss::RowExhausted);
        return ROW_OVERFLOW;
    }
    if let Some(meta) = SYS_META.get_ptr_mut(row) {
        // SAFETY: a live map value that only the row's owner writes.
        unsafe { meta.write_volatile(kernmeter_abi::META_USED | u64::from(key)) };
    }
    quota::charge(account, Resource::SyscallRows);
    row
}

/// Counts an error by errno; false if no row was to be had.
#[inline(always)]
pub fn count_errno(slot: u32, syscall: u32, errno: u32) -> bool {
    // A filter or a tracer can return any number: those without a meaning get no row.
    if !errno::is_known(errno) {
        return false;
    }
    let key = (u64::from(slot) << 32) | (u64::from(syscall) << 16) | u64::from(errno & 0xffff);
    // SAFETY: the value is copied at once.
    let row = match unsafe { ERR_INDEX.get(key) } {
        Some(row) => *row,
        None => match allocate_errno(slot, key) {
            Some(row) => row,
            None => return false,
        },
    };
    let rows = kernel::errno_rows();
    if row >= rows {
        return false;
    }
    let Some(field) = ERR_ROWS.get_ptr_mut(kernel::shard() * rows + row) else { return false };
    // SAFETY: a live map value written by `sys_exit` alone.
    add(unsafe { &mut *field }, 1);
    true
}

#[inline(always)]
fn allocate_errno(slot: u32, key: u64) -> Option<u32> {
    let account = quota::account_of(slot);
    if let Err(refusal) = quota::ask(account, Resource::ErrnoRows) {
        lose(match refusal {
            Refusal::NoneLeft => Loss::ErrorRowExhausted,
            Refusal::Quota => Loss::ErrorRowQuota,
        });
        return None;
    }
    let Ok(Some(row)) = ERR_FREE.pop() else {
        lose(Loss::ErrorRowExhausted);
        return None;
    };
    if ERR_INDEX.insert(key, row, NOEXIST).is_err() {
        let _ = ERR_FREE.push(row, 0);
        // SAFETY: the value is copied at once.
        let found = unsafe { ERR_INDEX.get(key) }.copied();
        if found.is_none() {
            lose(Loss::ErrorRowExhausted);
        }
        return found;
    }
    if let Some(meta) = ERR_META.get_ptr_mut(row) {
        // SAFETY: a live map value that only the row's owner writes.
        unsafe { meta.write_volatile(kernmeter_abi::META_USED | key) };
    }
    quota::charge(account, Resource::ErrnoRows);
    Some(row)
}
