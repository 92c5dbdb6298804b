//! In: batches of slot counts, cgroup paths, whose they are; out: registry totals. Does no I/O; never drops or guesses a count.
//!
//! Counts of a slot wait until the slot is bound to a workload, however late; once attributed they stay where they are,
//! whatever the rules say later.

mod rows;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;

use kernmeter_abi::{SLOT_HOST, SLOT_OVERFLOW, SlotRow, TOTALS};

use self::rows::{bill, billed};
use self::waiting::{Sum, Waiting};
use crate::catalog::{Quantity, RowKind, probes, quantities};
use crate::drain::{Batch, Delta, Subject};
use crate::identity::{Certainty, Identify, Identity, OVERFLOW, UNKNOWN, Workload};
use crate::registry::{Registry, TargetId};

/// Where a slot's row says how many tasks came or went.
const TASKS_CELL: usize = RowKind::Slot.cell_of(offset_of!(SlotRow, tasks));

/// How long counts wait, nanoseconds, before they are shown without what is missing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a cgroup's path.
    pub path_ns: u64,
    /// For a pod.
    pub pod_ns: u64,
    /// For a container's name.
    pub container_ns: u64,
    /// Slots given back that may wait; beyond, the oldest wait no longer.
    pub orphans: usize,
}

enum Binding {
    /// Nobody's.
    Free,
    /// Somebody's, not known whose.
    Waiting(Box<Waiting>),
    Bound(TargetId),
}

struct Slot {
    binding: Binding,
    path: Option<Vec<u8>>,
    cgroup_id: u64,
    /// Of the binding, or of the last answer.
    certainty: Certainty,
    /// Tasks billed to the present target: they move along with it.
    tasks: u64,
}

impl Slot {
    const FREE: Slot =
        Slot { binding: Binding::Free, path: None, cgroup_id: 0, certainty: Certainty::PodUnknown, tasks: 0 };
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
    /// Of these, what waits: it is in no tenant's series yet.
    pub waiting: u64,
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
    /// Slots that were given back before their identity was learnt, oldest first.
    orphans: VecDeque<Slot>,
    patience: Patience,
    /// Of [`Identify::generation`], when everything was last asked.
    asked: Option<u64>,
    refusals: BTreeMap<&'static str, u64>,
    given_up: BTreeMap<&'static str, u64>,
}

impl Attribution {
    /// For `slots` slots. The overflow slot is bound to its reserved tenant, the host slot as the rules say.
    pub fn new(
        slots: u32,
        patience: Patience,
        registry: &mut Registry,
        identify: &dyn Identify,
    ) -> Attribution {
        let mut attribution = Attribution {
            slots: (0..slots).map(|_| Slot::FREE).collect(),
            orphans: VecDeque::new(),
            patience,
            asked: None,
            refusals: BTreeMap::new(),
            given_up: ["no_path", "no_pod", "no_room"].map(|reason| (reason, 0)).into(),
        };
        let overflow = acquire(registry, &Workload::of_tenant(OVERFLOW));
        attribution.slots[SLOT_OVERFLOW as usize].binding = Binding::Bound(overflow);
        let host = acquire(registry, &identify.identify(b"/").workload);
        let slot = &mut attribution.slots[SLOT_HOST as usize];
        slot.path = Some(b"/".to_vec());
        slot.binding = Binding::Bound(host);
        slot.certainty = Certainty::Settled;
        attribution
    }

