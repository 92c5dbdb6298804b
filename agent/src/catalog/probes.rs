//! In: nothing; out: every probe, declared once: hooks, families, columns. Knows no values.
//!
//! A new probe is a module of programs in `agent-ebpf`, its declaration here with a place in [`PROBES`], and a test.

use std::mem::offset_of;

use kernmeter_abi::{ErrnoRow, SlotRow, SyscallRow, Total};

use super::column::{Cells, Column, Label, NO_ROW, Quantity, RowKind, histogram, number, optional};
use super::family::{Family, Scale};
use super::probe::{Hook, Probe, Stage};

/// Every probe, in the order they are attached. Switches, where the state of tasks ends, come before new tasks, where it begins.
pub static PROBES: &[&Probe] = &[&CGROUP, &SCHEDULER, &PROCESS, &FAULTS, &SYSCALLS];

/// Totals that no tenant is billed for, and how they are scaled.
pub static UNBILLED: &[(Total, Scale)] = &[
    // Nobody's: no task ran.
    (Total::IdleNs, Scale::NanosToSeconds),
    // Calls that the agent did not see begin: in no family.
    (Total::SyscallExitUnmatched, Scale::One),
    // Of the agent's own bookkeeping.
    (Total::CgroupMkdir, Scale::One),
    (Total::CgroupRmdir, Scale::One),
];

const NEEDS_TASK_STATE: &str =
    "Linux 5.10: BTF; from 5.13 on the kernel keeps the state of tasks, before a table does";

/// Tasks moved into a workload.
pub static MOVES: Family = Family::counter(
    "kernmeter_task_moves",
    "Moves of a task, or of a process with all its threads, into a cgroup of the workload. The new workload is billed \
     for the CPU time, waits and switches of a moved task at once, and for its calls from the next one on.",
);

/// Cgroups without a slot of their own.
pub static FOLDED: Family = Family::counter(
    "kernmeter_cgroups_folded",
    "Cgroups created below the workload that got no place of their own in the kernel's tables, because their account holds \
     more places than are free, or none is left. What runs in them is counted in full, as part of the workload. An account \
     is a cgroup that root made, with all that others make below it.",
);

static MOVES_MADE: Quantity = Quantity { name: "moved", totals: &[Total::Moved] };

/// Workloads and their slots.
pub static CGROUP: Probe = Probe {
    name: "cgroup",
    summary: "workloads: a slot for each cgroup from its creation to its last count",
    needs: "Linux 5.5: BTF tracepoints; cgroup v2 or hybrid",
    cost: "about 1 us per cgroup created",
    stage: Stage::Cgroups,
    by_default: true,
    hooks: &[
        Hook::new("cgroup_mkdir", "cgroup_mkdir(struct cgroup *cgrp, const char *path), since 4.16"),
        Hook::new("cgroup_rmdir", "cgroup_rmdir(struct cgroup *cgrp, const char *path), since 4.16"),
        Hook::new(
            "cgroup_attach",
            "cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup), \
             since 4.16",
        )
        .optional(),
        Hook::new(
            "cgroup_transfer",
            "cgroup_transfer_tasks(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup), \
             since 4.16",
        )
        .optional(),
    ],
    families: &[&MOVES, &FOLDED],
    columns: &[
        number!(Slot, SlotRow.moved_in => MOVES [], MOVES_MADE),
        number!(Slot, SlotRow.folded => FOLDED []),
    ],
};

/// New processes.
pub static FORKED: Family =
    Family::counter("kernmeter_processes_forked", "Processes created, billed to the workload they start in.");
/// New threads.
pub static THREADS: Family = Family::counter(
    "kernmeter_threads_started",
    "Threads created in existing processes, workers included that the kernel makes for a process (io_uring, vhost).",
);
/// Programs executed.
pub static EXEC: Family = Family::counter("kernmeter_processes_exec", "Programs executed.");
/// Processes gone.
pub static EXITED: Family =
    Family::counter("kernmeter_processes_exited", "Processes whose last thread ended.");
