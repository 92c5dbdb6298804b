//! The eBPF object: kernel events in, per-shard counters out. Knows slots and cgroup ids, never tenants or names' meaning.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "core::sync::atomic lacks fetch_add on this target")]
#![allow(missing_docs, reason = "programs are entry points of the kernel, not an API")]

mod cgroup;
mod event;
mod flush;
mod kernel;
mod maps;
mod process;
mod row;
mod scheduler;
mod slot;
mod store;
mod syscalls;
mod task;

// Helpers that read tasks and BTF pointers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
