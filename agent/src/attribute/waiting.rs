//! In: rows of a slot whose workload is not known yet; out: all of them, once it is. Drops nothing, guesses nothing.

use std::collections::HashMap;

use kernmeter_abi::{SlotRow, SyscallRow};

use super::rows::{add_errno, add_slot, add_slot_rows, add_syscall, add_syscall_rows};
use crate::drain::{EMPTY_SLOT_ROW, EMPTY_SYSCALL_ROW};
use crate::registry::{Registry, TargetId};

/// Counts that wait for an identity.
#[derive(Default)]
pub(super) struct Waiting {
    slot: Option<Box<SlotRow>>,
    syscalls: HashMap<u32, SyscallRow>,
    errors: HashMap<(u32, u32), u64>,
    /// When the slot was met, nanoseconds of the batch clock.
    pub since_ns: u64,
}

impl Waiting {
    /// Nothing yet, from `since_ns` on.
    pub fn new(since_ns: u64) -> Waiting {
        Waiting { since_ns, ..Waiting::default() }
    }

    pub fn add_slot(&mut self, row: &SlotRow) {
        add_slot_rows(self.slot.get_or_insert_with(|| Box::new(EMPTY_SLOT_ROW)), row);
    }

    pub fn add_syscall(&mut self, syscall: u32, row: &SyscallRow) {
        add_syscall_rows(self.syscalls.entry(syscall).or_insert(EMPTY_SYSCALL_ROW), row);
    }

    pub fn add_errno(&mut self, syscall: u32, errno: u32, count: u64) {
        *self.errors.entry((syscall, errno)).or_default() += count;
    }

    /// Bills everything to the target.
    pub fn bill(&self, registry: &mut Registry, target: TargetId) {
        if let Some(row) = &self.slot {
            add_slot(registry, target, row);
        }
        for (syscall, row) in &self.syscalls {
            add_syscall(registry, target, *syscall, row);
        }
        for ((syscall, errno), count) in &self.errors {
            add_errno(registry, target, *syscall, *errno, *count);
        }
    }
}

/// What waits in many slots, added up.
pub(super) struct Sum {
    pub slot: SlotRow,
    pub syscall: SyscallRow,
    /// Errors with an errno of their own.
    pub errors: u64,
}

impl Sum {
    pub fn of<'a>(all: impl Iterator<Item = &'a Waiting>) -> Sum {
        let mut sum = Sum { slot: EMPTY_SLOT_ROW, syscall: EMPTY_SYSCALL_ROW, errors: 0 };
        for waiting in all {
            if let Some(row) = &waiting.slot {
                add_slot_rows(&mut sum.slot, row);
            }
            waiting.syscalls.values().for_each(|row| add_syscall_rows(&mut sum.syscall, row));
            sum.errors += waiting.errors.values().sum::<u64>();
        }
        sum
    }
}
