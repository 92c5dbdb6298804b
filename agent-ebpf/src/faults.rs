//! In: page faults; out: their counts per slot, by the mode they were taken in. Knows no addresses.
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use kernmeter_abi::Total;

use crate::{row, task};

/// `page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code)`, with interrupts off.
#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(_: BtfTracePointContext) {
    row::count(Total::FaultsUser, 1);
    if let Some(mut row) = row::of_slot(task::slot_of(task::current())) {
        row.add(|row| &mut row.faults_user, 1);
    }
}

/// `page_fault_kernel(unsigned long address, struct pt_regs *regs, unsigned long error_code)`, with interrupts off. In an
/// interrupt the current task is billed, as for its CPU time.
#[btf_tracepoint(function = "page_fault_kernel")]
pub fn page_fault_kern(_: BtfTracePointContext) {
    row::count(Total::FaultsKernel, 1);
    if let Some(mut row) = row::of_slot_in_interrupt(task::slot_of(task::current())) {
        row.add(|row| &mut row.faults_kernel, 1);
    }
}
