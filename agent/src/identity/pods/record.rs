//! In: what any source of pods tells, already bounded; out: the few facts about a pod that metering needs. Knows no API.

use std::sync::Arc;

/// A label or annotation: key and value.
pub type Pair = (Arc<str>, Arc<str>);

/// A pod, as far as metering cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The object's UID; a pod created anew under the same name has another.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Opaque: compared for equality only. Empty from sources that have none.
    pub resource_version: Arc<str>,
    /// Of a static pod: the hash of its configuration, which names its cgroup instead of the UID.
    pub config_hash: Option<Arc<str>>,
    /// Labels whose keys [`Wanted`] lists.
    pub labels: Box<[Pair]>,
    /// Annotations whose keys [`Wanted`] lists.
    pub annotations: Box<[Pair]>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Every container whose id was told: init, sidecar, ephemeral, ordinary, and their last runs before a restart.
    pub containers: Box<[Container]>,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Full id: 64 lower-case hexadecimal digits, without the runtime's prefix.
    pub id: Box<str>,
    /// Its name in the pod.
    pub name: Arc<str>,
}

/// A pod's phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Accepted, not yet running.
    Pending,
    /// Bound to the node, at least one container running or restarting.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one of them in failure.
    Failed,
    /// Not told.
    #[default]
    Unknown,
}

/// A namespace's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Labels whose keys [`Wanted`] lists.
    pub labels: Box<[Pair]>,
    /// Annotations whose keys [`Wanted`] lists.
    pub annotations: Box<[Pair]>,
}

/// What a source tells, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// A list of all pods begins; what it does not name is gone when it is complete.
    ListBegins,
    /// One pod of that list.
    Listed(Pod),
    /// The list is complete.
    ListComplete,
    /// A pod was created or changed.
    Applied(Pod),
    /// A pod was deleted.
    Deleted {
        /// Its UID.
        uid: Arc<str>,
    },
    /// All namespaces, replacing what was known.
    Namespaces(Vec<Namespace>),
    /// A namespace was created or changed.
    NamespaceApplied(Namespace),
    /// A namespace was deleted.
    NamespaceDeleted {
        /// Its name.
        name: Arc<str>,
    },
}

/// Keys of labels and annotations that rules look at: no others are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of pods.
    pub pod_labels: Vec<String>,
    /// Of pods.
    pub pod_annotations: Vec<String>,
    /// Of namespaces.
    pub namespace_labels: Vec<String>,
    /// Of namespaces.
    pub namespace_annotations: Vec<String>,
}

impl Wanted {
    /// Whether any rule looks at namespaces' metadata: only then are they watched.
    pub fn namespaces(&self) -> bool {
        !self.namespace_labels.is_empty() || !self.namespace_annotations.is_empty()
    }
}
