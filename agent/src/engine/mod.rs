//! Wires kernel, drain, identity, attribution and registry: configuration in, snapshots and balances out. Serves nothing.

mod probes;
mod start;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use kernmeter_abi::Loss;
pub use probes::{ProbeState, probe_state};
pub use start::StartError;

use crate::attribute::{Attribution, Balance};
use crate::audit::{Audit, Comparison, Reading, cpu_stat};
use crate::config::Config;
use crate::drain::{Additions, Batch, Drain, SlotCounts};
use crate::host::{has_tickless_cpus, possible_cpus};
use crate::identity::path::printable;
use crate::identity::pods::{PodCache, PodEvent, Wanted};
use crate::identity::tree::{Hierarchy, MOST_CGROUPS};
use crate::identity::{Identifier, PodKnowledge};
use crate::kernel::Kernel;
use crate::kernel::maps::MapAccessError;
use crate::lifecycle::{monotonic_ns, release_free_memory};
use crate::registry::{Registry, Snapshot};

/// How often the cgroup tree is compared with the slots.
const RECONCILE: Duration = Duration::from_mins(1);
/// The same while cgroups wait for a slot.
const RECONCILE_WAITING: Duration = Duration::from_secs(5);
/// A comparison takes at most one part in so many of the time, however many cgroups there are.
const RECONCILE_SHARE: u32 = 200;
/// Series that ended since free memory was last given back to the kernel, from which on it is worth it: about 1 MiB.
const WORTH_RELEASING: usize = 1000;
/// After detaching, programs that were running finish; totals that no longer move for this long are final.
const SETTLE: Duration = Duration::from_millis(5);
/// Looks at unmoving totals at most.
const SETTLE_LOOKS: u32 = 40;

/// How long the end waits for programs that counted an event in a total and not yet in a row.
const HELD_UP: Duration = Duration::from_millis(500);

/// What a pass tells besides counts.
#[derive(Debug)]
pub struct PassReport {
    /// Every conserved quantity.
    pub balances: Vec<Balance>,
    /// How far CPU time is from the kernel's own account of the cgroups, relative; `None` if it was not compared recently.
    pub cpu_by_cgroup: Option<f64>,
    /// How long the pass took.
    pub took: Duration,
}

impl PassReport {
    /// How far each conserved quantity is from the kernel's own count, relative; time by its name without `_ns`.
    pub fn error_ratios(&self, cpus: u32) -> impl Iterator<Item = (&'static str, f64)> {
        let quantity = |balance: &Balance| balance.event.trim_end_matches("_ns");
        self.balances
            .iter()
            .map(move |balance| (quantity(balance), balance.error_ratio(u64::from(cpus))))
            .chain(self.cpu_by_cgroup.map(|ratio| ("cpu_by_cgroup", ratio)))
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
    reconcile_took: Duration,
    /// Every cgroup that should have a slot had one when the tree was last looked at.
    all_served: bool,
    slots_refused: [u64; 2],
    looked_up_ns: u64,
    /// Slots whose cgroup the last comparison did not find, with its id.
    missing: HashSet<(u32, u64)>,
    /// Series that ended since free memory was last given back.
    ended: usize,
}

impl Engine {
    /// Loads and attaches everything the kernel accepts, gives each existing cgroup a slot, and reads the rows once.
    ///
    /// # Errors
    /// Nothing can be metered, or a required probe cannot attach. Nothing stays behind in the kernel.
    pub fn start(config: &Config, knowledge: PodKnowledge) -> Result<Engine, StartError> {
        let (rules, users) = start::read_rules(config)?;
        let identifier = Identifier::new(rules, users, knowledge);
        let hierarchy = Hierarchy::find()?;
        let constants = start::constants()?;
        let plan = start::plan(config, &constants)?;
        let mut kernel =
            Kernel::load(plan, &constants, config.kernel.attach, &probes::chosen(&config.kernel))?;
        // Before the rows are mapped: on a small host both at once would be too much.
        release_free_memory();
        let mut drain = Drain::open(&mut kernel, ROOT_CGROUP, config.kernel.read)?;
        let mut registry = start::registry(config);
        let attribution = Attribution::new(plan.slots, start::patience(config), &mut registry, &identifier);
        start::attach(&mut kernel, &mut drain, &hierarchy)?;
        probes::check(kernel.hooks(), &config.kernel.required_probes)?;
        let mut engine = Engine {
            kernel,
            drain,
            batch: Batch::default(),
            registry,
            attribution,
            audit: Audit::new(plan.slots, possible_cpus(), has_tickless_cpus()),
            identifier,
            hierarchy,
            reconciled_ns: monotonic_ns(),
            reconcile_took: Duration::ZERO,
            all_served: true,
            slots_refused: [0; 2],
            looked_up_ns: 0,
            missing: HashSet::new(),
            ended: 0,
        };
        engine.pass()?;
        Ok(engine)
    }

