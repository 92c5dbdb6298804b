//! In: the lines a machine sent; out: its results, as values and as a table. Boots nothing, writes no files.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::boot::Ended;

/// Last lines of a console that are shown when a machine broke off.
const LAST_LINES: usize = 12;
/// What a kernel says on its console when it has gone wrong, whatever the tests say.
const ALARMS: [&str; 5] =
    ["Kernel panic", "BUG: ", "Oops: ", "general protection fault", "self-detected stall"];

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Why not.
    Failed(String),
    /// Why it cannot be checked there.
    Skipped(String),
}

impl Outcome {
    /// One word for tables.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed(_) => "FAIL",
            Self::Skipped(_) => "skip",
        }
    }
}

/// What the kernel's verifier made of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted; instructions it looked at, where the kernel tells.
    Accepted(Option<u64>),
    /// Why not.
    Rejected(String),
}

/// The results of one machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name: the kernel's series and the variant, if any.
    pub name: String,
    /// The variant.
    pub variant: String,
    /// Debian's version of the kernel; empty if there was none.
    pub version: String,
    /// By program.
    pub programs: BTreeMap<String, Verdict>,
    /// In the order they were made; `boot` is the first.
    pub checks: Vec<(String, Outcome)>,
    /// What checks told besides their outcome: check and text.
    pub notes: Vec<(String, String)>,
    /// It was not booted: its kernel is that of this machine, whose results it shows.
    pub same_as: Option<String>,
    /// Wall time, seconds.
    seconds: u64,
}

impl Machine {
    fn new(name: &str, variant: &str, boot: Outcome) -> Self {
        Self {
            name: name.to_owned(),
            variant: variant.to_owned(),
            version: String::new(),
            programs: BTreeMap::new(),
            checks: vec![("boot".to_owned(), boot)],
            notes: Vec::new(),
            same_as: None,
            seconds: 0,
        }
    }

    /// A machine that could not be booted for lack of something.
    pub fn skipped(name: &str, variant: &str, reason: &str) -> Self {
        Self::new(name, variant, Outcome::Skipped(reason.to_owned()))
    }

    /// A machine that could not be booted though everything was there.
    pub fn failed(name: &str, variant: &str, reason: &str) -> Self {
        Self::new(name, variant, Outcome::Failed(reason.to_owned()))
    }

    /// Reads what a machine sent. One that broke off has failed, with the last words of its console.
    pub fn read(name: &str, variant: &str, version: &str, ended: &Ended) -> Self {
        let mut machine = Self::new(name, variant, Outcome::Passed);
        version.clone_into(&mut machine.version);
        machine.seconds = ended.took.as_secs();
        let mut complete = false;
        for line in ended.report.lines() {
            complete |= line == "end";
            machine.line(line);
        }
        let alarm = ended.console.lines().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
        let fault = if ended.timed_out {
            Some("it hung and was ended".to_owned())
        } else if let Some(alarm) = alarm {
            Some(format!("its kernel went wrong: {}", alarm.trim()))
        } else if complete {
            None
        } else {
            Some("it ended before its checks did".to_owned())
        };
        if let Some(fault) = fault {
            let lines: Vec<&str> = ended.console.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n    ");
            machine.checks[0].1 = Outcome::Failed(format!("{fault}; the end of its console:\n    {last}"));
        }
        machine
    }

    /// This machine's results under another name.
    pub fn shown_as(&self, name: &str) -> Self {
        Self { name: name.to_owned(), same_as: Some(self.name.clone()), ..self.clone() }
    }

    fn line(&mut self, line: &str) {
        if let Some((check, text)) = line.strip_prefix("note ").and_then(|rest| rest.split_once(": ")) {
            self.notes.push((check.to_owned(), text.to_owned()));
        } else if let Some(program) = line.strip_prefix("program ") {
            let mut words = program.splitn(3, ' ');
            let (Some(name), Some(verdict)) = (words.next(), words.next()) else { return };
            let rest = words.next().unwrap_or_default();
            let verdict = if verdict == "accepted" {
                Verdict::Accepted(rest.parse().ok())
            } else {
                Verdict::Rejected(rest.to_owned())
            };
            self.programs.insert(name.to_owned(), verdict);
        } else if let Some((name, _)) = line.strip_prefix("ok ").and_then(|rest| rest.split_once(' ')) {
            self.checks.push((name.to_owned(), Outcome::Passed));
        } else if let Some((name, why)) = line.strip_prefix("not ok ").and_then(|rest| rest.split_once(": "))
        {
            self.checks.push((name.to_owned(), Outcome::Failed(why.to_owned())));
        } else if let Some((name, why)) = line.strip_prefix("skip ").and_then(|rest| rest.split_once(": ")) {
            self.checks.push((name.to_owned(), Outcome::Skipped(why.to_owned())));
        }
    }

    /// What came of a check; `None` if this machine does not make it.
    pub fn outcome(&self, check: &str) -> Option<&Outcome> {
        self.checks.iter().find(|(name, _)| name == check).map(|(_, outcome)| outcome)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |word| self.checks.iter().filter(|(_, outcome)| outcome.word() == word).count();
        write!(f, "{}", self.name)?;
        if !self.version.is_empty() {
            write!(f, " ({})", self.version)?;
        }
        write!(
            f,
            ": {} passed, {} failed, {} skipped in {} s",
            count("pass"),
            count("FAIL"),
            count("skip"),
            self.seconds
        )
    }
}

