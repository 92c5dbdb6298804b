//! In: what the pod cache holds; out: the memory it takes, estimated from sizes and lengths. Asks no allocator.

use std::collections::HashMap;

use super::record::Pair;
use super::{Namespace, Pod};

/// A block of the allocator: eight bytes of its own, in steps of sixteen.
pub(super) fn heap(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
}

/// Text behind a counted pointer.
fn text_bytes(text: &str) -> usize {
    heap(2 * size_of::<usize>() + text.len())
}

fn pairs_bytes(pairs: &[Pair]) -> usize {
    heap(size_of_val(pairs))
        + pairs.iter().map(|(key, value)| text_bytes(key) + text_bytes(value)).sum::<usize>()
}

pub(super) fn pod_bytes(pod: &Pod) -> usize {
    let containers: usize =
        pod.containers.iter().map(|container| heap(container.id.len()) + text_bytes(&container.name)).sum();
    heap(2 * size_of::<usize>() + size_of::<Pod>())
        + [&pod.uid, &pod.namespace, &pod.name, &pod.resource_version]
            .into_iter()
            .chain(&pod.config_hash)
            .map(|text| text_bytes(text))
            .sum::<usize>()
        + pairs_bytes(&pod.labels)
        + pairs_bytes(&pod.annotations)
        + heap(size_of_val::<[_]>(&pod.containers))
        + containers
}

pub(super) fn namespace_bytes(namespace: &Namespace) -> usize {
    text_bytes(&namespace.name) + pairs_bytes(&namespace.labels) + pairs_bytes(&namespace.annotations)
}

/// A hash table of seven eighths load and a byte of its own per place.
pub(super) fn map_bytes<K, V>(map: &HashMap<K, V>) -> usize {
    let places = if map.capacity() == 0 { 0 } else { (map.capacity() * 8 / 7).next_power_of_two() };
    heap(places * (size_of::<(K, V)>() + 1))
}
