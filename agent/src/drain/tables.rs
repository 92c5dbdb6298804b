//! In: the three tables of rows and the programs' free rows; out: what the rows counted, more rows where few are free, private
//! rows taken back. Knows slots, not their lives.

use std::mem::offset_of;
use std::ops::Range;

use kernmeter_abi::ways::{self, WAYS};
use kernmeter_abi::{
    ErrnoRow, FIRST_PRIVATE_SLOT_ROW, FIRST_PRIVATE_SYSCALL_ROW, FIRST_SLOT, KEY_USED, LowWater, PrivateLeft,
    RESOURCES, Resource, SLOT_CHUNK, SLOT_HOST, SLOT_OVERFLOW, SYSCALL_CHUNK, SlotRow, SyscallRow,
};

use super::accounts::Accounts;
use super::batch::{Deltas, Subject};
use super::rows::{Additions, Gone, Rows};
use crate::catalog::RowKind;
use crate::config::ReadMode;
use crate::kernel::chunks::Table;
use crate::kernel::maps::MapAccessError;
use crate::kernel::region::Region;
use crate::kernel::size::Plan;
use crate::kernel::{Kernel, LoadError, Queue, Way};

/// A private row that counted nothing for so long is taken back.
const IDLE_NS: u64 = 60_000_000_000;
/// The same where none is left for others.
const IDLE_UNDER_PRESSURE_NS: u64 = 1_000_000_000;
/// Rows of each kind that are made at once, but for the first: each chunk takes a thread for some 10 ms.
const AT_ONCE: u32 = 32 * SYSCALL_CHUNK;
/// More rows are made while less than so many eighths of those there are are free. An account gets no more than are free: so
/// there are more before it holds half. A host without containers has few slots in use, but a third of the first syscall rows.
const LOW_SLOTS: u32 = 6;
const LOW_SYSCALL_ROWS: u32 = 5;
const LOW_PRIVATE_ROWS: u32 = 4;
/// Looks, ten a second, before the kernel is asked again for what it refused.
const PAUSE: u32 = 600;
/// Private rows of each kind that one pass takes back at most.
const MOST_RETIRED: usize = 1024;

/// The keys of a table's shared rows.
struct Keys {
    region: Region,
    /// Which rows are known.
    known: Vec<bool>,
}

/// Every word of every CPU's sets: see [`kernmeter_abi::ways`].
struct Sets {
    region: Region,
    /// Which words name a row that is known.
    known: Vec<bool>,
}

/// What a slot gave back.
pub(super) struct Freed {
    pub syscall_rows: u64,
    pub errno_rows: u64,
}

/// Every table of rows.
pub(super) struct Tables {
    plan: Plan,
    mode: ReadMode,
    slots: Rows,
    syscalls: Rows,
    errors: Rows,
    syscall_keys: Keys,
    error_keys: Keys,
    sets: Sets,
    private_left: Region,
    /// Below how many free ones programs wake the agent.
    low_water: Region,
    /// Private rows that were ever met.
    private_taken: u64,
    /// Rows made so far.
    made: Rooms,
    /// Whether it is there. Never made twice, though what came after it was refused: programs may have filled it.
    has_second_index: bool,
    /// How many times more is not asked for more, which the kernel refused.
    pause: u32,
}

/// Numbers of rows of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rooms {
    slots: u32,
    syscalls: u32,
    private_syscalls: u32,
    private_slots: u32,
    errors: u32,
}

impl Rooms {
    /// As many, and so many more.
    fn and(&self, more: &Rooms) -> Rooms {
        Rooms {
            slots: self.slots + more.slots,
            syscalls: self.syscalls + more.syscalls,
            private_syscalls: self.private_syscalls + more.private_syscalls,
            private_slots: self.private_slots + more.private_slots,
            errors: self.errors + more.errors,
        }
    }
}

