//! In: the kernel side's independent totals; out: the quantities that are conserved from there to the tenants. Knows no values.

use kernmeter_abi::Total;

use super::column::Quantity;

/// Declares quantities, and lists them.
macro_rules! quantities {
    ($($(#[$meta:meta])* $name:ident = $text:literal [$($total:ident),+];)+) => {
        $($(#[$meta])* pub static $name: Quantity = Quantity { name: $text, totals: &[$(Total::$total),+] };)+

        /// Every conserved quantity, in the order they are logged in.
        pub static QUANTITIES: &[&Quantity] = &[$(&$name),+];
    };
}

quantities! {
    /// System calls.
    CALLS = "syscall_enter" [SyscallEnter];
    /// Returns that belong to a counted call.
    RETURNS = "syscall_exit" [SyscallExit];
    /// Errors of these.
    ERRORS = "syscall_error" [SyscallError];
    /// Time on a CPU.
    CPU_TIME = "cpu_ns" [CpuNs];
    /// Switches away from a task, of both kinds.
    SWITCHES = "switches" [SwitchVoluntary, SwitchInvoluntary];
    /// Run-queue waits that ended.
    WAITS = "waits" [Waits];
    /// The time of these.
    WAIT_TIME = "wait_ns" [WaitNs];
    /// Time blocked.
    BLOCKED_TIME = "blocked_ns" [BlockedNs];
    /// Migrations.
    MIGRATIONS = "migrations" [Migrations];
    /// New processes.
    FORKED = "forked" [Forked];
    /// New threads.
    THREADS = "threads" [Threads];
    /// Programs executed.
    EXECUTED = "exec" [Exec];
    /// Processes that ended.
    EXITED = "exited" [Exited];
    /// Moves between cgroups.
    MOVES = "moved" [Moved];
}

/// Totals that no tenant is billed for.
pub static UNBILLED: &[Total] = &[
    // Nobody's: no task ran.
    Total::IdleNs,
    // Calls that the agent did not see begin, in no family.
    Total::SyscallExitUnmatched,
    // Of the agent's own bookkeeping.
    Total::CgroupMkdir,
    Total::CgroupRmdir,
];

/// Totals in nanoseconds; all others count events.
pub static TIMES: &[Total] = &[Total::CpuNs, Total::IdleNs, Total::WaitNs, Total::BlockedNs];
