//! In: setter calls; out: verdicts on the rendered text, some of them prometheus-client's. Writes bodies for outside checkers
//! when told where to.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram as ClientHistogram;
use prometheus_client::metrics::info::Info as ClientInfo;
use prometheus_client::registry::{Registry, Unit};
use proptest::prelude::*;

use super::*;
use crate::allocations;

fn filled() -> SelfMetrics {
    let own = SelfMetrics::new("0.1.0", "abc\"\\def");
    own.set_probes(&[
        ProbeState { probe: "syscalls", detached: None, caveat: None },
        ProbeState { probe: "scheduler", detached: Some("kernel \"5.4\"\nhas no BTF"), caveat: None },
    ]);
    own.set_events_lost(&[("kernel", "row_table_full", u64::MAX), ("drain", "stale", 0)]);
    own.set_kernel_events(&[("sys_enter", 10), ("sys_exit", 9)]);
    own.set_accounting_errors([("cpu", 0.0)]);
    own.set_audit_readings([("compared", 7)]);
    own.set_maps(&[MapUsage { map: "ROWS", entries: Some(5), capacity: 100, memory_bytes: 4096 }]);
    own.set_slots(100, 20, 3);
    own.set_unresolved_slots(2);
    own.observe_drain(Duration::from_micros(700));
    own.set_interval(Duration::from_secs(15), LoadState::Normal);
    let pressure = [("cpu", 0.25), ("memory", 0.0)];
    own.set_host(&HostReadings { cpu_utilization: 0.5, memory_available: 0.75, pressure: &pressure });
    own.set_series([("acme", 40), ("_host", 12)]);
    own.set_series_limited(3);
    own.set_tenant_rule_refusals([("reserved", 1)]);
    own.count_config_reload(true);
    own.count_scrape(Some(Format::Text004), 200);
    own.count_scrape(Some(Format::Text004), 200);
    own.count_scrape(None, 405);
    own.set_process(&ProcessStats {
        cpu_seconds: 1.25,
        threads: 2,
        max_fds: Some(1024),
        ..ProcessStats::default()
    });
    own
}