    /// Attributes a batch.
    pub fn apply(&mut self, batch: &Batch, registry: &mut Registry, identify: &dyn Identify) {
        for birth in &batch.births {
            let path = self.path_of(birth.parent_slot, &birth.name);
            let slot = &mut self.slots[birth.slot as usize];
            *slot = Slot {
                binding: Binding::Waiting(Box::new(Waiting::new(batch.taken_ns))),
                path,
                cgroup_id: birth.cgroup_id,
                ..Slot::FREE
            };
            if let Some(path) = &slot.path {
                let answer = identify.identify(path);
                slot.certainty = answer.certainty;
                if answer.certainty == Certainty::Settled {
                    bind(slot, registry, &answer, &mut self.refusals);
                }
            }
        }
        let overflow = self.overflow();
        for Delta { slot, subject, cells } in batch.rows.iter() {
            let slot = &mut self.slots[slot as usize];
            if subject == Subject::Slot {
                slot.tasks = slot.tasks.wrapping_add(cells[TASKS_CELL]);
            }
            match &mut slot.binding {
                Binding::Bound(target) => bill(registry, *target, subject, cells),
                Binding::Waiting(waiting) => waiting.add(subject, cells),
                Binding::Free => bill(registry, overflow, subject, cells),
            }
        }
        for freed in &batch.freed {
            let slot = std::mem::replace(&mut self.slots[*freed as usize], Slot::FREE);
            match slot.binding {
                Binding::Bound(target) => registry.release(target, batch.taken_ns),
                Binding::Waiting(_) => self.orphans.push_back(slot),
                Binding::Free => {}
            }
        }
    }

    /// Gives a cgroup that waits for its path the path. Does nothing for others.
    pub fn learn(&mut self, cgroup_id: u64, path: &[u8]) {
        let pathless = |slot: &&mut Slot| {
            slot.cgroup_id == cgroup_id && slot.path.is_none() && matches!(slot.binding, Binding::Waiting(_))
        };
        for slot in self.slots.iter_mut().chain(&mut self.orphans).filter(pathless) {
            slot.path = Some(path.to_vec());
            self.asked = None;
        }
    }

    /// Binds what waited and is known by now, and what has waited long enough: it is counted, visibly, under what is known
    /// of it. Slots bound before follow what was learnt since, for what is counted from now on.
    pub fn resolve(&mut self, now_ns: u64, registry: &mut Registry, identify: &dyn Identify) {
        let news = self.asked.replace(identify.generation()) != Some(identify.generation());
        for slot in &mut self.slots {
            match &slot.binding {
                Binding::Waiting(waiting) => {
                    let age_ns = now_ns.saturating_sub(waiting.since_ns);
                    if let Some((answer, reason)) = settle(slot, age_ns, &self.patience, news, identify) {
                        count_given_up(&mut self.given_up, reason);
                        bind(slot, registry, &answer, &mut self.refusals);
                    }
                }
                Binding::Bound(_) if news => rebind(slot, now_ns, registry, identify, &mut self.refusals),
                _ => {}
            }
        }
        let mut room = self.orphans.len();
        let mut kept = VecDeque::new();
        while let Some(mut slot) = self.orphans.pop_front() {
            let Binding::Waiting(waiting) = &slot.binding else { continue };
            let full = room > self.patience.orphans;
            let age_ns = if full { u64::MAX } else { now_ns.saturating_sub(waiting.since_ns) };
            let Some((answer, reason)) = settle(&mut slot, age_ns, &self.patience, news, identify) else {
                kept.push_back(slot);
                continue;
            };
            room -= 1;
            count_given_up(&mut self.given_up, reason.map(|reason| if full { "no_room" } else { reason }));
            bind(&mut slot, registry, &answer, &mut self.refusals);
            if let Binding::Bound(target) = slot.binding {
                registry.release(target, now_ns);
            }
        }
        self.orphans = kept;
    }

    /// cgroup ids of the slots that wait for their path, those given back included.
    pub fn pathless(&self) -> Vec<u64> {
        self.waiters().filter(|slot| slot.path.is_none()).map(|slot| slot.cgroup_id).collect()
    }

    /// Slots that wait for an identity, those given back included.
    pub fn unresolved(&self) -> usize {
        self.waiters().count()
    }

