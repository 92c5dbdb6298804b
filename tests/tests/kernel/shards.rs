//! Shards that CPUs share (many CPUs, little memory) and the batched read count exactly. Loads the kernel side itself.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kernmeter::btf::Btf;
use kernmeter::catalog;
use kernmeter::config::{AttachMode, ReadMode};
use kernmeter::drain::{Batch, Delta, Drain, Subject};
use kernmeter::host::{BTF_PATH, possible_cpus};
use kernmeter::kernel::size::Plan;
use kernmeter::kernel::{Kernel, offsets};
use kernmeter_abi::{SlotRow, SyscallRow, Total, syscall_key};
use kernmeter_tests::{Outcome, skip, trials};

trials![cpus_share_a_shard, rows_are_read_by_batches];

const CALLS: u64 = 300_000;
/// A number no table has and nobody else calls: it fails at once with `ENOSYS`.
const NR: i64 = 598;

/// Two threads on two CPUs make calls; every call is in the rows of the host slot, and all rows together are the total.
fn count(shards: u32, mode: ReadMode) -> Outcome {
    if !cfg!(target_arch = "x86_64") {
        skip!("x86-64 only");
    }
    let cpus = possible_cpus();
    if shards < cpus && cpus < 2 {
        skip!("needs two CPUs");
    }
    let plan = Plan {
        shards,
        shared: shards < cpus,
        slots: 256,
        syscall_rows: 2048,
        errno_rows: 512,
        tasks: 0,
        cpus,
    };
    let btf = Btf::parse(std::fs::read(BTF_PATH).context(BTF_PATH)?)?;
    let mut constants = offsets::resolve(&btf)?;
    constants.values.push(("HAS_PROBE_READ", 1));
    let mut kernel = Kernel::load(plan, &constants, AttachMode::Auto, catalog::PROBES)?;
    let mut drain = Drain::open(&mut kernel, 1, mode)?;
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
                    let made = cells[kind.cell_of(offset_of!(SyscallRow, calls))];
                    *calls.entry(syscall).or_default() += made;
                    total += made;
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
