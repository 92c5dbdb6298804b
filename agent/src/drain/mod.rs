//! In: the kernel's rows; out: batches of differences, and slots given back. Knows slots, never tenants.

mod batch;
mod rows;

use std::io;
use std::mem::offset_of;

pub use batch::{Batch, Birth, Delta, Deltas, Subject};
use kernmeter_abi::{
    CgroupRef, FIRST_SLOT, LOSSES, META_USED, SLOT_HOST, SLOT_OVERFLOW, SlotInfo, SlotRow, TOTALS, Total,
    is_workload_name, slot_state,
};
use rows::Rows;

use crate::catalog::RowKind;
use crate::config::ReadMode;
use crate::kernel::maps::{FreeQueue, MapAccessError, PerCpuCounters, Table};
use crate::kernel::region::Region;
use crate::kernel::size::Plan;
use crate::kernel::{Kernel, LoadError};

/// The map's name with an I/O error.
fn io_error(map: &'static str) -> impl Fn(io::Error) -> MapAccessError {
    move |error| MapAccessError { map, reason: error.to_string() }
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
    infos: Region,
    slots: Rows,
    syscalls: Rows,
    errors: Rows,
    sys_meta: Region,
    err_meta: Region,
    cgroups: Table<u64, u64>,
    sys_index: Table<u32, u32>,
    err_index: Table<u64, u32>,
    slot_free: FreeQueue,
    sys_free: FreeQueue,
    err_free: FreeQueue,
    totals: PerCpuCounters<TOTALS>,
    losses: PerCpuCounters<LOSSES>,
    lives: Vec<Life>,
    pass: u64,
    made_at_last_pass: u64,
}

const fn pack(reference: CgroupRef) -> u64 {
    reference.slot as u64 | (reference.flags as u64) << 32
}

const fn unpack(value: u64) -> CgroupRef {
    CgroupRef { slot: value as u32, flags: (value >> 32) as u32 }
}

/// The key under which programs find a row.
const fn index_key(slot: u32, subject: Subject) -> u64 {
    match subject {
        Subject::Slot => slot as u64,
        Subject::Syscall(syscall) => (slot as u64) << 16 | syscall as u64,
        Subject::Errno(syscall, errno) => (slot as u64) << 32 | (syscall as u64) << 16 | errno as u64,
    }
}

