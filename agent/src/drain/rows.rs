//! In: rows as they are; out: differences to the last look, summed over shards. Remembers what was read, recycles nothing.

use std::mem::offset_of;

use kernmeter_abi::histogram::BUCKETS;
use kernmeter_abi::{SlotRow, SyscallRow};

use super::batch::{Batch, ErrnoDelta, SlotDelta, SyscallDelta};
use crate::kernel::region::Region;
use crate::kernel::size::Plan;

/// Words before the buckets of a slot row.
pub(super) const SLOT_WORDS: usize = 17;
/// Words before the buckets of a syscall row.
const SYSCALL_WORDS: usize = 6;
const _: () = assert!(offset_of!(SyscallRow, buckets) == SYSCALL_WORDS * 8);

struct SyscallShadow {
    row: u32,
    key: u32,
    words: [u64; SYSCALL_WORDS],
    buckets: [u32; BUCKETS],
}

struct SlotShadow {
    words: [u64; SLOT_WORDS],
    buckets: [u32; BUCKETS],
}

struct ErrnoShadow {
    row: u32,
    key: u64,
    count: u64,
}

/// Rows of a slot with their keys: syscall rows, errno rows.
pub(super) type Forgotten = (Vec<(u32, u32)>, Vec<(u32, u64)>);

/// What was read last time.
pub(super) struct Shadow {
    slots: Vec<Option<Box<SlotShadow>>>,
    known_syscalls: Vec<bool>,
    known_errors: Vec<bool>,
    syscalls: Vec<SyscallShadow>,
    errors: Vec<ErrnoShadow>,
}

/// Sums the first words of a row over its shards.
fn words<const N: usize>(region: &Region, index: u32, stride: u32, shards: u32) -> [u64; N] {
    let mut total = [0u64; N];
    for shard in 0..shards {
        for (i, word) in total.iter_mut().enumerate() {
            *word = word.wrapping_add(region.load(shard * stride + index, 8 * i));
        }
    }
    total
}

/// Sums the buckets behind `words` words of a row over its shards, modulo 2^32.
fn buckets(region: &Region, index: u32, stride: u32, shards: u32, words: usize) -> [u32; BUCKETS] {
    let mut total = [0u32; BUCKETS];
    for shard in 0..shards {
        for (i, bucket) in total.iter_mut().enumerate() {
            *bucket = bucket.wrapping_add(region.load_u32(shard * stride + index, 8 * words + 4 * i));
        }
    }
    total
}

fn difference<const N: usize>(now: &[u32; N], before: &[u32; N]) -> [u32; N] {
    std::array::from_fn(|i| now[i].wrapping_sub(before[i]))
}

fn word_difference<const N: usize>(now: &[u64; N], before: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|i| now[i].wrapping_sub(before[i]))
}

