//! The cgroup probe: its hooks and metric families. Knows no values.

use super::{Hook, Probe};
use crate::catalog::family::{Family, Kind, Scale};

/// Tasks moved into a workload.
pub static MOVES: Family = Family {
    name: "kernmeter_task_moves",
    help: "Moves of a task, or of a process with all its threads, into a cgroup of the workload. The new workload is billed \
           for the CPU time, waits and switches of a moved task at once, for its calls from the next one on.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &[],
};

/// Declaration of the probe.
pub static PROBE: Probe = Probe {
    name: "cgroup",
    summary: "workloads: a slot for each cgroup from its creation to its last count",
    needs: "Linux 5.5: BTF tracepoints; cgroup v2 or hybrid",
    cost: "about 1 us per cgroup created",
    hooks: &[
        Hook {
            program: "cgroup_mkdir",
            raw_twin: None,
            event_twin: None,
            tracepoint: "cgroup_mkdir",
            prototype: "cgroup_mkdir(struct cgroup *cgrp, const char *path), since 4.16",
            optional: false,
        },
        Hook {
            program: "cgroup_rmdir",
            raw_twin: None,
            event_twin: None,
            tracepoint: "cgroup_rmdir",
            prototype: "cgroup_rmdir(struct cgroup *cgrp, const char *path), since 4.16",
            optional: false,
        },
        Hook {
            program: "cgroup_attach",
            raw_twin: None,
            event_twin: None,
            tracepoint: "cgroup_attach_task",
            prototype: "cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, \
                        bool threadgroup), since 4.16",
            optional: true,
        },
        Hook {
            program: "cgroup_transfer",
            raw_twin: None,
            event_twin: None,
            tracepoint: "cgroup_transfer_tasks",
            prototype: "cgroup_transfer_tasks(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, \
                        bool threadgroup), since 4.16",
            optional: true,
        },
    ],
    families: &[&MOVES],
};
