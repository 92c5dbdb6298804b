//! In: two looks at the registry; out: a table per tenant for people, or JSON. Reads no kernel and no clock.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use kernmeter_abi::histogram::{BUCKETS, LAST, MIN_EXP, PER_OCTAVE};
use serde::Serialize;

use crate::catalog::Family;
use crate::catalog::probes::{BLOCKED, CALLS, CPU, DURATION, ERRORS, TASKS, WAIT};
use crate::registry::{Registry, SeriesView};

/// What the table is sorted by, largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// CPU time.
    #[default]
    Cpu,
    /// 99th percentile of the run-queue wait.
    Wait,
    /// System calls.
    Syscalls,
    /// Errors.
    Errors,
    /// Time blocked.
    Blocked,
    /// Name.
    Tenant,
}

/// Syscalls and reasons named per tenant.
const TOP: usize = 3;

#[derive(Clone, Debug)]
struct Counts {
    number: u64,
    buckets: Option<Box<[u64; BUCKETS]>>,
}

/// A series of which the table needs the tenant, the system call and the counts.
struct Seen {
    tenant: String,
    /// Empty where the family has no such label.
    syscall: String,
    counts: Counts,
}

/// All series of the families the table needs, at one instant.
pub struct Look {
    /// By family and by what tells its series apart.
    series: Vec<BTreeMap<Vec<u8>, Seen>>,
}

static FAMILIES: [&Family; 7] = [&CPU, &WAIT, &BLOCKED, &CALLS, &ERRORS, &DURATION, &TASKS];

impl Look {
    /// Copies what the table needs.
    pub fn take(registry: &Registry) -> Look {
        let copy = |family: &&'static Family| {
            let syscall = family.labels.iter().position(|label| *label == "syscall");
            let seen = |series: SeriesView<'_>| {
                let counts = Counts {
                    number: series.number,
                    buckets: series.buckets.map(|buckets| Box::new(*buckets)),
                };
                let syscall = syscall.map_or("", |at| &*series.own[at]).to_owned();
                (series.labels.to_vec(), Seen { tenant: series.tenant.to_owned(), syscall, counts })
            };
            registry.series(family).map(seen).collect()
        };
        Look { series: FAMILIES.iter().map(copy).collect() }
    }
}

/// A syscall with its share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SyscallShare {
    /// The syscall; `none` outside any.
    pub syscall: String,
    /// Seconds.
    pub seconds: f64,
}

/// What one tenant did in the time looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TenantRow {
    /// The tenant.
    pub tenant: String,
    /// Live tasks at the end.
    pub tasks: u64,
    /// Seconds on a CPU.
    pub cpu_seconds: f64,
    /// Median run-queue wait, seconds (upper bound of its bucket, 19 % wide); none without a wait.
    pub runqueue_wait_p50_seconds: Option<f64>,
    /// 99th percentile of the run-queue wait, seconds.
    pub runqueue_wait_p99_seconds: Option<f64>,
    /// System calls entered.
    pub syscalls: u64,
    /// System calls that failed.
    pub errors: u64,
    /// Seconds blocked.
    pub blocked_seconds: f64,
    /// Syscalls by the 99th percentile of their duration, slowest first.
    pub slowest: Vec<SyscallShare>,
    /// Syscalls by time blocked in them, most first.
    pub blocked_on: Vec<SyscallShare>,
}

/// One row per tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// Seconds looked at.
    pub seconds: f64,
    /// The tenants.
    pub tenants: Vec<TenantRow>,
}

