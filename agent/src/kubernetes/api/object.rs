//! In: JSON of the Kubernetes API; out: the few facts of a pod or namespace that metering needs, bounded. Contacts nobody.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::identity::pods::{Container, Namespace, Phase, Pod, Wanted};

/// Longest name, as the API has it.
const NAME_BYTES: usize = 253;
/// Longest UID; those of the API have 36 bytes.
const UID_BYTES: usize = 128;
/// Longest version, which is opaque.
const VERSION_BYTES: usize = 128;
/// Longest value of a label or annotation; a longer one counts as absent, since a part of it might be another's whole.
const VALUE_BYTES: usize = 1024;
/// Most container ids of a pod.
const CONTAINERS: usize = 256;
/// Digits of a container's id.
const ID_DIGITS: usize = 64;
/// The kubelet's annotation of a static pod's configuration, and the one that makes a pod the mirror of one.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Digits of that hash.
const HASH_DIGITS: usize = 32;

/// The keys of labels and annotations that are kept, shared by all that carry them.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    pod_labels: Vec<Arc<str>>,
    pod_annotations: Vec<Arc<str>>,
    namespace_labels: Vec<Arc<str>>,
    namespace_annotations: Vec<Arc<str>>,
    /// Whether namespaces are looked at at all.
    pub namespaces: bool,
}

impl Keys {
    pub fn new(wanted: &Wanted) -> Self {
        let keys = |keys: &[String]| keys.iter().map(|key| Arc::from(key.as_str())).collect();
        Self {
            pod_labels: keys(&wanted.pod_labels),
            pod_annotations: keys(&wanted.pod_annotations),
            namespace_labels: keys(&wanted.namespace_labels),
            namespace_annotations: keys(&wanted.namespace_annotations),
            namespaces: wanted.namespaces(),
        }
    }
}

/// A page of a list; its objects are looked at one by one, so that a broken one spoils no other.
#[derive(Deserialize)]
pub(super) struct List<'a> {
    pub metadata: ListMetadata,
    #[serde(borrow)]
    pub items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
pub(super) struct ListMetadata {
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continues: Option<String>,
}

impl ListMetadata {
    /// The version of the whole list.
    pub fn version(self) -> Option<String> {
        self.resource_version.filter(|version| !version.is_empty() && version.len() <= VERSION_BYTES)
    }

    /// What to ask the next page with.
    pub fn next_page(&mut self) -> Option<String> {
        self.continues.take().filter(|token| !token.is_empty())
    }
}

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct WatchLine<'a> {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// A refusal, in a body or in a watch.
#[derive(Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub message: String,
    pub details: Option<StatusDetails>,
}

#[derive(Deserialize)]
pub(super) struct StatusDetails {
    #[serde(rename = "retryAfterSeconds")]
    pub retry_after_seconds: Option<u32>,
}

/// What every object has; enough to know how far a watch has come.
#[derive(Deserialize)]
struct Bare {
    metadata: BareMetadata,
}

