//! In: /proc/self; out: the agent's own resource use as plain numbers. Knows no metric names and no other process.

use std::io;
use std::sync::OnceLock;

use procfs::process::{LimitValue, Process};

/// What the agent itself uses, in Prometheus' base units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// User and system CPU time, seconds.
    pub cpu_seconds: f64,
    /// Resident memory, bytes.
    pub resident_memory_bytes: u64,
    /// Virtual memory, bytes.
    pub virtual_memory_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The soft limit on file descriptors; `None` where there is none.
    pub max_fds: Option<u64>,
    /// When the process started: seconds since the epoch.
    pub start_time_seconds: f64,
    /// Threads.
    pub threads: u64,
}

/// Reads the agent's own figures.
///
/// # Errors
/// If /proc is not mounted or hides the process.
pub fn read_process_stats() -> io::Result<ProcessStats> {
    let process = Process::myself().map_err(io::Error::other)?;
    let stat = process.stat().map_err(io::Error::other)?;
    let ticks = procfs::ticks_per_second() as f64;
    let max_fds = match process.limits().map_err(io::Error::other)?.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit),
        LimitValue::Unlimited => None,
    };
    Ok(ProcessStats {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_memory_bytes: stat.rss * procfs::page_size(),
        virtual_memory_bytes: stat.vsize,
        open_fds: process.fd_count().map_err(io::Error::other)? as u64,
        max_fds,
        start_time_seconds: boot_time_seconds()? + stat.starttime as f64 / ticks,
        threads: u64::try_from(stat.num_threads).unwrap_or(0),
    })
}

/// The boot time, read once: /proc/stat grows with CPUs and interrupts, and a start time that follows clock steps would
/// look like a restart.
fn boot_time_seconds() -> io::Result<f64> {
    static BOOT: OnceLock<u64> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(*boot as f64);
    }
    let boot = procfs::boot_time_secs().map_err(io::Error::other)?;
    Ok(*BOOT.get_or_init(|| boot) as f64)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn own_figures_make_sense() {
        let before = read_process_stats().unwrap();
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(before.resident_memory_bytes > 100_000);
        assert!(before.virtual_memory_bytes >= before.resident_memory_bytes);
        assert!(before.open_fds >= 3 && before.max_fds.is_none_or(|max| max >= before.open_fds));
        assert!(before.threads >= 1);
        // The test process started within the last day and not in the future (btime is rounded to seconds).
        assert!(before.start_time_seconds < now + 2.0 && before.start_time_seconds > now - 86_400.0);
        let after = read_process_stats().unwrap();
        assert!(after.cpu_seconds >= before.cpu_seconds);
        assert_eq!(after.start_time_seconds.to_bits(), before.start_time_seconds.to_bits());
        drop(file);
    }
}
