//! In: batches of slot counts, cgroup paths, whose they are; out: registry totals. Does no I/O; never drops or guesses a count.
//!
//! Counts of a slot wait until the slot is bound to a workload, however late; once attributed they stay where they are,
//! whatever the rules say later.

use std::collections::HashMap;

use agent_ebpf::{SLOT_HOST, SLOT_OVERFLOW, SlotRow, SyscallRow, TOTALS, Total};

use crate::{
    drain::{Batch, EMPTY_SLOT_ROW, EMPTY_SYSCALL_ROW},
    family::Family,
    identity::{OVERFLOW, UNKNOWN, Workload},
    names,
    probes::{cgroup, process, scheduler, syscalls},
    registry::{Registry, TargetId},
};

/// Whose a cgroup path is. Pure: the rules and the user names are fixed while a batch is attributed.
pub trait Identify {
    /// The workload of a cgroup path.
    fn identify(&self, path: &[u8]) -> Workload;
}

/// Label value for calls or errors without a row of their own.
const NO_ROW: &str = "_overflow";

/// What waits in a slot for an identity.
#[derive(Default)]
struct Pending {
    slot: Option<Box<SlotRow>>,
    syscalls: HashMap<u32, SyscallRow>,
    errors: HashMap<(u32, u32), u64>,
    /// When the slot was met, nanoseconds of the batch clock.
    since_ns: u64,
    /// The slot was given back meanwhile: what waits is all there will be.
    freed: bool,
}

enum Binding {
    /// Nobody's.
    Free,
    /// Somebody's, not known whose.
    Pending(Box<Pending>),
    Bound(TargetId),
}

struct Slot {
    binding: Binding,
    path: Option<Vec<u8>>,
    cgroup_id: u64,
}

/// One conserved quantity: what the kernel counted before attribution and what arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// The quantity, as in `kernmeter_kernel_events_total{event}`; both kinds of switches are one.
    pub event: &'static str,
    /// The kernel's count before the rows were read.
    pub kernel_before: u64,
    /// The kernel's count after the rows were read.
    pub kernel_after: u64,
    /// The sum over tenants, and what waits for an identity.
    pub attributed: u64,
}

impl Balance {
    /// How far the attributed sum lies outside what the kernel counted, relative to the latter. `in_flight` events may be
    /// in the kernel's count but not yet in a row.
    pub fn error_ratio(&self, in_flight: u64) -> f64 {
        let short = self.kernel_before.saturating_sub(self.attributed).saturating_sub(in_flight);
        let over = self.attributed.saturating_sub(self.kernel_after);
        short.max(over) as f64 / self.kernel_after.max(1) as f64
    }
}

/// Binds slots to workloads and their counts to totals.
pub struct Attribution {
    slots: Vec<Slot>,
    /// Slots that were given back before their identity was learnt.
    orphans: Vec<Slot>,
}

impl Attribution {
    /// For `slots` slots. The overflow slot is bound to its reserved tenant; the host slot waits for the rules.
    pub fn new(slots: u32, registry: &mut Registry, identify: &dyn Identify) -> Attribution {
        let free = || Slot { binding: Binding::Free, path: None, cgroup_id: 0 };
        let mut attribution =
            Attribution { slots: (0..slots).map(|_| free()).collect(), orphans: Vec::new() };
        let overflow = acquire(registry, &Workload::of_tenant(OVERFLOW));
        attribution.slots[SLOT_OVERFLOW as usize].binding = Binding::Bound(overflow);
        let host = acquire(registry, &identify.identify(b"/"));
        let slot = &mut attribution.slots[SLOT_HOST as usize];
        slot.path = Some(b"/".to_vec());
        slot.binding = Binding::Bound(host);
        attribution
    }

