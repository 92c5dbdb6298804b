//! In: an account and a resource; out: whether the account may take another one, and what it has taken. Knows no rows.
use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;
use kernmeter_abi::{Holdings, Resource, is_wake_due, may_take};

use crate::atomic::add_atomic;
use crate::kernel;
use crate::maps::{GIVEN, LOW_WATER, SLOTS, TAKEN, WAKE};

/// Element of the last kind: what accounts have together.
#[inline(always)]
fn pool() -> u32 {
    kernel::slots()
}

#[inline(always)]
fn taken<'a>(account: u32) -> Option<&'a mut Holdings> {
    // SAFETY: a live map value; its numbers are changed by atomic additions alone.
    TAKEN.get_ptr_mut(account).map(|taken| unsafe { &mut *taken })
}

/// What an account holds, or of the pool what is free with the sign turned.
#[inline(always)]
fn held(account: u32, resource: Resource) -> u64 {
    let (Some(taken), Some(given)) = (taken(account), GIVEN.get(account)) else { return 0 };
    taken.values[resource as usize].wrapping_sub(given.values[resource as usize])
}

/// The account of a slot.
#[inline(always)]
pub fn account_of(slot: u32) -> u32 {
    SLOTS.get(slot).map_or(slot, |info| info.account)
}

/// Why an account may not take another one.
pub enum Refusal {
    /// There is none.
    NoneLeft,
    /// It holds more than are free.
    Quota,
}

/// Whether the account may take another one. Others may do so at the same moment: a few more are taken then than are said here.
#[inline(always)]
pub fn ask(account: u32, resource: Resource) -> Result<(), Refusal> {
    let free = held(pool(), resource).wrapping_neg();
    if !may_take(0, free) {
        Err(Refusal::NoneLeft)
    } else if !may_take(held(account, resource), free) {
        Err(Refusal::Quota)
    } else {
        Ok(())
    }
}

/// The same for an account that holds none yet.
#[inline(always)]
pub fn ask_for_new(resource: Resource) -> Result<(), Refusal> {
    if may_take(0, held(pool(), resource).wrapping_neg()) { Ok(()) } else { Err(Refusal::NoneLeft) }
}

#[inline(always)]
fn add(account: u32, resource: Resource) {
    if let Some(taken) = taken(account) {
        add_atomic(&mut taken.values[resource as usize], 1);
    }
}

/// Puts one on the account, and takes it from the pool. Wakes the agent where few are left: until its next look of its own
/// accord more may be taken than there are.
#[inline(always)]
pub fn charge(account: u32, resource: Resource) {
    add(account, resource);
    add(pool(), resource);
    let free = held(pool(), resource).wrapping_neg();
    let Some(low_water) = LOW_WATER.get(0) else { return };
    if is_wake_due(free, low_water.values[resource as usize]) {
        // A ring that is full has woken it already.
        let _ = WAKE.output(0u64, u64::from(BPF_RB_FORCE_WAKEUP));
    }
}

/// Counts a slot that is an account of its own.
#[inline(always)]
pub fn count_root_slot() {
    add(pool(), Resource::RootSlots);
}