/// Live tasks.
pub static TASKS: Family = Family::gauge(
    "kernmeter_tasks",
    "Live tasks (threads). A task moved to another cgroup is counted there once it runs or makes a system call.",
);

static FORKS: Quantity = Quantity { name: "forked", totals: &[Total::Forked] };
static THREADS_MADE: Quantity = Quantity { name: "threads", totals: &[Total::Threads] };
static EXECS: Quantity = Quantity { name: "exec", totals: &[Total::Exec] };
static EXITS: Quantity = Quantity { name: "exited", totals: &[Total::Exited] };

/// Processes and threads.
pub static PROCESS: Probe = Probe {
    name: "process",
    summary: "processes and threads: created, executed, ended, alive",
    needs: NEEDS_TASK_STATE,
    cost: "about 200 ns per fork",
    stage: Stage::Tasks,
    by_default: true,
    hooks: &[
        Hook::new(
            "task_newtask",
            "task_newtask(struct task_struct *task, u64 clone_flags), since 6.18; with unsigned long clone_flags before",
        ),
        Hook::new(
            "process_exec",
            "sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm), since 3.4",
        )
        .raw("raw_exec")
        .event("event_exec", "sched", &[])
        .optional(),
        Hook::new(
            "process_exit",
            "sched_process_exit(struct task_struct *p, bool group_dead), since 6.16; without group_dead before",
        )
        .raw("raw_exit")
        .event("event_exit", "sched", &[("trace_event_raw_sched_process_exit", "group_dead", 32)])
        .optional(),
    ],
    families: &[&FORKED, &THREADS, &EXEC, &EXITED, &TASKS],
    columns: &[
        number!(Slot, SlotRow.forked => FORKED [], FORKS),
        number!(Slot, SlotRow.threads => THREADS [], THREADS_MADE),
        number!(Slot, SlotRow.exec => EXEC [], EXECS),
        number!(Slot, SlotRow.exited => EXITED [], EXITS),
        number!(Slot, SlotRow.tasks => TASKS []),
    ],
};

/// Time on a CPU.
pub static CPU: Family = Family::seconds(
    "kernmeter_cpu_seconds",
    "Time tasks ran on a CPU, as the scheduler counts it: without interrupts and time stolen by a hypervisor.",
);
/// Waits for a CPU.
pub static WAIT: Family = Family::durations(
    "kernmeter_runqueue_wait_seconds",
    "Time from runnable (woken, preempted or created) to running.",
);
/// Time blocked, by system call.
pub static BLOCKED: Family = Family::seconds(
    "kernmeter_blocked_seconds",
    "Time tasks were blocked, by the system call they blocked in; counted when they wake. `none`: outside any call (page \
     faults, stops), not for kernel threads and workers of io_uring and vhost.",
)
.by(&["syscall", "abi"]);
/// Switches off a CPU.
pub static SWITCHES: Family = Family::counter(
    "kernmeter_context_switches",
    "Switches away from a task: voluntary when it blocked or exited, involuntary when it could have gone on.",
)
.by(&["kind"]);
/// Moves to another CPU.
pub static MIGRATIONS: Family = Family::counter("kernmeter_migrations", "Moves of tasks to another CPU.");

static CPU_TIME: Quantity = Quantity { name: "cpu_ns", totals: &[Total::CpuNs] };
static WAITS: Quantity = Quantity { name: "waits", totals: &[Total::Waits] };
static WAIT_TIME: Quantity = Quantity { name: "wait_ns", totals: &[Total::WaitNs] };
static ALL_SWITCHES: Quantity =
    Quantity { name: "switches", totals: &[Total::SwitchVoluntary, Total::SwitchInvoluntary] };
static MIGRATED: Quantity = Quantity { name: "migrations", totals: &[Total::Migrations] };
static BLOCKED_TIME: Quantity = Quantity { name: "blocked_ns", totals: &[Total::BlockedNs] };

