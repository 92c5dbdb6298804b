//! What one pass over the kernel's rows found: differences since the pass before. Knows no maps and no tenants.

use kernmeter_abi::histogram::BUCKETS;
use kernmeter_abi::{LOSSES, SlotRow, SyscallRow, TOTALS};

/// A slot that got an owner since the last pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The slot.
    pub slot: u32,
    /// cgroup-v2 id of its cgroup.
    pub cgroup_id: u64,
    /// Slot of the parent cgroup.
    pub parent_slot: u32,
    /// The cgroup's own name; empty if the kernel could not read it.
    pub name: Vec<u8>,
}

/// What a slot counted.
#[derive(Clone, Debug)]
pub struct SlotDelta {
    /// The slot.
    pub slot: u32,
    /// Differences of every field.
    pub row: SlotRow,
}

/// What a (slot, syscall) row counted.
#[derive(Clone, Debug)]
pub struct SyscallDelta {
    /// The slot.
    pub slot: u32,
    /// The syscall key, see [`kernmeter_abi::syscall_key`].
    pub syscall: u32,
    /// Differences of every field.
    pub row: SyscallRow,
}

/// What a (slot, syscall, errno) row counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrnoDelta {
    /// The slot.
    pub slot: u32,
    /// The syscall key.
    pub syscall: u32,
    /// The error number, positive.
    pub errno: u32,
    /// Errors.
    pub count: u64,
}

/// The result of one pass. Reused from pass to pass.
#[derive(Debug, Default)]
pub struct Batch {
    /// `CLOCK_MONOTONIC` when the rows were read, nanoseconds.
    pub taken_ns: u64,
    /// Slots that got an owner. Parents come before their children.
    pub births: Vec<Birth>,
    /// Slots whose cgroup was removed.
    pub deaths: Vec<u32>,
    /// Slots given back: this batch holds their last counts.
    pub freed: Vec<u32>,
    /// Slots that counted something.
    pub slots: Vec<SlotDelta>,
    /// Syscall rows that counted something.
    pub syscalls: Vec<SyscallDelta>,
    /// Errno rows that counted something.
    pub errors: Vec<ErrnoDelta>,
    /// The independent totals before the rows were read, summed over CPUs, since the agent started.
    pub totals_before: [u64; TOTALS],
    /// The same after the rows were read.
    pub totals_after: [u64; TOTALS],
    /// Losses by reason, summed over CPUs, since the agent started.
    pub losses: [u64; LOSSES],
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.births.clear();
        self.deaths.clear();
        self.freed.clear();
        self.slots.clear();
        self.syscalls.clear();
        self.errors.clear();
    }
}

/// A syscall row with nothing in it.
pub const EMPTY_SYSCALL_ROW: SyscallRow = SyscallRow {
    calls: 0,
    errors: 0,
    other_errors: 0,
    sum_ns: 0,
    blocked_ns: 0,
    denied: 0,
    buckets: [0; BUCKETS],
};

/// A slot row with nothing in it.
pub const EMPTY_SLOT_ROW: SlotRow = SlotRow {
    cpu_ns: 0,
    wait_ns: 0,
    voluntary: 0,
    involuntary: 0,
    migrations: 0,
    forked: 0,
    threads: 0,
    exec: 0,
    exited: 0,
    tasks: 0,
    moved_in: 0,
    blocked_other_ns: 0,
    overflow_calls: 0,
    overflow_errors: 0,
    overflow_done: 0,
    overflow_blocked_ns: 0,
    overflow_denied: 0,
    wait_buckets: [0; BUCKETS],
};
