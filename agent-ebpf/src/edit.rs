//! In: a change of a table or a queue that the agent wants; out: the change, made by a program. Decides nothing.
//!
//! While bpf(2) changes or reads an element, the kernel runs no program on a trace event of that CPU. Since Linux 7.2 it may
//! preempt the caller in the middle, and then the calls of whoever runs meanwhile go uncounted. What a program changes holds
//! up nobody: so the agent reads and changes nothing through bpf(2) while programs are attached, but for maps that the kernel
//! does not let it read as memory.
use core::ffi::c_void;

use aya_ebpf::programs::RawTracePointContext;
use kernmeter_abi::CgroupRef;
use kernmeter_abi::edit::{self, NONE};
use kernmeter_abi::ways::RETIRED;

use crate::maps::{
    CGROUPS, ERR_FREE, ERR_INDEX, NOEXIST, SLOT_FREE, SLOT_PRIVATE, SYS_FREE, SYS_INDEX, SYS_INDEX_MORE,
    SYS_PRIVATE,
};
use crate::private::{self, Kind};

/// Does something with so many numbers from the first on.
#[inline(always)]
fn each(first: u64, count: u32, what: impl Fn(u32) -> Result<(), i32>) -> Result<(), i32> {
    let mut n = 0;
    while n < edit::PUSHED_AT_ONCE {
        if n < count {
            what(first as u32 + n)?;
        }
        n += 1;
    }
    Ok(())
}

/// Makes one change: see [`edit`]. Never attached: the agent runs it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sched_switch")]
pub extern "C" fn edit(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    let (change, key, value): (u32, u64, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let done = match change {
        edit::CGROUP_GET => {
            // SAFETY: the value is copied at once.
            return unsafe { CGROUPS.get(key) }.copied().map_or(NONE, CgroupRef::pack);
        }
        edit::CGROUP_SET => CGROUPS.insert(key, CgroupRef::unpack(value), 0),
        edit::CGROUP_ADD => CGROUPS.insert(key, CgroupRef::unpack(value), NOEXIST),
        edit::CGROUP_REMOVE => CGROUPS.remove(key),
        edit::SYSCALL_REMOVE => {
            let done = SYS_INDEX.remove(key as u32);
            // Two CPUs may have entered a key twice.
            SYS_INDEX_MORE.get(0).map_or(done, |more| more.remove(key as u32).or(done))
        }
        edit::ERRNO_REMOVE => ERR_INDEX.remove(key),
        edit::SLOT_POP => return SLOT_FREE.pop().ok().flatten().unwrap_or(NONE),
        edit::SLOT_PUSH => each(key, value, |slot| SLOT_FREE.push(slot, 0)),
        edit::SYSCALL_PUSH => each(key, value, |row| SYS_FREE.push(row, 0)),
        edit::ERRNO_PUSH => each(key, value, |row| ERR_FREE.push(row, 0)),
        edit::PRIVATE_SYSCALL_PUSH => {
            each(key, value, |row| private::give_back(Kind::Syscall, &SYS_PRIVATE, row))
        }
        edit::PRIVATE_SLOT_PUSH => each(key, value, |row| private::give_back(Kind::Slot, &SLOT_PRIVATE, row)),
        edit::WAY_RETIRE => private::set_way(key as u32, RETIRED),
        edit::WAY_FREE => private::set_way(key as u32, 0),
        _ => return NONE,
    };
    if done.is_ok() { 0 } else { NONE }
}