/// Who runs, waits for a CPU, is blocked.
pub static SCHEDULER: Probe = Probe {
    name: "scheduler",
    summary: "CPU time, run-queue wait, time blocked, context switches, migrations",
    needs: NEEDS_TASK_STATE,
    cost: "about 580 ns per context switch with one wake-up on a mitigated 2-core VM, 300 of them above empty programs",
    stage: Stage::Tasks,
    by_default: true,
    hooks: &[
        Hook::new(
            "sched_switch",
            "sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state), since \
             5.18; without prev_state before",
        )
        .raw("raw_switch"),
        Hook::new("sched_wakeup", "sched_wakeup(struct task_struct *p), since 4.4"),
        Hook::new("wakeup_new", "sched_wakeup_new(struct task_struct *p), since 4.4"),
        Hook::new("sched_migrate", "sched_migrate_task(struct task_struct *p, int dest_cpu), since 2.6.32")
            .optional(),
        Hook::new("cpuhp_exit", "cpuhp_exit(unsigned int cpu, int state, int idx, int ret), since 4.6")
            .raw("raw_cpuhp_exit")
            .optional(),
    ],
    families: &[&CPU, &WAIT, &BLOCKED, &SWITCHES, &MIGRATIONS],
    columns: &[
        number!(Slot, SlotRow.cpu_ns => CPU [], CPU_TIME),
        histogram!(Slot, SlotRow.(wait_ns, wait_buckets) => WAIT [],
            sum WAIT_TIME, events WAITS),
        number!(Slot, SlotRow.voluntary => SWITCHES [Label::Fixed("voluntary")], ALL_SWITCHES),
        number!(Slot, SlotRow.involuntary => SWITCHES [Label::Fixed("involuntary")], ALL_SWITCHES),
        number!(Slot, SlotRow.migrations => MIGRATIONS [], MIGRATED),
        number!(Syscall, SyscallRow.blocked_ns => BLOCKED [Label::Syscall, Label::Abi], BLOCKED_TIME),
        number!(Slot, SlotRow.blocked_other_ns => BLOCKED [Label::Fixed("none"), Label::Fixed("none")],
            BLOCKED_TIME),
        number!(Slot, SlotRow.overflow_blocked_ns => BLOCKED [NO_ROW, NO_ROW], BLOCKED_TIME),
    ],
};

/// Page faults.
pub static PAGE_FAULTS: Family = Family::counter(
    "kernmeter_page_faults",
    "Page faults, by the mode they were taken in: `kernel` when the kernel touches a process's memory for it, as read(2) \
     does. Faults that end in a signal and faults that are tried again count each time; whether a page had to be read from \
     disk is not told.",
)
.by(&["mode"]);

static ALL_FAULTS: Quantity =
    Quantity { name: "page_faults", totals: &[Total::FaultsUser, Total::FaultsKernel] };

/// Page faults.
pub static FAULTS: Probe = Probe {
    name: "faults",
    summary: "page faults, by the mode they were taken in",
    needs: NEEDS_TASK_STATE,
    cost: "about 40 ns per page fault on a 2-core VM, where one takes about 1 us",
    stage: Stage::Events,
    by_default: false,
    hooks: &[
        Hook::new(
            "page_fault_user",
            "page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code), since 3.13",
        ),
        Hook::new(
            "page_fault_kern",
            "page_fault_kernel(unsigned long address, struct pt_regs *regs, unsigned long error_code), since 3.13",
        ),
    ],
    families: &[&PAGE_FAULTS],
    columns: &[
        number!(Slot, SlotRow.faults_user => PAGE_FAULTS [Label::Fixed("user")], ALL_FAULTS),
        number!(Slot, SlotRow.faults_kernel => PAGE_FAULTS [Label::Fixed("kernel")], ALL_FAULTS),
    ],
};