    /// Times a rule's result was refused as a tenant name, by reason.
    pub fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }

    /// Slots that waited in vain, by what was missing.
    pub fn given_up(&self) -> &BTreeMap<&'static str, u64> {
        &self.given_up
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
        let sum = Sum::of(self.waiters().filter_map(|slot| match &slot.binding {
            Binding::Waiting(waiting) => Some(&**waiting),
            _ => None,
        }));
        let kernel = |quantity: &Quantity, totals: &[u64; TOTALS]| {
            quantity.totals.iter().fold(0u64, |sum, total| sum.wrapping_add(totals[*total as usize]))
        };
        let balance = |quantity: &&'static Quantity| {
            let waiting = sum.part_of(quantity);
            Balance {
                event: quantity.name,
                kernel_before: kernel(quantity, &batch.totals_before),
                kernel_after: kernel(quantity, &batch.totals_after),
                attributed: billed(quantity, registry).wrapping_add(waiting),
                waiting,
            }
        };
        quantities().iter().map(balance).collect()
    }

    fn waiters(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().chain(&self.orphans).filter(|slot| matches!(slot.binding, Binding::Waiting(_)))
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

fn count_given_up(given_up: &mut BTreeMap<&'static str, u64>, reason: Option<&'static str>) {
    if let Some(reason) = reason {
        *given_up.entry(reason).or_default() += 1;
    }
}

/// Whose a waiting slot is, if that is known by now or it has waited `age_ns` for long enough: then also what was missing,
/// unless that is only a container's name.
fn settle(
    slot: &mut Slot,
    age_ns: u64,
    patience: &Patience,
    news: bool,
    identify: &dyn Identify,
) -> Option<(Identity, Option<&'static str>)> {
    let Some(path) = &slot.path else {
        let unknown = Identity {
            workload: Workload::of_tenant(UNKNOWN),
            certainty: Certainty::PodUnknown,
            refusals: Vec::new(),
        };
        return (age_ns >= patience.path_ns).then_some((unknown, Some("no_path")));
    };
    let longest_ns = |certainty| match certainty {
        Certainty::Settled => 0,
        Certainty::ContainerUnnamed => patience.container_ns,
        Certainty::PodUnknown => patience.pod_ns,
    };
    if !news && age_ns < longest_ns(slot.certainty) {
        return None;
    }
    let answer = identify.identify(path);
    slot.certainty = answer.certainty;
    let missing = (answer.certainty == Certainty::PodUnknown).then_some("no_pod");
    (age_ns >= longest_ns(answer.certainty)).then_some((answer, missing))
}

/// Binds a waiting slot and bills what waited.
fn bind(
    slot: &mut Slot,
    registry: &mut Registry,
    answer: &Identity,
    refusals: &mut BTreeMap<&'static str, u64>,
) {
    let target = acquire(registry, &answer.workload);
    if let Binding::Waiting(waiting) = &slot.binding {
        waiting.bill(registry, target);
    }
    slot.binding = Binding::Bound(target);
    slot.certainty = answer.certainty;
    for reason in &answer.refusals {
        *refusals.entry(reason).or_default() += 1;
    }
}

/// Lets a bound slot follow what is known now, unless less is known than when it was bound: a pod that is gone keeps its
/// name. Its tasks move along; its counts stay.
fn rebind(
    slot: &mut Slot,
    now_ns: u64,
    registry: &mut Registry,
    identify: &dyn Identify,
    refusals: &mut BTreeMap<&'static str, u64>,
) {
    let (Binding::Bound(old), Some(path)) = (&slot.binding, &slot.path) else { return };
    let (old, answer) = (*old, identify.identify(path));
    if answer.certainty < slot.certainty {
        return;
    }
    let new = acquire(registry, &answer.workload);
    registry.release(old, now_ns);
    slot.certainty = answer.certainty;
    if new == old {
        return;
    }
    registry.add(old, &probes::TASKS, &[], slot.tasks.wrapping_neg());
    registry.add(new, &probes::TASKS, &[], slot.tasks);
    slot.binding = Binding::Bound(new);
    for reason in &answer.refusals {
        *refusals.entry(reason).or_default() += 1;
    }
}
