//! In: events about pods in their source's order, and the time; out: pods by container id, UID and name, and namespaces.
//! Knows no API and no clock, and compares resource versions for equality only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::claims::{Claims, Index, claim, release};
use super::memory::{heap, map_bytes, namespace_bytes, pod_bytes};
use super::{Container, Namespace, Phase, Pod, PodEvent};

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// How long a deleted pod is still found, nanoseconds: its last counts may come late.
    pub tombstone_ttl_ns: u64,
    /// Most deleted pods kept; beyond that the one deleted first goes first.
    pub tombstones: usize,
    /// Most containers of one pod, earlier runs included; beyond that the earliest go.
    pub containers_per_pod: usize,
    /// Most pods that are not deleted; further ones are refused and counted.
    pub pods: usize,
    /// Most namespaces; further ones are refused and counted.
    pub namespaces: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            tombstone_ttl_ns: 10 * 60 * 1_000_000_000,
            tombstones: 5_000,
            containers_per_pod: 128,
            pods: 20_000,
            namespaces: 50_000,
        }
    }
}

/// A container id as a number: half the bytes, and no allocation to look through.
type ContainerId = [u8; 32];

/// When a pod was deleted.
#[derive(Clone, Copy, Debug)]
struct Death {
    /// Its place among the tombstones.
    order: u64,
    at_ns: u64,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    /// The list that named it last.
    list: u64,
    /// Order of arrival.
    since: u64,
    death: Option<Death>,
}

/// Pods of this node and namespaces of the cluster, as their source tells.
///
/// - A pod is told apart by its UID. A resource version that is repeated changes nothing.
/// - Ids of containers add up over restarts. If two pods claim one, the first that is not deleted has it.
/// - A name belongs to the pod that came last and is not deleted.
/// - A static pod's configuration hash belongs to nobody while pods of different names claim it: pods can be made to
///   carry any annotation.
/// - A deleted pod is still found, after those that are not, until [`expire`](Self::expire) or a limit removes it; its
///   namespace stays as long.
#[derive(Debug, Default)]
pub struct PodCache {
    limits: CacheLimits,
    entries: Vec<Option<Entry>>,
    free: Vec<Index>,
    uids: HashMap<Arc<str>, Index>,
    hashes: HashMap<Arc<str>, Claims>,
    containers: HashMap<ContainerId, Claims>,
    /// By namespace, then name.
    names: HashMap<Arc<str>, HashMap<Arc<str>, Claims>>,
    tombstones: BTreeMap<u64, Index>,
    namespaces: HashMap<Arc<str>, Namespace>,
    /// Namespaces that were deleted while pods of theirs are known.
    leaving: HashSet<Arc<str>>,
    /// Pods that are not deleted, by phase.
    phases: [usize; PHASES.len()],
    /// Numbers lists, arrivals and deaths.
    counter: u64,
    /// The list that is being told.
    list: Option<u64>,
    complete: bool,
    generation: u64,
    refused: u64,
    /// Memory of pods and namespaces, maps excluded.
    bytes: usize,
}

const PHASES: [(&str, Phase); 5] = [
    ("pending", Phase::Pending),
    ("running", Phase::Running),
    ("succeeded", Phase::Succeeded),
    ("failed", Phase::Failed),
    ("unknown", Phase::Unknown),
];

fn phase_at(phase: Phase) -> usize {
    PHASES.iter().position(|(_, known)| *known == phase).unwrap_or(PHASES.len() - 1)
}

