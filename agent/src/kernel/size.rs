//! In: possible CPUs, a memory budget, wishes; out: how large each map is. Does no I/O.

use kernmeter_abi::task::TaskState;
use kernmeter_abi::{CgroupRef, FIRST_SLOT, Holdings, MAX_SLOTS, SlotInfo, SlotRow, SyscallRow};

/// What the configuration asks for; `None` lets the plan choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Bytes of kernel memory for all maps.
    pub budget: u64,
    /// Slots.
    pub slots: Option<u32>,
    /// Syscall rows.
    pub syscall_rows: Option<u32>,
    /// Errno rows.
    pub errno_rows: Option<u32>,
    /// Whether the kernel keeps no state of tasks for programs, so that a table must.
    pub task_table: bool,
}

/// Sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Copies of each row, a power of two.
    pub shards: u32,
    /// Whether CPUs share shards, so that the programs add atomically.
    pub shared: bool,
    /// Slots, the two reserved ones included.
    pub slots: u32,
    /// Syscall rows.
    pub syscall_rows: u32,
    /// Errno rows.
    pub errno_rows: u32,
    /// Tasks whose state is kept in a table; 0 where the kernel keeps it.
    pub tasks: u32,
    /// Possible CPUs the plan is for.
    pub cpus: u32,
}

/// The budget cannot hold even the smallest maps, or what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the kernel memory budget of {budget} bytes is too small for {what}, which needs {needed} bytes; \
     raise `kernel.memory_budget` or lower `kernel.slots`, `kernel.syscall_rows` and `kernel.errno_rows`"
)]
pub struct TooSmall {
    /// Bytes allowed.
    pub budget: u64,
    /// Bytes needed.
    pub needed: u64,
    /// What was sized.
    pub what: &'static str,
}

/// Chosen where the budget allows: 4,094 workloads at a time with a syscall or two each, or a few hundred busy ones.
const SLOTS: u32 = 4096;
const SYSCALL_ROWS: u32 = 8192;
const ERRNO_ROWS: u32 = 4096;
/// Below these a host is not metered usefully.
const MIN_SLOTS: u32 = 64;
const MIN_SYSCALL_ROWS: u32 = 256;
const MIN_ERRNO_ROWS: u32 = 128;
/// However few slots there are, a host may have this many cgroups.
const MIN_CGROUPS: u32 = 4096;
/// Tasks the table has room for at most, and at least.
const TASKS: u64 = 65_536;
const MIN_TASKS: u64 = 1024;
/// Share of the budget that the table of tasks takes at most.
const TASKS_SHARE: u64 = 4;
/// Shards beyond this many bring nothing: an uncontended atomic add costs a few nanoseconds.
const MIN_SHARDS: u32 = 8;

/// Share of the host's memory that the tables may take at most.
const MEMORY_SHARE: u64 = 8;

/// The budget on a host with this much memory: what was configured, but not more than an eighth of the host.
pub fn budget_on(total_memory: u64, configured: u64) -> u64 {
    configured.min(total_memory / MEMORY_SHARE)
}

/// An entry of a preallocated hash beyond key and value (`struct htab_elem` and its bucket), rounded up.
const HASH_OVERHEAD: u64 = 64;

/// Tasks whose state these bytes hold.
fn tasks_within(bytes: u64) -> u32 {
    (bytes / (8 + size_of::<TaskState>() as u64 + HASH_OVERHEAD)).clamp(MIN_TASKS, TASKS) as u32
}

impl Plan {
    /// Entries of the cgroup table: those with a slot have one, and those that root made and that found none.
    pub fn cgroups(&self) -> u32 {
        self.slots.saturating_mul(4).max(MIN_CGROUPS)
    }

