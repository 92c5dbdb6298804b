//! In: what passes metered per slot, what the kernel accounts to cgroups; out: how far the two are apart. Reads nothing itself
//! ([`cpu_stat`] does), changes no count.
//!
//! The balance compares counters of the agent with each other. This compares CPU time with an account that the agent has no
//! part in: `cpu.stat`, where the scheduler adds up what the tasks of each cgroup ran.

pub mod cpu_stat;

#[cfg(test)]
mod tests;

use std::mem::offset_of;

use kernmeter_abi::{SLOT_HOST, SLOT_OVERFLOW, SlotRow};

use crate::catalog::RowKind;
use crate::drain::{Batch, Birth, Subject};

/// Where CPU time is in a slot's row.
const CPU_CELL: usize = RowKind::Slot.cell_of(offset_of!(SlotRow, cpu_ns));

/// Cgroups below the root that are read at a time, and others: the price does not grow with the number of cgroups.
const TOP_AT_ONCE: usize = 16;
const OTHERS_AT_ONCE: usize = 16;
/// Passes closer together than this read nothing.
const PERIOD_NS: u64 = 1_000_000_000;
/// The scheduler adds to its accounts at switches and ticks: on a CPU, what was read last is at most a tick behind. Ticks
/// come every 10 ms or sooner; the other 10 ms are for late ones.
const TICK_NS: u64 = 20_000_000;
/// CPUs without ticks (`nohz_full`) are brought up to date once a second.
const REMOTE_TICK_NS: u64 = 1_100_000_000;
/// A reading that comes later than this after its pass is thrown away: too much can have run in between.
const LATEST_NS: u64 = 250_000_000;
/// The first comparison is made once this many times more CPU time than the tolerance has been used: it resolves 2 %.
const RESOLUTION: u64 = 50;
/// And no sooner than after so much CPU time.
const LEAST_NS: u64 = 1_000_000_000;
/// Later ones begin where the first did, until so many times more has been used: the last of them resolves 0.2 %.
const REFINEMENT: u64 = 10;
/// How often a difference of the same cgroup is told.
const TOLD_NS: u64 = 60_000_000_000;
/// How long the outcome of a comparison is shown if there is no newer one of the same cgroup.
const SHOWN_NS: u64 = 600_000_000_000;

/// What became of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was compared with what was metered.
    Compared,
    /// Too little CPU time was used for a comparison as yet.
    TooLittle,
    /// The first of this cgroup, or the kernel's count had fallen: later readings are compared with it.
    Baseline,
    /// It came too long after the pass.
    Late,
    /// There was none: the cgroup is gone, or its account makes no sense.
    Unreadable,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 5] =
        [Self::Compared, Self::TooLittle, Self::Baseline, Self::Late, Self::Unreadable];

    /// Value of the label `outcome`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::TooLittle => "too_little",
            Self::Baseline => "baseline",
            Self::Late => "late",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What a cgroup used by the kernel's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// CPU time of the cgroup and all below it since it was made, those that are gone included; nanoseconds.
    pub usage_ns: u64,
    /// `CLOCK_MONOTONIC` after it was read, nanoseconds.
    pub read_ns: u64,
}

/// A comparison of both accounts of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The cgroup's slot.
    pub slot: u32,
    /// CPU time by the kernel's account, nanoseconds.
    pub kernel_ns: u64,
    /// CPU time metered, nanoseconds.
    pub metered_ns: u64,
    /// How far they are apart beyond the tolerance, relative to the larger; 0 is right.
    pub ratio: f64,
}

/// Both accounts at one time.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names, reason = "all are durations, and units are in names")]
struct Point {
    usage_ns: u64,
    metered_ns: u64,
    unplaced_ns: u64,
    /// How long after the pass the kernel's was read.
    skew_ns: u64,
}

#[derive(Clone, Debug)]
struct Node {
    cgroup_id: u64,
    /// Slot and cgroup id of the parent; `None` if it has no slot of its own.
    parent: Option<(u32, u64)>,
    /// CPU time metered in the cgroup and below it since the agent knows it.
    metered_ns: u64,
    /// Where the next comparison begins.
    from: Option<Point>,
    /// Outcome of the last comparison, and when.
    ratio: Option<(f64, u64)>,
    /// The kernel's count as it was last read.
    read_ns: u64,
    /// When a difference was last told.
    told_ns: Option<u64>,
    /// Its cgroup can be read.
    is_alive: bool,
}