    /// Attributes a batch.
    pub fn apply(&mut self, batch: &Batch, registry: &mut Registry, identify: &dyn Identify) {
        for birth in &batch.births {
            let path = self.path_of(birth.parent_slot, &birth.name);
            let slot = &mut self.slots[birth.slot as usize];
            slot.cgroup_id = birth.cgroup_id;
            slot.binding = match &path {
                Some(path) => Binding::Bound(acquire(registry, &identify.identify(path))),
                None => {
                    Binding::Pending(Box::new(Pending { since_ns: batch.taken_ns, ..Pending::default() }))
                }
            };
            slot.path = path;
        }
        for delta in &batch.slots {
            match &mut self.slots[delta.slot as usize].binding {
                Binding::Bound(target) => add_slot(registry, *target, &delta.row),
                Binding::Pending(pending) => {
                    add_slot_rows(pending.slot.get_or_insert_with(|| Box::new(EMPTY_SLOT_ROW)), &delta.row);
                }
                Binding::Free => add_slot(registry, self.overflow(), &delta.row),
            }
        }
        for delta in &batch.syscalls {
            match &mut self.slots[delta.slot as usize].binding {
                Binding::Bound(target) => add_syscall(registry, *target, delta.syscall, &delta.row),
                Binding::Pending(pending) => {
                    let row = pending.syscalls.entry(delta.syscall).or_insert(EMPTY_SYSCALL_ROW);
                    add_syscall_rows(row, &delta.row);
                }
                Binding::Free => add_syscall(registry, self.overflow(), delta.syscall, &delta.row),
            }
        }
        for delta in &batch.errors {
            match &mut self.slots[delta.slot as usize].binding {
                Binding::Bound(target) => {
                    add_errno(registry, *target, delta.syscall, delta.errno, delta.count);
                }
                Binding::Pending(pending) => {
                    *pending.errors.entry((delta.syscall, delta.errno)).or_default() += delta.count;
                }
                Binding::Free => {
                    add_errno(registry, self.overflow(), delta.syscall, delta.errno, delta.count);
                }
            }
        }
        for freed in &batch.freed {
            let free = Slot { binding: Binding::Free, path: None, cgroup_id: 0 };
            let mut slot = std::mem::replace(&mut self.slots[*freed as usize], free);
            match &mut slot.binding {
                Binding::Bound(target) => registry.release(*target, batch.taken_ns),
                Binding::Pending(pending) => {
                    pending.freed = true;
                    self.orphans.push(slot);
                }
                Binding::Free => {}
            }
        }
    }

    /// Gives a cgroup that waits its path. Does nothing for others.
    pub fn learn(&mut self, cgroup_id: u64, path: &[u8], registry: &mut Registry, identify: &dyn Identify) {
        let waits = |slot: &Slot| slot.cgroup_id == cgroup_id && matches!(slot.binding, Binding::Pending(_));
        if let Some(slot) = self.slots.iter_mut().find(|slot| waits(slot)) {
            slot.path = Some(path.to_vec());
            bind(slot, registry, &identify.identify(path), 0);
        }
        if let Some(index) = self.orphans.iter().position(waits) {
            let mut slot = self.orphans.swap_remove(index);
            bind(&mut slot, registry, &identify.identify(path), 0);
        }
    }

    /// Gives what has waited longer than `patience_ns` to the reserved tenant `_unknown`: it is counted, visibly.
    pub fn give_up(&mut self, now_ns: u64, patience_ns: u64, registry: &mut Registry) {
        let late = |slot: &Slot| match &slot.binding {
            Binding::Pending(pending) => now_ns.saturating_sub(pending.since_ns) >= patience_ns,
            _ => false,
        };
        let unknown = Workload::of_tenant(UNKNOWN);
        for slot in self.slots.iter_mut().filter(|slot| late(slot)) {
            bind(slot, registry, &unknown, now_ns);
        }
        let mut kept = Vec::new();
        for mut slot in self.orphans.drain(..) {
            if late(&slot) { bind(&mut slot, registry, &unknown, now_ns) } else { kept.push(slot) }
        }
        self.orphans = kept;
    }

    /// Applies new rules to what is counted from now on.
    pub fn reassign(&mut self, now_ns: u64, registry: &mut Registry, identify: &dyn Identify) {
        for slot in &mut self.slots {
            if let (Binding::Bound(target), Some(path)) = (&mut slot.binding, &slot.path) {
                let new = acquire(registry, &identify.identify(path));
                registry.release(*target, now_ns);
                *target = new;
            }
        }
    }

    /// cgroup ids of the slots that wait for their path, those given back included.
    pub fn unresolved(&self) -> Vec<u64> {
        let waits = |slot: &&Slot| matches!(slot.binding, Binding::Pending(_));
        self.slots.iter().chain(&self.orphans).filter(waits).map(|slot| slot.cgroup_id).collect()
    }

