//! In: rows of counts and who is billed; out: registry totals, or sums of rows. Knows no slots and no identities.

use kernmeter_abi::{SlotRow, SyscallRow};

use crate::catalog::{cgroup, names, process, scheduler, syscalls};
use crate::registry::{Registry, TargetId};

/// Label value for calls or errors without a row of their own.
const NO_ROW: &str = "_overflow";

pub(super) fn add_slot(registry: &mut Registry, target: TargetId, row: &SlotRow) {
    let none = ["none", "none"];
    let no_row = [NO_ROW, NO_ROW];
    for (family, labels, value) in [
        (&scheduler::CPU, &[][..], row.cpu_ns),
        (&scheduler::SWITCHES, &["voluntary"], row.voluntary),
        (&scheduler::SWITCHES, &["involuntary"], row.involuntary),
        (&scheduler::MIGRATIONS, &[], row.migrations),
        (&scheduler::BLOCKED, &none, row.blocked_other_ns),
        (&scheduler::BLOCKED, &no_row, row.overflow_blocked_ns),
        (&process::FORKED, &[], row.forked),
        (&process::THREADS, &[], row.threads),
        (&process::EXEC, &[], row.exec),
        (&process::EXITED, &[], row.exited),
        (&process::TASKS, &[], row.tasks),
        (&cgroup::MOVES, &[], row.moved_in),
        (&syscalls::CALLS, &no_row, row.overflow_calls),
        (&syscalls::DENIED, &no_row, row.overflow_denied),
        (&syscalls::ERRORS, &[NO_ROW, NO_ROW, NO_ROW], row.overflow_errors),
        (&syscalls::UNMEASURED, &[], row.overflow_done),
    ] {
        registry.add(target, family, labels, value);
    }
    let buckets = row.wait_buckets.map(u64::from);
    registry.observe(target, &scheduler::WAIT, &[], &buckets, row.wait_ns);
}

pub(super) fn add_syscall(registry: &mut Registry, target: TargetId, syscall: u32, row: &SyscallRow) {
    let (name, abi) = names::syscall(syscall);
    let labels = [&*name, abi];
    registry.add(target, &syscalls::CALLS, &labels, row.calls);
    registry.add(target, &syscalls::DENIED, &labels, row.denied);
    registry.add(target, &syscalls::ERRORS, &[&name, abi, NO_ROW], row.other_errors);
    registry.add(target, &scheduler::BLOCKED, &labels, row.blocked_ns);
    registry.observe(target, &syscalls::DURATION, &labels, &row.buckets.map(u64::from), row.sum_ns);
}

pub(super) fn add_errno(registry: &mut Registry, target: TargetId, syscall: u32, errno: u32, count: u64) {
    let (name, abi) = names::syscall(syscall);
    registry.add(target, &syscalls::ERRORS, &[&name, abi, &names::errno(errno)], count);
}

pub(super) fn add_slot_rows(sum: &mut SlotRow, row: &SlotRow) {
    for (sum, value) in [
        (&mut sum.cpu_ns, row.cpu_ns),
        (&mut sum.wait_ns, row.wait_ns),
        (&mut sum.voluntary, row.voluntary),
        (&mut sum.involuntary, row.involuntary),
        (&mut sum.migrations, row.migrations),
        (&mut sum.forked, row.forked),
        (&mut sum.threads, row.threads),
        (&mut sum.exec, row.exec),
        (&mut sum.exited, row.exited),
        (&mut sum.tasks, row.tasks),
        (&mut sum.moved_in, row.moved_in),
        (&mut sum.blocked_other_ns, row.blocked_other_ns),
        (&mut sum.overflow_calls, row.overflow_calls),
        (&mut sum.overflow_errors, row.overflow_errors),
        (&mut sum.overflow_done, row.overflow_done),
        (&mut sum.overflow_blocked_ns, row.overflow_blocked_ns),
        (&mut sum.overflow_denied, row.overflow_denied),
    ] {
        *sum = sum.wrapping_add(value);
    }
    for (sum, value) in sum.wait_buckets.iter_mut().zip(row.wait_buckets) {
        *sum = sum.wrapping_add(value);
    }
}

pub(super) fn add_syscall_rows(sum: &mut SyscallRow, row: &SyscallRow) {
    sum.calls += row.calls;
    sum.errors += row.errors;
    sum.other_errors += row.other_errors;
    sum.sum_ns += row.sum_ns;
    sum.blocked_ns += row.blocked_ns;
    sum.denied += row.denied;
    for (sum, value) in sum.buckets.iter_mut().zip(row.buckets) {
        *sum = sum.wrapping_add(value);
    }
}
