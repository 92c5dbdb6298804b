//! In: objects as tests put them; out: lists by pages and the history of changes, with opaque versions. Knows no HTTP.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{Known, Resource};

/// A pod as a test describes it.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Its phase.
    pub phase: String,
    /// Names and ids of its containers.
    pub containers: Vec<(String, String)>,
    /// Names and ids of its init containers.
    pub init_containers: Vec<(String, String)>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl PodSpec {
    /// A running pod without containers.
    pub fn new(node: &str, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            node: node.into(),
            phase: "Running".into(),
            ..Self::default()
        }
    }

    /// With one container more.
    #[must_use]
    pub fn container(mut self, name: &str, id: &str) -> Self {
        self.containers.push((name.into(), id.into()));
        self
    }

    /// With one init container more.
    #[must_use]
    pub fn init_container(mut self, name: &str, id: &str) -> Self {
        self.init_containers.push((name.into(), id.into()));
        self
    }

    /// With one label more.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With one annotation more.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// A static pod: annotated as the kubelet annotates its mirror.
    #[must_use]
    pub fn mirror_of(self, hash: &str) -> Self {
        self.annotation("kubernetes.io/config.hash", hash).annotation("kubernetes.io/config.mirror", hash)
    }

    /// The object, with what else a real one carries.
    pub(super) fn json(&self) -> Value {
        let statuses = |containers: &[(String, String)]| -> Vec<Value> {
            containers
                .iter()
                .map(|(name, id)| {
                    json!({
                        "name": name, "containerID": format!("containerd://{id}"), "ready": true, "restartCount": 0,
                        "image": format!("registry.example/{name}:1"), "imageID": format!("sha256:{id}"),
                        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {},
                    })
                })
                .collect()
        };
        let containers: Vec<Value> = self
            .containers
            .iter()
            .map(|(name, _)| {
                json!({
                    "name": name, "image": format!("registry.example/{name}:1"), "imagePullPolicy": "Always",
                    "env": [{"name": "A_SECRET_OF_THE_POD", "value": "must-never-be-seen"}],
                    "resources": {"limits": {"cpu": "1", "memory": "128Mi"}},
                    "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}],
                })
            })
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace, "uid": self.uid,
                "labels": self.labels, "annotations": self.annotations,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:phase": {}, "f:podIP": {}}}}],
            },
            "spec": {"nodeName": self.node, "containers": containers, "restartPolicy": "Always"},
            "status": {"phase": self.phase, "podIP": "10.0.0.1", "containerStatuses": statuses(&self.containers),
                       "initContainerStatuses": statuses(&self.init_containers)},
        })
    }
}

pub(super) fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": format!("uid-of-{name}"), "labels": labels},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

/// A line of the history.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub number: u64,
    resource: Resource,
    node: Option<String>,
    pub key: String,
    pub line: String,
}

/// Why a list or a watch cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// A page of a list.
pub(super) struct Page {
    pub items: Vec<Value>,
    pub version: String,
    pub next: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    objects: HashMap<Resource, BTreeMap<String, Value>>,
    history: Vec<Change>,
    numbers: HashMap<String, u64>,
    number: u64,
    oldest: u64,
    /// What is left of lists by pages.
    pages: HashMap<String, (Vec<Value>, String)>,
}

/// A version that tells nothing by its looks.
fn opaque(number: u64) -> String {
    format!("v{:08x}", (number as u32).wrapping_mul(2_654_435_761))
}

fn node_of(object: &Value) -> Option<String> {
    object["spec"]["nodeName"].as_str().map(str::to_owned)
}

impl Store {
    fn next_version(&mut self) -> (u64, String) {
        self.number += 1;
        let version = opaque(self.number);
        self.numbers.insert(version.clone(), self.number);
        (self.number, version)
    }

    pub fn latest(&mut self) -> String {
        if self.number == 0 { self.next_version().1 } else { opaque(self.number) }
    }

