//! In: the three tables of rows and the programs' free rows; out: what the rows counted, more rows where few are free, private
//! rows taken back. Knows slots, not their lives.

use std::mem::offset_of;

use kernmeter_abi::{
    ErrnoRow, FIRST_PRIVATE_SLOT_CHUNK, FIRST_SLOT, KEY_USED, PrivateKey, PrivateLeft, Resource, SLOT_CHUNK,
    SLOT_HOST, SLOT_OVERFLOW, SYSCALL_CHUNK, SlotRow, SyscallRow, ways,
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
use crate::kernel::{Kernel, LoadError, Queue};

/// A private row that counted nothing for so long is taken back.
const IDLE_NS: u64 = 60_000_000_000;
/// The same where none is left for others.
const IDLE_UNDER_PRESSURE_NS: u64 = 1_000_000_000;
/// Rows of each kind that are made at once, but for the first.
const AT_ONCE: u32 = 4 * SYSCALL_CHUNK;
/// Private rows of each kind that one pass takes back at most.
const MOST_RETIRED: usize = 1024;

/// Keys of a chunk of rows.
struct Keys {
    /// `None` where rows have no keys.
    region: Option<Region>,
    /// Number of its first row.
    first: u32,
    /// Rows of it that are handed out.
    rows: u32,
    /// Which rows are known.
    known: Vec<bool>,
}

impl Keys {
    fn new(region: Option<Region>, first: u32, rows: u32) -> Keys {
        Keys { region, first, rows, known: vec![false; rows as usize] }
    }
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
    /// Of private slot rows.
    slot_keys: Vec<Keys>,
    /// Of shared syscall rows, and of private ones.
    syscall_keys: Vec<Keys>,
    private_keys: Vec<Keys>,
    error_keys: Keys,
    private_left: Region,
    /// Rows made so far.
    made: Made,
    /// Whether the kernel refused to make more: not asked again.
    is_refused: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Made {
    slots: u32,
    syscalls: u32,
    private_syscalls: u32,
    private_slots: u32,
    errors: u32,
    syscall_chunks: u32,
    has_second_index: bool,
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
        let mut errors = Rows::new(
            RowKind::Errno,
            plan.errno_rows * plan.errno_shards,
            &[offset_of!(ErrnoRow, errors)],
        );
        errors.add_chunk(0, region("ERR_ROWS", 8, plan.errno_rows * plan.errno_shards)?);
        Ok(Tables {
            slots: Rows::new(RowKind::Slot, SLOT_CHUNK, &switches),
            syscalls: Rows::new(RowKind::Syscall, SYSCALL_CHUNK, &[offset_of!(SyscallRow, calls)]),
            errors,
            slot_keys: Vec::new(),
            syscall_keys: Vec::new(),
            private_keys: Vec::new(),
            error_keys: Keys::new(Some(region("ERR_KEYS", 8, plan.errno_rows)?), 0, plan.errno_rows),
            private_left: region("PRIVATE_LEFT", size_of::<PrivateLeft>(), 1)?,
            made: Made::default(),
            is_refused: false,
            plan,
            mode,
        })
    }

    /// Makes rows where less than half is free, as many again as there are, up to the plan; at the start, the first.
    ///
    /// # Errors
    /// The kernel refused; what there is stays in use. After the first refusal no more is asked for.
    pub(super) fn grow(&mut self, kernel: &mut Kernel, accounts: &mut Accounts) -> Result<(), MapAccessError> {
        if self.is_refused {
            return Ok(());
        }
        self.private_left.refresh().map_err(MapAccessError::of("PRIVATE_LEFT"))?;
        let grown = self.try_grow(kernel, accounts);
        self.is_refused = grown.is_err();
        grown
    }

    fn try_grow(&mut self, kernel: &mut Kernel, accounts: &mut Accounts) -> Result<(), MapAccessError> {
        let given = MapAccessError::of("GIVEN");
        if self.made.errors == 0 {
            kernel.push(Queue::ErrnoRows, 0, self.plan.errno_rows)?;
            accounts.add(Resource::ErrnoRows, self.plan.errno_rows.into()).map_err(&given)?;
            self.made.errors = self.plan.errno_rows;
        }
        let free = |resource| accounts.free(resource) as u32;
        let (free_slots, free_rows) = (free(Resource::Slots), free(Resource::SyscallRows));
        let slots = more(self.made.slots, free_slots, self.plan.start_slots(), self.plan.slots);
        if slots > 0 {
            let first = self.made.slots.max(FIRST_SLOT);
            let pushed = self.made.slots + slots - first;
            self.make_slots(kernel, slots)?;
            accounts.add(Resource::Slots, pushed.into()).map_err(&given)?;
            kernel.push(Queue::Slots, first, pushed)?;
        }
        let rows = more(self.made.syscalls, free_rows, self.plan.start_syscall_rows(), self.plan.syscall_rows);
        if rows > 0 {
            self.make_syscall_rows(kernel, accounts, rows)?;
        }
        let left = |kind: usize| self.private_left.load(0, offset_of!(PrivateLeft, left) + 8 * kind) as u32;
        let (left_syscalls, left_slots) = (left(0), left(1));
        let rows =
            more(self.made.private_syscalls, left_syscalls, SYSCALL_CHUNK, self.plan.private_syscall_rows);
        if rows > 0 {
            self.make_private_syscall_rows(kernel, rows)?;
        }
        let rows = more(self.made.private_slots, left_slots, SLOT_CHUNK, self.plan.private_slot_rows);
        if rows > 0 {
            self.make_private_slot_rows(kernel, rows)?;
        }
        Ok(())
    }

    fn make_slots(&mut self, kernel: &mut Kernel, count: u32) -> Result<(), MapAccessError> {
        let is_first = self.made.slots == 0;
        let end = self.made.slots + count;
        for index in self.made.slots.div_ceil(SLOT_CHUNK)..end.div_ceil(SLOT_CHUNK) {
            let chunk = kernel.add_chunk(Table::Slots, index, self.mode)?;
            self.slots.add_chunk(index, chunk.rows);
        }
        self.made.slots = end;
        if is_first {
            [SLOT_HOST, SLOT_OVERFLOW].into_iter().for_each(|slot| self.meet_slot(slot));
        }
        Ok(())
    }

    fn make_syscall_rows(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        count: u32,
    ) -> Result<(), MapAccessError> {
        if !self.made.has_second_index && self.made.syscalls + count > self.plan.index() {
            kernel.add_second_index(self.plan.second_index())?;
            self.made.has_second_index = true;
        }
        let mut rest = count;
        while rest > 0 {
            let rows = rest.min(SYSCALL_CHUNK);
            let keys = self.make_syscall_chunk(kernel, rows)?;
            let first = keys.first;
            self.syscall_keys.push(keys);
            self.made.syscalls += rows;
            accounts.add(Resource::SyscallRows, rows.into()).map_err(MapAccessError::of("GIVEN"))?;
            kernel.push(Queue::SyscallRows, first, rows)?;
            rest -= rows;
        }
        Ok(())
    }

    fn make_private_syscall_rows(&mut self, kernel: &mut Kernel, count: u32) -> Result<(), MapAccessError> {
        let mut rest = count;
        while rest > 0 {
            let rows = rest.min(SYSCALL_CHUNK);
            let keys = self.make_syscall_chunk(kernel, rows)?;
            let first = keys.first;
            self.private_keys.push(keys);
            self.made.private_syscalls += rows;
            kernel.push(Queue::PrivateSyscallRows, first, rows)?;
            rest -= rows;
        }
        Ok(())
    }

    fn make_syscall_chunk(&mut self, kernel: &mut Kernel, rows: u32) -> Result<Keys, MapAccessError> {
        let index = self.made.syscall_chunks;
        let chunk = kernel.add_chunk(Table::Syscalls, index, self.mode)?;
        self.made.syscall_chunks += 1;
        self.syscalls.add_chunk(index, chunk.rows);
        Ok(Keys::new(chunk.keys, index * SYSCALL_CHUNK, rows))
    }

    fn make_private_slot_rows(&mut self, kernel: &mut Kernel, count: u32) -> Result<(), MapAccessError> {
        let mut rest = count;
        while rest > 0 {
            let rows = rest.min(SLOT_CHUNK);
            let index = FIRST_PRIVATE_SLOT_CHUNK + self.slot_keys.len() as u32;
            let chunk = kernel.add_chunk(Table::Slots, index, self.mode)?;
            self.slots.add_chunk(index, chunk.rows);
            self.slot_keys.push(Keys::new(chunk.keys, index * SLOT_CHUNK, rows));
            self.made.private_slots += rows;
            kernel.push(Queue::PrivateSlotRows, index * SLOT_CHUNK, rows)?;
            rest -= rows;
        }
        Ok(())
    }

    /// Brings what is copied rather than mapped up to date.
    ///
    /// # Errors
    /// The kernel refused the lookup.
    pub(super) fn refresh(&mut self) -> Result<(), MapAccessError> {
        let keys = [&mut self.slot_keys, &mut self.syscall_keys, &mut self.private_keys];
        for keys in keys.into_iter().flatten().chain([&mut self.error_keys]) {
            if let Some(region) = &mut keys.region {
                region.refresh().map_err(MapAccessError::of("SYS_KEYS"))?;
            }
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

    /// Private rows that CPUs ever took.
    pub(super) fn private_taken(&self) -> u64 {
        let taken = |kind: usize| self.private_left.load(0, offset_of!(PrivateLeft, taken) + 8 * kind);
        taken(0) + taken(1)
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
        let syscalls = &mut self.syscalls;
        for keys in &mut self.syscall_keys {
            keys.discover(|row, key| {
                let (slot, syscall) = ((key >> 16) as u32, key as u32 & 0xffff);
                let is_owned = owned(slot);
                if is_owned {
                    syscalls.meet(row, slot, Subject::Syscall(syscall), std::iter::once(row));
                }
                is_owned
            });
        }
        let Plan { errno_rows, errno_shards, .. } = self.plan;
        let errors = &mut self.errors;
        self.error_keys.discover(|row, key| {
            let (slot, syscall, errno) = ((key >> 32) as u32, (key >> 16) as u32 & 0xffff, key as u32 & 0xffff);
            let is_owned = owned(slot);
            if is_owned {
                let shards = (0..errno_shards).map(|shard| shard * errno_rows + row);
                errors.meet(row, slot, Subject::Errno(syscall, errno), shards);
            }
            is_owned
        });
        for keys in &mut self.private_keys {
            keys.discover_private(|row, key| syscalls.meet_private(key.of, row, key.way, now_ns));
        }
        let slots = &mut self.slots;
        for keys in &mut self.slot_keys {
            keys.discover_private(|row, key| {
                let slot = key.of & !ways::key_of_slot(0);
                slots.meet_private(slot, row, key.way, now_ns)
            });
        }
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
                kernel.set_way(way, ways::RETIRED)?;
            }
        }
        Ok(())
    }

    fn give_private_syscall_row(&mut self, kernel: &Kernel, gone: Gone) -> Result<(), MapAccessError> {
        self.syscalls.clear(gone.row).map_err(MapAccessError::of("SYS_ROWS"))?;
        forget(&mut self.private_keys, gone.row).map_err(MapAccessError::of("SYS_KEYS"))?;
        kernel.set_way(gone.way, 0)?;
        kernel.push(Queue::PrivateSyscallRows, gone.row, 1)
    }

    fn give_private_slot_row(&mut self, kernel: &Kernel, gone: Gone) -> Result<(), MapAccessError> {
        self.slots.clear(gone.row).map_err(MapAccessError::of("SLOT_ROWS"))?;
        forget(&mut self.slot_keys, gone.row).map_err(MapAccessError::of("SLOT_KEYS"))?;
        kernel.set_way(gone.way, 0)?;
        kernel.push(Queue::PrivateSlotRows, gone.row, 1)
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
            forget(&mut self.syscall_keys, row).map_err(MapAccessError::of("SYS_KEYS"))?;
            kernel.push(Queue::SyscallRows, row, 1)?;
        }
        let (errors, _) = self.errors.forget(slot);
        let freed_errors = errors.len() as u64;
        for (row, subject) in errors {
            kernel.remove_errno(index_key(slot, subject))?;
            for shard in 0..self.plan.errno_shards {
                let row = shard * self.plan.errno_rows + row;
                self.errors.clear(row).map_err(MapAccessError::of("ERR_ROWS"))?;
            }
            forget(std::slice::from_mut(&mut self.error_keys), row).map_err(MapAccessError::of("ERR_KEYS"))?;
            kernel.push(Queue::ErrnoRows, row, 1)?;
        }
        let (_, private) = self.slots.forget(slot);
        for gone in private {
            self.give_private_slot_row(kernel, gone)?;
        }
        self.slots.clear(slot).map_err(MapAccessError::of("SLOT_ROWS"))?;
        Ok(Freed { syscall_rows: freed_syscalls, errno_rows: freed_errors })
    }
}

