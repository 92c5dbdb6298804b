//! In: the key of a row; out: this CPU's private row for it, if it has one or gets one now. Knows no counters.
use aya_ebpf::btf_maps::Queue;
use kernmeter_abi::PrivateLeft;
use kernmeter_abi::ways::{self, Step, WAYS};

use crate::atomic::add_atomic;
use crate::kernel;
use crate::maps::{PRIVATE_LEFT, SETS, SLOT_PRIVATE, SYS_PRIVATE};

/// No private row.
const NONE: u32 = u32::MAX;

/// A kind of private rows.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Of a slot and a system call.
    Syscall = 0,
    /// Of a slot.
    Slot = 1,
}

/// The place of a key's set.
#[inline(always)]
fn position(key: u32) -> u32 {
    kernel::cpu() * (kernel::set_mask() + 1) + ways::set_of(key, kernel::set_mask())
}

#[inline(always)]
fn set<'a>(position: u32) -> Option<&'a mut [u64; WAYS]> {
    // SAFETY: a live map value, whose words this CPU and the agent write as `ways` says.
    SETS.get_ptr_mut(position).map(|set| unsafe { &mut *set })
}

/// A word that the agent may write at this moment.
#[inline(always)]
fn word(set: &[u64; WAYS], place: usize) -> u64 {
    // SAFETY: an aligned word of a map value.
    unsafe { core::ptr::read_volatile(&raw const set[place & (WAYS - 1)]) }
}

/// This CPU's private row for a key. Without one, the key comes nearer to one. Not to be called where it may interrupt another
/// call for this CPU: there, [`look`].
#[inline(always)]
pub fn find(kind: Kind, key: u32) -> Option<u32> {
    match look(key) {
        None if !kernel::alone() => {
            miss(kind as u32, key);
            None
        }
        found => found,
    }
}

/// As [`find`], but changes nothing.
#[inline(always)]
pub fn look(key: u32) -> Option<u32> {
    let set = set(position(key))?;
    let mut place = 0;
    while place < WAYS {
        if let Some(row) = ways::row_in(word(set, place), key) {
            return Some(row);
        }
        place += 1;
    }
    None
}

/// Writes a word, unless another program of this CPU was faster.
#[cfg(not(feature = "task_table"))]
#[inline(always)]
fn write(place: &mut u64, old: u64, new: u64) -> bool {
    use core::intrinsics::AtomicOrdering::SeqCst;
    // SAFETY: an aligned word of a map value.
    unsafe { core::intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, old, new).1 }
}

/// The same on kernels without such an instruction: none of them lets programs of one CPU come between each other here.
#[cfg(feature = "task_table")]
#[inline(always)]
fn write(place: &mut u64, old: u64, new: u64) -> bool {
    let is_old = *place == old;
    if is_old {
        *place = new;
    }
    is_old
}

/// An addition to the shared row of a key.
#[inline(never)]
fn miss(kind: u32, key: u32) -> u32 {
    let position = position(key);
    let Some(set) = set(position) else { return 0 };
    match ways::step(|place| word(set, place), key) {
        Step::Nothing => {}
        Step::Write(place, new) => {
            let place = &mut set[place & (WAYS - 1)];
            let old = *place;
            write(place, old, new);
        }
        Step::Claim(place) => {
            let is_syscall = kind == Kind::Syscall as u32;
            let row =
                if is_syscall { take(Kind::Syscall, &SYS_PRIVATE) } else { take(Kind::Slot, &SLOT_PRIVATE) };
            if row == NONE {
                return 0;
            }
            let place = &mut set[place & (WAYS - 1)];
            let old = *place;
            if !write(place, old, ways::naming(key, row)) {
                let _ = if is_syscall {
                    give_back(Kind::Syscall, &SYS_PRIVATE, row)
                } else {
                    give_back(Kind::Slot, &SLOT_PRIVATE, row)
                };
            }
        }
    }
    0
}

#[inline(always)]
fn left<'a>() -> Option<&'a mut PrivateLeft> {
    // SAFETY: a live map value; its numbers are changed by atomic additions alone.
    PRIVATE_LEFT.get_ptr_mut(0).map(|left| unsafe { &mut *left })
}

/// Takes a free row from a queue.
#[inline(always)]
fn take(kind: Kind, queue: &Queue<u32, 16>) -> u32 {
    // Asked first: the queue has one lock for all CPUs.
    let Some(left) = left() else { return NONE };
    if left.left[kind as usize] as i64 <= 0 {
        if left.wanted[kind as usize] == 0 {
            left.wanted[kind as usize] = 1;
        }
        return NONE;
    }
    let Ok(Some(row)) = queue.pop() else { return NONE };
    add_atomic(&mut left.left[kind as usize], u64::MAX);
    row
}

/// Gives a row to be taken.
#[inline(always)]
pub fn give_back(kind: Kind, queue: &Queue<u32, 16>, row: u32) -> Result<(), i32> {
    queue.push(row, 0)?;
    if let Some(left) = left() {
        add_atomic(&mut left.left[kind as usize], 1);
    }
    Ok(())
}

/// Writes a word that is the agent's to write; by its number over all CPUs.
#[inline(always)]
pub fn set_way(way: u32, word: u64) -> Result<(), i32> {
    let set = set(way / WAYS as u32).ok_or(-1)?;
    // SAFETY: an aligned word of a map value.
    unsafe { core::ptr::write_volatile(&raw mut set[way as usize % WAYS], word) };
    Ok(())
}