impl Drain {
    /// Opens the maps of a loaded kernel side and fills the free queues. The root cgroup is slot 0.
    ///
    /// # Errors
    /// A map is missing, or the kernel refuses access to it.
    pub fn open(kernel: &mut Kernel, root_cgroup: u64, mode: ReadMode) -> Result<Drain, LoadError> {
        let plan = *kernel.plan();
        let region = |name: &'static str, element: usize, entries: u32| {
            let region = Region::open(kernel.array_fd(name)?, element, entries, mode);
            region.map_err(io_error(name)).map_err(LoadError::Map)
        };
        let rows = |kind: RowKind, name: &'static str, rows: u32| {
            let region = region(name, kind.size(), rows * plan.shards)?;
            Ok::<_, LoadError>(Rows::new(kind, region, rows, plan.shards))
        };
        let infos = region("SLOTS", size_of::<SlotInfo>(), plan.slots)?;
        let mut slots = rows(RowKind::Slot, "SLOT_ROWS", plan.slots)?;
        let syscalls = rows(RowKind::Syscall, "SYS_ROWS", plan.syscall_rows)?;
        let errors = rows(RowKind::Errno, "ERR_ROWS", plan.errno_rows)?;
        let sys_meta = region("SYS_META", 8, plan.syscall_rows)?;
        let err_meta = region("ERR_META", 8, plan.errno_rows)?;
        let mut lives = vec![Life::Free; plan.slots as usize];
        for slot in [SLOT_HOST, SLOT_OVERFLOW] {
            lives[slot as usize] = Life::Live;
            slots.meet(slot, slot, Subject::Slot);
        }
        let mut drain = Drain {
            plan,
            infos,
            slots,
            syscalls,
            errors,
            sys_meta,
            err_meta,
            cgroups: Table::take(kernel, "CGROUPS")?,
            sys_index: Table::take(kernel, "SYS_INDEX")?,
            err_index: Table::take(kernel, "ERR_INDEX")?,
            slot_free: FreeQueue::take(kernel, "SLOT_FREE")?,
            sys_free: FreeQueue::take(kernel, "SYS_FREE")?,
            err_free: FreeQueue::take(kernel, "ERR_FREE")?,
            totals: PerCpuCounters::take(kernel, "TOTALS")?,
            losses: PerCpuCounters::take(kernel, "LOSSES")?,
            lives,
            pass: 0,
            made_at_last_pass: 0,
        };
        drain.fill_queues()?;
        let root = pack(CgroupRef { slot: SLOT_HOST, flags: 0 });
        drain.cgroups.set(root_cgroup, root)?;
        Ok(drain)
    }

    /// Everything is free at the start.
    fn fill_queues(&mut self) -> Result<(), MapAccessError> {
        (FIRST_SLOT..self.plan.slots).try_for_each(|slot| self.slot_free.push(slot))?;
        (0..self.plan.syscall_rows).try_for_each(|row| self.sys_free.push(row))?;
        (0..self.plan.errno_rows).try_for_each(|row| self.err_free.push(row))
    }

    /// Whether rows are read without system calls.
    pub fn is_mapped(&self) -> bool {
        self.syscalls.is_mapped()
    }

    /// Gives a cgroup that exists already a slot, or its parent's if it is part of a workload. Cgroups the kernel side
    /// knows already are left as they are. Parents must come before children. Returns whether it got a slot of its own.
    ///
    /// # Errors
    /// The kernel refused access to a map. Full tables are not errors: such cgroups are billed to the overflow slot.
    pub fn adopt(&mut self, id: u64, parent_id: u64, name: &[u8]) -> Result<bool, MapAccessError> {
        let known = self.cgroups.get(id).map(unpack);
        // What once found no slot may find one now; the kernel side looks such cgroups up at each event.
        let retry = known.is_some_and(|own| own.slot == SLOT_OVERFLOW && own.flags & CgroupRef::NESTED == 0);
        if known.is_some() && !retry {
            return Ok(false);
        }
        let parent = self.cgroups.get(parent_id).map_or(CgroupRef { slot: SLOT_OVERFLOW, flags: 0 }, unpack);
        if parent.flags & CgroupRef::INHERIT != 0 {
            let own = CgroupRef { slot: parent.slot, flags: CgroupRef::INHERIT | CgroupRef::NESTED };
            self.bind(id, own);
            return Ok(false);
        }
        let name = &name[..name.len().min(kernmeter_abi::NAME_MAX)];
        let flags = if is_workload_name(name.len(), |i| name[i]) { CgroupRef::INHERIT } else { 0 };
        let Some(slot) = self.slot_free.pop() else {
            self.bind(id, CgroupRef { slot: SLOT_OVERFLOW, flags });
            return Ok(false);
        };
        let mut info = [0u64; size_of::<SlotInfo>() / 8];
        info[offset_of!(SlotInfo, cgroup_id) / 8] = id;
        info[offset_of!(SlotInfo, parent_id) / 8] = parent_id;
        info[offset_of!(SlotInfo, state) / 8] = u64::from(slot_state::LIVE) | u64::from(parent.slot) << 32;
        let generation = self.infos.load_u32(slot, offset_of!(SlotInfo, generation));
        info[offset_of!(SlotInfo, generation) / 8] = u64::from(generation) | (name.len() as u64) << 32;
        for (word, bytes) in info[offset_of!(SlotInfo, name) / 8..].iter_mut().zip(name.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        self.infos.store(slot, &info).map_err(io_error("SLOTS"))?;
        let own = pack(CgroupRef { slot, flags });
        let bound = if retry { self.cgroups.set(id, own) } else { self.cgroups.add(id, own) };
        if bound.is_err() {
            // Created by the kernel side between the look and the insertion, or no room: the slot was not needed.
            self.clear_info(slot, generation)?;
            self.slot_free.push(slot)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Says where a cgroup's events go. If the table is full its lookups fail, and are counted as losses.
    fn bind(&mut self, id: u64, own: CgroupRef) {
        let _ = self.cgroups.set(id, pack(own));
    }

    /// Marks a slot dead whose cgroup is known to be gone although no removal was seen (it vanished during the start-up
    /// scan). Does nothing for others.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn mark_dead(&mut self, slot: u32) -> Result<(), MapAccessError> {
        if self.lives.get(slot as usize) != Some(&Life::Live) || slot < FIRST_SLOT {
            return Ok(());
        }
        let mut info: Vec<u64> =
            (0..size_of::<SlotInfo>() / 8).map(|word| self.infos.load(slot, 8 * word)).collect();
        let word = &mut info[offset_of!(SlotInfo, state) / 8];
        *word = *word & !0xffff_ffff | u64::from(slot_state::DEAD);
        self.infos.store(slot, &info).map_err(io_error("SLOTS"))
    }

    /// Times each slot was given back, summed.
    pub fn generations(&self) -> u64 {
        let generation = |slot| u64::from(self.infos.load_u32(slot, offset_of!(SlotInfo, generation)));
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
        (self.syscalls.len(), self.errors.len())
    }

    /// Whether cgroups come so fast that slots would run out before the next pass is due.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn is_pressed(&self) -> Result<bool, MapAccessError> {
        let made = self.totals()?[Total::CgroupMkdir as usize] - self.made_at_last_pass;
        let counts = self.slot_counts();
        let free = u64::from(counts.free);
        Ok(made > free / 2 || (counts.dead > 0 && free < u64::from(self.plan.slots) / 4))
    }

    /// Reads every row and writes what changed since the last pass into `batch`.
    ///
    /// # Errors
    /// The kernel refused access to a map. Nothing is lost: the next pass sees the same differences.
    pub fn pass(
        &mut self,
        kernel: &mut Kernel,
        now_ns: u64,
        batch: &mut Batch,
    ) -> Result<(), MapAccessError> {
        self.pass += 1;
        batch.clear();
        batch.taken_ns = now_ns;
        // Before the flush: its interrupts make sure that whatever these totals hold has reached its row, but for system
        // calls in the middle of their hook, at most one a CPU.
        batch.totals_before = self.totals()?;
        kernel.flush();
        self.made_at_last_pass = batch.totals_before[Total::CgroupMkdir as usize];
        self.refresh()?;
        self.read_slots(batch);
        self.discover_rows();
        for rows in [&mut self.slots, &mut self.syscalls, &mut self.errors] {
            rows.read(&mut batch.rows);
        }
        batch.totals_after = self.totals()?;
        batch.losses = self.losses.sum()?;
        self.recycle(batch)
    }

    /// The independent totals now, summed over CPUs.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn totals(&self) -> Result<[u64; TOTALS], MapAccessError> {
        self.totals.sum()
    }

    /// Brings what is copied rather than mapped up to date.
    fn refresh(&mut self) -> Result<(), MapAccessError> {
        for (name, region) in
            [("SLOTS", &mut self.infos), ("SYS_META", &mut self.sys_meta), ("ERR_META", &mut self.err_meta)]
        {
            region.refresh().map_err(io_error(name))?;
        }
        for (name, rows) in
            [("SLOT_ROWS", &mut self.slots), ("SYS_ROWS", &mut self.syscalls), ("ERR_ROWS", &mut self.errors)]
        {
            rows.refresh().map_err(io_error(name))?;
        }
        Ok(())
    }

    /// Finds slots with new owners and slots whose cgroup went away.
    fn read_slots(&mut self, batch: &mut Batch) {
        for slot in FIRST_SLOT..self.plan.slots {
            let life = self.lives[slot as usize];
            let state = self.infos.load_u32(slot, offset_of!(SlotInfo, state));
            if life == Life::Free && state != slot_state::FREE {
                let len = self.infos.load_u32(slot, offset_of!(SlotInfo, name_len)) as usize;
                let mut name = self.infos.bytes(slot, offset_of!(SlotInfo, name), 256);
                name.truncate(len);
                batch.births.push(Birth {
                    slot,
                    cgroup_id: self.infos.load(slot, offset_of!(SlotInfo, cgroup_id)),
                    parent_slot: self.infos.load_u32(slot, offset_of!(SlotInfo, parent_slot)),
                    name,
                });
                self.lives[slot as usize] = Life::Live;
                self.slots.meet(slot, slot, Subject::Slot);
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
        let owned = |slot: u32| self.lives.get(slot as usize).is_some_and(|life| *life != Life::Free);
        for row in 0..self.plan.syscall_rows {
            let key = self.sys_meta.load(row, 0);
            let (slot, syscall) = ((key & !META_USED) >> 16, key as u32 & 0xffff);
            if key & META_USED != 0 && owned(slot as u32) {
                self.syscalls.meet(row, slot as u32, Subject::Syscall(syscall));
            }
        }
        for row in 0..self.plan.errno_rows {
            let key = self.err_meta.load(row, 0);
            let (slot, syscall, errno) =
                ((key & !META_USED) >> 32, (key >> 16) as u32 & 0xffff, key as u32 & 0xffff);
            if key & META_USED != 0 && owned(slot as u32) {
                self.errors.meet(row, slot as u32, Subject::Errno(syscall, errno));
            }
        }
    }

    /// Live tasks bound to a slot, as of the last look.
    fn tasks(&self, slot: u32) -> u64 {
        self.slots.last(slot, offset_of!(SlotRow, tasks))
    }

    /// Moves dead slots towards the free queue.
    fn recycle(&mut self, batch: &mut Batch) -> Result<(), MapAccessError> {
        for slot in FIRST_SLOT..self.plan.slots {
            match self.lives[slot as usize] {
                // Tasks on their way out still hold the slot: wait for the last.
                Life::Dead(since) if since < self.pass && self.tasks(slot) == 0 => {
                    let id = self.infos.load(slot, offset_of!(SlotInfo, cgroup_id));
                    self.cgroups.remove(id);
                    self.lives[slot as usize] = Life::Closing(self.pass);
                }
                // A task may have been bound between the last look and the removal of the entry.
                Life::Closing(since) if since < self.pass && self.tasks(slot) == 0 => {
                    self.free(slot)?;
                    batch.freed.push(slot);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Clears a slot's rows and gives all of them back. Every count in them was read by this pass.
    fn free(&mut self, slot: u32) -> Result<(), MapAccessError> {
        for (row, subject) in self.syscalls.forget(slot) {
            self.sys_index.remove(index_key(slot, subject) as u32);
            self.syscalls.clear(row).map_err(io_error("SYS_ROWS"))?;
            self.sys_meta.clear(row).map_err(io_error("SYS_META"))?;
            self.sys_free.push(row)?;
        }
        for (row, subject) in self.errors.forget(slot) {
            self.err_index.remove(index_key(slot, subject));
            self.errors.clear(row).map_err(io_error("ERR_ROWS"))?;
            self.err_meta.clear(row).map_err(io_error("ERR_META"))?;
            self.err_free.push(row)?;
        }
        self.slots.forget(slot);
        self.slots.clear(slot).map_err(io_error("SLOT_ROWS"))?;
        let generation = self.infos.load_u32(slot, offset_of!(SlotInfo, generation));
        self.clear_info(slot, generation.wrapping_add(1))?;
        self.lives[slot as usize] = Life::Free;
        self.slot_free.push(slot)
    }

    /// Empties a slot's info but for its generation.
    fn clear_info(&mut self, slot: u32, generation: u32) -> Result<(), MapAccessError> {
        let mut info = [0u64; size_of::<SlotInfo>() / 8];
        info[offset_of!(SlotInfo, generation) / 8] = generation.into();
        self.infos.store(slot, &info).map_err(io_error("SLOTS"))
    }
}
