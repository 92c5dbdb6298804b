//! Wires kernel, drain, identity, attribution and registry: configuration in, snapshots and balances out. Serves nothing.

mod identifier;

use std::collections::HashSet;
use std::time::Duration;

pub use identifier::{Identifier, PodKnowledge, Reloaded};

use crate::attribute::{Attribution, Balance, Patience};
use crate::audit::{Audit, Comparison, Reading, cpu_stat};
use crate::btf::{Btf, BtfError};
use crate::catalog;
use crate::config::{Auto, Config};
use crate::drain::{Batch, Drain, DrainError, SlotCounts};
use crate::host::{BTF_PATH, Lockdown, has_tickless_cpus, lockdown, possible_cpus, total_memory};
use crate::identity::path::printable;
use crate::identity::pods::{Event, PodCache, Wanted};
use crate::identity::rules::RuleError;
use crate::identity::tree::{Hierarchy, MOST_CGROUPS, TreeError, Walk};
use crate::kernel::size::{Plan, TooSmall, Wishes, budget_on};
use crate::kernel::{HookStatus, Kernel, LoadError, offsets};
use crate::lifecycle::{monotonic_ns, release_free_memory, unlimit_locked_memory};
use crate::registry::{Limits, Registry, Snapshot};

/// How long counts wait for their cgroup's path before they go to `_unknown`.
const PATH_PATIENCE: Duration = Duration::from_mins(1);
/// How long counts of a known pod wait for the container's name. A kubelet tells the API of a container's start within a
/// few seconds; pause containers never get a name.
const CONTAINER_PATIENCE: Duration = Duration::from_secs(15);
/// Slots given back whose counts wait: some 15 KiB each where a container used thirty system calls.
const MOST_ORPHANS: usize = 4096;
/// How often the cgroup tree is compared with the slots.
const RECONCILE: Duration = Duration::from_mins(1);
/// After detaching, programs that were running finish; totals that no longer move for this long are final.
const SETTLE: Duration = Duration::from_millis(5);
/// Looks at unmoving totals at most.
const SETTLE_LOOKS: u32 = 40;

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
    Drain(#[from] DrainError),
    /// Tenant rules do not compile.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// A probe the configuration requires is not attached.
    #[error(
        "required probe `{0}` cannot attach: {1}; remove it from `kernel.required_probes` or see `kernmeter doctor`"
    )]
    Required(String, String),
    /// Nothing attached at all.
    #[error("no probe could attach: {0}; see `kernmeter doctor`")]
    Blind(String),
}

/// What a pass tells besides counts.
#[derive(Debug)]
pub struct Report {
    /// Every conserved quantity.
    pub balances: Vec<Balance>,
    /// How far CPU time is from the kernel's own account of the cgroups, relative.
    pub cpu_by_cgroup: f64,
    /// How long the pass took.
    pub took: Duration,
}

impl Report {
    /// How far each conserved quantity is from the kernel's own count, relative; time by its name without `_ns`.
    pub fn error_ratios(&self, cpus: u32) -> impl Iterator<Item = (&'static str, f64)> {
        let quantity = |balance: &Balance| balance.event.trim_end_matches("_ns");
        self.balances
            .iter()
            .map(move |balance| (quantity(balance), balance.error_ratio(u64::from(cpus))))
            .chain([("cpu_by_cgroup", self.cpu_by_cgroup)])
    }
}

/// The metering side of the agent.
pub struct Engine {
    kernel: Kernel,
    drain: Drain,
    batch: Batch,
    registry: Registry,
    attribution: Attribution,
    audit: Audit,
    identifier: Identifier,
    hierarchy: Hierarchy,
    reconciled_ns: u64,
    looked_up_ns: u64,
    missing: HashSet<u32>,
}