/// The key under which programs find a row.
const fn index_key(slot: u32, subject: Subject) -> u64 {
    match subject {
        Subject::Slot => slot as u64,
        Subject::Syscall(syscall) => (slot as u64) << 16 | syscall as u64,
        Subject::Errno(syscall, errno) => (slot as u64) << 32 | (syscall as u64) << 16 | errno as u64,
    }
}

impl Tables {
    /// Opens the tables. But for errno rows there are none yet.
    ///
    /// # Errors
    /// A map is missing, or the kernel refuses access to it.
    pub(super) fn open(kernel: &Kernel, mode: ReadMode) -> Result<Tables, LoadError> {
        let plan = *kernel.plan();
        let region = |name: &'static str, element: usize, entries: u32| {
            let region = Region::open(kernel.array_fd(name)?, element, entries, mode);
            region.map_err(MapAccessError::of(name)).map_err(LoadError::Map)
        };
        let switches = [offset_of!(SlotRow, voluntary), offset_of!(SlotRow, involuntary)];
        let mut errors =
            Rows::new(RowKind::Errno, plan.errno_rows * plan.errno_shards, &[offset_of!(ErrnoRow, errors)]);
        errors.add_chunk(0, region("ERR_ROWS", 8, plan.errno_rows * plan.errno_shards)?);
        Ok(Tables {
            slots: Rows::new(RowKind::Slot, SLOT_CHUNK, &switches),
            syscalls: Rows::new(RowKind::Syscall, SYSCALL_CHUNK, &[offset_of!(SyscallRow, calls)]),
            errors,
            syscall_keys: Keys::new(region("SYS_KEYS", 8, plan.syscall_rows)?, plan.syscall_rows),
            error_keys: Keys::new(region("ERR_KEYS", 8, plan.errno_rows)?, plan.errno_rows),
            sets: Sets::new(region("SETS", 8 * WAYS, plan.cpus * plan.sets)?, plan.cpus * plan.sets),
            private_taken: 0,
            private_left: region("PRIVATE_LEFT", size_of::<PrivateLeft>(), 1)?,
            low_water: region("LOW_WATER", size_of::<LowWater>(), 1)?,
            made: Rooms::default(),
            has_second_index: false,
            pause: 0,
            plan,
            mode,
        })
    }

    /// Makes rows where few are free, as many again as there are, up to the plan; at the start, the first. Slots, so that there
    /// are at least `least`. Sets below how many free ones programs ask for more.
    ///
    /// # Errors
    /// The kernel refused; what there is stays in use. The next [`PAUSE`] calls ask for nothing.
    pub(super) fn grow(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        least: u32,
    ) -> Result<(), MapAccessError> {
        if self.pause > 0 {
            self.pause -= 1;
            return Ok(());
        }
        self.private_left.refresh().map_err(MapAccessError::of("PRIVATE_LEFT"))?;
        let grown = self.try_grow(kernel, accounts, least);
        if grown.is_err() {
            self.pause = PAUSE;
            // Nobody is woken for nothing meanwhile: the pause is one of looks.
            self.set_low_water([0; RESOURCES]).map_err(MapAccessError::of("LOW_WATER"))?;
        }
        grown
    }

    fn try_grow(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        least: u32,
    ) -> Result<(), MapAccessError> {
        let more = self.wanted(accounts, least);
        if more == Rooms::default() {
            return self.ask_again();
        }
        let (made, new) = (self.made, self.made.and(&more));
        if !self.has_second_index && new.syscalls > self.plan.index() {
            kernel.add_second_index(self.plan.second_index())?;
            self.has_second_index = true;
        }
        // All at once: the kernel makes the agent wait for each, or for all together.
        let private_syscalls = FIRST_PRIVATE_SYSCALL_ROW + made.private_syscalls
            ..FIRST_PRIVATE_SYSCALL_ROW + new.private_syscalls;
        let private_slots =
            FIRST_PRIVATE_SLOT_ROW + made.private_slots..FIRST_PRIVATE_SLOT_ROW + new.private_slots;
        let chunks: Vec<_> = [
            (Table::Slots, made.slots..new.slots),
            (Table::Syscalls, made.syscalls..new.syscalls),
            (Table::Syscalls, private_syscalls.clone()),
            (Table::Slots, private_slots.clone()),
        ]
        .into_iter()
        .flat_map(|(table, rows)| table.chunks(rows).map(move |index| (table, index)))
        .collect();
        for (table, index, region) in kernel.add_chunks(&chunks, self.mode)? {
            match table {
                Table::Slots => self.slots.add_chunk(index, region),
                Table::Syscalls => self.syscalls.add_chunk(index, region),
            }
        }
        self.made = new;
        if made.slots == 0 {
            for slot in [SLOT_HOST, SLOT_OVERFLOW] {
                self.meet_slot(slot);
            }
        }
        let slots = made.slots.max(FIRST_SLOT)..new.slots.max(FIRST_SLOT);
        hand_out(kernel, accounts, Resource::SyscallRows, Queue::SyscallRows, made.syscalls..new.syscalls)?;
        hand_out(kernel, accounts, Resource::Slots, Queue::Slots, slots)?;
        hand_out(kernel, accounts, Resource::ErrnoRows, Queue::ErrnoRows, made.errors..new.errors)?;
        kernel.fill(Queue::PrivateSyscallRows, private_syscalls)?;
        kernel.fill(Queue::PrivateSlotRows, private_slots)?;
        self.ask_again()
    }

    /// What there should be more of.
    fn wanted(&self, accounts: &Accounts, least: u32) -> Rooms {
        let (plan, made) = (&self.plan, &self.made);
        let free = |resource| accounts.free(resource) as u32;
        let private = |kind: usize, made: u32, chunk: u32, most: u32| {
            let left = self.private_left.load(0, offset_of!(PrivateLeft, left) + 8 * kind);
            let is_wanted = self.private_left.load(0, offset_of!(PrivateLeft, wanted) + 8 * kind) != 0;
            let low = low_water(made, most, LOW_PRIVATE_ROWS);
            // Every busy host wants the first.
            if is_wanted || made == 0 { more(made, left as u32, low, chunk, most) } else { 0 }
        };
        let low = low_water(made.slots, plan.slots, LOW_SLOTS);
        let slots = more(made.slots, free(Resource::Slots), low, plan.start_slots(), plan.slots);
        let low = low_water(made.syscalls, plan.syscall_rows, LOW_SYSCALL_ROWS);
        let rows = free(Resource::SyscallRows);
        Rooms {
            slots: slots.max(least.min(plan.slots).saturating_sub(made.slots)),
            syscalls: more(made.syscalls, rows, low, plan.start_syscall_rows(), plan.syscall_rows),
            private_syscalls: private(0, made.private_syscalls, SYSCALL_CHUNK, plan.private_syscall_rows),
            private_slots: private(1, made.private_slots, SLOT_CHUNK, plan.private_slot_rows),
            errors: plan.errno_rows - made.errors,
        }
    }

    /// Programs ask for more where there are few, while there is more to be had.
    fn ask_again(&mut self) -> Result<(), MapAccessError> {
        let mut marks = [0; RESOURCES];
        for (resource, low) in [
            (Resource::Slots, low_water(self.made.slots, self.plan.slots, LOW_SLOTS)),
            (Resource::SyscallRows, low_water(self.made.syscalls, self.plan.syscall_rows, LOW_SYSCALL_ROWS)),
        ] {
            marks[resource as usize] = u64::from(low);
        }
        self.set_low_water(marks).map_err(MapAccessError::of("LOW_WATER"))
    }

    fn set_low_water(&mut self, marks: [u64; RESOURCES]) -> std::io::Result<()> {
        let is_set = |(i, mark): (usize, &u64)| self.low_water.load(0, size_of::<u64>() * i) == *mark;
        if marks.iter().enumerate().all(is_set) { Ok(()) } else { self.low_water.store(0, &marks) }
    }

    /// How many slots or syscall rows may still be made, and how many there may be.
    pub(super) fn unmade(&self, resource: Resource) -> (u32, u32) {
        let (made, most) = match resource {
            Resource::Slots | Resource::RootSlots => (self.made.slots, self.plan.slots),
            Resource::SyscallRows => (self.made.syscalls, self.plan.syscall_rows),
            Resource::ErrnoRows => (self.made.errors, self.plan.errno_rows),
        };
        (most - made, most)
    }

    /// Brings what is copied rather than mapped up to date.
    ///
    /// # Errors
    /// The kernel refused the lookup.
    pub(super) fn refresh(&mut self) -> Result<(), MapAccessError> {
        for (name, region) in [
            ("SYS_KEYS", &mut self.syscall_keys.region),
            ("ERR_KEYS", &mut self.error_keys.region),
            ("SETS", &mut self.sets.region),
        ] {
            region.refresh().map_err(MapAccessError::of(name))?;
        }
        for (name, rows) in
            [("SLOT_ROWS", &mut self.slots), ("SYS_ROWS", &mut self.syscalls), ("ERR_ROWS", &mut self.errors)]
        {
            rows.refresh().map_err(MapAccessError::of(name))?;
        }
        Ok(())
    }

    /// Whether rows are read without system calls.
    pub(super) fn is_mapped(&self) -> bool {
        self.syscalls.is_mapped()
    }

    /// Rows in use: (syscall rows, errno rows).
    pub(super) fn used(&self) -> (u32, u32) {
        (self.syscalls.len(), self.errors.len())
    }

    /// Private rows in use: (of syscalls, of slots).
    pub(super) fn private(&self) -> (u32, u32) {
        (self.syscalls.private_parts(), self.slots.private_parts())
    }

    /// Private rows that CPUs ever took, as far as passes saw them.
    pub(super) fn private_taken(&self) -> u64 {
        self.private_taken
    }

    /// Events that were counted, by the kind of row they were added to.
    pub(super) fn additions(&self) -> Additions {
        let (slots, syscalls) = (self.slots.additions(), self.syscalls.additions());
        Additions { private: slots.private + syscalls.private, shared: slots.shared + syscalls.shared }
    }

    /// Reads the row of a slot from now on.
    pub(super) fn meet_slot(&mut self, slot: u32) {
        self.slots.meet(slot, slot, Subject::Slot, std::iter::once(slot));
    }

    /// The last sum of the counter at a byte offset of a slot's row.
    pub(super) fn last_of_slot(&self, slot: u32, offset: usize) -> u64 {
        self.slots.last(slot, offset)
    }

    /// Finds rows with new keys. Rows of a slot that has no owner yet are left to the next pass, which knows whose they are.
    pub(super) fn discover(&mut self, now_ns: u64, owned: impl Fn(u32) -> bool) {
        let (syscalls, slots) = (&mut self.syscalls, &mut self.slots);
        self.syscall_keys.discover(self.made.syscalls, |row, key| {
            let (slot, syscall) = ((key >> 16) as u32, key as u32 & 0xffff);
            let is_owned = owned(slot);
            if is_owned {
                syscalls.meet(row, slot, Subject::Syscall(syscall), std::iter::once(row));
            }
            is_owned
        });
        let Plan { errno_rows, errno_shards, .. } = self.plan;
        let errors = &mut self.errors;
        self.error_keys.discover(errno_rows, |row, key| {
            let (slot, syscall, errno) =
                ((key >> 32) as u32, (key >> 16) as u32 & 0xffff, key as u32 & 0xffff);
            let is_owned = owned(slot);
            if is_owned {
                let shards = (0..errno_shards).map(|shard| shard * errno_rows + row);
                errors.meet(row, slot, Subject::Errno(syscall, errno), shards);
            }
            is_owned
        });
        let met = self.sets.discover(|way, key, row| match ways::slot_of(key) {
            Some(slot) => slots.meet_private(slot, row, way, now_ns),
            None => syscalls.meet_private(key, row, way, now_ns),
        });
        self.private_taken += met;
    }

    /// Writes what every row in use counted since the last look into `deltas`.
    pub(super) fn read(&mut self, now_ns: u64, deltas: &mut Deltas) {
        for rows in [&mut self.slots, &mut self.syscalls, &mut self.errors] {
            rows.read(now_ns, deltas);
        }
    }

    /// Takes private rows back that nobody adds to: lets their CPUs forget them, and a pass later, when every program that
    /// still knew them has ended, gives them to others.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub(super) fn reclaim(&mut self, kernel: &Kernel, pass: u64, now_ns: u64) -> Result<(), MapAccessError> {
        for gone in self.syscalls.end_retired(pass) {
            self.give_private_syscall_row(kernel, gone)?;
        }
        for gone in self.slots.end_retired(pass) {
            self.give_private_slot_row(kernel, gone)?;
        }
        let left = |kind: usize| self.private_left.load(0, offset_of!(PrivateLeft, left) + 8 * kind) as i64;
        for (kind, rows) in [&mut self.syscalls, &mut self.slots].into_iter().enumerate() {
            let idle = if left(kind) <= 0 { IDLE_UNDER_PRESSURE_NS } else { IDLE_NS };
            for way in rows.retire(pass, now_ns.saturating_sub(idle), MOST_RETIRED) {
                kernel.set_way(way, Way::Retire)?;
            }
        }
        Ok(())
    }

    fn give_private_syscall_row(&mut self, kernel: &Kernel, gone: Gone) -> Result<(), MapAccessError> {
        self.syscalls.clear(gone.row).map_err(MapAccessError::of("SYS_ROWS"))?;
        self.sets.forget(gone.way);
        kernel.set_way(gone.way, Way::Free)?;
        kernel.push(Queue::PrivateSyscallRows, gone.row)
    }

    fn give_private_slot_row(&mut self, kernel: &Kernel, gone: Gone) -> Result<(), MapAccessError> {
        self.slots.clear(gone.row).map_err(MapAccessError::of("SLOT_ROWS"))?;
        self.sets.forget(gone.way);
        kernel.set_way(gone.way, Way::Free)?;
        kernel.push(Queue::PrivateSlotRows, gone.row)
    }

    /// Clears all rows of a slot and gives them back, but for the slot itself. No program finds them, and every count in them
    /// was read.
    ///
    /// # Errors
    /// The kernel refused access to a map.
    pub(super) fn free(&mut self, kernel: &Kernel, slot: u32) -> Result<Freed, MapAccessError> {
        let (syscalls, private) = self.syscalls.forget(slot);
        for gone in private {
            self.give_private_syscall_row(kernel, gone)?;
        }
        let freed_syscalls = syscalls.len() as u64;
        for (row, subject) in syscalls {
            kernel.remove_syscall(index_key(slot, subject) as u32)?;
            self.syscalls.clear(row).map_err(MapAccessError::of("SYS_ROWS"))?;
            self.syscall_keys.forget(row).map_err(MapAccessError::of("SYS_KEYS"))?;
            kernel.push(Queue::SyscallRows, row)?;
        }
        let (errors, _) = self.errors.forget(slot);
        let freed_errors = errors.len() as u64;
        for (row, subject) in errors {
            kernel.remove_errno(index_key(slot, subject))?;
            for shard in 0..self.plan.errno_shards {
                let row = shard * self.plan.errno_rows + row;
                self.errors.clear(row).map_err(MapAccessError::of("ERR_ROWS"))?;
            }
            self.error_keys.forget(row).map_err(MapAccessError::of("ERR_KEYS"))?;
            kernel.push(Queue::ErrnoRows, row)?;
        }
        let (_, private) = self.slots.forget(slot);
        for gone in private {
            self.give_private_slot_row(kernel, gone)?;
        }
        self.slots.clear(slot).map_err(MapAccessError::of("SLOT_ROWS"))?;
        Ok(Freed { syscall_rows: freed_syscalls, errno_rows: freed_errors })
    }
}

