//! In: nothing; out: what each probe is: its hooks, needs, cost, families and columns, once. Knows no values and does no I/O.
//!
//! Reading, billing, the balance, METRICS.md, `kernmeter probes`, `doctor` and the names that the configuration accepts derive
//! from [`PROBES`].

pub mod column;
pub mod family;
pub mod names;
pub mod probe;
pub mod probes;
pub mod quantity;

#[cfg(test)]
mod tests;

pub use column::{Cells, Column, Label, Quantity, RowKind};
pub use family::Family;
pub use probe::{EventVariant, Hook, Probe, Stage};
pub use probes::PROBES;

/// Every workload family, in exposition order: what users look at first comes first.
pub fn families() -> impl Iterator<Item = &'static Family> {
    PROBES.iter().rev().flat_map(|probe| probe.families.iter().copied())
}

/// Every column of every row.
pub fn columns() -> impl Iterator<Item = &'static Column> {
    PROBES.iter().flat_map(|probe| probe.columns)
}
