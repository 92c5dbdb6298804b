//! In: the running kernel's BTF; out: the constants the programs need. Never guesses: a missing field is named.

use crate::btf::{Btf, BtfError};
use crate::catalog::{EventVariant, PROBES};

/// A kernel field that the programs read, looked up in the running kernel's BTF.
#[derive(Debug)]
pub struct Field {
    /// Name of the constant in the object.
    pub global: &'static str,
    /// Places to look, first match wins: struct and path.
    pub at: &'static [(&'static str, &'static [&'static str])],
}

/// Every field the programs load, with its names in the kernels we know, newest first.
pub static FIELDS: &[Field] = &[
    Field { global: "OFF_TASK_PID", at: &[("task_struct", &["pid"])] },
    Field { global: "OFF_TASK_TGID", at: &[("task_struct", &["tgid"])] },
    Field { global: "OFF_TASK_FLAGS", at: &[("task_struct", &["flags"])] },
    Field { global: "OFF_TASK_STATE", at: &[("task_struct", &["__state"]), ("task_struct", &["state"])] },
    Field { global: "OFF_TASK_EXIT", at: &[("task_struct", &["exit_state"])] },
    Field { global: "OFF_TASK_RUNTIME", at: &[("task_struct", &["se", "sum_exec_runtime"])] },
    Field { global: "OFF_TASK_CGROUPS", at: &[("task_struct", &["cgroups"])] },
    Field { global: "OFF_TASK_STATUS", at: &[("task_struct", &["thread_info", "status"])] },
    Field { global: "OFF_TASK_PTRACE", at: &[("task_struct", &["ptrace"])] },
    Field { global: "OFF_REGS_NR", at: &[("pt_regs", &["orig_ax"])] },
    Field { global: "OFF_TASK_SIGNAL", at: &[("task_struct", &["signal"])] },
    Field {
        global: "OFF_SIGNAL_EXEC",
        at: &[("signal_struct", &["group_exec_task"]), ("signal_struct", &["group_exit_task"])],
    },
    Field { global: "OFF_CSSSET_DFL", at: &[("css_set", &["dfl_cgrp"])] },
    Field { global: "OFF_CGROUP_KN", at: &[("cgroup", &["kn"])] },
    Field { global: "OFF_CGROUP_ROOT", at: &[("cgroup", &["root"])] },
    Field { global: "OFF_CGROUP_PAR", at: &[("cgroup", &["self", "parent"])] },
    Field { global: "OFF_CSS_CGROUP", at: &[("cgroup_subsys_state", &["cgroup"])] },
    Field { global: "OFF_ROOT_HIERID", at: &[("cgroup_root", &["hierarchy_id"])] },
    Field { global: "OFF_KN_ID", at: &[("kernfs_node", &["id"])] },
    Field { global: "OFF_KN_NAME", at: &[("kernfs_node", &["name"])] },
];

/// Constants derived from BTF, ready to be set in the object.
#[derive(Debug, PartialEq, Eq)]
pub struct Constants {
    /// Name and value of each.
    pub values: Vec<(&'static str, u32)>,
    /// Whether tracing programs can keep state in tasks: see [`has_task_storage`].
    pub task_storage: bool,
    /// Whether the kernel may preempt programs on tracepoints that are hit in task context, those of system calls above all.
    pub preemptible: bool,
    /// Programs for trace events whose records have the fields they read where they read them.
    pub events: Vec<&'static str>,
}

/// Whether the kernel may preempt programs on the tracepoints of system calls (Linux 7.2): this function came with it.
///
/// # Errors
/// The type information is malformed.
pub fn is_preemptible(btf: &Btf) -> Result<bool, BtfError> {
    btf.has_function("trace_call_bpf_faultable")
}

fn has_its_fields(btf: &Btf, variant: &EventVariant) -> bool {
    let lies_there = |&(structure, member, offset)| btf.offset(structure, &[member]) == Ok(offset);
    variant.fields.iter().all(lies_there)
}

/// Whether tracing programs can keep state in tasks: the member came with that ability (Linux 5.13).
pub fn has_task_storage(btf: &Btf) -> bool {
    btf.offset("task_struct", &["bpf_storage"]).is_ok()
}

/// Looks up every field and the shapes of tracepoints whose prototype changed.
///
/// # Errors
/// The first field that no known name finds.
pub fn resolve(btf: &Btf) -> Result<Constants, BtfError> {
    let mut values = Vec::with_capacity(FIELDS.len() + 3);
    for field in FIELDS {
        let mut found = Err(BtfError::Malformed(0, "no place to look"));
        for (structure, path) in field.at {
            let answer = btf.offset(structure, path);
            let done = answer.is_ok();
            // The newest name is the one worth reporting.
            if done || matches!(found, Err(BtfError::Malformed(..))) {
                found = answer;
            }
            if done {
                break;
            }
        }
        values.push((field.global, found?));
    }
    let args = |hook: &str| btf.tracepoint_args(hook).map(Option::unwrap_or_default);
    values.push(("HAS_PREV_STATE", u32::from(args("sched_switch")? >= 4)));
    // 0, which is no member's place: the kernel is built without seccomp.
    values.push(("OFF_TASK_SECCOMP", btf.offset("task_struct", &["seccomp", "mode"]).unwrap_or_default()));
    values.push(("HAS_GROUP_DEAD", u32::from(args("sched_process_exit")? >= 2)));
    let variants = PROBES.iter().flat_map(|probe| probe.hooks).filter_map(|hook| hook.event_variant.as_ref());
    let events =
        variants.filter(|variant| has_its_fields(btf, variant)).map(|variant| variant.program).collect();
    Ok(Constants { values, task_storage: has_task_storage(btf), preemptible: is_preemptible(btf)?, events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_here() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIP kernel::offsets::resolves_here: no /sys/kernel/btf/vmlinux here");
            return;
        };
        let btf = Btf::parse(data).unwrap();
        assert!(has_task_storage(&btf));
        let constants = resolve(&btf).unwrap();
        assert_eq!(constants.values.len(), FIELDS.len() + 3);
        let mut names: Vec<_> = constants.values.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FIELDS.len() + 3);
        assert!(constants.events.contains(&"event_sys_enter"), "{:?}", constants.events);
    }
}