/// Puts these numbers into the pool, and into the queue that they are taken from.
fn hand_out(
    kernel: &mut Kernel,
    accounts: &mut Accounts,
    resource: Resource,
    queue: Queue,
    numbers: Range<u32>,
) -> Result<(), MapAccessError> {
    accounts.add(resource, numbers.len() as u64).map_err(MapAccessError::of("GIVEN"))?;
    kernel.fill(queue, numbers)
}

/// Below how many free rows more are made: so many eighths of what there is; 0 if there are as many as there may be.
fn low_water(made: u32, most: u32, eighths: u32) -> u32 {
    if made < most { (u64::from(made) * u64::from(eighths) / 8) as u32 } else { 0 }
}

/// How many more rows to make of `made`, of which so many are free: `start` at first, then as many again while less than `low` are
/// free, or three times as many while less than half of that is, up to `most`. Never so many that the agent is held up for long.
fn more(made: u32, free: u32, low: u32, start: u32, most: u32) -> u32 {
    let wanted = if made == 0 {
        start
    } else if free < low / 2 {
        (3 * made).min(AT_ONCE)
    } else if free < low {
        made.min(AT_ONCE)
    } else {
        0
    };
    wanted.min(most - made)
}

impl Keys {
    fn new(region: Region, rows: u32) -> Keys {
        Keys { region, known: vec![false; rows as usize] }
    }

