//! Durations are in the right bucket; counts, sums and buckets agree with each other.

use anyhow::ensure;
use kernmeter_tests::trial::with_retries;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::family::{DURATION, SYSCALLS, WAIT};
use crate::time::nanos;

trials![known_durations, every_histogram_is_consistent];

fn known_durations() -> Outcome {
    with_retries(|| {
        let hierarchy = Hierarchy::new()?;
        let agent = Agent::start(&Settings::new(&hierarchy))?;
        for (ms, expected_le) in [(1u32, 2f64.powi(-8)), (10, 2f64.powi(-6)), (100, 2f64.powi(-2))] {
            let name = format!("ms{ms}");
            let tenant = hierarchy.tenant(&name)?;
            let ms = ms.to_string();
            let (workload, lines) =
                Workload::run(&tenant, &["sleep", "--ms", &ms, "--times", "5", "--fifo"])?;
            let measured = nanos(&lines)?;
            let scrape = agent.fresh()?;
            let own = [("tenant_id", name.as_str()), ("syscall", "nanosleep")];
            let series = scrape.series(DURATION, &own)?;
            ensure!(series.len() == 1, "{} series of one syscall", series.len());
            let series = &series[0];
            let filled: Vec<_> = series.buckets.iter().filter(|b| b.1 > 0).collect();
            // A machine that is held up sleeps longer, and measures that, too.
            let measured_by = |le: f64| measured.iter().filter(|ns| **ns as f64 / 1e9 <= le).count() as u64;
            let counted_by = |le: f64| series.buckets.iter().filter(|b| b.0 <= le).map(|b| b.1).sum::<u64>();
            // Each is measured from outside, so it is in the bucket of what was measured, or below; none is in less than it slept.
            let is_right = series.buckets.iter().all(|(le, _)| {
                counted_by(*le) >= measured_by(*le) && (*le >= expected_le || counted_by(*le) == 0)
            });
            ensure!(
                is_right && measured_by(expected_le) > 0 && counted_by(f64::INFINITY) == 5,
                "5 sleeps of {ms} ms are in {filled:?}, measured {measured:?}"
            );
            let all = measured.iter().sum::<u64>() as f64 / 1e9;
            let least = 5.0 * ms.parse::<f64>()? / 1e3;
            ensure!((least..=all).contains(&series.sum), "sum {} not in {least}..={all}", series.sum);
            workload.finish()?;
        }
        agent.stop_conserved()?;
        Ok(())
    })
}

fn every_histogram_is_consistent() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("busy")?;
    let mut workload = Workload::spawn(&tenant, &["flood", "--forks"])?;
    workload.go()?;
    // However slow the machine is: each kind of event a thousand times.
    let busy = [("tenant_id", "busy")];
    let enough = |scrape: &Scrape| {
        let most = |family| {
            // Cumulative buckets and equal counts are checked by the parser, for every series of the running host.
            let series = scrape.series(family, &busy).unwrap_or_default();
            series.iter().map(|series| series.count).max().unwrap_or_default()
        };
        [DURATION, WAIT].map(most).into_iter().min().unwrap_or_default()
    };
    agent.reach(1001, enough)?;
    workload.kill()?;
    // Nothing changes for this tenant any more: sums and calls must fit as well.
    let scrape = agent.fresh()?;
    for family in [DURATION, WAIT] {
        let all = scrape.series(family, &busy)?;
        ensure!(all.iter().any(|s| s.count > 1000), "the tenant did nothing");
        for series in all {
            let (mut low, mut high, mut below) = (0.0, 0.0, 0.0);
            for &(le, n) in &series.buckets {
                low += below * n as f64;
                high += if n == 0 { 0.0 } else { le * n as f64 };
                below = le;
            }
            let sum = series.sum;
            ensure!(sum >= low * 0.999_999, "{family}{:?}: sum {sum} below {low}", series.labels);
            ensure!(sum <= high * 1.000_001, "{family}{:?}: sum {sum} above {high}", series.labels);
        }
    }
    let (calls, finished) =
        (scrape.count(SYSCALLS, &busy), scrape.count(&format!("{DURATION}_count"), &busy));
    // The kill may have cut one call short, and nobody returns from exit_group.
    ensure!(finished <= calls, "{finished} of {calls} calls finished");
    agent.stop_conserved()?;
    Ok(())
}
