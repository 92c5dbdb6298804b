//! In: a snapshot; out: its families in `OpenMetrics` or text 0.0.4. Integer formatting only; allocates nothing per sample.

use bytes::{BufMut, BytesMut};

use super::Format;
use super::escape::escape_help;
use crate::registry::{Family, HISTOGRAM_VALUES, Kind, LE, Scale, SeriesLayout, Snapshot};

/// The `le` label of each bucket, comma and quotes included, up to where the value goes. The bounds are the shortest
/// decimals that read back as the power of two, written as `OpenMetrics` and Prometheus 3 write floats (`1.0`, not
/// `1`); Prometheus 2 keeps the text as it is, so one text makes one series in every format and version.
const LE_LABELS: [&[u8]; LE.len() + 1] = [
    b",le=\"9.5367431640625e-07\"} ",
    b",le=\"3.814697265625e-06\"} ",
    b",le=\"1.52587890625e-05\"} ",
    b",le=\"6.103515625e-05\"} ",
    b",le=\"0.000244140625\"} ",
    b",le=\"0.0009765625\"} ",
    b",le=\"0.00390625\"} ",
    b",le=\"0.015625\"} ",
    b",le=\"0.0625\"} ",
    b",le=\"0.25\"} ",
    b",le=\"1.0\"} ",
    b",le=\"4.0\"} ",
    b",le=\"16.0\"} ",
    b",le=\"+Inf\"} ",
];

/// Appends the snapshot's families to `out`, without the end marker of [`finish`]. A series whose values are not in the
/// snapshot (a fault of the registry) is left out.
///
/// # Panics
/// If a family's name, a literal of ours, is longer than a hundred bytes or so.
pub fn encode_snapshot(snapshot: &Snapshot, format: Format, out: &mut BytesMut) {
    encode(snapshot, format, |_| true, out);
}

/// As [`encode_snapshot`], of one tenant's series alone; `tenant` is its place in
/// [`Layout::tenants`](crate::registry::Layout::tenants). Families in which it has none are left out whole.
///
/// # Panics
/// As [`encode_snapshot`].
pub fn encode_tenant(snapshot: &Snapshot, tenant: u32, format: Format, out: &mut BytesMut) {
    encode(snapshot, format, |series| series.tenant == tenant, out);
}

/// The families' series that `shown` lets through. Each caller gets its own copy of the loops, so that showing all costs
/// no test per sample.
fn encode(snapshot: &Snapshot, format: Format, shown: impl Fn(&SeriesLayout) -> bool, out: &mut BytesMut) {
    for layout in &snapshot.layout.families {
        let mut series = layout.series.iter().filter(|series| shown(series)).peekable();
        if series.peek().is_none() {
            continue;
        }
        encode_header(layout.family, format, out);
        match layout.family.kind {
            Kind::Counter => encode_single(layout.family, series, &snapshot.values, "_total", out),
            Kind::Gauge => encode_single(layout.family, series, &snapshot.values, "", out),
            Kind::Histogram => encode_histograms(layout.family, series, &snapshot.values, out),
        }
    }
}

/// Appends what ends a body: `# EOF` in `OpenMetrics`, nothing in text 0.0.4.
pub fn finish(format: Format, out: &mut BytesMut) {
    if format.is_openmetrics() {
        out.put_slice(b"# EOF\n");
    }
}

/// HELP, TYPE and, in `OpenMetrics`, UNIT. Text 0.0.4 knows counters by their sample name.
fn encode_header(family: &Family, format: Format, out: &mut BytesMut) {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let suffix = if family.kind == Kind::Counter && !format.is_openmetrics() { "_total" } else { "" };
    for part in ["# HELP ", family.name, suffix, " "] {
        out.put_slice(part.as_bytes());
    }
    escape_help(out, family.help, format.is_openmetrics());
    for part in ["\n# TYPE ", family.name, suffix, " ", kind, "\n"] {
        out.put_slice(part.as_bytes());
    }
    if let (true, Some(unit)) = (format.is_openmetrics(), family.unit) {
        for part in ["# UNIT ", family.name, " ", unit, "\n"] {
            out.put_slice(part.as_bytes());
        }
    }
}

/// Counters and gauges: one sample per series.
fn encode_single<'a>(
    family: &Family,
    shown: impl Iterator<Item = &'a SeriesLayout>,
    values: &[u64],
    suffix: &str,
    out: &mut BytesMut,
) {
    let prefix = Prefix::new(family.name, suffix);
    for series in shown {
        let Some(&value) = values.get(series.first as usize) else {
            debug_assert!(false, "series of `{}` without a value", family.name);
            continue;
        };
        out.reserve(prefix.length + series.labels.len() + MAX_VALUE);
        sample_name(&prefix, &series.labels, out);
        put_scaled(value, family.scale, out);
    }
}

