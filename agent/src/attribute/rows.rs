//! In: cells of rows and who is billed; out: registry totals, and sums by quantity. Knows no slots and no identities.

use kernmeter_abi::histogram::BUCKETS;

use crate::catalog::{Cells, Column, Label, PROBES, Quantity, RowKind, names};
use crate::drain::Subject;
use crate::registry::{Registry, TargetId};

/// Most labels a family has of its own.
const MOST_LABELS: usize = 4;

/// The columns of rows of one kind.
pub(super) fn columns(kind: RowKind) -> impl Iterator<Item = &'static Column> {
    PROBES.iter().flat_map(|probe| probe.columns).filter(move |column| column.row == kind)
}

/// Bills the cells of a row to a target.
pub(super) fn bill(registry: &mut Registry, target: TargetId, subject: Subject, cells: &[u64]) {
    let (syscall, errno) = match subject {
        Subject::Slot => (None, None),
        Subject::Syscall(syscall) => (Some(syscall), None),
        Subject::Errno(syscall, errno) => (Some(syscall), Some(errno)),
    };
    let (name, abi) = syscall.map(names::syscall).unwrap_or_default();
    let errno = errno.map(names::errno).unwrap_or_default();
    for column in columns(subject.kind()) {
        let mut values = [""; MOST_LABELS];
        for (value, label) in values.iter_mut().zip(column.labels) {
            *value = match label {
                Label::Fixed(text) => text,
                Label::Syscall => &name,
                Label::Abi => abi,
                Label::Errno => &errno,
            };
        }
        let values = &values[..column.labels.len()];
        match column.cells {
            Cells::Number(cell) => registry.add(target, column.family, values, cells[cell]),
            Cells::Histogram { sum, buckets } => {
                registry.observe(target, column.family, values, buckets_at(cells, buckets), cells[sum]);
            }
        }
    }
}

/// The buckets that begin at a cell.
fn buckets_at(cells: &[u64], first: usize) -> &[u64; BUCKETS] {
    cells[first..].first_chunk().expect("a histogram's cells lie inside its row")
}

/// Adds the cells of one row to those of another of the same kind. Gauges are wrapping differences.
pub(super) fn add_cells(sum: &mut [u64], cells: &[u64]) {
    for (sum, cell) in sum.iter_mut().zip(cells) {
        *sum = sum.wrapping_add(*cell);
    }
}

/// What the cells of a row add to a quantity.
pub(super) fn part_of(quantity: &Quantity, kind: RowKind, cells: &[u64]) -> u64 {
    let of = |column: &Column| {
        let is = |used: Option<&Quantity>| used.is_some_and(|used| used == quantity);
        let number = match column.cells {
            Cells::Number(cell) | Cells::Histogram { sum: cell, .. } => cells[cell],
        };
        let events = match column.cells {
            Cells::Histogram { buckets, .. } => buckets_at(cells, buckets).iter().sum(),
            Cells::Number(_) => 0,
        };
        let number = if is(column.quantity) { number } else { 0 };
        let events = if is(column.events) { events } else { 0 };
        number.wrapping_add(events)
    };
    columns(kind).map(of).fold(0, u64::wrapping_add)
}

/// The sum over tenants of a quantity.
pub(super) fn billed(quantity: &Quantity, registry: &Registry) -> u64 {
    let mut sum = 0u64;
    for family in PROBES.iter().flat_map(|probe| probe.families) {
        let columns = || PROBES.iter().flat_map(|probe| probe.columns).filter(|c| c.family == *family);
        // All columns of a family are of one quantity: the catalogue's tests see to it.
        if columns().any(|column| column.quantity.is_some_and(|used| used == quantity)) {
            sum = sum.wrapping_add(registry.sum(family));
        }
        if columns().any(|column| column.events.is_some_and(|used| used == quantity)) {
            sum = sum.wrapping_add(registry.count(family));
        }
    }
    sum
}
