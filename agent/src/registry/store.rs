//! In: labels and additions; out: the series of one family, densely, each where its labels say. Knows no limits, no time.

use std::collections::HashMap;
use std::sync::Arc;

use kernmeter_abi::histogram::{BUCKETS, LAST, MIN_EXP, PER_OCTAVE};

use super::groups::GroupId;
use super::slab::{excess, trim};
use crate::catalog::family::{Detail, Family, HISTOGRAM_VALUES, Kind, LE};

/// Values of a family's own labels, shared by all series that have the same.
pub(super) type OwnLabels = Arc<[Box<str>]>;

pub(super) enum Value {
    Number(u64),
    Histogram { buckets: Box<[u64; BUCKETS]>, sum_ns: u64 },
}

impl Value {
    pub fn zero(kind: Kind) -> Value {
        match kind {
            Kind::Histogram => Value::Histogram { buckets: Box::new([0; BUCKETS]), sum_ns: 0 },
            Kind::Counter | Kind::Gauge => Value::Number(0),
        }
    }

    pub fn add(&mut self, value: u64) {
        match self {
            Value::Number(total) => *total = total.wrapping_add(value),
            Value::Histogram { .. } => debug_assert!(false, "a number is added to a histogram"),
        }
    }

    pub fn observe(&mut self, add: &[u64; BUCKETS], add_ns: u64) {
        match self {
            Value::Histogram { buckets, sum_ns } => {
                for (bucket, count) in buckets.iter_mut().zip(add) {
                    *bucket += count;
                }
                *sum_ns += add_ns;
            }
            Value::Number(_) => debug_assert!(false, "a histogram is added to a number"),
        }
    }

    /// Adds another of the same kind.
    pub fn fold(&mut self, value: &Value) {
        match value {
            Value::Number(n) => self.add(*n),
            Value::Histogram { buckets, sum_ns } => self.observe(buckets, *sum_ns),
        }
    }

    /// The number; of a histogram, the sum in nanoseconds.
    pub fn number(&self) -> u64 {
        match self {
            Value::Number(n) => *n,
            Value::Histogram { sum_ns, .. } => *sum_ns,
        }
    }

    /// Events by kernel bucket, of a histogram.
    pub fn buckets(&self) -> Option<&[u64; BUCKETS]> {
        match self {
            Value::Number(_) => None,
            Value::Histogram { buckets, .. } => Some(buckets),
        }
    }

    /// Appends what is published of it.
    pub fn publish(&self, kind: Kind, out: &mut Vec<u64>) {
        match self {
            // A gauge may be read between the two halves of a move: a task is never nowhere for longer.
            Value::Number(n) if kind == Kind::Gauge => out.push((*n as i64).max(0) as u64),
            Value::Number(n) => out.push(*n),
            Value::Histogram { buckets, sum_ns } => fold_classic(buckets, *sum_ns, out),
        }
    }
}

/// Sums kernel buckets into the classic ones, exactly: every classic bound is a kernel bound.
fn fold_classic(buckets: &[u64; BUCKETS], sum_ns: u64, out: &mut Vec<u64>) {
    let mut from = 0;
    for exponent in LE {
        let to = ((exponent - MIN_EXP) * PER_OCTAVE) as usize;
        out.push(buckets[from..=to].iter().sum());
        from = to + 1;
    }
    out.push(buckets[from..=LAST].iter().sum());
    out.push(sum_ns);
}

pub(super) struct Series {
    pub labels: Arc<[u8]>,
    pub own: OwnLabels,
    pub value: Value,
    /// What it ends with.
    pub group: GroupId,
    /// Its place in the group's list.
    pub listed: u32,
    /// The group of its tenant, which lives as long as the series.
    pub tenant: GroupId,
}

pub(super) struct FamilyState {
    pub family: &'static Family,
    pub detail: Detail,
    /// Index of the sister family that keeps what is gone: of a sister family, its own; of a gauge, none.
    pub retired: Option<usize>,
    index: HashMap<Arc<[u8]>, u32>,
    pub series: Vec<Series>,
}

impl FamilyState {
    pub fn new(family: &'static Family, detail: Detail, retired: Option<usize>) -> FamilyState {
        FamilyState { family, detail, retired, index: HashMap::new(), series: Vec::new() }
    }

    /// Where the series with these labels is.
    pub fn find(&self, labels: &[u8]) -> Option<u32> {
        self.index.get(labels).copied()
    }

    /// Adds a series whose labels no other one has.
    pub fn insert(&mut self, series: Series) -> u32 {
        let at = self.series.len() as u32;
        self.index.insert(Arc::clone(&series.labels), at);
        self.series.push(series);
        at
    }

    /// Takes a series out, wherever it is in a single step; the last one moves to its place.
    pub fn remove(&mut self, at: u32) -> Series {
        let gone = self.series.swap_remove(at as usize);
        self.index.remove(&gone.labels);
        if let Some(place) = self.series.get(at as usize).and_then(|moved| self.index.get_mut(&moved.labels))
        {
            *place = at;
        }
        gone
    }

    /// Gives memory back that many series left behind.
    pub fn trim(&mut self) {
        trim(&mut self.series);
        if let Some(enough) = excess(self.index.len(), self.index.capacity()) {
            self.index.shrink_to(enough);
        }
    }

    /// Exposed lines of a series.
    pub fn lines(&self) -> usize {
        if self.family.kind == Kind::Histogram { LE.len() + 3 } else { 1 }
    }

    /// Values of a series in a snapshot.
    pub fn values(&self) -> usize {
        if self.family.kind == Kind::Histogram { HISTOGRAM_VALUES } else { 1 }
    }
}
