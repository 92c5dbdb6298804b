//! The ABI: layouts and numbers shared by the eBPF programs and the agent. Knows no map handles, no I/O, no tenants.
//!
//! Every struct is `repr(C)`, made of `u64`/`u32` with no hidden padding, and its size is asserted on both targets:
//! a mismatch fails to compile instead of misreading a counter.
#![cfg_attr(not(test), no_std)]
#![allow(
    clippy::inline_always,
    reason = "programs are one function each, for the verifier's sake and for speed"
)]

use core::mem::offset_of;

pub mod edit;
pub mod errno;
pub mod histogram;
pub mod syscall_key;
pub mod task;
pub mod ways;

/// Slot of the root cgroup: kernel threads and whatever runs outside every other cgroup.
pub const SLOT_HOST: u32 = 0;
/// Slot of everything whose cgroup got no slot of its own (none free, or its cgroup is unknown). Exact in sum.
pub const SLOT_OVERFLOW: u32 = 1;
/// First slot that is handed to a cgroup.
pub const FIRST_SLOT: u32 = 2;
/// No slot: that of a task that has ended.
pub const SLOT_NONE: u32 = u32::MAX;
/// Slots are packed into 16 bits of a row key.
pub const MAX_SLOTS: u32 = 1 << 16;

/// Longest cgroup name kept, in bytes (the kernel's `NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// Marks the key of a row (`SYS_KEYS`, `ERR_KEYS`) as used; the key is in the bits below.
pub const KEY_USED: u64 = 1 << 63;

/// Syscall rows that are made at a time.
pub const SYSCALL_CHUNK: u32 = 1024;
/// Slot rows that are made at a time.
pub const SLOT_CHUNK: u32 = 256;
/// Chunks of syscall rows at most: the first half of rows that CPUs share, the second half of private ones.
pub const SYSCALL_CHUNKS: u32 = 4096;
/// Chunks of slot rows at most, in halves as above.
pub const SLOT_CHUNKS: u32 = 512;
/// The first private syscall row.
pub const FIRST_PRIVATE_SYSCALL_ROW: u32 = SYSCALL_CHUNKS / 2 * SYSCALL_CHUNK;
/// The first private slot row.
pub const FIRST_PRIVATE_SLOT_ROW: u32 = SLOT_CHUNKS / 2 * SLOT_CHUNK;
const _: () = assert!(FIRST_PRIVATE_SLOT_ROW == MAX_SLOTS);

/// How many private rows nobody uses. Written by the programs alone, atomically.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct PrivateLeft {
    /// Syscall rows, then slot rows: what is in their queues.
    pub left: [u64; 2],
    /// 1 once one was asked for in vain. Not atomic, and never 0 again.
    pub wanted: [u64; 2],
}

/// A field of a row: what the agent's columns and its reading derive from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name here.
    pub name: &'static str,
    /// Byte offset in the row.
    pub offset: usize,
    /// Bytes: 8 for a counter, more for histogram buckets of 4 bytes each.
    pub size: usize,
}

/// Declares rows of counters, and lists their fields.
macro_rules! rows {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$about:meta])* pub $field:ident: $type:ty,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($(#[$about])* pub $field: $type,)+ }

        impl $name {
            /// Every field, in the order of the struct.
            pub const FIELDS: &'static [Field] = &[$(Field {
                name: stringify!($field),
                offset: offset_of!($name, $field),
                size: size_of::<$type>(),
            },)+];
        }
    )+};
}

