//! The layout of what the programs remember of a task. Knows neither how it is stored nor what is done with it; the agent
//! only sizes tables by it.

/// Rows that a task remembers: workloads repeat few system calls.
pub const REMEMBERED_ROWS: usize = 4;

/// Row of a task outside any system call.
pub const ROW_NONE: u32 = u32::MAX;
/// Row of a call that found no row: counted in its slot's overflow fields.
pub const ROW_OVERFLOW: u32 = u32::MAX - 1;

/// Key of a task that was not seen to enter a call or to return from one.
pub const CALL_NONE: u32 = u32::MAX;

/// Run time of a task that has not left a CPU since its state was set up.
pub const RUNTIME_UNKNOWN: u64 = u64::MAX;

/// No move is left to be billed.
pub const MOVED_NONE: u64 = 0;

/// The task has just moved itself and bills what it ran until then: nobody else is to bill it now.
pub const MOVED_SETTLING: u64 = u64::MAX;

/// What the programs remember of a task. Found by nobody before every field is set.
///
/// Written by the task itself and by `sched_switch` while it is not running, except `wake_ns`, which the waker writes
/// under the run-queue lock, `moved_runtime_ns`, which the mover writes, `runtime_ns` and `payer`, which `flush_cpu` writes
/// too, on the task's CPU, and `slot` and `row`, which the iterator exchanges for tasks in a call of an overdue slot.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskState {
    /// The cgroup the slot was looked up for: ids are not reused, pointers are.
    pub cgroup_id: u64,
    /// Address of the task's set of cgroups when it was seen to be in that cgroup.
    pub cgroup_set: u64,
    /// When the current call was entered, nanoseconds of `CLOCK_MONOTONIC`; 0 outside one.
    pub enter_ns: u64,
    /// When the task became runnable; 0 while it is not waiting for a CPU.
    pub wake_ns: u64,
    /// When the task blocked; 0 while it is not blocked.
    pub off_ns: u64,
    /// The scheduler's count of the task's run time up to which it was billed, nanoseconds, or [`RUNTIME_UNKNOWN`].
    pub runtime_ns: u64,
    /// One more than the same count when another task last moved this one to another cgroup (a task that has not run may be
    /// moved, too), [`MOVED_NONE`] once that is billed, or [`MOVED_SETTLING`].
    pub moved_runtime_ns: u64,
    /// `(row key + 1) << 32 | row`, or 0. Rows of the slot billed: they may be another's once the task has left the slot.
    pub rows: [u64; REMEMBERED_ROWS],
    /// What tells this state from others of the same task or, in a table, from that of another task at the same address.
    pub origin: u64,
    /// The slot billed for calls.
    pub slot: u32,
    /// Row of the current call, [`ROW_NONE`] outside one.
    pub row: u32,
    /// Key of the current call, or of the last; [`CALL_NONE`] before the first.
    pub syscall: u32,
    /// [`BOUND`](Self::BOUND) and [`COUNTED`](Self::COUNTED).
    pub flags: u32,
    /// The slot billed for CPU time, switches and waits.
    pub payer: u32,
    /// Not 0 if the slot is that of a cgroup above, for want of one of its own: it may get one.
    pub borrows: u32,
    /// How many moves of tasks there had been by then, modulo 2^32.
    pub moves: u32,
    /// Nothing: a state is laid out in words of 8 bytes.
    pub padding: u32,
}
const _: () = assert!(size_of::<TaskState>() == 128);

impl TaskState {
    /// The task is counted in its slot. Gone after the task's last switch.
    pub const BOUND: u32 = 1;
    /// The task was counted as a new process or thread when it was made.
    pub const COUNTED: u32 = 2;
}
