//! In: the process table; out: whether another program is attached where the agent is, which would make the baseline no
//! baseline. Sees links held by a process, which is how agents of this kind hold them; not pinned ones.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How long to wait for other agents to end.
const PATIENCE: Duration = Duration::from_mins(5);
/// How often a measurement is repeated because another agent came in between.
const ATTEMPTS: u32 = 20;
/// Lines of `/proc/PID/fdinfo/FD` of a link to the hooks of the measured loops.
const HOOKS: [&str; 2] = ["tp_name:\tsys_enter", "tp_name:\tsched_switch"];

/// How many processes are attached to the hooks.
fn attached() -> usize {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    processes.flatten().filter(|process| holds_hook(&process.path())).count()
}

fn holds_hook(process: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let is_link =
            fs::read_link(descriptor.path()).is_ok_and(|to| to.to_string_lossy().contains("bpf_link"));
        is_link
            && fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()))
                .is_ok_and(|info| info.lines().any(|line| HOOKS.contains(&line)))
    })
}

/// Measures while exactly `own` agents run: waits for others to end, and measures again when one came in between. Gives
/// up on that, and says so, rather than not to measure at all.
pub fn measure<T>(own: usize, mut what: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        let until = Instant::now() + PATIENCE;
        while attached() > own && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        if attached() > own {
            break;
        }
        let reading = what()?;
        if attached() <= own {
            return Ok(reading);
        }
    }
    eprintln!("bench: another program stays attached to the same hooks: this reading is too high");
    what()
}
