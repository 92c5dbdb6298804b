//! Rows that CPUs share, private rows that they are given and that are taken back, and the batched read count exactly. Loads the
//! kernel side itself.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kernmeter::btf::Btf;
use kernmeter::catalog;
use kernmeter::config::{AttachMode, ReadMode};
use kernmeter::drain::{Batch, Delta, Drain, Subject};
use kernmeter::host::{BTF_PATH, online_cpus, possible_cpus};
use kernmeter::kernel::cpus::Cpus;
use kernmeter::kernel::size::{Plan, Wishes};
use kernmeter::kernel::{Kernel, offsets};
use kernmeter::lifecycle::monotonic_ns;
use kernmeter_abi::{SlotRow, SyscallRow, Total, syscall_key};
use kernmeter_tests::{Hierarchy, Outcome, Workload, harmless, skip, trials};

trials![
    cpus_share_rows,
    cpus_have_private_rows,
    rows_are_read_by_batches,
    private_rows_run_out,
    private_rows_are_taken_back_and_given_again,
    the_plan_is_what_the_kernel_charges,
    idle_cpus_are_left_alone,
    a_call_without_end_holds_no_slot,
];

const SECOND: u64 = 1_000_000_000;

/// Programs and what counts of them were read.
struct Meter {
    kernel: Kernel,
    drain: Drain,
    batch: Batch,
    /// Calls by key.
    calls: BTreeMap<u32, u64>,
    /// Calls of all rows.
    total: u64,
    /// Switches of all rows.
    switches: u64,
}

impl Meter {
    /// Loads and attaches the programs, with private rows at most as said.
    fn start(private_rows: Option<u32>, mode: ReadMode) -> anyhow::Result<Meter> {
        let wishes = Wishes {
            budget: 16 << 20,
            slots: Some(256),
            errno_rows: Some(512),
            private_rows,
            ..Wishes::default()
        };
        let plan = Plan::new(possible_cpus(), &wishes)?;
        let mut kernel = load(plan)?;
        let drain = Drain::open(&mut kernel, 1, mode)?;
        ensure!(drain.is_mapped() == (mode == ReadMode::Auto), "mapped: {}", drain.is_mapped());
        for probe in catalog::PROBES {
            kernel.attach(probe);
        }
        Ok(Meter { kernel, drain, batch: Batch::default(), calls: BTreeMap::new(), total: 0, switches: 0 })
    }

    /// One pass at a time of the caller's choice, `CLOCK_MONOTONIC` nanoseconds.
    fn pass(&mut self, now_ns: u64) -> anyhow::Result<()> {
        self.drain.grow(&mut self.kernel)?;
        self.drain.pass(&mut self.kernel, now_ns, &mut self.batch)?;
        for Delta { subject, cells, .. } in self.batch.rows.iter() {
            let cell = |offset| cells[subject.kind().cell_of(offset)];
            match subject {
                Subject::Syscall(syscall) => {
                    let counted = cell(offset_of!(SyscallRow, calls));
                    *self.calls.entry(syscall).or_default() += counted;
                    self.total += counted;
                }
                Subject::Slot => {
                    self.total += cell(offset_of!(SlotRow, overflow_calls));
                    self.switches +=
                        cell(offset_of!(SlotRow, voluntary)) + cell(offset_of!(SlotRow, involuntary));
                }
                Subject::Errno(..) => {}
            }
        }
        Ok(())
    }

    /// Detaches, reads what is left, and compares it with the kernel's own totals.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.kernel.detach();
        thread::sleep(Duration::from_millis(50));
        self.pass(0)?;
        let total = |total: Total| self.batch.totals_after[total as usize];
        let calls = total(Total::SyscallEnter) + total(Total::SyscallDenied);
        ensure!(self.total == calls, "rows hold {} calls, the kernel counted {calls}", self.total);
        let switches = total(Total::SwitchVoluntary) + total(Total::SwitchInvoluntary);
        ensure!(
            self.switches == switches,
            "rows hold {} switches, the kernel counted {switches}",
            self.switches
        );
        Ok(())
    }

    fn counted(&self, nr: i64) -> u64 {
        self.calls.get(&syscall_key::of(nr, false)).copied().unwrap_or_default()
    }
}