rows! {
    /// Counters of one (slot, syscall), shared or private.
    ///
    /// `calls`, `other_errors`, `sum_ns`, `denied` and `buckets` are written by `sys_enter`/`sys_exit` alone, `blocked_ns`
    /// by `sched_switch` alone (interrupts off). Neither can interrupt itself on one CPU, so plain increments of a CPU's
    /// private row are exact; shared rows are written with atomic adds.
    #[repr(C, align(64))]
    pub struct SyscallRow {
        /// Entries into the syscall, and calls that were answered before.
        pub calls: u64,
        /// Returns with an error (`-4095..=-1`) that found no errno row.
        pub other_errors: u64,
        /// Sum of the measured durations, nanoseconds.
        pub sum_ns: u64,
        /// Time blocked (off the CPU and not runnable) inside the syscall, nanoseconds.
        pub blocked_ns: u64,
        /// The part of `calls` that seccomp or a tracer answered before they were entered.
        pub denied: u64,
        /// Finished calls by duration. Wraps at 2^32: readers take differences.
        pub buckets: [u32; histogram::BUCKETS],
    }

    /// Counters of one slot, shared or private, whole cache lines. What is atomic is in the shared row alone.
    ///
    /// Written by scheduler hooks with interrupts off unless the field says otherwise.
    #[repr(C, align(64))]
    pub struct SlotRow {
        /// Time on a CPU, nanoseconds. Writers: `sched_switch`, `flush_cpu` (which cannot interrupt each other).
        pub cpu_ns: u64,
        /// Time runnable but waiting for a CPU, nanoseconds (`sched_switch`).
        pub wait_ns: u64,
        /// Switches off a CPU because the task blocked or exited (`sched_switch`).
        pub voluntary: u64,
        /// Switches off a CPU while the task could have gone on (`sched_switch`).
        pub involuntary: u64,
        /// Moves of a runnable or waking task to another CPU (`sched_migrate_task`).
        pub migrations: u64,
        /// New processes (`task_newtask`, process context, or `sched_wakeup_new`). Atomic.
        pub forked: u64,
        /// New threads of existing processes (as `forked`). Atomic.
        pub threads: u64,
        /// Programs executed (`sched_process_exec`, process context).
        pub exec: u64,
        /// Processes whose last thread exited (`sched_process_exit`, process context).
        pub exited: u64,
        /// Live tasks whose state is bound to this slot. Atomic: written from several contexts.
        pub tasks: u64,
        /// Moves of a task or a process into a cgroup of this slot (`cgroup_attach_task`, `cgroup_transfer_tasks`). Atomic.
        pub moved_in: u64,
        /// Time blocked outside any syscall (page faults, stops), nanoseconds (`sched_switch`); not for kernel threads
        /// and other workers.
        pub blocked_other_ns: u64,
        /// Syscall entries, and calls that were answered before, that found no syscall row. Atomic.
        pub overflow_calls: u64,
        /// Syscall errors of calls without a row. Atomic.
        pub overflow_errors: u64,
        /// Finished calls without a row. Atomic.
        pub overflow_done: u64,
        /// Time blocked in calls without a row, nanoseconds (`sched_switch`).
        pub overflow_blocked_ns: u64,
        /// The part of `overflow_calls` that was answered before it was entered. Atomic.
        pub overflow_denied: u64,
        /// cgroups below this slot's that got no slot of their own, as their account holds more than are free or none was
        /// left (`cgroup_mkdir`). Atomic.
        pub folded: u64,
        /// Page faults taken in user mode (`page_fault_user`, interrupts off).
        pub faults_user: u64,
        /// Page faults taken in kernel mode (`page_fault_kernel`, interrupts off).
        pub faults_kernel: u64,
        /// Run-queue waits by duration. Wraps at 2^32: readers take differences.
        pub wait_buckets: [u32; histogram::BUCKETS],
    }

    /// Errors of one (slot, syscall, errno) on one shard, written by `sys_exit` alone: a shard that CPUs share, atomically.
    #[repr(C)]
    pub struct ErrnoRow {
        /// Returns with this error.
        pub errors: u64,
    }
}
const _: () = assert!(size_of::<SyscallRow>() == 512, "a row got a field: write its new size here, 64 more");
const _: () = assert!(size_of::<SlotRow>() == 640, "a row got a field: write its new size here, 64 more");

/// States of a slot, `SlotInfo::state`.
pub mod slot_state {
    /// In the free queue, or not yet handed out.
    pub const FREE: u32 = 0;
    /// Belongs to an existing cgroup.
    pub const LIVE: u32 = 1;
    /// Its cgroup was removed; its counts wait for the last drain.
    pub const DEAD: u32 = 2;
    /// The same, long ago: tasks that are still bound to it are to be taken off it.
    pub const OVERDUE: u32 = 3;
}

