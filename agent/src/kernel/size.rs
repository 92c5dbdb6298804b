//! In: possible CPUs, a memory budget, wishes; out: how large each map is, at the start and at most. Does no I/O.

use kernmeter_abi::task::TaskState;
use kernmeter_abi::ways::WAYS;
use kernmeter_abi::{
    CgroupRef, FIRST_SLOT, Holdings, Losses, MAX_SLOTS, SLOT_CHUNK, SLOT_CHUNKS, SYSCALL_CHUNK,
    SYSCALL_CHUNKS, SlotInfo, SlotRow, SyscallRow, Totals,
};

/// What the configuration asks for; `None` lets the plan choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Bytes of kernel memory for all maps.
    pub budget: u64,
    /// Slots.
    pub slots: Option<u32>,
    /// Shared syscall rows.
    pub syscall_rows: Option<u32>,
    /// Errno rows.
    pub errno_rows: Option<u32>,
    /// Private rows of each kind.
    pub private_rows: Option<u32>,
    /// Whether the kernel keeps no state of tasks for programs, so that a table must.
    pub task_table: bool,
}

/// Sizes of the maps. Rows are made by chunks when they are needed: these are the most there will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Possible CPUs the plan is for.
    pub cpus: u32,
    /// Slots, the two reserved ones included.
    pub slots: u32,
    /// Shared syscall rows: one for each slot and system call.
    pub syscall_rows: u32,
    /// Private syscall rows, of all CPUs together.
    pub private_syscall_rows: u32,
    /// Private slot rows, of all CPUs together.
    pub private_slot_rows: u32,
    /// Sets of words by which each CPU finds its private rows, a power of two.
    pub sets: u32,
    /// Errno rows.
    pub errno_rows: u32,
    /// Copies of each errno row, a power of two. CPUs share copies if there are fewer than CPUs.
    pub errno_shards: u32,
    /// Tasks whose state is kept in a table; 0 where the kernel keeps it.
    pub tasks: u32,
}

/// The budget cannot hold even the smallest maps, or what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the kernel memory budget of {budget} bytes is too small for {what}, which needs {needed} bytes; \
     raise `kernel.memory_budget` or lower `kernel.slots`, `kernel.syscall_rows`, `kernel.errno_rows` and `kernel.private_rows`"
)]
pub struct TooSmall {
    /// Bytes allowed.
    pub budget: u64,
    /// Bytes needed.
    pub needed: u64,
    /// What was sized.
    pub what: &'static str,
}

/// Chosen where the budget allows: 4,094 workloads at a time.
const SLOTS: u32 = 4096;
const ERRNO_ROWS: u32 = 4096;
/// Below these a host is not metered usefully.
const MIN_SLOTS: u32 = 64;
const MIN_ERRNO_ROWS: u32 = 128;
/// What there is of each at the start.
const START_SLOTS: u32 = 6 * SLOT_CHUNK;
const START_SYSCALL_ROWS: u32 = 4 * SYSCALL_CHUNK;
/// Chunks of a kind of rows at most, if nobody asks for more rows.
const MOST_CHUNKS: u64 = 128;
/// Entries of the first index of syscall rows. A second is made if there are more rows.
const FIRST_INDEX: u32 = 8192;
/// However few slots there are, a host may have this many cgroups.
const MIN_CGROUPS: u32 = 4096;
/// Tasks the table has room for at most, and at least.
const TASKS: u64 = 65_536;
const MIN_TASKS: u64 = 1024;
/// Share of the budget that the table of tasks takes at most.
const TASKS_SHARE: u64 = 4;
/// Words for as many rows as a busy host of 16 CPUs has: 100 containers with 20 system calls each, four times.
const MAX_SETS: u32 = 2048;
const MIN_SETS: u32 = 16;
/// Share of the budget that all sets take at most.
const SETS_SHARE: u64 = 32;
/// Copies of errno rows beyond this many bring nothing.
const MAX_ERRNO_SHARDS: u32 = 64;
/// Eighths of what is left for rows that shared ones may take; private ones have the rest.
const SHARED_EIGHTHS: u64 = 5;

/// Share of the host's memory that the tables may take at most.
const MEMORY_SHARE: u64 = 8;

