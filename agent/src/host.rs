//! In: what the kernel tells of this machine in /proc and /sys; out: its CPUs, memory, lockdown mode, kernel types. Changes
//! nothing and knows nothing of the agent.

use std::{fmt, fs};

/// The running kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The CPUs the kernel lists in a file such as /sys/devices/system/cpu/online; `None` if it cannot be read or makes no sense.
fn cpu_list(path: &str) -> Option<Vec<u32>> {
    let text = fs::read_to_string(path).ok()?;
    parse_cpu_list(text.trim())
}

/// Parses the kernel's list format: `0-3,8,10-11`.
fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > MOST_CPUS || first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// More than any kernel is built for (`CONFIG_NR_CPUS` of x86 ends at 8,192): a list beyond is nonsense.
const MOST_CPUS: u32 = 1 << 16;

/// CPUs that run now; empty if the kernel does not tell.
pub fn online_cpus() -> Vec<u32> {
    cpu_list("/sys/devices/system/cpu/online").unwrap_or_default()
}

/// Whether some CPUs run without ticks (`nohz_full`).
pub fn has_tickless_cpus() -> bool {
    cpu_list("/sys/devices/system/cpu/nohz_full").is_some_and(|cpus| !cpus.is_empty())
}

/// Possible CPUs, as one more than the highest number: numbers may have gaps.
pub fn possible_cpus() -> u32 {
    let possible = cpu_list("/sys/devices/system/cpu/possible").unwrap_or_default();
    possible.into_iter().chain(online_cpus()).max().map_or(1, |highest| highest + 1)
}

/// The host's memory, bytes; unlimited if it cannot be told.
pub fn total_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib << 10)
}

/// How far the kernel is locked down against root, `kernel_lockdown(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Not at all, or the kernel has no such thing.
    None,
    /// What changes the running kernel is forbidden.
    Integrity,
    /// What reads its memory is forbidden too.
    Confidentiality,
}

impl fmt::Display for Lockdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
        })
    }
}

/// The kernel's lockdown mode.
pub fn lockdown() -> Lockdown {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    match text.split(['[', ']']).nth(1) {
        Some("integrity") => Lockdown::Integrity,
        Some("confidentiality") => Lockdown::Confidentiality,
        _ => Lockdown::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_cpu_list("0"), Some(vec![0]));
        assert_eq!(parse_cpu_list("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        for nonsense in ["", "a", "3-1", "0-", "1-4294967295"] {
            assert_eq!(parse_cpu_list(nonsense), None, "{nonsense:?}");
        }
    }
}