/// What a slot stands for. Written by `cgroup_mkdir`/`cgroup_rmdir` (or by the agent's start-up scan) while the slot is
/// live, and by the agent when it recycles the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SlotInfo {
    /// cgroup-v2 id.
    pub cgroup_id: u64,
    /// cgroup-v2 id of the parent.
    pub parent_id: u64,
    /// `CLOCK_MONOTONIC` of creation, nanoseconds; 0 for cgroups older than the agent.
    pub created_ns: u64,
    /// `CLOCK_MONOTONIC` of removal, nanoseconds; 0 while live.
    pub removed_ns: u64,
    /// One of [`slot_state`].
    pub state: u32,
    /// Slot of the parent cgroup at creation.
    pub parent_slot: u32,
    /// Times the slot was recycled; written by the agent only.
    pub generation: u32,
    /// Bytes of `name` in use.
    pub name_len: u32,
    /// The slot of the cgroup's account: see [`Holdings`].
    pub account: u32,
    /// Nothing: an info is laid out in words of 8 bytes.
    pub padding: u32,
    /// The cgroup's own name (last path component), raw bytes.
    pub name: [u8; 256],
}
const _: () = assert!(size_of::<SlotInfo>() == 312);

/// What each CPU says of itself (`CPU_SINCE`), as large as a cache line: it writes that at every switch.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct CpuSince {
    /// When the task (or the idle task) now on the CPU was last accounted, nanoseconds of `CLOCK_MONOTONIC`; 0 if the CPU was not
    /// accounted since it came. Writers: `sched_switch` and `flush_cpu` of the CPU, `cpuhp_exit` before it is online.
    pub ns: u64,
    /// Not 0 while it idles, and everything that it counted before is in its row. Writers: `sched_switch` of the CPU, `cpuhp_exit`.
    pub is_idle: u64,
}

/// What is shared among accounts; index into [`Holdings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Slots.
    Slots = 0,
    /// Syscall rows.
    SyscallRows = 1,
    /// Errno rows.
    ErrnoRows = 2,
    /// Slots that went to accounts of their own. Of these there is no pool: they are only counted, in the pool's element.
    RootSlots = 3,
}

/// Number of resources.
pub const RESOURCES: usize = 4;

/// How much of each resource an account ever took (`TAKEN`, written by the programs, atomically), or was ever given back
/// (`GIVEN`, written by the agent). The difference, modulo 2^64, is what it holds.
///
/// An account is a cgroup that root made, or that root owned when the agent started, and all below it down to the next such
/// cgroup: what a user makes in a subtree of his own is on one account. It is known by its slot. The element after those of
/// the slots is the pool: what it was given less what was taken from it is free. An account gets another entry only while it
/// holds no more than are free ("dynamic threshold" of switches with shared buffers: Choudhury and Hahne, 1998). What
/// it holds it keeps: n accounts that take all they can leave one part of n + 1 to others if they do so at the same time, and
/// one of 2^n if one after the other.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Indexed by [`Resource`].
    pub values: [u64; RESOURCES],
}

/// Below how many free ones of each resource the programs wake the agent (`LOW_WATER`, written by the agent alone); 0: never.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LowWater {
    /// Indexed by [`Resource`].
    pub values: [u64; RESOURCES],
}

/// Programs wake the agent each time so many were taken below the mark: no storm of takers becomes one of wake-ups.
pub const WAKE_EVERY: u64 = 32;

/// Whether the taking that left so many free is one that wakes the agent. Two CPUs that take at the same moment may pass over
/// one: the next comes soon.
#[inline(always)]
pub const fn is_wake_due(free: u64, low_water: u64) -> bool {
    (free as i64) < low_water as i64 && free.is_multiple_of(WAKE_EVERY)
}

/// Whether an account that holds this much may take another one while so many are free. Both are differences of counters that
/// CPUs change at the same time: one that is below 0 is none.
#[inline(always)]
pub const fn may_take(held: u64, free: u64) -> bool {
    (free as i64) > 0 && held as i64 <= free as i64
}

/// Value of the `CGROUPS` map: where a cgroup's events go. Only owners of a slot have one, and cgroups that root made and that
/// found none, whose slot is the overflow slot. What other cgroups do is billed as what their nearest ancestor with an entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupRef {
    /// The slot that is billed.
    pub slot: u32,
    /// [`INHERIT`](CgroupRef::INHERIT) and [`POD`](CgroupRef::POD), or 0.
    pub flags: u32,
}
const _: () = assert!(size_of::<CgroupRef>() == 8);

