//! In: the variant named on the kernel's command line; out: a machine set up that way (mounts, loopback), and its end.
//! Knows no checks.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, ensure};

/// How the machine is set up, besides its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// cgroup v2 alone.
    Plain,
    /// Version 1 controllers with the v2 hierarchy beside them.
    Hybrid,
    /// Version 1 controllers alone.
    V1Only,
    /// No type information.
    NoBtf,
    /// Kernel lockdown, mode confidentiality.
    Confidentiality,
    /// CPUs go and come under load.
    Hotplug,
    /// Preemption of the kernel itself.
    Preempt,
    /// More CPUs possible than online.
    MaxCpus,
    /// Many more CPUs possible than online.
    ManyPossible,
    /// With runc in the initial file system.
    Runc,
}

impl Variant {
    fn of(name: &str) -> Self {
        match name {
            "hybrid" => Self::Hybrid,
            "v1-only" => Self::V1Only,
            "no-btf" => Self::NoBtf,
            "confidentiality" => Self::Confidentiality,
            "hotplug" => Self::Hotplug,
            "preempt" => Self::Preempt,
            "maxcpus" => Self::MaxCpus,
            "64-possible" | "512-possible" => Self::ManyPossible,
            "runc" => Self::Runc,
            // The others differ by the command line or by the machine only.
            _ => Self::Plain,
        }
    }
}

/// What the kernel's command line says of us under this name: `kernmeter.NAME=VALUE`.
pub fn parameter(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| {
        word.strip_prefix("kernmeter.")?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
    })
}

/// Mounts what the kernel's command line asks for and brings up the loopback device.
///
/// # Errors
/// What the kernel refused.
pub fn set_up() -> Result<Variant> {
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    // The kernel may have mounted it.
    let _ = mount("devtmpfs", "/dev");
    let variant = Variant::of(&parameter("variant").unwrap_or_default());
    // Absent where the kernel is locked down, or not built in.
    let _ = mount("tracefs", "/sys/kernel/tracing");
    let _ = mount("bpf", "/sys/fs/bpf");
    let _ = mount("securityfs", "/sys/kernel/security");
    match variant {
        Variant::Hybrid => {
            version_1()?;
            mount("cgroup2", "/sys/fs/cgroup/unified")?;
        }
        Variant::V1Only => version_1()?,
        _ => mount("cgroup2", "/sys/fs/cgroup")?,
    }
    if variant == Variant::NoBtf {
        mount("tmpfs", "/sys/kernel/btf")?;
    }
    loopback().context("bring up the loopback device")?;
    Ok(variant)
}

/// Controllers of version 1 as systemd mounts them.
fn version_1() -> Result<()> {
    mount("tmpfs", "/sys/fs/cgroup")?;
    for controller in ["cpu,cpuacct", "memory", "pids"] {
        // Newer kernels are built without some of them.
        if let Err(error) = mount_with("cgroup", &format!("/sys/fs/cgroup/{controller}"), controller) {
            println!("{error}");
        }
    }
    mount_with("cgroup", "/sys/fs/cgroup/systemd", "none,name=systemd")
}

fn mount(kind: &str, at: &str) -> Result<()> {
    mount_with(kind, at, "")
}

fn mount_with(kind: &str, at: &str, options: &str) -> Result<()> {
    let _ = fs::create_dir_all(at);
    let (kind_text, at_text) = (CString::new(kind)?, CString::new(at)?);
    let options = CString::new(options)?;
    // SAFETY: every pointer is to a live, null-terminated string.
    let r = unsafe {
        libc::mount(kind_text.as_ptr(), at_text.as_ptr(), kind_text.as_ptr(), 0, options.as_ptr().cast())
    };
    ensure!(r == 0, "mount {kind} at {at}: {}", io::Error::last_os_error());
    Ok(())
}

fn loopback() -> Result<()> {
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: a socket has no preconditions; the request lives longer than the call that reads it.
    let r = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let r = libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request);
        libc::close(socket);
        r
    };
    ensure!(r == 0, "{}", io::Error::last_os_error());
    Ok(())
}

/// Whether programs may read the names of cgroups.
pub fn tells_names() -> bool {
    let mode = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    !mode.contains("[confidentiality]")
}

/// Memory of the machine, as the kernel tells it.
pub fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("MemTotal") || line.starts_with("MemAvailable"));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

/// All memory of the machine, bytes.
///
/// # Errors
/// The kernel does not tell.
pub fn total_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("no MemTotal")?;
    let kib: u64 = line.split_whitespace().next().unwrap_or_default().parse().context("bad MemTotal")?;
    Ok(kib * 1024)
}

/// The folder of a process's cgroup below the v2 hierarchy's mount point.
///
/// # Errors
/// The process is gone, or has no v2 cgroup.
pub fn cgroup_of(pid: i32, mount: &Path) -> Result<PathBuf> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("no v2 cgroup")?;
    Ok(mount.join(path))
}

/// Binds a process to one CPU.
///
/// # Errors
/// The process is gone, or the CPU is not there.
pub fn pin(pid: i32, cpu: usize) -> Result<()> {
    // SAFETY: all-zero is the empty set; CPU_SET writes within it, for CPUs below 1024; the set outlives the call.
    let r = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(pid, size_of_val(&set), &raw const set)
    };
    ensure!(r == 0, "bind {pid} to CPU {cpu}: {}", io::Error::last_os_error());
    Ok(())
}

/// Binds every thread of a process to one CPU.
///
/// # Errors
/// The process is gone, or the CPU is not there.
pub fn pin_all(pid: i32, cpu: usize) -> Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = thread?.file_name();
        pin(name.to_str().and_then(|name| name.parse().ok()).context("a thread without a number")?, cpu)?;
    }
    Ok(())
}

/// The kernel's release.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Ends the machine.
pub fn end() -> ! {
    // SAFETY: nothing of this machine is worth keeping; the call does not return.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_AUTOBOOT);
    }
    // Only when the kernel refuses, which it tells on its console.
    std::process::exit(1)
}
