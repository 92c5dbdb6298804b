//! In: nothing; out: what each probe is: hooks, needs, cost, metric families, declared once. Knows no values.
//!
//! METRICS.md, `kernmeter probes`, `doctor` and the list of names the configuration accepts derive from [`PROBES`].
//! A new probe is a kernel module, a file here and an entry in [`PROBES`].

pub mod cgroup;
pub mod family;
pub mod names;
pub mod process;
pub mod scheduler;
pub mod syscalls;

use family::Family;

/// One program and where it attaches.
#[derive(Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Program that does the same on a raw tracepoint, with helpers only; `None` where it cannot be done.
    pub raw_twin: Option<&'static str>,
    /// Program that does the same on a trace event, which runs it with preemption off; `None` where none is needed or can do it.
    pub event_twin: Option<EventTwin>,
    /// Name of the tracepoint.
    pub tracepoint: &'static str,
    /// The tracepoint's prototype in the newest kernel we know, and since when it has that form.
    pub prototype: &'static str,
    /// Whether the probe still counts exactly without this hook.
    pub optional: bool,
}

/// A program on a trace event, a record of fixed layout that the kernel makes at a tracepoint.
#[derive(Debug)]
pub struct EventTwin {
    /// Name of the program in the object.
    pub program: &'static str,
    /// The event's group; its name is that of the tracepoint.
    pub group: &'static str,
    /// The fields of the record the program reads, and where: struct, member, byte offset. The program is used only where they
    /// lie there.
    pub fields: &'static [(&'static str, &'static str, u32)],
}

impl Hook {
    /// Every program that can serve this hook.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        let event = self.event_twin.as_ref().map(|twin| twin.program);
        std::iter::once(self.program).chain(self.raw_twin).chain(event)
    }
}

/// A kernel field a probe reads, looked up in the running kernel's BTF.
#[derive(Debug)]
pub struct Field {
    /// Name of the constant in the object.
    pub global: &'static str,
    /// Places to look, first match wins: struct and path.
    pub at: &'static [(&'static str, &'static [&'static str])],
}

/// A group of hooks that meter one phenomenon.
#[derive(Debug)]
pub struct Probe {
    /// Name in metrics, configuration and messages.
    pub name: &'static str,
    /// What it tells, in a sentence.
    pub summary: &'static str,
    /// First kernel that can run it, and which ability makes it so.
    pub needs: &'static str,
    /// Its measured cost, in words.
    pub cost: &'static str,
    /// Its programs.
    pub hooks: &'static [Hook],
    /// What it exposes.
    pub families: &'static [&'static Family],
}

/// Every probe, in the order they are attached: cgroups first, so that no event finds its cgroup without a slot; switches, where
/// the state of tasks ends, before new tasks and system calls, where it begins.
pub static PROBES: &[&Probe] = &[&cgroup::PROBE, &scheduler::PROBE, &process::PROBE, &syscalls::PROBE];

/// Every workload family, in exposition order.
pub fn families() -> impl Iterator<Item = &'static Family> {
    PROBES.iter().rev().flat_map(|probe| probe.families.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::family::Kind;

    #[test]
    fn declarations_are_sound() {
        let mut names = std::collections::HashSet::new();
        for family in families() {
            assert!(names.insert(family.name), "`{}` is declared twice", family.name);
            assert!(family.name.starts_with("kernmeter_"), "{}", family.name);
            assert!(!family.name.ends_with("_total"), "{}", family.name);
            if let Some(unit) = family.unit {
                assert!(
                    family.name.ends_with(&format!("_{unit}")),
                    "{} does not end in its unit",
                    family.name
                );
            }
            if family.kind == Kind::Histogram {
                assert_eq!(family.scale, crate::catalog::family::Scale::NanosToSeconds);
            }
        }
        for probe in PROBES {
            for hook in probe.hooks {
                for program in hook.programs() {
                    assert!(program.len() <= 15, "`{program}` would be cut by the kernel");
                }
                assert!(hook.prototype.contains(hook.tracepoint));
            }
        }
    }
}