impl PodCache {
    /// An empty cache.
    pub fn new(limits: CacheLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes in one event at a time in nanoseconds, of any clock that does not run backwards.
    pub fn apply(&mut self, event: PodEvent, now_ns: u64) {
        match event {
            PodEvent::ListBegins => self.list = Some(self.next()),
            PodEvent::Listed(pod) | PodEvent::Applied(pod) => self.put(pod),
            PodEvent::ListComplete => self.complete_list(now_ns),
            PodEvent::Deleted { uid } => {
                if let Some(&at) = self.uids.get(&uid) {
                    self.bury(at, now_ns);
                }
            }
            PodEvent::Namespaces(all) => self.replace_namespaces(all),
            PodEvent::NamespaceApplied(namespace) => self.put_namespace(namespace),
            PodEvent::NamespaceDeleted { name } => self.drop_namespace(&name),
        }
    }

    /// Changes whenever any answer of this cache may have changed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a list was ever complete: what is not found then is not there, or not yet told.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The pod that a container belongs to, by the container's full id.
    pub fn by_container(&self, id: &str) -> Option<(&Arc<Pod>, &Container)> {
        let claims = self.containers.get(&container_id(id)?)?;
        let at = self.first(claims)?;
        let pod = self.pod(at)?;
        let container = if at == claims.first() {
            // Without looking at its name: that would be memory not touched yet.
            pod.containers.get(claims.place as usize)?
        } else {
            pod.containers.iter().find(|container| *container.id == *id)?
        };
        debug_assert_eq!(*container.id, *id);
        Some((pod, container))
    }

    /// The pod with this UID, or the static pod with this configuration hash.
    pub fn by_uid(&self, uid_or_config_hash: &str) -> Option<&Arc<Pod>> {
        if let Some(&at) = self.uids.get(uid_or_config_hash) {
            return self.pod(at);
        }
        let claims = self.hashes.get(uid_or_config_hash)?;
        let first = self.pod(self.first(claims)?)?;
        let same = |pod: &Arc<Pod>| (&pod.namespace, &pod.name) == (&first.namespace, &first.name);
        claims.iter().filter(|at| self.is_live(*at)).all(|at| self.pod(at).is_some_and(same)).then_some(first)
    }

    /// The pod of this name.
    pub fn by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        let claims = self.names.get(namespace)?.get(name)?;
        self.pod(claims.iter().filter(|at| self.is_live(*at)).last().or_else(|| claims.iter().last())?)
    }

    /// A namespace's metadata.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// All pods that are not deleted, in no order.
    pub fn snapshot(&self) -> Vec<Arc<Pod>> {
        self.entries
            .iter()
            .flatten()
            .filter(|entry| entry.death.is_none())
            .map(|entry| entry.pod.clone())
            .collect()
    }

