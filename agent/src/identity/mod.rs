//! In: cgroup paths, the cgroup tree, pods, tenant rules; out: whose a cgroup is and the labels it carries. Knows no counts.
//!
//! [`path`], [`pods`], [`rules`], [`users`] and [`workload`] are pure; only [`tree`] reads the file system.

pub mod answer;
pub mod identifier;
pub mod path;
pub mod pods;
pub mod rules;
pub mod tree;
pub mod users;
pub mod workload;

pub use answer::{Certainty, Identify, Identity};
pub use identifier::{Identifier, PodKnowledge};
pub use path::{CgroupFacts, Kind, Qos, Runtime};
pub use pods::{PodCache, PodFacts};
pub use rules::{Rules, Verdict};
pub use users::Users;
pub use workload::{Workload, describe};

/// Reserved tenant: kernel threads, the root cgroup, the host's own services.
pub const HOST: &str = "_host";
/// Reserved tenant: what never got an identity.
pub const UNKNOWN: &str = "_unknown";
/// Reserved tenant: what found no slot or exceeded a limit.
pub const OVERFLOW: &str = "_overflow";

/// 64-bit FNV-1a: tells cut names apart in labels. The same in every release, and no defence against collisions.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
