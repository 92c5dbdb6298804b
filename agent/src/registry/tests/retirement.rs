//! Workloads, namespaces and tenants that are gone: their series end, their totals and the sums stay, memory and room return.
//! Fault 39.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::allocations::held;
use crate::catalog::families;

#[test]
fn what_goes_is_folded_into_the_retired_family() {
    let mut registry = registry(Detail::Pod, LIMITS);
    let one = acquire(&mut registry, ["a", "n", "p1", ""]);
    let two = acquire(&mut registry, ["a", "n", "p2", ""]);
    registry.add(one, &CALLS, &["read"], 5);
    registry.add(two, &CALLS, &["read"], 6);
    let mut buckets = [0; BUCKETS];
    buckets[3] = 2;
    registry.observe(one, &TIME, &[], &buckets, 40);
    registry.release(one, 100);
    registry.expire(105);
    assert_eq!(lines(&registry.publish(1)).len(), 3, "kept for the retention time");
    registry.expire(110);
    let left = lines(&registry.publish(2));
    assert!(
        left.contains(&(r#"kernmeter_retired_calls{tenant_id="a",k8s_namespace="n"}"#.into(), 5)),
        "{left:?}"
    );
    assert!(left.contains(&(
        r#"kernmeter_calls{tenant_id="a",k8s_namespace="n",pod="p2",syscall="read"}"#.into(),
        6
    )));
    assert_eq!(left.len(), 3);
    assert_eq!((registry.sum(&CALLS), registry.sum(&TIME), registry.count(&TIME)), (11, 40, 2));
    // A workload of the same name starts anew.
    let again = acquire(&mut registry, ["a", "n", "p1", ""]);
    registry.add(again, &CALLS, &["read"], 1);
    assert_eq!(registry.sum(&CALLS), 12);
}

#[test]
fn totals_of_tenants_and_namespaces_outlive_their_workloads() {
    for (detail, namespace) in [(Detail::Tenant, ""), (Detail::Namespace, "n")] {
        totals_stay(registry(detail, LIMITS), namespace);
    }
}

fn totals_stay(mut registry: Registry, namespace: &str) {
    acquire(&mut registry, ["a", "n", "lives", ""]);
    for round in 0..3 {
        let target = acquire(&mut registry, ["a", "n", &format!("p{round}"), ""]);
        registry.add(target, &CALLS, &["read"], 10);
        registry.release(target, round * 1000);
        registry.expire(round * 1000 + 500);
    }
    assert_eq!(
        lines(&registry.publish(1)),
        [(format!(r#"kernmeter_calls{{tenant_id="a",k8s_namespace="{namespace}",syscall="read"}}"#), 30)]
    );
}

/// Some of everything, as a workload that ends leaves it: no task is alive.
fn work(registry: &mut Registry, target: TargetId) {
    registry.add(target, &CALLS, &["read"], 5);
    registry.add(target, &CALLS, &["write"], 2);
    registry.add(target, &TASKS, &[], 1);
    registry.add(target, &TASKS, &[], 1u64.wrapping_neg());
    let mut buckets = [0; BUCKETS];
    (buckets[3], buckets[70]) = (2, 1);
    registry.observe(target, &TIME, &[], &buckets, 40);
}

fn tenants(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.layout.tenants.iter().map(|name| &**name).collect()
}

/// The values of the only series of a family.
fn values_of(snapshot: &Snapshot, name: &str, kind: Kind) -> Vec<u64> {
    let family = snapshot.layout.families.iter().find(|family| family.family.name == name);
    let [series] = family.map_or(&[][..], |family| &family.series) else { return Vec::new() };
    let count = if kind == Kind::Histogram { HISTOGRAM_VALUES } else { 1 };
    snapshot.values[series.first as usize..][..count].to_vec()
}

/// Fault 39.
#[test]
fn a_tenant_that_is_gone_ends() {
    for detail in [Detail::Tenant, Detail::Namespace, Detail::Pod, Detail::Container] {
        let mut registry = registry(detail, LIMITS);
        let target = acquire(&mut registry, ["a", "n", "p", "c"]);
        work(&mut registry, target);
        let before = registry.publish(1);
        registry.release(target, 100);
        registry.expire(109);
        assert_eq!(lines(&registry.publish(2)), lines(&before), "kept for the retention time");
        registry.expire(110);
        let after = registry.publish(3);
        assert_eq!(tenants(&after), ["_retired"], "{detail:?}");
        let calls = r#"kernmeter_retired_calls{tenant_id="_retired",k8s_namespace=""}"#;
        let time = r#"kernmeter_retired_time_seconds{tenant_id="_retired",k8s_namespace=""}"#;
        assert_eq!(lines(&after), [(calls.to_owned(), 7), (time.to_owned(), 2)]);
        // Bucket by bucket, and the sum.
        assert_eq!(
            values_of(&after, "kernmeter_retired_time_seconds", Kind::Histogram),
            values_of(&before, "kernmeter_time_seconds", Kind::Histogram)
        );
        assert_eq!((registry.sum(&CALLS), registry.sum(&TIME), registry.count(&TIME)), (7, 40, 3));
        // It starts afresh, and what is retired goes on.
        for round in 2..4 {
            let target = acquire(&mut registry, ["a", "n", "p", "c"]);
            work(&mut registry, target);
            let back = registry.publish(4);
            assert_eq!(tenants(&back), ["_retired", "a"]);
            let read = |(name, n): &(String, u64)| name.contains("\"read\"").then_some(*n);
            assert_eq!(lines(&back).iter().filter_map(read).collect::<Vec<_>>(), [5]);
            registry.release(target, 200 * round);
            registry.expire(300 * round);
            assert_eq!(lines(&registry.publish(5))[0], (calls.to_owned(), 7 * round));
        }
    }
}

/// Fault 39: a namespace ends as a tenant does, and its totals stay with the tenant.
#[test]
fn a_namespace_that_is_gone_ends() {
    for detail in [Detail::Namespace, Detail::Pod] {
        let mut registry = registry(detail, LIMITS);
        let [one, two] = ["n1", "n2"].map(|namespace| acquire(&mut registry, ["a", namespace, "p", ""]));
        // A workload of the namespace that ended before: its totals are retired twice.
        let early = acquire(&mut registry, ["a", "n1", "early", ""]);
        for target in [one, two, early] {
            registry.add(target, &CALLS, &["read"], 5);
        }
        registry.release(early, 0);
        registry.expire(10);
        registry.release(one, 20);
        registry.expire(30);
        let after = lines(&registry.publish(1));
        assert_eq!(after.len(), 2, "{after:?}");
        assert!(
            after.contains(&(r#"kernmeter_retired_calls{tenant_id="a",k8s_namespace=""}"#.into(), 10)),
            "{after:?}"
        );
        assert!(after[0].0.contains(r#"k8s_namespace="n2""#) && after[0].1 == 5, "{after:?}");
    }
}

#[test]
fn reserved_tenants_stay() {
    for (detail, family) in [(Detail::Tenant, "kernmeter_calls"), (Detail::Pod, "kernmeter_retired_calls")] {
        let mut registry = registry(detail, LIMITS);
        for tenant in ["_unknown", "_overflow"] {
            let target = acquire(&mut registry, [tenant, "", "p", ""]);
            registry.add(target, &CALLS, &["read"], 5);
            registry.release(target, 0);
        }
        registry.expire(1000);
        let after = registry.publish(1);
        assert_eq!(tenants(&after), ["_overflow", "_unknown"]);
        let after = lines(&after);
        assert_eq!(after.len(), 2);
        for (name, n) in after {
            assert!(name.starts_with(&format!("{family}{{")) && n == 5, "{name} {n}");
        }
    }
}

/// Fault 39: series beyond the tenant's limit, which the tenant itself holds, end with it.
#[test]
fn an_overflow_series_ends_with_its_tenant() {
    for detail in [Detail::Tenant, Detail::Namespace, Detail::Container] {
        let mut registry = registry(detail, Limits { series_per_tenant: 1, ..LIMITS });
        let target = acquire(&mut registry, ["a", "n", "p", "c"]);
        for syscall in ["read", "write", "open"] {
            registry.add(target, &CALLS, &[syscall], 1);
        }
        work(&mut registry, target);
        registry.release(target, 0);
        let limited = registry.limited();
        registry.expire(10);
        let after = lines(&registry.publish(1));
        assert_eq!(
            after[0],
            (r#"kernmeter_retired_calls{tenant_id="_retired",k8s_namespace=""}"#.into(), 10)
        );
        assert_eq!((after.len(), registry.sum(&TIME)), (2, 40));
        assert_eq!(registry.limited(), limited, "what is retired is refused by no limit");
    }
}

/// Fault 39.
#[test]
fn the_limit_of_tenants_frees_up() {
    let mut registry = registry(Detail::Namespace, Limits { tenants: 1000, retention_ns: 90, ..LIMITS });
    let named = |snapshot: &Snapshot, tenant: &str| snapshot.layout.tenant(tenant).is_some();
    for n in 0..10_000_u64 {
        let target = acquire(&mut registry, [&format!("t{n}"), "", "p", ""]);
        registry.add(target, &CALLS, &["read"], 1);
        registry.release(target, n / 10);
        registry.expire(n / 10);
    }
    assert_eq!(registry.limited(), 0, "no more than 1,000 were there at once");
    let snapshot = registry.publish(1);
    assert!(named(&snapshot, "t9999") && named(&snapshot, "t9200") && !named(&snapshot, "t8000"));
    registry.expire(1100);
    assert_eq!((tenants(&registry.publish(2)), registry.sum(&CALLS)), (vec!["_retired"], 10_000));
    // At the limit, all at once.
    let all: Vec<_> = (0..1100).map(|n| acquire(&mut registry, [&format!("t{n}"), "", "", ""])).collect();
    assert_eq!(registry.limited(), 100);
    for target in all {
        registry.release(target, 2000);
    }
    registry.expire(2090);
    let late = acquire(&mut registry, ["late", "", "p", ""]);
    registry.add(late, &CALLS, &["read"], 1);
    assert!(named(&registry.publish(3), "late"));
}

#[test]
fn a_workload_that_comes_back_in_time_stays() {
    let mut registry = registry(Detail::Pod, LIMITS);
    let target = acquire(&mut registry, ["a", "", "p", ""]);
    registry.add(target, &CALLS, &["read"], 1);
    for now in [100, 105, 112] {
        registry.release(target, now);
        registry.expire(now + 9);
        assert_eq!(acquire(&mut registry, ["a", "", "p", ""]), target);
        registry.expire(now + 1000);
        registry.add(target, &CALLS, &["read"], 1);
    }
    // Two slots: the last one to go counts.
    acquire(&mut registry, ["a", "", "p", ""]);
    registry.release(target, 200);
    registry.expire(1000);
    registry.release(target, 1000);
    registry.expire(1009);
    assert_eq!(tenants(&registry.publish(1)), ["a"]);
    registry.expire(1010);
    assert_eq!(tenants(&registry.publish(2)), ["_retired"]);
    assert_eq!(registry.sum(&CALLS), 4);
}

/// A workload's share of every family there is.
fn fill(registry: &mut Registry, target: TargetId, mark: &str) {
    for family in families() {
        for n in 0..3 {
            let own: Vec<String> = family.labels.iter().map(|label| format!("{label}-{mark}-{n}")).collect();
            let own: Vec<&str> = own.iter().map(|value| &**value).collect();
            match family.kind {
                Kind::Counter => registry.add(target, family, &own, 1),
                Kind::Gauge => {
                    registry.add(target, family, &own, 1);
                    registry.add(target, family, &own, 1u64.wrapping_neg());
                }
                Kind::Histogram => registry.observe(target, family, &own, &[1; BUCKETS], 1),
            }
        }
    }
}

/// Series, and what of a scrape grows with them: bytes of labels, by value.
fn size(snapshot: &Snapshot) -> (usize, usize) {
    let families = &snapshot.layout.families;
    let lines =
        |family: &FamilyLayout| if family.family.kind == Kind::Histogram { HISTOGRAM_VALUES } else { 1 };
    let bytes = |family: &FamilyLayout| {
        lines(family) * family.series.iter().map(|series| series.labels.len()).sum::<usize>()
    };
    (families.iter().map(|family| family.series.len()).sum(), families.iter().map(bytes).sum())
}

/// Fault 39: 10,000 short-lived tenants, `at_once` of them at a time, beside 40 that stay.
fn memory_returns(detail: Detail, at_once: usize) {
    let limits = Limits { series_per_tenant: 5000, tenants: 1040, retention_ns: 10 };
    let ((mut registry, mut snapshot), before) = held(|| {
        let mut registry = Registry::new(families(), |_| detail, limits);
        for n in 0..40 {
            let target = acquire(&mut registry, [&format!("stays-{n}"), "n", "p", "c"]);
            fill(&mut registry, target, "common");
        }
        let snapshot = registry.publish(1);
        (registry, snapshot)
    });
    let small = size(&snapshot);
    let ((), grown) = held(|| {
        for round in 0..10_000 / at_once {
            let now = 100 * round as u64;
            let gone: Vec<_> = (0..at_once)
                .map(|n| acquire(&mut registry, [&format!("container-{round}-{n}"), "n", "p", "c"]))
                .collect();
            for (n, target) in gone.iter().enumerate() {
                // Names of system calls and errors that nobody else has.
                fill(&mut registry, *target, &format!("{round}-{n}"));
                registry.release(*target, now);
            }
            registry.expire(now + 50);
            snapshot = registry.publish(now + 50);
        }
    });
    let within = |what: &str, before: usize, after: usize| {
        println!("{detail:?}, {at_once} at once: {what} {before}, then {after}");
        assert!(after * 10 <= before * 11, "{what}: {before}, then {after}");
    };
    within("series", small.0, size(&snapshot).0);
    within("bytes of labels", small.1, size(&snapshot).1);
    within("bytes held", before, before.wrapping_add(grown));
    assert_eq!(registry.limited(), 0);
}

#[test]
fn memory_returns_one_after_another() {
    memory_returns(Detail::Namespace, 1);
}

#[test]
fn memory_returns_after_many_at_once() {
    memory_returns(Detail::Namespace, 1000);
    memory_returns(Detail::Container, 1000);
}

const DETAILS: [Detail; 4] = [Detail::Tenant, Detail::Namespace, Detail::Pod, Detail::Container];

/// What was added, by whom: the registry has to agree.
#[derive(Default)]
struct Model {
    /// By labels: slots, time of the last release, what was added.
    workloads: HashMap<[String; 4], (u32, u64, u64)>,
    /// By tenant, since it came.
    tenants: HashMap<String, u64>,
    retired: u64,
}

impl Model {
    fn expire(&mut self, now: u64, retention: u64) {
        self.workloads.retain(|_, (slots, since, _)| *slots > 0 || now.saturating_sub(*since) < retention);
        let lives = |tenant: &String| self.workloads.keys().any(|labels| labels[0] == *tenant);
        self.retired += self.tenants.extract_if(|tenant, _| !lives(tenant)).map(|(_, n)| n).sum::<u64>();
    }
}

proptest! {
    /// Fault 39. Whatever workloads come and go, under whatever limits, sums over a family and its sister are what was
    /// added; no counter falls while its tenant and its namespace live.
    #[test]
    fn sums_are_conserved(
        steps in proptest::collection::vec((0u8..6, 0u8..5, 0u8..5, 1u64..100), 1..200),
        detail in 0usize..4,
        series_per_tenant in 0usize..40,
        tenants in 0usize..4,
    ) {
        let detail = DETAILS[detail];
        let mut registry = registry(detail, Limits { series_per_tenant, tenants, retention_ns: 3 });
        let mut live = Vec::new();
        let (mut total, mut retired) = (0, 0);
        let mut seen: HashMap<String, u64> = HashMap::new();
        for (now, (op, tenant, pod, value)) in steps.into_iter().enumerate() {
            let namespace = ["", "n1", "n2"][pod as usize % 3];
            let target = acquire(&mut registry, [&format!("t{tenant}"), namespace, &format!("p{pod}"), ""]);
            registry.add(target, &CALLS, &[["read", "write"][op as usize % 2]], value);
            let mut buckets = [0; BUCKETS];
            buckets[value as usize] += 1;
            buckets[pod as usize] += 1;
            registry.observe(target, &TIME, &[], &buckets, value);
            total += value;
            if op < 3 { registry.release(target, now as u64) } else { live.push(target) }
            if op == 5 { for target in live.drain(..) { registry.release(target, now as u64) } }
            registry.expire(now as u64);
            prop_assert_eq!((registry.sum(&CALLS), registry.sum(&TIME)), (total, total));
            prop_assert_eq!(registry.count(&TIME), 2 * (now as u64 + 1));
            let snapshot = registry.publish(now as u64);
            let now_lines: HashMap<String, u64> = lines(&snapshot).into_iter().collect();
            let calls = |(name, n): (&String, &u64)| name.contains("calls").then_some(*n);
            prop_assert_eq!(now_lines.iter().filter_map(calls).sum::<u64>(), total);
            // The series of a sister family, and those of tenants and namespaces: as long as they are there, they grow.
            seen.retain(|name, _| now_lines.contains_key(name));
            for (name, value) in now_lines.iter().filter(|(name, _)| name.contains("retired") || detail <= Detail::Namespace) {
                prop_assert!(seen.insert(name.clone(), *value).unwrap_or(0) <= *value, "{name} fell");
            }
            let of = |(name, n): (&String, &u64)| name.contains("retired_calls{tenant_id=\"_retired\"").then_some(*n);
            let now_retired = now_lines.iter().filter_map(of).sum::<u64>();
            prop_assert!(retired <= now_retired, "what is retired fell from {retired} to {now_retired}");
            retired = now_retired;
        }
        // When everybody is gone, so are all but the reserved tenants, and nothing is missing.
        for target in live.drain(..) { registry.release(target, 1000) }
        registry.expire(1003);
        let snapshot = registry.publish(1003);
        prop_assert!(snapshot.layout.tenants.iter().all(|tenant| tenant.starts_with('_')), "{:?}", snapshot.layout.tenants);
        prop_assert_eq!((registry.sum(&CALLS), registry.sum(&TIME)), (total, total));
    }

    /// Fault 39. Whoever is there in the end is there by his name with what he added since he came; the rest is retired.
    #[test]
    fn who_is_gone_is_gone(
        steps in proptest::collection::vec((0u8..4, 0u8..4, 0u8..4, 0u64..4, 1u64..100), 1..200),
        detail in 0usize..4,
        retention_ns in 0u64..6,
    ) {
        let detail = DETAILS[detail];
        let mut registry = registry(detail, Limits { retention_ns, ..LIMITS });
        let mut model = Model::default();
        let mut now = 0;
        let mut ids = HashMap::new();
        for (op, tenant, pod, later, value) in steps {
            now += later;
            let labels = [format!("t{tenant}"), ["", "n1"][pod as usize % 2].into(), format!("p{pod}"), String::new()];
            if op < 2 {
                let target = acquire(&mut registry, [&labels[0], &labels[1], &labels[2], &labels[3]]);
                registry.add(target, &CALLS, &["read"], value);
                *model.tenants.entry(labels[0].clone()).or_default() += value;
                let workload = model.workloads.entry(labels.clone()).or_default();
                workload.0 += 1;
                workload.2 += value;
                ids.insert(labels, target);
            } else if let Some(workload) = model.workloads.get_mut(&labels).filter(|workload| workload.0 > 0) {
                workload.0 -= 1;
                workload.1 = now;
                registry.release(ids[&labels], now);
            }
            registry.expire(now);
            model.expire(now, retention_ns);
            let snapshot = registry.publish(now);
            let mut found: HashMap<String, u64> = HashMap::new();
            for (at, family) in snapshot.layout.families.iter().flat_map(|f| f.series.iter().map(move |s| (s, f.family))) {
                prop_assert!(family.name.ends_with("calls"));
                *found.entry(snapshot.layout.tenants[at.tenant as usize].to_string()).or_default() +=
                    snapshot.values[at.first as usize];
            }
            let mut expected = model.tenants.clone();
            if model.retired > 0 {
                expected.insert("_retired".into(), model.retired);
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(registry.sum(&CALLS), expected.values().sum::<u64>());
        }
    }
}
