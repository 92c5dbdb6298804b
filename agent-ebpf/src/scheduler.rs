//! In: switches, wake-ups, migrations; out: CPU, wait and block time per slot. All run with interrupts off.
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use kernmeter_abi::task::{ROW_NONE, TaskState};
use kernmeter_abi::{Loss, Total};

use crate::kernel::{self, Task};
use crate::{flush, process, row, slot, task};

/// `TASK_DEAD` of `include/linux/sched.h`.
const TASK_DEAD: u32 = 0x80;

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`; the fourth
/// argument since 5.18.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) {
    let prev = Task(ctx.arg(1));
    // The fourth argument must not be read where it is not passed.
    let prev_state = if kernel::has_prev_state() { ctx.arg::<u64>(3) as u32 } else { prev.state() };
    // Before anything is counted: while that is on its way, nobody must take the CPU for idle.
    if prev.pid() == 0 {
        flush::set_idle(false);
    }
    let now = leave(prev, ctx.arg(0), prev_state);
    let next = Task(ctx.arg(2));
    if next.pid() == 0 {
        flush::set_idle(true);
    } else {
        switch_in(next, now);
    }
}

/// As [`sched_switch`], where the kernel has no BTF tracepoints: CPU time and switches of the task that leaves. The task
/// that comes is a plain address here, so waits and block times cannot be told, nor whether the CPU idles.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn raw_switch(ctx: RawTracePointContext) {
    let prev = task::current();
    let prev_state = if kernel::has_prev_state() { ctx.arg::<u64>(3) as u32 } else { prev.state() };
    // No switch to the task was seen: it pays for its time where it is now.
    if let Some(state) = task::find(prev) {
        task::bind_payer(state, prev);
    }
    leave(prev, ctx.arg(0), prev_state);
}

/// The half of a switch that concerns the task that leaves; returns the time.
#[inline(always)]
fn leave(prev: Task, preempt: u64, prev_state: u32) -> u64 {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let elapsed = flush::since_last(now);
    if prev.pid() == 0 {
        row::count(Total::IdleNs, elapsed);
    } else {
        switch_out(prev, preempt & 1 != 0, prev_state, elapsed, now);
    }
    now
}

#[inline(always)]
fn switch_out(task: Task, preempt: bool, task_state: u32, elapsed: u64, now: u64) {
    // A task preempted on its way to sleep stays on the run queue.
    let runnable = preempt || task_state == 0;
    row::count(if runnable { Total::SwitchInvoluntary } else { Total::SwitchVoluntary }, 1);
    let mut state = task::find(task);
    let (slot, ran) = if let Some(state) = &mut state {
        let ran = task::take_runtime(state, task, elapsed);
        (state.payer, ran)
    } else {
        row::lose(Loss::NoTaskState);
        (slot::of_cgroup(task.cgroup()), elapsed)
    };
    row::count(Total::CpuNs, ran);
    if let Some(mut row) = row::of_slot(slot) {
        row.add(|row| &mut row.cpu_ns, ran);
        row.add(|row| if runnable { &mut row.involuntary } else { &mut row.voluntary }, 1);
    }
    let Some(state) = state else { return };
    if runnable {
        state.wake_ns = now;
        state.off_ns = 0;
    } else {
        state.wake_ns = 0;
        state.off_ns = now;
        if task_state & TASK_DEAD != 0 {
            task::release(state, task);
        }
    }
}

#[inline(always)]
fn switch_in(task: Task, now: u64) {
    let Some(state) = task::find(task) else {
        row::lose(Loss::NoTaskState);
        return;
    };
    let woken = state.wake_ns;
    let blocked = state.off_ns;
    state.wake_ns = 0;
    state.off_ns = 0;
    if blocked != 0 {
        let until = if woken != 0 {
            woken
        } else {
            row::lose(Loss::WakeupMissed);
            now
        };
        if until < blocked {
            row::lose(Loss::ClockBackwards);
        } else if state.row != ROW_NONE || !task.is_worker() {
            // A worker that sleeps has nothing to do: nobody waits for it.
            charge_blocked(state, until - blocked);
        }
    }
    if state.row == ROW_NONE {
        task::rebind(state, task);
        state.payer = state.slot;
    } else {
        task::bind_payer(state, task);
    }
    if woken == 0 {
        return;
    }
    if now < woken {
        row::lose(Loss::ClockBackwards);
        return;
    }
    row::count(Total::Waits, 1);
    row::count(Total::WaitNs, now - woken);
    if let Some(mut row) = row::of_slot(state.payer) {
        row.add(|row| &mut row.wait_ns, now - woken);
        row.observe(|row| &mut row.wait_buckets, now - woken);
    }
}

/// Charges time blocked to the syscall the task blocked in.
#[inline(always)]
fn charge_blocked(state: &TaskState, ns: u64) {
    row::count(Total::BlockedNs, ns);
    if let Some(mut row) = row::of_syscall(state.row) {
        row.add(|row| &mut row.blocked_ns, ns);
    } else if let Some(mut row) = row::of_slot(state.slot) {
        let is_outside = state.row == ROW_NONE;
        row.add(|row| if is_outside { &mut row.blocked_other_ns } else { &mut row.overflow_blocked_ns }, ns);
    }
}

/// Notes when a task became runnable. One that was preempted on its way to sleep has been runnable since then: being woken adds
/// nothing.
#[inline(always)]
fn woken<'a>(task: Task) -> Option<&'a mut TaskState> {
    let state = task::find(task)?;
    if state.wake_ns == 0 {
        // SAFETY: the helper takes nothing.
        state.wake_ns = unsafe { bpf_ktime_get_ns() };
    }
    Some(state)
}

/// `sched_wakeup(struct task_struct *p)`, run-queue lock held.
#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) {
    woken(Task(ctx.arg(0)));
}

/// `sched_wakeup_new(struct task_struct *p)`, run-queue lock held. Each new task comes by once, with interrupts off: one that
/// `task_newtask` could not set up, or missed, is counted here.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn wakeup_new(ctx: BtfTracePointContext) {
    let task = Task(ctx.arg(0));
    let slot = match woken(task) {
        Some(state) if state.flags & TaskState::COUNTED != 0 => return,
        Some(state) => state.slot,
        None => slot::of_cgroup(task.cgroup()),
    };
    process::count_new(task, slot);
}

/// `sched_migrate_task(struct task_struct *p, int dest_cpu)`, run-queue or wake-up lock held.
#[btf_tracepoint(function = "sched_migrate_task")]
pub fn sched_migrate(ctx: BtfTracePointContext) {
    let task = Task(ctx.arg(0));
    row::count(Total::Migrations, 1);
    if let Some(mut row) = row::of_slot_in_interrupt(task::slot_of(task)) {
        row.add(|row| &mut row.migrations, 1);
    }
}

/// `CPUHP_CREATE_THREADS` of `include/linux/cpuhotplug.h`: the first step of each CPU that comes, on another CPU.
const FIRST_STEP: u32 = 1;

/// `cpuhp_exit(unsigned int cpu, int state, int idx, int ret)`, after each step of a CPU that comes or goes.
#[btf_tracepoint(function = "cpuhp_exit")]
pub fn cpuhp_exit(ctx: BtfTracePointContext) {
    cpu_step(ctx.arg(0), ctx.arg(2));
}

/// As [`cpuhp_exit`], where the kernel has no BTF tracepoints.
#[raw_tracepoint(tracepoint = "cpuhp_exit")]
pub fn raw_cpuhp_exit(ctx: RawTracePointContext) {
    cpu_step(ctx.arg(0), ctx.arg(2));
}

#[inline(always)]
fn cpu_step(cpu: u32, step: u32) {
    if step == FIRST_STEP {
        flush::forget(cpu);
    }
}