    /// Every map whose size depends on the machine, but for the table of tasks, and its entries.
    pub fn map_entries(&self) -> [(&'static str, u32); 17] {
        [
            ("CPU_SINCE", self.cpus),
            ("TOTALS", self.cpus),
            ("LOSSES", self.cpus),
            ("CGROUPS", self.cgroups()),
            ("SLOT_FREE", self.slots),
            ("SLOTS", self.slots),
            ("TAKEN", self.slots + 1),
            ("GIVEN", self.slots + 1),
            ("SLOT_ROWS", self.slots * self.shards),
            ("SYS_INDEX", self.syscall_rows),
            ("SYS_FREE", self.syscall_rows),
            ("SYS_META", self.syscall_rows),
            ("SYS_ROWS", self.syscall_rows * self.shards),
            ("ERR_INDEX", self.errno_rows),
            ("ERR_FREE", self.errno_rows),
            ("ERR_META", self.errno_rows),
            ("ERR_ROWS", self.errno_rows * self.shards),
        ]
    }

    /// Estimated kernel memory of all maps, bytes. The true figure is a metric.
    pub fn bytes(&self) -> u64 {
        let (slots, rows, errnos) =
            (u64::from(self.slots), u64::from(self.syscall_rows), u64::from(self.errno_rows));
        let shards = u64::from(self.shards);
        let hash = |entries: u64, kv: usize| entries * (kv as u64 + HASH_OVERHEAD);
        slots * (size_of::<SlotInfo>() as u64 + 4 + 2 * size_of::<Holdings>() as u64)
            + shards
                * (slots * size_of::<SlotRow>() as u64 + rows * size_of::<SyscallRow>() as u64 + errnos * 8)
            + (rows + errnos) * (8 + 4)
            + hash(u64::from(self.cgroups()), 8 + size_of::<CgroupRef>())
            + hash(rows, 8)
            + hash(errnos, 16)
            + hash(u64::from(self.tasks), 8 + size_of::<TaskState>())
            + u64::from(self.cpus) * 4096
    }

    /// Plans for a machine. What the wishes fix stays; the rest shrinks until the budget holds it: first shards (which
    /// costs a little time per event), then rows, then slots.
    ///
    /// # Errors
    /// [`TooSmall`] if even the smallest plan does not fit.
    pub fn new(cpus: u32, wishes: &Wishes) -> Result<Plan, TooSmall> {
        let mut plan = Plan {
            shards: cpus.max(1).next_power_of_two(),
            shared: false,
            slots: wishes.slots.unwrap_or(SLOTS).clamp(FIRST_SLOT + 1, MAX_SLOTS - 1),
            syscall_rows: wishes.syscall_rows.unwrap_or(SYSCALL_ROWS).max(1),
            errno_rows: wishes.errno_rows.unwrap_or(ERRNO_ROWS).max(1),
            tasks: if wishes.task_table { tasks_within(wishes.budget / TASKS_SHARE) } else { 0 },
            cpus,
        };
        while plan.bytes() > wishes.budget {
            if plan.shards > MIN_SHARDS {
                plan.shards /= 2;
                plan.shared = true;
            } else if wishes.syscall_rows.is_none() && plan.syscall_rows > MIN_SYSCALL_ROWS {
                plan.syscall_rows /= 2;
            } else if wishes.slots.is_none() && plan.slots > MIN_SLOTS {
                plan.slots /= 2;
            } else if wishes.errno_rows.is_none() && plan.errno_rows > MIN_ERRNO_ROWS {
                plan.errno_rows /= 2;
            } else if plan.shards > 1 {
                plan.shards /= 2;
                plan.shared = true;
            } else {
                let what = if wishes.slots.or(wishes.syscall_rows).or(wishes.errno_rows).is_some() {
                    "the sizes asked for"
                } else {
                    "the smallest maps"
                };
                return Err(TooSmall { budget: wishes.budget, needed: plan.bytes(), what });
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn fits_every_machine() {
        for cpus in [1, 2, 3, 4, 8, 16, 64, 128, 256, 512, 1024] {
            let plan = Plan::new(cpus, &Wishes { budget: 64 * MIB, ..Wishes::default() }).unwrap();
            assert!(plan.bytes() <= 64 * MIB, "{cpus} CPUs: {plan:?}");
            assert!(plan.shards.is_power_of_two());
            assert_eq!(plan.shared, plan.shards < cpus);
            assert!(plan.slots >= 1024 && plan.syscall_rows >= 2048, "{cpus} CPUs: {plan:?}");
        }
    }

    #[test]
    fn a_small_host_gets_small_tables() {
        assert_eq!(budget_on(8 << 30, 64 * MIB), 64 * MIB);
        let plan =
            Plan::new(2, &Wishes { budget: budget_on(94 * MIB, 64 * MIB), ..Wishes::default() }).unwrap();
        assert!(plan.bytes() <= 94 * MIB / 8, "{plan:?}");
        assert!(plan.slots >= 1024 && plan.syscall_rows >= 2048, "{plan:?}");
    }

    #[test]
    fn a_table_of_tasks_is_part_of_the_budget() {
        let wishes = Wishes { budget: 64 * MIB, task_table: true, ..Wishes::default() };
        let plan = Plan::new(2, &wishes).unwrap();
        assert_eq!(plan.tasks, 65_536);
        assert!(plan.bytes() <= 64 * MIB, "{plan:?}");
        let plan = Plan::new(2, &Wishes { budget: 8 * MIB, ..wishes }).unwrap();
        assert!((10_000..20_000).contains(&plan.tasks) && plan.bytes() <= 8 * MIB, "{plan:?}");
        assert_eq!(Plan::new(2, &Wishes { budget: 64 * MIB, ..Wishes::default() }).unwrap().tasks, 0);
    }

    #[test]
    fn small_machines_get_a_shard_each() {
        let plan = Plan::new(2, &Wishes { budget: 64 * MIB, ..Wishes::default() }).unwrap();
        assert_eq!((plan.shards, plan.shared, plan.slots, plan.syscall_rows), (2, false, 4096, 8192));
    }

    #[test]
    fn wishes_are_kept_or_refused() {
        let wishes = Wishes {
            budget: 8 * MIB,
            slots: Some(100),
            syscall_rows: None,
            errno_rows: Some(7),
            task_table: false,
        };
        let plan = Plan::new(2, &wishes).unwrap();
        assert_eq!((plan.slots, plan.errno_rows), (100, 7));
        let refused = Plan::new(2, &Wishes { budget: MIB, slots: Some(60_000), ..Wishes::default() });
        assert!(refused.unwrap_err().to_string().contains("kernel.memory_budget"));
        assert!(Plan::new(2, &Wishes { budget: 1000, ..Wishes::default() }).is_err());
    }
}
