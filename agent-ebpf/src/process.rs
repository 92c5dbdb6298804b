//! In: forks, execs, exits; out: their counts per slot, and the state of new tasks before they can run.
use core::ffi::c_void;

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use kernmeter_abi::{Loss, Total};

use crate::kernel::{self, Task};
use crate::{event, row, task};

/// `task_newtask(struct task_struct *task, u64 clone_flags)`: the task has its cgroup and cannot run yet. Unlike
/// `sched_process_fork` it also sees workers that the kernel makes for a process, for `io_uring` and vhost.
#[btf_tracepoint(function = "task_newtask")]
pub fn task_newtask(ctx: BtfTracePointContext) {
    let task = Task(ctx.arg(0));
    // The idle task of a CPU that comes for the first time.
    if task.pid() == 0 {
        return;
    }
    match task::create(task) {
        Some(state) => count_new(task, state.slot),
        // Counted when it is woken for the first time.
        None => {
            row::lose(Loss::TaskStateFailed);
        }
    }
}

/// Counts a new process or thread. Atomic: from the hooks of forks and of first wake-ups, which may interrupt those.
#[inline(always)]
pub fn count_new(task: Task, slot: u32) {
    let is_process = task.pid() == task.tgid();
    row::count_atomic(if is_process { Total::Forked } else { Total::Threads });
    if let Some(row) = row::shared_of_slot(slot) {
        row::add_atomic(if is_process { &mut row.forked } else { &mut row.threads }, 1);
    }
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) {
    exec(Task(ctx.arg(0)));
}

/// As [`process_exec`], where the kernel has no BTF tracepoints.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn raw_exec(_: RawTracePointContext) {
    exec(task::current());
}

/// As [`process_exec`], on the trace event `sched:sched_process_exec`: with preemption off.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
pub extern "C" fn event_exec(_: *mut c_void) -> u32 {
    exec(task::current());
    event::KEEP
}

#[inline(always)]
fn exec(task: Task) {
    row::count(Total::Exec, 1);
    if let Some(mut row) = row::of_slot(task::slot_of(task)) {
        row.add(|row| &mut row.exec, 1);
    }
}

/// `sched_process_exit(struct task_struct *p, bool group_dead)`; the second argument since 6.16.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) {
    // The second argument must not be read where it is not passed.
    let group_dead = kernel::has_group_dead() && ctx.arg::<u64>(1) & 1 != 0;
    exit(Task(ctx.arg(0)), group_dead);
}

/// As [`process_exit`], where the kernel has no BTF tracepoints.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn raw_exit(ctx: RawTracePointContext) {
    let group_dead = kernel::has_group_dead() && ctx.arg::<u64>(1) & 1 != 0;
    exit(task::current(), group_dead);
}

/// As [`process_exit`], on the trace event `sched:sched_process_exit`: with preemption off.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
pub extern "C" fn event_exit(ctx: *mut c_void) -> u32 {
    // SAFETY: the record of this event, on a kernel that has the field.
    let group_dead =
        kernel::has_group_dead() && unsafe { event::field::<u8>(ctx, event::GROUP_DEAD) } & 1 != 0;
    exit(task::current(), group_dead);
    event::KEEP
}

#[inline(always)]
fn exit(task: Task, group_dead: bool) {
    let last = if kernel::has_group_dead() {
        group_dead
    } else {
        // The leader exits once per process, unless another thread's exec ends it and takes its place.
        task.pid() == task.tgid() && !task.replaced_by_exec()
    };
    if !last {
        return;
    }
    row::count(Total::Exited, 1);
    if let Some(mut row) = row::of_slot(task::slot_of(task)) {
        row.add(|row| &mut row.exited, 1);
    }
}
