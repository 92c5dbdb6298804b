//! In: a task; out: its state. Knows which slot a task is bound to and the syscall it is in, not where states are kept.
//!
//! A state is found by nobody before it is complete, and each is counted in its slot once and leaves it once, whoever meets
//! the task first and whatever comes in between:
//!
//! - Those who may set up a state are the hook of new tasks, the task itself in a system call, and the iterator at the agent's
//!   start, for any task, on any CPU. The kernel adds at most one state to a task (to an address) and adds it with its
//!   contents ([`store::create`]). Whoever's state it added counts the task in its slot; the others use that state.
//! - A switch in the middle therefore finds nothing, and bills by the clock, or all. What a task had run when its state was
//!   set up is not read by whoever sets it up, who may be on another CPU: the task's first switch still bills by the clock and
//!   reads it then. So no time is billed both by the clock and by the state.
//! - A state ends at the task's last switch. The iterator may set one up that the last switch has just missed: it looks again
//!   afterwards whether the task is dead. The switch looks for the state after the task was marked as dead; the iterator
//!   looks for the mark after it has added the state; there is a full barrier between the two steps on both sides. So at
//!   least one of them sees the other's, and [`store::end`] lets exactly one of them end it.
//! - Where a new task has a state before its hook comes by, that of the iterator, the task had perhaps no cgroup yet: the hook
//!   binds it anew.
use kernmeter_abi::task::{
    CALL_NONE, MOVED_NONE, MOVED_SETTLING, REMEMBERED_ROWS, ROW_NONE, ROW_OVERFLOW, RUNTIME_UNKNOWN,
    TaskState,
};
use kernmeter_abi::{SLOT_NONE, SLOT_OVERFLOW, slot_state};

use crate::kernel::Task;
use crate::maps::SLOTS;
pub use crate::store::{current, find};
use crate::{moves, row, slot, store};

/// Makes a state for a task that had none a moment ago. Also says whether it is this one that the kernel added.
#[inline(always)]
fn set_up<'a>(task: Task, runtime_ns: u64) -> Option<(&'a mut TaskState, bool)> {
    // The number of moves first: one that comes in between is then seen.
    let (moves, cgroup_set) = (moves::count(), task.cgroup_set());
    let cgroup = task.cgroup();
    let found = slot::find(cgroup);
    let slot = found.slot;
    let state = TaskState {
        cgroup_id: cgroup.id(),
        cgroup_set,
        enter_ns: 0,
        wake_ns: 0,
        off_ns: 0,
        runtime_ns,
        moved_runtime_ns: MOVED_NONE,
        rows: [0; REMEMBERED_ROWS],
        origin: store::origin(task),
        slot,
        row: ROW_NONE,
        syscall: CALL_NONE,
        flags: TaskState::BOUND,
        payer: slot,
        borrows: found.is_borrowed.into(),
        moves,
        padding: 0,
    };
    let (ours, state) = store::create(task, &state);
    // Also if it has ended already, which took it away from the slot.
    if ours {
        slot::move_task(None, Some(slot));
    }
    Some((state?, ours))
}

/// The state of a task, set up if it was not. `None` if the kernel refuses memory.
#[inline(always)]
pub fn find_or_create<'a>(task: Task) -> Option<&'a mut TaskState> {
    match find(task) {
        Some(state) => Some(state),
        None => set_up(task, RUNTIME_UNKNOWN).map(|(state, _)| state),
    }
}

/// Sets up the state of a task that may be running, or ending, on another CPU. False if the kernel refuses memory.
#[inline(always)]
pub fn adopt(task: Task) -> bool {
    if task.is_dead() || find(task).is_some() {
        return true;
    }
    let Some((state, ours)) = set_up(task, RUNTIME_UNKNOWN) else { return task.is_dead() };
    // Counting it in its slot was an atomic addition, which is a full barrier.
    if ours && task.is_dead() {
        release(state, task);
    }
    true
}

/// The state of a task that was just made and has not run.
#[inline(always)]
pub fn create<'a>(task: Task) -> Option<&'a mut TaskState> {
    if let Some(state) = store::left_behind(task) {
        release(state, task);
    }
    let (state, ours) = set_up(task, 0)?;
    state.flags |= TaskState::COUNTED;
    if !ours {
        // The iterator was first, perhaps before the task was in its cgroup.
        state.runtime_ns = 0;
        rebind(state, task);
        state.payer = state.slot;
    }
    Some(state)
}

/// The task is gone for good. Its state is not to be used any more.
#[inline(always)]
pub fn release(state: &mut TaskState, task: Task) {
    if store::end(state, task) {
        let slot = store::exchange_slot(state, SLOT_NONE);
        slot::move_task(Some(slot), None);
    }
}

/// Takes a task off a slot that is overdue: it is in a call that it entered in a cgroup which was removed long ago. What becomes of
/// the call is the slot's of the cgroup it is in now, without a name.
#[inline(always)]
pub fn take_off_overdue(task: Task) {
    let Some(state) = find(task) else { return };
    let slot = state.slot;
    if SLOTS.get(slot).is_none_or(|info| info.state != slot_state::OVERDUE) {
        return;
    }
    let found = slot::find(task.cgroup());
    // Of its exit, its next call and this only one finds the old slot.
    if store::take_off(state, slot, found.slot) {
        slot::move_task(Some(slot), Some(found.slot));
        state.borrows = found.is_borrowed.into();
    }
}

