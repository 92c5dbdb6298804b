//! In: a hand-made snapshot of 10,000 samples; out: what it takes to render and to compress one. Starts no agent.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::BytesMut;
use kernmeter::catalog;
use kernmeter::exposition::{Format, encode_snapshot, gzip};
use kernmeter::registry::{FamilyLayout, HISTOGRAM_VALUES, Kind, Layout, SeriesLayout, Snapshot};

use crate::spread::Spread;

const SAMPLES: u32 = 10_000;
/// Lines of a histogram: one for each `le`, the sum and the count.
const HISTOGRAM_LINES: u32 = 16;
const ROUNDS: usize = 200;

/// Prints nanoseconds per sample.
pub fn run() -> Result<()> {
    println!("\nrendering a snapshot of {SAMPLES} samples, OpenMetrics, nanoseconds per sample");
    let series =
        [(Kind::Counter, SAMPLES, 1), (Kind::Histogram, SAMPLES / HISTOGRAM_LINES, HISTOGRAM_VALUES)];
    for (kind, series, values) in series {
        let snapshot = snapshot(kind, series, values)?;
        let mut out = BytesMut::new();
        let mut timed = |what: &mut dyn FnMut(&mut BytesMut)| {
            out.clear();
            let begin = Instant::now();
            what(&mut out);
            begin.elapsed().as_nanos() as f64 / f64::from(SAMPLES)
        };
        let plain = Spread::of(
            (0..ROUNDS)
                .map(|_| timed(&mut |out| encode_snapshot(&snapshot, Format::OpenMetrics100, out)))
                .collect::<Vec<_>>(),
        );
        let mut body = BytesMut::new();
        encode_snapshot(&snapshot, Format::OpenMetrics100, &mut body);
        let packed = gzip(&body)?;
        let packing = Spread::of(
            (0..ROUNDS / 20)
                .map(|_| timed(&mut |_| drop(std::hint::black_box(gzip(&body)))))
                .collect::<Vec<_>>(),
        );
        let kind = format!("{kind:?}").to_lowercase();
        println!("  {kind:<10} {plain}, {} bytes; gzip {packing} more, {} bytes", body.len(), packed.len());
    }
    Ok(())
}

/// The first family of a kind, with as many series.
fn snapshot(kind: Kind, series: u32, values: usize) -> Result<Snapshot> {
    let family = catalog::families().find(|family| family.kind == kind).context("no such family")?;
    let labels = |n: u32| {
        format!(
            "tenant_id=\"tenant-{}\",k8s_namespace=\"team-{n}\",syscall=\"epoll_pwait\",abi=\"64\"",
            n % 40
        )
        .into_bytes()
        .into()
    };
    let layouts =
        (0..series).map(|n| SeriesLayout { labels: labels(n), first: n * values as u32, tenant: n % 40 });
    let layout = Layout {
        families: vec![FamilyLayout { family, series: layouts.collect() }],
        tenants: (0..40).map(|n| format!("tenant-{n}").into()).collect(),
    };
    let values = (0..u64::from(series) * values as u64).map(|n| n * n * 7919).collect();
    Ok(Snapshot { layout: Arc::new(layout), values, taken_ns: 1, sequence: 1 })
}
