//! The pod cache against a list of pods searched from end to end, and in each situation it must survive.

use proptest::prelude::*;

use super::*;
use crate::allocations;

/// Digits as mixed as those of real ids.
fn id(n: u32) -> String {
    let mixed = |by: u64| (u64::from(n) + 1).wrapping_mul(by).rotate_left(n % 64);
    let parts = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    parts.map(|by| format!("{:016x}", mixed(by))).concat()
}

fn pod(uid: &str, name: &str, version: &str, containers: &[u32]) -> Pod {
    Pod {
        uid: uid.into(),
        namespace: "shop".into(),
        name: name.into(),
        resource_version: version.into(),
        config_hash: None,
        labels: Box::default(),
        annotations: Box::default(),
        phase: Phase::Running,
        containers: containers
            .iter()
            .map(|n| Container { id: id(*n).into(), name: format!("c{n}").into() })
            .collect(),
    }
}

fn deleted(uid: &str) -> PodEvent {
    PodEvent::Deleted { uid: uid.into() }
}

fn namespace(name: &str, tier: &str) -> Namespace {
    Namespace {
        name: name.into(),
        labels: [("tier".into(), tier.into())].into(),
        annotations: Box::default(),
    }
}

fn with(limits: CacheLimits, events: impl IntoIterator<Item = PodEvent>) -> PodCache {
    let mut cache = PodCache::new(limits);
    for (now, event) in (0..).zip(events) {
        cache.apply(event, now);
    }
    cache
}

fn cache(events: impl IntoIterator<Item = PodEvent>) -> PodCache {
    with(CacheLimits::default(), events)
}

fn owner(cache: &PodCache, container: u32) -> Option<String> {
    cache.by_container(&id(container)).map(|(pod, _)| pod.uid.to_string())
}

fn named(cache: &PodCache, name: &str) -> Option<String> {
    cache.by_name("shop", name).map(|pod| pod.uid.to_string())
}

fn count(cache: &PodCache, state: &str) -> usize {
    cache.counts().find(|(name, _)| *name == state).map(|(_, count)| count).expect("a state")
}

use PodEvent::{Applied, ListBegins, ListComplete, Listed};

#[test]
fn a_pod_is_found_by_container_uid_and_name() {
    let cache = cache([Applied(pod("u1", "web", "1", &[1, 2]))]);
    let (found, container) = cache.by_container(&id(2)).expect("container");
    assert_eq!((&*found.uid, &*container.name), ("u1", "c2"));
    assert_eq!(cache.by_uid("u1").map(|pod| &*pod.name), Some("web"));
    assert_eq!(named(&cache, "web").as_deref(), Some("u1"));
    assert_eq!((count(&cache, "running"), cache.snapshot().len(), cache.is_complete()), (1, 1, false));
    for unknown in ["", "u1", &id(3), &id(1)[..63], &id(10).to_uppercase(), "\u{e9}", &"0".repeat(1 << 20)] {
        assert!(cache.by_container(unknown).is_none(), "{unknown:.80}");
    }
    assert!(cache.by_name("other", "web").is_none() && cache.by_uid("u2").is_none());
}