/// Every check that any machine made, in order.
pub fn checks(machines: &[Machine]) -> Vec<&str> {
    let mut names = Vec::new();
    for (name, _) in machines.iter().flat_map(|machine| &machine.checks) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// Machines by checks, aligned for a terminal.
pub fn table(machines: &[Machine]) -> String {
    let checks = checks(machines);
    let width = machines.iter().map(|machine| machine.name.len()).max().unwrap_or(0).max("machine".len());
    let mut text = format!("{:width$}", "machine");
    for check in &checks {
        let _ = write!(text, "  {check:4}");
    }
    for machine in machines {
        let _ = write!(text, "\n{:width$}", machine.name);
        for check in &checks {
            let word = machine.outcome(check).map_or("-", Outcome::word);
            let _ = write!(text, "  {word:cell$}", cell = check.len().max(4));
        }
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// A line for each failure, each rejected program and each note.
pub fn reasons(machines: &[Machine]) -> Vec<String> {
    let mut lines = Vec::new();
    for machine in machines {
        if let Some(other) = &machine.same_as {
            lines.push(format!("note: {}: is {other} ({}), booted once", machine.name, machine.version));
            continue;
        }
        for (check, text) in &machine.notes {
            lines.push(format!("note: {}: {check}: {text}", machine.name));
        }
        for (check, outcome) in &machine.checks {
            match outcome {
                Outcome::Failed(why) => lines.push(format!("failed: {}: {check}: {why}", machine.name)),
                // The summary has them.
                Outcome::Skipped(_) | Outcome::Passed => {}
            }
        }
        for (program, verdict) in &machine.programs {
            if let Verdict::Rejected(why) = verdict {
                lines.push(format!("rejected: {}: `{program}`: {why}", machine.name));
            }
        }
    }
    lines
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;

    /// A machine that sent these lines.
    pub fn machine(series: &str, variant: &str, report: &str, console: &str) -> Machine {
        let ended = Ended {
            report: report.to_owned(),
            console: console.to_owned(),
            timed_out: false,
            took: Duration::from_secs(1),
        };
        let name = if variant == "plain" { series.to_owned() } else { format!("{series} {variant}") };
        Machine::read(&name, variant, &format!("{series}.1"), &ended)
    }

    #[test]
    fn reads_every_kind_of_line() {
        let machine = machine(
            "6.1",
            "plain",
            "kernel 6.1\nprogram a accepted 12\nprogram b accepted\nprogram c rejected R1: bad\n\
             note x: 5 of 7: good\nok x 3 ms\nnot ok y: because: so\nskip z: none here\nend\n",
            "",
        );
        assert_eq!(machine.programs["a"], Verdict::Accepted(Some(12)));
        assert_eq!(machine.programs["b"], Verdict::Accepted(None));
        assert_eq!(machine.programs["c"], Verdict::Rejected("R1: bad".to_owned()));
        assert_eq!(machine.outcome("boot"), Some(&Outcome::Passed));
        assert_eq!(machine.outcome("x"), Some(&Outcome::Passed));
        assert_eq!(machine.outcome("y"), Some(&Outcome::Failed("because: so".to_owned())));
        assert_eq!(machine.outcome("z"), Some(&Outcome::Skipped("none here".to_owned())));
        assert_eq!(machine.outcome("w"), None);
        assert_eq!(machine.notes, [("x".to_owned(), "5 of 7: good".to_owned())]);
        let table = table(&[machine]);
        assert_eq!(table, "machine  boot  x     y     z\n6.1      pass  pass  FAIL  skip\n");
    }

    #[test]
    fn a_machine_that_breaks_off_has_failed() {
        let machine = machine("6.1", "plain", "ok x 3 ms\n", "one\nKernel panic - not syncing\n");
        let Some(Outcome::Failed(why)) = machine.outcome("boot") else { panic!("{machine:?}") };
        assert!(why.contains("Kernel panic"), "{why}");
        let silent = tests::machine("6.1", "plain", "", "nothing\n");
        let Some(Outcome::Failed(why)) = silent.outcome("boot") else { panic!("{silent:?}") };
        assert!(why.contains("nothing"), "{why}");
    }

    #[test]
    fn a_machine_that_hangs_has_failed() {
        let ended = Ended {
            report: "ok x 3 ms\nend\n".to_owned(),
            console: (1..=40).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n"),
            timed_out: true,
            took: Duration::from_mins(5),
        };
        let machine = Machine::read("6.1", "plain", "6.1.1", &ended);
        let Some(Outcome::Failed(why)) = machine.outcome("boot") else { panic!("{machine:?}") };
        assert!(why.starts_with("it hung") && why.ends_with("line 40") && !why.contains("line 28"), "{why}");
    }

    #[test]
    fn an_oops_spoils_a_complete_run() {
        let machine =
            machine("6.1", "plain", "ok x 3 ms\nend\n", "[ 1.0] BUG: unable to handle page fault\n");
        assert!(matches!(machine.outcome("boot"), Some(Outcome::Failed(_))));
    }
}
