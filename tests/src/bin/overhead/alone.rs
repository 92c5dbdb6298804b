//! In: the process table; out: whether another agent meters this machine, which would make the baseline no baseline.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How long to wait for other agents to end.
const PATIENCE: Duration = Duration::from_mins(5);
/// How often a measurement is repeated because another agent came in between.
const ATTEMPTS: u32 = 20;

/// How many agents run.
fn agents() -> usize {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    processes
        .flatten()
        .filter(|process| fs::read(process.path().join("comm")).is_ok_and(|comm| comm == b"kernmeter\n"))
        .count()
}

/// Measures while exactly `own` agents run: waits for others to end, and measures again when one came in between. Gives
/// up on that, and says so, rather than not to measure at all.
pub fn measure<T>(own: usize, mut what: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        let until = Instant::now() + PATIENCE;
        while agents() > own && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        let reading = what()?;
        if agents() <= own {
            return Ok(reading);
        }
    }
    eprintln!("overhead: another agent keeps running on this machine: this reading is too high");
    what()
}
