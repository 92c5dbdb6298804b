//! In: attributed differences; out: immutable snapshots of monotone totals. Does no I/O, reads no clock, knows no kernel.

mod series;
mod snapshot;

pub use series::{Limits, OVERFLOW, RETIRED_PREFIX, Registry, SeriesView, TargetId};
pub use snapshot::{FamilyLayout, Layout, SeriesLayout, Snapshot};

pub use crate::catalog::family::{Detail, Family, HISTOGRAM_VALUES, Kind, LE, Scale, WORKLOAD_LABELS};
