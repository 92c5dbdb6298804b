//! Tables of batches, identities that come late, and where the counts end up.

use std::cell::{Cell, RefCell};

use kernmeter_abi::{ErrnoRow, SlotRow, SyscallRow};

use super::*;
use crate::catalog;
use crate::catalog::family::Detail;
use crate::drain::{Birth, Subject};
use crate::registry::Limits;

/// Tenant = first component, or `_host` for the root.
struct ByTop(&'static str);

impl Identify for ByTop {
    fn identify(&self, path: &[u8]) -> Identity {
        let path = String::from_utf8_lossy(path);
        let top = path.split('/').nth(1).filter(|top| !top.is_empty());
        let tenant = top.map_or("_host".to_owned(), |top| format!("{}{top}", self.0));
        Identity {
            workload: Workload::of_tenant(&tenant),
            certainty: Certainty::Settled,
            refusals: Vec::new(),
        }
    }

    fn generation(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Tenant = what was learnt of the last component, with how much of it is known.
#[derive(Default)]
struct Learnt {
    known: RefCell<Vec<(&'static str, &'static str, Certainty)>>,
    generation: Cell<u64>,
}

impl Learnt {
    fn tell(&self, name: &'static str, tenant: &'static str, certainty: Certainty) {
        self.known.borrow_mut().retain(|known| known.0 != name);
        self.known.borrow_mut().push((name, tenant, certainty));
        self.generation.set(self.generation.get() + 1);
    }
}

impl Identify for Learnt {
    fn identify(&self, path: &[u8]) -> Identity {
        let path = String::from_utf8_lossy(path);
        let known = self.known.borrow();
        let found = known.iter().find(|known| path.ends_with(known.0));
        let (tenant, certainty) =
            found.map_or((UNKNOWN, Certainty::PodUnknown), |(_, tenant, certainty)| (*tenant, *certainty));
        Identity { workload: Workload::of_tenant(tenant), certainty, refusals: vec!["not_allowed"] }
    }

    fn generation(&self) -> u64 {
        self.generation.get()
    }
}

const PATIENCE: Patience = Patience { path_ns: 10, pod_ns: 100, container_ns: 20, orphans: 3 };

fn setup() -> (Registry, Attribution) {
    let limits = Limits { series_per_tenant: 1000, tenants: 100, retention_ns: 0 };
    let mut registry = Registry::new(catalog::families(), |_| Detail::Tenant, limits);
    let attribution = Attribution::new(16, PATIENCE, &mut registry, &ByTop(""));
    (registry, attribution)
}

fn born(slot: u32, parent_slot: u32, name: &str) -> Birth {
    Birth { slot, cgroup_id: 100 + u64::from(slot), parent_slot, name: name.into() }
}

/// Sets the cell of a field of a row.
macro_rules! set {
    ($batch:expr, $slot:expr, $subject:expr, $row:ident.$field:ident = $value:expr) => {
        $batch.rows.push($slot, $subject)[$subject.kind().cell_of(offset_of!($row, $field))] = $value
    };
}

fn counts(slot: u32, calls: u64) -> Batch {
    let mut batch = Batch::default();
    set!(batch, slot, Subject::Syscall(39), SyscallRow.calls = calls);
    set!(batch, slot, Subject::Errno(39, 2), ErrnoRow.errors = 1);
    set!(batch, slot, Subject::Slot, SlotRow.cpu_ns = 10 * calls);
    batch
}

fn calls(registry: &Registry) -> Vec<(String, u64)> {
    registry.series(&probes::CALLS).map(|series| (series.tenant.to_owned(), series.number)).collect()
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
    assert_eq!(registry.sum(&probes::CPU), 200);
    assert_eq!(registry.sum(&probes::ERRORS), 4);
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
    assert_eq!(attribution.pathless().len(), 2);
    let batch = Batch::default();
    assert_eq!(attribution.balance(&batch, &registry)[0].attributed, 9);
    // The slot has a new owner before the old one's identity is learnt: nothing mixes.
    let reborn = Batch { births: vec![Birth { cgroup_id: 900, ..born(5, 0, "b") }], ..Batch::default() };
    attribution.apply(&reborn, &mut registry, &ByTop(""));
    attribution.apply(&counts(5, 100), &mut registry, &ByTop(""));
    attribution.learn(105, b"/late/x");
    attribution.resolve(1, &mut registry, &ByTop(""));
    assert_eq!(calls(&registry), [("b".into(), 100), ("late".into(), 7)]);
    attribution.resolve(10, &mut registry, &ByTop(""));
    assert_eq!(calls(&registry)[2], ("_unknown".into(), 2));
    assert_eq!(attribution.unresolved(), 0);
    assert_eq!(attribution.balance(&batch, &registry)[0].attributed, 109);
}

#[test]
fn new_rules_apply_to_new_counts_only() {
    let (mut registry, mut attribution) = setup();
    let births = Batch { births: vec![born(2, 0, "a")], ..Batch::default() };
    attribution.apply(&births, &mut registry, &ByTop(""));
    attribution.apply(&counts(2, 5), &mut registry, &ByTop(""));
    attribution.resolve(0, &mut registry, &ByTop("new-"));
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
        waiting: 0,
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

fn tasks(registry: &Registry) -> Vec<(String, u64)> {
    registry.series(&probes::TASKS).map(|series| (series.tenant.to_owned(), series.number)).collect()
}

#[test]
fn a_pod_learnt_late_is_billed_for_what_was_counted_before() {
    let (mut registry, mut attribution) = setup();
    let pods = Learnt::default();
    let births = Batch { births: vec![born(2, 0, "c1"), born(3, 0, "c2")], ..Batch::default() };
    attribution.apply(&births, &mut registry, &pods);
    for slot in [2, 3] {
        attribution.apply(&counts(slot, 5), &mut registry, &pods);
    }
    // The first ends before anything is known of it.
    attribution.apply(&Batch { freed: vec![2], ..Batch::default() }, &mut registry, &pods);
    attribution.resolve(99, &mut registry, &pods);
    assert_eq!((calls(&registry), attribution.unresolved()), (vec![], 2));
    let waiting = attribution.balance(&Batch::default(), &registry)[0];
    assert_eq!((waiting.attributed, waiting.waiting), (10, 10));
    assert!(attribution.refusals().is_empty(), "only what was billed is told");
    pods.tell("c1", "shop", Certainty::Settled);
    pods.tell("c2", "bank", Certainty::ContainerUnnamed);
    attribution.resolve(19, &mut registry, &pods);
    assert_eq!(calls(&registry), [("shop".into(), 5)], "a container's name is worth a short wait");
    attribution.resolve(20, &mut registry, &pods);
    assert_eq!(calls(&registry), [("shop".into(), 5), ("bank".into(), 5)]);
    assert_eq!(attribution.given_up().values().sum::<u64>(), 0);
    assert_eq!(attribution.refusals()["not_allowed"], 2);
}

#[test]
fn waiting_in_vain_ends_and_what_follows_is_billed_right() {
    let (mut registry, mut attribution) = setup();
    let pods = Learnt::default();
    let births = Batch { births: vec![born(2, 0, "c1")], ..Batch::default() };
    attribution.apply(&births, &mut registry, &pods);
    let mut first = counts(2, 5);
    set!(first, 2, Subject::Slot, SlotRow.tasks = 3);
    attribution.apply(&first, &mut registry, &pods);
    attribution.resolve(100, &mut registry, &pods);
    assert_eq!(calls(&registry), [(UNKNOWN.into(), 5)]);
    assert_eq!(attribution.given_up()["no_pod"], 1);
    pods.tell("c1", "shop", Certainty::Settled);
    attribution.resolve(101, &mut registry, &pods);
    attribution.apply(&counts(2, 7), &mut registry, &pods);
    assert_eq!(calls(&registry), [(UNKNOWN.into(), 5), ("shop".into(), 7)], "no counter ever falls");
    assert_eq!(
        tasks(&registry),
        [(UNKNOWN.into(), 0), ("shop".into(), 3)],
        "tasks live where their slot is billed"
    );
    // The pod is forgotten while its container still runs: it keeps its name.
    pods.known.borrow_mut().clear();
    pods.generation.set(99);
    attribution.resolve(102, &mut registry, &pods);
    attribution.apply(&counts(2, 1), &mut registry, &pods);
    assert_eq!(calls(&registry), [(UNKNOWN.into(), 5), ("shop".into(), 8)]);
}

#[test]
fn those_that_are_gone_wait_within_bounds() {
    let (mut registry, mut attribution) = setup();
    let pods = Learnt::default();
    for n in 0..8 {
        let births = Batch { births: vec![born(2, 0, "c")], taken_ns: n, ..Batch::default() };
        attribution.apply(&births, &mut registry, &pods);
        attribution.apply(&Batch { freed: vec![2], ..counts(2, 1) }, &mut registry, &pods);
    }
    attribution.resolve(9, &mut registry, &pods);
    assert_eq!((calls(&registry), attribution.unresolved()), (vec![(UNKNOWN.into(), 5)], 3));
    assert_eq!(attribution.given_up()["no_room"], 5);
    pods.tell("c", "shop", Certainty::Settled);
    attribution.resolve(10, &mut registry, &pods);
    assert_eq!(calls(&registry), [(UNKNOWN.into(), 5), ("shop".into(), 3)]);
    registry.expire(11);
    assert_eq!(attribution.balance(&Batch::default(), &registry)[0].attributed, 8);
}

#[test]
fn what_waits_is_counted_in_64_bits() {
    let (mut registry, mut attribution) = setup();
    let pods = Learnt::default();
    let births = Batch { births: vec![born(2, 0, "c")], ..Batch::default() };
    attribution.apply(&births, &mut registry, &pods);
    // Fault 34: more events in one bucket than 32 bits hold, as a slot may count while it waits for its pod.
    let many = u64::from(u32::MAX);
    for _ in 0..3 {
        let mut batch = Batch::default();
        let first = RowKind::Slot.cell_of(offset_of!(SlotRow, wait_buckets));
        let cells = batch.rows.push(2, Subject::Slot);
        (cells[first], cells[RowKind::Slot.cell_of(offset_of!(SlotRow, wait_ns))]) = (many, many);
        attribution.apply(&batch, &mut registry, &pods);
    }
    pods.tell("c", "shop", Certainty::Settled);
    attribution.resolve(1, &mut registry, &pods);
    assert_eq!(registry.count(&probes::WAIT), 3 * many);
}
