//! In: what a check found; out: one line per finding over the machine's second serial port. Knows no checks.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use anyhow::{Context, Result};

/// Most bytes of a reason; the console has the rest.
const LONGEST: usize = 1500;

/// The way out of the machine.
pub struct Report {
    port: File,
}

impl Report {
    /// Opens the second serial port.
    ///
    /// # Errors
    /// The machine has none.
    pub fn open() -> Result<Self> {
        let port =
            OpenOptions::new().write(true).open("/dev/ttyS1").context("open the second serial port")?;
        Ok(Self { port })
    }

    /// Writes a line. It is out when this returns, also if the machine ends at once.
    pub fn line(&mut self, text: &str) {
        let mut line = one_line(text);
        println!("{line}");
        line.push('\n');
        let _ = self.port.write_all(line.as_bytes());
        // SAFETY: the descriptor is open as long as the file lives.
        unsafe { libc::tcdrain(self.port.as_raw_fd()) };
    }

    /// A program that the kernel accepted, and how many instructions it looked at where it says so.
    pub fn accepted(&mut self, program: &str, instructions: Option<u32>) {
        match instructions {
            Some(count) => self.line(&format!("program {program} accepted {count}")),
            None => self.line(&format!("program {program} accepted")),
        }
    }

    /// A program that the kernel rejected.
    pub fn rejected(&mut self, program: &str, reason: &str) {
        self.line(&format!("program {program} rejected {reason}"));
    }
}

/// What a check has to tell besides its outcome.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Tells a figure or a finding that is worth showing though nothing is wrong with it.
pub fn note(text: &str) {
    println!("{text}");
    if let Ok(mut notes) = NOTES.lock() {
        notes.push(one_line(text));
    }
}

/// Notes since the last call.
pub fn take_notes() -> Vec<String> {
    NOTES.lock().map(|mut notes| std::mem::take(&mut *notes)).unwrap_or_default()
}

fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if !line.is_empty() {
            line.push_str(" | ");
        }
        line.push_str(part);
    }
    let mut end = line.len().min(LONGEST);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}
