//! In: the eBPF object, sizes, constants; out: programs in the kernel and handles to its maps. Knows no counts.

use std::os::fd::BorrowedFd;

use aya::maps::{Map, MapData};
use aya::programs::{Iter, RawTracePoint, RawTracePointRunOptions};
use aya::{Btf, Ebpf, EbpfLoader, TestRun as _};
use aya_log::EbpfLogger;

pub mod chunks;
pub mod cpus;
mod edit;
pub mod event;
pub mod hook;
pub mod maps;
pub mod offsets;
pub mod region;
pub mod rejection;
pub mod size;
mod wake;

pub use self::edit::{Queue, Way};
pub use self::hook::{HookState, HookStatus};
use self::hook::{Link, MissingProgram, load_hook, program};
use self::maps::MapAccessError;
use self::offsets::Constants;
use self::rejection::Rejection;
use self::size::Plan;
pub use self::wake::Wake;
use crate::catalog::Probe;
use crate::config::AttachMode;
use crate::host::online_cpus;

/// The object, built for the BPF target and embedded.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KERNMETER_EBPF_OBJECT"));
/// The same programs for kernels that keep no state of tasks for tracing programs: they keep it in a table.
static TABLE_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KERNMETER_EBPF_TABLE_OBJECT"));

/// The object for a kernel with or without task storage.
pub fn object(task_storage: bool) -> &'static [u8] {
    if task_storage { OBJECT } else { TABLE_OBJECT }
}

/// Program that accounts the running task of a CPU; run by the agent, never attached.
const FLUSH: &str = "flush_cpu";
/// Program that sets up the state of existing tasks, and takes them off slots.
const ADOPT: &str = "adopt_task";

/// Why nothing could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel offers no BTF.
    #[error(
        "cannot read the kernel's type information: {0}; kernmeter needs a kernel with CONFIG_DEBUG_INFO_BTF (Linux 5.10 \
         or newer; most distributions have it) and /sys/kernel/btf/vmlinux readable"
    )]
    NoBtf(String),
    /// The kernel refused a map or the object.
    #[error("cannot create the kernel maps: {0}; {advice}", advice = advice(.0))]
    Refused(Rejection),
    /// The kernel refused access to a map.
    #[error(transparent)]
    Map(#[from] MapAccessError),
    /// The object lacks a map or program: a build mistake.
    #[error("the embedded eBPF object has no `{0}`; rebuild it with `cargo xtask build-ebpf`")]
    Missing(&'static str),
}

impl From<MissingProgram> for LoadError {
    fn from(missing: MissingProgram) -> Self {
        Self::Missing(missing.0)
    }
}

/// What to do if the kernel refuses the maps.
fn advice(rejection: &Rejection) -> &'static str {
    if rejection.is_forbidden() {
        "run as root or with CAP_BPF and CAP_PERFMON (before Linux 5.11 also CAP_SYS_RESOURCE or an unlimited RLIMIT_MEMLOCK) \
         and with a seccomp profile that allows bpf(2), and see `kernmeter doctor`"
    } else if rejection.is_out_of_memory() {
        "lower `kernel.memory_budget`, or raise the memory limit of the agent's cgroup"
    } else {
        "see `kernmeter doctor`"
    }
}

/// The programs and maps in the kernel. Dropping it removes them.
pub struct Kernel {
    ebpf: Ebpf,
    links: Vec<Link>,
    hooks: Vec<HookStatus>,
    plan: Plan,
    can_flush: bool,
    sizes: Vec<MapSize>,
}

/// What the kernel counts of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    /// Its name.
    pub program: &'static str,
    /// Nanoseconds it ran; 0 while `kernel.bpf_stats_enabled` is off.
    pub run_ns: u64,
    /// Times it ran; 0 while `kernel.bpf_stats_enabled` is off.
    pub runs: u64,
    /// Events it missed because it was already running on that CPU (counted since Linux 5.12).
    pub missed: u64,
}

/// The size of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapSize {
    /// Its name.
    pub name: String,
    /// Entries it has room for.
    pub capacity: u32,
    /// Kernel memory, bytes; `None` if the kernel does not tell.
    pub memory_bytes: Option<u64>,
}

