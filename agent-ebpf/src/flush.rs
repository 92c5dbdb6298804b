//! In: a CPU's clock; out: the time of the task now on that CPU, so that a drain sees time that no switch has ended yet.
use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use kernmeter_abi::{Loss, Total};

use crate::kernel::{self, Task};
use crate::maps::CPU_SINCE;
use crate::{row, slot, task};

/// Nanoseconds since this CPU was last accounted, which becomes `now`; 0 the first time.
#[inline(always)]
pub fn since_last(now: u64) -> u64 {
    let Some(since) = CPU_SINCE.get_ptr_mut(kernel::cpu()) else { return 0 };
    // SAFETY: a live map value, written by its CPU alone while that is online, with interrupts or preemption off.
    let since = unsafe { &mut (*since).ns };
    let last = core::mem::replace(since, now);
    if last == 0 || now < last { 0 } else { now - last }
}

/// Forgets when a CPU was last accounted, which is not online yet: whatever it did since, it did not idle.
#[inline(always)]
pub fn forget(cpu: u32) {
    if let Some(since) = CPU_SINCE.get_ptr_mut(cpu) {
        // SAFETY: a live map value that nobody else writes now.
        unsafe { ((*since).ns, (*since).is_idle) = (0, 0) };
    }
}

/// Says whether this CPU idles from now on. The last that a switch does: whoever reads it as idle finds in the rows all that
/// the CPU counted, as x86-64 shows stores in their order.
#[inline(always)]
pub fn set_idle(is_idle: bool) {
    if let Some(since) = CPU_SINCE.get_ptr_mut(kernel::cpu()) {
        // SAFETY: a live map value, written by its CPU alone while that is online, with interrupts off.
        unsafe { core::ptr::write_volatile(&raw mut (*since).is_idle, is_idle.into()) };
    }
}

/// Accounts the task now running on this CPU up to now. Never attached: the agent runs it on each CPU before it reads the
/// rows. It runs with interrupts off (another CPU asked) or preemption off (this one did), so no switch can interleave.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn flush_cpu(_: RawTracePointContext) {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let current = task::current();
    let state = task::find(current);
    // Billing it here, too, would bill it twice. Its next switch or pass does it.
    if state.as_deref().is_some_and(task::is_settling) {
        return;
    }
    let elapsed = since_last(now);
    if current.pid() == 0 {
        row::count(Total::IdleNs, elapsed);
        return;
    }
    let (slot, ran) = match state {
        Some(state) => {
            let ran = task::take_runtime_so_far(state, current, elapsed);
            let payer = state.payer;
            task::bind_payer(state, current);
            (payer, ran)
        }
        None => (slot::of_cgroup(current.cgroup()), elapsed),
    };
    row::charge_cpu(slot, ran);
}

/// `struct bpf_iter__task`.
#[repr(C)]
struct TaskIteration {
    meta: *const c_void,
    task: *mut aya_ebpf::bindings::task_struct,
}

/// Sets up the state of each task that has none, as it is older than the agent, and takes tasks off slots that are overdue. Run at
/// start, and where there are such slots, by reading a task iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn adopt_task(ctx: *mut c_void) -> i32 {
    // SAFETY: the kernel passes a `bpf_iter__task`.
    let task = unsafe { (*ctx.cast::<TaskIteration>()).task };
    if task.is_null() {
        return 0;
    }
    if !task::adopt(Task(task)) {
        row::lose(Loss::TaskStateFailed);
    }
    task::take_off_overdue(Task(task));
    0
}
