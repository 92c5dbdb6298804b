//! In: moves of tasks between cgroups; out: a number that each move changes. Knows no task.
//!
//! The kernel gives a task another `css_set` with each move, so that a task whose `css_set` has the same address as before is where
//! it was: unless the address was freed and given to another set meanwhile, which takes two moves of that task. Both are counted
//! here. The set is one read where the number of the cgroup is four.
use core::cell::UnsafeCell;

use crate::atomic::add_atomic_u32;

/// A number that hooks on all CPUs change.
struct Count(UnsafeCell<u32>);

// SAFETY: it is read by one load and changed by atomic additions alone.
unsafe impl Sync for Count {}

static MOVES: Count = Count(UnsafeCell::new(0));

/// How many moves there were, modulo 2^32.
#[inline(always)]
pub fn count() -> u32 {
    // SAFETY: an aligned number of the object's own.
    unsafe { core::ptr::read_volatile(MOVES.0.get()) }
}

/// Counts a move.
#[inline(always)]
pub fn add() {
    // SAFETY: an aligned number of the object's own, which nothing but this changes.
    add_atomic_u32(unsafe { &mut *MOVES.0.get() }, 1);
}