impl Kernel {
    /// Creates the maps and loads every program of these probes that the kernel accepts. Attaches nothing. A hook whose
    /// program is refused falls back to a variant of it.
    ///
    /// # Errors
    /// Maps or the object as a whole were refused. A refused program is not an error: see [`Kernel::hooks`].
    pub fn load(
        plan: Plan,
        constants: &Constants,
        mode: AttachMode,
        probes: &[&'static Probe],
    ) -> Result<Kernel, LoadError> {
        let mut ebpf = load_object(&plan, constants)?;
        let btf = Btf::from_sys_fs().map_err(|error| LoadError::NoBtf(error.to_string()))?;
        let mut hooks = Vec::new();
        for probe in probes {
            for hook in probe.hooks {
                hooks.push(load_hook(&mut ebpf, &btf, probe, hook, mode, constants)?);
            }
        }
        let can_flush = load_flush(&mut ebpf)?;
        load_adopt(&mut ebpf, &btf)?;
        let edit = program::<RawTracePoint>(&mut ebpf, edit::PROGRAM)?;
        edit.load().map_err(|error| LoadError::Refused(Rejection::of(&error)))?;
        let sizes = map_sizes(&ebpf);
        Ok(Kernel { ebpf, links: Vec::new(), hooks, plan, can_flush, sizes })
    }

    /// Attaches the loaded programs of a probe. A hook that cannot attach keeps its reason.
    pub fn attach(&mut self, probe: &Probe) {
        for status in self.hooks.iter_mut().filter(|status| status.probe.name == probe.name) {
            self.links.extend(status.attach(&mut self.ebpf));
        }
    }

    /// What each hook's state is, in attach order.
    pub fn hooks(&self) -> &[HookStatus] {
        &self.hooks
    }

    /// The sizes the maps were made with.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Sets up the state of each task that has none, and takes tasks off slots that are overdue. Of those that the agent's pid
    /// namespace shows.
    ///
    /// # Errors
    /// The kernel has no task iterator, or refused it: tasks are then met when they first make a system call, and leave a slot when
    /// their call ends.
    pub fn visit_tasks(&mut self) -> Result<(), Rejection> {
        let Ok(adopt) = program::<Iter>(&mut self.ebpf, ADOPT) else { return Ok(()) };
        let link = adopt.attach().and_then(|id| adopt.take_link(id))?;
        let mut file = link.into_file().map_err(|error| Rejection::of(&error))?;
        std::io::copy(&mut file, &mut std::io::sink()).map_err(|error| Rejection::of(&error))?;
        Ok(())
    }

    /// Accounts the running task of each CPU up to now, but of those that are said to idle: an interrupt would wake them. CPUs
    /// that are offline or vanish are skipped: they run nothing. Does nothing while nothing is attached: without switches nobody
    /// knows since when a task has been running. Returns how many CPUs it interrupted.
    pub fn flush(&mut self, is_idle: impl Fn(u32) -> bool) -> usize {
        if !self.can_flush || !self.is_attached() {
            return 0;
        }
        let Ok(flush) = program::<RawTracePoint>(&mut self.ebpf, FLUSH) else { return 0 };
        let cpus: Vec<u32> = online_cpus().into_iter().filter(|cpu| !is_idle(*cpu)).collect();
        for &cpu in &cpus {
            let options = RawTracePointRunOptions { cpu: Some(cpu), ..RawTracePointRunOptions::new() };
            if let Err(error) = flush.test_run(options) {
                let reason = Rejection::of(&error);
                tracing::debug!(cpu, %reason, "cannot account the running task of a cpu");
            }
        }
        cpus.len()
    }

    /// Whether programs are attached.
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Detaches every program. Programs that are running finish; none starts any more.
    pub fn detach(&mut self) {
        // Last in, first out: an entry that nobody sees any more must not leave an exit behind.
        while self.links.pop().is_some() {}
    }

    /// The descriptor of an array map, for reading it as memory.
    ///
    /// # Errors
    /// The object has no such map.
    pub fn array_fd(&self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        use std::os::fd::AsFd as _;
        match self.ebpf.map(name) {
            Some(Map::Array(data)) => Ok(data.fd().as_fd()),
            _ => Err(LoadError::Missing(name)),
        }
    }

    /// Every map with its size. The memory is what the kernel charges; of a table that grows, that of its chunks so far.
    pub fn map_sizes(&self) -> &[MapSize] {
        &self.sizes
    }

    /// Takes over the kernel side's rare messages, to be carried into the agent's own log.
    ///
    /// # Errors
    /// The object has no log, or it was taken already.
    pub fn take_log(&mut self) -> Result<KernelLog, Rejection> {
        EbpfLogger::init(&mut self.ebpf).map(KernelLog).map_err(|error| Rejection::of(&error))
    }

    /// What the kernel counts of each program in use, from its descriptor.
    pub fn program_stats(&self) -> Vec<ProgramStats> {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        let stats = |status: &HookStatus| {
            let fd = self.ebpf.program(status.program)?.fd().ok()?;
            let text = fdinfo(fd.as_fd().as_raw_fd())?;
            let field = |name: &str| number(&text, name).unwrap_or_default();
            Some(ProgramStats {
                program: status.program,
                run_ns: field("run_time_ns:"),
                runs: field("run_cnt:"),
                missed: field("recursion_misses:"),
            })
        };
        self.hooks.iter().filter_map(stats).collect()
    }
}

/// The kernel side's rare messages.
pub struct KernelLog(EbpfLogger<&'static dyn ::log::Log>);

impl KernelLog {
    /// Writes what came since the last call into the agent's log.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// Creates the maps, sized by the plan, and sets the constants of the programs.
fn load_object(plan: &Plan, constants: &Constants) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    // The programs carry no relocations against kernel types: offsets come from `constants`. Letting go of the types here
    // keeps only one copy of them, some 20 MiB, in memory at a time.
    loader.btf(None).allow_unsupported_maps();
    for (name, value) in &constants.values {
        loader.override_global(name, value, true);
    }
    let shard_mask = plan.errno_shards - 1;
    let shared = u32::from(plan.errnos_are_shared());
    let set_mask = plan.sets - 1;
    let alone = u32::from(plan.is_alone());
    loader
        .override_global("N_SLOTS", &plan.slots, true)
        .override_global("N_ERR_ROWS", &plan.errno_rows, true)
        .override_global("SHARD_MASK", &shard_mask, true)
        .override_global("SHARED", &shared, true)
        .override_global("SET_MASK", &set_mask, true)
        .override_global("ALONE", &alone, true);
    for (map, entries) in plan.map_entries() {
        loader.map_max_entries(map, entries);
    }
    if !constants.task_storage {
        loader.map_max_entries("TASKS", plan.tasks);
    }
    loader.load(object(constants.task_storage)).map_err(|error| LoadError::Refused(Rejection::of(&error)))
}

/// Loads the program that accounts running tasks; false if the kernel refuses it.
fn load_flush(ebpf: &mut Ebpf) -> Result<bool, LoadError> {
    let loaded = program::<RawTracePoint>(ebpf, FLUSH)?.load();
    if let Err(error) = &loaded {
        let reason = Rejection::of(error);
        tracing::warn!(%reason, "running tasks are counted only when they switch");
    }
    Ok(loaded.is_ok())
}

/// Loads the program that sets up the state of existing tasks.
fn load_adopt(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), LoadError> {
    if let Err(error) = program::<Iter>(ebpf, ADOPT)?.load("task", btf) {
        let reason = Rejection::of(&error);
        tracing::warn!(%reason, "tasks older than the agent are met when they first run");
    }
    Ok(())
}

/// Every map with its size, by name.
fn map_sizes(ebpf: &Ebpf) -> Vec<MapSize> {
    let size = |(name, map): (&str, &Map)| {
        let data = data_of(map)?;
        let capacity = data.info().ok()?.max_entries();
        Some(MapSize { name: name.to_owned(), capacity, memory_bytes: memory_of(data) })
    };
    let mut sizes: Vec<_> = ebpf.maps().filter_map(size).collect();
    sizes.sort();
    sizes
}

fn data_of(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::Queue(data)
        | Map::ArrayOfMaps(data)
        | Map::RingBuf(data)
        | Map::Unsupported(data) => Some(data),
        _ => None,
    }
}

/// `memlock` of a map's descriptor: bytes of kernel memory it holds.
fn memory_of(data: &MapData) -> Option<u64> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    number(&fdinfo(data.fd().as_fd().as_raw_fd())?, "memlock:")
}

/// What the kernel tells of one of our descriptors.
fn fdinfo(fd: i32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()
}

fn number(fdinfo: &str, name: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
