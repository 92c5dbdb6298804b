//! In: label values of workloads; out: whom they belong to at each level of detail. Knows no values and no time.

use std::collections::HashMap;
use std::sync::Arc;

use super::slab::{Slab, excess};
use crate::catalog::family::{Detail, WORKLOAD_LABELS};
use crate::escape::append_labels;

pub(super) type GroupId = u32;

/// Values of the workload labels.
pub(super) type Labels = [Arc<str>; 4];

/// Where a series is: its family and its place there.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub family: usize,
    pub at: u32,
}

/// All that shares one set of workload labels.
pub(super) struct Group {
    /// Rendered workload labels.
    pub prefix: Arc<[u8]>,
    pub tenant: GroupId,
    /// What ends with the group.
    pub series: Vec<Place>,
    /// Targets in it.
    targets: u32,
    /// Exposed lines of the tenant (tenant groups only).
    pub lines: usize,
    /// Label value of the tenant.
    pub name: Arc<str>,
}

/// All groups, by their labels.
pub(super) struct Groups {
    slab: Slab<Group>,
    index: HashMap<Arc<[u8]>, GroupId>,
    /// Tenants, reserved ones not counted.
    tenants: usize,
}

/// Whether a tenant's name is reserved. No rule gives such a name; the tenant itself stays for ever.
pub(super) fn is_reserved(tenant: &str) -> bool {
    tenant.starts_with('_')
}

impl Groups {
    pub fn new() -> Groups {
        Groups { slab: Slab::new(), index: HashMap::new(), tenants: 0 }
    }

    pub fn tenants(&self) -> usize {
        self.tenants
    }

    /// Whether the tenant with this name is there.
    pub fn has_tenant(&self, labels: &Labels) -> bool {
        self.index.contains_key(render(labels, Detail::Tenant).as_slice())
    }

    pub fn get(&self, id: GroupId) -> &Group {
        self.slab.get(id).expect("a group lives while targets or series are in it")
    }

    pub fn get_mut(&mut self, id: GroupId) -> &mut Group {
        self.slab.get_mut(id).expect("a group lives while targets or series are in it")
    }

    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.slab.iter()
    }

    /// All numbers of groups are below this.
    pub fn end(&self) -> usize {
        self.slab.end()
    }

    /// The groups of one more target, coarsest first. Levels that do not differ share a group.
    pub fn enter(&mut self, labels: &Labels) -> [GroupId; 4] {
        const LEVELS: [Detail; 4] = [Detail::Tenant, Detail::Namespace, Detail::Pod, Detail::Container];
        let tenant = self.tenant(labels);
        let groups = LEVELS.map(|level| match level {
            Detail::Tenant => tenant,
            _ => self.group(render(labels, level), Some(tenant), &labels[0]),
        });
        for group in distinct(groups) {
            self.get_mut(group).targets += 1;
        }
        groups
    }

    /// The group of a tenant, made if it is not there.
    pub fn tenant(&mut self, labels: &Labels) -> GroupId {
        self.group(render(labels, Detail::Tenant), None, &labels[0])
    }

    /// One target less. Gives the groups that end with it, and the heir of what was counted in them: the namespace, else the
    /// tenant, if it stays.
    pub fn leave(&mut self, groups: [GroupId; 4]) -> (Vec<GroupId>, Option<GroupId>) {
        let mut ended = Vec::new();
        let mut heir = None;
        for id in distinct(groups) {
            let group = self.get_mut(id);
            group.targets = group.targets.saturating_sub(1);
            if group.targets == 0 && !(group.tenant == id && is_reserved(&group.name)) {
                ended.push(id);
            } else if groups[..=Detail::Namespace as usize].contains(&id) {
                heir = Some(id);
            }
        }
        (ended, heir)
    }

    /// Forgets a group that ended.
    pub fn remove(&mut self, id: GroupId) {
        let Some(group) = self.slab.remove(id) else { return };
        self.index.remove(&group.prefix);
        if group.tenant == id && !is_reserved(&group.name) {
            self.tenants -= 1;
        }
    }

    /// Gives memory back that many groups left behind.
    pub fn trim(&mut self) {
        if let Some(enough) = excess(self.index.len(), self.index.capacity()) {
            self.index.shrink_to(enough);
        }
    }

    /// The group with these labels, of this tenant or a tenant itself.
    fn group(&mut self, prefix: Vec<u8>, tenant: Option<GroupId>, name: &Arc<str>) -> GroupId {
        if let Some(id) = self.index.get(prefix.as_slice()) {
            return *id;
        }
        let prefix: Arc<[u8]> = prefix.into();
        let id = self.slab.insert(Group {
            prefix: Arc::clone(&prefix),
            tenant: tenant.unwrap_or_default(),
            series: Vec::new(),
            targets: 0,
            lines: 0,
            name: Arc::clone(name),
        });
        if tenant.is_none() {
            self.get_mut(id).tenant = id;
            self.tenants += usize::from(!is_reserved(name));
        }
        self.index.insert(prefix, id);
        id
    }
}

/// Each group once: equal ones are neighbours.
fn distinct(groups: [GroupId; 4]) -> Vec<GroupId> {
    let mut groups = groups.to_vec();
    groups.dedup();
    groups
}

/// Workload labels at a level. The tenant level carries an empty namespace, so that every sample has both labels.
fn render(labels: &Labels, level: Detail) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    let values = labels.iter().enumerate().map(|(i, label)| if i > level as usize { "" } else { label });
    append_labels(&mut out, &WORKLOAD_LABELS[..=(level as usize).max(1)], values);
    out
}
