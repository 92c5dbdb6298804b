//! In: the kernel's rows; out: batches of differences, and slots given back. Knows slots, never tenants.

mod accounts;
mod batch;
mod rows;
mod tables;

use std::mem::offset_of;

use accounts::Accounts;
pub use batch::{Batch, Birth, Delta, Deltas, Subject};
use kernmeter_abi::{
    CgroupRef, FIRST_SLOT, Holdings, LOSSES, Resource, SLOT_HOST, SLOT_OVERFLOW, SlotInfo, SlotRow, TOTALS,
    Total, slot_state,
};
pub use rows::Additions;
use tables::Tables;

use crate::config::ReadMode;
use crate::kernel::cpus::Cpus;
use crate::kernel::maps::{MapAccessError, PerCpuCounters};
use crate::kernel::region::Region;
use crate::kernel::size::Plan;
use crate::kernel::{Kernel, LoadError, Queue};

/// Tasks that hold a slot so long after its cgroup was removed are taken off it. All tasks are looked at for that: at most as
/// often.
const OVERDUE_NS: u64 = 30_000_000_000;

/// Passes that root makes necessary take at most one part in so many of the time, but for the first.
const PRESSED_SHARE: u64 = 4;
/// The same of passes that clear what is gone, for whoever needs it: users can make a lot that is gone.
const RECYCLING_SHARE: u64 = 100;

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

/// A cgroup that is there, as a walk of the hierarchy found it.
#[derive(Clone, Copy, Debug)]
pub struct Existing<'a> {
    /// Its id.
    pub id: u64,
    /// Its parent's.
    pub parent_id: u64,
    /// Its own name.
    pub name: &'a [u8],
    /// Root owns it, so that it is an account of its own.
    pub is_roots: bool,
}

/// Reads rows, remembers what was read, recycles slots.
pub struct Drain {
    plan: Plan,
    infos: Region,
    tables: Tables,
    accounts: Accounts,
    totals: PerCpuCounters<TOTALS>,
    cpus: Cpus,
    /// The most that was told of idle time.
    idle_ns: u64,
    losses: PerCpuCounters<LOSSES>,
    lives: Vec<Life>,
    pass: u64,
    root_slots_at_last_pass: u64,
    /// When tasks were last taken off slots.
    taken_off_ns: u64,
    /// Whether slots are on their way to be free: the next pass brings them further.
    is_recycling: bool,
    /// When the last pass ended, and how long it took.
    passed_ns: u64,
    pass_took_ns: u64,
}