/// Two threads make calls, `numbers` different ones in turn; each is in the rows. Passes are `apart` by the clock they are told.
fn count(private_rows: Option<u32>, mode: ReadMode, numbers: usize, apart: u64) -> anyhow::Result<Meter> {
    const ROUNDS: u64 = 60;
    const TIMES: u64 = 2000;
    let mut meter = Meter::start(private_rows, mode)?;
    let workers: Vec<_> = (0..2)
        .map(|_| {
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    for i in 0..TIMES {
                        harmless::call(harmless::CALLS[(round * TIMES + i) as usize % numbers]);
                    }
                    // Long enough for its rows to be taken back, if passes are far apart.
                    thread::sleep(Duration::from_millis(20));
                }
            })
        })
        .collect();
    let mut now = SECOND;
    while workers.iter().any(|worker| !worker.is_finished()) {
        thread::sleep(Duration::from_millis(5));
        now += apart;
        meter.pass(now)?;
    }
    for worker in workers {
        worker.join().expect("the worker only makes system calls");
    }
    meter.finish()?;
    for nr in &harmless::CALLS[..numbers] {
        let (seen, expected) = (meter.counted(*nr), 2 * ROUNDS * TIMES / numbers as u64);
        ensure!(seen == expected, "{seen} calls of number {nr} instead of {expected}");
    }
    Ok(meter)
}

fn the_plan_is_what_the_kernel_charges() -> Outcome {
    let plan = Plan::new(possible_cpus(), &Wishes { budget: 64 << 20, ..Wishes::default() })?;
    let mut kernel = load(plan)?;
    Drain::open(&mut kernel, 1, ReadMode::Auto)?;
    let charged: Option<u64> = kernel.map_sizes().iter().map(|map| map.memory_bytes).sum();
    let charged = charged.context("the kernel does not tell what its maps take")?;
    let planned = plan.bytes_at_start();
    println!("planned {planned} bytes, charged {charged}");
    ensure!(charged.abs_diff(planned) < planned / 50, "planned {planned} bytes, charged {charged}");
    Ok(())
}

/// A task may stay in a call that it entered in a cgroup which is gone. It is taken off the slot of that cgroup after half a
/// minute, and what it does next is counted where it is.
fn a_call_without_end_holds_no_slot() -> Outcome {
    const CALLS: u64 = 500;
    if Btf::parse(std::fs::read(BTF_PATH)?)
        .is_ok_and(|btf| !offsets::resolve(&btf).is_ok_and(|c| c.task_storage))
    {
        skip!("this kernel keeps no state of tasks for programs: their slots are free when their calls end");
    }
    let mut meter = Meter::start(None, ReadMode::Auto)?;
    let hierarchy = Hierarchy::new()?;
    let (home, gone) = (hierarchy.tenant("home")?, hierarchy.tenant("gone")?);
    let mut workload = Workload::spawn(&gone, &["steps", "--getppid", &CALLS.to_string()])?;
    workload.go()?;
    workload.results()?;
    // It waits for the next word: in a call that it entered there.
    let call = format!("/proc/{}/syscall", workload.pid());
    let begun = Instant::now();
    while !std::fs::read_to_string(&call)?.starts_with(&format!("{} ", libc::SYS_recvfrom)) {
        ensure!(begun.elapsed() < Duration::from_secs(10), "it is not waiting");
        thread::sleep(Duration::from_millis(1));
    }
    home.enter(workload.pid())?;
    gone.remove()?;
    let pass = |meter: &mut Meter, later: u64| meter.pass(monotonic_ns() + later);
    for _ in 0..4 {
        pass(&mut meter, 0)?;
    }
    let dead = meter.drain.slot_counts().dead;
    ensure!(dead == 1, "{dead} slots wait for a task instead of 1");
    let begun = Instant::now();
    for _ in 0..4 {
        pass(&mut meter, 31 * SECOND)?;
    }
    let dead = meter.drain.slot_counts().dead;
    ensure!(dead == 0, "{dead} slots still wait after {:?}", begun.elapsed());
    let before = meter.counted(libc::SYS_getppid);
    workload.go()?;
    workload.results()?;
    pass(&mut meter, 0)?;
    let counted = meter.counted(libc::SYS_getppid) - before;
    ensure!(counted >= CALLS, "{counted} calls instead of {CALLS}");
    workload.kill()?;
    meter.finish()
}