/// Histograms: cumulative buckets, count, sum.
fn encode_histograms<'a>(
    family: &Family,
    shown: impl Iterator<Item = &'a SeriesLayout>,
    values: &[u64],
    out: &mut BytesMut,
) {
    let [bucket, count, sum] = ["_bucket", "_count", "_sum"].map(|s| Prefix::new(family.name, s));
    for series in shown {
        let first = series.first as usize;
        let Some(values) = values.get(first..first + HISTOGRAM_VALUES) else {
            debug_assert!(false, "series of `{}` without values", family.name);
            continue;
        };
        let (counts, sums) = values.split_at(LE_LABELS.len());
        out.reserve((bucket.length + series.labels.len() + MAX_LE + MAX_VALUE) * (LE_LABELS.len() + 2));
        let mut cumulative = 0_u64;
        for (count, le) in counts.iter().zip(LE_LABELS) {
            // Totals wrap after centuries; a wrapped count reads as a counter reset, which a panic would not.
            cumulative = cumulative.wrapping_add(*count);
            out.put_slice(bucket.with_brace());
            out.put_slice(&series.labels);
            out.put_slice(if series.labels.is_empty() { &le[1..] } else { le });
            put_integer(cumulative, out);
        }
        sample_name(&count, &series.labels, out);
        put_integer(cumulative, out);
        sample_name(&sum, &series.labels, out);
        put_scaled(sums[0], family.scale, out);
    }
}

/// Room for braces, space, the longest value (21 bytes) and the line feed.
const MAX_VALUE: usize = 32;
/// Room for the longest of [`LE_LABELS`].
const MAX_LE: usize = 32;
/// Longest sample name that fits a [`Prefix`]; Prometheus' own tools get unhandy long before.
const MAX_NAME: usize = 119;

/// A sample's name with the opening brace, put together once per family: one copy per sample instead of three.
struct Prefix {
    bytes: [u8; MAX_NAME + 1],
    /// Of the name, without the brace.
    length: usize,
}

impl Prefix {
    fn new(name: &str, suffix: &str) -> Self {
        let length = name.len() + suffix.len();
        assert!(length <= MAX_NAME, "family name `{name}` is longer than {MAX_NAME} bytes with its suffix");
        let mut bytes = [b'{'; MAX_NAME + 1];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[name.len()..length].copy_from_slice(suffix.as_bytes());
        Self { bytes, length }
    }

    fn with_brace(&self) -> &[u8] {
        &self.bytes[..=self.length]
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn sample_name(prefix: &Prefix, labels: &[u8], out: &mut BytesMut) {
    if labels.is_empty() {
        out.put_slice(prefix.name());
        out.put_slice(b" ");
    } else {
        out.put_slice(prefix.with_brace());
        out.put_slice(labels);
        out.put_slice(b"} ");
    }
}

fn put_integer(value: u64, out: &mut BytesMut) {
    out.put_slice(itoa::Buffer::new().format(value).as_bytes());
    out.put_slice(b"\n");
}

fn put_scaled(value: u64, scale: Scale, out: &mut BytesMut) {
    const NANOS: u64 = 1_000_000_000;
    match scale {
        Scale::One => put_integer(value, out),
        Scale::NanosToSeconds => {
            out.put_slice(itoa::Buffer::new().format(value / NANOS).as_bytes());
            let mut rest = value % NANOS;
            if rest != 0 {
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
            out.put_slice(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_shortest_decimals_of_the_powers_of_two() {
        let text = |label: &[u8]| {
            let text = std::str::from_utf8(label).unwrap();
            text.strip_prefix(",le=\"").unwrap().strip_suffix("\"} ").unwrap().to_owned()
        };
        for (exponent, label) in LE.iter().zip(LE_LABELS) {
            let bound = text(label);
            let value: f64 = bound.parse().unwrap();
            assert_eq!(value.to_bits(), 2_f64.powi(*exponent).to_bits(), "{bound}");
            // `{:?}` writes the shortest digits that read back, but another exponent: compare the digits.
            let digits = |s: &str| s.split('e').next().unwrap().replace('.', "").trim_matches('0').to_owned();
            assert_eq!(digits(&bound), digits(&format!("{value:?}")), "{bound}");
        }
        assert_eq!(text(LE_LABELS[LE.len()]), "+Inf");
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
            let mut out = BytesMut::new();
            put_scaled(nanos, Scale::NanosToSeconds, &mut out);
            assert_eq!(std::str::from_utf8(&out).unwrap(), format!("{expected}\n"));
        }
    }
}
