//! In: rows of label values and numbers, durations; out: a family's samples through the encoder. Knows no metric by name.

use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::BytesMut;

use crate::escape::append_labels;
use crate::exposition::text::{HistogramNames, SampleName, le_label};
use crate::exposition::{Format, Metadata, Number};

/// Label values longer than this (bytes) are cut: reasons carry error text from elsewhere.
const MAX_LABEL_BYTES: usize = 256;

/// A family of the agent itself.
#[derive(Debug)]
pub struct Declaration {
    /// Name, help, unit and kind.
    pub metadata: Metadata<'static>,
    /// Its labels; a histogram has none.
    pub labels: &'static [&'static str],
}

/// Values set to what was counted or read elsewhere.
pub(super) type Gauge = Rows;
/// Values that only grow: counted here, or set to absolute counts of elsewhere.
pub(super) type Counter = Rows;
/// Facts in labels, with the value 1.
pub(super) type Info = Rows;

/// A family whose rows are replaced as a whole, so that a label value that is gone leaves no stale sample. Without rows it is
/// left out. Replacing rows by others with the same labels in the same order allocates nothing.
#[derive(Debug)]
pub(super) struct Rows {
    declared: &'static Declaration,
    state: RwLock<SampleRows>,
}

#[derive(Debug, Default)]
struct SampleRows {
    /// As they were given.
    rows: Vec<SampleRow>,
    /// Places in `rows` by their labels, each set of labels once.
    shown: Vec<usize>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct SampleRow {
    /// Escaped, without braces.
    labels: Box<[u8]>,
    /// `None`: not a number. An unknown reading has no sample.
    value: Option<Number>,
}

impl Rows {
    pub(super) fn new(declared: &'static Declaration) -> Self {
        Self { declared, state: RwLock::default() }
    }

    /// Sets the only row of a family without labels.
    pub(super) fn set(&self, value: impl Into<Number>) {
        self.replace(std::iter::once(([], value.into())));
    }

    /// Replaces all rows. Rows must differ in their labels; the first of equal ones stays.
    pub(super) fn replace<'a, const N: usize>(&self, rows: impl IntoIterator<Item = ([&'a str; N], Number)>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let (mut given, mut changed) = (0, false);
        for (values, value) in rows {
            self.render(values, &mut state.scratch);
            let value = Some(value).filter(|value| !matches!(value, Number::Float(v) if !v.is_finite()));
            match state.rows.get_mut(given) {
                Some(row) if *row.labels == *state.scratch => row.value = value,
                known => {
                    changed = true;
                    let row = SampleRow { labels: state.scratch.as_slice().into(), value };
                    match known {
                        Some(known) => *known = row,
                        None => state.rows.push(row),
                    }
                }
            }
            given += 1;
        }
        if changed || given < state.rows.len() {
            state.rows.truncate(given);
            state.order();
        }
    }

    /// Adds `by` to the row with these labels, which appears with it.
    pub(super) fn add<const N: usize>(&self, values: [&str; N], by: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        self.render(values, &mut state.scratch);
        match state.rows.iter_mut().find(|row| *row.labels == *state.scratch) {
            Some(SampleRow { value: Some(Number::Integer(value)), .. }) => *value = value.wrapping_add(by),
            Some(row) => row.value = Some(Number::Integer(by)),
            None => {
                let labels = state.scratch.as_slice().into();
                state.rows.push(SampleRow { labels, value: Some(Number::Integer(by)) });
                state.order();
            }
        }
    }

    fn render<const N: usize>(&self, values: [&str; N], scratch: &mut Vec<u8>) {
        debug_assert_eq!(N, self.declared.labels.len(), "{}", self.declared.metadata.name);
        scratch.clear();
        let bounded = values.map(|value| &value[..value.floor_char_boundary(MAX_LABEL_BYTES)]);
        append_labels(scratch, self.declared.labels, bounded);
    }

    pub(super) fn encode(&self, format: Format, out: &mut BytesMut) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let rows = state.shown.iter().map(|at| &state.rows[*at]);
        let mut rows = rows.filter_map(|row| Some((&row.labels, row.value?))).peekable();
        if rows.peek().is_none() {
            return;
        }
        let metadata = &self.declared.metadata;
        metadata.put(format, out);
        let name = SampleName::new(metadata.name, metadata.kind.sample_suffix());
        for (labels, value) in rows {
            name.put(labels, value, out);
        }
    }
}

impl SampleRows {
    /// Two samples with the same labels would make the whole scrape invalid.
    fn order(&mut self) {
        let labels = |at: &usize| &self.rows[*at].labels;
        self.shown.clear();
        self.shown.extend(0..self.rows.len());
        self.shown.sort_by(|a, b| labels(a).cmp(labels(b)));
        self.shown.dedup_by(|a, b| labels(a) == labels(b));
    }
}

/// How long something took, by upper bound.
#[derive(Debug)]
pub(super) struct Histogram {
    declared: &'static Declaration,
    /// Upper bounds, seconds.
    bounds: &'static [f64],
    /// The `le` label of each bound and of `+Inf`.
    le: Vec<Box<[u8]>>,
    state: Mutex<Observed>,
}

#[derive(Debug)]
struct Observed {
    /// By bound and, last, above all of them.
    counts: Vec<u64>,
    seconds: f64,
}

impl Histogram {
    pub(super) fn new(declared: &'static Declaration, bounds: &'static [f64]) -> Self {
        let le = bounds.iter().copied().chain([f64::INFINITY]).map(le_label).collect();
        let state = Mutex::new(Observed { counts: vec![0; bounds.len() + 1], seconds: 0.0 });
        Self { declared, bounds, le, state }
    }

    pub(super) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts[self.bounds.partition_point(|bound| *bound < seconds)] += 1;
        state.seconds += seconds;
    }

    pub(super) fn encode(&self, format: Format, out: &mut BytesMut) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = &self.declared.metadata;
        metadata.put(format, out);
        HistogramNames::new(metadata.name).put(&[], &self.le, &state.counts, state.seconds.into(), out);
    }
}