    /// cgroup id of each slot that is bound or waits.
    pub fn cgroups(&self) -> impl Iterator<Item = (u32, u64)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.cgroup_id != 0)
            .map(|(i, slot)| (i as u32, slot.cgroup_id))
    }

    /// Compares every conserved quantity with the kernel's independent totals.
    pub fn balance(&self, batch: &Batch, registry: &Registry) -> Vec<Balance> {
        let waiting = self.waiting();
        let of = |total: Total, attributed: u64| Balance {
            event: total.as_str(),
            kernel_before: batch.totals_before[total as usize],
            kernel_after: batch.totals_after[total as usize],
            attributed,
        };
        let switches = |totals: &[u64; TOTALS]| {
            totals[Total::SwitchVoluntary as usize] + totals[Total::SwitchInvoluntary as usize]
        };
        let sum = |family: &'static Family, pending: u64| registry.sum(family) + pending;
        let (slot, syscall, errors) = (&waiting.0, &waiting.1, waiting.2);
        let done = |row: &SyscallRow| row.buckets.iter().map(|n| u64::from(*n)).sum::<u64>();
        let waits = slot.wait_buckets.iter().map(|n| u64::from(*n)).sum::<u64>();
        vec![
            of(Total::SyscallEnter, sum(&syscalls::CALLS, syscall.calls + slot.overflow_calls)),
            of(
                Total::SyscallExit,
                registry.count(&syscalls::DURATION)
                    + sum(&syscalls::UNMEASURED, slot.overflow_done)
                    + done(syscall),
            ),
            of(
                Total::SyscallError,
                sum(&syscalls::ERRORS, errors + syscall.other_errors + slot.overflow_errors),
            ),
            of(Total::CpuNs, sum(&scheduler::CPU, slot.cpu_ns)),
            Balance {
                event: "switches",
                kernel_before: switches(&batch.totals_before),
                kernel_after: switches(&batch.totals_after),
                attributed: sum(&scheduler::SWITCHES, slot.voluntary + slot.involuntary),
            },
            of(Total::Waits, registry.count(&scheduler::WAIT) + waits),
            of(Total::WaitNs, sum(&scheduler::WAIT, slot.wait_ns)),
            of(
                Total::BlockedNs,
                sum(
                    &scheduler::BLOCKED,
                    syscall.blocked_ns + slot.blocked_other_ns + slot.overflow_blocked_ns,
                ),
            ),
            of(Total::Migrations, sum(&scheduler::MIGRATIONS, slot.migrations)),
            of(Total::Forked, sum(&process::FORKED, slot.forked)),
            of(Total::Threads, sum(&process::THREADS, slot.threads)),
            of(Total::Exec, sum(&process::EXEC, slot.exec)),
            of(Total::Exited, sum(&process::EXITED, slot.exited)),
            of(Total::Moved, sum(&cgroup::MOVES, slot.moved_in)),
        ]
    }

    /// Sums of what waits: slot rows, syscall rows, errors with an errno.
    fn waiting(&self) -> (SlotRow, SyscallRow, u64) {
        let mut sums = (EMPTY_SLOT_ROW, EMPTY_SYSCALL_ROW, 0);
        for slot in self.slots.iter().chain(&self.orphans) {
            if let Binding::Pending(pending) = &slot.binding {
                if let Some(row) = &pending.slot {
                    add_slot_rows(&mut sums.0, row);
                }
                pending.syscalls.values().for_each(|row| add_syscall_rows(&mut sums.1, row));
                sums.2 += pending.errors.values().sum::<u64>();
            }
        }
        sums
    }

    fn overflow(&self) -> TargetId {
        match self.slots[SLOT_OVERFLOW as usize].binding {
            Binding::Bound(target) => target,
            _ => unreachable!("the overflow slot is bound from the start"),
        }
    }

    fn path_of(&self, parent: u32, name: &[u8]) -> Option<Vec<u8>> {
        if name.is_empty() || parent == SLOT_OVERFLOW {
            return None;
        }
        let parent = self.slots.get(parent as usize)?.path.as_ref()?;
        let mut path = parent.clone();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Some(path)
    }
}

fn acquire(registry: &mut Registry, workload: &Workload) -> TargetId {
    registry.acquire([&workload.tenant, &workload.namespace, &workload.pod, &workload.container])
}

/// Binds a waiting slot and attributes what waited.
fn bind(slot: &mut Slot, registry: &mut Registry, workload: &Workload, now_ns: u64) {
    let Binding::Pending(pending) = &mut slot.binding else { return };
    let pending = std::mem::take(pending);
    let target = acquire(registry, workload);
    if let Some(row) = &pending.slot {
        add_slot(registry, target, row);
    }
    for (syscall, row) in &pending.syscalls {
        add_syscall(registry, target, *syscall, row);
    }
    for ((syscall, errno), count) in &pending.errors {
        add_errno(registry, target, *syscall, *errno, *count);
    }
    slot.binding = if pending.freed {
        registry.release(target, now_ns);
        Binding::Free
    } else {
        Binding::Bound(target)
    };
}

