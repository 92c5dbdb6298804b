//! In: lines that test binaries print; out: how many tests passed, failed and were skipped, and why. Runs nothing.

use std::collections::BTreeMap;
use std::fmt;

/// Totals over all test binaries seen so far.
#[derive(Debug, Default)]
pub struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of failed tests, and of binaries that broke off.
    failures: Vec<String>,
    /// Skipped tests with their reasons.
    skips: BTreeMap<String, String>,
    /// `SKIP` lines since the last `test result:`.
    announced: u64,
}

impl Summary {
    /// Takes one line of output in.
    pub fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some((name, reason)) = announcement(line) {
            self.announced += 1;
            self.skips.insert(name.to_owned(), reason.to_owned());
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            self.outcome(name.trim(), outcome.trim());
        }
    }

    fn outcome(&mut self, name: &str, outcome: &str) {
        if outcome == "FAILED" {
            self.failures.push(name.to_owned());
        } else if let Some(reason) = outcome.strip_prefix("ignored") {
            let reason = reason.trim_start_matches([',', ' ']);
            if !reason.is_empty() || !self.skips.contains_key(name) {
                let reason = if reason.is_empty() { "no reason given" } else { reason };
                self.skips.insert(name.to_owned(), reason.to_owned());
            }
        }
    }

    fn result(&mut self, result: &str) {
        let count = |what: &str| {
            result
                .split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(what))
                .find_map(|number| number.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        let (passed, failed, ignored) = (count("passed"), count("failed"), count("ignored"));
        // A test that announces its skip and then returns is "passed" to harnesses without skipping at run time.
        let returned = self.announced.saturating_sub(ignored).min(passed);
        self.announced = 0;
        self.passed += passed - returned;
        self.failed += failed;
        self.skipped += ignored + returned;
    }

    /// Counts a suite that ended badly without naming a failed test: it did not build, or broke off.
    pub fn broke_off(&mut self, suite: &str, how: &str) {
        self.failed += 1;
        self.failures.push(format!("{suite} ({how})"));
    }

    /// Counts checks that passed.
    pub const fn pass(&mut self, number: u64) {
        self.passed += number;
    }

    /// Counts a check that failed.
    pub fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// Counts a check that could not be made.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        self.skips.insert(name.to_owned(), reason.to_owned());
    }

    /// Whether something was tested, and nothing failed.
    pub const fn is_good(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }

    /// Failures so far.
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    /// Whether no test ran at all.
    pub const fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }
}

/// `SKIP <name>: <reason>`, alone or after the `test <name> ... ` that a harness printed before it ran the test.
fn announcement(line: &str) -> Option<(&str, &str)> {
    let rest = match line.split_once(" ... ") {
        Some((test, rest)) if test.starts_with("test ") => rest,
        _ => line,
    };
    rest.strip_prefix("SKIP ")?.split_once(": ")
}

impl fmt::Display for Summary {
    /// Failed and skipped tests by name, then the closing line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.failures {
            writeln!(f, "failed: {name}")?;
        }
        for (name, reason) in &self.skips {
            writeln!(f, "skipped: {name}: {reason}")?;
        }
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Summary {
        let mut summary = Summary::default();
        text.lines().for_each(|line| summary.line(line));
        summary
    }

    #[test]
    fn sums_over_binaries() {
        let summary = of("running 3 tests\n\
             test a ... ok\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
             test b::c ... FAILED\n\
             test result: FAILED. 10 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n");
        assert_eq!(summary.to_string(), "failed: b::c\n12 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn skips_carry_their_reasons_and_count_once() {
        let summary = of("test kernel::lockdown  ... SKIP kernel::lockdown: needs: a VM\n\
             ignored\n\
             test kernel::old ... ignored, kernel 5.10 only\n\
             test kernel::bare ... ignored\n\
             test result: ok. 4 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.10s\n");
        assert_eq!(
            summary.to_string(),
            "skipped: kernel::bare: no reason given\n\
             skipped: kernel::lockdown: needs: a VM\n\
             skipped: kernel::old: kernel 5.10 only\n\
             4 passed, 0 failed, 3 skipped"
        );
    }

    #[test]
    fn an_announced_skip_that_the_harness_calls_passed_is_a_skip() {
        let summary = of("SKIP promtool: not installed\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n");
        assert_eq!(summary.to_string(), "skipped: promtool: not installed\n3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn broken_suites_fail() {
        let mut summary = of("error: could not compile `x`\n");
        assert!(summary.is_empty());
        summary.broke_off("unit tests", "exit status: 101");
        assert_eq!(
            summary.to_string(),
            "failed: unit tests (exit status: 101)\n0 passed, 1 failed, 0 skipped"
        );
    }
}
