//! In: the kernel's rows; out: batches of differences, and slots given back. Knows slots, never tenants.

mod batch;
mod rows;

use std::mem::offset_of;

use aya::maps::{HashMap, MapData, PerCpuArray, Queue};
pub use batch::{Batch, Birth, EMPTY_SLOT_ROW, EMPTY_SYSCALL_ROW, ErrnoDelta, SlotDelta, SyscallDelta};
use kernmeter_abi::{
    CgroupRef, FIRST_SLOT, LOSSES, META_USED, SLOT_HOST, SLOT_OVERFLOW, SlotInfo, SlotRow, SyscallRow,
    TOTALS, Total, is_workload_name, slot_state,
};
use rows::{SLOT_WORDS, Shadow};

use crate::config::ReadMode;
use crate::kernel::region::Region;
use crate::kernel::size::Plan;
use crate::kernel::{Kernel, LoadError};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const NOEXIST: u64 = 1;

/// Why the rows cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// A map is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel refused access to a map.
    #[error("cannot use the kernel map `{0}`: {1}")]
    Map(&'static str, String),
}

fn map_error(name: &'static str) -> impl Fn(aya::maps::MapError) -> DrainError {
    move |error| DrainError::Map(name, error.to_string())
}

fn io_error(name: &'static str) -> impl Fn(std::io::Error) -> DrainError {
    move |error| DrainError::Map(name, error.to_string())
}

/// What we know of a slot's life. Each step to the right takes at least a pass, so that counts made while one pass ran are
/// read by the next before anything is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Free,
    Live,
    /// Its cgroup was gone at this pass.
    Dead(u64),
    /// Its table entry was removed at this pass: nothing finds the slot any more.
    Closing(u64),
}

/// Numbers of slots by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// In the free queue.
    pub free: u32,
    /// Owned by a cgroup.
    pub live: u32,
    /// Waiting for their last counts.
    pub dead: u32,
}

/// Reads rows, remembers what was read, recycles slots.
pub struct Drain {
    plan: Plan,
    slots: Region,
    slot_rows: Region,
    sys_meta: Region,
    sys_rows: Region,
    err_meta: Region,
    err_rows: Region,
    cgroups: HashMap<MapData, u64, u64>,
    sys_index: HashMap<MapData, u32, u32>,
    err_index: HashMap<MapData, u64, u32>,
    slot_free: Queue<MapData, u32>,
    sys_free: Queue<MapData, u32>,
    err_free: Queue<MapData, u32>,
    totals: PerCpuArray<MapData, [u64; TOTALS]>,
    losses: PerCpuArray<MapData, [u64; LOSSES]>,
    lives: Vec<Life>,
    shadow: Shadow,
    pass: u64,
    made_at_last_pass: u64,
}

const fn pack(reference: CgroupRef) -> u64 {
    reference.slot as u64 | (reference.flags as u64) << 32
}

const fn unpack(value: u64) -> CgroupRef {
    CgroupRef { slot: value as u32, flags: (value >> 32) as u32 }
}

macro_rules! take {
    ($kernel:expr, $name:literal) => {
        $kernel.take_map($name)?.try_into().map_err(map_error($name))?
    };
}