/// Calls, by system call.
pub static CALLS: Family = Family::counter(
    "kernmeter_syscalls",
    "System calls, entered or answered before (kernmeter_syscalls_denied_total).",
)
.by(&["syscall", "abi"]);
/// Calls that were never entered, by system call.
pub static DENIED: Family = Family::counter(
    "kernmeter_syscalls_denied",
    "System calls that seccomp or a tracer answered before they were entered; in kernmeter_syscalls_total too, in no duration \
     histogram.",
)
.by(&["syscall", "abi"]);
/// Errors, by system call and errno.
pub static ERRORS: Family = Family::counter(
    "kernmeter_syscall_errors",
    "System calls that returned an error. ERESTART* are calls interrupted by a signal, as the kernel sees them.",
)
.by(&["syscall", "abi", "errno"]);
/// Durations, by system call.
pub static DURATION: Family = Family::durations(
    "kernmeter_syscall_duration_seconds",
    "Time from entry to return of system calls that returned, waiting included.",
)
.by(&["syscall", "abi"]);
/// Finished calls outside the histograms.
pub static UNMEASURED: Family = Family::counter(
    "kernmeter_syscalls_unmeasured",
    "System calls that returned but are in no duration histogram, because no kernel row was free for them.",
);

static ALL_CALLS: Quantity =
    Quantity { name: "syscalls", totals: &[Total::SyscallEnter, Total::SyscallDenied] };
static RETURNS: Quantity = Quantity { name: "syscall_exit", totals: &[Total::SyscallExit] };
static FAILURES: Quantity = Quantity { name: "syscall_error", totals: &[Total::SyscallError] };

/// System calls.
pub static SYSCALLS: Probe = Probe {
    name: "syscalls",
    summary: "system calls: count, errors, latency",
    needs: NEEDS_TASK_STATE,
    cost: "about 255 ns per system call on a mitigated 2-core VM, 110 of them above empty programs",
    stage: Stage::Events,
    by_default: true,
    hooks: &[
        Hook::new("sys_enter", "sys_enter(struct pt_regs *regs, long id), since 2.6.32")
            .raw("raw_sys_enter")
            .event("event_sys_enter", "raw_syscalls", &[("trace_event_raw_sys_enter", "id", 8)]),
        Hook::new("sys_exit", "sys_exit(struct pt_regs *regs, long ret), since 2.6.32")
            .raw("raw_sys_exit")
            .event(
                "event_sys_exit",
                "raw_syscalls",
                &[("trace_event_raw_sys_exit", "id", 8), ("trace_event_raw_sys_exit", "ret", 16)],
            ),
    ],
    families: &[&CALLS, &DENIED, &ERRORS, &DURATION, &UNMEASURED],
    columns: &[
        number!(Syscall, SyscallRow.calls => CALLS [Label::Syscall, Label::Abi], ALL_CALLS),
        number!(Slot, SlotRow.overflow_calls => CALLS [NO_ROW, NO_ROW], ALL_CALLS),
        // A part of the calls.
        number!(Syscall, SyscallRow.denied => DENIED [Label::Syscall, Label::Abi]),
        number!(Slot, SlotRow.overflow_denied => DENIED [NO_ROW, NO_ROW]),
        number!(Errno, ErrnoRow.errors => ERRORS [Label::Syscall, Label::Abi, Label::Errno], FAILURES),
        number!(Syscall, SyscallRow.other_errors => ERRORS [Label::Syscall, Label::Abi, NO_ROW], FAILURES),
        number!(Slot, SlotRow.overflow_errors => ERRORS [NO_ROW, NO_ROW, NO_ROW], FAILURES),
        histogram!(Syscall, SyscallRow.(sum_ns, buckets) => DURATION [Label::Syscall, Label::Abi],
            events RETURNS),
        number!(Slot, SlotRow.overflow_done => UNMEASURED [], RETURNS),
    ],
};