fn body(own: &SelfMetrics, format: Format) -> String {
    let snapshot = Snapshot { taken_ns: 1_000_000_000, ..Snapshot::default() };
    let mut out = BytesMut::new();
    render(&snapshot, own, format, 3_500_000_000, &mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

/// HELP and TYPE names with the type, and sample names with labels and value, line by line.
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no line `{line}` in:\n{text}");
}

#[test]
fn openmetrics_has_every_family() {
    let text = body(&filled(), Format::OpenMetrics100);
    for line in [
        "# TYPE kernmeter_build info",
        r#"kernmeter_build_info{version="0.1.0",revision="abc\"\\def"} 1"#,
        "# TYPE kernmeter_probe_attached gauge",
        r#"kernmeter_probe_attached{probe="syscalls",reason=""} 1"#,
        r#"kernmeter_probe_attached{probe="scheduler",reason="kernel \"5.4\"\nhas no BTF"} 0"#,
        "# TYPE kernmeter_events_lost counter",
        r#"kernmeter_events_lost_total{stage="kernel",reason="row_table_full"} 18446744073709551615"#,
        r#"kernmeter_kernel_events_total{event="sys_enter"} 10"#,
        "# UNIT kernmeter_accounting_error_ratio ratio",
        r#"kernmeter_accounting_error_ratio{quantity="cpu"} 0.0"#,
        r#"kernmeter_audit_readings_total{outcome="compared"} 7"#,
        r#"kernmeter_map_entries{map="ROWS"} 5"#,
        r#"kernmeter_map_capacity{map="ROWS"} 100"#,
        r#"kernmeter_map_memory_bytes{map="ROWS"} 4096"#,
        r#"kernmeter_slots{state="live"} 20"#,
        "kernmeter_unresolved_slots 2",
        "# TYPE kernmeter_drain_duration_seconds histogram",
        "kernmeter_drain_duration_seconds_count 1",
        r#"kernmeter_drain_duration_seconds_bucket{le="0.0005"} 0"#,
        r#"kernmeter_drain_duration_seconds_bucket{le="0.001"} 1"#,
        r#"kernmeter_drain_duration_seconds_bucket{le="+Inf"} 1"#,
        "# UNIT kernmeter_interval_seconds seconds",
        "kernmeter_interval_seconds 15.0",
        r#"kernmeter_interval_state{state="normal"} 1"#,
        r#"kernmeter_interval_state{state="relaxed"} 0"#,
        r#"kernmeter_interval_state{state="stressed"} 0"#,
        "kernmeter_host_cpu_utilization_ratio 0.5",
        "kernmeter_host_memory_available_ratio 0.75",
        r#"kernmeter_host_pressure_ratio{resource="cpu"} 0.25"#,
        "kernmeter_snapshot_age_seconds 2.5",
        r#"kernmeter_series{tenant_id="acme"} 40"#,
        "kernmeter_series_limited_total 3",
        r#"kernmeter_tenant_rule_refusals_total{reason="reserved"} 1"#,
        r#"kernmeter_config_reloads_total{result="success"} 1"#,
        r#"kernmeter_config_reloads_total{result="failure"} 0"#,
        r#"kernmeter_scrapes_total{format="text-0.0.4",code="200"} 2"#,
        r#"kernmeter_scrapes_total{format="none",code="405"} 1"#,
        "# TYPE process_cpu_seconds counter",
        "process_cpu_seconds_total 1.25",
        "# TYPE process_resident_memory_bytes gauge",
        "process_virtual_memory_bytes 0",
        "process_open_fds 0",
        "process_max_fds 1024",
        "process_start_time_seconds 0.0",
        "process_threads 2",
    ] {
        has(&text, line);
    }
    assert_eq!(text.matches("# EOF").count(), 1);
    assert!(text.ends_with("\n# EOF\n"));
    assert!(!text.contains(".."), "a full stop too many");
}

#[test]
fn text_004_differs_where_it_must() {
    let text = body(&filled(), Format::Text004);
    for line in [
        "# HELP kernmeter_build_info Version and source revision of the agent.",
        "# TYPE kernmeter_build_info gauge",
        "# TYPE kernmeter_events_lost_total counter",
        r#"kernmeter_events_lost_total{stage="drain",reason="stale"} 0"#,
        "# TYPE process_cpu_seconds_total counter",
        "# HELP process_cpu_seconds_total Total user and system CPU time spent.",
        "# TYPE kernmeter_drain_duration_seconds histogram",
        "kernmeter_snapshot_age_seconds 2.5",
    ] {
        has(&text, line);
    }
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    // Samples are the same in both formats.
    let samples =
        |text: &str| text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(samples(&text), samples(&body(&filled(), Format::OpenMetrics100)));
}

#[test]
fn every_family_has_help_and_type_before_its_samples_and_once() {
    for format in Format::ALL {
        let text = body(&filled(), format);
        let names = |prefix: &str| -> Vec<String> {
            text.lines()
                .filter_map(|l| l.strip_prefix(prefix))
                .map(|l| l.split(' ').next().unwrap().to_owned())
                .collect()
        };
        let (help, kinds) = (names("# HELP "), names("# TYPE "));
        assert_eq!(help, kinds);
        let mut unique = help.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), help.len());
        // Build info, the histograms of drains and lists of pods, and what has rows.
        assert_eq!(help.len(), 3 + 30);
        for line in text.lines().filter(|l| l.starts_with("# HELP ")) {
            assert!(line.ends_with('.') && line.split(' ').count() > 4, "{line}");
        }
    }
}

