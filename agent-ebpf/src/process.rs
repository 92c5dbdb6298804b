//! In: forks, execs, exits; out: their counts per slot, and the state of new tasks before they can run.
use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use agent_ebpf::{Loss, Total};

use crate::{
    kernel::{self, Task},
    row, slot,
    task::{self, TaskState},
};

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`: the child has its cgroup and cannot run yet.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) {
    let child = Task(ctx.arg(1));
    let is_process = child.pid() == child.tgid();
    row::count(if is_process { Total::Forked } else { Total::Threads }, 1);
    let slot = match TaskState::find_or_create(child) {
        Some(state) => state.slot,
        None => {
            row::lose(Loss::TaskStateFailed);
            slot::of_cgroup(child.cgroup_id())
        }
    };
    if let Some(row) = row::of_slot(slot) {
        row::add(if is_process { &mut row.forked } else { &mut row.threads }, 1);
    }
}

#[inline(always)]
fn slot_of(task: Task) -> u32 {
    match TaskState::find(task) {
        Some(state) => state.slot,
        None => slot::of_cgroup(task.cgroup_id()),
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

#[inline(always)]
fn exec(task: Task) {
    row::count(Total::Exec, 1);
    if let Some(row) = row::of_slot(slot_of(task)) {
        row::add(&mut row.exec, 1);
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
    if let Some(row) = row::of_slot(slot_of(task)) {
        row::add(&mut row.exited, 1);
    }
}