impl CgroupRef {
    /// Slot and flags in one number, never [`edit::NONE`].
    #[inline(always)]
    pub const fn pack(self) -> u32 {
        self.slot | self.flags << 16
    }

    /// What [`pack`](Self::pack) made one number of.
    #[inline(always)]
    pub const fn unpack(packed: u32) -> Self {
        Self { slot: packed & 0xffff, flags: packed >> 16 }
    }

    /// Children of this cgroup are part of the same workload and share its slot.
    pub const INHERIT: u32 = 1;
    /// This is a pod of Kubernetes: containers in it that get no slot share its.
    pub const POD: u32 = 2;

    /// The flags of a cgroup of this name; see [`is_workload_name`].
    #[inline(always)]
    pub fn flags_of(len: usize, byte: impl Fn(usize) -> u8) -> u32 {
        if is_workload_name(len, &byte) {
            Self::INHERIT
        } else if is_pod_name(len, &byte) {
            Self::POD
        } else {
            0
        }
    }
}

/// Bytes at the end of a container's cgroup name that must be hexadecimal for it to be one workload.
const ID_TAIL: usize = 12;

/// Whether a cgroup of this name is one workload, so that cgroups below it share its slot: systemd services and scopes
/// (except the user managers `user@N.service`, which hold services of their own) and container ids of 64 hex digits,
/// with or without a runtime's prefix. `byte(i)` is the name's i-th byte.
#[inline(always)]
pub fn is_workload_name(len: usize, byte: impl Fn(usize) -> u8) -> bool {
    let ends = |suffix: &[u8; 6]| {
        len > 6
            && byte(len - 6) == suffix[0]
            && byte(len - 5) == suffix[1]
            && byte(len - 4) == suffix[2]
            && byte(len - 3) == suffix[3]
            && byte(len - 2) == suffix[4]
            && byte(len - 1) == suffix[5]
    };
    if ends(b".scope") {
        return true;
    }
    if ends(b"ervice") && len > 8 && byte(len - 8) == b'.' && byte(len - 7) == b's' {
        return !(byte(0) == b'u'
            && byte(1) == b's'
            && byte(2) == b'e'
            && byte(3) == b'r'
            && byte(4) == b'@');
    }
    if len < 64 {
        return false;
    }
    let mut i = 1;
    while i <= ID_TAIL {
        let b = byte(len - i);
        if !(b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
            return false;
        }
        i += 1;
    }
    true
}