    /// Shows each of the first `rows` rows that got a key since the last look, until it is taken.
    fn discover(&mut self, rows: u32, mut take: impl FnMut(u32, u64) -> bool) {
        for (row, known) in (0..rows).zip(&mut self.known) {
            if !*known {
                let key = self.region.load(row, 0);
                *known = key & KEY_USED != 0 && take(row, key & !KEY_USED);
            }
        }
    }

    /// Takes the key from a row.
    fn forget(&mut self, row: u32) -> std::io::Result<()> {
        self.known[row as usize] = false;
        self.region.clear(row)
    }
}

impl Sets {
    fn new(region: Region, sets: u32) -> Sets {
        Sets { region, known: vec![false; WAYS * sets as usize] }
    }

    /// Shows each word that has come to name a row since the last look, with the row's key and the row, until it is taken.
    /// Returns how many were.
    fn discover(&mut self, mut take: impl FnMut(u32, u32, u32) -> bool) -> u64 {
        let mut taken = 0;
        for (way, known) in (0u32..).zip(&mut self.known) {
            if *known {
                continue;
            }
            let (set, place) = (way / WAYS as u32, way as usize % WAYS);
            let Some((key, row)) = ways::named(self.region.load(set, 8 * place)) else { continue };
            *known = take(way, key, row);
            taken += u64::from(*known);
        }
        taken
    }

