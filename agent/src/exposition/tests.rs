//! In: hand-made snapshots; out: verdicts on whole bodies, and allocations. Knows no registry logic.

use std::fmt::Write;
use std::io::Read;
use std::sync::Arc;

use bytes::BytesMut;

use super::{Format, encode_snapshot, encode_tenant, finish, gzip};
use crate::allocations;
use crate::escape::escape_label_value;
use crate::registry::{Family, FamilyLayout, HISTOGRAM_VALUES, Kind, Layout, Scale, SeriesLayout, Snapshot};

static CALLS: Family = Family {
    name: "kernmeter_syscalls",
    help: "System calls \"finished\", by \\ name\nand ABI.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["syscall", "abi"],
};
static CPU: Family = Family {
    name: "kernmeter_cpu_seconds",
    help: "Time on a CPU.",
    unit: Some("seconds"),
    kind: Kind::Counter,
    scale: Scale::NanosToSeconds,
    labels: &[],
};
static TASKS: Family = Family {
    name: "kernmeter_tasks",
    help: "Live tasks.",
    unit: None,
    kind: Kind::Gauge,
    scale: Scale::One,
    labels: &[],
};
static WAIT: Family = Family {
    name: "kernmeter_runqueue_wait_seconds",
    help: "Time runnable but not running.",
    unit: Some("seconds"),
    kind: Kind::Histogram,
    scale: Scale::NanosToSeconds,
    labels: &[],
};
static EMPTY: Family = Family {
    name: "kernmeter_empty",
    help: "None.",
    unit: None,
    kind: Kind::Gauge,
    scale: Scale::One,
    labels: &[],
};

fn labels(tenant: &str) -> Box<[u8]> {
    let mut out = b"tenant_id=\"".to_vec();
    escape_label_value(&mut out, tenant);
    out.push(b'"');
    out.into()
}

fn labels_of_acme() -> Box<[u8]> {
    labels("acme")
}

fn layout(families: Vec<FamilyLayout>) -> Arc<Layout> {
    Arc::new(Layout { families, tenants: vec!["acme".into(), "other".into()] })
}

fn family(family: &'static Family, series: Vec<(Box<[u8]>, u32)>) -> FamilyLayout {
    let tenant = |labels: &[u8]| u32::from(labels != &*labels_of_acme());
    let series = series.into_iter().map(|(labels, first)| SeriesLayout {
        tenant: tenant(&labels),
        labels: labels.into(),
        first,
    });
    let series = series.collect();
    FamilyLayout { family, series }
}

fn example() -> Snapshot {
    let mut values = vec![7, 8, 1_500_000_000, 3];
    values.extend([1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 2_000_000_001]);
    assert_eq!(values.len(), 4 + HISTOGRAM_VALUES);
    let families = vec![
        family(&CALLS, vec![(labels("acme"), 0), (labels("a\"} 1\n\\"), 1)]),
        family(&CPU, vec![(labels("acme"), 2)]),
        family(&TASKS, vec![(Box::default(), 3)]),
        family(&WAIT, vec![(labels("acme"), 4), (Box::default(), 4)]),
        family(&EMPTY, vec![]),
    ];
    Snapshot { layout: layout(families), values, taken_ns: 1, sequence: 1 }
}