fn add_slot(registry: &mut Registry, target: TargetId, row: &SlotRow) {
    let none = ["none", "none"];
    let no_row = [NO_ROW, NO_ROW];
    for (family, labels, value) in [
        (&scheduler::CPU, &[][..], row.cpu_ns),
        (&scheduler::SWITCHES, &["voluntary"], row.voluntary),
        (&scheduler::SWITCHES, &["involuntary"], row.involuntary),
        (&scheduler::MIGRATIONS, &[], row.migrations),
        (&scheduler::BLOCKED, &none, row.blocked_other_ns),
        (&scheduler::BLOCKED, &no_row, row.overflow_blocked_ns),
        (&process::FORKED, &[], row.forked),
        (&process::THREADS, &[], row.threads),
        (&process::EXEC, &[], row.exec),
        (&process::EXITED, &[], row.exited),
        (&process::TASKS, &[], row.tasks),
        (&cgroup::MOVES, &[], row.moved_in),
        (&syscalls::CALLS, &no_row, row.overflow_calls),
        (&syscalls::ERRORS, &[NO_ROW, NO_ROW, NO_ROW], row.overflow_errors),
        (&syscalls::UNMEASURED, &[], row.overflow_done),
    ] {
        registry.add(target, family, labels, value);
    }
    let buckets = row.wait_buckets.map(u64::from);
    registry.observe(target, &scheduler::WAIT, &[], &buckets, row.wait_ns);
}

fn add_syscall(registry: &mut Registry, target: TargetId, syscall: u32, row: &SyscallRow) {
    let (name, abi) = names::syscall(syscall);
    let labels = [&*name, abi];
    registry.add(target, &syscalls::CALLS, &labels, row.calls);
    registry.add(target, &syscalls::ERRORS, &[&name, abi, NO_ROW], row.other_errors);
    registry.add(target, &scheduler::BLOCKED, &labels, row.blocked_ns);
    registry.observe(target, &syscalls::DURATION, &labels, &row.buckets.map(u64::from), row.sum_ns);
}

fn add_errno(registry: &mut Registry, target: TargetId, syscall: u32, errno: u32, count: u64) {
    let (name, abi) = names::syscall(syscall);
    registry.add(target, &syscalls::ERRORS, &[&name, abi, &names::errno(errno)], count);
}

fn add_slot_rows(sum: &mut SlotRow, row: &SlotRow) {
    for (sum, value) in [
        (&mut sum.cpu_ns, row.cpu_ns),
        (&mut sum.wait_ns, row.wait_ns),
        (&mut sum.voluntary, row.voluntary),
        (&mut sum.involuntary, row.involuntary),
        (&mut sum.migrations, row.migrations),
        (&mut sum.forked, row.forked),
        (&mut sum.threads, row.threads),
        (&mut sum.exec, row.exec),
        (&mut sum.exited, row.exited),
        (&mut sum.tasks, row.tasks),
        (&mut sum.moved_in, row.moved_in),
        (&mut sum.blocked_other_ns, row.blocked_other_ns),
        (&mut sum.overflow_calls, row.overflow_calls),
        (&mut sum.overflow_errors, row.overflow_errors),
        (&mut sum.overflow_done, row.overflow_done),
        (&mut sum.overflow_blocked_ns, row.overflow_blocked_ns),
    ] {
        *sum = sum.wrapping_add(value);
    }
    for (sum, value) in sum.wait_buckets.iter_mut().zip(row.wait_buckets) {
        *sum = sum.wrapping_add(value);
    }
}

