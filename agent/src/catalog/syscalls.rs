//! The syscall probe: its hooks and metric families. Knows no values.

use super::{EventTwin, Hook, Probe};
use crate::catalog::family::{Family, Kind, Scale};

/// Calls, by syscall.
pub static CALLS: Family = Family {
    name: "kernmeter_syscalls",
    help: "System calls entered, and those answered before they were (`kernmeter_syscalls_denied_total`).",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["syscall", "abi"],
};

/// Errors, by syscall and errno.
pub static ERRORS: Family = Family {
    name: "kernmeter_syscall_errors",
    help: "System calls that returned an error. ERESTART* are calls interrupted by a signal, as the kernel sees them.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["syscall", "abi", "errno"],
};

/// Calls that were never entered, by syscall.
pub static DENIED: Family = Family {
    name: "kernmeter_syscalls_denied",
    help: "System calls that seccomp or a tracer answered before they were entered; in kernmeter_syscalls_total too, in no duration histogram.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["syscall", "abi"],
};

/// Durations, by syscall.
pub static DURATION: Family = Family {
    name: "kernmeter_syscall_duration_seconds",
    help: "Time from entry to return of system calls that returned, waiting included.",
    unit: Some("seconds"),
    kind: Kind::Histogram,
    scale: Scale::NanosToSeconds,
    labels: &["syscall", "abi"],
};

/// Finished calls outside the histograms.
pub static UNMEASURED: Family = Family {
    name: "kernmeter_syscalls_unmeasured",
    help: "System calls that returned but are in no duration histogram, because no kernel row was free for them.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &[],
};

/// Declaration of the probe.
pub static PROBE: Probe = Probe {
    name: "syscalls",
    summary: "system calls: count, errors, latency",
    needs: "Linux 5.10: BTF; from 5.13 on the kernel keeps the state of tasks, before a table does",
    cost: "about 255 ns per system call on a mitigated 2-core VM, 110 of them above empty programs",
    hooks: &[
        Hook {
            program: "sys_enter",
            raw_twin: Some("raw_sys_enter"),
            event_twin: Some(EventTwin {
                program: "event_sys_enter",
                group: "raw_syscalls",
                fields: &[("trace_event_raw_sys_enter", "id", 8)],
            }),
            tracepoint: "sys_enter",
            prototype: "sys_enter(struct pt_regs *regs, long id), since 2.6.32",
            optional: false,
        },
        Hook {
            program: "sys_exit",
            raw_twin: Some("raw_sys_exit"),
            event_twin: Some(EventTwin {
                program: "event_sys_exit",
                group: "raw_syscalls",
                fields: &[("trace_event_raw_sys_exit", "id", 8), ("trace_event_raw_sys_exit", "ret", 16)],
            }),
            tracepoint: "sys_exit",
            prototype: "sys_exit(struct pt_regs *regs, long ret), since 2.6.32",
            optional: false,
        },
    ],
    families: &[&CALLS, &DENIED, &ERRORS, &DURATION, &UNMEASURED],
};
