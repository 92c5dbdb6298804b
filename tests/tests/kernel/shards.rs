//! Shards that CPUs share (many CPUs, little memory) and the batched read count exactly. Loads the kernel side itself.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kernmeter::btf::Btf;
use kernmeter::catalog::{self, RowKind};
use kernmeter::config::{AttachMode, ReadMode};
use kernmeter::drain::{Batch, Delta, Drain, Subject};
use kernmeter::host::{BTF_PATH, possible_cpus};
use kernmeter::kernel::region::Region;
use kernmeter::kernel::size::Plan;
use kernmeter::kernel::{Kernel, offsets};
use kernmeter_abi::{SLOT_HOST, SlotRow, SyscallRow, Total, syscall_key};
use kernmeter_tests::{Outcome, skip, trials};

trials![cpus_share_a_shard, rows_are_read_by_batches, full_buckets_of_shards_add_up];

const CALLS: u64 = 300_000;
/// A number no table has and nobody else calls: it fails at once with `ENOSYS`.
const NR: i64 = 598;

/// Small maps.
fn plan(shards: u32, shared: bool) -> Plan {
    let (slots, syscall_rows, errno_rows) = (256, 2048, 512);
    Plan { shards, shared, slots, syscall_rows, errno_rows, tasks: 0, cpus: possible_cpus() }
}

/// Loads the programs and opens the maps; attaches nothing.
fn open(plan: Plan, mode: ReadMode) -> anyhow::Result<(Kernel, Drain)> {
    let btf = Btf::parse(std::fs::read(BTF_PATH).context(BTF_PATH)?)?;
    let mut constants = offsets::resolve(&btf)?;
    constants.values.push(("HAS_PROBE_READ", 1));
    let mut kernel = Kernel::load(plan, &constants, AttachMode::Auto, catalog::PROBES)?;
    let drain = Drain::open(&mut kernel, 1, mode)?;
    Ok((kernel, drain))
}

/// Two threads on two CPUs make calls; every call is in the rows of the host slot, and all rows together are the total.
fn count(shards: u32, mode: ReadMode) -> Outcome {
    if !cfg!(target_arch = "x86_64") {
        skip!("x86-64 only");
    }
    let cpus = possible_cpus();
    if shards < cpus && cpus < 2 {
        skip!("needs two CPUs");
    }
    let (mut kernel, mut drain) = open(plan(shards, shards < cpus), mode)?;
    ensure!(drain.is_mapped() == (mode == ReadMode::Auto), "mapped: {}", drain.is_mapped());
    for probe in catalog::PROBES {
        kernel.attach(probe);
    }
    let mut batch = Batch::default();
    let mut calls: BTreeMap<u32, u64> = BTreeMap::new();
    let mut total = 0;
    let mut add = |batch: &Batch| {
        for Delta { subject, cells, .. } in batch.rows.iter() {
            let kind = subject.kind();
            match subject {
                Subject::Syscall(syscall) => {
                    let counted = cells[kind.cell_of(offset_of!(SyscallRow, calls))];
                    *calls.entry(syscall).or_default() += counted;
                    total += counted;
                }
                Subject::Slot => total += cells[kind.cell_of(offset_of!(SlotRow, overflow_calls))],
                Subject::Errno(..) => {}
            }
        }
    };
    let workers: Vec<_> = (0..2)
        .map(|_| {
            thread::spawn(|| {
                for _ in 0..CALLS {
                    // SAFETY: the kernel has no such call and refuses it.
                    unsafe { libc::syscall(NR) };
                }
            })
        })
        .collect();
    while workers.iter().any(|worker| !worker.is_finished()) {
        thread::sleep(Duration::from_millis(20));
        drain.pass(&mut kernel, 0, &mut batch)?;
        add(&batch);
    }
    for worker in workers {
        worker.join().expect("the worker only makes system calls");
    }
    kernel.detach();
    thread::sleep(Duration::from_millis(50));
    drain.pass(&mut kernel, 0, &mut batch)?;
    add(&batch);
    let own = calls.get(&syscall_key::of(NR, false)).copied().unwrap_or_default();
    let kernel_total = batch.totals_after[Total::SyscallEnter as usize];
    ensure!(total == kernel_total, "rows hold {total} calls, the kernel counted {kernel_total}");
    ensure!(own == 2 * CALLS, "{own} calls instead of {}", 2 * CALLS);
    Ok(())
}

fn cpus_share_a_shard() -> Outcome {
    count(1, ReadMode::Auto)
}

fn rows_are_read_by_batches() -> Outcome {
    count(possible_cpus().next_power_of_two(), ReadMode::Batch)
}

/// Fault 34: bucket counts wrap at 2^32 on each shard; what two of them counted together may be more than that.
fn full_buckets_of_shards_add_up() -> Outcome {
    let plan = plan(2, false);
    let (mut kernel, mut drain) = open(plan, ReadMode::Auto)?;
    // Nothing is attached: this test writes the rows of the host slot itself, as programs on two CPUs would.
    let mut rows = Region::open(
        kernel.array_fd("SLOT_ROWS")?,
        size_of::<SlotRow>(),
        plan.slots * plan.shards,
        ReadMode::Auto,
    )?;
    let mut write = |count: u32, sum_ns: u64| -> anyhow::Result<()> {
        let mut words = [0u64; size_of::<SlotRow>() / 8];
        words[offset_of!(SlotRow, wait_ns) / 8] = sum_ns;
        words[offset_of!(SlotRow, wait_buckets) / 8] = count.into();
        for shard in 0..plan.shards {
            rows.store(shard * plan.slots + SLOT_HOST, &words)?;
        }
        Ok(())
    };
    let mut batch = Batch::default();
    let mut counted = |kernel: &mut Kernel| -> anyhow::Result<u64> {
        drain.pass(kernel, 0, &mut batch)?;
        let first = RowKind::Slot.cell_of(offset_of!(SlotRow, wait_buckets));
        let host = batch.rows.iter().find(|row| row.slot == SLOT_HOST && row.subject == Subject::Slot);
        Ok(host.map_or(0, |row| row.cells[first]))
    };
    write(u32::MAX, 1)?;
    let found = counted(&mut kernel)?;
    ensure!(found == 2 * u64::from(u32::MAX), "two full buckets are {found} events");
    // Both wrap.
    write(9, 2)?;
    let found = counted(&mut kernel)?;
    ensure!(found == 20, "ten more events on each of two shards are {found}");
    Ok(())
}