/// The slot a task is billed to, also if it has no state.
#[inline(always)]
pub fn slot_of(task: Task) -> u32 {
    match find(task) {
        Some(state) => state.slot,
        None => slot::of_cgroup(task.cgroup()),
    }
}

/// Nanoseconds the task, which leaves its CPU, ran since it was last billed, by the scheduler's own count: without interrupts
/// and time stolen by a hypervisor, as in `/proc/PID/schedstat` and `cpu.stat`. The first time `elapsed`, by the clock. The payer's.
#[inline(always)]
pub fn take_runtime(state: &mut TaskState, task: Task, elapsed: u64) -> u64 {
    let now = task.runtime();
    let mark = state.moved_runtime_ns;
    // Cleared only if it was set: a mover on another CPU may set it between the two.
    if mark != MOVED_NONE {
        state.moved_runtime_ns = MOVED_NONE;
        let moved = mark - 1;
        // It may have run while it was moved: what it ran before is not its new cgroup's. Nothing is larger than an unknown.
        if moved > state.runtime_ns && moved <= now {
            row::charge_cpu(state.payer, moved - state.runtime_ns);
            state.runtime_ns = moved;
        }
        bind_payer(state, task);
    }
    let before = core::mem::replace(&mut state.runtime_ns, now);
    if before == RUNTIME_UNKNOWN { elapsed } else { now.wrapping_sub(before) }
}

/// The same for a task that goes on. The scheduler's count is one of its last tick here, while `elapsed` is exact: where only
/// the clock can tell, the count is left to the task's switch.
#[inline(always)]
pub fn take_runtime_so_far(state: &mut TaskState, task: Task, elapsed: u64) -> u64 {
    if state.runtime_ns == RUNTIME_UNKNOWN { elapsed } else { take_runtime(state, task, elapsed) }
}

/// Whether the task, which runs on this CPU, was interrupted in [`settle`].
#[inline(always)]
pub fn is_settling(state: &TaskState) -> bool {
    state.moved_runtime_ns == MOVED_SETTLING
}

/// Bills the current task, which was just moved, for what it has run: it may move itself many times before its next switch.
/// What the scheduler has not added to its count yet is its new cgroup's, as in `cpu.stat`.
///
/// Preemption is off, so no switch comes in between; `flush_cpu` may, as an interrupt, and then leaves the task alone.
#[inline(always)]
pub fn settle(task: Task) {
    let Some(state) = find(task) else { return };
    // SAFETY: aligned fields of a map value that the interrupt reads and writes; volatile, for the order.
    let before = unsafe {
        core::ptr::write_volatile(&raw mut state.moved_runtime_ns, MOVED_SETTLING);
        core::ptr::read_volatile(&raw const state.runtime_ns)
    };
    let now = task.runtime();
    // Nothing is larger than an unknown: the clock will tell, and what it tells goes to the new cgroup.
    if before < now {
        row::charge_cpu(state.payer, now - before);
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut state.runtime_ns, now) };
    }
    bind_payer(state, task);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut state.moved_runtime_ns, MOVED_NONE) };
}

/// Notes that the task is moved by another one, which does not hold up the CPU it may run on. Of several moves before it is
/// billed the last counts: what it runs between two of them is billed to the cgroup that it was in before them.
#[inline(always)]
pub fn note_move(task: Task) {
    if let Some(state) = find(task) {
        state.moved_runtime_ns = task.runtime() + 1;
    }
}

/// Lets the cgroup the task is in now pay for CPU time, in the middle of a call, too: so does the kernel. No slot is held
/// for that, as one is for the call: a dead slot outlasts two passes, and each pass binds the tasks that run.
#[inline(always)]
pub fn bind_payer(state: &mut TaskState, task: Task) {
    if is_where_it_was(state, task) {
        state.payer = state.slot;
        return;
    }
    let (moves, cgroup_set) = (moves::count(), task.cgroup_set());
    let cgroup = task.cgroup();
    state.payer = if cgroup.id() == state.cgroup_id {
        (state.moves, state.cgroup_set) = (moves, cgroup_set);
        state.slot
    } else {
        slot::of_cgroup(cgroup)
    };
}

/// Whether the task is known to be in the cgroup it is bound to.
#[inline(always)]
fn is_where_it_was(state: &TaskState, task: Task) -> bool {
    state.cgroup_set == task.cgroup_set() && state.moves == moves::count()
}

/// Binds the task to the slot of the cgroup it is in now. Only to be called outside a syscall: a call is billed, with
/// its errors and all its duration and block time, to the workload that entered it.
#[inline(always)]
pub fn rebind(state: &mut TaskState, task: Task) {
    // Overflow and a borrowed slot are looked up again each time: the agent may have found a slot for the cgroup since.
    let may_have_changed = state.slot == SLOT_OVERFLOW || state.borrows != 0;
    if is_where_it_was(state, task) && !may_have_changed {
        return;
    }
    (state.moves, state.cgroup_set) = (moves::count(), task.cgroup_set());
    let cgroup = task.cgroup();
    let cgroup_id = cgroup.id();
    if cgroup_id != state.cgroup_id || may_have_changed {
        state.cgroup_id = cgroup_id;
        let found = slot::find(cgroup);
        let slot = found.slot;
        state.borrows = found.is_borrowed.into();
        if slot != state.slot {
            let before = store::exchange_slot(state, slot);
            slot::move_task(Some(before), Some(slot));
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
