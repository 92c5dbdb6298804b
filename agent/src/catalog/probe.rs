//! In: nothing; out: what a probe, its hooks and the programs that serve them are. Declares no probe.

use super::column::Column;
use super::family::Family;

/// One tracepoint and the programs that can serve it.
#[derive(Debug)]
pub struct Hook {
    /// Name of the program in the object, for a BTF tracepoint.
    pub program: &'static str,
    /// Program that does the same on a raw tracepoint, with helpers only; `None` where it cannot be done.
    pub raw_variant: Option<&'static str>,
    /// Program that does the same on a trace event, which runs it with preemption off; `None` where none is needed or can
    /// do it.
    pub event_variant: Option<EventVariant>,
    /// Name of the tracepoint.
    pub tracepoint: &'static str,
    /// The tracepoint's prototype in the newest kernel we know, and since when it has that form.
    pub prototype: &'static str,
    /// Whether the rest of the probe is exact without this hook: then only what the hook counts is missing where it cannot be
    /// attached, and not the probe.
    pub optional: bool,
}

/// A program on a trace event: a record of fixed layout that the kernel makes at a tracepoint.
#[derive(Debug)]
pub struct EventVariant {
    /// Name of the program in the object.
    pub program: &'static str,
    /// The event's group; its name is that of the tracepoint.
    pub group: &'static str,
    /// The fields of the record the program reads, and where: struct, member, byte offset. The program is used only where
    /// they lie there.
    pub fields: &'static [(&'static str, &'static str, u32)],
}

impl Hook {
    /// A hook that the probe cannot do without and that only one program serves. The tracepoint's name begins its prototype.
    pub const fn new(program: &'static str, prototype: &'static str) -> Hook {
        let mut end = 0;
        while prototype.as_bytes()[end] != b'(' {
            end += 1;
        }
        let (tracepoint, _) = prototype.split_at(end);
        Hook { program, raw_variant: None, event_variant: None, tracepoint, prototype, optional: false }
    }

    /// Also served by this program on a raw tracepoint.
    #[must_use]
    pub const fn raw(self, program: &'static str) -> Hook {
        Hook { raw_variant: Some(program), ..self }
    }

    /// Also served by this program on the trace event of the same name in this group.
    #[must_use]
    pub const fn event(
        self,
        program: &'static str,
        group: &'static str,
        fields: &'static [(&'static str, &'static str, u32)],
    ) -> Hook {
        Hook { event_variant: Some(EventVariant { program, group, fields }), ..self }
    }

    /// The rest of the probe is exact without it.
    #[must_use]
    pub const fn optional(self) -> Hook {
        Hook { optional: true, ..self }
    }

    /// Every program that can serve this hook.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> {
        let event = self.event_variant.as_ref().map(|variant| variant.program);
        std::iter::once(self.program).chain(self.raw_variant).chain(event)
    }
}

/// When a probe is attached. Each stage begins when the one before is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// First, so that no cgroup is made without a slot. Then those that exist get theirs.
    Cgroups,
    /// So that no task is made, runs or ends unseen. Then those that exist are set up.
    Tasks,
    /// What tasks do.
    Events,
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
    /// When it is attached.
    pub stage: Stage,
    /// Whether it runs unless the configuration says otherwise.
    pub by_default: bool,
    /// Its programs.
    pub hooks: &'static [Hook],
    /// What it exposes, in the order of the exposition.
    pub families: &'static [&'static Family],
    /// What fills these.
    pub columns: &'static [Column],
}
