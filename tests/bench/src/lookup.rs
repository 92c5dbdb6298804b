//! In: the pods of a node, far more than a node has; out: what it takes to list them, and to find one by container, UID and
//! name. Starts no agent.

use std::hint::black_box;
use std::time::Instant;

use kernmeter::identity::PodCache;
use kernmeter::identity::pods::{Container, Phase, Pod, PodEvent};

use crate::spread::Spread;

const PODS: u32 = 5000;
/// The order in which keys are asked for: one that no cache of the processor foresees.
const STEP: u32 = 7919;
/// Keys in a round: short enough that most rounds are not interrupted.
const ROUND: usize = 250;

/// Digits as mixed as those of real container ids.
fn id(n: u32) -> String {
    let mixed = |by: u64| (u64::from(n) + 1).wrapping_mul(by).rotate_left(n % 64);
    let parts = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    parts.map(|by| format!("{:016x}", mixed(by))).concat()
}

fn pod(n: u32) -> Pod {
    let container = |name: &str, n: u32| Container { id: id(n).into(), name: name.into() };
    Pod {
        uid: format!("0f859f0d-7d3f-4e6a-9cf2-{n:012x}").into(),
        namespace: format!("team-{}", n % 50).into(),
        name: format!("deployment-5d4f8c7b9d-{n:05}").into(),
        resource_version: (1_000_000 + n).to_string().into(),
        config_hash: None,
        labels: [("app.kubernetes.io/name".into(), format!("app-{}", n % 100).into())].into(),
        annotations: Box::default(),
        phase: Phase::Running,
        containers: [container("main", 2 * n), container("sidecar", 2 * n + 1)].into(),
    }
}

/// Prints milliseconds per list and nanoseconds per look-up.
pub fn run() {
    println!("\nthe pods of a node, {PODS} of them, two containers each");
    let mut cache = PodCache::default();
    for title in ["first list", "the same list again"] {
        let all: Vec<PodEvent> = (0..PODS).map(|n| PodEvent::Listed(pod(n))).collect();
        let begin = Instant::now();
        cache.apply(PodEvent::ListBegins, 0);
        for event in all {
            cache.apply(event, 0);
        }
        cache.apply(PodEvent::ListComplete, 0);
        println!("  {title:<20} {:.2} ms", begin.elapsed().as_secs_f64() * 1e3);
    }
    println!("  {:<20} {}", "bytes a pod", cache.memory_bytes() / PODS as usize);
    // One text with all ids: whoever asks has just read the id from a path.
    let text: String = (0..2 * PODS).map(|n| id(n * STEP % (2 * PODS))).collect();
    let ids: Vec<&str> = (0..2 * PODS as usize).map(|n| &text[64 * n..64 * (n + 1)]).collect();
    let pods: Vec<Pod> = (0..PODS).map(|n| pod(n * STEP % PODS)).collect();
    time("by container id, ns", &ids, |id| cache.by_container(id).is_some());
    time("by UID, ns", &pods, |pod| cache.by_uid(&pod.uid).is_some());
    time("by name, ns", &pods, |pod| cache.by_name(&pod.namespace, &pod.name).is_some());
}

/// Looks up all keys, twenty times.
fn time<K>(what: &str, keys: &[K], find: impl Fn(&K) -> bool) {
    let mut rounds: Vec<f64> = Vec::new();
    for _ in 0..20 {
        for keys in keys.chunks(ROUND) {
            let begin = Instant::now();
            assert!(keys.iter().all(|key| black_box(find(key))), "a listed pod is found");
            rounds.push(begin.elapsed().as_nanos() as f64 / keys.len() as f64);
        }
    }
    println!("  {what:<20} {}", Spread::of(rounds));
}
