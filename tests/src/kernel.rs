//! In: process and object ids; out: the kernel's own accounts of them: schedstat, switches, memory, BPF objects, CPU use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};

use crate::skip;

/// What the kernel says about one task or the tasks of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TaskTimes {
    /// On a CPU, seconds.
    pub cpu: f64,
    /// Runnable and waiting, seconds.
    pub wait: f64,
    /// Switches because the task blocked.
    pub voluntary: u64,
    /// Switches while it could have gone on.
    pub involuntary: u64,
}

/// The sum over the live threads of a process. Exact while they are blocked.
///
/// # Errors
/// When the process is gone.
pub fn task_times(pid: i32) -> Result<TaskTimes> {
    let mut sum = TaskTimes::default();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let dir = task?.path();
        let stat = fs::read_to_string(dir.join("schedstat"))?;
        let mut fields = stat.split_whitespace().map(str::parse::<u64>);
        let mut next = || fields.next().context("short schedstat")?.context("bad schedstat");
        sum.cpu += next()? as f64 / 1e9;
        sum.wait += next()? as f64 / 1e9;
        let status = fs::read_to_string(dir.join("status"))?;
        sum.voluntary += field(&status, "voluntary_ctxt_switches:")?;
        sum.involuntary += field(&status, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: i32) -> Result<u64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")? * 1024)
}

/// Open descriptors of a process.
///
/// # Errors
/// When the process is gone.
pub fn descriptors(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    line.split_whitespace().next().unwrap_or_default().parse().with_context(|| format!("bad {name}"))
}

/// Seconds of CPU time of the whole host: (busy, all).
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn host_cpu() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .flat_map(str::parse)
        .collect();
    let all: f64 = ticks.iter().sum();
    let idle = ticks.get(3).context("short /proc/stat")? + ticks[4];
    Ok((all - idle, all))
}

/// Number of CPUs that are online.
pub fn online_cpus() -> usize {
    // SAFETY: sysconf has no preconditions.
    let n = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(n).unwrap_or(1)
}

/// Ids of everything BPF that is loaded: (kind, id); and what is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    /// Programs, maps, links and BTF objects.
    pub ids: BTreeSet<(&'static str, u32)>,
    /// Paths in bpffs.
    pub pins: BTreeSet<PathBuf>,
}

const KINDS: [(&str, libc::c_int); 4] = [("prog", 11), ("map", 12), ("btf", 23), ("link", 31)];

/// Everything BPF on this host.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn bpf_objects() -> Result<BpfObjects> {
    let mut objects = BpfObjects::default();
    for (kind, command) in KINDS {
        let mut attr = [0u32; 32];
        loop {
            // SAFETY: the attribute is larger than what the GET_NEXT_ID commands read and write, and lives long enough.
            let r = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), 16) };
            if r != 0 {
                let e = io::Error::last_os_error();
                if e.raw_os_error() == Some(libc::ENOENT) {
                    break;
                }
                return Err(e).with_context(|| format!("list {kind} ids"));
            }
            objects.ids.insert((kind, attr[1]));
            attr[0] = attr[1];
        }
    }
    walk(Path::new("/sys/fs/bpf"), &mut objects.pins);
    Ok(objects)
}

fn walk(dir: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&path, into);
        }
        into.insert(path);
    }
}

/// Nothing BPF is there that was not there before. The kernel frees what a dead process held a moment later.
///
/// # Errors
/// What is left; or a skip when another process has come to hold BPF objects meanwhile.
pub fn check_nothing_left(before: &BpfObjects) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let now = bpf_objects()?;
        let ids: BTreeSet<_> = now.ids.difference(&before.ids).copied().collect();
        let pins: Vec<_> = now.pins.difference(&before.pins).collect();
        ensure!(pins.is_empty(), "left pinned: {pins:?}");
        if ids.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            let holders = bpf_holders();
            if holders.is_empty() {
                bail!("left in the kernel: {ids:?}");
            }
            skip!("processes {holders:?} came to hold BPF objects meanwhile");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Processes that hold a BPF descriptor, other than this one.
pub fn bpf_holders() -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| {
                to.to_string_lossy().starts_with("anon_inode:bpf")
                    || to.to_string_lossy().starts_with("anon_inode:[bpf")
            })
        })
        .collect()
}
