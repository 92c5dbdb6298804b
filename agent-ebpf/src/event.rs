//! In: records of trace events, which the kernel hands to programs with preemption off; out: the fields programs need.
//! Knows no hooks.
//!
//! Since Linux 7.2 programs on the tracepoints themselves may be preempted, and while one is, the kernel skips it for
//! every other task of that CPU. Programs on trace events do the same work where that is so.
use core::ffi::c_void;

/// What a program on a trace event returns so that others who listen to the event get it too.
pub const KEEP: u32 = 1;

/// The call number, of `trace_event_raw_sys_enter`.
pub const ENTER_ID: usize = 8;
/// The call number, of `trace_event_raw_sys_exit`.
pub const EXIT_ID: usize = 8;
/// The result, of `trace_event_raw_sys_exit`.
pub const EXIT_RET: usize = 16;
/// `group_dead`, of `trace_event_raw_sched_process_exit`.
pub const GROUP_DEAD: usize = 32;

/// Reads a field of a record. The agent attaches a program only if the running kernel's record has its fields there.
///
/// # Safety
/// `ctx` must be the context of a trace event program whose record has a `T` at `offset`.
#[inline(always)]
pub unsafe fn field<T: Copy>(ctx: *const c_void, offset: usize) -> T {
    // SAFETY: the verifier checks offset and size against the record; the caller names a field.
    unsafe { core::ptr::read_volatile(ctx.byte_add(offset).cast::<T>()) }
}