impl Drain {
    /// Opens the maps of a loaded kernel side, makes the first rows and fills the free queues. The root cgroup is slot 0.
    ///
    /// # Errors
    /// A map is missing, or the kernel refuses access to it.
    pub fn open(kernel: &mut Kernel, root_cgroup: u64, mode: ReadMode) -> Result<Drain, LoadError> {
        let plan = *kernel.plan();
        let region = |name: &'static str, element: usize, entries: u32| {
            let region = Region::open(kernel.array_fd(name)?, element, entries, mode);
            region.map_err(MapAccessError::of(name)).map_err(LoadError::Map)
        };
        let infos = region("SLOTS", size_of::<SlotInfo>(), plan.slots)?;
        let [taken, given] =
            ["TAKEN", "GIVEN"].map(|name| region(name, size_of::<Holdings>(), plan.slots + 1));
        let accounts = Accounts::new(taken?, given?, plan.slots);
        let mut lives = vec![Life::Free; plan.slots as usize];
        lives[SLOT_HOST as usize] = Life::Live;
        lives[SLOT_OVERFLOW as usize] = Life::Live;
        let mut drain = Drain {
            plan,
            infos,
            tables: Tables::open(kernel, mode)?,
            accounts,
            totals: PerCpuCounters::open(kernel, "TOTALS", mode)?,
            cpus: Cpus::open(kernel, mode)?,
            idle_ns: 0,
            losses: PerCpuCounters::open(kernel, "LOSSES", mode)?,
            lives,
            pass: 0,
            root_slots_at_last_pass: 0,
            taken_off_ns: 0,
            is_recycling: false,
            passed_ns: 0,
            pass_took_ns: 0,
        };
        drain.grow(kernel)?;
        // Rows of what has no workload are on an account of their own.
        let mut overflow = [0u64; size_of::<SlotInfo>() / 8];
        overflow[offset_of!(SlotInfo, account) / 8] = SLOT_OVERFLOW.into();
        drain.infos.store(SLOT_OVERFLOW, &overflow).map_err(MapAccessError::of("SLOTS"))?;
        if !kernel.set_cgroup(root_cgroup, CgroupRef { slot: SLOT_HOST, flags: 0 })? {
            return Err(LoadError::Map(MapAccessError { map: "CGROUPS", reason: "no room".into() }));
        }
        Ok(drain)
    }

    /// Whether rows are read without system calls.
    pub fn is_mapped(&self) -> bool {
        self.tables.is_mapped()
    }

    /// Makes rows where few are free, as far as the plan goes.
    ///
    /// # Errors
    /// The kernel refused; what there is stays in use.
    pub fn grow(&mut self, kernel: &mut Kernel) -> Result<(), MapAccessError> {
        self.accounts.refresh().map_err(MapAccessError::of("TAKEN"))?;
        self.tables.grow(kernel, &mut self.accounts, 0)
    }

    /// Makes as many slots as so many cgroups need, as far as the plan goes.
    ///
    /// # Errors
    /// The kernel refused; what there is stays in use.
    pub fn make_room(&mut self, kernel: &mut Kernel, cgroups: u32) -> Result<(), MapAccessError> {
        self.accounts.refresh().map_err(MapAccessError::of("TAKEN"))?;
        self.tables.grow(kernel, &mut self.accounts, cgroups.saturating_add(FIRST_SLOT))
    }

    /// Gives a cgroup that exists already a slot, unless it is part of a workload, has one already, or its account holds more
    /// than are free. Parents must come before children. Returns
    /// whether it found all it wants: false for one that should have a slot of its own and has none.
    ///
    /// # Errors
    /// The kernel refused access to a map. Full tables are not errors: such cgroups are billed as the kernel side bills those
    /// that find no slot.
    pub fn adopt(&mut self, kernel: &Kernel, cgroup: &Existing<'_>) -> Result<bool, MapAccessError> {
        let known = kernel.cgroup(cgroup.id)?;
        if known.is_some_and(|own| own.slot != SLOT_OVERFLOW) {
            return Ok(true);
        }
        // Below what has no slot none is looked for: that comes first.
        let Some(parent) = kernel.cgroup(cgroup.parent_id)? else { return Ok(true) };
        if parent.flags & CgroupRef::INHERIT != 0 || parent.slot == SLOT_OVERFLOW {
            return Ok(true);
        }
        let name = &cgroup.name[..cgroup.name.len().min(kernmeter_abi::NAME_MAX)];
        let flags = CgroupRef::flags_of(name.len(), |i| name[i]);
        let above = self.infos.load_u32(parent.slot, offset_of!(SlotInfo, account));
        let is_allowed = if cgroup.is_roots {
            self.accounts.is_left(Resource::Slots)
        } else {
            self.accounts.allows(above, Resource::Slots)
        };
        let slot = if is_allowed { kernel.pop_slot()? } else { None };
        let Some(slot) = slot else {
            if cgroup.is_roots && parent.flags & CgroupRef::POD == 0 {
                // If the table is full, its lookups fail and are counted as losses.
                kernel.set_cgroup(cgroup.id, CgroupRef { slot: SLOT_OVERFLOW, flags })?;
            }
            return Ok(false);
        };
        let account = if cgroup.is_roots { slot } else { above };
        let mut info = [0u64; size_of::<SlotInfo>() / 8];
        info[offset_of!(SlotInfo, cgroup_id) / 8] = cgroup.id;
        info[offset_of!(SlotInfo, parent_id) / 8] = cgroup.parent_id;
        info[offset_of!(SlotInfo, state) / 8] = u64::from(slot_state::LIVE) | u64::from(parent.slot) << 32;
        let generation = self.infos.load_u32(slot, offset_of!(SlotInfo, generation));
        info[offset_of!(SlotInfo, generation) / 8] = u64::from(generation) | (name.len() as u64) << 32;
        info[offset_of!(SlotInfo, account) / 8] = account.into();
        for (word, bytes) in info[offset_of!(SlotInfo, name) / 8..].iter_mut().zip(name.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        self.infos.store(slot, &info).map_err(MapAccessError::of("SLOTS"))?;
        let own = CgroupRef { slot, flags };
        let is_bound = if known.is_some() {
            kernel.set_cgroup(cgroup.id, own)?
        } else {
            kernel.add_cgroup(cgroup.id, own)?
        };
        if !is_bound {
            // Created by the kernel side between the look and the insertion, or no room: the slot was not needed.
            self.clear_info(slot, generation)?;
            kernel.push(Queue::Slots, slot)?;
            return Ok(true);
        }
        self.accounts.charge(account, Resource::Slots).map_err(MapAccessError::of("GIVEN"))?;
        Ok(true)
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
        self.set_state(slot, slot_state::DEAD)
    }

    fn set_state(&mut self, slot: u32, state: u32) -> Result<(), MapAccessError> {
        let mut info: Vec<u64> =
            (0..size_of::<SlotInfo>() / 8).map(|word| self.infos.load(slot, 8 * word)).collect();
        let word = &mut info[offset_of!(SlotInfo, state) / 8];
        *word = *word & !0xffff_ffff | u64::from(state);
        self.infos.store(slot, &info).map_err(MapAccessError::of("SLOTS"))
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
        self.tables.used()
    }

    /// Private rows in use: of syscalls, of slots.
    pub fn private_rows(&self) -> (u32, u32) {
        self.tables.private()
    }

    /// Private rows that CPUs ever took, as far as passes saw them.
    pub fn private_rows_taken(&self) -> u64 {
        self.tables.private_taken()
    }

    /// Events that were counted, by the kind of row they were added to.
    pub fn additions(&self) -> Additions {
        self.tables.additions()
    }

    /// Whether a pass should run at once at `now_ns`, `CLOCK_MONOTONIC` nanoseconds: root makes cgroups so fast that slots, or rows,
    /// would run out before the next pass is due, or few are left while others wait to be cleared. Such passes take a bounded
    /// part of the time, and what users make has next to none: it comes off their accounts.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn is_pressed(&mut self, now_ns: u64) -> Result<bool, MapAccessError> {
        self.accounts.refresh().map_err(MapAccessError::of("TAKEN"))?;
        let made = self.accounts.root_slots() - self.root_slots_at_last_pass;
        let free = (self.accounts.free(Resource::Slots) as i64).max(0) as u64;
        let few = |resource| {
            let (unmade, most) = self.tables.unmade(resource);
            // Below 0 for a moment, while CPUs take the last ones.
            let free = self.accounts.free(resource) as i64;
            free + i64::from(unmade) < i64::from(most) / 4
        };
        let is_scarce = few(Resource::Slots) || few(Resource::SyscallRows);
        // Made since the last pass, so perhaps gone since; or known to be gone, whoever made it, and free in a pass or two.
        let share = if made > free / 2 || (made > 0 && is_scarce) {
            PRESSED_SHARE
        } else if is_scarce && self.is_recycling {
            RECYCLING_SHARE
        } else {
            return Ok(false);
        };
        Ok(now_ns.saturating_sub(self.passed_ns) >= self.pass_took_ns.saturating_mul(share))
    }

    /// Notes how long the last pass took with everything that follows, and when it ended: what [`Drain::is_pressed`] goes by.
    pub fn note_pass(&mut self, ended_ns: u64, took_ns: u64) {
        (self.passed_ns, self.pass_took_ns) = (ended_ns, took_ns);
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
        batch.totals_before = self.totals(kernel, now_ns)?;
        kernel.flush(|cpu| self.cpus.idle_since(cpu).is_some());
        self.refresh()?;
        self.root_slots_at_last_pass = self.accounts.root_slots();
        self.read_slots(batch);
        let lives = &self.lives;
        self.tables.discover(now_ns, |slot| lives.get(slot as usize).is_some_and(|life| *life != Life::Free));
        self.tables.read(now_ns, &mut batch.rows);
        batch.totals_after = self.totals(kernel, now_ns)?;
        batch.losses = self.losses.sum()?;
        self.tables.reclaim(kernel, self.pass, now_ns)?;
        self.recycle(kernel, batch)?;
        self.take_off_overdue(kernel, now_ns)
    }

    /// Has tasks taken off slots whose cgroup was removed long ago: a task may stay in a call that it entered there for as long as
    /// it likes, and would hold the slot.
    fn take_off_overdue(&mut self, kernel: &mut Kernel, now_ns: u64) -> Result<(), MapAccessError> {
        if now_ns.saturating_sub(self.taken_off_ns) < OVERDUE_NS {
            return Ok(());
        }
        let mut is_any = false;
        for slot in FIRST_SLOT..self.plan.slots {
            if !matches!(self.lives[slot as usize], Life::Dead(_)) || self.tasks(slot) == 0 {
                continue;
            }
            let removed_ns = self.infos.load(slot, offset_of!(SlotInfo, removed_ns));
            if now_ns.saturating_sub(removed_ns) >= OVERDUE_NS {
                self.set_state(slot, slot_state::OVERDUE)?;
                is_any = true;
            }
        }
        if is_any {
            self.taken_off_ns = now_ns;
            if let Err(reason) = kernel.visit_tasks() {
                tracing::debug!(%reason, "tasks in a call hold the slots of cgroups that are gone");
            }
        }
        Ok(())
    }

    /// The independent totals now, summed over CPUs; with the time that CPUs idle at `now_ns`, `CLOCK_MONOTONIC` nanoseconds.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub fn totals(&mut self, kernel: &Kernel, now_ns: u64) -> Result<[u64; TOTALS], MapAccessError> {
        let mut totals = self.totals.sum()?;
        let idle_ns = &mut totals[Total::IdleNs as usize];
        // After the totals: what of a CPU is in them is not added again. One that wakes in between is a little behind.
        if kernel.is_attached() {
            self.cpus.refresh()?;
            *idle_ns += self.cpus.idle_ns(now_ns);
        }
        self.idle_ns = self.idle_ns.max(*idle_ns);
        *idle_ns = self.idle_ns;
        Ok(totals)
    }

    /// Brings what is copied rather than mapped up to date.
    fn refresh(&mut self) -> Result<(), MapAccessError> {
        self.infos.refresh().map_err(MapAccessError::of("SLOTS"))?;
        self.accounts.refresh().map_err(MapAccessError::of("TAKEN"))?;
        self.tables.refresh()
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
                self.tables.meet_slot(slot);
            }
            if self.lives[slot as usize] == Life::Live && state == slot_state::DEAD {
                self.lives[slot as usize] = Life::Dead(self.pass);
                batch.deaths.push(slot);
            }
        }
        // cgroup ids grow: a child's is larger than its parent's.
        batch.births.sort_by_key(|birth| birth.cgroup_id);
    }

    /// Live tasks bound to a slot, as of the last look.
    fn tasks(&self, slot: u32) -> u64 {
        self.tables.last_of_slot(slot, offset_of!(SlotRow, tasks))
    }

    /// Moves dead slots towards the free queue.
    fn recycle(&mut self, kernel: &Kernel, batch: &mut Batch) -> Result<(), MapAccessError> {
        self.is_recycling = false;
        for slot in FIRST_SLOT..self.plan.slots {
            match self.lives[slot as usize] {
                // Tasks on their way out still hold the slot: wait for the last.
                Life::Dead(since) if since < self.pass && self.tasks(slot) == 0 => {
                    let id = self.infos.load(slot, offset_of!(SlotInfo, cgroup_id));
                    kernel.remove_cgroup(id)?;
                    self.lives[slot as usize] = Life::Closing(self.pass);
                    self.is_recycling = true;
                }
                Life::Dead(since) => self.is_recycling |= since == self.pass,
                // A task may have been bound between the last look and the removal of the cgroup.
                Life::Closing(since)
                    if since < self.pass && self.tasks(slot) == 0 && !self.has_dependents(slot) =>
                {
                    self.free(kernel, slot)?;
                    batch.freed.push(slot);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn account(&self, slot: u32) -> u32 {
        self.infos.load_u32(slot, offset_of!(SlotInfo, account))
    }

    /// Whether other slots are on this one's account: it must not be another's before they are given back.
    fn has_dependents(&self, slot: u32) -> bool {
        self.account(slot) == slot && self.accounts.held(slot, Resource::Slots) > 1
    }

    /// Clears a slot's rows and gives all of them back. Every count in them was read by this pass.
    fn free(&mut self, kernel: &Kernel, slot: u32) -> Result<(), MapAccessError> {
        let freed = self.tables.free(kernel, slot)?;
        let given = [
            (Resource::Slots, 1),
            (Resource::SyscallRows, freed.syscall_rows),
            (Resource::ErrnoRows, freed.errno_rows),
        ];
        let account = self.account(slot);
        let generation = self.infos.load_u32(slot, offset_of!(SlotInfo, generation));
        self.clear_info(slot, generation.wrapping_add(1))?;
        self.lives[slot as usize] = Life::Free;
        kernel.push(Queue::Slots, slot)?;
        given.into_iter().try_for_each(|(resource, count)| {
            self.accounts.give(account, resource, count).map_err(MapAccessError::of("GIVEN"))
        })
    }

    /// Empties a slot's info but for its generation.
    fn clear_info(&mut self, slot: u32, generation: u32) -> Result<(), MapAccessError> {
        let mut info = [0u64; size_of::<SlotInfo>() / 8];
        info[offset_of!(SlotInfo, generation) / 8] = generation.into();
        self.infos.store(slot, &info).map_err(MapAccessError::of("SLOTS"))
    }
}
