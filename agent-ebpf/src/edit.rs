//! In: a change of a table or a queue that the agent wants; out: the change, made by a program. Decides nothing.
//!
//! While bpf(2) changes or reads an element, the kernel runs no program on a trace event of that CPU. Since Linux 7.2 it may
//! preempt the caller in the middle, and then the calls of whoever runs meanwhile go uncounted. What a program changes holds
//! up nobody: so the agent changes nothing through bpf(2) while programs are attached.
use core::ffi::c_void;

use kernmeter_abi::CgroupRef;
use kernmeter_abi::edit::{self, NONE};

use crate::maps::{CGROUPS, ERR_FREE, ERR_INDEX, SLOT_FREE, SYS_FREE, SYS_INDEX};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const NOEXIST: u64 = 1;

/// An argument of a run.
///
/// # Safety
/// `ctx` is the context of a raw tracepoint with more than `index` arguments; the verifier checks it.
#[inline(always)]
unsafe fn argument(ctx: *const c_void, index: usize) -> u64 {
    // SAFETY: as said above.
    unsafe { core::ptr::read_volatile(ctx.cast::<u64>().add(index)) }
}

/// Makes one change: see [`edit`]. Never attached: the agent runs it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sched_switch")]
pub extern "C" fn edit(ctx: *mut c_void) -> u32 {
    // SAFETY: a raw tracepoint's context.
    let [change, key, value] = unsafe { [argument(ctx, 0), argument(ctx, 1), argument(ctx, 2)] };
    let done = match change as u32 {
        edit::CGROUP_GET => {
            // SAFETY: the value is copied at once.
            return unsafe { CGROUPS.get(key) }.copied().map_or(NONE, CgroupRef::pack);
        }
        edit::CGROUP_SET => CGROUPS.insert(key, CgroupRef::unpack(value as u32), 0),
        edit::CGROUP_ADD => CGROUPS.insert(key, CgroupRef::unpack(value as u32), NOEXIST),
        edit::CGROUP_REMOVE => CGROUPS.remove(key),
        edit::SYSCALL_REMOVE => SYS_INDEX.remove(key as u32),
        edit::ERRNO_REMOVE => ERR_INDEX.remove(key),
        edit::SLOT_POP => return SLOT_FREE.pop().ok().flatten().unwrap_or(NONE),
        edit::SLOT_PUSH => SLOT_FREE.push(key as u32, 0),
        edit::SYSCALL_PUSH => SYS_FREE.push(key as u32, 0),
        edit::ERRNO_PUSH => ERR_FREE.push(key as u32, 0),
        _ => return NONE,
    };
    if done.is_ok() { 0 } else { NONE }
}
