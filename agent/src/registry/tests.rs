//! Tables for the registry: sums, limits, labels.

mod retirement;

use std::sync::Arc;

use kernmeter_abi::histogram::BUCKETS;

use super::*;

static CALLS: Family = Family {
    name: "kernmeter_calls",
    help: "h",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["syscall"],
};
static TIME: Family = Family {
    name: "kernmeter_time_seconds",
    help: "h",
    unit: Some("seconds"),
    kind: Kind::Histogram,
    scale: Scale::NanosToSeconds,
    labels: &[],
};
static TASKS: Family = Family {
    name: "kernmeter_tasks",
    help: "h",
    unit: None,
    kind: Kind::Gauge,
    scale: Scale::One,
    labels: &[],
};

const LIMITS: Limits = Limits { series_per_tenant: 1000, tenants: 100, retention_ns: 10 };

fn registry(detail: Detail, limits: Limits) -> Registry {
    Registry::new([&CALLS, &TIME, &TASKS], |_| detail, limits)
}

fn acquire(registry: &mut Registry, labels: [&str; 4]) -> TargetId {
    let labels = labels.map(Arc::<str>::from);
    registry.acquire([&labels[0], &labels[1], &labels[2], &labels[3]])
}

/// Every series as `name{labels}` with its first value.
fn lines(snapshot: &Snapshot) -> Vec<(String, u64)> {
    let of = |family: &FamilyLayout| {
        let name = family.family.name;
        family
            .series
            .iter()
            .map(|s| {
                (
                    format!("{name}{{{}}}", String::from_utf8_lossy(&s.labels)),
                    snapshot.values[s.first as usize],
                )
            })
            .collect::<Vec<_>>()
    };
    snapshot.layout.families.iter().flat_map(of).collect()
}

#[test]
fn labels_follow_the_level() {
    for (detail, expected) in [
        (Detail::Tenant, r#"tenant_id="a",k8s_namespace="",syscall="read""#),
        (Detail::Namespace, r#"tenant_id="a",k8s_namespace="n",syscall="read""#),
        (Detail::Pod, r#"tenant_id="a",k8s_namespace="n",pod="p\"",syscall="read""#),
        (Detail::Container, r#"tenant_id="a",k8s_namespace="n",pod="p\"",container="c",syscall="read""#),
    ] {
        let mut registry = registry(detail, LIMITS);
        let target = acquire(&mut registry, ["a", "n", "p\"", "c"]);
        registry.add(target, &CALLS, &["read"], 7);
        assert_eq!(lines(&registry.publish(1)), [(format!("kernmeter_calls{{{expected}}}"), 7)]);
    }
}

#[test]
fn limits_fold_into_overflow() {
    let mut registry = registry(Detail::Pod, Limits { series_per_tenant: 2, tenants: 2, ..LIMITS });
    let a = acquire(&mut registry, ["a", "", "p", ""]);
    for syscall in ["read", "write", "open", "close"] {
        registry.add(a, &CALLS, &[syscall], 1);
    }
    let lines_now = lines(&registry.publish(1));
    let overflow =
        r#"kernmeter_calls{tenant_id="a",k8s_namespace="_overflow",pod="_overflow",syscall="_overflow"}"#;
    assert!(lines_now.contains(&(overflow.into(), 2)), "{lines_now:?}");
    assert_eq!(registry.limited(), 2);
    let b = acquire(&mut registry, ["b", "", "p", ""]);
    let c = acquire(&mut registry, ["c", "", "p", ""]);
    let d = acquire(&mut registry, ["d", "", "p", ""]);
    let host = acquire(&mut registry, ["_host", "", "p", ""]);
    for target in [b, c, d, host] {
        registry.add(target, &CALLS, &["read"], 1);
    }
    assert_eq!(c, d);
    assert_eq!(registry.sum(&CALLS), 8);
    assert!(
        lines(&registry.publish(2))
            .iter()
            .any(|(name, n)| name.contains(r#"tenant_id="_overflow""#) && *n == 2)
    );
}

#[test]
fn each_series_knows_its_tenant() {
    let mut registry = registry(Detail::Pod, Limits { series_per_tenant: 3, ..LIMITS });
    let a = acquire(&mut registry, ["zeta", "", "p1", ""]);
    let b = acquire(&mut registry, ["alpha", "", "p1", ""]);
    for target in [a, b] {
        for syscall in ["read", "write", "open", "close"] {
            registry.add(target, &CALLS, &[syscall], 1);
        }
    }
    acquire(&mut registry, ["zeta", "", "p2", ""]);
    registry.release(a, 0);
    registry.expire(1000);
    let layout = registry.publish(1).layout;
    assert_eq!(layout.tenants.iter().map(|name| &**name).collect::<Vec<_>>(), ["alpha", "zeta"]);
    let mut seen = [0; 2];
    for series in layout.families.iter().flat_map(|family| &family.series) {
        let text = String::from_utf8_lossy(&series.labels).into_owned();
        let tenant = &layout.tenants[series.tenant as usize];
        assert!(text.starts_with(&format!("tenant_id=\"{tenant}\",")), "{text} is said to be of {tenant}");
        assert_eq!(layout.tenant(tenant), Some(series.tenant));
        seen[series.tenant as usize] += 1;
    }
    // What is retired and what overflowed are theirs as well.
    assert_eq!(seen, [4, 3]);
}

#[test]
fn gauges_never_wrap_below_zero() {
    let mut registry = registry(Detail::Tenant, LIMITS);
    let target = acquire(&mut registry, ["a", "", "", ""]);
    registry.add(target, &TASKS, &[], 2);
    registry.add(target, &TASKS, &[], 3u64.wrapping_neg());
    assert_eq!(lines(&registry.publish(1))[0].1, 0);
    registry.add(target, &TASKS, &[], 4);
    assert_eq!(lines(&registry.publish(1))[0].1, 3);
}

#[test]
fn classic_buckets_sum_the_kernel_ones() {
    let mut registry = registry(Detail::Tenant, LIMITS);
    let target = acquire(&mut registry, ["a", "", "", ""]);
    let mut buckets = [0; BUCKETS];
    for (ns, count) in
        [(1, 1), (950, 1), (1_000_000_000, 1), (1_000_000_001, 1), (16_000_000_000, 1), (17_000_000_000, 1)]
    {
        buckets[kernmeter_abi::histogram::bucket_of(ns)] += count;
    }
    registry.observe(target, &TIME, &[], &buckets, 99);
    let snapshot = registry.publish(1);
    // 2^-20 s is 954 ns; 1 s is le="1"; 16 s is the last finite bound.
    let mut expected = [0u64; HISTOGRAM_VALUES];
    expected[0] = 2;
    expected[10] = 1;
    expected[11] = 1;
    expected[12] = 1;
    expected[13] = 1;
    expected[14] = 99;
    assert_eq!(snapshot.values, expected);
}