impl Node {
    fn new(cgroup_id: u64, parent: Option<(u32, u64)>, is_alive: bool) -> Node {
        Node {
            cgroup_id,
            parent,
            metered_ns: 0,
            from: None,
            ratio: None,
            read_ns: 0,
            told_ns: None,
            is_alive,
        }
    }
}

/// Compares CPU time with the kernel's own account, cgroup by cgroup.
#[derive(Debug)]
pub struct Audit {
    nodes: Vec<Option<Node>>,
    /// CPU time that was metered without it being known below which cgroups: no more than that may be missing there.
    unplaced_ns: u64,
    /// What both accounts may differ by at each end of a comparison, besides what runs between the two readings.
    tick_ns: u64,
    cpus: u64,
    next_top: u32,
    next_other: u32,
    looked_ns: u64,
    outcomes: [u64; Outcome::ALL.len()],
    closed: bool,
}

impl Audit {
    /// For so many slots, on so many CPUs; `tickless` if some of these run without ticks.
    pub fn new(slots: u32, cpus: u32, tickless: bool) -> Audit {
        let mut nodes = vec![None; slots as usize];
        // The root's own account covers interrupts, too, where it exists at all: it is never read.
        if let Some(host) = nodes.get_mut(SLOT_HOST as usize) {
            *host = Some(Node::new(0, None, false));
        }
        Audit {
            nodes,
            unplaced_ns: 0,
            tick_ns: if tickless { REMOTE_TICK_NS } else { TICK_NS },
            cpus: cpus.into(),
            next_top: 0,
            next_other: 0,
            looked_ns: 0,
            outcomes: [0; Outcome::ALL.len()],
            closed: false,
        }
    }

    /// Takes in what a pass metered, reads the accounts of some cgroups and compares. `read` gets a slot and the id of its
    /// cgroup. Returns the comparisons that could be made; of those that found a difference, one a minute for each cgroup.
    pub fn pass(
        &mut self,
        batch: &Batch,
        mut read: impl FnMut(u32, u64) -> Option<Reading>,
    ) -> Vec<Comparison> {
        batch.births.iter().for_each(|birth| self.enter(birth));
        for delta in batch.rows.iter().filter(|delta| delta.subject == Subject::Slot) {
            self.meter(delta.slot, delta.cells[CPU_CELL]);
        }
        for slot in &batch.deaths {
            if let Some(Some(node)) = self.nodes.get_mut(*slot as usize) {
                node.is_alive = false;
            }
        }
        let mut comparisons = Vec::new();
        if !self.closed && batch.taken_ns.saturating_sub(self.looked_ns) >= PERIOD_NS {
            self.looked_ns = batch.taken_ns;
            for slot in self.choose() {
                let Some(Some(node)) = self.nodes.get(slot as usize) else { continue };
                let reading = read(slot, node.cgroup_id);
                let outcome = self.look(slot, reading, batch.taken_ns, &mut comparisons);
                self.outcomes[outcome as usize] += 1;
            }
        }
        for slot in &batch.freed {
            if let Some(node) = self.nodes.get_mut(*slot as usize) {
                *node = None;
            }
        }
        comparisons
    }

    /// Compares nothing any more: from now on not everything is metered.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The largest difference that a recent comparison found, relative; 0 is right. `None` if nothing was compared recently.
    pub fn error_ratio(&self, now_ns: u64) -> Option<f64> {
        let recent = |(_, at_ns): &(f64, u64)| now_ns.saturating_sub(*at_ns) < SHOWN_NS;
        self.nodes
            .iter()
            .flatten()
            .filter_map(|node| node.ratio.filter(recent))
            .map(|(ratio, _)| ratio)
            .reduce(f64::max)
    }

