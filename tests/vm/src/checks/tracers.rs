//! In: the kernel's type information; out: whether the agent counts exactly beside programs of other tracers (an fentry, a
//! kprobe, a raw tracepoint) on the very call that is counted. Knows the agent's programs not at all.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use kernmeter::btf::Btf;
use kernmeter::host::BTF_PATH;
use kernmeter_tests::{Agent, Hierarchy, Settings, Workload};

use super::{all_arrive, stop};
use crate::machine;

/// What is traced: the kernel's function behind `getppid`.
const FUNCTION: &str = "__do_sys_getppid";
const CALLS: u64 = 20_000;

// Numbers of include/uapi/linux/bpf.h and perf_event.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const TYPE_KPROBE: u32 = 2;
const TYPE_RAW_TRACEPOINT: u32 = 17;
const TYPE_TRACING: u32 = 26;
const TRACE_FENTRY: u32 = 24;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;

/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0xb7, 0x95];

/// Somebody else's program, attached as long as this lives.
struct Tracer {
    name: &'static str,
    /// The event or link, then the program.
    _held: [OwnedFd; 2],
}

fn bpf(command: libc::c_int, attributes: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are as long as said; what they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Loads a program that does nothing.
fn load(name: &str, kind: u32, attach_type: u32, function: u32) -> Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut label = [0u8; 16];
    label[..name.len()].copy_from_slice(name.as_bytes());
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| label[at + i]));
    // union bpf_attr of BPF_PROG_LOAD, two 32-bit fields a word, the first in the low half.
    let mut attributes = [0u64; 16];
    attributes[0] = u64::from(kind) | (NOTHING.len() as u64) << 32;
    attributes[1] = NOTHING.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    (attributes[6], attributes[7]) = (word(0), word(8));
    attributes[8] = u64::from(attach_type) << 32;
    attributes[13] = u64::from(function) << 32;
    bpf(BPF_PROG_LOAD, &attributes).with_context(|| format!("load `{name}`"))
}

fn fentry(btf: &Btf) -> Result<Tracer> {
    let function = btf.function(FUNCTION)?.with_context(|| format!("no function `{FUNCTION}`"))?;
    let program = load("other_fentry", TYPE_TRACING, TRACE_FENTRY, function)?;
    let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &[0, program.as_raw_fd() as u64]).context("attach the fentry")?;
    Ok(Tracer { name: "other_fentry", _held: [link, program] })
}

fn raw_tracepoint() -> Result<Tracer> {
    let program = load("other_raw", TYPE_RAW_TRACEPOINT, 0, 0)?;
    let at = c"sys_enter";
    let attributes = [at.as_ptr() as u64, program.as_raw_fd() as u64];
    let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes).context("attach the raw tracepoint")?;
    Ok(Tracer { name: "other_raw", _held: [link, program] })
}

fn kprobe() -> Result<Tracer> {
    let program = load("other_kprobe", TYPE_KPROBE, 0, 0)?;
    let kind = fs::read_to_string("/sys/bus/event_source/devices/kprobe/type").context("no kprobes")?;
    let function = CString::new(FUNCTION)?;
    // struct perf_event_attr, version 1: type and size, then 64-bit words; config1 is the function's name.
    let mut attributes = [0u64; 9];
    attributes[0] = kind.trim().parse::<u64>()? | (size_of_val(&attributes) as u64) << 32;
    attributes[7] = function.as_ptr() as u64;
    // SAFETY: the attributes and the name they point to outlive the call.
    let event = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, 8) };
    ensure!(event >= 0, "open the kprobe: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    let event = unsafe { OwnedFd::from_raw_fd(event as i32) };
    for (request, value) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both requests take a number.
        let r = unsafe { libc::ioctl(event.as_raw_fd(), request, value) };
        ensure!(r == 0, "attach the kprobe: {}", io::Error::last_os_error());
    }
    Ok(Tracer { name: "other_kprobe", _held: [event, program] })
}

/// How often a program has run since statistics were switched on.
fn runs(name: &str) -> Result<u64> {
    for program in loaded_programs() {
        let program = program?;
        if program.name_as_str() == Some(name) {
            return Ok(program.run_count());
        }
    }
    anyhow::bail!("`{name}` is not loaded")
}

/// Three tracers of somebody else's on the same call: attached before the agent, then gone while it runs, then back.
pub fn beside_others() -> Result<()> {
    let btf = Btf::parse(fs::read(BTF_PATH).with_context(|| format!("read {BTF_PATH}"))?)?;
    let _statistics = enable_stats(Stats::RunTime)?;
    let attach = || -> Result<Vec<Tracer>> {
        let mut tracers = vec![fentry(&btf)?, raw_tracepoint()?];
        match kprobe() {
            Ok(tracer) => tracers.push(tracer),
            Err(error) if !machine::tells_names() => println!("under lockdown=confidentiality: {error:#}"),
            Err(error) => return Err(error),
        }
        Ok(tracers)
    };
    let mut tracers = attach()?;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("traced")?;
    for round in 1..=3 {
        if round == 2 {
            tracers.clear();
        } else if round == 3 {
            tracers = attach()?;
        }
        let (workload, _) = Workload::run(&tenant, &["syscalls", "--getppid", &CALLS.to_string()])?;
        workload.finish()?;
        all_arrive(&agent, "traced", round * CALLS)?;
        for tracer in &tracers {
            let runs = runs(tracer.name)?;
            println!("round {round}: `{}` ran {runs} times", tracer.name);
            ensure!(runs >= CALLS, "`{}` ran {runs} times beside {CALLS} calls", tracer.name);
        }
    }
    stop(agent)
}
