//! In: a snapshot; out: its families through the encoder, all of them or one tenant's. Allocates nothing per sample.

use bytes::BytesMut;

use super::Format;
use super::text::{HistogramNames, Metadata, Number, SampleName};
use crate::catalog::family::{Family, HISTOGRAM_VALUES, Kind, LE, Scale};
use crate::registry::{SeriesLayout, Snapshot};

/// The `le` label of each bucket, as [`le_label`](super::text::le_label) makes them. Written out, since series in storage have
/// these labels: Go's shortest decimals, which differ from `dtoa`'s in their exponents.
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

/// Appends the snapshot's families to `out`, without the end marker of [`finish`](super::finish). A series whose values are
/// not in the snapshot (a fault of the registry) is left out.
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
        Metadata::from(layout.family).put(format, out);
        match layout.family.kind {
            Kind::Counter | Kind::Gauge => encode_single(layout.family, series, &snapshot.values, out),
            Kind::Histogram => encode_histograms(layout.family, series, &snapshot.values, out),
        }
    }
}

/// Counters and gauges: one sample per series.
fn encode_single<'a>(
    family: &Family,
    shown: impl Iterator<Item = &'a SeriesLayout>,
    values: &[u64],
    out: &mut BytesMut,
) {
    let name = SampleName::new(family.name, Metadata::from(family).kind.sample_suffix());
    for series in shown {
        let Some(&value) = values.get(series.first as usize) else {
            debug_assert!(false, "series of `{}` without a value", family.name);
            continue;
        };
        name.put(&series.labels, scaled(value, family.scale), out);
    }
}

/// Histograms: cumulative buckets, count, sum.
fn encode_histograms<'a>(
    family: &Family,
    shown: impl Iterator<Item = &'a SeriesLayout>,
    values: &[u64],
    out: &mut BytesMut,
) {
    let names = HistogramNames::new(family.name);
    for series in shown {
        let first = series.first as usize;
        let Some(values) = values.get(first..first + HISTOGRAM_VALUES) else {
            debug_assert!(false, "series of `{}` without values", family.name);
            continue;
        };
        let (counts, sums) = values.split_at(LE_LABELS.len());
        names.put(&series.labels, &LE_LABELS, counts, scaled(sums[0], family.scale), out);
    }
}

fn scaled(value: u64, scale: Scale) -> Number {
    match scale {
        Scale::One => Number::Integer(value),
        Scale::NanosToSeconds => Number::Nanoseconds(value),
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
}
