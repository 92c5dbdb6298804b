//! In: events about pods, in their source's order; out: the pod and container behind a cgroup. Knows no API and no counts.

pub mod cache;
mod claims;
mod facts;
mod memory;
pub mod record;

pub use cache::{CacheLimits, PodCache};
pub use facts::PodFacts;
pub use record::{Container, Namespace, Phase, Pod, PodEvent, Wanted};
