//! In: nothing; out: which kernels and which variants of a machine there are. Boots nothing.

/// Kernels of the matrix, oldest first: Debian's releases and what its newer suites have.
pub const SERIES: &[&str] = &["5.10", "6.1", "6.12", "6.18", "7.2", NEWEST];

/// The newest kernel that can be had, whatever its series.
pub const NEWEST: &str = "newest";

/// A machine that differs from the plain one.
pub struct Variant {
    /// Its name on our command line, and on that of the kernel.
    pub name: &'static str,
    /// What it tells.
    pub summary: &'static str,
    /// Kernels it runs on unless one is named.
    pub series: &'static [&'static str],
    /// The value of the emulator's `-smp`.
    pub cpus: &'static str,
    /// Memory, MiB.
    pub memory: u32,
    /// More of the kernel's command line.
    pub parameters: &'static str,
    /// Whether runc is in the initial file system.
    pub runc: bool,
}

const fn variant(name: &'static str, summary: &'static str, series: &'static [&'static str]) -> Variant {
    Variant { name, summary, series, cpus: "2", memory: 256, parameters: "", runc: false }
}

/// The plain machine, then the others.
pub const VARIANTS: &[Variant] = &[
    variant("plain", "cgroup v2 alone, two CPUs, 256 MiB", SERIES),
    variant("hybrid", "cgroup v1 controllers with the v2 hierarchy beside them", &["6.1", "6.12"]),
    variant("v1-only", "cgroup v1 alone: the agent ends with one line that says so", &["6.1"]),
    Variant {
        parameters: "lockdown=integrity",
        ..variant("integrity", "kernel lockdown, mode integrity", &["6.12"])
    },
    Variant {
        parameters: "lockdown=confidentiality",
        ..variant("confidentiality", "kernel lockdown, mode confidentiality", &["6.1", NEWEST])
    },
    variant("no-btf", "no type information: the agent ends with one line that says so", &["6.12"]),
    Variant {
        memory: 512,
        runc: true,
        ..variant("runc", "containers of runc with limits, in the cgroups of pods", &["6.1", NEWEST])
    },
    variant("hotplug", "a CPU goes and comes under load", &["6.1", NEWEST]),
    Variant {
        parameters: "preempt=full",
        ..variant("preempt", "the kernel is preempted wherever it can be", &["6.1", NEWEST])
    },
    Variant {
        cpus: "4",
        parameters: "maxcpus=1",
        ..variant("maxcpus", "four possible CPUs, one online; others come later, with gaps", &["6.12"])
    },
    Variant { cpus: "1", ..variant("one-cpu", "a single CPU", &["6.12"]) },
    Variant { cpus: "4", ..variant("four-cpus", "four CPUs", &["6.12"]) },
    // Since Linux 6.9 the parameter makes them fewer only.
    Variant {
        memory: 512,
        parameters: "possible_cpus=64",
        ..variant("64-possible", "two CPUs online of 64 possible ones", &["6.1"])
    },
    Variant {
        memory: 1024,
        parameters: "possible_cpus=512",
        ..variant("512-possible", "two CPUs online of 512 possible ones", &["6.1"])
    },
    Variant { memory: 128, ..variant("small", "128 MiB of memory", &["6.1"]) },
];
