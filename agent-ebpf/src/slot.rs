//! In: a cgroup; out: the slot its events are billed to. Knows nothing of what a slot stands for.
use kernmeter_abi::{CgroupRef, Loss, SLOT_HOST, SLOT_OVERFLOW};

use crate::kernel::Cgroup;
use crate::maps::CGROUPS;
use crate::row;

/// cgroups above one without an entry that are looked at. Bounded, as a switch does so with interrupts off.
const MOST_LEVELS: u32 = 64;
/// Marks what [`above`] returns as a slot that is only borrowed.
const BORROWED: u64 = 1 << 32;

/// A cgroup's slot.
pub struct Found {
    /// Its number.
    pub slot: u32,
    /// Whether it is that of a cgroup above for want of one: the cgroup is no part of that workload, and may get its own.
    pub is_borrowed: bool,
}

/// The slot of a cgroup, or of the nearest above it that has one. The overflow slot if that is the root: its tasks are the
/// host's own.
#[inline(always)]
pub fn find(cgroup: Cgroup) -> Found {
    // SAFETY: the value is copied at once.
    if let Some(found) = unsafe { CGROUPS.get(cgroup.id()) } {
        return Found { slot: found.slot, is_borrowed: false };
    }
    let found = above(cgroup);
    Found { slot: found as u32, is_borrowed: found & BORROWED != 0 }
}

/// As [`find`], the number alone.
#[inline(always)]
pub fn of_cgroup(cgroup: Cgroup) -> u32 {
    find(cgroup).slot
}

/// The slot of the nearest cgroup above, with [`BORROWED`] where that applies.
#[inline(never)]
fn above(mut cgroup: Cgroup) -> u64 {
    for _ in 0..MOST_LEVELS {
        cgroup = cgroup.parent();
        let id = cgroup.id();
        if id == 0 {
            break;
        }
        // SAFETY: the value is copied at once.
        if let Some(CgroupRef { slot, flags }) = unsafe { CGROUPS.get(id) }.copied() {
            if slot == SLOT_HOST {
                break;
            }
            return u64::from(slot) | if flags & CgroupRef::INHERIT == 0 { BORROWED } else { 0 };
        }
    }
    row::lose(Loss::UnknownCgroup);
    u64::from(SLOT_OVERFLOW)
}

/// Moves one live task from a slot to another; `None` is nowhere.
#[inline(always)]
pub fn move_task(from: Option<u32>, to: Option<u32>) {
    if let Some(row) = from.and_then(row::shared_of_slot) {
        row::add_atomic(&mut row.tasks, u64::MAX);
    }
    if let Some(row) = to.and_then(row::shared_of_slot) {
        row::add_atomic(&mut row.tasks, 1);
    }
}
