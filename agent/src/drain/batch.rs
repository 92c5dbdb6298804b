//! What one pass over the kernel's rows found: differences since the pass before. Knows no maps and no tenants.

use kernmeter_abi::{LOSSES, TOTALS};

use crate::catalog::RowKind;

/// A slot that got an owner since the last pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The slot.
    pub slot: u32,
    /// cgroup-v2 id of its cgroup.
    pub cgroup_id: u64,
    /// Slot of the parent cgroup.
    pub parent_slot: u32,
    /// The cgroup's own name; empty if the kernel could not read it.
    pub name: Vec<u8>,
}

/// What a row of a slot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The slot itself.
    Slot,
    /// A system call, by its key: see [`kernmeter_abi::syscall_key`].
    Syscall(u32),
    /// An error of a system call: the call's key and the error number, positive.
    Errno(u32, u32),
}

impl Subject {
    /// The kind of row.
    pub const fn kind(self) -> RowKind {
        match self {
            Self::Slot => RowKind::Slot,
            Self::Syscall(_) => RowKind::Syscall,
            Self::Errno(..) => RowKind::Errno,
        }
    }
}

/// A row that counted something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta<'a> {
    /// The slot it belongs to.
    pub slot: u32,
    /// What it is about.
    pub subject: Subject,
    /// The difference of each of its cells.
    pub cells: &'a [u64],
}

/// Rows that counted something, their cells one after the other.
#[derive(Debug, Default)]
pub struct Deltas {
    rows: Vec<(u32, Subject)>,
    cells: Vec<u64>,
}

impl Deltas {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.cells.clear();
    }

    /// Adds a row whose cells are all 0, and returns these to be filled.
    pub fn push(&mut self, slot: u32, subject: Subject) -> &mut [u64] {
        let at = self.cells.len();
        self.cells.resize(at + subject.kind().cells(), 0);
        self.rows.push((slot, subject));
        &mut self.cells[at..]
    }

    /// The rows, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = Delta<'_>> {
        let mut rest = &*self.cells;
        self.rows.iter().map(move |(slot, subject)| {
            let (cells, behind) = rest.split_at(subject.kind().cells());
            rest = behind;
            Delta { slot: *slot, subject: *subject, cells }
        })
    }
}

/// The result of one pass. Reused from pass to pass.
#[derive(Debug, Default)]
pub struct Batch {
    /// `CLOCK_MONOTONIC` when the rows were read, nanoseconds.
    pub taken_ns: u64,
    /// Slots that got an owner. Parents come before their children.
    pub births: Vec<Birth>,
    /// Slots whose cgroup was removed.
    pub deaths: Vec<u32>,
    /// Slots given back: this batch holds their last counts.
    pub freed: Vec<u32>,
    /// Rows that counted something.
    pub rows: Deltas,
    /// The independent totals before the rows were read, summed over CPUs, since the agent started.
    pub totals_before: [u64; TOTALS],
    /// The same after the rows were read.
    pub totals_after: [u64; TOTALS],
    /// Losses by reason, summed over CPUs, since the agent started.
    pub losses: [u64; LOSSES],
}

impl Batch {
    /// Empties it; totals and losses stay until they are read again.
    pub(super) fn clear(&mut self) {
        self.births.clear();
        self.deaths.clear();
        self.freed.clear();
        self.rows.clear();
    }
}
