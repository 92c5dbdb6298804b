//! In: nothing; out: what each probe is: its hooks, needs, cost, families and columns, once. Knows no values and does no I/O.
//!
//! Reading, billing, the balance, METRICS.md, `kernmeter probes`, `doctor` and the names that the configuration accepts derive
//! from [`PROBES`].

pub mod column;
pub mod family;
pub mod names;
pub mod probe;
pub mod probes;

#[cfg(test)]
mod tests;

pub use column::{Cells, Column, Label, Quantity, RowKind};
pub use family::Family;
use kernmeter_abi::Total;
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

/// Every conserved quantity, in the order of the exposition.
pub fn quantities() -> Vec<&'static Quantity> {
    let mut found = Vec::new();
    for column in PROBES.iter().rev().flat_map(|probe| probe.columns) {
        for quantity in [column.events, column.quantity].into_iter().flatten() {
            if !found.contains(&quantity) {
                found.push(quantity);
            }
        }
    }
    found
}

/// Whether a total counts events or nanoseconds.
pub fn scale_of(total: Total) -> family::Scale {
    let unbilled = probes::UNBILLED.iter().find(|(unbilled, _)| *unbilled == total).map(|(_, scale)| *scale);
    let billed = columns().find_map(|column| {
        let counts = |quantity: &&Quantity| quantity.totals.contains(&total);
        // The events of a histogram are counted, its durations are scaled.
        column.quantity.filter(counts).map(|_| column.family.scale)
    });
    unbilled.or(billed).unwrap_or(family::Scale::One)
}
