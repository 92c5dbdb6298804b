//! In: rows of labels and absolute values; out: one family through prometheus-client. Knows no metric by name.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::escape::escape_help;

/// Label values longer than this (bytes) are cut: reasons carry error text from elsewhere.
const MAX_LABEL_BYTES: usize = 256;

/// A value, kept as it was given so that large counts stay exact.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// An integer.
    Integer(u64),
    /// Anything else.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

#[derive(Debug)]
struct Row {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// A family whose rows are replaced as a whole, so that a label value that is gone leaves no stale sample; counters are
/// set to absolute values that were counted elsewhere. Without rows it is left out.
#[derive(Debug)]
pub(super) struct Table {
    name: &'static str,
    help: String,
    unit: Option<Unit>,
    kind: MetricType,
    labels: &'static [&'static str],
    rows: RwLock<Vec<Row>>,
}

impl Table {
    /// `name` without unit and `_total`; `unit` is appended to it.
    pub(super) fn new(
        kind: MetricType,
        name: &'static str,
        unit: &str,
        labels: &'static [&'static str],
        help: &str,
    ) -> Self {
        let unit = (!unit.is_empty()).then(|| Unit::Other(unit.to_owned()));
        let mut escaped = Vec::new();
        // prometheus-client writes HELP as it is given.
        escape_help(&mut escaped, help, true);
        let help = String::from_utf8_lossy(&escaped).into_owned();
        Self { name, help, unit, kind, labels, rows: RwLock::default() }
    }

    /// Sets the only row of a family without labels.
    pub(super) fn set(&self, value: impl Into<Value>) {
        self.replace(std::iter::once(([], value.into())));
    }

    /// Replaces all rows. Rows must differ in their labels; the first of equal ones stays. A value that is no number
    /// leaves its row out: an unknown reading has no sample.
    pub(super) fn replace<'a, const N: usize>(&self, rows: impl IntoIterator<Item = ([&'a str; N], Value)>) {
        debug_assert_eq!(N, self.labels.len());
        let mut replaced: Vec<Row> = Vec::new();
        for (values, value) in rows {
            if matches!(value, Value::Float(v) if !v.is_finite()) {
                continue;
            }
            let labels =
                self.labels.iter().zip(values).map(|(name, value)| (*name, bounded(value))).collect();
            replaced.push(Row { labels, value });
        }
        // Two samples with the same labels would make the whole scrape invalid.
        replaced.sort_by(|a, b| a.labels.cmp(&b.labels));
        replaced.dedup_by(|a, b| a.labels == b.labels);
        *self.rows.write().unwrap_or_else(PoisonError::into_inner) = replaced;
    }

    /// Adds `by` to the row with these labels, which appears with it.
    pub(super) fn add<const N: usize>(&self, values: [&str; N], by: u64) {
        debug_assert_eq!(N, self.labels.len());
        let labels: Vec<_> =
            self.labels.iter().zip(values).map(|(name, value)| (*name, bounded(value))).collect();
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        match rows.iter_mut().find(|row| row.labels == labels) {
            Some(Row { value: Value::Integer(value), .. }) => *value = value.wrapping_add(by),
            Some(row) => row.value = Value::Integer(by),
            None => rows.push(Row { labels, value: Value::Integer(by) }),
        }
    }
}

fn bounded(value: &str) -> String {
    // NUL fits no exposition format, and prometheus-client passes it on.
    value[..value.floor_char_boundary(MAX_LABEL_BYTES)].replace('\0', "\u{fffd}")
}

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        if rows.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(self.name, &self.help, self.unit.as_ref(), self.kind)?;
        for row in rows.iter() {
            if row.labels.is_empty() {
                encode_value(&mut family, self.kind, row.value)?;
            } else {
                encode_value(&mut family.encode_family(&row.labels)?, self.kind, row.value)?;
            }
        }
        Ok(())
    }
}

fn encode_value(sample: &mut MetricEncoder, kind: MetricType, value: Value) -> Result<(), fmt::Error> {
    match (kind, value) {
        (MetricType::Counter, Value::Integer(v)) => sample.encode_counter::<NoLabelSet, _, f64>(&v, None),
        (MetricType::Counter, Value::Float(v)) => sample.encode_counter::<NoLabelSet, _, f64>(&v, None),
        (_, Value::Integer(v)) => sample.encode_gauge(&v),
        (_, Value::Float(v)) => sample.encode_gauge(&v),
    }
}