    pub fn put(&mut self, resource: Resource, key: &str, mut object: Value) {
        let (number, version) = self.next_version();
        object["metadata"]["resourceVersion"] = version.into();
        let node = node_of(&object);
        let kind = match self.objects.entry(resource).or_default().insert(key.to_owned(), object.clone()) {
            None => "ADDED",
            Some(_) => "MODIFIED",
        };
        let line = json!({"type": kind, "object": object}).to_string();
        self.history.push(Change { number, resource, node, key: key.to_owned(), line });
    }

    pub fn delete(&mut self, resource: Resource, key: &str) {
        let Some(mut object) = self.objects.entry(resource).or_default().remove(key) else { return };
        let (number, version) = self.next_version();
        object["metadata"]["resourceVersion"] = version.into();
        let node = node_of(&object);
        let line = json!({"type": "DELETED", "object": object}).to_string();
        self.history.push(Change { number, resource, node, key: key.to_owned(), line });
    }

    pub fn inject(&mut self, resource: Resource, line: &str) {
        let (number, _) = self.next_version();
        self.history.push(Change { number, resource, node: None, key: String::new(), line: line.to_owned() });
    }

    pub fn forget(&mut self) {
        self.oldest = self.number;
        self.history.clear();
    }

    pub fn compact(&mut self) {
        // The present version is one that nobody has seen: whoever stands anywhere else is behind.
        self.next_version();
        self.oldest = self.number;
        self.history.clear();
        self.pages.clear();
    }

    /// A list, or its next page.
    pub fn list(
        &mut self,
        resource: Resource,
        node: Option<&str>,
        limit: Option<usize>,
        next: Option<&str>,
    ) -> Result<Page, Gone> {
        let (mut items, version) = if let Some(token) = next {
            self.pages.remove(token).ok_or(Gone)?
        } else {
            let version = self.latest();
            let all = self.objects.entry(resource).or_default().values();
            (all.filter(|o| node.is_none() || node_of(o).as_deref() == node).cloned().collect(), version)
        };
        let mut next = None;
        if let Some(limit) = limit.filter(|limit| *limit < items.len()) {
            let rest = items.split_off(limit);
            let token = format!("{version}/{}", rest.len());
            self.pages.insert(token.clone(), (rest, version.clone()));
            next = Some(token);
        }
        Ok(Page { items, version, next })
    }

    /// Where a watch begins.
    pub fn position(&self, version: &str) -> Result<u64, Gone> {
        self.numbers.get(version).copied().filter(|number| *number >= self.oldest).ok_or(Gone)
    }

    /// What happened after a position.
    pub fn since(&self, resource: Resource, node: Option<&str>, position: u64) -> Result<Vec<Change>, Gone> {
        if position < self.oldest {
            return Err(Gone);
        }
        let first = self.history.partition_point(|change| change.number <= position);
        Ok(self.history[first..]
            .iter()
            .filter(|change| change.resource == resource)
            .filter(|change| node.is_none() || change.node.is_none() || change.node.as_deref() == node)
            .cloned()
            .collect())
    }

    /// The number of the latest change, and its version.
    pub fn now(&mut self) -> (u64, String) {
        let version = self.latest();
        (self.number, version)
    }

    pub fn pods(&self, node: &str) -> BTreeMap<String, Known> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = self.objects.get(&Resource::Pods).into_iter().flatten();
        pods.filter(|(_, object)| node_of(object).as_deref() == Some(node))
            .map(|(uid, object)| {
                let meta = &object["metadata"];
                let statuses = object["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
                let mut containers: Vec<String> = statuses
                    .iter()
                    .map(|status| text(&status["containerID"]).trim_start_matches("containerd://").to_owned())
                    .collect();
                containers.sort();
                let known = Known {
                    namespace: text(&meta["namespace"]),
                    name: text(&meta["name"]),
                    version: text(&meta["resourceVersion"]),
                    containers,
                };
                (uid.clone(), known)
            })
            .collect()
    }
}