/// The budget on a host with this much memory: what was configured, but not more than an eighth of the host.
pub fn budget_on(total_memory: u64, configured: u64) -> u64 {
    configured.min(total_memory / MEMORY_SHARE)
}

/// A bucket of a preallocated hash (`struct bucket`), of which there is a power of two, and an entry beyond key and value
/// (`struct htab_elem`): `htab_map_mem_usage` of the kernel.
const BUCKET: u64 = 16;
const ENTRY: u64 = 48;

/// Bytes of a hash.
const fn hash(entries: u64, key: usize, value: usize) -> u64 {
    let words = key.div_ceil(8) + value.div_ceil(8);
    if entries == 0 { 0 } else { entries.next_power_of_two() * BUCKET + entries * (ENTRY + 8 * words as u64) }
}

/// Bytes of what no wish changes: the agent's log, which aya makes, what wakes it, and the maps of chunks.
const CONSTANT: u64 = 145_000 + 24_000 + 8 * (SYSCALL_CHUNKS + SLOT_CHUNKS) as u64;

/// Bytes of a chunk of syscall rows.
const SYSCALL_CHUNK_BYTES: u64 = SYSCALL_CHUNK as u64 * size_of::<SyscallRow>() as u64;
/// Bytes of a chunk of slot rows.
const SLOT_CHUNK_BYTES: u64 = SLOT_CHUNK as u64 * size_of::<SlotRow>() as u64;

/// Tasks whose state these bytes hold.
fn tasks_within(bytes: u64) -> u32 {
    (bytes / (8 + size_of::<TaskState>() as u64 + ENTRY + BUCKET)).clamp(MIN_TASKS, TASKS) as u32
}

/// Bytes of so many rows of each kind.
fn rows_bytes(slots: u32, syscalls: u32, private_syscalls: u32, private_slots: u32) -> u64 {
    let chunks = |rows: u32, chunk: u32| u64::from(rows.div_ceil(chunk));
    (chunks(slots, SLOT_CHUNK) + chunks(private_slots, SLOT_CHUNK)) * SLOT_CHUNK_BYTES
        + (chunks(syscalls, SYSCALL_CHUNK) + chunks(private_syscalls, SYSCALL_CHUNK)) * SYSCALL_CHUNK_BYTES
}

impl Plan {
    /// Entries of the cgroup table: those with a slot have one, and those that root made and that found none.
    pub fn cgroups(&self) -> u32 {
        (self.slots + self.slots / 2).max(MIN_CGROUPS)
    }

    /// Slots there are from the start.
    pub fn start_slots(&self) -> u32 {
        self.slots.min(START_SLOTS)
    }

    /// Shared syscall rows there are from the start.
    pub fn start_syscall_rows(&self) -> u32 {
        self.syscall_rows.min(START_SYSCALL_ROWS)
    }

    /// Entries of the index of syscall rows.
    pub fn index(&self) -> u32 {
        self.syscall_rows.min(FIRST_INDEX)
    }

    /// Entries of the second index; 0 if the first has room for all.
    pub fn second_index(&self) -> u32 {
        self.syscall_rows - self.index()
    }

    /// Whether several CPUs write one copy of an errno row.
    pub fn errnos_are_shared(&self) -> bool {
        self.errno_shards < self.cpus
    }

    /// Whether there is a single CPU, which shares nothing.
    pub fn is_alone(&self) -> bool {
        self.cpus == 1
    }

