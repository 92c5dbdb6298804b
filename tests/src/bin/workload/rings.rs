//! `io_uring`: reads that the kernel makes in workers of its own, which are threads of this process but were never forked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::Args;

// Numbers of include/uapi/linux/io_uring.h.
const OP_READ: u8 = 22;
const FORCE_ASYNC: u8 = 1 << 4;
const GET_EVENTS: u32 = 1;
const OFF_SUBMISSIONS: i64 = 0;
const OFF_COMPLETIONS: i64 = 0x800_0000;
const OFF_ENTRIES: i64 = 0x1000_0000;

/// `struct io_uring_params`: sizes, flags, then where the rings' fields are, in 32-bit words.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    rest: [u32; 8],
    /// head, tail, `ring_mask`, `ring_entries`, flags, dropped, array.
    sq: [u32; 10],
    /// head, tail, `ring_mask`, `ring_entries`, overflow, cqes.
    cq: [u32; 10],
}
const _: () = assert!(size_of::<Params>() == 120);

/// `struct io_uring_sqe`, as far as a read needs it.
#[repr(C)]
struct Entry {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    op_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}
const _: () = assert!(size_of::<Entry>() == 64);

/// Memory shared with the kernel, for as long as the process lives.
fn map(fd: &OwnedFd, len: usize, offset: i64) -> Result<*mut u8> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: a new mapping, wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd.as_raw_fd(), offset) };
    ensure!(at != libc::MAP_FAILED, "map a ring: {}", io::Error::last_os_error());
    Ok(at.cast())
}

/// `--reads N --kib N --rounds N`: so many reads of `/dev/zero` at once, each in a worker, again and again.
#[allow(
    clippy::cast_ptr_alignment,
    reason = "mappings are pages, and the kernel aligns what it puts in them"
)]
pub fn reads(args: &Args) -> Result<()> {
    let (count, kib) = (args.number("reads", 4)? as u32, args.number("kib", 1)? as usize);
    let mut params = Params::default();
    // SAFETY: the parameters are as large as the kernel's structure and live.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, count.next_power_of_two(), &raw mut params) };
    ensure!(fd >= 0, "io_uring_setup: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let entries = params.sq_entries as usize;
    let submissions = map(&ring, params.sq[6] as usize + entries * 4, OFF_SUBMISSIONS)?;
    let completions = map(&ring, params.cq[5] as usize + params.cq_entries as usize * 16, OFF_COMPLETIONS)?;
    let queue = map(&ring, entries * size_of::<Entry>(), OFF_ENTRIES)?.cast::<Entry>();
    // SAFETY: the kernel says where in the mapped ring this aligned word is.
    let word = |base: *mut u8, offset: u32| unsafe { &*base.add(offset as usize).cast::<AtomicU32>() };
    let zero = File::open("/dev/zero").context("open /dev/zero")?;
    let mut buffer = vec![0u8; (kib << 10) * count as usize];
    for _ in 0..args.number("rounds", 1)? {
        let tail = word(submissions, params.sq[1]).load(Ordering::Relaxed);
        for n in 0..count {
            let index = (tail + n) & (params.sq_entries - 1);
            let entry = Entry {
                opcode: OP_READ,
                flags: FORCE_ASYNC,
                priority: 0,
                fd: zero.as_raw_fd(),
                offset: 0,
                address: buffer[(kib << 10) * n as usize..].as_mut_ptr() as u64,
                len: (kib << 10) as u32,
                op_flags: 0,
                user_data: u64::from(n),
                rest: [0; 3],
            };
            // SAFETY: the index is below the number of entries mapped; the kernel reads it once the tail is past it.
            unsafe { queue.add(index as usize).write(entry) };
            word(submissions, params.sq[6] + 4 * index).store(index, Ordering::Relaxed);
        }
        word(submissions, params.sq[1]).store(tail + count, Ordering::Release);
        let nothing = std::ptr::null::<u8>();
        // SAFETY: the call takes numbers; the buffer outlives what it submits, for which it waits.
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), count, count, GET_EVENTS, nothing, 0)
        };
        ensure!(done == i64::from(count), "io_uring_enter: {done}, {}", io::Error::last_os_error());
        let (head, tail) = (word(completions, params.cq[0]), word(completions, params.cq[1]));
        let (first, last) = (head.load(Ordering::Relaxed), tail.load(Ordering::Acquire));
        ensure!(last.wrapping_sub(first) == count, "{first} to {last} of {count} reads are done");
        for n in first..last {
            let at = params.cq[5] + 16 * (n & (params.cq_entries - 1)) + 8;
            let read = word(completions, at).load(Ordering::Relaxed) as i32;
            ensure!(read as usize == kib << 10, "a read gave {read}");
        }
        head.store(last, Ordering::Release);
    }
    Ok(())
}
