//! In: events about pods, in their source's order; out: the pod and container behind a cgroup. Knows no API and no counts.

pub mod record;

pub use record::{Container, Event, Namespace, Phase, Pod, Wanted};
