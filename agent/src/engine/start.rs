//! In: a configuration and this machine; out: each part of the engine as it is at the start. Runs nothing in a loop.

use std::time::Duration;

use crate::attribute::Patience;
use crate::btf::{Btf, BtfError};
use crate::catalog::{self, PROBES, Stage};
use crate::config::{Auto, Config};
use crate::drain::{Drain, Existing};
use crate::host::{BTF_PATH, Lockdown, lockdown, possible_cpus, total_memory};
use crate::identity::rules::RuleError;
use crate::identity::tree::{CgroupEntry, Hierarchy, MOST_CGROUPS, TreeError, Walk};
use crate::identity::{Rules, Users};
use crate::kernel::maps::MapAccessError;
use crate::kernel::offsets::{self, Constants};
use crate::kernel::size::{Plan, TooSmall, Wishes, budget_on};
use crate::kernel::{Kernel, LoadError};
use crate::lifecycle::unlimit_locked_memory;
use crate::registry::{Limits, Registry};

/// How long counts wait for their cgroup's path before they go to `_unknown`.
const PATH_PATIENCE: Duration = Duration::from_mins(1);
/// How long counts of a known pod wait for the container's name. A kubelet tells the API of a container's start within a
/// few seconds; pause containers never get a name.
const CONTAINER_PATIENCE: Duration = Duration::from_secs(15);
/// Slots given back whose counts wait: some 30 KiB each where a container used thirty system calls.
const MOST_ORPHANS: usize = 4096;

/// Why the agent cannot meter.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No cgroup hierarchy to tell workloads apart by.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// No type information.
    #[error(
        "cannot read `{BTF_PATH}`: {0}; kernmeter needs a kernel with CONFIG_DEBUG_INFO_BTF=y (most distributions have \
         it) and read access to /sys"
    )]
    NoBtf(std::io::Error),
    /// Unusable type information.
    #[error("{0}; this kernel is not supported: see `kernmeter doctor`")]
    Btf(#[from] BtfError),
    /// A kernel before 5.13 that is locked down.
    #[error(
        "this kernel keeps no state of tasks for tracing programs, and under lockdown=confidentiality they cannot read it \
         from memory; boot with lockdown=integrity, or upgrade to Linux 5.13 or newer"
    )]
    NoTaskStorage,
    /// The budget is too small.
    #[error(transparent)]
    Budget(#[from] TooSmall),
    /// Maps or programs were refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Maps cannot be used.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// Tenant rules do not compile.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// A probe the configuration requires is not attached.
    #[error(
        "required probe `{0}` cannot attach: {1}; remove it from `kernel.required_probes` or see `kernmeter doctor`"
    )]
    Required(&'static str, String),
    /// Nothing attached at all.
    #[error("no probe could attach: {0}; see `kernmeter doctor`")]
    Blind(String),
}

/// The tenant rules of a configuration, compiled, and the host's user names.
///
/// # Errors
/// A rule that makes no sense; a checked configuration has none.
pub(super) fn read_rules(config: &Config) -> Result<(Rules, Users), RuleError> {
    let users = Users::parse(&std::fs::read("/etc/passwd").unwrap_or_default());
    Ok((Rules::compile(&config.tenants)?, users))
}

/// The constants that the programs need on this kernel.
pub(super) fn constants() -> Result<Constants, StartError> {
    let btf = Btf::parse(std::fs::read(BTF_PATH).map_err(StartError::NoBtf)?)?;
    let mut constants = offsets::resolve(&btf)?;
    let confidential = lockdown() == Lockdown::Confidentiality;
    if !constants.task_storage {
        if confidential {
            return Err(StartError::NoTaskStorage);
        }
        unlimit_locked_memory();
    }
    // Under lockdown=confidentiality the kernel lets no program read memory by address: names are learnt from /sys.
    constants.values.push(("HAS_PROBE_READ", u32::from(!confidential)));
    Ok(constants)
}

/// How large the maps are on this machine.
pub(super) fn plan(config: &Config, constants: &Constants) -> Result<Plan, TooSmall> {
    let fixed = |auto: Auto| match auto {
        Auto::Auto => None,
        Auto::Fixed(n) => Some(n),
    };
    let wishes = Wishes {
        budget: budget_on(total_memory(), config.kernel.memory_budget),
        slots: fixed(config.kernel.slots),
        syscall_rows: fixed(config.kernel.syscall_rows),
        errno_rows: fixed(config.kernel.errno_rows),
        private_rows: fixed(config.kernel.private_rows),
        task_table: !constants.task_storage,
    };
    Plan::new(possible_cpus(), &wishes)
}

/// An empty registry.
pub(super) fn registry(config: &Config) -> Registry {
    let limits = Limits {
        series_per_tenant: config.limits.series_per_tenant as usize,
        tenants: config.limits.tenants as usize,
        retention_ns: config.limits.retention.as_nanos() as u64,
    };
    Registry::new(catalog::families(), |family| config.detail.of(family.name), limits)
}

/// How long counts wait for what is not known yet.
pub(super) fn patience(config: &Config) -> Patience {
    Patience {
        path_ns: PATH_PATIENCE.as_nanos() as u64,
        pod_ns: config.kubernetes.identity_timeout.as_nanos() as u64,
        container_ns: CONTAINER_PATIENCE.as_nanos() as u64,
        orphans: MOST_ORPHANS,
    }
}

/// Attaches the probes by stage, and sets up the cgroups and the tasks that exist in between: see [`Stage`].
pub(super) fn attach(
    kernel: &mut Kernel,
    drain: &mut Drain,
    hierarchy: &Hierarchy,
) -> Result<(), StartError> {
    let attach = |kernel: &mut Kernel, stage: Stage| {
        PROBES.iter().filter(|probe| probe.stage == stage).for_each(|probe| kernel.attach(probe));
    };
    attach(kernel, Stage::Cgroups);
    // Twice: a cgroup made while the first walk had not yet come to its parent is found by the second.
    for _ in 0..2 {
        let walk = hierarchy.walk(MOST_CGROUPS)?;
        // An account is given no more than is left for others.
        drain.make_room(kernel, 2 * walk.entries.len() as u32)?;
        adopt(&walk, kernel, drain)?;
    }
    attach(kernel, Stage::Tasks);
    if let Err(reason) = kernel.visit_tasks() {
        tracing::info!(%reason, "tasks older than the agent are met when they next return from a system call");
    }
    attach(kernel, Stage::Events);
    Ok(())
}

/// Gives cgroups that exist their slots. Returns whether there were enough.
pub(super) fn adopt(walk: &Walk, kernel: &Kernel, drain: &mut Drain) -> Result<bool, MapAccessError> {
    let mut all_served = true;
    for CgroupEntry { id, parent_id, name, is_roots, .. } in &walk.entries {
        if *id != super::ROOT_CGROUP {
            let cgroup = Existing { id: *id, parent_id: *parent_id, name, is_roots: *is_roots };
            all_served &= drain.adopt(kernel, &cgroup)?;
        }
    }
    if walk.truncated {
        tracing::warn!(
            limit = MOST_CGROUPS,
            "more cgroups than are read at once: the rest is billed to the overflow slot"
        );
    }
    Ok(all_served)
}
