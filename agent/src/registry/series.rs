//! The store of totals: who (target) x what (family, labels) -> value. Counters only grow; what goes is folded, not lost.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use kernmeter_abi::histogram::BUCKETS;

use super::groups::{GroupId, Groups, Labels, Place, is_reserved};
use super::retirement::{RETIRED, retired_family};
use super::slab::Slab;
use super::snapshot::{FamilyLayout, Layout, SeriesLayout, Snapshot};
use super::store::{FamilyState, OwnLabels, Series, Value};
use crate::catalog::family::{Detail, Family, Kind, WORKLOAD_LABELS};
use crate::escape::append_labels;

/// Label value of what a limit folded together; also the reserved tenant for tenants beyond the limit.
pub const OVERFLOW: &str = "_overflow";

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Exposed lines per tenant; a histogram takes one for each `le` and two more.
    pub series_per_tenant: usize,
    /// Tenants, reserved ones not counted.
    pub tenants: usize,
    /// How long workloads, namespaces and tenants stay after their last slot went, nanoseconds.
    pub retention_ns: u64,
}

/// Who is billed: a workload with its label values. Valid while slots are billed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub(super) u32);

/// A workload's place at each level of detail.
pub(super) struct Target {
    pub labels: Labels,
    pub groups: [GroupId; 4],
    /// Slots billed to it.
    pub slots: u32,
    /// When the last of them went.
    pub idle_since_ns: u64,
}

/// A series as it is, for tables.
#[derive(Clone, Copy, Debug)]
pub struct SeriesView<'a> {
    /// Its rendered labels: what tells it from other series of its family.
    pub labels: &'a [u8],
    /// The tenant it belongs to.
    pub tenant: &'a str,
    /// Values of [`Family::labels`], in that order.
    pub own: &'a [Box<str>],
    /// The value; of a histogram, the sum in nanoseconds.
    pub number: u64,
    /// Events by kernel bucket, of a histogram.
    pub buckets: Option<&'a [u64; BUCKETS]>,
}

/// Every series of every tenant.
pub struct Registry {
    pub(super) limits: Limits,
    pub(super) families: Vec<FamilyState>,
    by_name: HashMap<&'static str, usize>,
    pub(super) own_labels: HashSet<OwnLabels>,
    pub(super) groups: Groups,
    /// Of the reserved tenant `_retired`.
    pub(super) retired: GroupId,
    pub(super) targets: Slab<Target>,
    pub(super) target_index: HashMap<Labels, TargetId>,
    /// Targets without slots, by the time since when.
    pub(super) idle: BTreeSet<(u64, TargetId)>,
    limited: u64,
    layout: Arc<Layout>,
    pub(super) dirty: bool,
    sequence: u64,
    buffer: Vec<u8>,
}

impl Registry {
    /// A registry for these families, each at the detail `detail` gives it.
    pub fn new(
        families: impl IntoIterator<Item = &'static Family>,
        detail: impl Fn(&Family) -> Detail,
        limits: Limits,
    ) -> Registry {
        let mut states: Vec<FamilyState> = Vec::new();
        for family in families {
            // Nothing is left of a gauge of what is gone.
            let retired = (family.kind != Kind::Gauge).then(|| states.len() + 1);
            states.push(FamilyState::new(family, detail(family), retired));
            if retired.is_some() {
                states.push(FamilyState::new(retired_family(family), Detail::Namespace, retired));
            }
        }
        let by_name = states.iter().enumerate().map(|(i, state)| (state.family.name, i)).collect();
        let mut groups = Groups::new();
        let retired = groups.tenant(&of_tenant(RETIRED));
        Registry {
            limits,
            families: states,
            by_name,
            own_labels: HashSet::new(),
            groups,
            retired,
            targets: Slab::new(),
            target_index: HashMap::new(),
            idle: BTreeSet::new(),
            limited: 0,
            layout: Arc::default(),
            dirty: false,
            sequence: 0,
            buffer: Vec::new(),
        }
    }