impl Engine {
    /// Loads and attaches everything the kernel accepts, gives each existing cgroup a slot, and reads the rows once.
    ///
    /// # Errors
    /// Nothing can be metered, or a required probe cannot attach. Nothing stays behind in the kernel.
    pub fn start(config: &Config, knowledge: PodKnowledge) -> Result<Engine, StartError> {
        let identifier = Identifier::new(Reloaded::read(config)?, knowledge);
        let hierarchy = Hierarchy::find()?;
        let btf = Btf::parse(std::fs::read(BTF_PATH).map_err(StartError::NoBtf)?)?;
        let mut constants = offsets::resolve(&btf)?;
        drop(btf);
        if !constants.task_storage {
            if lockdown() == Lockdown::Confidentiality {
                return Err(StartError::NoTaskStorage);
            }
            unlimit_locked_memory();
        }
        // Under lockdown=confidentiality the kernel lets no program read memory by address: names are learnt from /sys.
        constants.values.push(("HAS_PROBE_READ", u32::from(lockdown() != Lockdown::Confidentiality)));
        let fixed = |auto: Auto| match auto {
            Auto::Auto => None,
            Auto::Fixed(n) => Some(n),
        };
        let plan = Plan::new(
            possible_cpus(),
            &Wishes {
                budget: budget_on(total_memory(), config.kernel.memory_budget),
                slots: fixed(config.kernel.slots),
                syscall_rows: fixed(config.kernel.syscall_rows),
                errno_rows: fixed(config.kernel.errno_rows),
                task_table: !constants.task_storage,
            },
        )?;
        let mut kernel = Kernel::load(plan, &constants, config.kernel.attach)?;
        // Before the rows are mapped: on a small host both at once would be too much.
        release_free_memory();
        let mut drain = Drain::open(&mut kernel, ROOT_CGROUP, config.kernel.read)?;
        let limits = Limits {
            series_per_tenant: config.limits.series_per_tenant as usize,
            tenants: config.limits.tenants as usize,
            retention_ns: config.limits.retention.as_nanos() as u64,
        };
        let mut registry = Registry::new(catalog::families(), |family| config.detail.of(family.name), limits);
        let patience = Patience {
            path_ns: PATH_PATIENCE.as_nanos() as u64,
            pod_ns: config.kubernetes.identity_timeout.as_nanos() as u64,
            container_ns: CONTAINER_PATIENCE.as_nanos() as u64,
            orphans: MOST_ORPHANS,
        };
        let attribution = Attribution::new(plan.slots, patience, &mut registry, &identifier);

        // From here on no cgroup is born without a slot; the walk then gives the older ones theirs, before any event is
        // counted.
        for probe in catalog::PROBES {
            if probe.name == catalog::cgroup::PROBE.name {
                kernel.attach(probe);
                adopt(&hierarchy.walk(MOST_CGROUPS)?, &mut drain)?;
            } else if probe.name == catalog::syscalls::PROBE.name {
                if let Err(reason) = kernel.adopt_tasks() {
                    tracing::info!(
                        reason,
                        "tasks older than the agent are met when they next return from a system call"
                    );
                }
                kernel.attach(probe);
            } else {
                kernel.attach(probe);
            }
        }
        check_probes(kernel.hooks(), &config.kernel.required_probes)?;
        let mut engine = Engine {
            kernel,
            drain,
            batch: Batch::default(),
            registry,
            attribution,
            audit: Audit::new(plan.slots, possible_cpus(), has_tickless_cpus()),
            identifier,
            hierarchy,
            reconciled_ns: 0,
            looked_up_ns: 0,
            missing: HashSet::new(),
        };
        engine.pass()?;
        Ok(engine)
    }

    /// Drains the kernel, attributes what came, and looks after cgroups whose name or end was missed.
    ///
    /// # Errors
    /// The kernel refused access to a map; the next pass sees the same counts.
    pub fn pass(&mut self) -> Result<Report, DrainError> {
        let begun = monotonic_ns();
        self.drain.pass(&mut self.kernel, begun, &mut self.batch)?;
        self.attribution.apply(&self.batch, &mut self.registry, &self.identifier);
        self.audit();
        self.look_up_names(begun);
        self.attribution.resolve(begun, &mut self.registry, &self.identifier);
        self.registry.expire(begun);
        self.identifier.expire(begun);
        if begun.saturating_sub(self.reconciled_ns) >= RECONCILE.as_nanos() as u64 {
            self.reconciled_ns = begun;
            self.reconcile()?;
        }
        Ok(Report {
            balances: self.attribution.balance(&self.batch, &self.registry),
            cpu_by_cgroup: self.audit.error_ratio(begun),
            took: Duration::from_nanos(monotonic_ns() - begun),
        })
    }