    /// Drains the kernel, attributes what came, and looks after cgroups whose name or end was missed.
    ///
    /// # Errors
    /// The kernel refused access to a map; the next pass sees the same counts.
    pub fn pass(&mut self) -> Result<PassReport, MapAccessError> {
        let begun = monotonic_ns();
        self.drain.pass(&mut self.kernel, begun, &mut self.batch)?;
        self.attribution.apply(&self.batch, &mut self.registry, &self.identifier);
        self.audit();
        self.look_up_names(begun);
        self.attribution.resolve(begun, &mut self.registry, &self.identifier);
        self.ended += self.registry.expire(begun);
        self.identifier.expire(begun);
        let pause = if self.all_served { RECONCILE } else { RECONCILE_WAITING };
        let pause = pause.max(self.reconcile_took * RECONCILE_SHARE);
        if begun.saturating_sub(self.reconciled_ns) >= pause.as_nanos() as u64 {
            self.reconciled_ns = begun;
            // What ended long ago is in no snapshot any more.
            if self.ended >= WORTH_RELEASING {
                self.ended = 0;
                release_free_memory();
            }
            self.reconcile()?;
            self.reconcile_took = Duration::from_nanos(monotonic_ns() - begun);
        }
        // Looked at again by the next comparison.
        let refused = [Loss::SlotExhausted, Loss::SlotQuota].map(|loss| self.batch.losses[loss as usize]);
        self.all_served &= refused == self.slots_refused;
        self.slots_refused = refused;
        let ended = monotonic_ns();
        self.drain.note_pass(ended, ended - begun);
        Ok(PassReport {
            balances: self.attribution.balance(&self.batch, &self.registry),
            cpu_by_cgroup: self.audit.error_ratio(begun),
            took: Duration::from_nanos(ended - begun),
        })
    }

    /// Makes room where little is left; says whether slots may run out before the next pass is due.
    pub fn look(&mut self) -> bool {
        if let Err(error) = self.drain.grow(&mut self.kernel) {
            tracing::warn!(%error, "no more rows can be made: what finds none is counted without detail, or more slowly");
        }
        self.drain.is_pressed(monotonic_ns()).unwrap_or(false)
    }

    /// Detaches every program, waits until the last has finished, and reads what is left: the totals are final and equal.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn finish(&mut self) -> Result<PassReport, MapAccessError> {
        // The last moments of running tasks are accounted while switches still are.
        self.pass()?;
        self.audit.close();
        self.kernel.detach();
        let mut last = self.drain.totals(&self.kernel, 0)?;
        let mut quiet = 0;
        for _ in 0..SETTLE_LOOKS {
            std::thread::sleep(SETTLE);
            let now = self.drain.totals(&self.kernel, 0)?;
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
            if quiet == 2 {
                break;
            }
        }
        let mut report = self.pass()?;
        // A program that was preempted between a total and a row finishes when its task runs again.
        let begun = Instant::now();
        while begun.elapsed() < HELD_UP && report.balances.iter().any(|balance| balance.error_ratio(0) > 0.0)
        {
            std::thread::sleep(SETTLE);
            report = self.pass()?;
        }
        // Nothing more will be learnt.
        self.attribution.resolve(u64::MAX, &mut self.registry, &self.identifier);
        Ok(PassReport { balances: self.attribution.balance(&self.batch, &self.registry), ..report })
    }

    /// Applies new rules and user names to what is counted from now on. Counts made until now are attributed by the old.
    ///
    /// # Errors
    /// A rule that makes no sense, or the kernel refused access to a map. The old rules stay.
    pub fn reload(&mut self, config: &Config) -> Result<(), StartError> {
        let (rules, users) = start::read_rules(config)?;
        self.pass()?;
        self.identifier.reload(rules, users);
        self.attribution.resolve(monotonic_ns(), &mut self.registry, &self.identifier);
        Ok(())
    }

    /// Takes in what was told of pods; what it means for counts shows at the next pass.
    pub fn learn_pods(&mut self, events: impl IntoIterator<Item = PodEvent>) {
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

    /// Private rows in use: (of syscalls, of slots).
    pub fn private_rows(&self) -> (u32, u32) {
        self.drain.private_rows()
    }

    /// Events that were counted, by the kind of row they were added to.
    pub fn additions(&self) -> Additions {
        self.drain.additions()
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
                    "a cgroup's CPU time differs from cpu.stat"
                );
            } else {
                tracing::debug!(cgroup, ?cpu_stat, ?metered, "a cgroup's CPU time agrees with cpu.stat");
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

    /// Gives slots to cgroups that found none, and ends slots whose cgroup's removal went unseen: gone in two looks in a row.
    fn reconcile(&mut self) -> Result<(), MapAccessError> {
        let Ok(walk) = self.hierarchy.walk(MOST_CGROUPS) else { return Ok(()) };
        self.all_served = start::adopt(&walk, &self.kernel, &mut self.drain)?;
        if walk.truncated {
            return Ok(());
        }
        let alive: HashSet<u64> = walk.entries.iter().map(|entry| entry.id).collect();
        let missing: HashSet<(u32, u64)> =
            self.attribution.cgroups().filter(|(_, cgroup)| !alive.contains(cgroup)).collect();
        for &(slot, id) in missing.intersection(&self.missing) {
            let path = self.attribution.path(slot);
            // The walk passes over what it may not read: whose it is may close it.
            let is_gone = path.map_or(walk.skipped == 0, |path| self.hierarchy.is_gone(path, id));
            if is_gone {
                self.drain.mark_dead(slot)?;
            }
        }
        self.missing = missing;
        Ok(())
    }
}

/// The root of the hierarchy (its kernfs node is the first).
const ROOT_CGROUP: u64 = 1;
