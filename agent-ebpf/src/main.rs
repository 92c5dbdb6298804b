//! The eBPF object: kernel events in, per-shard counters out. Knows slots and cgroup ids, never tenants or names' meaning.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "core::sync::atomic lacks fetch_add on this target")]
#![allow(
    clippy::inline_always,
    reason = "programs are one function each, for the verifier's sake and for speed"
)]
#![allow(clippy::needless_pass_by_value, reason = "the macros of programs pass their contexts by value")]

// Every other file of this folder is a module: one of programs for each phenomenon, and what they share.
automod::dir!("src");

// Helpers that read tasks and BTF pointers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

// The agent refuses an object whose rows are laid out in another way.
#[unsafe(link_section = "abi")]
#[unsafe(no_mangle)]
static ABI: [u8; 32] = kernmeter_abi::FINGERPRINT_TEXT;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