fn body(snapshot: &Snapshot, format: Format) -> String {
    let mut out = BytesMut::new();
    encode_snapshot(snapshot, format, &mut out);
    finish(format, &mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

/// Samples of the histogram with and without labels: the same in both formats.
fn histogram_samples() -> String {
    let buckets = [
        ("9.5367431640625e-07", 1),
        ("3.814697265625e-06", 1),
        ("1.52587890625e-05", 3),
        ("6.103515625e-05", 3),
        ("0.000244140625", 3),
        ("0.0009765625", 3),
        ("0.00390625", 3),
        ("0.015625", 3),
        ("0.0625", 3),
        ("0.25", 3),
        ("1.0", 3),
        ("4.0", 3),
        ("16.0", 7),
        ("+Inf", 12),
    ];
    let mut expected = String::new();
    for (before_le, braces) in [("tenant_id=\"acme\",", "{tenant_id=\"acme\"}"), ("", "")] {
        for (le, count) in buckets {
            writeln!(expected, "kernmeter_runqueue_wait_seconds_bucket{{{before_le}le=\"{le}\"}} {count}")
                .unwrap();
        }
        writeln!(expected, "kernmeter_runqueue_wait_seconds_count{braces} 12").unwrap();
        writeln!(expected, "kernmeter_runqueue_wait_seconds_sum{braces} 2.000000001").unwrap();
    }
    expected
}

#[test]
fn openmetrics_body() {
    let expected = r#"# HELP kernmeter_syscalls System calls \"finished\", by \\ name\nand ABI.
# TYPE kernmeter_syscalls counter
kernmeter_syscalls_total{tenant_id="acme"} 7
kernmeter_syscalls_total{tenant_id="a\"} 1\n\\"} 8
# HELP kernmeter_cpu_seconds Time on a CPU.
# TYPE kernmeter_cpu_seconds counter
# UNIT kernmeter_cpu_seconds seconds
kernmeter_cpu_seconds_total{tenant_id="acme"} 1.5
# HELP kernmeter_tasks Live tasks.
# TYPE kernmeter_tasks gauge
kernmeter_tasks 3
# HELP kernmeter_runqueue_wait_seconds Time runnable but not running.
# TYPE kernmeter_runqueue_wait_seconds histogram
# UNIT kernmeter_runqueue_wait_seconds seconds
"#
    .to_owned()
        + &histogram_samples()
        + "# EOF\n";
    assert_eq!(body(&example(), Format::OpenMetrics100), expected);
    assert_eq!(body(&example(), Format::OpenMetrics001), expected);
}

#[test]
fn text_004_body() {
    let expected = r#"# HELP kernmeter_syscalls_total System calls "finished", by \\ name\nand ABI.
# TYPE kernmeter_syscalls_total counter
kernmeter_syscalls_total{tenant_id="acme"} 7
kernmeter_syscalls_total{tenant_id="a\"} 1\n\\"} 8
# HELP kernmeter_cpu_seconds_total Time on a CPU.
# TYPE kernmeter_cpu_seconds_total counter
kernmeter_cpu_seconds_total{tenant_id="acme"} 1.5
# HELP kernmeter_tasks Live tasks.
# TYPE kernmeter_tasks gauge
kernmeter_tasks 3
# HELP kernmeter_runqueue_wait_seconds Time runnable but not running.
# TYPE kernmeter_runqueue_wait_seconds histogram
"#
    .to_owned()
        + &histogram_samples();
    assert_eq!(body(&example(), Format::Text004), expected);
}

#[test]
fn one_tenants_view_is_its_series_and_nothing_else() {
    let view = |tenant: &str, format| {
        let snapshot = example();
        let mut out = BytesMut::new();
        encode_tenant(&snapshot, snapshot.layout.tenant(tenant).unwrap(), format, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    };
    for format in Format::ALL {
        let acme = view("acme", format);
        let whole = body(&example(), format);
        assert!(
            whole.lines().filter(|line| line.contains("tenant_id=\"acme\"")).all(|line| acme.contains(line))
        );
        assert!(
            acme.lines().all(|line| line.starts_with("# ") || line.contains("{tenant_id=\"acme\"")),
            "{acme}"
        );
        // A family of which it has nothing is not even named.
        assert!(!acme.contains("kernmeter_tasks") && acme.contains("kernmeter_cpu_seconds"));
        let other = view("other", format);
        assert!(!other.contains("acme") && !other.contains("kernmeter_cpu_seconds"), "{other}");
    }
    assert_eq!(example().layout.tenant("nobody"), None);
}

#[test]
fn nothing_yet_is_a_valid_body() {
    assert_eq!(body(&Snapshot::default(), Format::OpenMetrics100), "# EOF\n");
    assert_eq!(body(&Snapshot::default(), Format::Text004), "");
}

#[test]
fn gzip_round_trip() {
    let plain = body(&example(), Format::OpenMetrics100);
    let packed = gzip(plain.as_bytes()).unwrap();
    assert!(packed.len() < plain.len());
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
}

/// `series` counters and a sixteenth as many histograms: about twice `series` samples.
fn large(series: u32) -> Snapshot {
    let name = |i: u32| {
        let mut out = labels(&format!("tenant-{}", i % 40)).into_vec();
        out.extend(format!(",k8s_namespace=\"team-{i}\",syscall=\"epoll_pwait\",abi=\"64\"").bytes());
        out.into_boxed_slice()
    };
    let histograms = series / 16;
    let mut values: Vec<u64> = (0..u64::from(series)).map(|i| i * i * 7919).collect();
    values.extend((0..u64::from(histograms) * HISTOGRAM_VALUES as u64).map(|i| i * 104_729));
    let families = vec![
        family(&CALLS, (0..series).map(|i| (name(i), i)).collect()),
        family(&WAIT, (0..histograms).map(|i| (name(i), series + i * HISTOGRAM_VALUES as u32)).collect()),
    ];
    Snapshot { layout: layout(families), values, taken_ns: 1, sequence: 1 }
}

#[test]
fn steady_state_allocates_nothing_per_sample() {
    let (small, big) = (large(160), large(16_000));
    let mut out = BytesMut::new();
    let mut steady = |snapshot: &Snapshot| {
        encode_snapshot(snapshot, Format::OpenMetrics100, &mut out);
        out.clear();
        allocations::count(|| {
            encode_snapshot(snapshot, Format::OpenMetrics100, &mut out);
            out.clear();
        })
    };
    let (few, many) = (steady(&small), steady(&big));
    assert_eq!((few, many), (0, 0));
    // The counter itself counts.
    assert_eq!(allocations::count(|| drop(std::hint::black_box(Box::new(1_u64)))), 1);
}

/// `KERNMETER_WRITE_BODIES=dir cargo test ... -- --ignored write_bodies`, then promtool or another parser on the files.
#[test]
#[ignore = "writes files for outside checkers"]
fn write_bodies() {
    let dir = std::env::var("KERNMETER_WRITE_BODIES").expect("set KERNMETER_WRITE_BODIES to a directory");
    for format in Format::ALL {
        std::fs::write(format!("{dir}/workloads-{}", format.name()), body(&example(), format)).unwrap();
    }
}