    /// Whether slots may run out before the next pass is due.
    pub fn is_pressed(&self) -> bool {
        self.drain.is_pressed().unwrap_or(false)
    }

    /// Detaches every program, waits until the last has finished, and reads what is left: the totals are final and equal.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn finish(&mut self) -> Result<Report, DrainError> {
        // The last moments of running tasks are accounted while switches still are.
        self.pass()?;
        self.audit.close();
        self.kernel.detach();
        let mut last = self.drain.totals()?;
        let mut quiet = 0;
        for _ in 0..SETTLE_LOOKS {
            std::thread::sleep(SETTLE);
            let now = self.drain.totals()?;
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
            if quiet == 2 {
                break;
            }
        }
        let report = self.pass()?;
        // Nothing more will be learnt.
        self.attribution.resolve(u64::MAX, &mut self.registry, &self.identifier);
        Ok(Report { balances: self.attribution.balance(&self.batch, &self.registry), ..report })
    }

    /// Applies new rules and user names to what is counted from now on. Counts made until now are attributed by the old.
    ///
    /// # Errors
    /// A rule that makes no sense, or the kernel refused access to a map. The old rules stay.
    pub fn reload(&mut self, config: &Config) -> Result<(), StartError> {
        let reloaded = Reloaded::read(config)?;
        self.pass()?;
        self.identifier.reload(reloaded);
        self.attribution.resolve(monotonic_ns(), &mut self.registry, &self.identifier);
        Ok(())
    }

    /// Takes in what was told of pods; what it means for counts shows at the next pass.
    pub fn learn_pods(&mut self, events: impl IntoIterator<Item = Event>) {
        let now_ns = monotonic_ns();
        for event in events {
            self.identifier.learn(event, now_ns);
        }
    }

    /// What is known of pods.
    pub fn pods(&self) -> &PodCache {
        self.identifier.pods()
    }

    /// Whether pods will be told of and no list of them is complete yet.
    pub fn knows_too_few_pods(&self) -> bool {
        self.identifier.awaits_pods()
    }

    /// What the rules want to know of pods.
    pub fn wanted(&self) -> Wanted {
        self.identifier.wanted()
    }

    /// An immutable copy of every series.
    pub fn publish(&mut self) -> Snapshot {
        self.registry.publish(self.batch.taken_ns)
    }

    /// The registry, for tables.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The last batch: totals and losses.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The kernel side.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel side, for taking over its log.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Slots by state.
    pub fn slot_counts(&self) -> SlotCounts {
        self.drain.slot_counts()
    }

    /// Times slots were given back to new owners.
    pub fn slot_generations(&self) -> u64 {
        self.drain.generations()
    }

    /// Rows in use: syscall rows, errno rows.
    pub fn rows_used(&self) -> (u32, u32) {
        self.drain.rows_used()
    }

    /// Slots and what became of them: waiting, refused, given up.
    pub fn attribution(&self) -> &Attribution {
        &self.attribution
    }

    /// What became of readings of the kernel's own account of CPU time.
    pub fn audited(&self) -> &Audit {
        &self.audit
    }

    /// Compares what the last pass metered with the kernel's own account of CPU time.
    fn audit(&mut self) {
        let (mount, attribution) = (&self.hierarchy.mount, &self.attribution);
        let comparisons = self.audit.pass(&self.batch, |slot, cgroup_id| {
            let usage_ns = cpu_stat::usage_ns(mount, attribution.path(slot)?, cgroup_id)?;
            Some(Reading { usage_ns, read_ns: monotonic_ns() })
        });
        for Comparison { slot, kernel_ns, metered_ns, ratio } in comparisons {
            let cgroup = printable(attribution.path(slot).unwrap_or_default());
            let (cpu_stat, metered) = (Duration::from_nanos(kernel_ns), Duration::from_nanos(metered_ns));
            if ratio > 0.0 {
                tracing::warn!(
                    cgroup,
                    ?cpu_stat,
                    ?metered,
                    ratio,
                    "CPU time of a cgroup is not the kernel's own account"
                );
            } else {
                tracing::debug!(
                    cgroup,
                    ?cpu_stat,
                    ?metered,
                    "CPU time of a cgroup agrees with the kernel's own account"
                );
            }
        }
    }

    /// Finds the paths of cgroups whose name the kernel side could not tell (its parent had no slot, say).
    fn look_up_names(&mut self, now_ns: u64) {
        let wanted: HashSet<u64> = self.attribution.pathless().into_iter().collect();
        if wanted.is_empty() || now_ns.saturating_sub(self.looked_up_ns) < 1_000_000_000 {
            return;
        }
        self.looked_up_ns = now_ns;
        let Ok(walk) = self.hierarchy.walk(MOST_CGROUPS) else { return };
        for entry in walk.entries.iter().filter(|entry| wanted.contains(&entry.id)) {
            self.attribution.learn(entry.id, &entry.path);
        }
    }

    /// Gives slots to cgroups that found none, and buries slots whose cgroup went unseen: gone in two looks in a row.
    fn reconcile(&mut self) -> Result<(), DrainError> {
        let Ok(walk) = self.hierarchy.walk(MOST_CGROUPS) else { return Ok(()) };
        adopt(&walk, &mut self.drain)?;
        if walk.truncated {
            return Ok(());
        }
        let alive: HashSet<u64> = walk.entries.iter().map(|entry| entry.id).collect();
        let missing: HashSet<u32> = self
            .attribution
            .cgroups()
            .filter(|(_, cgroup)| !alive.contains(cgroup))
            .map(|(slot, _)| slot)
            .collect();
        for slot in missing.intersection(&self.missing) {
            self.drain.bury(*slot)?;
        }
        self.missing = missing;
        Ok(())
    }
}