    /// The target with these label values (tenant, namespace, pod, container), for one more slot. Tenants beyond the limit
    /// become the reserved tenant `_overflow`.
    pub fn acquire(&mut self, labels: [&Arc<str>; 4]) -> TargetId {
        let mut labels = labels.map(Arc::clone);
        let mut known = self.target_index.get(&labels).copied();
        if known.is_none()
            && self.groups.tenants() >= self.limits.tenants
            && !is_reserved(&labels[0])
            && !self.groups.has_tenant(&labels)
        {
            self.limited += 1;
            labels = of_tenant(OVERFLOW);
            known = self.target_index.get(&labels).copied();
        }
        let id = known.unwrap_or_else(|| self.new_target(labels));
        let target = self.target_mut(id);
        target.slots += 1;
        if target.slots == 1 {
            let since_ns = target.idle_since_ns;
            self.idle.remove(&(since_ns, id));
        }
        id
    }

    /// Adds to a number: a counter's growth, or a gauge's change as a wrapping difference.
    pub fn add(&mut self, target: TargetId, family: &'static Family, own: &[&str], value: u64) {
        if value == 0 {
            return;
        }
        self.series_of(target, family, own).value.add(value);
    }

    /// Adds to a histogram: counts by kernel bucket and the sum of the durations.
    pub fn observe(
        &mut self,
        target: TargetId,
        family: &'static Family,
        own: &[&str],
        add: &[u64; BUCKETS],
        add_ns: u64,
    ) {
        if add_ns == 0 && add.iter().all(|count| *count == 0) {
            return;
        }
        self.series_of(target, family, own).value.observe(add, add_ns);
    }

    /// The sum of a family over all series, what is retired included; for histograms the sum of durations in nanoseconds.
    pub fn sum(&self, family: &'static Family) -> u64 {
        self.fold(family, Value::number)
    }

    /// The number of events in a histogram family over all series, what is retired included.
    pub fn count(&self, family: &'static Family) -> u64 {
        self.fold(family, |value| value.buckets().map_or(0, |buckets| buckets.iter().sum()))
    }

    fn fold(&self, family: &'static Family, of: impl Fn(&Value) -> u64) -> u64 {
        let Some(&index) = self.by_name.get(family.name) else { return 0 };
        let state = &self.families[index];
        let retired = state.retired.filter(|retired| *retired != index);
        let series =
            state.series.iter().chain(retired.iter().flat_map(|index| &self.families[*index].series));
        series.fold(0u64, |sum, series| sum.wrapping_add(of(&series.value)))
    }

    /// Exposed lines by tenant.
    pub fn lines(&self) -> impl Iterator<Item = (&str, usize)> {
        let groups = self.groups.iter().map(|(_, group)| group);
        groups.filter(|group| group.lines > 0).map(|group| (&*group.name, group.lines))
    }

    /// Series and tenants refused by a limit so far.
    pub fn limited(&self) -> u64 {
        self.limited
    }