    /// Pods by state: their phase, or `deleted`.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        PHASES
            .iter()
            .zip(self.phases)
            .map(|((name, _), count)| (*name, count))
            .chain([("deleted", self.tombstones.len())])
    }

    /// Pods and namespaces refused because there were too many: what they are is not known.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Memory held, bytes, as far as can be told without asking the allocator: text shared with others counts fully.
    pub fn memory_bytes(&self) -> usize {
        let names: usize = self.names.values().map(map_bytes).sum();
        self.bytes
            + heap(self.entries.capacity() * size_of::<Option<Entry>>())
            + heap(self.free.capacity() * size_of::<Index>())
            + map_bytes(&self.uids)
            + map_bytes(&self.hashes)
            + map_bytes(&self.containers)
            + map_bytes(&self.names)
            + names
            + map_bytes(&self.namespaces)
            // A node of a B-tree holds eleven and is two thirds full.
            + self.tombstones.len() * 24
    }

    /// Forgets pods that have been deleted for long enough.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some((_, &at)) = self.tombstones.first_key_value() {
            let died = self.entry(at).and_then(|entry| entry.death).map_or(0, |death| death.at_ns);
            if now_ns.saturating_sub(died) < self.limits.tombstone_ttl_ns {
                return;
            }
            self.remove(at);
        }
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn entry(&self, at: Index) -> Option<&Entry> {
        self.entries.get(at as usize)?.as_ref()
    }

    fn entry_mut(&mut self, at: Index) -> Option<&mut Entry> {
        self.entries.get_mut(at as usize)?.as_mut()
    }

    fn pod(&self, at: Index) -> Option<&Arc<Pod>> {
        self.entry(at).map(|entry| &entry.pod)
    }

    fn is_live(&self, at: Index) -> bool {
        self.entry(at).is_some_and(|entry| entry.death.is_none())
    }

    /// Who claimed first and is not deleted, else who claimed first.
    fn first(&self, claims: &Claims) -> Option<Index> {
        claims.iter().find(|at| self.is_live(*at)).or_else(|| claims.iter().next())
    }

    fn live(&self) -> usize {
        self.phases.iter().sum()
    }

    fn put(&mut self, mut pod: Pod) {
        let list = self.list.unwrap_or_default();
        let at = self.uids.get(&pod.uid).copied();
        if !at.is_some_and(|at| self.is_live(at)) && self.live() >= self.limits.pods {
            self.refused += 1;
            return;
        }
        let Some(at) = at else {
            pod.containers = self.told(&pod.containers, &[]);
            return self.insert(pod, list);
        };
        let Some(entry) = self.entry_mut(at) else { return };
        entry.list = list;
        let old = entry.pod.clone();
        let death = entry.death.take();
        if let Some(death) = death {
            self.tombstones.remove(&death.order);
            self.phases[phase_at(old.phase)] += 1;
            self.generation += 1;
        }
        // An object has one content at one version; only which of its labels are kept may have changed since.
        if !pod.resource_version.is_empty()
            && pod.resource_version == old.resource_version
            && (&pod.labels, &pod.annotations) == (&old.labels, &old.annotations)
        {
            return;
        }
        pod.containers = self.told(&pod.containers, &old.containers);
        if pod != *old {
            self.replace(at, &old, pod);
        }
    }

    /// Containers of a pod: those told now, then those of before; no id twice, and no more than allowed.
    fn told(&self, now: &[Container], before: &[Container]) -> Box<[Container]> {
        let mut seen = HashSet::new();
        let mut all = Vec::with_capacity(now.len());
        for container in now.iter().chain(before) {
            if all.len() >= self.limits.containers_per_pod {
                break;
            }
            if container_id(&container.id).is_some_and(|id| seen.insert(id)) {
                all.push(container.clone());
            }
        }
        all.into()
    }

    fn insert(&mut self, pod: Pod, list: u64) {
        let since = self.next();
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Index::try_from(self.entries.len() - 1).unwrap_or(Index::MAX)
        });
        self.phases[phase_at(pod.phase)] += 1;
        self.bytes += pod_bytes(&pod);
        self.generation += 1;
        self.uids.insert(pod.uid.clone(), at);
        self.claim_name(&pod, at);
        self.claim_hash(&pod, at);
        for container in &pod.containers {
            if let Some(id) = container_id(&container.id) {
                claim(&mut self.containers, id, at);
            }
        }
        self.place_containers(&pod, at);
        if let Some(place) = self.entries.get_mut(at as usize) {
            *place = Some(Entry { pod: Arc::new(pod), list, since, death: None });
        }
    }

    /// Notes where a pod has the containers it was first to claim.
    fn place_containers(&mut self, pod: &Pod, at: Index) {
        for (place, container) in (0..).zip(&pod.containers) {
            if let Some(claims) = container_id(&container.id).and_then(|id| self.containers.get_mut(&id))
                && claims.first() == at
            {
                claims.place = place;
            }
        }
    }

    fn release_container(&mut self, id: &ContainerId, at: Index) {
        release(&mut self.containers, id, at);
        // Somebody else may be first now.
        if let Some(next) = self.containers.get(id).map(Claims::first)
            && let Some(pod) = self.pod(next).cloned()
        {
            self.place_containers(&pod, next);
        }
    }

    /// What a pod claims as before keeps its place among the claims.
    fn replace(&mut self, at: Index, old: &Pod, new: Pod) {
        self.phases[phase_at(old.phase)] -= 1;
        self.phases[phase_at(new.phase)] += 1;
        self.bytes = self.bytes + pod_bytes(&new) - pod_bytes(old);
        self.generation += 1;
        if (&old.namespace, &old.name) != (&new.namespace, &new.name) {
            self.claim_name(&new, at);
            self.release_name(old, at);
        }
        if old.config_hash != new.config_hash {
            self.release_hash(old, at);
            self.claim_hash(&new, at);
        }
        let ids = |pod: &Pod| -> Vec<ContainerId> {
            pod.containers.iter().filter_map(|container| container_id(&container.id)).collect()
        };
        let (before, now) = (ids(old), ids(&new));
        for id in before.iter().filter(|id| !now.contains(id)) {
            self.release_container(id, at);
        }
        for id in now.iter().filter(|id| !before.contains(id)) {
            claim(&mut self.containers, *id, at);
        }
        self.place_containers(&new, at);
        if let Some(entry) = self.entry_mut(at) {
            entry.pod = Arc::new(new);
        }
    }

    fn claim_name(&mut self, pod: &Pod, at: Index) {
        claim(self.names.entry(pod.namespace.clone()).or_default(), pod.name.clone(), at);
    }

    fn release_name(&mut self, pod: &Pod, at: Index) {
        let Some(names) = self.names.get_mut(&pod.namespace) else { return };
        release(names, &pod.name, at);
        if names.is_empty() {
            self.names.remove(&pod.namespace);
            if self.leaving.remove(&pod.namespace) {
                self.forget_namespace(&pod.namespace);
            }
        }
    }

    fn claim_hash(&mut self, pod: &Pod, at: Index) {
        // Anything else could pose as the UID of a pod not told yet.
        if let Some(hash) = pod.config_hash.as_ref().filter(|hash| is_config_hash(hash)) {
            claim(&mut self.hashes, hash.clone(), at);
        }
    }

    fn release_hash(&mut self, pod: &Pod, at: Index) {
        if let Some(hash) = &pod.config_hash {
            release(&mut self.hashes, hash, at);
        }
    }

    fn complete_list(&mut self, now_ns: u64) {
        let Some(list) = self.list.take() else { return };
        let mut gone: Vec<(u64, Index)> = (0..)
            .zip(&self.entries)
            .filter_map(|(at, entry)| entry.as_ref().map(|entry| (at, entry)))
            .filter(|(_, entry)| entry.death.is_none() && entry.list != list)
            .map(|(at, entry)| (entry.since, at))
            .collect();
        gone.sort_unstable();
        for (_, at) in gone {
            self.bury(at, now_ns);
        }
        if !self.complete {
            self.complete = true;
            self.generation += 1;
        }
    }

    fn bury(&mut self, at: Index, now_ns: u64) {
        let order = self.next();
        let Some(entry) = self.entry_mut(at).filter(|entry| entry.death.is_none()) else { return };
        entry.death = Some(Death { order, at_ns: now_ns });
        let phase = entry.pod.phase;
        self.phases[phase_at(phase)] -= 1;
        self.generation += 1;
        self.tombstones.insert(order, at);
        while self.tombstones.len() > self.limits.tombstones
            && let Some((_, &oldest)) = self.tombstones.first_key_value()
        {
            self.remove(oldest);
        }
    }

    /// Forgets a deleted pod.
    fn remove(&mut self, at: Index) {
        let Some(entry) = self.entries.get_mut(at as usize).and_then(Option::take) else { return };
        if let Some(death) = entry.death {
            self.tombstones.remove(&death.order);
        }
        let pod = &*entry.pod;
        self.uids.remove(&pod.uid);
        self.release_name(pod, at);
        self.release_hash(pod, at);
        for id in pod.containers.iter().filter_map(|container| container_id(&container.id)) {
            self.release_container(&id, at);
        }
        self.bytes -= pod_bytes(pod);
        self.generation += 1;
        self.free.push(at);
    }

    fn replace_namespaces(&mut self, all: Vec<Namespace>) {
        let named: HashSet<Arc<str>> = all.iter().map(|namespace| namespace.name.clone()).collect();
        let gone: Vec<Arc<str>> =
            self.namespaces.keys().filter(|name| !named.contains(*name)).cloned().collect();
        for name in gone {
            self.drop_namespace(&name);
        }
        for namespace in all {
            self.put_namespace(namespace);
        }
    }

    fn put_namespace(&mut self, namespace: Namespace) {
        self.leaving.remove(&namespace.name);
        match self.namespaces.get(&namespace.name) {
            Some(known) if *known == namespace => return,
            None if self.namespaces.len() >= self.limits.namespaces => {
                self.refused += 1;
                return;
            }
            _ => {}
        }
        self.bytes += namespace_bytes(&namespace);
        self.generation += 1;
        if let Some(old) = self.namespaces.insert(namespace.name.clone(), namespace) {
            self.bytes -= namespace_bytes(&old);
        }
    }

    fn drop_namespace(&mut self, name: &Arc<str>) {
        if self.names.contains_key(name) && self.namespaces.contains_key(name) {
            self.leaving.insert(name.clone());
        } else {
            self.forget_namespace(name);
        }
    }

    fn forget_namespace(&mut self, name: &str) {
        if let Some(old) = self.namespaces.remove(name) {
            self.bytes -= namespace_bytes(&old);
            self.generation += 1;
        }
    }
}

/// 64 lower-case hexadecimal digits as 32 bytes.
fn container_id(id: &str) -> Option<ContainerId> {
    let digits: &[u8; 2 * size_of::<ContainerId>()] = id.as_bytes().try_into().ok()?;
    // By a table, not by branches: which digits are letters cannot be foreseen.
    let mut out = ContainerId::default();
    let mut all = 0;
    for (byte, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        all |= high | low;
        *byte = (high << 4) | (low & 0xf);
    }
    (all <= 0xf).then_some(out)
}

/// Values of lower-case hexadecimal digits by character; 0xff for anything else.
const DIGITS: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        values[b"0123456789abcdef"[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};

/// As [`crate::identity::path`] reads it from a cgroup's name.
fn is_config_hash(hash: &str) -> bool {
    hash.len() == 32 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
