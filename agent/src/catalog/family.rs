//! What a metric family is: name, help, unit, kind, labels. Knows no values and no output format.

/// Labels every workload sample carries, in this order, before the family's own.
pub const WORKLOAD_LABELS: [&str; 4] = ["tenant_id", "k8s_namespace", "pod", "container"];

/// How finely a family tells workloads apart. Each level carries the labels of the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// `tenant_id`; `k8s_namespace` is there but empty, for all of a tenant's namespaces together.
    Tenant,
    /// Also the Kubernetes namespace; the same as [`Tenant`](Self::Tenant) outside Kubernetes.
    Namespace,
    /// Also `pod`: the Kubernetes pod, or the systemd unit.
    Pod,
    /// Also `container`.
    Container,
}

/// The kind of a family, as in the `TYPE` line of `OpenMetrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the agent lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound; see [`LE`].
    Histogram,
}

/// How a stored integer becomes the exposed number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As it is.
    One,
    /// Stored in nanoseconds, exposed in seconds with nine decimals at most, exactly.
    NanosToSeconds,
}

/// A metric family, declared once by the probe that fills it.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Name without the `_total` of counters.
    pub name: &'static str,
    /// One sentence; may hold any character (escaped at the sink).
    pub help: &'static str,
    /// `OpenMetrics` unit; the name ends with it.
    pub unit: Option<&'static str>,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// How stored integers are exposed; for histograms, of the sum.
    pub scale: Scale,
    /// The family's own labels, after the workload labels.
    pub labels: &'static [&'static str],
}

/// Classic upper bounds: the exponent of two, in seconds, of each finite `le`. Every second octave of the kernel's
/// native-histogram buckets, so each classic bucket is an exact sum of them.
pub const LE: [i32; 13] = [-20, -18, -16, -14, -12, -10, -8, -6, -4, -2, 0, 2, 4];

/// Values a histogram series takes in [`Snapshot::values`](crate::registry::Snapshot): one non-cumulative count per `le`, one for
/// `+Inf`, and the sum.
pub const HISTOGRAM_VALUES: usize = LE.len() + 2;

impl Family {
    /// A counter of events without labels of its own.
    pub const fn counter(name: &'static str, help: &'static str) -> Family {
        Family { name, help, unit: None, kind: Kind::Counter, scale: Scale::One, labels: &[] }
    }

    /// A gauge without labels of its own.
    pub const fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { kind: Kind::Gauge, ..Family::counter(name, help) }
    }

    /// A counter of time.
    pub const fn seconds(name: &'static str, help: &'static str) -> Family {
        Family { unit: Some("seconds"), scale: Scale::NanosToSeconds, ..Family::counter(name, help) }
    }

    /// A histogram of durations.
    pub const fn durations(name: &'static str, help: &'static str) -> Family {
        Family { kind: Kind::Histogram, ..Family::seconds(name, help) }
    }

    /// The same with labels of its own.
    #[must_use]
    pub const fn by(self, labels: &'static [&'static str]) -> Family {
        Family { labels, ..self }
    }
}