/// The root of the hierarchy (its kernfs node is the first).
const ROOT_CGROUP: u64 = 1;

fn adopt(walk: &Walk, drain: &mut Drain) -> Result<(), DrainError> {
    for entry in walk.entries.iter().filter(|entry| entry.id != ROOT_CGROUP) {
        drain.adopt(entry.id, entry.parent_id, &entry.name)?;
    }
    if walk.truncated {
        tracing::warn!(
            limit = MOST_CGROUPS,
            "more cgroups than are read at once: the rest is billed to the overflow slot"
        );
    }
    Ok(())
}

/// A probe counts as attached when each of its hooks that it cannot do without is.
pub fn probe_failure(hooks: &[HookStatus], probe: &str) -> Option<String> {
    hooks
        .iter()
        .find(|status| status.probe.name == probe && !status.hook.optional && !status.reason.is_empty())
        .map(|status| format!("`{}`: {}", status.program, status.reason))
}

/// What an attached probe may miss, and why.
pub fn probe_caveat(hooks: &[HookStatus], probe: &str) -> Option<String> {
    hooks
        .iter()
        .find(|status| status.probe.name == probe && status.reason.is_empty() && !status.caveat.is_empty())
        .map(|status| format!("`{}`: {}", status.program, status.caveat))
}

fn check_probes(hooks: &[HookStatus], required: &[String]) -> Result<(), StartError> {
    for probe in required {
        if let Some(reason) = probe_failure(hooks, probe) {
            return Err(StartError::Required(probe.clone(), reason));
        }
    }
    let failures: Vec<_> =
        catalog::PROBES.iter().filter_map(|probe| probe_failure(hooks, probe.name)).collect();
    if failures.len() == catalog::PROBES.len() {
        return Err(StartError::Blind(failures[0].clone()));
    }
    for status in hooks.iter().filter(|status| !status.reason.is_empty()) {
        tracing::warn!(
            probe = status.probe.name,
            hook = status.hook.program,
            reason = status.reason,
            "a hook could not attach: what it counts is missing"
        );
    }
    for status in hooks.iter().filter(|status| !status.caveat.is_empty() && status.reason.is_empty()) {
        tracing::warn!(
            probe = status.probe.name,
            hook = status.program,
            reason = status.caveat,
            "a hook may miss events"
        );
    }
    Ok(())
}