/// How many more rows to make of `made`, of which so many are free: `start` at first, then as many again while less than half is
/// free, up to `most`. Never so many that the agent is held up for long: a chunk takes some 10 ms.
fn more(made: u32, free: u32, start: u32, most: u32) -> u32 {
    let wanted = if made == 0 {
        start
    } else if free < made / 2 {
        made.min(AT_ONCE)
    } else {
        0
    };
    wanted.min(most - made)
}

impl Keys {
    /// Shows each row that got a key since the last look, until it is taken.
    fn discover(&mut self, mut take: impl FnMut(u32, u64) -> bool) {
        let Some(region) = &self.region else { return };
        for row in 0..self.rows {
            if self.known[row as usize] {
                continue;
            }
            let key = region.load(row, 0);
            if key & KEY_USED != 0 && take(self.first + row, key & !KEY_USED) {
                self.known[row as usize] = true;
            }
        }
    }

    fn discover_private(&mut self, mut take: impl FnMut(u32, PrivateKey) -> bool) {
        self.discover(|row, key| PrivateKey::unpack(key | KEY_USED).is_some_and(|key| take(row, key)));
    }
}

/// Takes the key from a row.
fn forget(chunks: &mut [Keys], row: u32) -> std::io::Result<()> {
    let holds = |keys: &&mut Keys| (keys.first..keys.first + keys.rows).contains(&row);
    let Some(keys) = chunks.iter_mut().find(holds) else { return Ok(()) };
    let place = row - keys.first;
    keys.known[place as usize] = false;
    keys.region.as_mut().map_or(Ok(()), |region| region.clear(place))
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, more};

    #[test]
    fn rows_are_made_while_few_are_free() {
        assert_eq!(more(0, 0, 2048, 8192), 2048, "the first");
        assert_eq!(more(0, 0, 2048, 100), 100, "no more than are wanted");
        assert_eq!(more(2048, 1024, 2048, 8192), 0, "half is free");
        assert_eq!(more(2048, 1023, 2048, 8192), 2048, "as many again");
        assert_eq!(more(6144, 0, 2048, 8192), 2048, "up to the most");
        assert_eq!(more(16384, 0, 2048, 65536), AT_ONCE, "not too many");
        assert_eq!(more(8192, 0, 2048, 8192), 0);
        assert_eq!(more(0, 0, 1024, 0), 0, "none at all");
    }
}
