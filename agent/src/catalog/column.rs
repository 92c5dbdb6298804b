//! In: the fields of rows as both sides know them; out: what a column is: where it lies in a row, what it counts towards.
//! Knows no values.

use kernmeter_abi::histogram::BUCKETS;
use kernmeter_abi::{ErrnoRow, Field, SlotRow, SyscallRow, Total};

use super::family::Family;

/// The kinds of rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKind {
    /// One for each slot.
    Slot,
    /// One for each (slot, system call).
    Syscall,
    /// One for each (slot, system call, errno).
    Errno,
}

impl RowKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Slot, Self::Syscall, Self::Errno];

    /// The fields of such a row.
    pub const fn fields(self) -> &'static [Field] {
        match self {
            Self::Slot => SlotRow::FIELDS,
            Self::Syscall => SyscallRow::FIELDS,
            Self::Errno => ErrnoRow::FIELDS,
        }
    }

    /// Bytes of such a row.
    pub const fn size(self) -> usize {
        match self {
            Self::Slot => size_of::<SlotRow>(),
            Self::Syscall => size_of::<SyscallRow>(),
            Self::Errno => size_of::<ErrnoRow>(),
        }
    }

    /// Cells of such a row: one for each counter, [`BUCKETS`] for each histogram, in the order of the fields.
    pub const fn cells(self) -> usize {
        cells(self.fields(), usize::MAX)
    }

    /// The first cell of the field at a byte offset.
    ///
    /// # Panics
    /// No field begins there; at compile time, as this is used to declare columns.
    pub const fn cell_of(self, offset: usize) -> usize {
        let fields = self.fields();
        let mut i = 0;
        while i < fields.len() {
            if fields[i].offset == offset {
                return cells(fields, i);
            }
            i += 1;
        }
        panic!("no field of the row begins at this offset")
    }
}

/// Cells of the first `n` fields.
const fn cells(fields: &[Field], n: usize) -> usize {
    let mut sum = 0;
    let mut i = 0;
    while i < fields.len() && i < n {
        sum += if fields[i].size == 8 { 1 } else { BUCKETS };
        assert!(
            fields[i].size == 8 || fields[i].size == 4 * BUCKETS,
            "a field is a counter or a histogram's buckets"
        );
        i += 1;
    }
    sum
}

/// Where a label's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Always this.
    Fixed(&'static str),
    /// The name of the row's system call.
    Syscall,
    /// The ABI of the row's system call.
    Abi,
    /// The name of the row's error.
    Errno,
}

/// Label values of what found no row of its own.
pub const NO_ROW: Label = Label::Fixed("_overflow");

/// How a column's cells are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cells {
    /// One cell that only grows, or for a gauge changes by wrapping differences.
    Number(usize),
    /// A histogram: the cell with the sum of the durations, nanoseconds, and the first of [`BUCKETS`] cells of counts.
    Histogram {
        /// Of the sum.
        sum: usize,
        /// Of the first bucket.
        buckets: usize,
    },
}

/// A conserved quantity: what the kernel side counts once more, before anybody is billed.
#[derive(Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Name in logs and metrics.
    pub name: &'static str,
    /// The independent totals that together are it.
    pub totals: &'static [Total],
}

/// A counter of a row: one definition, from which reading, billing, waiting, the balance and the documents derive.
#[derive(Debug)]
pub struct Column {
    /// The row it lies in.
    pub row: RowKind,
    /// Names of the fields it reads, for messages.
    pub fields: &'static [&'static str],
    /// Where these are.
    pub cells: Cells,
    /// The family it adds to.
    pub family: &'static Family,
    /// Values of the family's own labels, in their order.
    pub labels: &'static [Label],
    /// The quantity its numbers, or a histogram's durations, belong to; `None` for what is not conserved.
    pub quantity: Option<&'static Quantity>,
    /// The quantity that a histogram's events belong to.
    pub events: Option<&'static Quantity>,
}

/// Declares the column of a counter: `number!(Slot, SlotRow.cpu_ns => CPU [], CPU_NS)`.
macro_rules! number {
    ($kind:ident, $row:ident.$field:ident => $family:ident [$($label:expr),*] $(, $quantity:path)?) => {
        Column {
            row: RowKind::$kind,
            fields: &[stringify!($field)],
            cells: Cells::Number(RowKind::$kind.cell_of(offset_of!($row, $field))),
            family: &$family,
            labels: &[$($label),*],
            quantity: optional!($($quantity)?),
            events: None,
        }
    };
}

/// Declares the column of a histogram, with the fields of its sum and its buckets, and the quantities of both.
macro_rules! histogram {
    ($kind:ident, $row:ident.($sum:ident, $buckets:ident) => $family:ident [$($label:expr),*]
        $(, sum $quantity:path)? $(, events $events:path)?) => {
        Column {
            row: RowKind::$kind,
            fields: &[stringify!($sum), stringify!($buckets)],
            cells: Cells::Histogram {
                sum: RowKind::$kind.cell_of(offset_of!($row, $sum)),
                buckets: RowKind::$kind.cell_of(offset_of!($row, $buckets)),
            },
            family: &$family,
            labels: &[$($label),*],
            quantity: optional!($($quantity)?),
            events: optional!($($events)?),
        }
    };
}

/// `None`, or a reference to what is named.
macro_rules! optional {
    () => {
        None
    };
    ($name:path) => {
        Some(&$name)
    };
}

pub(super) use histogram;
pub(super) use number;
pub(super) use optional;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn cells_follow_the_fields() {
        assert_eq!(RowKind::Errno.cells(), 1);
        assert_eq!(RowKind::Slot.cell_of(offset_of!(SlotRow, cpu_ns)), 0);
        assert_eq!(RowKind::Slot.cell_of(offset_of!(SlotRow, wait_ns)), 1);
        let buckets = RowKind::Slot.cell_of(offset_of!(SlotRow, wait_buckets));
        assert_eq!(buckets + BUCKETS, RowKind::Slot.cells());
        for kind in RowKind::ALL {
            let bytes: usize = kind.fields().iter().map(|field| field.size).sum();
            // But for what fills the last cache line.
            let filled = if kind == RowKind::Errno { bytes } else { bytes.next_multiple_of(64) };
            assert_eq!(filled, kind.size(), "{kind:?} has bytes that are in no field");
        }
    }
}
