//! In: a family's metadata, labels and values; out: its lines in `OpenMetrics` or text 0.0.4. The one place that writes
//! metrics; knows neither where values come from nor a family by name. Allocates nothing.

use bytes::{BufMut, BytesMut};

use super::Format;
use crate::catalog::family::{Family, Kind};
use crate::escape::escape_help;

/// The kind of a family, as the `TYPE` line of `OpenMetrics` knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; its sample's name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound.
    Histogram,
    /// Facts in labels, always 1; its sample's name ends with `_info`. A gauge in text 0.0.4.
    Info,
}

impl MetricKind {
    /// The name in the `TYPE` line of a format.
    pub const fn as_str(self, format: Format) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Info if format.is_openmetrics() => "info",
            Self::Info | Self::Gauge => "gauge",
        }
    }

    /// What follows the family's name in the name of its only sample.
    pub const fn sample_suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }
}

impl From<Kind> for MetricKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter,
            Kind::Gauge => Self::Gauge,
            Kind::Histogram => Self::Histogram,
        }
    }
}

/// What stands above a family's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Name without the suffix of its sample; ends with the unit, if there is one.
    pub name: &'a str,
    /// One sentence; may hold any character.
    pub help: &'a str,
    /// `OpenMetrics` unit.
    pub unit: Option<&'a str>,
    /// Counter, gauge, histogram or info.
    pub kind: MetricKind,
}

impl<'a> From<&'a Family> for Metadata<'a> {
    fn from(family: &'a Family) -> Self {
        Self { name: family.name, help: family.help, unit: family.unit, kind: family.kind.into() }
    }
}

impl Metadata<'_> {
    /// The name of the family's sample; of a histogram, what its samples' names begin with.
    pub fn sample_name(&self) -> String {
        format!("{}{}", self.name, self.kind.sample_suffix())
    }

    /// Appends HELP, TYPE and, in `OpenMetrics`, UNIT. Text 0.0.4 knows counters and infos by their sample's name.
    pub(crate) fn put(&self, format: Format, out: &mut BytesMut) {
        let suffix = if format.is_openmetrics() { "" } else { self.kind.sample_suffix() };
        for part in ["# HELP ", self.name, suffix, " "] {
            out.put_slice(part.as_bytes());
        }
        escape_help(out, self.help, format.is_openmetrics());
        for part in ["\n# TYPE ", self.name, suffix, " ", self.kind.as_str(format), "\n"] {
            out.put_slice(part.as_bytes());
        }
        if let (true, Some(unit)) = (format.is_openmetrics(), self.unit) {
            for part in ["# UNIT ", self.name, " ", unit, "\n"] {
                out.put_slice(part.as_bytes());
            }
        }
    }
}