#[derive(Deserialize)]
struct BareMetadata {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

/// The version of any object or bookmark.
pub(super) fn version(object: &RawValue) -> Option<String> {
    let bare: Bare = serde_json::from_str(object.get()).ok()?;
    let version = bare.metadata.resource_version;
    (!version.is_empty() && version.len() <= VERSION_BYTES).then_some(version)
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    labels: Option<HashMap<String, String>>,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct PodObject {
    metadata: Metadata,
    status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: Option<State>,
    last_state: Option<State>,
}

#[derive(Deserialize)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Deserialize)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

#[derive(Deserialize)]
struct NamespaceObject {
    metadata: Metadata,
    // A whole namespace where the server does not cut it down to metadata.
    #[serde(rename = "spec")]
    _spec: Option<IgnoredAny>,
}

/// A pod; `None` where the object is none, or lacks what identifies it.
pub(super) fn pod(object: &RawValue, keys: &Keys) -> Option<Pod> {
    let PodObject { metadata, status } = serde_json::from_str(object.get()).ok()?;
    let status = status.unwrap_or_default();
    let uid = metadata.uid.filter(|uid| sound(uid, UID_BYTES))?;
    let namespace = metadata.namespace.filter(|namespace| sound(namespace, NAME_BYTES))?;
    if !sound(&metadata.name, NAME_BYTES) {
        return None;
    }
    let annotations = metadata.annotations.unwrap_or_default();
    Some(Pod {
        uid: uid.into(),
        namespace: namespace.into(),
        name: metadata.name.into(),
        resource_version: metadata
            .resource_version
            .filter(|version| version.len() <= VERSION_BYTES)
            .unwrap_or_default()
            .into(),
        config_hash: config_hash(&annotations),
        labels: pairs(&metadata.labels.unwrap_or_default(), &keys.pod_labels),
        annotations: pairs(&annotations, &keys.pod_annotations),
        phase: match status.phase.as_deref() {
            Some("Pending") => Phase::Pending,
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Unknown,
        },
        containers: containers(&status),
    })
}

/// A namespace; `None` where the object is none.
pub(super) fn namespace(object: &RawValue, keys: &Keys) -> Option<Namespace> {
    let NamespaceObject { metadata, .. } = serde_json::from_str(object.get()).ok()?;
    sound(&metadata.name, NAME_BYTES).then(|| Namespace {
        name: metadata.name.as_str().into(),
        labels: pairs(&metadata.labels.unwrap_or_default(), &keys.namespace_labels),
        annotations: pairs(&metadata.annotations.unwrap_or_default(), &keys.namespace_annotations),
    })
}

fn sound(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
}

fn pairs(given: &HashMap<String, String>, keys: &[Arc<str>]) -> Box<[(Arc<str>, Arc<str>)]> {
    keys.iter()
        .filter_map(|key| Some((key, given.get(&**key)?)))
        .filter(|(_, value)| value.len() <= VALUE_BYTES)
        .map(|(key, value)| (Arc::clone(key), Arc::from(value.as_str())))
        .collect()
}

/// The hash that names the cgroup of a static pod. Both annotations must say the same, as the kubelet writes them: the
/// one alone is within reach of whoever may make pods, and would claim another's cgroup.
fn config_hash(annotations: &HashMap<String, String>) -> Option<Arc<str>> {
    let hash = annotations.get(CONFIG_HASH)?;
    let mirrors = annotations.get(CONFIG_MIRROR).is_some_and(|mirror| mirror == hash);
    (mirrors && is_hex(hash, HASH_DIGITS)).then(|| hash.as_str().into())
}

fn containers(status: &PodStatus) -> Box<[Container]> {
    let kinds =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let mut found: Vec<Container> = Vec::new();
    for status in kinds.into_iter().flatten().flatten() {
        if !sound(&status.name, NAME_BYTES) {
            continue;
        }
        let mut name: Option<Arc<str>> = None;
        let ended = |state: &Option<State>| {
            state.as_ref().and_then(|state| state.terminated.as_ref()?.container_id.clone())
        };
        // The run before a restart has an id of its own, whose last counts may still be on their way.
        for id in [status.container_id.clone(), ended(&status.state), ended(&status.last_state)] {
            let Some(id) = id.as_deref().and_then(container_id) else { continue };
            if found.len() < CONTAINERS && !found.iter().any(|known| &*known.id == id) {
                let name = name.get_or_insert_with(|| status.name.as_str().into());
                found.push(Container { id: id.into(), name: Arc::clone(name) });
            }
        }
    }
    found.into()
}

/// `containerd://<64 digits>` without the runtime's prefix.
fn container_id(text: &str) -> Option<&str> {
    let id = text.split_once("://").map_or(text, |(_, id)| id);
    is_hex(id, ID_DIGITS).then_some(id)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