/// Upper bound of the bucket in which a share of the events lies, seconds. The last bucket has none: its lower bound.
fn quantile(buckets: &[u64; BUCKETS], share: f64) -> Option<f64> {
    let count: u64 = buckets.iter().sum();
    if count == 0 {
        return None;
    }
    let rank = (share * count as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    let index = buckets.iter().position(|n| {
        seen += n;
        seen >= rank
    })?;
    Some((index.min(LAST - 1) as f64 / f64::from(PER_OCTAVE) + f64::from(MIN_EXP)).exp2())
}

impl Table {
    /// What happened between two looks.
    pub fn between(before: &Look, after: &Look, time: Duration) -> Table {
        let mut rows: BTreeMap<String, TenantRow> = BTreeMap::new();
        for (index, family) in FAMILIES.iter().enumerate() {
            let mut by_tenant: BTreeMap<String, BTreeMap<String, Counts>> = BTreeMap::new();
            for (labels, now) in &after.series[index] {
                let change = if *family == &TASKS {
                    now.counts.clone()
                } else {
                    difference(&now.counts, before.series[index].get(labels).map(|seen| &seen.counts))
                };
                let calls = by_tenant.entry(now.tenant.clone()).or_default();
                let sum = calls.entry(now.syscall.clone()).or_insert(Counts {
                    number: 0,
                    buckets: change.buckets.as_ref().map(|_| Box::new([0; BUCKETS])),
                });
                sum.number = sum.number.wrapping_add(change.number);
                if let (Some(sum), Some(change)) = (&mut sum.buckets, &change.buckets) {
                    sum.iter_mut().zip(change.iter()).for_each(|(sum, n)| *sum += n);
                }
            }
            for (tenant, calls) in by_tenant {
                let row = rows
                    .entry(tenant.clone())
                    .or_insert_with(|| TenantRow { tenant, ..TenantRow::default() });
                fill(row, family, &calls);
            }
        }
        Table { seconds: time.as_secs_f64(), tenants: rows.into_values().collect() }
    }

    /// Sorts the tenants.
    pub fn sort(&mut self, by: Sort) {
        let key = |row: &TenantRow| match by {
            Sort::Cpu => row.cpu_seconds,
            Sort::Wait => row.runqueue_wait_p99_seconds.unwrap_or(0.0),
            Sort::Syscalls => row.syscalls as f64,
            Sort::Errors => row.errors as f64,
            Sort::Blocked => row.blocked_seconds,
            Sort::Tenant => 0.0,
        };
        self.tenants.sort_by(|a, b| key(b).total_cmp(&key(a)).then_with(|| a.tenant.cmp(&b.tenant)));
    }

    /// The table as text, sorted.
    pub fn render(mut self, by: Sort) -> String {
        self.sort(by);
        let header = [
            "TENANT",
            "TASKS",
            "CPU",
            "RUNQ P50",
            "RUNQ P99",
            "SYSCALLS/S",
            "ERRORS/S",
            "SLOWEST (P99)",
            "BLOCKED ON",
        ];
        let time = self.seconds.max(f64::MIN_POSITIVE);
        let mut lines: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
        for row in &self.tenants {
            let named = |list: &[SyscallShare]| {
                let parts: Vec<_> =
                    list.iter().map(|n| format!("{} {}", n.syscall, seconds(n.seconds))).collect();
                if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
            };
            let wait = |wait: Option<f64>| wait.map_or("-".to_owned(), seconds);
            lines.push(vec![
                row.tenant.clone(),
                row.tasks.to_string(),
                format!("{:.1}%", 100.0 * row.cpu_seconds / time),
                wait(row.runqueue_wait_p50_seconds),
                wait(row.runqueue_wait_p99_seconds),
                format!("{:.1}", row.syscalls as f64 / time),
                format!("{:.1}", row.errors as f64 / time),
                named(&row.slowest),
                named(&row.blocked_on),
            ]);
        }
        let widths: Vec<usize> = (0..header.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for line in &lines {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                // Numbers are right-aligned, words left.
                let words = column == 0 || column >= 7;
                // Writing to a string cannot fail.
                let _ = if words { write!(text, "{cell}{pad}  ") } else { write!(text, "{pad}{cell}  ") };
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

fn difference(now: &Counts, before: Option<&Counts>) -> Counts {
    let Some(before) = before else { return now.clone() };
    let buckets = match (&now.buckets, &before.buckets) {
        (Some(now), Some(before)) => Some(Box::new(std::array::from_fn(|i| now[i] - before[i]))),
        _ => now.buckets.clone(),
    };
    Counts { number: now.number.wrapping_sub(before.number), buckets }
}

fn fill(row: &mut TenantRow, family: &'static Family, calls: &BTreeMap<String, Counts>) {
    let sum: u64 = calls.values().fold(0, |sum, counts| sum.wrapping_add(counts.number));
    let seconds = sum as f64 / 1e9;
    let top = |of: &dyn Fn(&Counts) -> f64| {
        let mut named: Vec<_> = calls
            .iter()
            .map(|(syscall, counts)| SyscallShare { syscall: syscall.clone(), seconds: of(counts) })
            .filter(|named| named.seconds > 0.0)
            .collect();
        named.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        named.truncate(TOP);
        named
    };
    let p99 = |counts: &Counts| counts.buckets.as_ref().and_then(|b| quantile(b, 0.99)).unwrap_or(0.0);
    match family.name {
        name if name == CPU.name => row.cpu_seconds = seconds,
        name if name == WAIT.name => {
            let buckets = calls.values().find_map(|counts| counts.buckets.as_ref());
            row.runqueue_wait_p50_seconds = buckets.and_then(|buckets| quantile(buckets, 0.5));
            row.runqueue_wait_p99_seconds = buckets.and_then(|buckets| quantile(buckets, 0.99));
        }
        name if name == BLOCKED.name => {
            row.blocked_seconds = seconds;
            row.blocked_on = top(&|counts| counts.number as f64 / 1e9);
        }
        name if name == CALLS.name => row.syscalls = sum,
        name if name == ERRORS.name => row.errors = sum,
        name if name == DURATION.name => row.slowest = top(&p99),
        _ => row.tasks = (sum as i64).max(0) as u64,
    }
}

/// A time with three digits and the fitting unit.
fn seconds(value: f64) -> String {
    for (limit, scale, unit) in [(1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms")] {
        if value < limit {
            let scaled = value * scale;
            return format!("{scaled:.*}{unit}", usize::from(scaled < 10.0));
        }
    }
    format!("{value:.*}s", if value < 10.0 { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog;
    use crate::catalog::family::Detail;
    use crate::registry::{Limits, TargetId};

    fn registry() -> (Registry, TargetId, TargetId) {
        let limits = Limits { series_per_tenant: 1000, tenants: 10, retention_ns: 0 };
        let mut registry = Registry::new(catalog::families(), |_| Detail::Pod, limits);
        let labels = |tenant: &str| [tenant, "", "p", ""].map(Arc::<str>::from);
        let [a, b] = ["a\"x", "b"].map(|tenant| {
            let [t, n, p, c] = labels(tenant);
            registry.acquire([&t, &n, &p, &c])
        });
        (registry, a, b)
    }

    #[test]
    fn a_table_of_what_happened_between_two_looks() {
        let (mut registry, a, b) = registry();
        registry.add(a, &CPU, &[], 7_000_000_000);
        registry.add(a, &CALLS, &["read", "x86_64"], 1000);
        let before = Look::take(&registry);
        registry.add(a, &CPU, &[], 1_000_000_000);
        registry.add(a, &CALLS, &["read", "x86_64"], 10);
        registry.add(a, &CALLS, &["read", "ia32"], 10);
        registry.add(a, &ERRORS, &["read", "x86_64", "EIO"], 4);
        registry.add(a, &BLOCKED, &["futex", "x86_64"], 500_000_000);
        let mut buckets = [0; BUCKETS];
        buckets[kernmeter_abi::histogram::bucket_of(1_000_000)] = 99;
        buckets[kernmeter_abi::histogram::bucket_of(1_000_000_000)] = 1;
        registry.observe(a, &WAIT, &[], &buckets, 1);
        registry.observe(a, &DURATION, &["read", "x86_64"], &buckets, 1);
        registry.add(b, &TASKS, &[], 2);
        let mut table = Table::between(&before, &Look::take(&registry), Duration::from_secs(2));
        table.sort(Sort::Cpu);
        assert_eq!(table.tenants.len(), 2);
        let row = &table.tenants[0];
        assert_eq!((row.tenant.as_str(), row.syscalls, row.errors), ("a\"x", 20, 4));
        assert!((row.cpu_seconds - 1.0).abs() < 1e-9);
        assert_eq!(row.blocked_on, [SyscallShare { syscall: "futex".into(), seconds: 0.5 }]);
        let p50 = row.runqueue_wait_p50_seconds.unwrap();
        assert!((0.001..0.0012).contains(&p50), "{p50}");
        let p99 = row.runqueue_wait_p99_seconds.unwrap();
        assert!((0.001..0.0012).contains(&p99), "{p99}");
        assert_eq!(table.tenants[1].tasks, 2);
        let text = table.render(Sort::Cpu);
        assert!(text.starts_with("TENANT"), "{text}");
        assert!(text.contains("50.0%") && text.contains("futex 500ms"), "{text}");
    }

    #[test]
    fn quantiles() {
        let mut buckets = [0; BUCKETS];
        assert_eq!(quantile(&buckets, 0.5), None);
        buckets[0] = 1;
        assert_eq!(quantile(&buckets, 0.99), Some(f64::from(MIN_EXP).exp2()));
        buckets[LAST] = 100;
        assert_eq!(
            quantile(&buckets, 0.5),
            Some((f64::from(kernmeter_abi::histogram::MAX_EXP) - 0.0).exp2())
        );
    }

    #[test]
    fn times() {
        for (value, text) in [
            (5e-9, "5.0ns"),
            (2e-7, "200ns"),
            (1.5e-3, "1.5ms"),
            (0.25, "250ms"),
            (2.0, "2.00s"),
            (61.0, "61.0s"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }
}