/// A sample's value, kept as it was given so that large counts stay exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// An integer.
    Integer(u64),
    /// Nanoseconds, written as seconds with nine decimals at most, exactly.
    Nanoseconds(u64),
    /// Anything else; finite.
    Float(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl Number {
    /// Appends the value and ends the line.
    fn put(self, out: &mut BytesMut) {
        match self {
            Self::Integer(value) => put_integer(value, out),
            Self::Nanoseconds(value) => put_seconds(value, out),
            // With a point even where it is whole, as `OpenMetrics` writes floats.
            Self::Float(value) => out.put_slice(dtoa::Buffer::new().format(value).as_bytes()),
        }
        out.put_slice(b"\n");
    }
}

/// Room for braces, space, the longest value (24 bytes) and the line feed.
const MAX_VALUE: usize = 32;
/// Longest sample name; Prometheus' own tools get unhandy long before.
const MAX_NAME: usize = 119;

/// The name of a sample with the opening brace, put together once per family: one copy per sample instead of three.
pub(crate) struct SampleName {
    bytes: [u8; MAX_NAME + 1],
    /// Of the name, without the brace.
    length: usize,
}

impl SampleName {
    /// # Panics
    /// If the name, a literal of ours, is longer than [`MAX_NAME`] bytes with its suffix.
    pub(crate) fn new(name: &str, suffix: &str) -> Self {
        let length = name.len() + suffix.len();
        assert!(length <= MAX_NAME, "family name `{name}` is longer than {MAX_NAME} bytes with its suffix");
        let mut bytes = [b'{'; MAX_NAME + 1];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[name.len()..length].copy_from_slice(suffix.as_bytes());
        Self { bytes, length }
    }

    /// Appends a sample. `labels` are escaped `name="value",...` without braces, or empty.
    pub(crate) fn put(&self, labels: &[u8], value: Number, out: &mut BytesMut) {
        out.reserve(self.length + labels.len() + MAX_VALUE);
        if labels.is_empty() {
            out.put_slice(self.name());
            out.put_slice(b" ");
        } else {
            out.put_slice(self.with_brace());
            out.put_slice(labels);
            out.put_slice(b"} ");
        }
        value.put(out);
    }

    fn with_brace(&self) -> &[u8] {
        &self.bytes[..=self.length]
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The names of a histogram's samples.
pub(crate) struct HistogramNames {
    bucket: SampleName,
    count: SampleName,
    sum: SampleName,
}

impl HistogramNames {
    /// # Panics
    /// As [`SampleName::new`].
    pub(crate) fn new(name: &str) -> Self {
        let [bucket, count, sum] = ["_bucket", "_count", "_sum"].map(|suffix| SampleName::new(name, suffix));
        Self { bucket, count, sum }
    }

    /// Appends cumulative buckets, count and sum. `bounds` are the `le` labels as [`le_label`] makes them, the last one of
    /// `+Inf`, and `counts` the events of each bucket alone.
    pub(crate) fn put(
        &self,
        labels: &[u8],
        bounds: &[impl AsRef<[u8]>],
        counts: &[u64],
        sum: Number,
        out: &mut BytesMut,
    ) {
        debug_assert_eq!(bounds.len(), counts.len());
        let mut cumulative = 0_u64;
        for (count, bound) in counts.iter().zip(bounds) {
            // Totals wrap after centuries; a wrapped count reads as a counter reset, which a panic would not.
            cumulative = cumulative.wrapping_add(*count);
            let bound = bound.as_ref();
            out.reserve(self.bucket.length + labels.len() + bound.len() + MAX_VALUE);
            out.put_slice(self.bucket.with_brace());
            out.put_slice(labels);
            out.put_slice(if labels.is_empty() { &bound[1..] } else { bound });
            put_integer(cumulative, out);
            out.put_slice(b"\n");
        }
        self.count.put(labels, Number::Integer(cumulative), out);
        self.sum.put(labels, sum, out);
    }
}

/// The `le` label of an upper bound, comma, quotes and all that follows up to the value. Bounds are the shortest decimals that
/// read back, written as `OpenMetrics` and Prometheus 3 write floats (`1.0`, not `1`); Prometheus 2 keeps the text as it is,
/// so one text makes one series in every format and version.
pub(crate) fn le_label(bound: f64) -> Box<[u8]> {
    let mut buffer = dtoa::Buffer::new();
    let bound = if bound == f64::INFINITY { "+Inf" } else { buffer.format(bound) };
    [b",le=\"", bound.as_bytes(), b"\"} "].concat().into()
}

/// Appends what ends a body: `# EOF` in `OpenMetrics`, nothing in text 0.0.4.
pub fn finish(format: Format, out: &mut BytesMut) {
    if format.is_openmetrics() {
        out.put_slice(b"# EOF\n");
    }
}

fn put_integer(value: u64, out: &mut BytesMut) {
    out.put_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn put_seconds(nanoseconds: u64, out: &mut BytesMut) {
    const NANOS: u64 = 1_000_000_000;
    put_integer(nanoseconds / NANOS, out);
    let mut rest = nanoseconds % NANOS;
    if rest == 0 {
        return;
    }
    let mut decimals = *b".000000000";
    let mut length = 1;
    for (at, digit) in decimals.iter_mut().enumerate().skip(1).rev() {
        *digit = b'0' + (rest % 10) as u8;
        if *digit != b'0' && length == 1 {
            length = at + 1;
        }
        rest /= 10;
    }
    out.put_slice(&decimals[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: Number) -> String {
        let mut out = BytesMut::new();
        value.put(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn seconds_are_exact() {
        for (nanos, expected) in [
            (0, "0"),
            (1, "0.000000001"),
            (10, "0.00000001"),
            (100_000_000, "0.1"),
            (999_999_999, "0.999999999"),
            (1_000_000_000, "1"),
            (1_000_000_001, "1.000000001"),
            (61_500_000_000, "61.5"),
            (10_020_030_000, "10.02003"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            assert_eq!(written(Number::Nanoseconds(nanos)), format!("{expected}\n"));
        }
    }

    #[test]
    fn numbers_are_as_they_were_given() {
        for (value, expected) in [
            (Number::Integer(u64::MAX), "18446744073709551615\n"),
            (Number::Float(0.0), "0.0\n"),
            (Number::Float(15.0), "15.0\n"),
            (Number::Float(0.1), "0.1\n"),
            (Number::Float(-2.5e-9), "-2.5e-9\n"),
        ] {
            assert_eq!(written(value), expected);
        }
    }
}