    /// Every map whose size depends on the machine, but for the table of tasks, and its entries.
    pub fn map_entries(&self) -> [(&'static str, u32); 18] {
        [
            ("CPU_SINCE", self.cpus),
            ("TOTALS", self.cpus),
            ("LOSSES", self.cpus),
            ("SETS", self.cpus * self.sets),
            ("CGROUPS", self.cgroups()),
            ("SLOT_FREE", self.slots),
            ("SLOTS", self.slots),
            ("TAKEN", self.slots + 1),
            ("GIVEN", self.slots + 1),
            ("SYS_INDEX", self.index()),
            ("SYS_FREE", self.syscall_rows),
            ("SYS_KEYS", self.syscall_rows),
            ("SYS_PRIVATE", self.private_syscall_rows.max(1)),
            ("SLOT_PRIVATE", self.private_slot_rows.max(1)),
            ("ERR_INDEX", self.errno_rows),
            ("ERR_FREE", self.errno_rows),
            ("ERR_KEYS", self.errno_rows),
            ("ERR_ROWS", self.errno_rows * self.errno_shards),
        ]
    }

    /// Bytes of what does not grow.
    fn fixed_bytes(&self) -> u64 {
        let (slots, errnos, cpus) = (u64::from(self.slots), u64::from(self.errno_rows), u64::from(self.cpus));
        let own = size_of::<Totals>() + size_of::<Losses>() + size_of::<SlotInfo>() + 64;
        CONSTANT
            + slots * (size_of::<SlotInfo>() as u64 + 4 + 2 * size_of::<Holdings>() as u64)
            + errnos * (8 * u64::from(self.errno_shards) + 8 + 4)
            + hash(u64::from(self.cgroups()), 8, size_of::<CgroupRef>())
            + hash(u64::from(self.index()), 4, 4)
            + hash(errnos, 8, 4)
            + hash(u64::from(self.tasks), 8, size_of::<TaskState>())
            + 12 * u64::from(self.syscall_rows)
            + 4 * u64::from(self.private_syscall_rows + self.private_slot_rows)
            + cpus * (u64::from(self.sets) * 8 * WAYS as u64 + own as u64)
    }

    /// Estimated kernel memory of all maps on a host where little happens, bytes. The true figure is a metric.
    pub fn bytes_at_start(&self) -> u64 {
        let private = |most: u32, chunk: u32| most.min(chunk);
        self.fixed_bytes()
            + rows_bytes(
                self.start_slots(),
                self.start_syscall_rows(),
                private(self.private_syscall_rows, SYSCALL_CHUNK),
                private(self.private_slot_rows, SLOT_CHUNK),
            )
    }

    /// The same with all that may be made, bytes.
    pub fn bytes(&self) -> u64 {
        self.fixed_bytes()
            + rows_bytes(self.slots, self.syscall_rows, self.private_syscall_rows, self.private_slot_rows)
            + hash(self.second_index().into(), 4, 4)
    }

    /// Plans for a machine. What the wishes fix stays; the rest shrinks until the budget holds it: first what makes adding
    /// cheap, then slots, then errno rows. What is left is for rows.
    ///
    /// # Errors
    /// [`TooSmall`] if even the smallest plan does not fit.
    pub fn new(cpus: u32, wishes: &Wishes) -> Result<Plan, TooSmall> {
        let cpus = cpus.max(1);
        let in_share = (wishes.budget / SETS_SHARE / (8 * WAYS as u64 * u64::from(cpus))).max(1);
        let mut plan = Plan {
            cpus,
            slots: wishes.slots.unwrap_or(SLOTS).clamp(FIRST_SLOT + 1, MAX_SLOTS - 1),
            syscall_rows: 0,
            private_syscall_rows: 0,
            private_slot_rows: 0,
            sets: (1u32 << in_share.ilog2().min(31)).clamp(MIN_SETS, MAX_SETS),
            errno_rows: wishes.errno_rows.unwrap_or(ERRNO_ROWS).max(1),
            errno_shards: cpus.next_power_of_two().min(MAX_ERRNO_SHARDS),
            tasks: if wishes.task_table { tasks_within(wishes.budget / TASKS_SHARE) } else { 0 },
        };
        let mut has_private = cpus > 1 && wishes.private_rows != Some(0);
        loop {
            plan.share_out(wishes, has_private);
            if plan.syscall_rows > 0 && plan.bytes() <= wishes.budget {
                return Ok(plan);
            }
            if plan.errno_shards > 1 && plan.errno_shards > plan.cpus.min(8) {
                plan.errno_shards /= 2;
            } else if plan.sets > MIN_SETS {
                plan.sets /= 2;
            } else if has_private {
                has_private = false;
            } else if wishes.slots.is_none() && plan.slots > MIN_SLOTS {
                plan.slots /= 2;
            } else if wishes.errno_rows.is_none() && plan.errno_rows > MIN_ERRNO_ROWS {
                plan.errno_rows /= 2;
            } else if plan.errno_shards > 1 {
                plan.errno_shards /= 2;
            } else {
                let fixed =
                    wishes.slots.or(wishes.syscall_rows).or(wishes.errno_rows).or(wishes.private_rows);
                let what = if fixed.is_some() { "the sizes asked for" } else { "the smallest maps" };
                plan.syscall_rows = plan.syscall_rows.max(1);
                return Err(TooSmall { budget: wishes.budget, needed: plan.bytes(), what });
            }
        }
    }

    /// Shares out among rows what the budget leaves.
    fn share_out(&mut self, wishes: &Wishes, has_private: bool) {
        (self.syscall_rows, self.private_syscall_rows, self.private_slot_rows) = (0, 0, 0);
        let index = hash(FIRST_INDEX.into(), 4, 4);
        let taken = self.fixed_bytes() + index + rows_bytes(self.slots, 0, 0, 0);
        let left = wishes.budget.saturating_sub(taken);
        // A number in a queue is 4 bytes, a key 8; a shared row has an entry in an index, too.
        let shared_chunk =
            SYSCALL_CHUNK_BYTES + u64::from(SYSCALL_CHUNK) * 12 + hash(SYSCALL_CHUNK.into(), 4, 4);
        let chunks = |bytes: u64, chunk: u64| (bytes / chunk).min(MOST_CHUNKS) as u32;
        let eighths = if has_private { SHARED_EIGHTHS } else { 8 };
        // A budget too small for a chunk more still has one.
        let shared = chunks(left * eighths / 8, shared_chunk).max(u32::from(left >= shared_chunk));
        self.syscall_rows = wishes.syscall_rows.map_or(shared * SYSCALL_CHUNK, |rows| rows.max(1));
        if has_private {
            let left = wishes.budget.saturating_sub(self.bytes() + index);
            let slots = chunks(left / 4, SLOT_CHUNK_BYTES + u64::from(SLOT_CHUNK) * 4);
            let syscalls = chunks(left * 3 / 4, SYSCALL_CHUNK_BYTES + u64::from(SYSCALL_CHUNK) * 4);
            let most = wishes.private_rows.unwrap_or(u32::MAX);
            self.private_slot_rows = (slots * SLOT_CHUNK).min(most);
            self.private_syscall_rows = (syscalls * SYSCALL_CHUNK).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use kernmeter_abi::ways::{self, Step};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn on(cpus: u32, budget: u64) -> Plan {
        Plan::new(cpus, &Wishes { budget, ..Wishes::default() }).unwrap()
    }

    /// Possible CPUs, budget and the most that an idle host may take, MiB; then the least rows there must be at most: shared and
    /// private syscall rows.
    const TABLE: [(u32, u64, u64, u32, u32); 16] = [
        (1, 64, 8, 60_000, 0),
        (2, 64, 8, 60_000, 20_000),
        (4, 64, 9, 60_000, 20_000),
        (8, 64, 10, 55_000, 20_000),
        (16, 64, 16, 55_000, 20_000),
        (64, 64, 32, 50_000, 20_000),
        (128, 64, 32, 50_000, 20_000),
        (512, 64, 64, 50_000, 20_000),
        (1024, 64, 64, 40_000, 10_000),
        (2, 1024, 10, 131_072, 131_072),
        (512, 1024, 64, 131_072, 131_072),
        (2, 16, 8, 8192, 2048),
        (16, 16, 16, 8192, 2048),
        (2, 8, 8, 2048, 0),
        (2, 4, 4, 1024, 0),
        (64, 8, 8, 1024, 0),
    ];

    #[test]
    fn every_machine_and_budget_has_its_sizes() {
        for (cpus, budget, idle, shared, private) in TABLE {
            let plan = on(cpus, budget * MIB);
            let told = format!(
                "{cpus} CPUs, {budget} MiB: {} KiB idle, {} KiB at most, {plan:?}",
                plan.bytes_at_start() / 1024,
                plan.bytes() / 1024
            );
            println!("{told}");
            assert!(plan.bytes() <= budget * MIB, "{told}");
            assert!(plan.bytes_at_start() <= idle * MIB && plan.bytes_at_start() <= plan.bytes(), "{told}");
            assert!(plan.syscall_rows >= shared && plan.private_syscall_rows >= private, "{told}");
            assert!(plan.sets.is_power_of_two() && plan.errno_shards.is_power_of_two(), "{told}");
            assert!(plan.slots >= 64, "{told}");
        }
    }

    /// A model of the CPUs' sets: see `agent-ebpf/src/private.rs`.
    struct Sets {
        words: Vec<[u64; WAYS]>,
        mask: u32,
        /// Private rows that are left: of system calls, of slots.
        left: [u32; 2],
    }

    impl Sets {
        /// One addition by a CPU; whether it was plain.
        fn add(&mut self, cpu: u32, key: u32) -> bool {
            let set = &mut self.words[(cpu * (self.mask + 1) + ways::set_of(key, self.mask)) as usize];
            if set.iter().any(|word| ways::row_in(*word, key).is_some()) {
                return true;
            }
            match ways::step(|place| set[place], key) {
                Step::Nothing => {}
                Step::Write(place, word) => set[place] = word,
                Step::Claim(place) => {
                    let left = &mut self.left[usize::from(ways::slot_of(key).is_some())];
                    if *left > 0 {
                        *left -= 1;
                        set[place] = ways::naming(key, 0);
                    }
                }
            }
            false
        }
    }

    /// 100 containers with 20 system calls each, all of which run on each of 16 CPUs.
    #[test]
    #[cfg_attr(miri, ignore = "millions of steps of safe code")]
    fn what_a_busy_host_adds_to_is_private() {
        const CPUS: u32 = 16;
        const CONTAINERS: u64 = 100;
        const CALLS: u64 = 20;
        const EVENTS: u64 = 4_000_000;
        let plan = on(CPUS, 64 * MIB);
        let mut sets = Sets {
            words: vec![[0; WAYS]; (CPUS * plan.sets) as usize],
            mask: plan.sets - 1,
            left: [plan.private_syscall_rows, plan.private_slot_rows],
        };
        let mut random = 1u64;
        let mut next = |below: u64| {
            // Knuth's linear congruential generator of MMIX; its high bits.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut private, mut all) = (0, 0);
        for event in 0..EVENTS {
            let (cpu, container) = (next(CPUS.into()) as u32, next(CONTAINERS));
            // Every tenth event is a switch.
            let key = if event % 10 == 0 {
                ways::key_of_slot(container as u32)
            } else {
                (container * CALLS + next(CALLS)) as u32
            };
            let is_plain = sets.add(cpu, key);
            // A row is shared until it proves to be worth a private one.
            if event >= EVENTS / 2 {
                private += u64::from(is_plain);
                all += 1;
            }
        }
        println!("{private} of {all} additions are plain; private rows left: {:?}", sets.left);
        assert!(private * 100 >= all * 99, "{private} of {all}");
    }

    #[test]
    fn a_small_host_gets_small_tables() {
        assert_eq!(budget_on(8 << 30, 64 * MIB), 64 * MIB);
        let plan = on(2, budget_on(94 * MIB, 64 * MIB));
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
        assert_eq!(on(2, 64 * MIB).tasks, 0);
    }

    #[test]
    fn wishes_are_kept_or_refused() {
        let wishes = Wishes { budget: 8 * MIB, slots: Some(100), errno_rows: Some(7), ..Wishes::default() };
        let plan = Plan::new(2, &wishes).unwrap();
        assert_eq!((plan.slots, plan.errno_rows), (100, 7));
        let plan = Plan::new(2, &Wishes { syscall_rows: Some(70), private_rows: Some(0), ..wishes }).unwrap();
        assert_eq!((plan.syscall_rows, plan.private_syscall_rows, plan.private_slot_rows), (70, 0, 0));
        let plan = Plan::new(2, &Wishes { private_rows: Some(9), budget: 64 * MIB, ..wishes }).unwrap();
        assert_eq!((plan.private_syscall_rows, plan.private_slot_rows), (9, 9));
        let refused = Plan::new(2, &Wishes { budget: MIB, slots: Some(60_000), ..Wishes::default() });
        assert!(refused.unwrap_err().to_string().contains("kernel.memory_budget"));
        assert!(Plan::new(2, &Wishes { budget: 1000, ..Wishes::default() }).is_err());
    }
}
