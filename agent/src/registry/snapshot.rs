//! What is published: the series and their values at one instant. Immutable; knows no output format.

use std::sync::Arc;

use crate::catalog::family::Family;

/// The series of a snapshot without their values; shared by snapshots until a series comes or goes.
#[derive(Debug, Default)]
pub struct Layout {
    /// Families in exposition order; those without series are left out.
    pub families: Vec<FamilyLayout>,
    /// Tenants that have series, as they are named, unescaped, in ascending order.
    pub tenants: Vec<Arc<str>>,
}

impl Layout {
    /// The place of a tenant in [`Layout::tenants`], which is what its series carry.
    pub fn tenant(&self, name: &str) -> Option<u32> {
        self.tenants.binary_search_by(|tenant| (**tenant).cmp(name)).ok().map(|index| index as u32)
    }
}

/// One family's series.
#[derive(Debug)]
pub struct FamilyLayout {
    /// The descriptor.
    pub family: &'static Family,
    /// Its series, in the order in which they came until one ends: the last one takes its place.
    pub series: Vec<SeriesLayout>,
}

/// One series: its labels and where its values are.
#[derive(Debug)]
pub struct SeriesLayout {
    /// Escaped `name="value",...` without braces; never empty for workload families.
    pub labels: Arc<[u8]>,
    /// Index into [`Snapshot::values`]: one value, or [`HISTOGRAM_VALUES`](crate::catalog::family::HISTOGRAM_VALUES) of them for
    /// a histogram.
    pub first: u32,
    /// Whose it is: index into [`Layout::tenants`].
    pub tenant: u32,
}

/// Everything exposed about workloads at one instant. Never changes once published.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Which series there are.
    pub layout: Arc<Layout>,
    /// Their values.
    pub values: Vec<u64>,
    /// When the kernel was read: nanoseconds of `CLOCK_MONOTONIC`.
    pub taken_ns: u64,
    /// Grows by one with each publication.
    pub sequence: u64,
}
