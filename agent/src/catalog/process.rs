//! The process probe: its hooks and metric families. Knows no values.

use super::{EventTwin, Hook, Probe};
use crate::catalog::family::{Family, Kind, Scale};

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, help, unit: None, kind: Kind::Counter, scale: Scale::One, labels: &[] }
}

/// New processes.
pub static FORKED: Family =
    counter("kernmeter_processes_forked", "Processes created, billed to the workload they start in.");
/// New threads.
pub static THREADS: Family = counter(
    "kernmeter_threads_started",
    "Threads created in existing processes, workers included that the kernel makes for a process (io_uring, vhost).",
);
/// Programs executed.
pub static EXEC: Family = counter("kernmeter_processes_exec", "Programs executed.");
/// Processes gone.
pub static EXITED: Family = counter("kernmeter_processes_exited", "Processes whose last thread ended.");
/// Live tasks.
pub static TASKS: Family = Family {
    name: "kernmeter_tasks",
    help: "Live tasks (threads). A task moved to another cgroup is counted there once it runs or makes a system call.",
    unit: None,
    kind: Kind::Gauge,
    scale: Scale::One,
    labels: &[],
};

/// Declaration of the probe.
pub static PROBE: Probe = Probe {
    name: "process",
    summary: "processes and threads: created, executed, ended, alive",
    needs: "Linux 5.10: BTF; from 5.13 on the kernel keeps the state of tasks, before a table does",
    cost: "about 200 ns per fork",
    hooks: &[
        Hook {
            program: "task_newtask",
            raw_twin: None,
            event_twin: None,
            tracepoint: "task_newtask",
            prototype: "task_newtask(struct task_struct *task, u64 clone_flags), since 6.18; with unsigned long clone_flags before",
            optional: false,
        },
        Hook {
            program: "process_exec",
            raw_twin: Some("raw_exec"),
            event_twin: Some(EventTwin { program: "event_exec", group: "sched", fields: &[] }),
            tracepoint: "sched_process_exec",
            prototype: "sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm), since 3.4",
            optional: true,
        },
        Hook {
            program: "process_exit",
            raw_twin: Some("raw_exit"),
            event_twin: Some(EventTwin {
                program: "event_exit",
                group: "sched",
                fields: &[("trace_event_raw_sched_process_exit", "group_dead", 32)],
            }),
            tracepoint: "sched_process_exit",
            prototype: "sched_process_exit(struct task_struct *p, bool group_dead), since 6.16; without group_dead before",
            optional: true,
        },
    ],
    families: &[&FORKED, &THREADS, &EXEC, &EXITED, &TASKS],
};
