//! In: cgroups created, removed, tasks moved; out: a slot for each workload before its first instruction.
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_get_current_uid_gid, bpf_probe_read_kernel_str};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::warn;
use kernmeter_abi::{CgroupRef, Loss, NAME_MAX, Resource, SLOT_OVERFLOW, SlotInfo, Total, slot_state};

use crate::kernel::{self, Cgroup, Task};
use crate::maps::{CGROUPS, NOEXIST, SCRATCH, SLOT_FREE, SLOTS};
use crate::quota::Refusal;
use crate::{moves, quota, row, slot, task};

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`: before the directory can be seen, so before any task is in it.
/// A v2 cgroup is never renamed (only v1 hierarchies allow it), so its name is read once, here.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) {
    let cgroup = Cgroup(ctx.arg(0));
    if !cgroup.is_default_hierarchy() {
        return;
    }
    row::count(Total::CgroupMkdir, 1);
    // What is below a workload, or below a cgroup that has no slot itself, is found through the cgroups above it.
    // SAFETY: the value is copied at once.
    let Some(parent) = (unsafe { CGROUPS.get(cgroup.parent().id()) }).copied() else { return };
    if parent.flags & CgroupRef::INHERIT != 0 || parent.slot == SLOT_OVERFLOW {
        return;
    }
    // The name goes through scratch memory: a slot's info must not be touched before the slot is ours.
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: a live per-CPU map value, used with interrupts off.
    let scratch = unsafe { &mut *scratch };
    let len = read_name(cgroup, scratch);
    let name = &scratch.name;
    // The mask keeps the index inside the array in terms the verifier follows; names are looked at below `len` only.
    let flags = CgroupRef::flags_of(len, |i| name[i & NAME_MAX]);
    if let Some(slot) = take_slot(&ctx, cgroup, parent.slot, flags) {
        describe(cgroup, slot, parent.slot, scratch, len);
    } else if is_made_by_root() && parent.flags & CgroupRef::POD == 0 {
        // Nobody's part: not to be taken for its parent's. Whoever cannot make such cgroups cannot fill the table with them.
        let own = CgroupRef { slot: SLOT_OVERFLOW, flags };
        if CGROUPS.insert(cgroup.id(), own, NOEXIST).is_err() {
            row::lose(Loss::CgroupMapFull);
        }
    } else if let Some(row) = row::shared_of_slot(parent.slot) {
        row::add_atomic(&mut row.folded, 1);
    }
}

/// Whether the cgroup that is being made is an account of its own. The id is that of the first user namespace: root in a
/// container with users of its own is another.
#[inline(always)]
fn is_made_by_root() -> bool {
    // SAFETY: the helper takes nothing and only returns a number.
    unsafe { bpf_get_current_uid_gid() as u32 == 0 }
}

/// Takes a free slot for a cgroup and enters it in the table, if its account may have one more.
#[inline(always)]
fn take_slot(ctx: &BtfTracePointContext, cgroup: Cgroup, parent_slot: u32, flags: u32) -> Option<u32> {
    let refusal = if is_made_by_root() {
        quota::ask_for_new(Resource::Slots)
    } else {
        quota::ask(quota::account_of(parent_slot), Resource::Slots)
    };
    let free = if refusal.is_ok() { SLOT_FREE.pop() } else { Ok(None) };
    let Ok(Some(slot)) = free else {
        let is_quota = matches!(refusal, Err(Refusal::Quota));
        let lost = row::lose(if is_quota { Loss::SlotQuota } else { Loss::SlotExhausted });
        // A message at the first, second, fourth, eighth: a storm of cgroups must not become one of messages.
        if lost & lost.wrapping_sub(1) == 0 {
            warn!(
                ctx,
                "no slot for cgroup {}, below slot {}: it is counted with the one above; {} so on this cpu",
                cgroup.id(),
                parent_slot,
                lost
            );
        }
        return None;
    };
    if CGROUPS.insert(cgroup.id(), CgroupRef { slot, flags }, NOEXIST).is_err() {
        row::lose(Loss::CgroupMapFull);
        let _ = SLOT_FREE.push(slot, 0);
        return None;
    }
    Some(slot)
}

/// Writes down what a slot stands for, and whose account it is on.
#[inline(always)]
fn describe(cgroup: Cgroup, slot: u32, parent_slot: u32, scratch: &SlotInfo, len: usize) {
    let account = if is_made_by_root() {
        quota::count_root_slot();
        slot
    } else {
        quota::account_of(parent_slot)
    };
    quota::charge(account, Resource::Slots);
    let Some(info) = SLOTS.get_ptr_mut(slot) else { return };
    // SAFETY: a live map value that nobody else writes: the slot was in the free queue until now.
    let info = unsafe { &mut *info };
    info.name = scratch.name;
    info.name_len = len as u32;
    info.cgroup_id = cgroup.id();
    info.parent_id = cgroup.parent().id();
    info.parent_slot = parent_slot;
    info.account = account;
    info.removed_ns = 0;
    // SAFETY: the helper takes nothing.
    info.created_ns = unsafe { bpf_ktime_get_ns() };
    // Last: the agent reads an info only once it is live.
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut info.state, slot_state::LIVE) };
}

/// Reads the cgroup's own name into the scratch info; returns its length, 0 where names cannot be read.
#[inline(always)]
fn read_name(cgroup: Cgroup, scratch: &mut SlotInfo) -> usize {
    if !kernel::has_probe_read() {
        return 0;
    }
    // SAFETY: the destination is 256 bytes of a map value; the helper copes with any source address.
    let copied =
        unsafe { bpf_probe_read_kernel_str(scratch.name.as_mut_ptr().cast(), 256, cgroup.name().cast()) };
    // The count includes the final NUL.
    if copied <= 1 { 0 } else { (copied - 1) as usize & NAME_MAX }
}

/// `cgroup_rmdir(struct cgroup *cgrp, const char *path)`: no live task is in it any more and none can enter.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) {
    let cgroup = Cgroup(ctx.arg(0));
    if !cgroup.is_default_hierarchy() {
        return;
    }
    row::count(Total::CgroupRmdir, 1);
    let id = cgroup.id();
    // SAFETY: the value is copied at once.
    let Some(own) = (unsafe { CGROUPS.get(id) }).copied() else { return };
    if own.slot == SLOT_OVERFLOW {
        // It found no slot: only its entry goes.
        let _ = CGROUPS.remove(id);
        return;
    }
    // The entry stays until the agent recycles the slot: the last tasks may still be on their way out.
    if let Some(info) = SLOTS.get_ptr_mut(own.slot) {
        // SAFETY: a live map value; once dead, only the agent writes it.
        unsafe {
            (*info).removed_ns = bpf_ktime_get_ns();
            core::ptr::write_volatile(&raw mut (*info).state, slot_state::DEAD);
        }
    }
}

#[inline(always)]
fn moved(ctx: &BtfTracePointContext) {
    // In whatever hierarchy: a move in one of version 1 gives another `css_set` as well.
    moves::add();
    let cgroup = Cgroup(ctx.arg(0));
    if !cgroup.is_default_hierarchy() {
        return;
    }
    row::count(Total::Moved, 1);
    if let Some(row) = row::shared_of_slot(slot::of_cgroup(cgroup)) {
        row::add_atomic(&mut row.moved_in, 1);
    }
    // Of a whole process only its leader is told: its other threads, except the one that moves them, pay where they are from the
    // next switch or pass on.
    let (leader, mover) = (Task(ctx.arg(2)), task::current());
    if mover.tgid() == leader.tgid() {
        task::settle(mover);
    }
    if mover.pid() != leader.pid() {
        task::note_move(leader);
    }
}

/// `cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`.
/// The task's calls are bound anew at its next syscall entry or switch outside a call, its CPU time at once.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach(ctx: BtfTracePointContext) {
    moved(&ctx);
}

/// `cgroup_transfer_tasks(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`.
#[btf_tracepoint(function = "cgroup_transfer_tasks")]
pub fn cgroup_transfer(ctx: BtfTracePointContext) {
    moved(&ctx);
}