#[test]
fn replaced_rows_are_gone() {
    let own = filled();
    own.set_probes(&[ProbeState { probe: "scheduler", detached: None, caveat: None }]);
    own.set_series(std::iter::empty());
    let text = body(&own, Format::Text004);
    has(&text, r#"kernmeter_probe_attached{probe="scheduler",reason=""} 1"#);
    assert_eq!(text.matches("kernmeter_probe_attached{").count(), 1);
    assert!(!text.contains("kernmeter_series{") && !text.contains("# TYPE kernmeter_series gauge"));
}

#[test]
fn equal_rows_never_reach_a_scrape_and_long_values_are_cut() {
    let own = SelfMetrics::new("0", "");
    let long = "é".repeat(4096);
    own.set_probes(&[
        ProbeState { probe: "x", detached: Some(&long), caveat: None },
        ProbeState { probe: "x", detached: Some(&long), caveat: None },
        ProbeState { probe: "y\0", detached: None, caveat: None },
    ]);
    let text = body(&own, Format::Text004);
    assert_eq!(text.matches("kernmeter_probe_attached{probe=\"x\"").count(), 1);
    assert!(text.lines().all(|l| l.len() < 512) && !text.contains('\0'));
}

#[test]
fn what_is_no_number_has_no_sample() {
    let own = filled();
    own.set_accounting_errors([("cpu", f64::NAN)]);
    own.set_process(&ProcessStats { max_fds: None, ..ProcessStats::default() });
    let text = body(&own, Format::Text004);
    assert!(!text.contains("kernmeter_accounting_error_ratio") && !text.contains("process_max_fds"));
}

#[test]
fn no_age_before_the_first_snapshot_and_none_negative() {
    let own = SelfMetrics::new("0", "");
    let text = |taken, now| {
        let mut out = BytesMut::new();
        own.encode(Format::Text004, taken, now, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    };
    assert!(!text(0, 5).contains("kernmeter_snapshot_age_seconds"));
    has(&text(9, 5), "kernmeter_snapshot_age_seconds 0.0");
}

#[test]
fn clones_share_values_across_threads() {
    let own = SelfMetrics::new("0", "");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let own = own.clone();
            scope.spawn(move || (0..100).for_each(|_| own.count_scrape(Some(Format::OpenMetrics100), 200)));
        }
    });
    let text = body(&own, Format::Text004);
    has(&text, r#"kernmeter_scrapes_total{format="openmetrics-1.0.0",code="200"} 400"#);
}

#[test]
fn declarations_follow_the_rules() {
    let mut names: Vec<_> = DECLARED.iter().map(|declared| declared.metadata.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), DECLARED.len(), "a name twice");
    for Declaration { metadata: Metadata { name, help, unit, kind }, labels } in &DECLARED {
        assert!(name.starts_with("kernmeter_") || name.starts_with("process_"), "{name}");
        assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}: the suffix is the encoder's");
        assert!(unit.is_none_or(|unit| name.ends_with(&format!("_{unit}"))), "{name}");
        assert!(help.ends_with('.') && !help.ends_with(".."), "{name}: {help}");
        assert!(*kind != MetricKind::Histogram || labels.is_empty(), "{name}");
    }
}

#[test]
fn a_steady_scrape_of_the_own_families_allocates_nothing() {
    let own = filled();
    let mut out = BytesMut::new();
    let mut scrape = || {
        own.count_scrape(Some(Format::OpenMetrics100), 200);
        own.set_kernel_events(&[("sys_enter", 11), ("sys_exit", 10)]);
        own.set_series([("acme", 41), ("_host", 12)]);
        own.observe_drain(Duration::from_micros(300));
        for format in Format::ALL {
            out.clear();
            own.encode(format, 1, 2, &mut out);
        }
    };
    scrape();
    assert_eq!(allocations::count(scrape), 0);
}

/// Rows for prometheus-client, which writes HELP as it is given and knows no value that is not a number.
#[derive(Debug)]
struct ClientRows {
    kind: MetricType,
    labels: [&'static str; 2],
    rows: Vec<([String; 2], Number)>,
}

impl Collector for ClientRows {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let unit = Unit::Seconds;
        let mut family = encoder.encode_descriptor("kernmeter_rows", "Rows.", Some(&unit), self.kind)?;
        for (values, number) in &self.rows {
            let labels: Vec<_> = self.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            let mut sample = family.encode_family(&labels)?;
            let counter = matches!(self.kind, MetricType::Counter);
            match *number {
                Number::Integer(v) if counter => sample.encode_counter::<NoLabelSet, _, f64>(&v, None),
                Number::Float(v) if counter => sample.encode_counter::<NoLabelSet, _, f64>(&v, None),
                Number::Integer(v) => sample.encode_gauge(&v),
                Number::Float(v) => sample.encode_gauge(&v),
                Number::Nanoseconds(_) => unreachable!("not made here"),
            }?;
        }
        Ok(())
    }
}

