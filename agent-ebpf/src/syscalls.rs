//! In: syscall entries and exits; out: calls, errors, durations per slot and syscall, and calls that were answered before they
//! were entered. Knows no syscall names.
use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use kernmeter_abi::task::{CALL_NONE, ROW_NONE};
use kernmeter_abi::{Loss, SyscallRow, Total, syscall_key};

use crate::kernel::{Registers, Task};
use crate::row::Row;
use crate::{event, row, slot, task};

/// `MAX_ERRNO` of `include/linux/err.h`.
const MAX_ERRNO: i64 = 4095;

/// `sys_enter(struct pt_regs *regs, long id)`, since 5.5 as `tp_btf`.
#[btf_tracepoint(function = "sys_enter")]
pub fn sys_enter(ctx: BtfTracePointContext) {
    enter(ctx.arg(1));
}

/// As [`sys_enter`], where the kernel has no BTF tracepoints: everything needed is the current task's.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn raw_sys_enter(ctx: RawTracePointContext) {
    enter(ctx.arg(1));
}

/// As [`sys_enter`], on the trace event `raw_syscalls:sys_enter`: with preemption off.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
pub extern "C" fn event_sys_enter(ctx: *mut c_void) -> u32 {
    // SAFETY: the record of this event.
    enter(unsafe { event::field(ctx, event::ENTER_ID) });
    event::KEEP
}

#[inline(always)]
fn enter(nr: i64) {
    row::count(Total::SyscallEnter, 1);
    let task = task::current();
    let Some(state) = task::find_or_create(task) else {
        // Not lost: counted in the slot, without its syscall.
        row::lose(Loss::TaskStateFailed);
        if let Some(row) = row::shared_of_slot(slot::of_cgroup(task.cgroup())) {
            row::add_atomic(&mut row.overflow_calls, 1);
        }
        return;
    };
    task::rebind(state, task);
    let key = syscall_key::of(nr, task.in_compat_syscall());
    let index = task::row_of(state, (state.slot << 16) | key);
    if let Some(mut row) = row::of_syscall(index) {
        row.add(|row| &mut row.calls, 1);
    } else if let Some(row) = row::shared_of_slot(state.slot) {
        row::add_atomic(&mut row.overflow_calls, 1);
    }
    state.syscall = key;
    state.row = index;
    // Last, so that our own work is not in the measured time.
    // SAFETY: the helper takes nothing.
    state.enter_ns = unsafe { bpf_ktime_get_ns() };
}

/// `sys_exit(struct pt_regs *regs, long ret)`, since 5.5 as `tp_btf`.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) {
    exit(ctx.arg(1), || Registers(ctx.arg(0)).call_number());
}

/// As [`sys_exit`], where the kernel has no BTF tracepoints.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn raw_sys_exit(ctx: RawTracePointContext) {
    exit(ctx.arg(1), || Registers(ctx.arg(0)).call_number_by_address());
}

/// As [`sys_exit`], on the trace event `raw_syscalls:sys_exit`: with preemption off.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
pub extern "C" fn event_sys_exit(ctx: *mut c_void) -> u32 {
    // SAFETY: the record of this event.
    let number = || unsafe { event::field(ctx, event::EXIT_ID) };
    // SAFETY: as above.
    exit(unsafe { event::field(ctx, event::EXIT_RET) }, number);
    event::KEEP
}

/// The error a call returned; 0 for none.
#[inline(always)]
fn errno_of(ret: i64) -> u32 {
    if (-MAX_ERRNO..0).contains(&ret) { -ret as u32 } else { 0 }
}

/// A return to a program; `number` reads the call's number, which is not needed where the entry was seen.
#[inline(always)]
fn exit(ret: i64, number: impl FnOnce() -> i64) {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let task = task::current();
    let state = match task::find(task) {
        Some(state) if state.enter_ns != 0 => state,
        _ => return unentered(task, ret, number()),
    };
    row::count(Total::SyscallExit, 1);
    let entered = state.enter_ns;
    let index = state.row;
    state.enter_ns = 0;
    state.row = ROW_NONE;
    let ns = if now >= entered {
        now - entered
    } else {
        row::lose(Loss::ClockBackwards);
        0
    };
    let mut errno = errno_of(ret);
    if errno != 0 && syscall_key::is_sigreturn(state.syscall) {
        errno = 0;
    }
    if errno != 0 {
        row::count(Total::SyscallError, 1);
    }
    if let Some(mut row) = row::of_syscall(index) {
        row.add(|row| &mut row.sum_ns, ns);
        row.observe(|row| &mut row.buckets, ns);
        if errno != 0 {
            count_error(&mut row, state.slot, state.syscall, errno);
        }
    } else if let Some(row) = row::shared_of_slot(state.slot) {
        row::add_atomic(&mut row.overflow_done, 1);
        if errno != 0 {
            row::add_atomic(&mut row.overflow_errors, 1);
        }
    }
}

/// A return from what was not seen to be entered: a call that seccomp or a tracer answered, if the task has such a thing, or else
/// one that is older than the agent, or the first return of a new task. Rare, so apart from what runs at each call.
#[inline(never)]
fn unentered(task: Task, ret: i64, number: i64) {
    // Tasks the start-up iterator did not show (it keeps to the agent's pid namespace, and leaves out some even there) are met
    // here.
    let state = match task::find_or_create(task) {
        Some(state) if state.syscall != CALL_NONE && task.may_be_answered() => state,
        state => {
            row::count(Total::SyscallExitUnmatched, 1);
            // The next return without an entry is of another kind.
            if let Some(state) = state {
                state.syscall = syscall_key::NR_UNKNOWN;
            }
            return;
        }
    };
    row::count(Total::SyscallDenied, 1);
    task::rebind(state, task);
    let key = syscall_key::of(number, task.in_compat_syscall());
    let errno = errno_of(ret);
    if errno != 0 {
        row::count(Total::SyscallError, 1);
    }
    // Denied first: whoever reads a row meanwhile sees no call that seems to have been entered.
    if let Some(mut row) = row::of_syscall(task::row_of(state, (state.slot << 16) | key)) {
        row.add(|row| &mut row.denied, 1);
        row.add(|row| &mut row.calls, 1);
        if errno != 0 {
            count_error(&mut row, state.slot, key, errno);
        }
    } else if let Some(row) = row::shared_of_slot(state.slot) {
        row::add_atomic(&mut row.overflow_denied, 1);
        row::add_atomic(&mut row.overflow_calls, 1);
        if errno != 0 {
            row::add_atomic(&mut row.overflow_errors, 1);
        }
    }
}

#[inline(always)]
fn count_error(row: &mut Row<'_, SyscallRow>, slot: u32, key: u32, errno: u32) {
    if !row::count_errno(slot, key, errno) {
        row.add(|row| &mut row.other_errors, 1);
    }
}
