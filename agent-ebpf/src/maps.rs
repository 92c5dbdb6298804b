//! The maps, sized by the agent at load. The sizes here are minimums that only let the object load as it is.
#[cfg(not(feature = "task_table"))]
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, Queue, RingBuf};
use aya_ebpf::macros::btf_map;
use kernmeter_abi::task::TaskState;
use kernmeter_abi::ways::WAYS;
use kernmeter_abi::{
    CgroupRef, CpuSince, Holdings, Losses, LowWater, PrivateLeft, SLOT_CHUNK, SLOT_CHUNKS, SYSCALL_CHUNK,
    SYSCALL_CHUNKS, SlotInfo, SlotRow, SyscallRow, Totals,
};

/// Rows as the kernel is told of them. From 5.15 to 6.2 it takes no chunk whose type of values it knows as a struct for one of a
/// chunk that was made without types, as the agent makes them: `bpf_map_meta_equal` compares where it looked for timers.
type SlotCells = [u64; size_of::<SlotRow>() / 8];
type SyscallCells = [u64; size_of::<SyscallRow>() / 8];

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// For insertions: only where the key has no value yet.
pub const NOEXIST: u64 = BPF_NOEXIST as u64;

/// cgroup id -> slot. Written by the cgroup hooks and by the agent's scans.
#[btf_map]
pub static CGROUPS: HashMap<u64, CgroupRef, 16> = HashMap::new();
/// Slots nobody uses. Filled by the agent, emptied by `cgroup_mkdir`.
#[btf_map]
pub static SLOT_FREE: Queue<u32, 16> = Queue::new();
/// What each slot stands for.
#[btf_map]
pub static SLOTS: Array<SlotInfo, 16, MMAPABLE> = Array::new();
/// `[account]`, then the pool: what was taken. Written by the programs alone, atomically.
#[btf_map]
pub static TAKEN: Array<Holdings, 16, MMAPABLE> = Array::new();
/// `[account]`, then the pool: what was given back, or to the pool at the start. Written by the agent alone.
#[btf_map]
pub static GIVEN: Array<Holdings, 16, MMAPABLE> = Array::new();
/// Below how many free ones the agent is woken. Written by the agent alone.
#[btf_map]
pub static LOW_WATER: Array<LowWater, 1, MMAPABLE> = Array::new();
/// What wakes the agent; empty messages.
#[btf_map]
pub static WAKE: RingBuf<u64, 4096> = RingBuf::new();
/// `[chunk][row]` -> counters: of each slot by its number, shared; in the second half, private ones.
#[btf_map]
pub static SLOT_ROWS: ArrayOfMaps<
    Array<SlotCells, { SLOT_CHUNK as usize }, MMAPABLE>,
    { SLOT_CHUNKS as usize },
> = ArrayOfMaps::new();
/// `slot << 16 | syscall key` -> syscall row.
#[btf_map]
pub static SYS_INDEX: HashMap<u32, u32, 16> = HashMap::new();
/// What found no room in [`SYS_INDEX`]: made when there are more rows than that has entries.
#[btf_map]
pub static SYS_INDEX_MORE: ArrayOfMaps<HashMap<u32, u32, 16>, 1> = ArrayOfMaps::new();
/// Syscall rows nobody uses.
#[btf_map]
pub static SYS_FREE: Queue<u32, 16> = Queue::new();
/// `[chunk][row]` -> counters, shared; in the second half, private.
#[btf_map]
pub static SYS_ROWS: ArrayOfMaps<
    Array<SyscallCells, { SYSCALL_CHUNK as usize }, MMAPABLE>,
    { SYSCALL_CHUNKS as usize },
> = ArrayOfMaps::new();
/// `[row]` -> a shared row's key, with `KEY_USED` set, or 0.
#[btf_map]
pub static SYS_KEYS: Array<u64, 16, MMAPABLE> = Array::new();

/// `[cpu][set]` -> the words by which a CPU finds its private rows: see [`kernmeter_abi::ways`].
#[btf_map]
pub static SETS: Array<[u64; WAYS], 1, MMAPABLE> = Array::new();
/// Private syscall rows nobody uses.
#[btf_map]
pub static SYS_PRIVATE: Queue<u32, 16> = Queue::new();
/// Private slot rows nobody uses.
#[btf_map]
pub static SLOT_PRIVATE: Queue<u32, 16> = Queue::new();
/// How many private rows are left: nobody takes the queues' locks in vain.
#[btf_map]
pub static PRIVATE_LEFT: Array<PrivateLeft, 1, MMAPABLE> = Array::new();

/// `slot << 32 | syscall key << 16 | errno` -> errno row.
#[btf_map]
pub static ERR_INDEX: HashMap<u64, u32, 16> = HashMap::new();
/// Errno rows nobody uses.
#[btf_map]
pub static ERR_FREE: Queue<u32, 16> = Queue::new();
/// `[row]` -> the row's key, with `KEY_USED` set, or 0.
#[btf_map]
pub static ERR_KEYS: Array<u64, 16, MMAPABLE> = Array::new();
/// `[shard][row]` counts of errors.
#[btf_map]
pub static ERR_ROWS: Array<u64, 16, MMAPABLE> = Array::new();

/// `[cpu]` -> the independent totals. Not per-CPU arrays, as the agent reads these as memory: see [`crate::edit`].
#[btf_map]
pub static TOTALS: Array<Totals, 1, MMAPABLE> = Array::new();
/// `[cpu]` -> what was lost, by reason.
#[btf_map]
pub static LOSSES: Array<Losses, 1, MMAPABLE> = Array::new();
/// `[cpu]` -> since when its task is not accounted, and whether it idles. Not a per-CPU array: the agent reads it as memory, and
/// another CPU clears the entry of one that was offline.
#[btf_map]
pub static CPU_SINCE: Array<CpuSince, 1, MMAPABLE> = Array::new();
/// Room to read a name into: too large for the stack.
#[btf_map]
pub static SCRATCH: PerCpuArray<SlotInfo, 1> = PerCpuArray::new();

#[cfg(not(feature = "task_table"))]
/// `BPF_MAP_TYPE_TASK_STORAGE`, for which aya-ebpf has no wrapper.
const BPF_MAP_TYPE_TASK_STORAGE: usize = 29;

#[cfg(not(feature = "task_table"))]
/// A BTF map definition of task storage: the kernel reads the sizes from the pointee types.
#[repr(C)]
pub struct TaskStorage {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE],
    key: *const i32,
    value: *const TaskState,
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
    max_entries: *const [i32; 0],
}

#[cfg(not(feature = "task_table"))]
// SAFETY: a map definition is never read or written by programs: only its address is used, which the loader replaces.
unsafe impl Sync for TaskStorage {}

#[cfg(not(feature = "task_table"))]
/// State of each task, created with the task and freed by the kernel when it is gone.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub static TASKS: TaskStorage = TaskStorage {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    map_flags: core::ptr::null(),
    max_entries: core::ptr::null(),
};

/// Address of a task -> its state. Preallocated; entries go when the task has run for the last time.
#[cfg(feature = "task_table")]
#[btf_map]
pub static TASKS: HashMap<u64, TaskState, 16> = HashMap::new();