impl Drain {
    /// Opens the maps of a loaded kernel side and fills the free queues. The root cgroup is slot 0.
    ///
    /// # Errors
    /// A map is missing, or the kernel refuses access to it.
    pub fn open(kernel: &mut Kernel, root_cgroup: u64, mode: ReadMode) -> Result<Drain, DrainError> {
        let plan = *kernel.plan();
        let region = |name: &'static str, element: usize, entries: u32| {
            Region::open(kernel.array_fd(name)?, element, entries, mode).map_err(io_error(name))
        };
        let slots = region("SLOTS", size_of::<SlotInfo>(), plan.slots)?;
        let slot_rows = region("SLOT_ROWS", size_of::<SlotRow>(), plan.slots * plan.shards)?;
        let sys_meta = region("SYS_META", 8, plan.syscall_rows)?;
        let sys_rows = region("SYS_ROWS", size_of::<SyscallRow>(), plan.syscall_rows * plan.shards)?;
        let err_meta = region("ERR_META", 8, plan.errno_rows)?;
        let err_rows = region("ERR_ROWS", 8, plan.errno_rows * plan.shards)?;
        let mut lives = vec![Life::Free; plan.slots as usize];
        lives[SLOT_HOST as usize] = Life::Live;
        lives[SLOT_OVERFLOW as usize] = Life::Live;
        let mut drain = Drain {
            plan,
            slots,
            slot_rows,
            sys_meta,
            sys_rows,
            err_meta,
            err_rows,
            cgroups: take!(kernel, "CGROUPS"),
            sys_index: take!(kernel, "SYS_INDEX"),
            err_index: take!(kernel, "ERR_INDEX"),
            slot_free: take!(kernel, "SLOT_FREE"),
            sys_free: take!(kernel, "SYS_FREE"),
            err_free: take!(kernel, "ERR_FREE"),
            totals: take!(kernel, "TOTALS"),
            losses: take!(kernel, "LOSSES"),
            lives,
            shadow: Shadow::new(&plan),
            pass: 0,
            made_at_last_pass: 0,
        };
        for slot in FIRST_SLOT..plan.slots {
            drain.slot_free.push(slot, 0).map_err(map_error("SLOT_FREE"))?;
        }
        for row in 0..plan.syscall_rows {
            drain.sys_free.push(row, 0).map_err(map_error("SYS_FREE"))?;
        }
        for row in 0..plan.errno_rows {
            drain.err_free.push(row, 0).map_err(map_error("ERR_FREE"))?;
        }
        let root = pack(CgroupRef { slot: SLOT_HOST, flags: 0 });
        drain.cgroups.insert(root_cgroup, root, 0).map_err(map_error("CGROUPS"))?;
        Ok(drain)
    }

    /// Whether rows are read without system calls.
    pub fn is_mapped(&self) -> bool {
        self.sys_rows.is_mapped()
    }

    /// Gives a cgroup that exists already a slot, or its parent's if it is part of a workload. Cgroups the kernel side
    /// knows already are left as they are. Parents must come before children. Returns whether it got a slot of its own.
    ///
    /// # Errors
    /// The kernel refused access to a map. Full tables are not errors: such cgroups are billed to the overflow slot.
    pub fn adopt(&mut self, id: u64, parent_id: u64, name: &[u8]) -> Result<bool, DrainError> {
        let known = self.cgroups.get(&id, 0).ok().map(unpack);
        // What once found no slot may find one now; the kernel side looks such cgroups up at each event.
        let retry = known.is_some_and(|own| own.slot == SLOT_OVERFLOW && own.flags & CgroupRef::NESTED == 0);
        if known.is_some() && !retry {
            return Ok(false);
        }
        let parent =
            self.cgroups.get(&parent_id, 0).map_or(CgroupRef { slot: SLOT_OVERFLOW, flags: 0 }, unpack);
        if parent.flags & CgroupRef::INHERIT != 0 {
            let own = CgroupRef { slot: parent.slot, flags: CgroupRef::INHERIT | CgroupRef::NESTED };
            self.insert(id, own, 0);
            return Ok(false);
        }
        let name = &name[..name.len().min(kernmeter_abi::NAME_MAX)];
        let flags = if is_workload_name(name.len(), |i| name[i]) { CgroupRef::INHERIT } else { 0 };
        let Ok(slot) = self.slot_free.pop(0) else {
            self.insert(id, CgroupRef { slot: SLOT_OVERFLOW, flags }, 0);
            return Ok(false);
        };
        let mut info = [0u64; size_of::<SlotInfo>() / 8];
        info[offset_of!(SlotInfo, cgroup_id) / 8] = id;
        info[offset_of!(SlotInfo, parent_id) / 8] = parent_id;
        info[offset_of!(SlotInfo, state) / 8] = u64::from(slot_state::LIVE) | u64::from(parent.slot) << 32;
        let generation = self.slots.load_u32(slot, offset_of!(SlotInfo, generation));
        info[offset_of!(SlotInfo, generation) / 8] = u64::from(generation) | (name.len() as u64) << 32;
        for (word, bytes) in info[offset_of!(SlotInfo, name) / 8..].iter_mut().zip(name.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        self.slots.store(slot, &info).map_err(io_error("SLOTS"))?;
        if !self.insert(id, CgroupRef { slot, flags }, if retry { 0 } else { NOEXIST }) {
            // Created by the kernel side between the look and the insertion, or no room: the slot was not needed.
            self.clear_info(slot, generation)?;
            self.slot_free.push(slot, 0).map_err(map_error("SLOT_FREE"))?;
            return Ok(false);
        }
        Ok(true)
    }

    fn insert(&mut self, id: u64, own: CgroupRef, flags: u64) -> bool {
        self.cgroups.insert(id, pack(own), flags).is_ok()
    }

    /// Marks a slot dead whose cgroup is known to be gone although no removal was seen (it vanished during the start-up
    /// scan). Does nothing for others.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn bury(&mut self, slot: u32) -> Result<(), DrainError> {
        if self.lives.get(slot as usize) != Some(&Life::Live) || slot < FIRST_SLOT {
            return Ok(());
        }
        let mut info: Vec<u64> =
            (0..size_of::<SlotInfo>() / 8).map(|word| self.slots.load(slot, 8 * word)).collect();
        let word = &mut info[offset_of!(SlotInfo, state) / 8];
        *word = *word & !0xffff_ffff | u64::from(slot_state::DEAD);
        self.slots.store(slot, &info).map_err(io_error("SLOTS"))
    }

    /// Times each slot was given back, summed.
    pub fn generations(&self) -> u64 {
        let generation = |slot| u64::from(self.slots.load_u32(slot, offset_of!(SlotInfo, generation)));
        (FIRST_SLOT..self.plan.slots).map(generation).sum()
    }

    /// Numbers of slots by state, as of the last pass.
    pub fn slot_counts(&self) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for life in &self.lives[FIRST_SLOT as usize..] {
            match life {
                Life::Free => counts.free += 1,
                Life::Live => counts.live += 1,
                Life::Dead(_) | Life::Closing(_) => counts.dead += 1,
            }
        }
        counts
    }

    /// Rows in use and to be had: (syscall rows, errno rows).
    pub fn rows_used(&self) -> (u32, u32) {
        self.shadow.len()
    }

    /// Whether cgroups come so fast that slots would run out before the next pass is due.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn is_pressed(&self) -> Result<bool, DrainError> {
        let made = self.totals()?[Total::CgroupMkdir as usize] - self.made_at_last_pass;
        let counts = self.slot_counts();
        let free = u64::from(counts.free);
        Ok(made > free / 2 || (counts.dead > 0 && free < u64::from(self.plan.slots) / 4))
    }

    /// Reads every row and writes what changed since the last pass into `batch`.
    ///
    /// # Errors
    /// The kernel refused access to a map. Nothing is lost: the next pass sees the same differences.
    pub fn pass(&mut self, kernel: &mut Kernel, now_ns: u64, batch: &mut Batch) -> Result<(), DrainError> {
        self.pass += 1;
        batch.clear();
        batch.taken_ns = now_ns;
        // Before the flush: its interrupts make sure that whatever these totals hold has reached its row, but for system
        // calls in the middle of their hook, at most one a CPU.
        batch.totals_before = self.totals()?;
        kernel.flush();
        self.made_at_last_pass = batch.totals_before[Total::CgroupMkdir as usize];
        let regions = [
            &mut self.slots,
            &mut self.slot_rows,
            &mut self.sys_meta,
            &mut self.sys_rows,
            &mut self.err_meta,
            &mut self.err_rows,
        ];
        for region in regions {
            region.refresh().map_err(io_error("rows"))?;
        }
        self.read_slots(batch);
        self.discover_rows();
        let Drain { shadow, plan, slot_rows, sys_rows, err_rows, lives, .. } = self;
        for (slot, _) in lives.iter().enumerate().filter(|(_, life)| **life != Life::Free) {
            shadow.slot(slot as u32, plan, slot_rows, batch);
        }
        shadow.syscalls(plan, sys_rows, batch);
        shadow.errors(plan, err_rows, batch);
        batch.totals_after = self.totals()?;
        batch.losses = sum(&self.losses.get(&0, 0).map_err(map_error("LOSSES"))?);
        self.recycle(batch)
    }

    /// The independent totals now, summed over CPUs.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn totals(&self) -> Result<[u64; TOTALS], DrainError> {
        Ok(sum(&self.totals.get(&0, 0).map_err(map_error("TOTALS"))?))
    }

    /// Finds slots with new owners and slots whose cgroup went away.
    fn read_slots(&mut self, batch: &mut Batch) {
        for slot in FIRST_SLOT..self.plan.slots {
            let life = self.lives[slot as usize];
            let state = self.slots.load_u32(slot, offset_of!(SlotInfo, state));
            if life == Life::Free && state != slot_state::FREE {
                let len = self.slots.load_u32(slot, offset_of!(SlotInfo, name_len)) as usize;
                let mut name = self.slots.bytes(slot, offset_of!(SlotInfo, name), 256);
                name.truncate(len);
                batch.births.push(Birth {
                    slot,
                    cgroup_id: self.slots.load(slot, offset_of!(SlotInfo, cgroup_id)),
                    parent_slot: self.slots.load_u32(slot, offset_of!(SlotInfo, parent_slot)),
                    name,
                });
                self.lives[slot as usize] = Life::Live;
            }
            if self.lives[slot as usize] == Life::Live && state == slot_state::DEAD {
                self.lives[slot as usize] = Life::Dead(self.pass);
                batch.deaths.push(slot);
            }
        }
        // cgroup ids grow: a child's is larger than its parent's.
        batch.births.sort_by_key(|birth| birth.cgroup_id);
    }

    /// Finds rows with new keys. Rows of a slot that got its owner after [`read_slots`](Self::read_slots) looked are left to
    /// the next pass, which knows whose they are.
    fn discover_rows(&mut self) {
        let owned = |slot: u64| self.lives.get(slot as usize).is_some_and(|life| *life != Life::Free);
        for row in 0..self.plan.syscall_rows {
            let meta = self.sys_meta.load(row, 0);
            if meta & META_USED != 0 && owned((meta & !META_USED) >> 16) {
                self.shadow.meet_syscall(row, meta as u32);
            }
        }
        for row in 0..self.plan.errno_rows {
            let meta = self.err_meta.load(row, 0);
            if meta & META_USED != 0 && owned((meta & !META_USED) >> 32) {
                self.shadow.meet_errno(row, meta & !META_USED);
            }
        }
    }

    /// Moves dead slots towards the free queue.
    fn recycle(&mut self, batch: &mut Batch) -> Result<(), DrainError> {
        for slot in FIRST_SLOT..self.plan.slots {
            match self.lives[slot as usize] {
                // Tasks on their way out still hold the slot: wait for the last.
                Life::Dead(since) if since < self.pass && self.shadow.tasks(slot) == 0 => {
                    let id = self.slots.load(slot, offset_of!(SlotInfo, cgroup_id));
                    // Gone already if the entry never fitted.
                    let _ = self.cgroups.remove(&id);
                    self.lives[slot as usize] = Life::Closing(self.pass);
                }
                // A task may have been bound between the last look and the removal of the entry.
                Life::Closing(since) if since < self.pass && self.shadow.tasks(slot) == 0 => {
                    self.free(slot)?;
                    batch.freed.push(slot);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Clears a slot's rows and gives all of them back. Every count in them was read by this pass.
    fn free(&mut self, slot: u32) -> Result<(), DrainError> {
        let (syscalls, errors) = self.shadow.forget(slot);
        for (row, key) in syscalls {
            let _ = self.sys_index.remove(&key);
            for shard in 0..self.plan.shards {
                self.sys_rows.clear(shard * self.plan.syscall_rows + row).map_err(io_error("SYS_ROWS"))?;
            }
            self.sys_meta.clear(row).map_err(io_error("SYS_META"))?;
            self.sys_free.push(row, 0).map_err(map_error("SYS_FREE"))?;
        }
        for (row, key) in errors {
            let _ = self.err_index.remove(&key);
            for shard in 0..self.plan.shards {
                self.err_rows.clear(shard * self.plan.errno_rows + row).map_err(io_error("ERR_ROWS"))?;
            }
            self.err_meta.clear(row).map_err(io_error("ERR_META"))?;
            self.err_free.push(row, 0).map_err(map_error("ERR_FREE"))?;
        }
        for shard in 0..self.plan.shards {
            self.slot_rows.clear(shard * self.plan.slots + slot).map_err(io_error("SLOT_ROWS"))?;
        }
        let generation = self.slots.load_u32(slot, offset_of!(SlotInfo, generation));
        self.clear_info(slot, generation.wrapping_add(1))?;
        self.lives[slot as usize] = Life::Free;
        self.slot_free.push(slot, 0).map_err(map_error("SLOT_FREE"))
    }

    /// Empties a slot's info but for its generation.
    fn clear_info(&mut self, slot: u32, generation: u32) -> Result<(), DrainError> {
        let mut info = [0u64; size_of::<SlotInfo>() / 8];
        info[offset_of!(SlotInfo, generation) / 8] = generation.into();
        self.slots.store(slot, &info).map_err(io_error("SLOTS"))
    }
}

fn sum<const N: usize>(per_cpu: &[[u64; N]]) -> [u64; N] {
    let mut total = [0u64; N];
    for values in per_cpu {
        for (total, value) in total.iter_mut().zip(values) {
            *total = total.wrapping_add(*value);
        }
    }
    total
}

const _: () = assert!(offset_of!(SlotRow, wait_buckets) == SLOT_WORDS * 8);
