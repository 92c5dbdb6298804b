//! The store of totals: who (target) x what (family, labels) -> value. Counters only grow; what goes is folded, not lost.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kernmeter_abi::histogram::{BUCKETS, LAST, MIN_EXP, PER_OCTAVE};

use super::snapshot::{FamilyLayout, Layout, SeriesLayout, Snapshot};
use crate::catalog::family::{Detail, Family, HISTOGRAM_VALUES, Kind, LE, WORKLOAD_LABELS};
use crate::escape::append_labels;

/// Label value of what a limit folded together; also the reserved tenant for tenants beyond the limit.
pub const OVERFLOW: &str = "_overflow";
/// Families finer than a namespace keep the totals of workloads that are gone in a sister family whose name continues this.
pub const RETIRED_PREFIX: &str = "kernmeter_retired_";

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Exposed lines per tenant; a histogram takes one for each `le` and two more.
    pub series_per_tenant: usize,
    /// Tenants, reserved ones not counted.
    pub tenants: usize,
    /// How long the series of a workload stay after its last slot went, nanoseconds.
    pub retention_ns: u64,
}

/// Who is billed: a workload with its label values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(u32);

type SeriesId = u32;
type GroupId = u32;

/// A workload's place at each level of detail.
struct Target {
    labels: [Arc<str>; 4],
    groups: [GroupId; 4],
    /// Slots billed to it.
    slots: u32,
    idle_since_ns: u64,
}

/// All that shares one set of workload labels.
struct Group {
    /// Rendered workload labels.
    prefix: Vec<u8>,
    tenant: GroupId,
    /// The group of its tenant and namespace.
    namespace: GroupId,
    series: Vec<(usize, SeriesId)>,
    /// Targets in it.
    targets: u32,
    /// Exposed lines of the tenant (tenant groups only).
    lines: usize,
    /// Label value of the tenant (tenant groups only).
    name: Arc<str>,
}

type OwnLabels = Arc<[Box<str>]>;

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

enum Value {
    Number(u64),
    Histogram { buckets: Box<[u64; BUCKETS]>, sum_ns: u64 },
}

struct Series {
    labels: Box<[u8]>,
    /// Values of the family's own labels, shared by all series that have the same.
    own: OwnLabels,
    value: Value,
    /// The group of the tenant it belongs to, which lives as long as the registry.
    tenant: GroupId,
}

struct FamilyState {
    family: &'static Family,
    detail: Detail,
    /// Index of the sister family that keeps what is gone.
    retired: Option<usize>,
    index: HashMap<Box<[u8]>, SeriesId>,
    /// In first-seen order.
    order: Vec<SeriesId>,
}

/// Every series of every tenant.
pub struct Registry {
    limits: Limits,
    families: Vec<FamilyState>,
    by_name: HashMap<&'static str, usize>,
    series: Vec<Option<Series>>,
    free_series: Vec<SeriesId>,
    own_labels: HashSet<OwnLabels>,
    groups: Vec<Option<Group>>,
    free_groups: Vec<GroupId>,
    group_index: HashMap<Vec<u8>, GroupId>,
    targets: Vec<Option<Target>>,
    free_targets: Vec<u32>,
    target_index: HashMap<[Arc<str>; 4], TargetId>,
    tenants: usize,
    limited: u64,
    layout: Arc<Layout>,
    dirty: bool,
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
        let state = |family, detail, retired| FamilyState {
            family,
            detail,
            retired,
            index: HashMap::new(),
            order: Vec::new(),
        };
        for family in families {
            let level = detail(family);
            let retired = (level > Detail::Namespace && family.kind != Kind::Gauge).then(|| states.len() + 1);
            states.push(state(family, level, retired));
            if retired.is_some() {
                states.push(state(retired_family(family), Detail::Namespace, None));
            }
        }
        let by_name = states.iter().enumerate().map(|(i, state)| (state.family.name, i)).collect();
        Registry {
            limits,
            families: states,
            by_name,
            series: Vec::new(),
            free_series: Vec::new(),
            own_labels: HashSet::new(),
            groups: Vec::new(),
            free_groups: Vec::new(),
            group_index: HashMap::new(),
            targets: Vec::new(),
            free_targets: Vec::new(),
            target_index: HashMap::new(),
            tenants: 0,
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
        let known = self.target_index.get(&labels).copied();
        let id = known.unwrap_or_else(|| {
            let tenant = render(&labels, Detail::Tenant);
            let reserved = labels[0].starts_with('_');
            if !self.group_index.contains_key(&tenant) && !reserved && self.tenants >= self.limits.tenants {
                self.limited += 1;
                labels = [OVERFLOW.into(), "".into(), "".into(), "".into()];
                if let Some(id) = self.target_index.get(&labels) {
                    return *id;
                }
            }
            self.new_target(labels)
        });
        self.target_mut(id).slots += 1;
        id
    }

