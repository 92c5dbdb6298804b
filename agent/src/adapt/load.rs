//! In: `/proc/stat`, `/proc/meminfo`, `/proc/pressure`; out: readings of the host's load. Decides nothing.
//!
//! Parsed here rather than by the procfs crate: it wants fields that older kernels do not have (the `full` line of
//! `/proc/pressure/cpu`) and builds tables of what is not needed, every tick.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::controller::{LoadReading, Pressure};

/// Most bytes read of a file; all that is used stands at its beginning.
const FILE_BYTES: u64 = 16 << 10;

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    /// A file is unreadable.
    #[error("cannot read `{path}`: {source}; mount proc at /proc")]
    Read {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("`{path}` has no usable {what}: is /proc the kernel's own?")]
    Garbled {
        /// Which.
        path: String,
        /// What is missing.
        what: &'static str,
    },
}

/// CPU time in ticks since boot: one value per column of `/proc/stat` that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTicks {
    /// user, nice, system, irq, softirq, steal. Guest time is already part of user and nice. Stolen time is time in which
    /// the host had work to do, so it is no rest.
    busy: [u64; 6],
    /// idle, iowait.
    idle: [u64; 2],
}

/// Reads the host's load; keeps the last CPU times to take differences.
#[derive(Debug)]
pub struct Load {
    proc: PathBuf,
    before: Option<CpuTicks>,
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

impl Load {
    /// Reads from `/proc`.
    pub fn new() -> Self {
        Self::at(Path::new("/proc"))
    }

    /// Reads from a proc file system mounted elsewhere.
    pub fn at(proc: &Path) -> Self {
        Self { proc: proc.to_path_buf(), before: None }
    }

    /// A reading of the time since the last call. `None` the first time, and if no CPU time has passed since.
    ///
    /// # Errors
    /// `/proc/stat` or `/proc/meminfo` is unreadable or garbled. Missing pressure files are no error.
    pub fn read(&mut self) -> Result<Option<LoadReading>, ReadingError> {
        let stat = self.file("stat")?;
        let ticks = cpu_ticks(&stat).ok_or_else(|| self.garbled("stat", "`cpu` line"))?;
        let meminfo = self.file("meminfo")?;
        let memory_available_percent = memory_available(&meminfo)
            .ok_or_else(|| self.garbled("meminfo", "`MemTotal` and `MemAvailable`"))?;
        let busy = self.before.replace(ticks).and_then(|before| busy_percent(&before, &ticks));
        let psi = self.pressure();
        Ok(busy.map(|cpu_busy_percent| LoadReading { cpu_busy_percent, memory_available_percent, psi }))
    }

    /// Pressure, if the kernel has it and all three files make sense.
    fn pressure(&self) -> Option<Pressure> {
        let of = |resource: &str| some_avg10(&self.file(&format!("pressure/{resource}")).ok()?);
        Some(Pressure { cpu: of("cpu")?, memory: of("memory")?, io: of("io")? })
    }

    fn file(&self, name: &str) -> Result<Vec<u8>, ReadingError> {
        let path = self.proc.join(name);
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(FILE_BYTES).read_to_end(&mut text))
            .map_err(|source| ReadingError::Read { path: path.display().to_string(), source })?;
        Ok(text)
    }