#[test]
fn container_ids_are_64_lower_case_digits() {
    for byte in 0..=127_u8 {
        let text = format!("{}{}", &id(1)[..63], char::from(byte));
        let valid = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        assert_eq!(container_id(&text).is_some(), valid, "{byte}");
    }
    let bytes = container_id(&("0123456789abcdef".repeat(4))).expect("an id");
    assert_eq!(bytes[..8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
}

#[test]
fn a_version_repeated_changes_nothing_and_versions_have_no_order() {
    let mut cache = cache([Applied(pod("u1", "web", "9", &[1]))]);
    let before = cache.generation();
    cache.apply(Applied(pod("u1", "web", "9", &[7])), 1);
    assert_eq!((cache.generation(), owner(&cache, 7)), (before, None));
    // "10" is older than "9" as text, and newer here: the source's order counts.
    cache.apply(Applied(pod("u1", "web", "10", &[2])), 2);
    assert_eq!(owner(&cache, 2).as_deref(), Some("u1"));
    cache.apply(Applied(pod("u1", "web", "9", &[3])), 3);
    assert_eq!(owner(&cache, 3).as_deref(), Some("u1"));
    // The same version with other labels: rules look at other keys now.
    let labelled = Pod { labels: [("app".into(), "x".into())].into(), ..pod("u1", "web", "9", &[3]) };
    cache.apply(Applied(labelled), 4);
    assert_eq!(cache.by_uid("u1").map(|pod| pod.labels.len()), Some(1));
    // Sources without versions: by content.
    cache.apply(Applied(pod("u2", "x", "", &[4])), 5);
    let before = cache.generation();
    cache.apply(Applied(pod("u2", "x", "", &[4])), 6);
    assert_eq!(cache.generation(), before);
    cache.apply(Applied(pod("u2", "x", "", &[5])), 7);
    assert_eq!(owner(&cache, 5).as_deref(), Some("u2"));
}

#[test]
fn a_list_replaces() {
    let mut cache = cache([Applied(pod("old", "a", "1", &[1])), Applied(pod("kept", "b", "2", &[2]))]);
    for event in [ListBegins, Listed(pod("kept", "b", "2", &[2])), Listed(pod("new", "c", "3", &[3]))] {
        cache.apply(event, 10);
    }
    assert_eq!((count(&cache, "running"), cache.is_complete()), (3, false), "nothing is gone before the end");
    // Created while the list was told, and not in it.
    cache.apply(Applied(pod("fresh", "d", "4", &[4])), 11);
    cache.apply(ListComplete, 12);
    assert_eq!((count(&cache, "running"), count(&cache, "deleted"), cache.is_complete()), (3, 1, true));
    assert_eq!(owner(&cache, 1).as_deref(), Some("old"), "found until its last counts are in");
    assert!(cache.snapshot().iter().all(|pod| &*pod.uid != "old"));
    // Without a beginning it says nothing.
    cache.apply(ListComplete, 13);
    assert_eq!(count(&cache, "running"), 3);
}

#[test]
fn an_interrupted_list_is_forgotten() {
    let cache = cache([
        Applied(pod("a", "a", "1", &[])),
        Applied(pod("b", "b", "1", &[])),
        ListBegins,
        Listed(pod("a", "a", "1", &[])),
        ListBegins,
        Listed(pod("b", "b", "1", &[])),
        ListComplete,
    ]);
    assert_eq!((count(&cache, "running"), count(&cache, "deleted")), (1, 1));
    assert_eq!(cache.snapshot()[0].uid, "b".into());
}

#[test]
fn a_new_uid_is_a_new_pod() {
    let mut cache = cache([Applied(pod("u1", "web-0", "1", &[1])), Applied(pod("u2", "web-0", "2", &[2]))]);
    assert_eq!(named(&cache, "web-0").as_deref(), Some("u2"));
    // News of the one before does not take the name back.
    cache.apply(Applied(pod("u1", "web-0", "3", &[1])), 5);
    assert_eq!(named(&cache, "web-0").as_deref(), Some("u2"));
    cache.apply(deleted("u1"), 6);
    assert_eq!(
        (owner(&cache, 1), owner(&cache, 2), named(&cache, "web-0")),
        (Some("u1".into()), Some("u2".into()), Some("u2".into()))
    );
    cache.apply(deleted("u2"), 7);
    assert_eq!(named(&cache, "web-0").as_deref(), Some("u2"));
    // Told of again, it lives.
    cache.apply(Applied(pod("u1", "web-0", "3", &[1])), 8);
    assert_eq!((named(&cache, "web-0").as_deref(), count(&cache, "deleted")), (Some("u1"), 1));
}

#[test]
fn tombstones_end_by_time_and_by_number() {
    let limits = CacheLimits { tombstone_ttl_ns: 100, tombstones: 2, ..CacheLimits::default() };
    let mut cache = PodCache::new(limits);
    for (n, uid) in (0..).zip(["a", "b", "c"]) {
        cache.apply(Applied(pod(uid, uid, "1", &[n])), 0);
    }
    for (now, uid) in [(10, "b"), (20, "a"), (30, "c"), (31, "c"), (32, "never")] {
        cache.apply(deleted(uid), now);
    }
    assert_eq!((owner(&cache, 1), count(&cache, "deleted")), (None, 2), "the one deleted first went first");
    cache.expire(119);
    assert_eq!(count(&cache, "deleted"), 2);
    cache.expire(120);
    assert_eq!((owner(&cache, 0), owner(&cache, 2).as_deref()), (None, Some("c")));
    let before = cache.generation();
    cache.expire(u64::MAX);
    assert!(cache.generation() > before && named(&cache, "c").is_none());
    assert_eq!(cache.entries.len(), cache.free.len());
    assert!(cache.uids.is_empty() && cache.containers.is_empty() && cache.names.is_empty());
    assert_eq!(cache.bytes, 0);
}

#[test]
fn container_ids_add_up_over_restarts_within_bounds() {
    let limits = CacheLimits { containers_per_pod: 3, ..CacheLimits::default() };
    let mut cache = PodCache::new(limits);
    for n in 1..=5 {
        cache.apply(Applied(pod("u1", "web", &n.to_string(), &[n])), u64::from(n));
    }
    let owners: Vec<bool> = (1..=5).map(|n| owner(&cache, n).is_some()).collect();
    assert_eq!(owners, [false, false, true, true, true]);
    cache.apply(Applied(pod("u1", "web", "6", &[9, 9, 8, 7, 6])), 6);
    let pod = cache.by_uid("u1").expect("pod");
    let kept: Vec<String> = pod.containers.iter().map(|container| container.id.to_string()).collect();
    assert_eq!(kept, [9, 8, 7].map(id));
    assert_eq!(cache.containers.len(), 3);
}

#[test]
fn a_container_claimed_twice_stays_with_the_first_that_lives() {
    let mut cache = cache([Applied(pod("a", "a", "1", &[1])), Applied(pod("b", "b", "1", &[1]))]);
    assert_eq!(owner(&cache, 1).as_deref(), Some("a"));
    cache.apply(Applied(pod("a", "a", "2", &[1, 2])), 2);
    cache.apply(Applied(pod("b", "b", "2", &[1, 2])), 2);
    assert_eq!((owner(&cache, 1).as_deref(), owner(&cache, 2).as_deref()), (Some("a"), Some("a")));
    cache.apply(deleted("a"), 3);
    assert_eq!(owner(&cache, 1).as_deref(), Some("b"));
    cache.apply(deleted("b"), 4);
    assert_eq!(owner(&cache, 1).as_deref(), Some("a"));
}

#[test]
fn configuration_hashes() {
    let hash = "d0d64bd62a4ec3a5d5a3dc1a8c1ab8a4";
    let uid = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";
    let mirror = |uid: &str, name: &str, hash: &str| {
        Applied(Pod { config_hash: Some(hash.into()), ..pod(uid, name, "1", &[]) })
    };
    let found = |cache: &PodCache, key: &str| cache.by_uid(key).map(|pod| pod.uid.to_string());
    let mut cache = cache([mirror("u1", "etcd-node", hash)]);
    assert_eq!(found(&cache, hash).as_deref(), Some("u1"));
    // The mirror made anew: the same pod.
    cache.apply(mirror("u2", "etcd-node", hash), 1);
    assert_eq!(found(&cache, hash).as_deref(), Some("u1"));
    cache.apply(deleted("u1"), 2);
    assert_eq!(found(&cache, hash).as_deref(), Some("u2"));
    // Another pod says that it is the static one: then nobody is, until one is gone.
    cache.apply(mirror("u3", "evil", hash), 3);
    assert_eq!(found(&cache, hash), None);
    cache.apply(deleted("u3"), 4);
    assert_eq!(found(&cache, hash).as_deref(), Some("u2"));
    // A hash that is another's UID.
    cache.apply(mirror("u4", "evil", uid), 5);
    assert_eq!(found(&cache, uid), None);
    cache.apply(Applied(pod(uid, "victim", "1", &[])), 6);
    assert_eq!(found(&cache, uid).as_deref(), Some(uid));
}

#[test]
fn phases_are_counted_and_pods_bounded() {
    let limits = CacheLimits { pods: 2, namespaces: 1, ..CacheLimits::default() };
    let done = Pod { phase: Phase::Succeeded, ..pod("a", "a", "2", &[]) };
    let mut cache = with(
        limits,
        [
            Applied(pod("a", "a", "1", &[])),
            Applied(Pod { phase: Phase::Pending, ..pod("b", "b", "1", &[]) }),
            Applied(done),
            Applied(pod("c", "c", "1", &[])),
            PodEvent::NamespaceApplied(namespace("n", "1")),
            PodEvent::NamespaceApplied(namespace("m", "1")),
        ],
    );
    let counts: Vec<_> = cache.counts().collect();
    assert_eq!(
        counts,
        [("pending", 1), ("running", 0), ("succeeded", 1), ("failed", 0), ("unknown", 0), ("deleted", 0)]
    );
    assert_eq!((cache.refused(), cache.namespace("m"), cache.by_uid("c")), (2, None, None));
    // Room again.
    cache.apply(deleted("a"), 9);
    cache.apply(Applied(pod("c", "c", "1", &[])), 9);
    assert!(cache.by_uid("c").is_some());
    cache.apply(Applied(pod("a", "a", "3", &[])), 9);
    assert_eq!((cache.refused(), count(&cache, "deleted")), (3, 1));
}

#[test]
fn namespaces_stay_as_long_as_their_pods() {
    let mut cache = cache([
        PodEvent::Namespaces(vec![namespace("shop", "gold"), namespace("empty", "x")]),
        Applied(pod("a", "a", "1", &[])),
        PodEvent::NamespaceApplied(namespace("late", "y")),
    ]);
    let tier =
        |cache: &PodCache, name: &str| cache.namespace(name).map(|known| known.labels[0].1.to_string());
    let before = cache.generation();
    cache.apply(PodEvent::NamespaceApplied(namespace("late", "y")), 3);
    assert_eq!(cache.generation(), before);
    cache.apply(PodEvent::NamespaceApplied(namespace("shop", "iron")), 4);
    assert_eq!((cache.generation() > before, tier(&cache, "shop").as_deref()), (true, Some("iron")));
    cache.apply(PodEvent::Namespaces(vec![namespace("late", "z")]), 5);
    assert_eq!((tier(&cache, "empty"), tier(&cache, "late").as_deref()), (None, Some("z")));
    assert_eq!(tier(&cache, "shop").as_deref(), Some("iron"), "a pod of it is known");
    cache.apply(deleted("a"), 6);
    assert_eq!(tier(&cache, "shop").as_deref(), Some("iron"), "and its last counts may come");
    cache.expire(u64::MAX);
    assert_eq!(tier(&cache, "shop"), None);
    // Deleted and made anew while a pod is known: the new one stays.
    for event in [
        Applied(pod("b", "b", "1", &[])),
        PodEvent::NamespaceApplied(namespace("shop", "gold")),
        PodEvent::NamespaceDeleted { name: "shop".into() },
        PodEvent::NamespaceApplied(namespace("shop", "gold")),
        deleted("b"),
    ] {
        cache.apply(event, 7);
    }
    cache.expire(u64::MAX);
    assert_eq!(tier(&cache, "shop").as_deref(), Some("gold"));
    cache.apply(PodEvent::NamespaceDeleted { name: "shop".into() }, 8);
    cache.apply(PodEvent::NamespaceDeleted { name: "late".into() }, 8);
    assert_eq!((tier(&cache, "shop"), cache.bytes), (None, 0));
}

/// A pod as large as they commonly are: two containers, a few labels kept.
fn usual(n: u32) -> Pod {
    Pod {
        uid: format!("0f859f0d-7d3f-4e6a-9cf2-{n:012x}").into(),
        namespace: format!("team-{}", n % 50).into(),
        name: format!("deployment-5d4f8c7b9d-{n:05}").into(),
        resource_version: format!("{}", 1_000_000 + n).into(),
        labels: [("app.kubernetes.io/name".into(), format!("app-{}", n % 100).into())].into(),
        ..pod("", "", "", &[2 * n, 2 * n + 1])
    }
}

#[test]
fn memory_is_told_as_the_allocator_sees_it() {
    for pods in [0, 1, 100, 5000] {
        let (cache, held) = allocations::held(|| {
            cache(
                (0..pods).map(|n| Applied(usual(n))).chain([PodEvent::NamespaceApplied(namespace("n", "x"))]),
            )
        });
        let told = cache.memory_bytes();
        println!(
            "{pods} pods: {told} bytes told, {held} asked of the allocator, {} a pod",
            told / pods.max(1) as usize
        );
        assert!(told >= held && told < held + held / 2 + 512, "{pods} pods: {told} told, {held} held");
    }
}

/// The same rules, said as plainly as can be: one list, searched each time.
#[derive(Default)]
struct Model {
    pods: Vec<Known>,
    clock: u64,
    list: Option<u64>,
    complete: bool,
}

struct Known {
    pod: Pod,
    since: u64,
    list: u64,
    /// Since when it has claimed each of its containers.
    claims: Vec<(String, u64)>,
    died: Option<(u64, u64)>,
}

impl Model {
    fn apply(&mut self, event: &PodEvent, now: u64, limits: &CacheLimits) {
        self.clock += 1;
        match event {
            ListBegins => self.list = Some(self.clock),
            Listed(pod) | Applied(pod) => self.put(pod, limits),
            ListComplete => {
                let Some(list) = self.list.take() else { return };
                self.complete = true;
                self.pods.sort_by_key(|known| known.since);
                for n in 0..self.pods.len() {
                    if self.pods[n].list != list {
                        self.bury(n, now);
                    }
                }
                self.shrink(limits);
            }
            PodEvent::Deleted { uid } => {
                if let Some(n) = self.pods.iter().position(|known| known.pod.uid == *uid) {
                    self.bury(n, now);
                }
                self.shrink(limits);
            }
            _ => unreachable!("not generated"),
        }
    }

    fn put(&mut self, pod: &Pod, limits: &CacheLimits) {
        let known = self.pods.iter().position(|known| known.pod.uid == pod.uid);
        let live = self.pods.iter().filter(|known| known.died.is_none()).count();
        if known.is_none_or(|n| self.pods[n].died.is_some()) && live >= limits.pods {
            return;
        }
        let (clock, list) = (self.clock, self.list.unwrap_or_default());
        let Some(n) = known else {
            let claims = Vec::new();
            self.pods.push(Known { pod: pod.clone(), since: clock, list, claims, died: None });
            let n = self.pods.len() - 1;
            return self.settle(n, pod, &[], limits);
        };
        self.pods[n].list = list;
        self.pods[n].died = None;
        if self.pods[n].pod.resource_version != pod.resource_version {
            let before = self.pods[n].pod.containers.clone();
            self.settle(n, pod, &before, limits);
        }
    }

    fn settle(&mut self, n: usize, pod: &Pod, before: &[Container], limits: &CacheLimits) {
        let mut all: Vec<Container> = Vec::new();
        for container in pod.containers.iter().chain(before) {
            if !all.iter().any(|other| other.id == container.id) {
                all.push(container.clone());
            }
        }
        all.truncate(limits.containers_per_pod);
        let known = &mut self.pods[n];
        known.claims.retain(|(id, _)| all.iter().any(|container| *container.id == **id));
        for (place, container) in (0..).zip(&all) {
            if !known.claims.iter().any(|(id, _)| **id == *container.id) {
                known.claims.push((container.id.to_string(), self.clock * 1000 + place));
            }
        }
        known.pod = Pod { containers: all.into(), ..pod.clone() };
    }

    fn bury(&mut self, n: usize, now: u64) {
        self.clock += 1;
        if self.pods[n].died.is_none() {
            self.pods[n].died = Some((self.clock, now));
        }
    }

    fn shrink(&mut self, limits: &CacheLimits) {
        let mut dead: Vec<u64> = self.pods.iter().filter_map(|known| known.died.map(|died| died.0)).collect();
        dead.sort_unstable();
        let extra = dead.len().saturating_sub(limits.tombstones);
        self.pods.retain(|known| known.died.is_none_or(|died| !dead[..extra].contains(&died.0)));
    }

    fn expire(&mut self, now: u64, limits: &CacheLimits) {
        self.pods.retain(|known| known.died.is_none_or(|died| now - died.1 < limits.tombstone_ttl_ns));
    }

    fn by_container(&self, id: &str) -> Option<&Pod> {
        let claims = self.pods.iter().filter_map(|known| {
            let (_, since) = known.claims.iter().find(|(claimed, _)| claimed == id)?;
            Some((known.died.is_some(), *since, &known.pod))
        });
        claims.min_by_key(|(dead, since, _)| (*dead, *since)).map(|(.., pod)| pod)
    }

    fn by_name(&self, name: &str) -> Option<&Pod> {
        let same = self.pods.iter().filter(|known| *known.pod.name == *name);
        same.max_by_key(|known| (known.died.is_none(), known.since)).map(|known| &known.pod)
    }
}

fn events() -> impl Strategy<Value = Vec<(PodEvent, u64)>> {
    let any_pod = (0..6_u8, 0..4_u8, 0..4_u8, prop::collection::vec(0..8_u32, 0..4), 0..5_usize).prop_map(
        |(uid, name, version, containers, phase)| {
            // The UID decides the name mostly, as in life; the version decides the rest.
            let containers: Vec<u32> = containers.iter().map(|n| (n + u32::from(version)) % 8).collect();
            let phase = PHASES[phase].1;
            let name = if uid % 2 == 0 { uid / 2 } else { name };
            Pod { phase, ..pod(&format!("u{uid}"), &format!("p{name}"), &format!("v{version}"), &containers) }
        },
    );
    let event = prop_oneof![
        6 => any_pod.clone().prop_map(Applied),
        3 => any_pod.prop_map(Listed),
        2 => (0..6_u8).prop_map(|uid| deleted(&format!("u{uid}"))),
        1 => Just(ListBegins),
        1 => Just(ListComplete),
    ];
    prop::collection::vec((event, 0..30_u64), 0..60)
}

proptest! {
    #[test]
    fn answers_as_the_model_does(events in events()) {
        let limits = CacheLimits {
            tombstone_ttl_ns: 100, tombstones: 3, containers_per_pod: 4, pods: 5, namespaces: 3,
        };
        let mut cache = PodCache::new(limits);
        let mut model = Model::default();
        let mut now = 0;
        for (mut event, later) in events {
            now += later;
            // A pod keeps its name.
            if let Applied(pod) | Listed(pod) = &mut event
                && let Some(known) = model.pods.iter().find(|known| known.pod.uid == pod.uid)
            {
                pod.name = known.pod.name.clone();
            }
            model.apply(&event, now, &limits);
            let (before, was) = (cache.generation(), answers(&cache));
            cache.apply(event, now);
            model.expire(now, &limits);
            cache.expire(now);
            prop_assert!(was == answers(&cache) || before != cache.generation());

            prop_assert_eq!(cache.is_complete(), model.complete);
            for n in 0..8 {
                let found = cache.by_container(&id(n));
                prop_assert_eq!(found.map(|(pod, _)| &**pod), model.by_container(&id(n)), "container {}", n);
                prop_assert!(found.is_none_or(|(_, container)| *container.id == *id(n)));
            }
            for n in 0..6 {
                let uid = format!("u{n}");
                let known = model.pods.iter().find(|known| *known.pod.uid == *uid);
                prop_assert_eq!(cache.by_uid(&uid).map(|pod| &**pod), known.map(|known| &known.pod));
                let name = format!("p{n}");
                prop_assert_eq!(cache.by_name("shop", &name).map(|pod| &**pod), model.by_name(&name));
            }
            for (state, phase) in PHASES {
                let right = model.pods.iter().filter(|known| known.died.is_none() && known.pod.phase == phase);
                prop_assert_eq!(count(&cache, state), right.count(), "{}", state);
            }
            let dead = model.pods.iter().filter(|known| known.died.is_some()).count();
            prop_assert_eq!(count(&cache, "deleted"), dead);
            prop_assert_eq!(cache.snapshot().len(), model.pods.len() - dead);
            let bytes: usize = model.pods.iter().map(|known| pod_bytes(&known.pod)).sum();
            prop_assert_eq!(cache.bytes, bytes);
        }
    }
}

proptest! {
    /// A namespace is known while it is there, or while a pod of it may still have counts.
    #[test]
    fn namespaces_as_plainly_as_can_be(steps in prop::collection::vec((0..5_u8, 0..3_u8, 0..3_u8), 0..40)) {
        let mut cache = PodCache::new(CacheLimits { tombstone_ttl_ns: 5, ..CacheLimits::default() });
        let mut there: HashMap<String, String> = HashMap::new();
        let mut left: HashMap<String, String> = HashMap::new();
        let mut pods: HashMap<String, Option<u64>> = HashMap::new();
        for (now, (step, name, other)) in (0..).zip(steps) {
            let (name, tier) = (format!("n{name}"), format!("t{other}"));
            let uid: Arc<str> = format!("u-{name}").into();
            match step {
                0 => {
                    there.insert(name.clone(), tier.clone());
                    cache.apply(PodEvent::NamespaceApplied(namespace(&name, &tier)), now);
                }
                1 => {
                    left.extend(there.remove_entry(&name));
                    cache.apply(PodEvent::NamespaceDeleted { name: name.as_str().into() }, now);
                }
                2 => {
                    left.extend(there.drain());
                    there.insert(name.clone(), tier.clone());
                    cache.apply(PodEvent::Namespaces(vec![namespace(&name, &tier)]), now);
                }
                3 => {
                    pods.insert(name.clone(), None);
                    let mut new = pod(&uid, "p", &now.to_string(), &[]);
                    new.namespace = name.as_str().into();
                    cache.apply(Applied(new), now);
                }
                _ => {
                    if let Some(died @ None) = pods.get_mut(&name) {
                        *died = Some(now);
                    }
                    cache.apply(PodEvent::Deleted { uid }, now);
                }
            }
            pods.retain(|_, died| died.is_none_or(|died| now - died < 5));
            left.retain(|name, _| pods.contains_key(name) && !there.contains_key(name));
            cache.expire(now);
            for name in ["n0", "n1", "n2"] {
                let right = there.get(name).or_else(|| left.get(name));
                prop_assert_eq!(cache.namespace(name).map(|known| &*known.labels[0].1), right.map(|tier| &**tier));
            }
        }
    }
}

type Answers = (Vec<Option<Arc<Pod>>>, Vec<usize>, bool);

fn answers(cache: &PodCache) -> Answers {
    let pods = (0..8)
        .map(|n| cache.by_container(&id(n)).map(|(pod, _)| pod.clone()))
        .chain((0..6).map(|n| cache.by_uid(&format!("u{n}")).cloned()))
        .chain((0..6).map(|n| cache.by_name("shop", &format!("p{n}")).cloned()))
        .collect();
    (pods, cache.counts().map(|(_, count)| count).collect(), cache.is_complete())
}