    /// One slot less is billed to the target. Its series stay for the retention time.
    pub fn release(&mut self, id: TargetId, now_ns: u64) {
        let target = self.target_mut(id);
        target.slots = target.slots.saturating_sub(1);
        target.idle_since_ns = now_ns;
    }

    /// Adds to a number: a counter's growth, or a gauge's change as a wrapping difference.
    pub fn add(&mut self, target: TargetId, family: &'static Family, own: &[&str], value: u64) {
        if value == 0 {
            return;
        }
        let id = self.series_of(target, family, own);
        if let Some(Series { value: Value::Number(total), .. }) = &mut self.series[id as usize] {
            *total = total.wrapping_add(value);
        }
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
        let id = self.series_of(target, family, own);
        if let Some(Series { value: Value::Histogram { buckets, sum_ns }, .. }) =
            &mut self.series[id as usize]
        {
            for (bucket, count) in buckets.iter_mut().zip(add) {
                *bucket += count;
            }
            *sum_ns += add_ns;
        }
    }

    /// Drops targets without slots for longer than the retention time, and the series nobody is left for. Totals of counters
    /// finer than a namespace move to their retired family: no sum falls. Those of tenants and namespaces stay.
    pub fn expire(&mut self, now_ns: u64) {
        for index in 0..self.targets.len() {
            let Some(target) = &self.targets[index] else { continue };
            let idle = now_ns.saturating_sub(target.idle_since_ns);
            if target.slots > 0 || idle < self.limits.retention_ns {
                continue;
            }
            let Some(target) = self.targets[index].take() else { continue };
            self.free_targets.push(index as u32);
            self.target_index.remove(&target.labels);
            let mut groups = target.groups.to_vec();
            groups.dedup();
            for group in groups {
                self.leave_group(group);
            }
        }
    }

    /// The sum of a family over all series, what is retired included; for histograms the sum of durations in nanoseconds.
    pub fn sum(&self, family: &'static Family) -> u64 {
        self.fold(family, |value| match value {
            Value::Number(n) => *n,
            Value::Histogram { sum_ns, .. } => *sum_ns,
        })
    }

    /// The number of events in a histogram family over all series, what is retired included.
    pub fn count(&self, family: &'static Family) -> u64 {
        self.fold(family, |value| match value {
            Value::Number(_) => 0,
            Value::Histogram { buckets, .. } => buckets.iter().sum(),
        })
    }

    fn fold(&self, family: &'static Family, of: impl Fn(&Value) -> u64) -> u64 {
        let Some(&index) = self.by_name.get(family.name) else { return 0 };
        let state = &self.families[index];
        let retired = state.retired.map(|index| &self.families[index].order);
        let ids = state.order.iter().chain(retired.into_iter().flatten());
        ids.filter_map(|id| self.series[*id as usize].as_ref())
            .fold(0u64, |sum, series| sum.wrapping_add(of(&series.value)))
    }

    /// Exposed lines by tenant.
    pub fn lines(&self) -> impl Iterator<Item = (&str, usize)> {
        self.groups.iter().flatten().filter(|group| group.lines > 0).map(|group| (&*group.name, group.lines))
    }