    fn garbled(&self, name: &str, what: &'static str) -> ReadingError {
        ReadingError::Garbled { path: self.proc.join(name).display().to_string(), what }
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = &str> {
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(|word| std::str::from_utf8(word).unwrap_or(""))
}

fn cpu_ticks(stat: &[u8]) -> Option<CpuTicks> {
    let line = stat.split(|b| *b == b'\n').find(|line| line.starts_with(b"cpu "))?;
    // user nice system idle iowait irq softirq steal guest guest_nice
    let mut columns = [0; 8];
    let mut given = 0;
    for (column, word) in columns.iter_mut().zip(words(line).skip(1)) {
        *column = word.parse().ok()?;
        given += 1;
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] = columns;
    (given >= 4).then_some(CpuTicks { busy: [user, nice, system, irq, softirq, steal], idle: [idle, iowait] })
}

/// Percent of the time between two readings that was not idle. Columns that ran backwards (iowait does, and a CPU that
/// went away may) count as standing still.
fn busy_percent(before: &CpuTicks, after: &CpuTicks) -> Option<f64> {
    let passed = |before: &[u64], after: &[u64]| {
        before
            .iter()
            .zip(after)
            .map(|(before, after)| u128::from(after.saturating_sub(*before)))
            .sum::<u128>()
    };
    let busy = passed(&before.busy, &after.busy);
    let all = busy + passed(&before.idle, &after.idle);
    (all > 0).then(|| busy as f64 / all as f64 * 100.0)
}

fn memory_available(meminfo: &[u8]) -> Option<f64> {
    let of = |key: &[u8]| -> Option<u64> {
        let line = meminfo.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(key))?;
        words(line).next()?.parse().ok()
    };
    let (total, available) = (of(b"MemTotal:")?, of(b"MemAvailable:")?);
    (total > 0).then(|| (available as f64 / total as f64 * 100.0).min(100.0))
}

fn some_avg10(pressure: &[u8]) -> Option<f64> {
    let line = pressure.split(|b| *b == b'\n').find(|line| line.starts_with(b"some "))?;
    let value: f64 = words(line).find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticks(line: &str) -> CpuTicks {
        cpu_ticks(line.as_bytes()).expect("cpu line")
    }

    fn near(value: Option<f64>, expected: f64) {
        assert!(value.is_some_and(|value| (value - expected).abs() < 1e-9), "{value:?} is not {expected}");
    }

    #[test]
    fn cpu_use() {
        let before = ticks("cpu  100 10 50 1000 40 5 5 20 60 0\ncpu0 1 1 1 1\n");
        // 100 ticks: user 20 (of which guest 10), system 10, steal 10, irq 5, softirq 5; idle 40, iowait 10.
        near(busy_percent(&before, &ticks("cpu  120 10 60 1040 50 10 10 30 70 0\n")), 50.0);
        near(busy_percent(&before, &ticks("cpu  110 10 50 1000 40 5 5 20 70 0\n")), 100.0);
        near(busy_percent(&before, &ticks("cpu  100 10 50 1010 40 5 5 20 60 0\n")), 0.0);
        assert_eq!(busy_percent(&before, &before), None);
        // iowait fell: not an underflow.
        near(busy_percent(&before, &ticks("cpu  110 10 50 1010 1 5 5 20 60 0\n")), 50.0);
        assert_eq!(busy_percent(&before, &ticks("cpu 0 0 0 0")), None);
        near(busy_percent(&ticks("cpu 0 0 0 0"), &ticks(&format!("cpu {0} {0} {0} {0}", u64::MAX))), 75.0);
        for bad in [
            "",
            "cpu 1 2 3",
            "cpu0 1 2 3 4",
            "cpu  1 2 x 4",
            "cpu  -1 2 3 4",
            "cpu  99999999999999999999 1 1 1",
        ] {
            assert_eq!(cpu_ticks(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn memory_and_pressure() {
        near(memory_available(b"MemTotal:  2000 kB\nMemFree: 1 kB\nMemAvailable:    500 kB\n"), 25.0);
        near(memory_available(b"MemTotal: 10 kB\nMemAvailable: 11 kB"), 100.0);
        for bad in ["", "MemTotal: 0 kB\nMemAvailable: 0 kB", "MemTotal: 5 kB", "MemTotal:\nMemAvailable: 1"]
        {
            assert_eq!(memory_available(bad.as_bytes()), None, "{bad}");
        }
        near(some_avg10(b"some avg10=12.50 avg60=1.00 avg300=0.00 total=123\nfull avg10=99.0"), 12.5);
        for bad in [
            "",
            "some",
            "some ",
            "full avg10=1.0",
            "some avg10=",
            "some avg10=NaN",
            "some avg10=101",
            "some avg10=-1",
        ] {
            assert_eq!(some_avg10(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn reads_this_machine() {
        let mut load = Load::new();
        assert_eq!(load.read().expect("first"), None);
        // Ticks are 10 ms at the coarsest; burn until one has passed.
        let reading = loop {
            if let Some(reading) = load.read().expect("later") {
                break reading;
            }
        };
        assert!((0.0..=100.0).contains(&reading.cpu_busy_percent), "{reading:?}");
        assert!(
            reading.memory_available_percent > 0.0 && reading.memory_available_percent <= 100.0,
            "{reading:?}"
        );
    }

    #[test]
    fn errors_name_the_file() {
        let dir = std::env::temp_dir().join(format!("kernmeter-load-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("scratch");
        let error = Load::at(&dir).read().expect_err("nothing there").to_string();
        assert!(error.contains("stat`") && error.contains("mount proc"), "{error}");
        std::fs::write(dir.join("stat"), "cpu  1 1 1 1\n").expect("write");
        std::fs::write(dir.join("meminfo"), b"\xff\xfe\n\0").expect("write");
        let error = Load::at(&dir).read().expect_err("garbage").to_string();
        assert!(error.contains("meminfo`") && error.contains("MemAvailable"), "{error}");
        std::fs::write(dir.join("meminfo"), "MemTotal: 2 kB\nMemAvailable: 1 kB\n").expect("write");
        let mut load = Load::at(&dir);
        assert_eq!(load.read().expect("first"), None);
        std::fs::write(dir.join("stat"), "cpu  2 1 1 4\n").expect("write");
        let reading = load.read().expect("second").expect("time passed");
        assert_eq!(
            reading,
            LoadReading { cpu_busy_percent: 25.0, memory_available_percent: 50.0, psi: None }
        );
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), prefix in 0usize..5) {
            let prefix = ["", "cpu  ", "some avg10=", "MemTotal: 5\nMemAvailable: ", "some "][prefix];
            let text = [prefix.as_bytes(), &bytes].concat();
            if let Some(ticks) = cpu_ticks(&text) {
                let percent = busy_percent(&CpuTicks::default(), &ticks);
                prop_assert!(percent.is_none_or(|percent| (0.0..=100.0).contains(&percent)));
            }
            prop_assert!(memory_available(&text).is_none_or(|percent| (0.0..=100.0).contains(&percent)));
            prop_assert!(some_avg10(&text).is_none_or(|percent| (0.0..=100.0).contains(&percent)));
        }
    }
}
