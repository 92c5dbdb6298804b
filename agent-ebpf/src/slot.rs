//! In: a cgroup id; out: the slot its events are billed to. Knows nothing of what a slot stands for.
use kernmeter_abi::{Loss, SLOT_OVERFLOW};

use crate::maps::CGROUPS;
use crate::row;

/// The slot of a cgroup; the overflow slot, counted, if the cgroup is unknown.
#[inline(always)]
pub fn of_cgroup(id: u64) -> u32 {
    // SAFETY: the value is copied at once.
    if let Some(found) = unsafe { CGROUPS.get(id) } {
        found.slot
    } else {
        row::lose(Loss::UnknownCgroup);
        SLOT_OVERFLOW
    }
}

/// Moves one live task from a slot to another; `None` is nowhere.
#[inline(always)]
pub fn move_task(from: Option<u32>, to: Option<u32>) {
    if let Some(row) = from.and_then(row::of_slot) {
        row::add_atomic(&mut row.tasks, u64::MAX);
    }
    if let Some(row) = to.and_then(row::of_slot) {
        row::add_atomic(&mut row.tasks, 1);
    }
}