    /// Series and tenants refused by a limit so far.
    pub fn limited(&self) -> u64 {
        self.limited
    }

    /// Every series of a family, for tables rather than expositions.
    pub fn series(&self, family: &'static Family) -> impl Iterator<Item = SeriesView<'_>> {
        let order = self.by_name.get(family.name).map(|index| &self.families[*index].order);
        let series = order.into_iter().flatten().filter_map(|id| self.series[*id as usize].as_ref());
        series.map(|series| {
            let (number, buckets) = match &series.value {
                Value::Number(n) => (*n, None),
                Value::Histogram { buckets, sum_ns } => (*sum_ns, Some(&**buckets)),
            };
            let tenant = self.groups[series.tenant as usize].as_ref().map_or("", |group| &*group.name);
            SeriesView { labels: &series.labels, tenant, own: &series.own, number, buckets }
        })
    }

    /// An immutable copy of everything.
    pub fn publish(&mut self, taken_ns: u64) -> Snapshot {
        if std::mem::take(&mut self.dirty) {
            self.layout = Arc::new(self.build_layout());
        }
        let mut values = Vec::with_capacity(
            self.layout.families.last().and_then(|f| f.series.last()).map_or(0, |s| s.first as usize)
                + HISTOGRAM_VALUES,
        );
        for state in self.families.iter().filter(|state| !state.order.is_empty()) {
            for id in &state.order {
                match self.series[*id as usize].as_ref().map(|series| &series.value) {
                    // A gauge may be read between the two halves of a move: a task is never nowhere for longer.
                    Some(Value::Number(n)) if state.family.kind == Kind::Gauge => {
                        values.push((*n as i64).max(0) as u64);
                    }
                    Some(Value::Number(n)) => values.push(*n),
                    Some(Value::Histogram { buckets, sum_ns }) => fold_classic(buckets, *sum_ns, &mut values),
                    None => unreachable!("the order holds live series only"),
                }
            }
        }
        self.sequence += 1;
        Snapshot { layout: Arc::clone(&self.layout), values, taken_ns, sequence: self.sequence }
    }

    fn build_layout(&self) -> Layout {
        let mut first = 0u32;
        let mut named: Vec<(GroupId, &Arc<str>)> = (0..)
            .zip(&self.groups)
            .filter_map(|(id, group)| {
                group.as_ref().filter(|group| group.tenant == id).map(|group| (id, &group.name))
            })
            .collect();
        named.sort_unstable_by_key(|(_, name)| *name);
        // By group, so that each series finds its tenant in one step.
        let mut places = vec![u32::MAX; self.groups.len()];
        for (place, (id, _)) in (0..).zip(&named) {
            places[*id as usize] = place;
        }
        let families = self.families.iter().filter(|state| !state.order.is_empty()).map(|state| {
            let series =
                state.order.iter().filter_map(|id| self.series[*id as usize].as_ref()).map(|series| {
                    let at = first;
                    first += if state.family.kind == Kind::Histogram { HISTOGRAM_VALUES as u32 } else { 1 };
                    SeriesLayout {
                        labels: series.labels.clone(),
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

    fn target_mut(&mut self, id: TargetId) -> &mut Target {
        self.targets[id.0 as usize].as_mut().expect("a target lives while slots are billed to it")
    }

    fn new_target(&mut self, labels: [Arc<str>; 4]) -> TargetId {
        const LEVELS: [Detail; 4] = [Detail::Tenant, Detail::Namespace, Detail::Pod, Detail::Container];
        let mut groups = [0; 4];
        for (i, level) in LEVELS.into_iter().enumerate() {
            let prefix = render(&labels, level);
            let above = [(i > 0).then_some(groups[0]), (i > 1).then_some(groups[1])];
            groups[i] = self.group(prefix, above, &labels[0]);
        }
        let mut entered = groups.to_vec();
        entered.dedup();
        for group in entered {
            self.group_mut(group).targets += 1;
        }
        let target = Target { labels: labels.clone(), groups, slots: 0, idle_since_ns: 0 };
        let id = TargetId(place(&mut self.targets, &mut self.free_targets, target));
        self.target_index.insert(labels, id);
        id
    }

    /// The group with these labels, in its tenant's and its namespace's, where it is neither itself.
    fn group(&mut self, prefix: Vec<u8>, above: [Option<GroupId>; 2], name: &Arc<str>) -> GroupId {
        if let Some(id) = self.group_index.get(&prefix) {
            return *id;
        }
        let [tenant, namespace] = above;
        let group = Group {
            prefix: prefix.clone(),
            tenant: tenant.unwrap_or_default(),
            namespace: namespace.unwrap_or_default(),
            series: Vec::new(),
            targets: 0,
            lines: 0,
            name: Arc::clone(name),
        };
        let id = place(&mut self.groups, &mut self.free_groups, group);
        if tenant.is_none() {
            self.group_mut(id).tenant = id;
            if !name.starts_with('_') {
                self.tenants += 1;
            }
        }
        if namespace.is_none() {
            self.group_mut(id).namespace = id;
        }
        self.group_index.insert(prefix, id);
        id
    }

    fn group_mut(&mut self, id: GroupId) -> &mut Group {
        self.groups[id as usize].as_mut().expect("a group lives while targets are in it")
    }

    fn series_of(&mut self, target: TargetId, family: &'static Family, own: &[&str]) -> SeriesId {
        debug_assert_eq!(family.labels.len(), own.len());
        let index = self.by_name[family.name];
        let level = self.families[index].detail as usize;
        let group = self.target_mut(target).groups[level];
        self.series_in(index, group, own)
    }

    /// The series of a family in a group, made if the tenant's limit allows; otherwise the tenant's overflow series.
    fn series_in(&mut self, index: usize, group: GroupId, own: &[&str]) -> SeriesId {
        let family = self.families[index].family;
        let mut labels = std::mem::take(&mut self.buffer);
        labels.clear();
        labels.extend_from_slice(&self.group_mut(group).prefix);
        append_labels(&mut labels, family.labels, own.iter().copied());
        let mut found = self.families[index].index.get(labels.as_slice()).copied();
        if found.is_none() {
            let tenant = self.group_mut(group).tenant;
            let lines = if family.kind == Kind::Histogram { LE.len() + 3 } else { 1 };
            let mut home = group;
            let mut values: Vec<Box<str>> = own.iter().map(|value| Box::from(*value)).collect();
            if self.group_mut(tenant).lines + lines > self.limits.series_per_tenant {
                self.limited += 1;
                labels.clear();
                let detail = self.families[index].detail as usize;
                let name = Arc::clone(&self.group_mut(tenant).name);
                append_labels(&mut labels, &WORKLOAD_LABELS[..1], [&*name]);
                append_labels(&mut labels, &WORKLOAD_LABELS[1..=detail.max(1)], std::iter::repeat(OVERFLOW));
                append_labels(&mut labels, family.labels, std::iter::repeat(OVERFLOW));
                values.fill(OVERFLOW.into());
                // Kept by the tenant itself: it never goes.
                home = tenant;
                found = self.families[index].index.get(labels.as_slice()).copied();
            }
            found =
                found.or_else(|| Some(self.new_series(index, home, labels.as_slice().into(), values, lines)));
        }
        self.buffer = labels;
        found.unwrap_or_default()
    }

    fn new_series(
        &mut self,
        index: usize,
        group: GroupId,
        labels: Box<[u8]>,
        own: Vec<Box<str>>,
        lines: usize,
    ) -> SeriesId {
        let own = self.own_labels.get(own.as_slice()).cloned().unwrap_or_else(|| {
            let own: OwnLabels = own.into();
            self.own_labels.insert(Arc::clone(&own));
            own
        });
        let value = match self.families[index].family.kind {
            Kind::Histogram => Value::Histogram { buckets: Box::new([0; BUCKETS]), sum_ns: 0 },
            Kind::Counter | Kind::Gauge => Value::Number(0),
        };
        let tenant = self.group_mut(group).tenant;
        let series = Series { labels: labels.clone(), own, value, tenant };
        let id = place(&mut self.series, &mut self.free_series, series);
        self.families[index].index.insert(labels, id);
        self.families[index].order.push(id);
        self.group_mut(group).series.push((index, id));
        self.group_mut(tenant).lines += lines;
        self.dirty = true;
        id
    }

    /// One target less in a group; the last takes the series with it. Tenants and namespaces stay: their totals never fall.
    fn leave_group(&mut self, id: GroupId) {
        let group = self.group_mut(id);
        group.targets = group.targets.saturating_sub(1);
        if group.targets > 0 || group.tenant == id || group.namespace == id {
            return;
        }
        let Some(group) = self.groups[id as usize].take() else { return };
        self.free_groups.push(id);
        self.group_index.remove(&group.prefix);
        for (index, series_id) in group.series {
            let Some(series) = self.series[series_id as usize].take() else { continue };
            self.free_series.push(series_id);
            let state = &mut self.families[index];
            state.index.remove(&series.labels);
            state.order.retain(|other| *other != series_id);
            let lines = if state.family.kind == Kind::Histogram { LE.len() + 3 } else { 1 };
            let retired = state.retired;
            let tenant = self.group_mut(group.tenant);
            tenant.lines = tenant.lines.saturating_sub(lines);
            self.dirty = true;
            if let Some(retired) = retired {
                self.fold_into(retired, group.namespace, series.value);
            }
        }
    }

    /// Adds what a series counted to its namespace's series of its retired family.
    fn fold_into(&mut self, index: usize, namespace: GroupId, value: Value) {
        let id = self.series_in(index, namespace, &[]);
        let Some(kept) = self.series[id as usize].as_mut() else { return };
        match (&mut kept.value, value) {
            (Value::Number(total), Value::Number(n)) => *total += n,
            (Value::Histogram { buckets, sum_ns }, Value::Histogram { buckets: add, sum_ns: add_ns }) => {
                for (bucket, count) in buckets.iter_mut().zip(add.iter()) {
                    *bucket += count;
                }
                *sum_ns += add_ns;
            }
            _ => unreachable!("a family and its retired sister are of one kind"),
        }
    }
}

/// The family that keeps the totals of workloads that are gone. Made once a family at start, so leaking it is bounded.
fn retired_family(family: &'static Family) -> &'static Family {
    let rest = family.name.strip_prefix("kernmeter_").unwrap_or(family.name);
    Box::leak(Box::new(Family {
        name: format!("{RETIRED_PREFIX}{rest}").leak(),
        help: format!(
            "What {}{} counted for workloads that are gone and no longer have series of their own.",
            family.name,
            if family.kind == Kind::Counter { "_total" } else { "" }
        )
        .leak(),
        labels: &[],
        ..*family
    }))
}

/// Workload labels at a level. The tenant level carries an empty namespace, so that every sample has both labels.
fn render(labels: &[Arc<str>; 4], level: Detail) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    let values = labels.iter().enumerate().map(|(i, label)| if i > level as usize { "" } else { label });
    append_labels(&mut out, &WORKLOAD_LABELS[..=(level as usize).max(1)], values);
    out
}

fn place<T>(slab: &mut Vec<Option<T>>, free: &mut Vec<u32>, value: T) -> u32 {
    if let Some(id) = free.pop() {
        slab[id as usize] = Some(value);
        id
    } else {
        slab.push(Some(value));
        slab.len() as u32 - 1
    }
}

/// Sums kernel buckets into the classic ones, exactly: every classic bound is a kernel bound.
fn fold_classic(buckets: &[u64; BUCKETS], sum_ns: u64, out: &mut Vec<u64>) {
    let mut from = 0;
    for exponent in LE {
        let to = ((exponent - MIN_EXP) * PER_OCTAVE) as usize;
        out.push(buckets[from..=to].iter().sum());
        from = to + 1;
    }
    out.push(buckets[from..=LAST].iter().sum());
    out.push(sum_ns);
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
