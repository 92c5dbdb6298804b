//! In: an error of the eBPF library; out: the kernel's refusal in a line: its reason, what the verifier said last, what to do.
//! Loads nothing.

use std::error::Error;
use std::{fmt, io};

use aya::programs::ProgramError;

/// Lines of the verifier's log that are kept: the instruction, the registers and the complaint.
const LAST_WORDS: usize = 4;
/// Beginnings of lines that only say how much the verifier had to do.
const STATISTICS: [&str; 6] =
    ["processed ", "verification time", "stack depth", "max_states", "insns ", "subprog "];

/// Why the kernel refused a program, a map or an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The error number, where a system call failed.
    errno: Option<i32>,
    /// The error and its causes.
    reason: String,
    /// The verifier's last words; empty if it said nothing.
    verifier: String,
}

impl Rejection {
    /// What an error says, whatever its kind.
    pub fn of(error: &(dyn Error + 'static)) -> Rejection {
        if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
            return Rejection {
                errno: io_error.raw_os_error(),
                reason: io_error.to_string(),
                verifier: last_words(&verifier_log.to_string()),
            };
        }
        Rejection { errno: errno_of(error), reason: chain(error), verifier: String::new() }
    }

    /// Whether a capability is missing, or something forbids bpf(2).
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno, Some(libc::EPERM | libc::EACCES)) && self.verifier.is_empty()
    }

    /// Whether memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        self.errno == Some(libc::ENOMEM)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        if !self.verifier.is_empty() {
            write!(f, "; the verifier: {}", self.verifier)?;
        }
        Ok(())
    }
}

impl From<ProgramError> for Rejection {
    fn from(error: ProgramError) -> Self {
        Self::of(&error)
    }
}

/// The last lines of a verifier's log that are not statistics, on one line.
fn last_words(log: &str) -> String {
    let says = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    let mut last: Vec<&str> = log.lines().rev().filter(says).take(LAST_WORDS).collect();
    last.reverse();
    last.join(" | ")
}

/// The error number of the system call at the bottom of an error.
fn errno_of(error: &(dyn Error + 'static)) -> Option<i32> {
    let own = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    own.or_else(|| errno_of(error.source()?))
}

/// An error and its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_last_words() {
        let log = "0: R1=ctx()\n1: (85) call unknown#210\ninvalid func unknown#210\n\nprocessed 2 insns (limit 1000000)\n";
        assert_eq!(last_words(log), "0: R1=ctx() | 1: (85) call unknown#210 | invalid func unknown#210");
        assert_eq!(last_words(""), "");
    }

    #[test]
    fn errors_are_told_by_number() {
        let refused = ProgramError::SyscallError(aya::sys::SyscallError {
            call: "bpf_prog_load",
            io_error: io::Error::from_raw_os_error(libc::EPERM),
        });
        assert!(Rejection::of(&refused).is_forbidden());
        assert!(Rejection::of(&io::Error::from_raw_os_error(libc::ENOMEM)).is_out_of_memory());
        assert!(!Rejection::of(&ProgramError::AlreadyLoaded).is_forbidden());
    }
}
