//! The layout of what the programs remember of a task. Knows neither how it is stored nor what is done with it; the agent
//! only sizes tables by it.

/// Rows that a task remembers: workloads repeat few system calls.
pub const REMEMBERED_ROWS: usize = 4;

/// Row of a task outside any system call.
pub const ROW_NONE: u32 = u32::MAX;
/// Row of a call that found no row: counted in its slot's overflow fields.
pub const ROW_OVERFLOW: u32 = u32::MAX - 1;

/// What the programs remember of a task. Zero when created by the kernel: `bound == 0` means not set up yet.
///
/// Written by the task itself and by `sched_switch` while it is not running, except `wake_ns`, which the waker writes
/// under the run-queue lock, and `moved_runtime_ns`, which the mover writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskState {
    /// The cgroup the slot was looked up for: ids are not reused, pointers are.
    pub cgroup_id: u64,
    /// When the current call was entered, nanoseconds of `CLOCK_MONOTONIC`; 0 outside one.
    pub enter_ns: u64,
    /// When the task became runnable; 0 while it is not waiting for a CPU.
    pub wake_ns: u64,
    /// When the task blocked; 0 while it is not blocked.
    pub off_ns: u64,
    /// The scheduler's count of the task's run time up to which it was billed, nanoseconds.
    pub runtime_ns: u64,
    /// The same count when the task was last moved to another cgroup; 0 once that is billed.
    pub moved_runtime_ns: u64,
    /// `(row key + 1) << 32 | row`, or 0. Rows of the slot billed: they may be another's once the task has left the slot.
    pub rows: [u64; REMEMBERED_ROWS],
    /// The slot billed for calls.
    pub slot: u32,
    /// Row of the current call, [`ROW_NONE`] outside one.
    pub row: u32,
    /// Key of the current call.
    pub syscall: u32,
    /// 1 once set up.
    pub bound: u16,
    /// The slot billed for CPU time, switches and waits.
    pub payer: u16,
}
const _: () = assert!(size_of::<TaskState>() == 96);
