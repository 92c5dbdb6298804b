//! In: the number of a slot or a row; out: counters and the ways to add to them. Knows no hooks.
use kernmeter_abi::histogram::BUCKETS;
use kernmeter_abi::task::ROW_OVERFLOW;
use kernmeter_abi::{
    KEY_USED, Loss, Resource, SLOT_CHUNK, SYSCALL_CHUNK, SlotRow, SyscallRow, Total, errno, ways,
};

pub use crate::atomic::add_atomic;
use crate::atomic::add_atomic_u32;
use crate::maps::{
    ERR_FREE, ERR_INDEX, ERR_KEYS, ERR_ROWS, LOSSES, NOEXIST, SLOT_ROWS, SYS_FREE, SYS_INDEX, SYS_INDEX_MORE,
    SYS_KEYS, SYS_ROWS, TOTALS,
};
use crate::private::Kind;
use crate::quota::Refusal;
use crate::{kernel, private, quota};

/// A row to add to.
pub struct Row<'a, T> {
    cells: &'a mut T,
    /// Whether other CPUs add to it as well.
    is_shared: bool,
}

impl<T> Row<'_, T> {
    /// Adds to a field whose only writer on this CPU is the caller.
    #[inline(always)]
    pub fn add(&mut self, field: impl FnOnce(&mut T) -> &mut u64, value: u64) {
        let field = field(self.cells);
        if self.is_shared {
            add_atomic(field, value);
        } else {
            *field = field.wrapping_add(value);
        }
    }

    /// Counts one event of a histogram.
    #[inline(always)]
    pub fn observe(&mut self, buckets: impl FnOnce(&mut T) -> &mut [u32; BUCKETS], ns: u64) {
        let bucket = kernmeter_abi::histogram::bucket_of(ns);
        let Some(count) = buckets(self.cells).get_mut(bucket) else { return };
        if self.is_shared {
            add_atomic_u32(count, 1);
        } else {
            *count = count.wrapping_add(1);
        }
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

/// The shared row of a slot. Few write it at a time: for what happens rarely, atomically.
#[inline(always)]
pub fn shared_of_slot<'a>(slot: u32) -> Option<&'a mut SlotRow> {
    if slot >= kernel::slots() {
        return None;
    }
    slot_row(slot)
}

#[inline(always)]
fn slot_row<'a>(row: u32) -> Option<&'a mut SlotRow> {
    // SAFETY: a live map value; every field is written as its documentation says.
    SLOT_ROWS.get_value_ptr_mut(row / SLOT_CHUNK, &(row % SLOT_CHUNK)).map(|row| unsafe { &mut *row.cast() })
}

/// The row of a slot that this CPU adds to. Not where an addition may interrupt another: there, [`of_slot_in_interrupt`].
#[inline(always)]
pub fn of_slot<'a>(slot: u32) -> Option<Row<'a, SlotRow>> {
    slot_or_private(slot, |key| private::find(Kind::Slot, key))
}

/// As [`of_slot`], where the addition may interrupt another, of other fields.
#[inline(always)]
pub fn of_slot_in_interrupt<'a>(slot: u32) -> Option<Row<'a, SlotRow>> {
    slot_or_private(slot, private::look)
}

#[inline(always)]
fn slot_or_private<'a>(slot: u32, private: impl FnOnce(u32) -> Option<u32>) -> Option<Row<'a, SlotRow>> {
    if slot >= kernel::slots() {
        return None;
    }
    match private(ways::key_of_slot(slot)) {
        Some(row) => Some(Row { cells: slot_row(row)?, is_shared: false }),
        None => Some(Row { cells: slot_row(slot)?, is_shared: !kernel::alone() }),
    }
}

/// Bills CPU time to a slot, and counts it in the total.
#[inline(always)]
pub fn charge_cpu(slot: u32, ns: u64) {
    count(Total::CpuNs, ns);
    if let Some(mut row) = of_slot(slot) {
        row.add(|row| &mut row.cpu_ns, ns);
    }
}

/// The row that this CPU adds to for a syscall row; `None` for the two pseudo rows.
#[inline(always)]
pub fn of_syscall<'a>(row: u32) -> Option<Row<'a, SyscallRow>> {
    if row >= ROW_OVERFLOW {
        return None;
    }
    match private::find(Kind::Syscall, row) {
        Some(row) => Some(Row { cells: syscall_row(row)?, is_shared: false }),
        None => Some(Row { cells: syscall_row(row)?, is_shared: !kernel::alone() }),
    }
}

#[inline(always)]
fn syscall_row<'a>(row: u32) -> Option<&'a mut SyscallRow> {
    // SAFETY: a live map value; every field is written as its documentation says.
    SYS_ROWS
        .get_value_ptr_mut(row / SYSCALL_CHUNK, &(row % SYSCALL_CHUNK))
        .map(|row| unsafe { &mut *row.cast() })
}

/// The row of a (slot, syscall) key, allocated on first use, or [`ROW_OVERFLOW`].
#[inline(always)]
pub fn find_syscall(key: u32) -> u32 {
    indexed(key).unwrap_or_else(|| allocate_syscall(key))
}

/// The row of a key that has one.
#[inline(always)]
fn indexed(key: u32) -> Option<u32> {
    // SAFETY: the value is copied at once; entries are deleted only when no task of the slot is left.
    if let Some(row) = unsafe { SYS_INDEX.get(key) } {
        return Some(*row);
    }
    // SAFETY: as above.
    SYS_INDEX_MORE.get(0).and_then(|more| unsafe { more.get(key) }).copied()
}

/// Enters a row under its key. Two CPUs that do so at the same moment while the first table fills up may enter a row each: both
/// count, and the agent adds them up.
#[inline(always)]
fn enter(key: u32, row: u32) -> bool {
    SYS_INDEX.insert(key, row, NOEXIST).is_ok()
        || SYS_INDEX_MORE.get(0).is_some_and(|more| more.insert(key, row, NOEXIST).is_ok())
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
    // Another CPU may have been first.
    let first = indexed(key);
    if first.is_some() || !enter(key, row) {
        let _ = SYS_FREE.push(row, 0);
        return first.or_else(|| indexed(key)).unwrap_or_else(|| {
            lose(Loss::RowExhausted);
            ROW_OVERFLOW
        });
    }
    if let Some(entry) = SYS_KEYS.get_ptr_mut(row) {
        // SAFETY: a live map value that only the row's owner writes.
        unsafe { entry.write_volatile(KEY_USED | u64::from(key)) };
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
    let Some(errors) = ERR_ROWS.get_ptr_mut(kernel::shard() * rows + row) else { return false };
    // SAFETY: a live map value written by `sys_exit` alone.
    let mut row = Row { cells: unsafe { &mut *errors }, is_shared: kernel::shared() };
    row.add(|errors| errors, 1);
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
    if let Some(meta) = ERR_KEYS.get_ptr_mut(row) {
        // SAFETY: a live map value that only the row's owner writes.
        unsafe { meta.write_volatile(KEY_USED | key) };
    }
    quota::charge(account, Resource::ErrnoRows);
    Some(row)
}
