//! In: pointers the kernel hands to programs; out: the few fields we need. Knows no offset of its own: the agent sets them
//! from the running kernel's BTF before loading.
use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::bpf_get_smp_processor_id;

macro_rules! offsets {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        $($(#[$meta])* #[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    OFF_TASK_PID,
    OFF_TASK_TGID,
    OFF_TASK_FLAGS,
    OFF_TASK_STATE,
    OFF_TASK_EXIT,
    /// `task_struct.se.sum_exec_runtime`.
    OFF_TASK_RUNTIME,
    OFF_TASK_CGROUPS,
    /// `task_struct.thread_info.status` (x86).
    OFF_TASK_STATUS,
    OFF_TASK_SIGNAL,
    OFF_TASK_PTRACE,
    /// `task_struct.seccomp.mode`; 0 where the kernel has no seccomp.
    OFF_TASK_SECCOMP,
    /// `pt_regs.orig_ax`.
    OFF_REGS_NR,
    OFF_SIGNAL_EXEC,
    OFF_CSSSET_DFL,
    OFF_CGROUP_KN,
    OFF_CGROUP_ROOT,
    /// `cgroup.self.parent`.
    OFF_CGROUP_PAR,
    OFF_CSS_CGROUP,
    OFF_ROOT_HIERID,
    OFF_KN_ID,
    OFF_KN_NAME,
}

/// Slots.
#[unsafe(no_mangle)]
static N_SLOTS: Global<u32> = Global::new(16);
/// Errno rows per shard.
#[unsafe(no_mangle)]
static N_ERR_ROWS: Global<u32> = Global::new(16);
/// Shards of errno rows minus one; shards are a power of two.
#[unsafe(no_mangle)]
static SHARD_MASK: Global<u32> = Global::new(0);
/// 1 where several CPUs share a shard of errno rows, so that every add must be atomic.
#[unsafe(no_mangle)]
static SHARED: Global<u32> = Global::new(0);
/// Sets of each CPU minus one; sets are a power of two.
#[unsafe(no_mangle)]
static SET_MASK: Global<u32> = Global::new(0);
/// 1 where there is one CPU alone, which shares nothing.
#[unsafe(no_mangle)]
static ALONE: Global<u32> = Global::new(0);
/// 1 where `sched_switch` passes `prev_state` (5.18 and newer).
#[unsafe(no_mangle)]
static HAS_PREV_STATE: Global<u32> = Global::new(1);
/// 1 where `sched_process_exit` passes `group_dead`.
#[unsafe(no_mangle)]
static HAS_GROUP_DEAD: Global<u32> = Global::new(1);
/// 1 where `bpf_probe_read_kernel` may be used (not under lockdown=confidentiality).
#[unsafe(no_mangle)]
static HAS_PROBE_READ: Global<u32> = Global::new(1);

macro_rules! constants {
    ($($(#[$meta:meta])* $function:ident = $name:ident: $ty:ty,)*) => {
        $($(#[$meta])* #[inline(always)] pub fn $function() -> $ty { $name.load() as $ty })*
    };
}

constants! {
    slots = N_SLOTS: u32,
    errno_rows = N_ERR_ROWS: u32,
    set_mask = SET_MASK: u32,
}

/// Whether several CPUs write one shard of errno rows.
#[inline(always)]
pub fn shared() -> bool {
    SHARED.load() != 0
}

/// Whether there is one CPU alone.
#[inline(always)]
pub fn alone() -> bool {
    ALONE.load() != 0
}

/// Whether `sched_switch` has a fourth argument.
#[inline(always)]
pub fn has_prev_state() -> bool {
    HAS_PREV_STATE.load() != 0
}

/// Whether `sched_process_exit` has a second argument.
#[inline(always)]
pub fn has_group_dead() -> bool {
    HAS_GROUP_DEAD.load() != 0
}

/// Whether names can be read.
#[inline(always)]
pub fn has_probe_read() -> bool {
    HAS_PROBE_READ.load() != 0
}

/// The number of this CPU.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: the helper takes nothing and only returns a number.
    unsafe { bpf_get_smp_processor_id() }
}

/// The shard of errno rows this CPU writes.
#[inline(always)]
pub fn shard() -> u32 {
    cpu() & SHARD_MASK.load()
}

/// Reads a field at an offset that the verifier knows as a constant.
///
/// # Safety
/// `base` must be a BTF pointer (argument of a `tp_btf` program, or loaded from one), so that the kernel checks the
/// access at load time and handles a fault at run time.
#[cfg(not(feature = "task_table"))]
#[inline(always)]
unsafe fn field<T: Copy>(base: *const c_void, offset: &Global<u32>) -> T {
    // SAFETY: the verifier proves that offset and size are a field of the pointed-to type.
    unsafe { core::ptr::read_volatile(base.byte_add(offset.load() as usize).cast::<T>()) }
}

/// Reads a field by address: 0 where there is none.
///
/// # Safety
/// None: the helper copes with any address. Declared as its twin is.
#[cfg(feature = "task_table")]
#[inline(always)]
unsafe fn field<T: Copy>(base: *const c_void, offset: &Global<u32>) -> T {
    field_by_address(base, offset)
}

/// Reads a field by address: 0 where there is none. Not under lockdown=confidentiality.
#[inline(always)]
fn field_by_address<T: Copy>(base: *const c_void, offset: &Global<u32>) -> T {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: the destination is as large as said; every `T` here is a number or an address, for which all bytes are valid.
    unsafe {
        let source = base.byte_add(offset.load() as usize);
        aya_ebpf::helpers::generated::bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            source,
        );
        value.assume_init()
    }
}

/// `PF_KTHREAD`, `PF_IO_WORKER` and, since Linux 6.4, `PF_USER_WORKER` (vhost's) of `include/linux/sched.h`. What the last bit
/// was until 5.17 is set in a task only while it loads a module.
const PF_WORKER: u32 = 0x0020_0000 | 0x0000_0010 | 0x0000_4000;
/// `TS_COMPAT` of `arch/x86/include/asm/thread_info.h`: in a 32-bit syscall.
const TS_COMPAT: u32 = 0x0002;

/// A task, as an argument of a hook or the current one.
#[derive(Clone, Copy)]
pub struct Task(pub *mut task_struct);

impl Task {
    #[inline(always)]
    fn read<T: Copy>(self, offset: &Global<u32>) -> T {
        // SAFETY: a `Task` is only made from BTF pointers.
        unsafe { field(self.0.cast_const().cast(), offset) }
    }

    /// Thread id; 0 for the idle tasks.
    #[inline(always)]
    pub fn pid(self) -> u32 {
        self.read(&OFF_TASK_PID)
    }

    /// Process id.
    #[inline(always)]
    pub fn tgid(self) -> u32 {
        self.read(&OFF_TASK_TGID)
    }

    /// Whether it never runs a program: a kernel thread, or a worker that the kernel made for a process.
    #[inline(always)]
    pub fn is_worker(self) -> bool {
        self.read::<u32>(&OFF_TASK_FLAGS) & PF_WORKER != 0
    }

    /// Scheduler state: 0 when runnable.
    #[inline(always)]
    pub fn state(self) -> u32 {
        self.read(&OFF_TASK_STATE)
    }

    /// Whether it is a zombie or gone: it never runs again.
    #[inline(always)]
    pub fn is_dead(self) -> bool {
        self.read::<u32>(&OFF_TASK_EXIT) != 0
    }

    /// Nanoseconds it has run, as the scheduler counts them: up to now in `sched_switch`, up to the last tick elsewhere.
    #[inline(always)]
    pub fn runtime(self) -> u64 {
        self.read(&OFF_TASK_RUNTIME)
    }

    /// Whether the task is in a 32-bit syscall.
    #[inline(always)]
    pub fn in_compat_syscall(self) -> bool {
        self.read::<u32>(&OFF_TASK_STATUS) & TS_COMPAT != 0
    }

    /// Whether another thread of the process is executing a program, and so ends this one.
    #[inline(always)]
    pub fn replaced_by_exec(self) -> bool {
        let signal: *const c_void = self.read(&OFF_TASK_SIGNAL);
        // SAFETY: loaded from a BTF pointer, hence one itself.
        unsafe { field::<u64>(signal, &OFF_SIGNAL_EXEC) != 0 }
    }

    /// Whether somebody may answer a call before it is entered: a seccomp filter, or a tracer.
    #[inline(always)]
    pub fn may_be_answered(self) -> bool {
        (OFF_TASK_SECCOMP.load() != 0 && self.read::<u32>(&OFF_TASK_SECCOMP) != 0)
            || self.read::<u32>(&OFF_TASK_PTRACE) != 0
    }

    /// Address of the set of cgroups the task is in: see [`crate::moves`].
    #[inline(always)]
    pub fn cgroup_set(self) -> u64 {
        self.read(&OFF_TASK_CGROUPS)
    }

    /// The task's cgroup in the default hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> Cgroup {
        let set: *const c_void = self.read(&OFF_TASK_CGROUPS);
        // SAFETY: the pointer is loaded from a BTF pointer, hence one itself.
        Cgroup(unsafe { field(set, &OFF_CSSSET_DFL) })
    }
}

/// The registers with which a task came into the kernel, as `sys_exit` passes them.
#[derive(Clone, Copy)]
pub struct Registers(pub *const c_void);

impl Registers {
    /// The number of the call, as `sys_enter` would have passed it.
    #[inline(always)]
    pub fn call_number(self) -> i64 {
        // SAFETY: the argument of a `tp_btf` program.
        unsafe { field::<i32>(self.0, &OFF_REGS_NR).into() }
    }

    /// The same where the argument is a plain address; -1, of which no call has the number, where memory cannot be read.
    #[inline(always)]
    pub fn call_number_by_address(self) -> i64 {
        if has_probe_read() { field_by_address::<i32>(self.0, &OFF_REGS_NR).into() } else { -1 }
    }
}

/// A cgroup, as an argument of a hook or loaded from a BTF pointer.
#[derive(Clone, Copy)]
pub struct Cgroup(pub *const c_void);

impl Cgroup {
    #[inline(always)]
    fn node(self) -> *const c_void {
        // SAFETY: a `Cgroup` is only made from BTF pointers.
        unsafe { field(self.0, &OFF_CGROUP_KN) }
    }

    /// cgroup id: the number of its kernfs node.
    #[inline(always)]
    pub fn id(self) -> u64 {
        // SAFETY: the node is loaded from a BTF pointer.
        unsafe { field(self.node(), &OFF_KN_ID) }
    }

    /// Address of the name: not a BTF pointer, to be read with `bpf_probe_read_kernel_str` only.
    #[inline(always)]
    pub fn name(self) -> *const u8 {
        // SAFETY: the node is loaded from a BTF pointer.
        unsafe { field(self.node(), &OFF_KN_NAME) }
    }

    /// Whether it belongs to the default (v2) hierarchy, whose number is 0.
    #[inline(always)]
    pub fn is_default_hierarchy(self) -> bool {
        // SAFETY: loaded from BTF pointers.
        unsafe {
            let root: *const c_void = field(self.0, &OFF_CGROUP_ROOT);
            field::<u32>(root, &OFF_ROOT_HIERID) == 0
        }
    }

    /// The parent. Of the root, one whose id is 0.
    #[inline(always)]
    pub fn parent(self) -> Cgroup {
        // SAFETY: loaded from BTF pointers.
        unsafe {
            let css: *const c_void = field(self.0, &OFF_CGROUP_PAR);
            Cgroup(field(css, &OFF_CSS_CGROUP))
        }
    }
}
