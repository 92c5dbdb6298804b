//! In: attributed differences; out: immutable snapshots of monotone totals. Does no I/O, reads no clock, knows no kernel.

mod groups;
mod retirement;
mod series;
mod slab;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;

pub use retirement::{RETIRED, RETIRED_PREFIX};
pub use series::{Limits, OVERFLOW, Registry, SeriesView, TargetId};
pub use snapshot::{FamilyLayout, Layout, SeriesLayout, Snapshot};

pub use crate::catalog::family::{Detail, Family, HISTOGRAM_VALUES, Kind, LE, Scale, WORKLOAD_LABELS};
