//! In: a hook and what the kernel can do; out: the program that serves it, loaded, then attached, or why not. Knows no maps.

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf};

use super::event::{self, EventLink};
use super::offsets::Constants;
use super::{LoadError, chain};
use crate::catalog::{EventTwin, Hook, Probe, cgroup};
use crate::config::AttachMode;

/// Why a loaded program is not attached yet.
const WAITING: &str = "not attached yet";

/// A program in its place. It leaves when this is dropped.
#[derive(Debug)]
pub enum Link {
    /// On a tracepoint.
    Tracepoint(FdLink),
    /// On a trace event.
    Event(EventLink),
}

/// Whether a hook is in place, and if not why.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// The probe it belongs to.
    pub probe: &'static Probe,
    /// The hook.
    pub hook: &'static Hook,
    /// The program in use: the hook's, or a twin.
    pub program: &'static str,
    /// Empty when attached.
    pub reason: String,
    /// What the attached program may miss, and why; empty if nothing.
    pub caveat: String,
    /// Whether the kernel may preempt a program on this hook's tracepoint.
    preemptible: bool,
}

/// Loads the program of a hook, or a twin: the one on a trace event where the kernel would preempt the others (or
/// [`AttachMode::Event`] asks for it), the raw one where the kernel refuses the BTF tracepoint (or [`AttachMode::Raw`] asks
/// for it; cgroups have none).
///
/// # Errors
/// The object lacks a program. One that the kernel refuses is a status with its reason.
pub fn load_hook(
    ebpf: &mut Ebpf,
    btf: &Btf,
    probe: &'static Probe,
    hook: &'static Hook,
    mode: AttachMode,
    constants: &Constants,
) -> Result<HookStatus, LoadError> {
    let mut status = HookStatus {
        probe,
        hook,
        program: hook.program,
        reason: WAITING.to_owned(),
        caveat: String::new(),
        preemptible: constants.preemptible && hook.event_twin.is_some(),
    };
    if let Some(twin) = event_twin(hook, mode, constants) {
        match load_event(ebpf, twin, hook) {
            Ok(()) => {
                status.program = twin.program;
                return Ok(status);
            }
            Err(reason) => status.caveat = reason,
        }
    }
    let twin_only = mode == AttachMode::Raw && probe.name != cgroup::PROBE.name;
    let refused = if twin_only {
        "BTF tracepoints are switched off by `kernel.attach`".to_owned()
    } else {
        let program: &mut BtfTracePoint = ebpf
            .program_mut(hook.program)
            .and_then(|program| program.try_into().ok())
            .ok_or(LoadError::Missing(hook.program))?;
        match program.load(hook.tracepoint, btf) {
            Ok(()) => return Ok(status),
            Err(error) => explain(&error),
        }
    };
    let Some(twin) = hook.raw_twin else {
        status.reason = refused;
        return Ok(status);
    };
    let program: &mut RawTracePoint =
        ebpf.program_mut(twin).and_then(|program| program.try_into().ok()).ok_or(LoadError::Missing(twin))?;
    status.program = twin;
    if let Err(error) = program.load() {
        status.reason = format!("{refused}; and as a raw tracepoint: {}", explain(&error));
    }
    Ok(status)
}

/// The hook's twin on a trace event, where it is wanted and the kernel's record has what it reads.
fn event_twin(hook: &'static Hook, mode: AttachMode, constants: &Constants) -> Option<&'static EventTwin> {
    let wanted = match mode {
        AttachMode::Auto => constants.preemptible,
        AttachMode::Raw => false,
        AttachMode::Event => true,
    };
    hook.event_twin.as_ref().filter(|twin| wanted && constants.events.contains(&twin.program))
}

/// Loads a program for a trace event, if the event can be had.
fn load_event(ebpf: &mut Ebpf, twin: &EventTwin, hook: &Hook) -> Result<(), String> {
    let program: &mut TracePoint = ebpf
        .program_mut(twin.program)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| LoadError::Missing(twin.program).to_string())?;
    program.load().map_err(|error| explain(&error))?;
    // Opening the event now tells whether it can be had while there is still another way.
    event::open(twin.group, hook.tracepoint).map(drop).map_err(|error| error.to_string())
}

impl HookStatus {
    /// Attaches the loaded program. If that fails the status keeps the reason.
    pub fn attach(&mut self, ebpf: &mut Ebpf) -> Option<Link> {
        if self.reason != WAITING {
            return None;
        }
        let program = ebpf.program_mut(self.program)?;
        match attach(program, self.hook) {
            Ok(link) => {
                self.reason.clear();
                if self.preemptible && matches!(link, Link::Tracepoint(_)) {
                    self.caveat = may_miss(&self.caveat);
                } else {
                    self.caveat.clear();
                }
                Some(link)
            }
            Err(reason) => {
                self.reason = reason;
                None
            }
        }
    }
}

/// What a preemptible program misses, and why it has to be one.
fn may_miss(why: &str) -> String {
    let why = if why.is_empty() { "`kernel.attach` asks for raw tracepoints" } else { why };
    format!(
        "this kernel preempts programs on the tracepoint and then skips them for other tasks of that cpu: such events are \
         lost, and counted as `recursion`; {why}"
    )
}

fn attach(program: &mut Program, hook: &Hook) -> Result<Link, String> {
    match program {
        Program::BtfTracePoint(program) => {
            let link = program.attach().and_then(|id| program.take_link(id));
            link.map(|link| Link::Tracepoint(link.into())).map_err(|error| explain(&error))
        }
        Program::RawTracePoint(program) => {
            let link = program.attach(hook.tracepoint).and_then(|id| program.take_link(id));
            link.map(|link| Link::Tracepoint(link.into())).map_err(|error| explain(&error))
        }
        Program::TracePoint(program) => {
            use std::os::fd::AsFd as _;
            let group = hook.event_twin.as_ref().map_or("", |twin| twin.group);
            let program = program.fd().map_err(|error| explain(&error))?;
            event::open(group, hook.tracepoint)
                .and_then(|event| event.attach(program.as_fd()))
                .map(Link::Event)
                .map_err(|error| error.to_string())
        }
        _ => Err(chain(&ProgramError::UnexpectedProgramType)),
    }
}

/// A program error in a line: for a rejected program, the verifier's last words.
pub(super) fn explain(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let mut last: Vec<&str> =
                log.lines().rev().filter(|line| !line.is_empty() && !is_statistics(line)).take(3).collect();
            last.reverse();
            let advice = match io_error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) if last.is_empty() => {
                    "; run as root or with CAP_BPF and CAP_PERFMON"
                }
                _ => "",
            };
            format!("the kernel rejected it: {io_error}{advice}; {}", last.join(" | "))
        }
        other => chain(other),
    }
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "verification time", "stack depth", "max_states"]
        .iter()
        .any(|start| line.starts_with(start))
}