fn add_syscall_rows(sum: &mut SyscallRow, row: &SyscallRow) {
    sum.calls += row.calls;
    sum.errors += row.errors;
    sum.other_errors += row.other_errors;
    sum.sum_ns += row.sum_ns;
    sum.blocked_ns += row.blocked_ns;
    for (sum, value) in sum.buckets.iter_mut().zip(row.buckets) {
        *sum = sum.wrapping_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        drain::{Birth, ErrnoDelta, SlotDelta, SyscallDelta},
        family::Detail,
        probes,
        registry::Limits,
    };

    /// Tenant = first component, or `_host` for the root.
    struct ByTop(&'static str);

    impl Identify for ByTop {
        fn identify(&self, path: &[u8]) -> Workload {
            let path = String::from_utf8_lossy(path);
            let top = path.split('/').nth(1).filter(|top| !top.is_empty());
            Workload::of_tenant(&top.map_or("_host".to_owned(), |top| format!("{}{top}", self.0)))
        }
    }

    fn setup() -> (Registry, Attribution) {
        let limits = Limits { series_per_tenant: 1000, tenants: 100, retention_ns: 0 };
        let mut registry = Registry::new(probes::families(), |_| Detail::Tenant, limits);
        let attribution = Attribution::new(16, &mut registry, &ByTop(""));
        (registry, attribution)
    }

    fn born(slot: u32, parent_slot: u32, name: &str) -> Birth {
        Birth { slot, cgroup_id: 100 + u64::from(slot), parent_slot, name: name.into() }
    }

    fn counts(slot: u32, calls: u64) -> Batch {
        let row = SyscallRow { calls, ..EMPTY_SYSCALL_ROW };
        Batch {
            syscalls: vec![SyscallDelta { slot, syscall: 39, row }],
            errors: vec![ErrnoDelta { slot, syscall: 39, errno: 2, count: 1 }],
            slots: vec![SlotDelta { slot, row: SlotRow { cpu_ns: 10 * calls, ..EMPTY_SLOT_ROW } }],
            ..Batch::default()
        }
    }

    fn calls(registry: &Registry) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        registry.visit(&syscalls::CALLS, |labels, value, _| {
            found.push((
                String::from_utf8_lossy(labels).split('"').nth(1).unwrap_or_default().to_owned(),
                value,
            ));
        });
        found
    }

    #[test]
    fn counts_go_to_the_tenant_of_the_path() {
        let (mut registry, mut attribution) = setup();
        let births = Batch { births: vec![born(2, 0, "a"), born(3, 2, "deep")], ..Batch::default() };
        attribution.apply(&births, &mut registry, &ByTop(""));
        for slot in [2, 3, 0, 1] {
            attribution.apply(&counts(slot, 5), &mut registry, &ByTop(""));
        }
        assert_eq!(calls(&registry), [("a".into(), 10), ("_host".into(), 5), ("_overflow".into(), 5)]);
        assert_eq!(registry.sum(&scheduler::CPU), 200);
        assert_eq!(registry.sum(&syscalls::ERRORS), 4);
    }

    #[test]
    fn counts_wait_for_an_identity_even_after_the_slot_is_gone() {
        let (mut registry, mut attribution) = setup();
        let births = Batch { births: vec![born(5, SLOT_OVERFLOW, "x"), born(6, 0, "")], ..Batch::default() };
        attribution.apply(&births, &mut registry, &ByTop(""));
        attribution.apply(&counts(5, 3), &mut registry, &ByTop(""));
        attribution.apply(&Batch { freed: vec![5], ..counts(5, 4) }, &mut registry, &ByTop(""));
        attribution.apply(&counts(6, 2), &mut registry, &ByTop(""));
        assert_eq!(calls(&registry), []);
        assert_eq!(attribution.unresolved().len(), 2);
        let batch = Batch::default();
        assert_eq!(attribution.balance(&batch, &registry)[0].attributed, 9);
        // The slot has a new owner before the old one's identity is learnt: nothing mixes.
        let reborn = Batch { births: vec![Birth { cgroup_id: 900, ..born(5, 0, "b") }], ..Batch::default() };
        attribution.apply(&reborn, &mut registry, &ByTop(""));
        attribution.apply(&counts(5, 100), &mut registry, &ByTop(""));
        attribution.learn(105, b"/late/x", &mut registry, &ByTop(""));
        assert_eq!(calls(&registry), [("b".into(), 100), ("late".into(), 7)]);
        attribution.give_up(10, 10, &mut registry);
        assert_eq!(calls(&registry)[2], ("_unknown".into(), 2));
        assert!(attribution.unresolved().is_empty());
        assert_eq!(attribution.balance(&batch, &registry)[0].attributed, 109);
    }

    #[test]
    fn new_rules_apply_to_new_counts_only() {
        let (mut registry, mut attribution) = setup();
        let births = Batch { births: vec![born(2, 0, "a")], ..Batch::default() };
        attribution.apply(&births, &mut registry, &ByTop(""));
        attribution.apply(&counts(2, 5), &mut registry, &ByTop(""));
        attribution.reassign(0, &mut registry, &ByTop("new-"));
        attribution.apply(&counts(2, 6), &mut registry, &ByTop("new-"));
        assert_eq!(calls(&registry), [("a".into(), 5), ("new-a".into(), 6)]);
    }

    #[test]
    fn balances_tell_how_far_off() {
        let balance = |before, after, attributed| Balance {
            event: "exec",
            kernel_before: before,
            kernel_after: after,
            attributed,
        };
        for (balance, expected) in [
            (balance(100, 110, 105), 0.0),
            (balance(100, 100, 98), 0.0),
            (balance(100, 100, 90), 0.08),
            (balance(100, 100, 101), 0.01),
            (balance(0, 0, 0), 0.0),
        ] {
            assert!((balance.error_ratio(2) - expected).abs() < 1e-9, "{balance:?}");
        }
    }
}
