//! In: failures and how long things lasted; out: how long to wait. Waits for nothing itself.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Waits that double from failure to failure, each with a random part, so that the agents of a cluster spread out.
#[derive(Debug)]
pub(super) struct Pace {
    least: Duration,
    most: Duration,
    /// Failures in a row.
    failures: u32,
}

impl Pace {
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, failures: 0 }
    }

    /// All is well: the next wait is a short one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure: between half and the whole of a time that doubles, or what the server asked for
    /// if that is longer.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let full = self.least.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        let wait = full / 2 + part_of(full / 2);
        // A server must not put the agent to sleep for good, nor have all agents back at the same moment.
        asked.map_or(wait, |asked| wait.max(asked.min(self.most.saturating_mul(2)) + part_of(full)))
    }
}

/// A random part of a duration.
pub(super) fn part_of(whole: Duration) -> Duration {
    // Each `RandomState` has keys of its own, from the system's randomness.
    let random = RandomState::new().hash_one(0_u8) >> 11;
    whole.mul_f64(random as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_start_small_again() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(3));
        let mut pace = Pace::new(least, most);
        for expected in [100, 200, 400, 800, 1600, 3000, 3000, 3000].map(Duration::from_millis) {
            let wait = pace.next(None);
            assert!(wait >= expected / 2 && wait <= expected, "{wait:?} of {expected:?}");
        }
        for _ in 0..100_000 {
            assert!(pace.next(None) <= most);
        }
        pace.reset();
        assert!(pace.next(None) <= least);
    }

    #[test]
    fn the_server_may_ask_for_more_but_not_for_everything() {
        let mut pace = Pace::new(Duration::from_millis(100), Duration::from_secs(30));
        let wait = pace.next(Some(Duration::from_secs(7)));
        assert!(wait >= Duration::from_secs(7) && wait < Duration::from_secs(8), "{wait:?}");
        assert!(pace.next(Some(Duration::from_hours(10))) < Duration::from_mins(2));
    }

    #[test]
    fn parts_differ_and_stay_below_the_whole() {
        let whole = Duration::from_secs(5);
        let parts: std::collections::BTreeSet<Duration> = (0..100).map(|_| part_of(whole)).collect();
        assert!(parts.len() > 90);
        assert!(parts.iter().all(|part| *part < whole));
        assert_eq!(part_of(Duration::ZERO), Duration::ZERO);
    }
}