const ROWS_HELP: &str = "Rows.";
const ROWS_LABELS: [&str; 2] = ["a", "reason"];

/// What prometheus-client writes, without the end marker.
fn client_text(fill: impl FnOnce(&mut Registry)) -> String {
    let mut registry = Registry::default();
    fill(&mut registry);
    let mut text = String::new();
    encode_registry(&mut text, &registry).unwrap();
    text
}

fn own_text(encode: impl FnOnce(&mut BytesMut)) -> String {
    let mut out = BytesMut::new();
    encode(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

static COUNTER: Declaration = declaration("kernmeter_rows_seconds", MetricKind::Counter);
static GAUGE: Declaration = declaration("kernmeter_rows_seconds", MetricKind::Gauge);
static HISTOGRAM: Declaration = declaration("kernmeter_took_seconds", MetricKind::Histogram);
static BUILD: Declaration = Declaration {
    metadata: Metadata { name: "kernmeter_build", help: ROWS_HELP, unit: None, kind: MetricKind::Info },
    labels: &ROWS_LABELS,
};

const fn declaration(name: &'static str, kind: MetricKind) -> Declaration {
    Declaration {
        metadata: Metadata { name, help: ROWS_HELP, unit: Some("seconds"), kind },
        labels: &ROWS_LABELS,
    }
}

proptest! {
    /// An encoder that somebody else wrote says the same of the same values.
    #[test]
    fn prometheus_client_writes_the_same(
        rows in proptest::collection::btree_map(
            ("[^\0]{0,12}", "[a-c\\\\\"\n]{0,6}"),
            prop_oneof![
                any::<u64>().prop_map(Number::Integer),
                proptest::num::f64::NORMAL.prop_map(Number::Float),
                Just(Number::Float(0.0)),
            ],
            1..8,
        ),
        micros in proptest::collection::vec(0_u64..3_000_000, 0..20),
    ) {
        let rows: Vec<_> = rows.into_iter().map(|((a, b), number)| ([a, b], number)).collect();
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        for (kind, declared) in [(MetricType::Counter, &COUNTER), (MetricType::Gauge, &GAUGE)] {
            let client = client_text(|registry| registry.register_collector(Box::new(
                ClientRows { kind, labels: ROWS_LABELS, rows: rows.clone() },
            )));
            let own = Gauge::new(declared);
            own.replace(rows.iter().map(|([a, b], number)| ([a.as_str(), b.as_str()], *number)));
            // Rows are sorted here and as given there.
            prop_assert_eq!(sorted(&own_text(|out| own.encode(Format::OpenMetrics100, out))), sorted(&client));
        }

        let client = client_text(|registry| {
            let labels: Vec<_> = ROWS_LABELS.into_iter().zip(rows[0].0.clone()).collect();
            registry.register("kernmeter_build", "Rows", ClientInfo::new(labels));
        });
        let own = Info::new(&BUILD);
        own.replace([(rows[0].0.each_ref().map(String::as_str), Number::Integer(1))]);
        prop_assert_eq!(own_text(|out| own.encode(Format::OpenMetrics100, out)), client);

        let client = client_text(|registry| {
            let histogram = ClientHistogram::new(DRAIN_BOUNDS);
            registry.register_with_unit("kernmeter_took", "Rows", Unit::Seconds, histogram.clone());
            for took in &micros {
                histogram.observe(Duration::from_micros(*took).as_secs_f64());
            }
        });
        let own = Histogram::new(&HISTOGRAM, &DRAIN_BOUNDS);
        for took in &micros {
            own.observe(Duration::from_micros(*took));
        }
        // Buckets stand before count and sum here, and after them there.
        prop_assert_eq!(sorted(&own_text(|out| own.encode(Format::OpenMetrics100, out))), sorted(&client));
    }
}

/// `KERNMETER_WRITE_BODIES=dir cargo test ... -- --ignored write_bodies`, then promtool or another parser on the files.
#[test]
#[ignore = "writes files for outside checkers"]
fn write_bodies() {
    let dir = std::env::var("KERNMETER_WRITE_BODIES").expect("set KERNMETER_WRITE_BODIES to a directory");
    for format in Format::ALL {
        std::fs::write(format!("{dir}/{}", format.name()), body(&filled(), format)).unwrap();
    }
}
