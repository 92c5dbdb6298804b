//! In: a task; out: its state, in task storage or in a table. Knows which slot a task is bound to and the syscall it is in.
use kernmeter_abi::SLOT_OVERFLOW;
use kernmeter_abi::task::{REMEMBERED_ROWS, ROW_NONE, ROW_OVERFLOW, TaskState};

use crate::kernel::Task;
use crate::{row, slot};

/// States in task storage, and tasks as BTF pointers.
#[cfg(not(feature = "task_table"))]
mod store {
    use aya_ebpf::bindings::BPF_LOCAL_STORAGE_GET_F_CREATE;
    use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_storage_get};
    use kernmeter_abi::task::TaskState;

    use crate::kernel::Task;
    use crate::maps::TASKS;

    /// The current task.
    #[inline(always)]
    pub fn current() -> Task {
        // SAFETY: the helper takes nothing; it returns a BTF pointer.
        Task(unsafe { bpf_get_current_task_btf() })
    }

    #[inline(always)]
    fn get<'a>(task: Task, flags: u64) -> Option<&'a mut TaskState> {
        // SAFETY: the map definition is a task storage of `TaskState`, and the task a trusted BTF pointer.
        let state = unsafe {
            bpf_task_storage_get((&raw const TASKS).cast_mut().cast(), task.0, core::ptr::null_mut(), flags)
        };
        // SAFETY: the kernel returns null or a value of the map's value type that lives as long as the task.
        unsafe { state.cast::<TaskState>().as_mut() }
    }

    /// The state of a task. Never allocates: safe under the run-queue lock.
    #[inline(always)]
    pub fn find<'a>(task: Task) -> Option<&'a mut TaskState> {
        get(task, 0)
    }

    /// The state of a task, all zero if there was none.
    #[inline(always)]
    pub fn find_or_create<'a>(task: Task) -> Option<&'a mut TaskState> {
        get(task, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE))
    }

    /// Does nothing: the kernel frees the state with the task.
    #[inline(always)]
    pub fn remove(_: Task) {}
}

/// States in a table, and tasks as plain addresses. A task's entry goes at its last switch; should that go unseen, the next
/// task at the same address starts afresh.
#[cfg(feature = "task_table")]
mod store {
    use aya_ebpf::helpers::generated::bpf_get_current_task;
    use kernmeter_abi::task::{REMEMBERED_ROWS, TaskState};

    use crate::kernel::Task;
    use crate::maps::TASKS;

    /// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
    const NOEXIST: u64 = 1;
    /// As the kernel makes it.
    const ZERO: TaskState = TaskState {
        cgroup_id: 0,
        enter_ns: 0,
        wake_ns: 0,
        off_ns: 0,
        runtime_ns: 0,
        moved_runtime_ns: 0,
        rows: [0; REMEMBERED_ROWS],
        slot: 0,
        row: 0,
        syscall: 0,
        bound: 0,
        payer: 0,
    };

    /// The current task.
    #[inline(always)]
    pub fn current() -> Task {
        // SAFETY: the helper takes nothing; it returns an address that is only read by `bpf_probe_read_kernel`.
        Task(unsafe { bpf_get_current_task() } as *mut _)
    }

    #[inline(always)]
    fn get<'a>(key: u64) -> Option<&'a mut TaskState> {
        // SAFETY: a live map value: its entry is removed only after the task's last switch.
        TASKS.get_ptr_mut(&key).map(|state| unsafe { &mut *state })
    }

    /// The state of a task. Never allocates: safe under the run-queue lock.
    #[inline(always)]
    pub fn find<'a>(task: Task) -> Option<&'a mut TaskState> {
        get(task.0 as u64)
    }

    /// The state of a task, all zero if there was none; `None` if the table is full.
    #[inline(always)]
    pub fn find_or_create<'a>(task: Task) -> Option<&'a mut TaskState> {
        let key = task.0 as u64;
        if let Some(state) = get(key) {
            return Some(state);
        }
        let _ = TASKS.insert(&key, &ZERO, NOEXIST);
        get(key)
    }

    /// The task's state goes.
    #[inline(always)]
    pub fn remove(task: Task) {
        let key = task.0 as u64;
        let _ = TASKS.remove(&key);
    }
}

pub use store::current;