    /// Every series of a family, for tables rather than expositions.
    pub fn series(&self, family: &'static Family) -> impl Iterator<Item = SeriesView<'_>> {
        let series = self.by_name.get(family.name).map(|index| &self.families[*index].series);
        series.into_iter().flatten().map(|series| SeriesView {
            labels: &series.labels,
            tenant: &self.groups.get(series.tenant).name,
            own: &series.own,
            number: series.value.number(),
            buckets: series.value.buckets(),
        })
    }

    /// An immutable copy of everything.
    pub fn publish(&mut self, taken_ns: u64) -> Snapshot {
        if std::mem::take(&mut self.dirty) {
            self.layout = Arc::new(self.build_layout());
        }
        let mut values =
            Vec::with_capacity(self.families.iter().map(|state| state.series.len() * state.values()).sum());
        for state in &self.families {
            for series in &state.series {
                series.value.publish(state.family.kind, &mut values);
            }
        }
        self.sequence += 1;
        Snapshot { layout: Arc::clone(&self.layout), values, taken_ns, sequence: self.sequence }
    }

    fn build_layout(&self) -> Layout {
        let mut first = 0u32;
        let mut named: Vec<(GroupId, &Arc<str>)> = self
            .groups
            .iter()
            .filter(|(id, group)| group.tenant == *id && group.lines > 0)
            .map(|(id, group)| (id, &group.name))
            .collect();
        named.sort_unstable_by_key(|(_, name)| *name);
        // By group, so that each series finds its tenant in one step.
        let mut places = vec![u32::MAX; self.groups.end()];
        for (place, (id, _)) in (0..).zip(&named) {
            places[*id as usize] = place;
        }
        let families = self.families.iter().filter(|state| !state.series.is_empty()).map(|state| {
            let series = state.series.iter().map(|series| {
                let at = first;
                first += state.values() as u32;
                SeriesLayout {
                    labels: Arc::clone(&series.labels),
                    first: at,
                    tenant: places[series.tenant as usize],
                }
            });
            FamilyLayout { family: state.family, series: series.collect() }
        });
        Layout {
            families: families.collect(),
            tenants: named.iter().map(|(_, name)| Arc::clone(name)).collect(),
        }
    }

    pub(super) fn target_mut(&mut self, id: TargetId) -> &mut Target {
        self.targets.get_mut(id.0).expect("a target lives while slots are billed to it")
    }

    fn new_target(&mut self, labels: Labels) -> TargetId {
        let groups = self.groups.enter(&labels);
        let target = Target { labels: labels.clone(), groups, slots: 0, idle_since_ns: 0 };
        let id = TargetId(self.targets.insert(target));
        self.target_index.insert(labels, id);
        id
    }

    fn series_of(&mut self, target: TargetId, family: &'static Family, own: &[&str]) -> &mut Series {
        debug_assert_eq!(family.labels.len(), own.len());
        let index = self.by_name[family.name];
        let level = self.families[index].detail as usize;
        let group = self.target_mut(target).groups[level];
        self.series_in(index, group, own, self.limits.series_per_tenant)
    }

    /// The series of a family in a group, made if the tenant has fewer lines than `limit`; otherwise the tenant's overflow
    /// series.
    pub(super) fn series_in(
        &mut self,
        index: usize,
        group: GroupId,
        own: &[&str],
        limit: usize,
    ) -> &mut Series {
        let family = self.families[index].family;
        let mut labels = std::mem::take(&mut self.buffer);
        labels.clear();
        labels.extend_from_slice(&self.groups.get(group).prefix);
        append_labels(&mut labels, family.labels, own.iter().copied());
        let mut found = self.families[index].find(&labels);
        if found.is_none() {
            let tenant = self.groups.get(group).tenant;
            let mut home = group;
            let mut values: Vec<Box<str>> = own.iter().map(|value| Box::from(*value)).collect();
            if self.groups.get(tenant).lines + self.families[index].lines() > limit {
                self.limited += 1;
                labels.clear();
                let detail = self.families[index].detail as usize;
                append_labels(&mut labels, &WORKLOAD_LABELS[..1], [&*self.groups.get(tenant).name]);
                append_labels(&mut labels, &WORKLOAD_LABELS[1..=detail.max(1)], std::iter::repeat(OVERFLOW));
                append_labels(&mut labels, family.labels, std::iter::repeat(OVERFLOW));
                values.fill(OVERFLOW.into());
                // Kept by the tenant itself, and ends with it.
                home = tenant;
                found = self.families[index].find(&labels);
            }
            found = found.or_else(|| Some(self.new_series(index, home, labels.as_slice().into(), values)));
        }
        self.buffer = labels;
        &mut self.families[index].series[found.unwrap_or_default() as usize]
    }

    fn new_series(&mut self, index: usize, group: GroupId, labels: Arc<[u8]>, own: Vec<Box<str>>) -> u32 {
        let own = self.own_labels.get(own.as_slice()).cloned().unwrap_or_else(|| {
            let own: OwnLabels = own.into();
            self.own_labels.insert(Arc::clone(&own));
            own
        });
        let state = &mut self.families[index];
        let tenant = self.groups.get(group).tenant;
        self.groups.get_mut(tenant).lines += state.lines();
        let list = &mut self.groups.get_mut(group).series;
        let value = Value::zero(state.family.kind);
        let at = state.insert(Series { labels, own, value, group, listed: list.len() as u32, tenant });
        list.push(Place { family: index, at });
        self.dirty = true;
        at
    }
}

/// Label values of which only the tenant is known.
fn of_tenant(name: &str) -> Labels {
    [name.into(), "".into(), "".into(), "".into()]
}
