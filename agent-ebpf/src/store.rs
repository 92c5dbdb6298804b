//! In: a task; out: where its state is kept: in the task's own storage, or in a table by its address. Knows no slots.
#[cfg(not(feature = "task_table"))]
pub use storage::{create, current, end, exchange_slot, find, left_behind, origin, take_off};
#[cfg(feature = "task_table")]
pub use table::{create, current, end, exchange_slot, find, left_behind, origin, take_off};

/// States in task storage, and tasks as BTF pointers.
#[cfg(not(feature = "task_table"))]
mod storage {
    use aya_ebpf::bindings::BPF_LOCAL_STORAGE_GET_F_CREATE;
    use aya_ebpf::helpers::generated::{
        bpf_get_current_task_btf, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_task_storage_get,
    };
    use kernmeter_abi::task::{ROW_NONE, ROW_OVERFLOW, TaskState};

    use crate::kernel::Task;
    use crate::maps::TASKS;

    /// Bits of an origin that are the CPU's number.
    const CPU_BITS: u32 = 14;

    /// The current task.
    #[inline(always)]
    pub fn current() -> Task {
        // SAFETY: the helper takes nothing; it returns a BTF pointer.
        Task(unsafe { bpf_get_current_task_btf() })
    }

    #[inline(always)]
    fn get<'a>(task: Task, value: *const TaskState, flags: u64) -> Option<&'a mut TaskState> {
        // SAFETY: the map definition is a task storage of `TaskState`, the value null or one, and the task a trusted BTF
        // pointer.
        let state = unsafe {
            bpf_task_storage_get((&raw const TASKS).cast_mut().cast(), task.0, value.cast_mut().cast(), flags)
        };
        // SAFETY: the kernel returns null or a value of the map's value type that lives as long as the task.
        unsafe { state.cast::<TaskState>().as_mut() }
    }

    /// The state of a task. Never allocates: safe under the run-queue lock.
    #[inline(always)]
    pub fn find<'a>(task: Task) -> Option<&'a mut TaskState> {
        get(task, core::ptr::null(), 0).filter(|state| state.flags & TaskState::BOUND != 0)
    }

    /// No two states of one task have the same: they are made at different times or on different CPUs.
    #[inline(always)]
    pub fn origin(_: Task) -> u64 {
        // SAFETY: both helpers take nothing and only return a number.
        unsafe { (bpf_ktime_get_ns() << CPU_BITS) | u64::from(bpf_get_smp_processor_id()) }
    }

    /// Adds a state to a task that has none. Returns whether this one was added, and the task's state unless it has ended
    /// or there is no memory for one.
    #[inline(always)]
    pub fn create<'a>(task: Task, state: &TaskState) -> (bool, Option<&'a mut TaskState>) {
        let added = get(task, state, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE));
        // Refused if another CPU adds one at this moment: then that one is there now.
        let Some(found) = added.or_else(|| get(task, core::ptr::null(), 0)) else { return (false, None) };
        (found.origin == state.origin, (found.flags & TaskState::BOUND != 0).then_some(found))
    }

    /// Exchanges the slot that a task is bound to; returns the one before. Of those who do so at the same time each gets another.
    #[inline(always)]
    pub fn exchange_slot(state: &mut TaskState, slot: u32) -> u32 {
        // SAFETY: an aligned field of a map value.
        unsafe {
            core::intrinsics::atomic_xchg::<u32, { core::intrinsics::AtomicOrdering::SeqCst }>(
                &raw mut state.slot,
                slot,
            )
        }
    }

    /// Writes a new value where the old one still is; whether it was.
    #[inline(always)]
    fn replace(field: &mut u32, old: u32, new: u32) -> bool {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: an aligned field of a map value.
        unsafe { core::intrinsics::atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(field, old, new).1 }
    }

    /// Binds a task that is in a call to another slot, where the call has no row. False if it has left the old one by itself.
    #[inline(always)]
    pub fn take_off(state: &mut TaskState, old: u32, new: u32) -> bool {
        // The row first: it goes with the slot.
        let row = state.row;
        if row != ROW_NONE {
            replace(&mut state.row, row, ROW_OVERFLOW);
        }
        replace(&mut state.slot, old, new)
    }

    /// Ends a state: nobody finds it any more. The kernel frees it with the task. True for one caller.
    #[inline(always)]
    pub fn end(state: &mut TaskState, _: Task) -> bool {
        // SAFETY: an aligned field of a map value.
        let before = unsafe {
            core::intrinsics::atomic_xchg::<u32, { core::intrinsics::AtomicOrdering::SeqCst }>(
                &raw mut state.flags,
                0,
            )
        };
        before & TaskState::BOUND != 0
    }

    /// Nothing: storage goes with its task.
    #[inline(always)]
    pub fn left_behind<'a>(_: Task) -> Option<&'a mut TaskState> {
        None
    }
}

/// States in a table, and tasks as plain addresses. A task's entry goes at its last switch; should that go unseen, the next
/// task at the same address starts afresh.
#[cfg(feature = "task_table")]
mod table {
    use aya_ebpf::helpers::generated::bpf_get_current_task;
    use kernmeter_abi::task::TaskState;

    use crate::kernel::Task;
    use crate::maps::{NOEXIST, TASKS};

    /// The current task.
    #[inline(always)]
    pub fn current() -> Task {
        // SAFETY: the helper takes nothing; it returns an address that is only read by `bpf_probe_read_kernel`.
        Task(unsafe { bpf_get_current_task() } as *mut _)
    }

    /// The state of a task. Never allocates: safe under the run-queue lock.
    #[inline(always)]
    pub fn find<'a>(task: Task) -> Option<&'a mut TaskState> {
        // SAFETY: a live map value: its entry is removed only after the task's last switch.
        TASKS.get_ptr_mut(task.0 as u64).map(|state| unsafe { &mut *state })
    }

    /// The task's id: an address is used again.
    #[inline(always)]
    pub fn origin(task: Task) -> u64 {
        u64::from(task.pid())
    }

    /// Adds a state for a task that has none. Returns whether this one was added, and the task's state unless it has ended
    /// or the table is full.
    #[inline(always)]
    pub fn create<'a>(task: Task, state: &TaskState) -> (bool, Option<&'a mut TaskState>) {
        let added = TASKS.insert(task.0 as u64, state, NOEXIST).is_ok();
        (added, find(task))
    }

    /// Changes the slot that a task is bound to; returns the one before.
    #[inline(always)]
    pub fn exchange_slot(state: &mut TaskState, slot: u32) -> u32 {
        core::mem::replace(&mut state.slot, slot)
    }

    /// Nothing: these kernels have no instruction for it.
    #[inline(always)]
    pub fn take_off(_: &mut TaskState, _: u32, _: u32) -> bool {
        false
    }

    /// Removes a task's entry. True for one caller.
    #[inline(always)]
    pub fn end(_: &mut TaskState, task: Task) -> bool {
        TASKS.remove(task.0 as u64).is_ok()
    }

    /// The state of a task that was at this address before, and whose last switch went unseen.
    #[inline(always)]
    pub fn left_behind<'a>(task: Task) -> Option<&'a mut TaskState> {
        find(task).filter(|state| state.origin != origin(task))
    }
}