/// Whether a kubelet gives pods names like this: `pod<uid>`, or `kubepods[-<class>]-pod<uid>.slice` under systemd, where a UID
/// has 36 characters.
#[inline(always)]
pub fn is_pod_name(len: usize, byte: impl Fn(usize) -> u8) -> bool {
    let begins = |text: &[u8]| {
        let mut i = 0;
        while i < text.len() {
            if i >= len || byte(i) != text[i] {
                return false;
            }
            i += 1;
        }
        true
    };
    (len == 39 && begins(b"pod")) || (len >= 54 && begins(b"kubepods-"))
}

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)* }
        impl $name {
            /// Every value, in index order.
            pub const ALL: &[$name] = &[$($name::$variant,)*];
            /// The name used in metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
            /// What it means, as METRICS.md says it: the value's own documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $($name::$variant => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

numbered! {
    /// Reasons why something was lost, degraded or skipped in the kernel; index into `LOSSES`.
    Loss {
        /// A cgroup was created while no slot was free: billed to the overflow slot or, if a user made it or it is in a pod,
        /// as part of the cgroup above it.
        SlotExhausted = "slot_exhausted",
        /// The cgroup table refused an entry: billed as if no slot had been free.
        CgroupMapFull = "cgroup_map_full",
        /// An event's cgroup is not in the cgroup table, nor any of 64 above it: billed to the overflow slot.
        UnknownCgroup = "unknown_cgroup",
        /// No syscall row was free: counted without its syscall.
        RowExhausted = "syscall_row_exhausted",
        /// No errno row was free: counted without its errno.
        ErrorRowExhausted = "errno_row_exhausted",
        /// Task state could not be allocated: the call has no latency and no syscall.
        TaskStateFailed = "task_state_failed",
        /// A time stamp lay in the future: the duration was discarded.
        ClockBackwards = "clock_backwards",
        /// A task ran whose wake-up was not seen: its wait is unknown and was not counted.
        WakeupMissed = "wakeup_missed",
        /// A switch involved a task without state: its wait and block times were not counted.
        NoTaskState = "no_task_state",
        /// A cgroup was created whose account held more slots than were free: billed as part of the cgroup above it.
        SlotQuota = "slot_quota",
        /// A call's account held more syscall rows than were free: counted without its syscall.
        RowQuota = "syscall_row_quota",
        /// A failed call's account held more errno rows than were free: counted without its errno.
        ErrorRowQuota = "errno_row_quota",
    }
}

numbered! {
    /// Independent totals, counted at the top of each hook before any attribution; index into `Totals`.
    Total {
        /// `sys_enter` events.
        SyscallEnter = "syscall_enter",
        /// `sys_exit` events that belong to a counted entry.
        SyscallExit = "syscall_exit",
        /// `sys_exit` events without an entry that are no denied call: inside a syscall when the agent started, or a new
        /// task's first return.
        SyscallExitUnmatched = "syscall_exit_unmatched",
        /// `sys_exit` events of calls that seccomp or a tracer answered before they were entered.
        SyscallDenied = "syscall_denied",
        /// `sys_exit` events with an error that belong to a counted entry or to a denied call.
        SyscallError = "syscall_error",
        /// Switches away from a task (not the idle task) that blocked or exited.
        SwitchVoluntary = "switch_voluntary",
        /// Switches away from a task (not the idle task) that could have gone on.
        SwitchInvoluntary = "switch_involuntary",
        /// Nanoseconds that tasks (not the idle task) ran, as the scheduler counts them.
        CpuNs = "cpu_ns",
        /// Nanoseconds that CPUs idled.
        IdleNs = "idle_ns",
        /// Run-queue waits measured.
        Waits = "waits",
        /// Nanoseconds of run-queue wait.
        WaitNs = "wait_ns",
        /// Nanoseconds blocked.
        BlockedNs = "blocked_ns",
        /// Migrations.
        Migrations = "migrations",
        /// New processes.
        Forked = "forked",
        /// New threads.
        Threads = "threads",
        /// Programs executed.
        Exec = "exec",
        /// Processes that ended.
        Exited = "exited",
        /// cgroups of the default hierarchy created.
        CgroupMkdir = "cgroup_mkdir",
        /// cgroups of the default hierarchy removed.
        CgroupRmdir = "cgroup_rmdir",
        /// Moves of a task or a process between cgroups.
        Moved = "moved",
        /// Page faults taken in user mode.
        FaultsUser = "faults_user",
        /// Page faults taken in kernel mode.
        FaultsKernel = "faults_kernel",
    }
}

/// Number of independent totals, with room to grow.
pub const TOTALS: usize = 24;
const _: () = assert!(Total::ALL.len() <= TOTALS, "no room for another total: raise `TOTALS`");
const _: () = assert!(size_of::<Totals>() == 8 * TOTALS, "raise `TOTALS` by 8: they are whole cache lines");

/// The independent totals of one CPU, whole cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Indexed by [`Total`].
    pub values: [u64; TOTALS],
}

/// Number of loss reasons, with room to grow.
pub const LOSSES: usize = 16;
const _: () = assert!(Loss::ALL.len() <= LOSSES, "no room for another loss: raise `LOSSES`");
const _: () = assert!(size_of::<Losses>() == 8 * LOSSES, "raise `LOSSES` by 8: they are whole cache lines");

/// The loss counters of one CPU, whole cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// Indexed by [`Loss`].
    pub values: [u64; LOSSES],
}

/// FNV-1a over a text, continued from `hash`.
const fn hash_text(mut hash: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    // A separator, so that moving a letter from one name to the next changes the result.
    (hash ^ 0xff).wrapping_mul(0x0100_0000_01b3)
}