    /// A word names nothing any more.
    fn forget(&mut self, way: u32) {
        self.known[way as usize] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, low_water, more};

    #[test]
    fn rows_are_made_while_few_are_free() {
        assert_eq!(more(0, 0, 0, 2048, 8192), 2048, "the first");
        assert_eq!(more(0, 0, 0, 2048, 100), 100, "no more than are wanted");
        assert_eq!(more(2048, 1024, 1024, 2048, 8192), 0, "enough are free");
        assert_eq!(more(2048, 1023, 1024, 2048, 8192), 2048, "as many again");
        assert_eq!(more(2048, 511, 1024, 2048, 65536), 6144, "in a hurry");
        assert_eq!(more(6144, 0, 3072, 2048, 8192), 2048, "up to the most");
        assert_eq!(more(16384, 0, 8192, 2048, 65536), AT_ONCE, "not too many");
        assert_eq!(more(8192, 0, 0, 2048, 8192), 0);
        assert_eq!(more(0, 0, 0, 1024, 0), 0, "none at all");
    }

    #[test]
    fn programs_ask_for_more_while_there_is_more() {
        assert_eq!(low_water(1536, 4096, 6), 1152);
        assert_eq!(low_water(4096, 4096, 6), 0, "nobody is woken for nothing");
        assert_eq!(low_water(0, 0, 6), 0);
    }
}