/// The state of a task that was set up. Never allocates: safe under the run-queue lock.
#[inline(always)]
pub fn find<'a>(task: Task) -> Option<&'a mut TaskState> {
    store::find(task).filter(|state| state.bound != 0)
}

/// The state of a task, set up if it was not. `None` if the kernel refuses memory.
#[inline(always)]
pub fn find_or_create<'a>(task: Task) -> Option<&'a mut TaskState> {
    let state = store::find_or_create(task)?;
    if state.bound == 0 {
        state.bound = 1;
        state.row = ROW_NONE;
        state.runtime_ns = task.runtime();
        state.cgroup_id = task.cgroup_id();
        state.slot = slot::of_cgroup(state.cgroup_id);
        state.payer = state.slot as u16;
        slot::move_task(None, Some(state.slot));
    }
    Some(state)
}

/// The state of a task that was just made, whatever another task at the same address may have left.
#[inline(always)]
pub fn create<'a>(task: Task) -> Option<&'a mut TaskState> {
    store::remove(task);
    find_or_create(task)
}

/// The task is gone for good. Its state is not to be used any more.
#[inline(always)]
pub fn release(state: &TaskState, task: Task) {
    slot::move_task(Some(state.slot), None);
    store::remove(task);
}

/// The slot a task is billed to, also if it has no state.
#[inline(always)]
pub fn slot_of(task: Task) -> u32 {
    match find(task) {
        Some(state) => state.slot,
        None => slot::of_cgroup(task.cgroup_id()),
    }
}

/// Nanoseconds the task ran since it was last billed, by the scheduler's own count: without interrupts and time stolen
/// by a hypervisor, as in `/proc/PID/schedstat` and `cpu.stat`. The payer's.
#[inline(always)]
pub fn take_runtime(state: &mut TaskState, task: Task) -> u64 {
    let now = task.runtime();
    let moved = state.moved_runtime_ns;
    if moved != 0 {
        state.moved_runtime_ns = 0;
        // It may have run while it was moved: what it ran before is not its new cgroup's.
        if moved > state.runtime_ns && moved <= now {
            row::charge_cpu(state.payer.into(), moved - state.runtime_ns);
            state.runtime_ns = moved;
        }
        bind_payer(state, task);
    }
    let ran = now.wrapping_sub(state.runtime_ns);
    state.runtime_ns = now;
    ran
}

/// Lets the cgroup the task is in now pay for CPU time, in the middle of a call, too: so does the kernel. No slot is held
/// for that, as one is for the call: a dead slot outlasts two passes, and each pass binds the tasks that run.
#[inline(always)]
pub fn bind_payer(state: &mut TaskState, task: Task) {
    let cgroup_id = task.cgroup_id();
    let slot = if cgroup_id == state.cgroup_id { state.slot } else { slot::of_cgroup(cgroup_id) };
    state.payer = slot as u16;
}

/// Binds the task to the slot of the cgroup it is in now. Only to be called outside a syscall: a call is billed, with
/// its errors and all its duration and block time, to the workload that entered it.
#[inline(always)]
pub fn rebind(state: &mut TaskState, task: Task) {
    let cgroup_id = task.cgroup_id();
    // The overflow slot is looked up again each time: the agent may have found a slot for the cgroup since.
    if cgroup_id != state.cgroup_id || state.slot == SLOT_OVERFLOW {
        state.cgroup_id = cgroup_id;
        let slot = slot::of_cgroup(cgroup_id);
        if slot != state.slot {
            slot::move_task(Some(state.slot), Some(slot));
            state.slot = slot;
            // The slot that was left, and its rows, may be given to others once no task is bound to it. A bound task keeps
            // both, so that what it remembers of its own slot stays true.
            state.rows = [0; REMEMBERED_ROWS];
        }
    }
}

/// The row of a key, from memory or looked up.
#[inline(always)]
pub fn row_of(state: &mut TaskState, key: u32) -> u32 {
    let tag = (u64::from(key) + 1) << 32;
    let entry = &mut state.rows[key as usize % REMEMBERED_ROWS];
    if *entry & !0xffff_ffff == tag {
        return *entry as u32;
    }
    let row = row::find_syscall(key);
    if row < ROW_OVERFLOW {
        *entry = tag | u64::from(row);
    }
    row
}