    /// Readings by what became of them, since the start.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.iter().map(|outcome| (*outcome, self.outcomes[*outcome as usize]))
    }

    fn enter(&mut self, birth: &Birth) {
        let parent = match self.nodes.get(birth.parent_slot as usize) {
            Some(Some(parent)) if birth.parent_slot != SLOT_OVERFLOW => {
                Some((birth.parent_slot, parent.cgroup_id))
            }
            _ => None,
        };
        if let Some(node) = self.nodes.get_mut(birth.slot as usize) {
            *node = Some(Node::new(birth.cgroup_id, parent, true));
        }
    }

    /// Adds CPU time to a cgroup and all above it.
    fn meter(&mut self, slot: u32, cpu_ns: u64) {
        let mut at = slot;
        // A slot is entered after its parent's, so there is no circle; the bound is for what must not happen.
        for _ in 0..self.nodes.len() {
            let Some(Some(node)) = self.nodes.get_mut(at as usize) else { break };
            node.metered_ns = node.metered_ns.wrapping_add(cpu_ns);
            if at == SLOT_HOST {
                return;
            }
            let Some((parent, id)) = node.parent else { break };
            // A slot may have got another owner meanwhile.
            if !matches!(self.nodes.get(parent as usize), Some(Some(above)) if above.cgroup_id == id) {
                break;
            }
            at = parent;
        }
        self.unplaced_ns = self.unplaced_ns.wrapping_add(cpu_ns);
    }

    /// Slots to look at now: those next in turn of each kind.
    fn choose(&mut self) -> Vec<u32> {
        let is_top = |node: &Node| matches!(node.parent, Some((SLOT_HOST, _)));
        let mut chosen = turn(&self.nodes, &mut self.next_top, TOP_AT_ONCE, is_top);
        chosen.extend(turn(&self.nodes, &mut self.next_other, OTHERS_AT_ONCE, |node| !is_top(node)));
        chosen
    }

    fn look(
        &mut self,
        slot: u32,
        reading: Option<Reading>,
        taken_ns: u64,
        comparisons: &mut Vec<Comparison>,
    ) -> Outcome {
        let Some(Some(node)) = self.nodes.get_mut(slot as usize) else { return Outcome::Unreadable };
        let Some(reading) = reading else { return Outcome::Unreadable };
        let skew_ns = reading.read_ns.saturating_sub(taken_ns);
        if skew_ns > LATEST_NS {
            return Outcome::Late;
        }
        let to = Point {
            usage_ns: reading.usage_ns,
            metered_ns: node.metered_ns,
            unplaced_ns: self.unplaced_ns,
            skew_ns,
        };
        let has_fallen = std::mem::replace(&mut node.read_ns, to.usage_ns) > to.usage_ns;
        let Some(from) = node.from.filter(|_| !has_fallen) else {
            node.from = Some(to);
            return Outcome::Baseline;
        };
        let kernel_ns = to.usage_ns - from.usage_ns;
        let metered_ns = to.metered_ns.wrapping_sub(from.metered_ns);
        let unplaced_ns = to.unplaced_ns.wrapping_sub(from.unplaced_ns);
        let ends_ns = from.skew_ns + to.skew_ns + 2 * self.tick_ns;
        let tolerance_ns = self.cpus.saturating_mul(ends_ns);
        let used_ns = kernel_ns.max(metered_ns);
        let enough_ns = tolerance_ns.saturating_add(unplaced_ns).saturating_mul(RESOLUTION).max(LEAST_NS);
        if used_ns < enough_ns {
            return Outcome::TooLittle;
        }
        let missing_ns = kernel_ns.saturating_sub(metered_ns).saturating_sub(unplaced_ns);
        let apart_ns = missing_ns.max(metered_ns.saturating_sub(kernel_ns)).saturating_sub(tolerance_ns);
        let ratio = apart_ns as f64 / used_ns as f64;
        node.ratio = Some((ratio, taken_ns));
        if used_ns >= enough_ns.saturating_mul(REFINEMENT) {
            node.from = Some(to);
        }
        let is_news = node.told_ns.is_none_or(|told_ns| taken_ns.saturating_sub(told_ns) >= TOLD_NS);
        if apart_ns == 0 || is_news {
            if apart_ns > 0 {
                node.told_ns = Some(taken_ns);
            }
            comparisons.push(Comparison { slot, kernel_ns, metered_ns, ratio });
        }
        Outcome::Compared
    }
}

/// The next slots of a kind, from where the last turn ended, each at most once. `next` is moved on.
fn turn(nodes: &[Option<Node>], next: &mut u32, most: usize, kind: impl Fn(&Node) -> bool) -> Vec<u32> {
    let count = nodes.len() as u32;
    let mut chosen = Vec::with_capacity(most);
    for step in 0..count {
        let slot = (*next + step) % count;
        if nodes[slot as usize].as_ref().is_some_and(|node| node.is_alive && kind(node)) {
            chosen.push(slot);
            if chosen.len() == most {
                break;
            }
        }
    }
    *next = chosen.last().map_or(0, |last| (last + 1) % count);
    chosen
}
