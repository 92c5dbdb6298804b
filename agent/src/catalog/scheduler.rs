//! The scheduler probe: its hooks and metric families. Knows no values.

use super::{Hook, Probe};
use crate::catalog::family::{Family, Kind, Scale};

/// Time on a CPU.
pub static CPU: Family = Family {
    name: "kernmeter_cpu_seconds",
    help: "Time tasks ran on a CPU, as the scheduler counts it: without interrupts and time stolen by a hypervisor.",
    unit: Some("seconds"),
    kind: Kind::Counter,
    scale: Scale::NanosToSeconds,
    labels: &[],
};

/// Waits for a CPU.
pub static WAIT: Family = Family {
    name: "kernmeter_runqueue_wait_seconds",
    help: "Time from runnable (woken, preempted or created) to running.",
    unit: Some("seconds"),
    kind: Kind::Histogram,
    scale: Scale::NanosToSeconds,
    labels: &[],
};

/// Time blocked, by syscall.
pub static BLOCKED: Family = Family {
    name: "kernmeter_blocked_seconds",
    help: "Time tasks were blocked, by the system call they blocked in; counted when they wake. \
           `none`: outside any call (page faults, stops), not for kernel threads and workers of io_uring and vhost.",
    unit: Some("seconds"),
    kind: Kind::Counter,
    scale: Scale::NanosToSeconds,
    labels: &["syscall", "abi"],
};

/// Switches off a CPU.
pub static SWITCHES: Family = Family {
    name: "kernmeter_context_switches",
    help: "Switches away from a task: voluntary when it blocked or exited, involuntary when it could have gone on.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["kind"],
};

/// Moves to another CPU.
pub static MIGRATIONS: Family = Family {
    name: "kernmeter_migrations",
    help: "Moves of tasks to another CPU.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &[],
};

/// Declaration of the probe.
pub static PROBE: Probe = Probe {
    name: "scheduler",
    summary: "CPU time, run-queue wait, time blocked, context switches, migrations",
    needs: "Linux 5.10: BTF; from 5.13 on the kernel keeps the state of tasks, before a table does",
    cost: "about 580 ns per context switch with one wake-up on a mitigated 2-core VM, 300 of them above empty programs",
    hooks: &[
        Hook {
            program: "sched_switch",
            raw_twin: Some("raw_switch"),
            event_twin: None,
            tracepoint: "sched_switch",
            prototype: "sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, \
                        unsigned int prev_state), since 5.18; without prev_state before",
            optional: false,
        },
        Hook {
            program: "sched_wakeup",
            raw_twin: None,
            event_twin: None,
            tracepoint: "sched_wakeup",
            prototype: "sched_wakeup(struct task_struct *p), since 4.4",
            optional: false,
        },
        Hook {
            program: "wakeup_new",
            raw_twin: None,
            event_twin: None,
            tracepoint: "sched_wakeup_new",
            prototype: "sched_wakeup_new(struct task_struct *p), since 4.4",
            optional: false,
        },
        Hook {
            program: "sched_migrate",
            raw_twin: None,
            event_twin: None,
            tracepoint: "sched_migrate_task",
            prototype: "sched_migrate_task(struct task_struct *p, int dest_cpu), since 2.6.32",
            optional: true,
        },
    ],
    families: &[&CPU, &WAIT, &BLOCKED, &SWITCHES, &MIGRATIONS],
};
