//! In: a kernel that boots; out: whether a machine that hangs, panics, breaks off, fails or rejects is seen as such. Judges
//! no check of the agent.

use std::time::Duration;

use super::results::{Machine, Outcome, Verdict};

/// A fault that a machine has on purpose.
pub struct Fault {
    /// What the machine is told.
    pub name: &'static str,
    /// How long it may take.
    pub limit: Duration,
    /// What must be said of it.
    expected: &'static str,
    /// Words of the console that must be shown.
    pub console: &'static str,
}

/// Faults that would be taken for success, or for nothing, by a matrix that is blind to them.
pub const FAULTS: [Fault; 5] = [
    Fault {
        name: "hang",
        limit: Duration::from_secs(40),
        expected: "it hung and was ended",
        console: "fault on purpose: hang",
    },
    Fault {
        name: "panic",
        limit: Duration::from_mins(2),
        expected: "its kernel went wrong",
        console: "Attempted to kill init",
    },
    Fault {
        name: "reset",
        limit: Duration::from_mins(2),
        expected: "it ended before its checks did",
        console: "fault on purpose: reset",
    },
    Fault { name: "fail", limit: Duration::from_mins(2), expected: "on purpose", console: "" },
    Fault { name: "rejection", limit: Duration::from_mins(2), expected: "on purpose", console: "" },
];

impl Fault {
    /// Why this fault was not seen for what it is, if it was not.
    pub fn unseen(&self, machine: &Machine) -> Option<String> {
        let failed = machine.checks.iter().filter_map(|(_, outcome)| match outcome {
            Outcome::Failed(why) => Some(why.as_str()),
            _ => None,
        });
        let rejected = machine.programs.values().filter_map(|verdict| match verdict {
            Verdict::Rejected(why) => Some(why.as_str()),
            Verdict::Accepted(_) => None,
        });
        let told: Vec<&str> = failed.chain(rejected).collect();
        let seen = told.iter().any(|why| why.contains(self.expected) && why.contains(self.console));
        (!seen).then(|| format!("a machine with fault `{}` was told of as: {told:?}", self.name))
    }
}
