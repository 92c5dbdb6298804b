//! In: rows of a slot whose workload is not known yet; out: all of them, once it is. Drops nothing, guesses nothing.

use std::collections::HashMap;

use super::rows::{add_cells, bill, part_of};
use crate::catalog::{Quantity, RowKind};
use crate::drain::Subject;
use crate::registry::{Registry, TargetId};

/// Counts that wait for an identity.
#[derive(Default)]
pub(super) struct Waiting {
    rows: HashMap<Subject, Box<[u64]>>,
    /// When the slot was met, nanoseconds of the batch clock.
    pub since_ns: u64,
}

impl Waiting {
    /// Nothing yet, from `since_ns` on.
    pub fn new(since_ns: u64) -> Waiting {
        Waiting { since_ns, ..Waiting::default() }
    }

    /// Adds the cells of a row.
    pub fn add(&mut self, subject: Subject, cells: &[u64]) {
        match self.rows.get_mut(&subject) {
            Some(sum) => add_cells(sum, cells),
            None => drop(self.rows.insert(subject, cells.into())),
        }
    }

    /// Bills everything to the target.
    pub fn bill(&self, registry: &mut Registry, target: TargetId) {
        for (subject, cells) in &self.rows {
            bill(registry, target, *subject, cells);
        }
    }
}

/// What waits in many slots, added up by kind of row.
pub(super) struct Sum([(RowKind, Box<[u64]>); 3]);

impl Sum {
    pub fn of<'a>(all: impl Iterator<Item = &'a Waiting>) -> Sum {
        let mut sums = RowKind::ALL.map(|kind| (kind, vec![0; kind.cells()].into_boxed_slice()));
        for (subject, cells) in all.flat_map(|waiting| &waiting.rows) {
            if let Some((_, sum)) = sums.iter_mut().find(|(kind, _)| *kind == subject.kind()) {
                add_cells(sum, cells);
            }
        }
        Sum(sums)
    }

    /// How much of a quantity waits.
    pub fn part_of(&self, quantity: &Quantity) -> u64 {
        let parts = self.0.iter().map(|(kind, cells)| part_of(quantity, *kind, cells));
        parts.fold(0, u64::wrapping_add)
    }
}
