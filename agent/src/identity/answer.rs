//! In: nothing; out: what an answer to "whose is this cgroup?" is, and how sure it is. Asks nobody.

use super::Workload;

/// How much of an answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// A pod's cgroup, and nobody knows the pod yet.
    PodUnknown,
    /// The pod is known, the container's name is not; a pause container never has one.
    ContainerUnnamed,
    /// Nothing more is to come.
    Settled,
}

/// Whose a cgroup is, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The workload; what stands for it if nothing more is learnt in time.
    pub workload: Workload,
    /// How much is known.
    pub certainty: Certainty,
    /// Why tenant rules that matched were refused.
    pub refusals: Vec<&'static str>,
}

/// Whose a cgroup path is. Pure: what is known is fixed while a batch is attributed.
pub trait Identify {
    /// The workload of a cgroup path.
    fn identify(&self, path: &[u8]) -> Identity;

    /// Another number whenever another answer than before may be given.
    fn generation(&self) -> u64;
}