/// A CPU that idles is not interrupted for a pass, one that runs a task is, and idle time goes on all the same.
fn idle_cpus_are_left_alone() -> Outcome {
    const PATIENCE: Duration = Duration::from_secs(20);
    let cpus = online_cpus();
    if cpus.len() < 2 {
        skip!("the only CPU runs the test");
    }
    let mut meter = Meter::start(None, ReadMode::Auto)?;
    let idle = Cpus::open(&meter.kernel, ReadMode::Auto)?;
    let begun = Instant::now();
    let interrupted = loop {
        // Long enough for everything that was just attached to come to rest.
        thread::sleep(Duration::from_millis(50));
        let interrupted = meter.kernel.flush(|cpu| idle.idle_since(cpu).is_some());
        if interrupted < cpus.len() {
            break interrupted;
        }
        ensure!(begun.elapsed() < PATIENCE, "all of {cpus:?} were interrupted, for {PATIENCE:?}");
    };
    ensure!(interrupted > 0, "nor was the CPU that did it");
    let told = |meter: &mut Meter| -> anyhow::Result<u64> {
        Ok(meter.drain.totals(&meter.kernel, monotonic_ns())?[Total::IdleNs as usize])
    };
    let (begun, before) = (Instant::now(), told(&mut meter)?);
    thread::sleep(Duration::from_millis(500));
    let (after, elapsed) = (told(&mut meter)?, begun.elapsed());
    let idled = Duration::from_nanos(after - before);
    ensure!(!idled.is_zero() && idled <= elapsed * cpus.len() as u32, "{idled:?} of {elapsed:?} on {cpus:?}");
    meter.finish()
}

/// Loads the programs, for maps of these sizes.
fn load(plan: Plan) -> anyhow::Result<Kernel> {
    let btf = Btf::parse(std::fs::read(BTF_PATH).context(BTF_PATH)?)?;
    let mut constants = offsets::resolve(&btf)?;
    constants.values.push(("HAS_PROBE_READ", 1));
    Ok(Kernel::load(plan, &constants, AttachMode::Auto, catalog::PROBES)?)
}

fn cpus_share_rows() -> Outcome {
    let meter = count(Some(0), ReadMode::Auto, 1, SECOND)?;
    ensure!(meter.drain.private_rows() == (0, 0), "there are private rows: {:?}", meter.drain.private_rows());
    ensure!(possible_cpus() == 1 || meter.drain.additions().private == 0, "{:?}", meter.drain.additions());
    Ok(())
}

fn cpus_have_private_rows() -> Outcome {
    if possible_cpus() < 2 {
        skip!("a CPU alone shares nothing");
    }
    let meter = count(None, ReadMode::Auto, 20, SECOND / 100)?;
    let additions = meter.drain.additions();
    println!("{additions:?}, private rows {:?}", meter.drain.private_rows());
    ensure!(additions.private > 49 * additions.shared, "too many additions to shared rows: {additions:?}");
    Ok(())
}

fn rows_are_read_by_batches() -> Outcome {
    count(None, ReadMode::Batch, 4, SECOND).map(drop)
}

/// More rows are worth a private one than there are: the others stay shared.
fn private_rows_run_out() -> Outcome {
    let meter = count(Some(3), ReadMode::Auto, 40, SECOND / 100)?;
    let (syscalls, slots) = meter.drain.private_rows();
    ensure!(syscalls <= 3 && slots <= 3, "{syscalls} and {slots} private rows instead of 3");
    Ok(())
}

/// Passes that are minutes apart take each row back that paused for a moment. Slots come and go meanwhile.
fn private_rows_are_taken_back_and_given_again() -> Outcome {
    if possible_cpus() < 2 {
        skip!("a CPU alone shares nothing");
    }
    let is_done = AtomicBool::new(false);
    let meter = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                harmless::call(harmless::CALLS[39]);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let meter = count(None, ReadMode::Auto, 20, 61 * SECOND);
        is_done.store(true, Ordering::Relaxed);
        meter
    })?;
    let again = meter.drain.private_rows_taken();
    let (syscalls, slots) = meter.drain.private_rows();
    println!("{again} private rows were taken, {syscalls} and {slots} are in use");
    ensure!(
        again > 10 * u64::from(syscalls + slots).max(20),
        "{again} private rows were taken in all: none came back"
    );
    Ok(())
}