impl Shadow {
    pub(super) fn new(plan: &Plan) -> Shadow {
        Shadow {
            slots: (0..plan.slots).map(|_| None).collect(),
            known_syscalls: vec![false; plan.syscall_rows as usize],
            known_errors: vec![false; plan.errno_rows as usize],
            syscalls: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub(super) fn meet_syscall(&mut self, row: u32, key: u32) {
        if !std::mem::replace(&mut self.known_syscalls[row as usize], true) {
            self.syscalls.push(SyscallShadow { row, key, words: [0; SYSCALL_WORDS], buckets: [0; BUCKETS] });
        }
    }

    pub(super) fn meet_errno(&mut self, row: u32, key: u64) {
        if !std::mem::replace(&mut self.known_errors[row as usize], true) {
            self.errors.push(ErrnoShadow { row, key, count: 0 });
        }
    }

    /// Rows in use: syscall rows, errno rows.
    pub(super) fn len(&self) -> (u32, u32) {
        (self.syscalls.len() as u32, self.errors.len() as u32)
    }

    /// Live tasks bound to a slot, as of the last look.
    pub(super) fn tasks(&self, slot: u32) -> u64 {
        self.slots[slot as usize].as_ref().map_or(0, |shadow| shadow.words[offset_of!(SlotRow, tasks) / 8])
    }

    pub(super) fn slot(&mut self, slot: u32, plan: &Plan, region: &Region, batch: &mut Batch) {
        let now: [u64; SLOT_WORDS] = words(region, slot, plan.slots, plan.shards);
        let shadow = self.slots[slot as usize]
            .get_or_insert_with(|| Box::new(SlotShadow { words: [0; SLOT_WORDS], buckets: [0; BUCKETS] }));
        if now == shadow.words {
            return;
        }
        let now_buckets = buckets(region, slot, plan.slots, plan.shards, SLOT_WORDS);
        let d = word_difference(&now, &shadow.words);
        let row = SlotRow {
            cpu_ns: d[0],
            wait_ns: d[1],
            voluntary: d[2],
            involuntary: d[3],
            migrations: d[4],
            forked: d[5],
            threads: d[6],
            exec: d[7],
            exited: d[8],
            tasks: d[9],
            moved_in: d[10],
            blocked_other_ns: d[11],
            overflow_calls: d[12],
            overflow_errors: d[13],
            overflow_done: d[14],
            overflow_blocked_ns: d[15],
            overflow_denied: d[16],
            wait_buckets: difference(&now_buckets, &shadow.buckets),
        };
        shadow.words = now;
        shadow.buckets = now_buckets;
        batch.slots.push(SlotDelta { slot, row });
    }

    pub(super) fn syscalls(&mut self, plan: &Plan, region: &Region, batch: &mut Batch) {
        for shadow in &mut self.syscalls {
            let now: [u64; SYSCALL_WORDS] = words(region, shadow.row, plan.syscall_rows, plan.shards);
            if now == shadow.words {
                continue;
            }
            let now_buckets = buckets(region, shadow.row, plan.syscall_rows, plan.shards, SYSCALL_WORDS);
            let d = word_difference(&now, &shadow.words);
            let row = SyscallRow {
                calls: d[0],
                errors: d[1],
                other_errors: d[2],
                sum_ns: d[3],
                blocked_ns: d[4],
                denied: d[5],
                buckets: difference(&now_buckets, &shadow.buckets),
            };
            shadow.words = now;
            shadow.buckets = now_buckets;
            batch.syscalls.push(SyscallDelta { slot: shadow.key >> 16, syscall: shadow.key & 0xffff, row });
        }
    }

    pub(super) fn errors(&mut self, plan: &Plan, region: &Region, batch: &mut Batch) {
        for shadow in &mut self.errors {
            let [now] = words(region, shadow.row, plan.errno_rows, plan.shards);
            if now != shadow.count {
                batch.errors.push(ErrnoDelta {
                    slot: (shadow.key >> 32) as u32,
                    syscall: (shadow.key >> 16) as u32 & 0xffff,
                    errno: shadow.key as u32 & 0xffff,
                    count: now.wrapping_sub(shadow.count),
                });
                shadow.count = now;
            }
        }
    }

    /// Forgets all rows of a slot and returns them with their keys: syscall rows, errno rows.
    pub(super) fn forget(&mut self, slot: u32) -> Forgotten {
        let mut syscalls = Vec::new();
        self.syscalls.retain(|shadow| {
            let goes = shadow.key >> 16 == slot;
            if goes {
                syscalls.push((shadow.row, shadow.key));
            }
            !goes
        });
        let mut errors = Vec::new();
        self.errors.retain(|shadow| {
            let goes = shadow.key >> 32 == u64::from(slot);
            if goes {
                errors.push((shadow.row, shadow.key));
            }
            !goes
        });
        for (row, _) in &syscalls {
            self.known_syscalls[*row as usize] = false;
        }
        for (row, _) in &errors {
            self.known_errors[*row as usize] = false;
        }
        self.slots[slot as usize] = None;
        (syscalls, errors)
    }
}
