//! In: workloads that lost their last slot, the time; out: their series ended, their totals kept. The price is by what ends.
//!
//! The series of a workload, a namespace or a tenant without workloads end; their totals are added to the sister family, in
//! what is left: the namespace, else the tenant, else the reserved tenant [`RETIRED`]. So no sum over a family and its sister
//! falls, and memory and the room within limits return.

use std::sync::Arc;

use super::groups::{GroupId, Place};
use super::series::{Registry, TargetId};
use super::slab::excess;
use super::store::FamilyState;
use crate::catalog::family::{Family, Kind};

/// Counters and histograms keep the totals of what is gone in a sister family whose name continues this.
pub const RETIRED_PREFIX: &str = "kernmeter_retired_";
/// The reserved tenant that has the totals of tenants that are gone, in sister families only.
pub const RETIRED: &str = "_retired";

impl Registry {
    /// One slot less is billed to the target. Its series stay for the retention time.
    pub fn release(&mut self, id: TargetId, now_ns: u64) {
        let target = self.target_mut(id);
        debug_assert!(target.slots > 0, "a slot is released twice");
        target.slots = target.slots.saturating_sub(1);
        if target.slots == 0 {
            let before_ns = std::mem::replace(&mut target.idle_since_ns, now_ns);
            self.idle.remove(&(before_ns, id));
            self.idle.insert((now_ns, id));
        }
    }

    /// Ends the targets without slots for the retention time, and what nobody is left in. Gives the number of series that
    /// ended.
    pub fn expire(&mut self, now_ns: u64) -> usize {
        let (mut targets, mut series) = (0, 0);
        while let Some((since_ns, id)) = self.idle.first().copied()
            && now_ns.saturating_sub(since_ns) >= self.limits.retention_ns
        {
            self.idle.pop_first();
            targets += 1;
            series += self.end_target(id);
        }
        if targets > 0 {
            self.trim();
        }
        series
    }

    fn end_target(&mut self, id: TargetId) -> usize {
        let Some(target) = self.targets.remove(id.0) else { return 0 };
        self.target_index.remove(&target.labels);
        let (ended, heir) = self.groups.leave(target.groups);
        let heir = heir.unwrap_or(self.retired);
        let series = ended.iter().map(|group| self.end_series(*group, heir)).sum();
        self.dirty |= series > 0 || ended.contains(&target.groups[0]);
        // Not before all series have ended: until then, the tenant counts its lines.
        for group in ended {
            self.groups.remove(group);
        }
        series
    }

    /// Ends all series of a group. Their totals go to the heir.
    fn end_series(&mut self, group: GroupId, heir: GroupId) -> usize {
        let mut ended = 0;
        while let Some(Place { family, at }) = self.groups.get_mut(group).series.pop() {
            let state = &mut self.families[family];
            let gone = state.remove(at);
            let (lines, retired) = (state.lines(), state.retired);
            // The series that took its place is listed where it was.
            if let Some(moved) = state.series.get(at as usize) {
                self.groups.get_mut(moved.group).series[moved.listed as usize].at = at;
            }
            let tenant = self.groups.get_mut(gone.tenant);
            tenant.lines = tenant.lines.saturating_sub(lines);
            if let Some(retired) = retired {
                // Room for it was made just now. The reserved tenant has a series per family at most.
                let is_theirs = self.groups.get(heir).tenant == gone.tenant;
                let limit = if is_theirs { self.limits.series_per_tenant } else { usize::MAX };
                self.series_in(retired, heir, &[], limit).value.fold(&gone.value);
            }
            // Shared by this one and the table only.
            if Arc::strong_count(&gone.own) == 2 {
                self.own_labels.remove(&gone.own);
            }
            ended += 1;
        }
        ended
    }

    /// Gives memory back that many left behind.
    fn trim(&mut self) {
        self.families.iter_mut().for_each(FamilyState::trim);
        self.groups.trim();
        if let Some(enough) = excess(self.target_index.len(), self.target_index.capacity()) {
            self.target_index.shrink_to(enough);
        }
        if let Some(enough) = excess(self.own_labels.len(), self.own_labels.capacity()) {
            self.own_labels.shrink_to(enough);
        }
    }
}

/// The family that keeps the totals of what is gone. Made once a family at start, so leaking it is bounded.
pub(super) fn retired_family(family: &'static Family) -> &'static Family {
    let rest = family.name.strip_prefix("kernmeter_").unwrap_or(family.name);
    Box::leak(Box::new(Family {
        name: format!("{RETIRED_PREFIX}{rest}").leak(),
        help: format!(
            "What {}{} counted for workloads, namespaces and tenants that are gone and no longer have series of their own.",
            family.name,
            if family.kind == Kind::Counter { "_total" } else { "" }
        )
        .leak(),
        labels: &[],
        ..*family
    }))
}