const fn hash_fields(mut hash: u64, fields: &[Field]) -> u64 {
    let mut i = 0;
    while i < fields.len() {
        hash = hash_text(hash, fields[i].name);
        hash = (hash ^ fields[i].offset as u64).wrapping_mul(0x0100_0000_01b3);
        hash = (hash ^ fields[i].size as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// Tells one layout of rows, totals and losses from another: it changes with every name, place and size in them.
pub const FINGERPRINT: u64 = {
    let mut hash = hash_text(0xcbf2_9ce4_8422_2325, "kernmeter");
    hash = hash_fields(hash, SyscallRow::FIELDS);
    hash = hash_fields(hash, SlotRow::FIELDS);
    hash = hash_fields(hash, ErrnoRow::FIELDS);
    let mut i = 0;
    while i < Total::ALL.len() {
        hash = hash_text(hash, Total::ALL[i].as_str());
        i += 1;
    }
    i = 0;
    while i < Loss::ALL.len() {
        hash = hash_text(hash, Loss::ALL[i].as_str());
        i += 1;
    }
    hash
};

/// [`FINGERPRINT`] as it stands in the eBPF object, so that an agent can tell an object built from other sources.
pub const FINGERPRINT_TEXT: [u8; 32] = {
    let mut text = *b"kernmeter-abi:0000000000000000\0\0";
    let mut i = 0;
    while i < 16 {
        let digit = (FINGERPRINT >> (60 - 4 * i)) as u8 & 15;
        text[14 + i] = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        i += 1;
    }
    text
};

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str) -> bool {
        is_workload_name(name.len(), |i| name.as_bytes()[i])
    }

    #[test]
    fn an_account_leaves_to_others_as_much_as_it_holds() {
        assert!(may_take(0, 1) && may_take(5, 5) && may_take(5, 6));
        assert!(!may_take(0, 0) && !may_take(6, 5));
        // Counters that are read while they change.
        assert!(!may_take(0, u64::MAX) && may_take(u64::MAX, 1));
        // An interpreter takes minutes for as many as there are.
        let capacity = if cfg!(miri) { 62u64 } else { 4094 };
        for greedy in 1..if cfg!(miri) { 5 } else { 10usize } {
            // All at once: equal parts, and one for whoever comes next.
            let mut held = vec![0u64; greedy];
            let free = |held: &[u64]| capacity - held.iter().sum::<u64>();
            while let Some(least) = (0..greedy).min_by_key(|account| held[*account])
                && may_take(held[least], free(&held))
            {
                held[least] += 1;
            }
            assert!(free(&held) >= capacity / (greedy as u64 + 1) - greedy as u64, "{greedy}: {held:?}");
            // One after the other: each takes half of what it finds.
            let mut held = vec![0u64; greedy];
            for account in 0..greedy {
                while may_take(held[account], free(&held)) {
                    held[account] += 1;
                }
            }
            assert!(free(&held) >= (capacity >> greedy) - 1, "{greedy}: {held:?}");
        }
    }

    #[test]
    fn pod_names() {
        let pod = |name: &str| is_pod_name(name.len(), |i| name.as_bytes()[i]);
        let uid = "0f5a1c52-2c1e-4cbb-9a54-6d7b3f1c0e11";
        let escaped = uid.replace('-', "_");
        for name in [
            format!("pod{uid}"),
            format!("kubepods-pod{escaped}.slice"),
            format!("kubepods-burstable-pod{escaped}.slice"),
        ] {
            assert!(pod(&name), "{name}");
        }
        for name in
            ["", "pod", "podman", "kubepods", "kubepods-besteffort.slice", "kubepods.slice", &uid.repeat(2)]
        {
            assert!(!pod(name), "{name}");
        }
    }

    #[test]
    fn workload_names() {
        let id = "0123456789abcdef".repeat(4);
        for name in [
            "nginx.service",
            "session-3.scope",
            "init.scope",
            &id,
            &format!("libpod-{id}"),
            &format!("crio-{id}.scope"),
        ] {
            assert!(workload(name), "{name}");
        }
        for name in [
            "system.slice",
            "user@1000.service",
            "kubepods",
            ".service",
            "service",
            ".scope",
            "pod1234",
            "",
            &id[..63],
            &"z".repeat(64),
        ] {
            assert!(!workload(name), "{name}");
        }
    }
}
