//! In: a cgroup's facts and the pod cache; out: the pod behind the cgroup, where its path is one to be trusted. Knows no
//! tenants.

use super::{Namespace, Pod, PodCache};
use crate::identity::CgroupFacts;

/// What is known of the pod behind a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodFacts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's name, if the cgroup is that of a container that the pod is known to have.
    pub container: Option<&'a str>,
    /// The metadata of its namespace, where rules look at it and it is known.
    pub namespace: Option<&'a Namespace>,
}

impl<'a> PodFacts<'a> {
    /// The pod behind a cgroup, by the pod's UID in the path and, where that is not known, by the container's id.
    ///
    /// `None` for a cgroup that is no pod's by its path, whatever ids its names hold: only the kubelet makes cgroups
    /// under `kubepods` outside `user.slice` (see [`CgroupFacts::pod_uid`]).
    pub fn find(cache: &'a PodCache, facts: &CgroupFacts) -> Option<Self> {
        let uid = facts.pod_uid.as_deref()?;
        let by_container = facts.container_id.as_deref().and_then(|id| cache.by_container(id));
        let (pod, container) = match (cache.by_uid(uid), by_container) {
            (Some(pod), Some((owner, container))) if owner.uid == pod.uid => (pod, Some(&*container.name)),
            (Some(pod), _) => (pod, None),
            (None, Some((owner, container))) => (owner, Some(&*container.name)),
            (None, None) => return None,
        };
        Some(Self { pod, container, namespace: cache.namespace(&pod.namespace) })
    }

    /// These facts if they are about the pod that the cgroup's path names, by UID, configuration hash or container.
    pub(in crate::identity) fn of(&self, facts: &CgroupFacts) -> bool {
        let Some(uid) = facts.pod_uid.as_deref() else { return false };
        let has = |id: &str| self.pod.containers.iter().any(|container| *container.id == *id);
        *self.pod.uid == *uid
            || self.pod.config_hash.as_deref() == Some(uid)
            || facts.container_id.as_deref().is_some_and(has)
    }
}
