//! In: cgroups created, removed, tasks moved; out: a slot for each workload before its first instruction.
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::warn;
use kernmeter_abi::{
    CgroupRef, Loss, NAME_MAX, SLOT_OVERFLOW, SlotInfo, Total, is_workload_name, slot_state,
};

use crate::kernel::{self, Cgroup, Task};
use crate::maps::{CGROUPS, SCRATCH, SLOT_FREE, SLOTS};
use crate::{row, slot, task};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const NOEXIST: u64 = 1;

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`: before the directory can be seen, so before any task is in it.
/// A v2 cgroup is never renamed (only v1 hierarchies allow it), so its name is read once, here.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) {
    let cgroup = Cgroup(ctx.arg(0));
    if !cgroup.is_default_hierarchy() {
        return;
    }
    row::count(Total::CgroupMkdir, 1);
    let id = cgroup.id();
    let parent_id = cgroup.parent().id();
    // SAFETY: the value is copied at once.
    let parent = unsafe { CGROUPS.get(parent_id) }.copied();
    let parent = parent.unwrap_or(CgroupRef { slot: SLOT_OVERFLOW, flags: 0 });
    let own = if parent.flags & CgroupRef::INHERIT != 0 {
        CgroupRef { slot: parent.slot, flags: CgroupRef::INHERIT | CgroupRef::NESTED }
    } else {
        new_slot(&ctx, cgroup, id, parent_id, parent.slot)
    };
    if CGROUPS.insert(id, own, NOEXIST).is_err() {
        row::lose(Loss::CgroupMapFull);
    }
}

/// Takes a free slot and writes down what it stands for.
#[inline(always)]
fn new_slot(
    ctx: &BtfTracePointContext,
    cgroup: Cgroup,
    id: u64,
    parent_id: u64,
    parent_slot: u32,
) -> CgroupRef {
    // The name goes through scratch memory: a slot's info must not be touched before the slot is ours.
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return CgroupRef { slot: SLOT_OVERFLOW, flags: 0 } };
    // SAFETY: a live per-CPU map value, used with interrupts off.
    let scratch = unsafe { &mut *scratch };
    let len = read_name(cgroup, scratch);
    let name = &scratch.name;
    // The mask keeps the index inside the array in terms the verifier follows; `is_workload_name` stays below `len`.
    let flags = if is_workload_name(len, |i| name[i & NAME_MAX]) { CgroupRef::INHERIT } else { 0 };
    let Ok(Some(slot)) = SLOT_FREE.pop() else {
        let lost = row::lose(Loss::SlotExhausted);
        // A message at the first, second, fourth, eighth: a storm of cgroups must not become one of messages.
        if lost & lost.wrapping_sub(1) == 0 {
            warn!(
                ctx,
                "no free slot for cgroup {}: it is billed to the overflow slot; {} so on this cpu", id, lost
            );
        }
        return CgroupRef { slot: SLOT_OVERFLOW, flags };
    };
    if let Some(info) = SLOTS.get_ptr_mut(slot) {
        // SAFETY: a live map value that nobody else writes: the slot was in the free queue until now.
        let info = unsafe { &mut *info };
        info.name = scratch.name;
        info.name_len = len as u32;
        info.cgroup_id = id;
        info.parent_id = parent_id;
        info.parent_slot = parent_slot;
        info.removed_ns = 0;
        // SAFETY: the helper takes nothing.
        info.created_ns = unsafe { bpf_ktime_get_ns() };
        // Last: the agent reads an info only once it is live.
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut info.state, slot_state::LIVE) };
    }
    CgroupRef { slot, flags }
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
    if own.slot == SLOT_OVERFLOW || own.flags & CgroupRef::NESTED != 0 {
        // The slot is not this cgroup's own: only its entry goes.
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
    let cgroup = Cgroup(ctx.arg(0));
    if !cgroup.is_default_hierarchy() {
        return;
    }
    row::count(Total::Moved, 1);
    if let Some(row) = row::of_slot(slot::of_cgroup(cgroup.id())) {
        row::add_atomic(&mut row.moved_in, 1);
    }
    // Of a whole process only its leader is told: its other threads pay where they are from the next switch or pass on.
    let leader = Task(ctx.arg(2));
    if let Some(state) = task::find(leader) {
        state.moved_runtime_ns = leader.runtime();
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
