//! In: a hook and what the kernel can do; out: the program that serves it, loaded, then attached, or why not. Knows no maps.

use std::fmt;
use std::os::fd::AsFd as _;

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf};

use super::event::{self, EventError, EventLink};
use super::offsets::Constants;
use super::rejection::Rejection;
use crate::catalog::{EventVariant, Hook, Probe, Stage};
use crate::config::AttachMode;

/// A program in its place. It leaves when this is dropped.
#[derive(Debug)]
pub enum Link {
    /// On a tracepoint.
    Tracepoint(FdLink),
    /// On a trace event.
    Event(EventLink),
}

/// The embedded object lacks a program: a build mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingProgram(pub &'static str);

/// Why a hook is not in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// The configuration allows raw tracepoints only, and no program serves this hook there.
    #[error("BTF tracepoints are switched off by `kernel.attach`")]
    BtfSwitchedOff,
    /// The kernel rejected the program.
    #[error("the kernel rejected it: {0}{advice}", advice = advice(.0))]
    Rejected(Rejection),
    /// Nor did the raw tracepoint serve.
    #[error("{btf}; and as a raw tracepoint: {raw}{advice}", advice = advice(.raw))]
    RejectedTwice {
        /// Why not on the BTF tracepoint.
        btf: Box<HookError>,
        /// Why not on the raw one.
        raw: Rejection,
    },
    /// The kernel accepted the program but does not attach it.
    #[error("the kernel does not attach it: {0}{advice}", advice = advice(.0))]
    NotAttached(Rejection),
    /// The trace event cannot be had.
    #[error("{0}")]
    Event(String),
}

/// What to do about a rejection.
fn advice(rejection: &Rejection) -> &'static str {
    if rejection.is_forbidden() { "; run as root or with CAP_BPF and CAP_PERFMON" } else { "" }
}

impl From<EventError> for HookError {
    fn from(error: EventError) -> Self {
        Self::Event(error.to_string())
    }
}

/// What an attached program may miss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caveat {
    /// The kernel may preempt it. Why it does not run on a trace event; `None` if the configuration asks for raw tracepoints.
    Preemptible(Option<HookError>),
    /// It is the variant on a raw tracepoint, and the kernel refused the whole one for this reason.
    Raw(HookError),
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preemptible = "this kernel preempts programs on the tracepoint and then skips them for other tasks of that cpu: \
                           such events are lost, and counted as `recursion`; ";
        match self {
            Self::Preemptible(Some(why)) => write!(f, "{preemptible}{why}"),
            Self::Preemptible(None) => write!(f, "{preemptible}`kernel.attach` asks for raw tracepoints"),
            Self::Raw(why) => write!(f, "it runs on the raw tracepoint, where it may see less; {why}"),
        }
    }
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookState {
    /// Its program is loaded and waits to be attached.
    Loaded,
    /// It is in place, perhaps with something it may miss.
    Attached(Vec<Caveat>),
    /// It is not in place: what it counts is missing.
    Failed(HookError),
}

/// A hook and what became of it.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// The probe it belongs to.
    pub probe: &'static Probe,
    /// The hook.
    pub hook: &'static Hook,
    /// The program in use: the hook's, or a variant of it.
    pub program: &'static str,
    /// What became of it.
    pub state: HookState,
    /// Why the variant on a trace event does not serve, if it was tried.
    no_event: Option<HookError>,
    /// Why the variant on a raw tracepoint had to do; `None` also if the configuration asks for it.
    no_btf: Option<HookError>,
    /// Whether the kernel may preempt a program on this hook's tracepoint.
    preemptible: bool,
}

impl HookStatus {
    /// Why it is not in place.
    pub fn failure(&self) -> Option<&HookError> {
        if let HookState::Failed(error) = &self.state { Some(error) } else { None }
    }

    /// What it may miss although it is in place.
    pub fn caveats(&self) -> &[Caveat] {
        if let HookState::Attached(caveats) = &self.state { caveats } else { &[] }
    }
}

/// Loads the program of a hook, or a variant of it: the one on a trace event where the kernel would preempt the others (or
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
) -> Result<HookStatus, MissingProgram> {
    let mut status = HookStatus {
        probe,
        hook,
        program: hook.program,
        state: HookState::Loaded,
        no_event: None,
        no_btf: None,
        preemptible: constants.preemptible && hook.event_variant.is_some(),
    };
    if let Some(variant) = event_variant(hook, mode, constants) {
        match load_event(ebpf, variant, hook)? {
            Ok(()) => {
                status.program = variant.program;
                return Ok(status);
            }
            Err(error) => status.no_event = Some(error),
        }
    }
    let refused = if mode == AttachMode::Raw && probe.stage != Stage::Cgroups {
        HookError::BtfSwitchedOff
    } else {
        match program::<BtfTracePoint>(ebpf, hook.program)?.load(hook.tracepoint, btf) {
            Ok(()) => return Ok(status),
            Err(error) => HookError::Rejected(error.into()),
        }
    };
    let Some(raw) = hook.raw_variant else {
        status.state = HookState::Failed(refused);
        return Ok(status);
    };
    status.program = raw;
    match program::<RawTracePoint>(ebpf, raw)?.load() {
        Ok(()) => status.no_btf = Some(refused).filter(|error| *error != HookError::BtfSwitchedOff),
        Err(error) => {
            let error = HookError::RejectedTwice { btf: Box::new(refused), raw: error.into() };
            status.state = HookState::Failed(error);
        }
    }
    Ok(status)
}

/// A program of the object, of the kind that its section says.
pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, MissingProgram>
where
    &'a mut T: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(MissingProgram(name))
}

/// The hook's variant on a trace event, where it is wanted and the kernel's record has what it reads.
fn event_variant(
    hook: &'static Hook,
    mode: AttachMode,
    constants: &Constants,
) -> Option<&'static EventVariant> {
    let wanted = match mode {
        AttachMode::Auto => constants.preemptible,
        AttachMode::Raw => false,
        AttachMode::Event => true,
    };
    hook.event_variant.as_ref().filter(|variant| wanted && constants.events.contains(&variant.program))
}

/// Loads a program for a trace event, if the event can be had.
fn load_event(
    ebpf: &mut Ebpf,
    variant: &EventVariant,
    hook: &Hook,
) -> Result<Result<(), HookError>, MissingProgram> {
    let program: &mut TracePoint = program(ebpf, variant.program)?;
    // Opening the event now tells whether it can be had while there is still another way.
    let loaded = program.load().map_err(|error| HookError::Rejected(error.into()));
    Ok(loaded.and_then(|()| Ok(event::open(variant.group, hook.tracepoint).map(drop)?)))
}

impl HookStatus {
    /// Attaches the loaded program. If that fails the status says why.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf) -> Option<Link> {
        if self.state != HookState::Loaded {
            return None;
        }
        let program = ebpf.program_mut(self.program)?;
        match attach(program, self.hook) {
            Ok(link) => {
                let may_miss = self.preemptible && matches!(link, Link::Tracepoint(_));
                self.state = HookState::Attached(caveats(may_miss, self.no_event.take(), self.no_btf.take()));
                Some(link)
            }
            Err(error) => {
                self.state = HookState::Failed(error);
                None
            }
        }
    }
}

/// What there is to be said of a program in its place. What another kind of program was refused for matters only where this one
/// is worse.
fn caveats(preemptible: bool, no_event: Option<HookError>, no_btf: Option<HookError>) -> Vec<Caveat> {
    let preemptible = preemptible.then_some(Caveat::Preemptible(no_event));
    preemptible.into_iter().chain(no_btf.map(Caveat::Raw)).collect()
}

fn attach(program: &mut Program, hook: &Hook) -> Result<Link, HookError> {
    let refused = |error: ProgramError| HookError::NotAttached(error.into());
    match program {
        Program::BtfTracePoint(program) => {
            let link = program.attach().and_then(|id| program.take_link(id));
            link.map(|link| Link::Tracepoint(link.into())).map_err(refused)
        }
        Program::RawTracePoint(program) => {
            let link = program.attach(hook.tracepoint).and_then(|id| program.take_link(id));
            link.map(|link| Link::Tracepoint(link.into())).map_err(refused)
        }
        Program::TracePoint(program) => {
            let group = hook.event_variant.as_ref().map_or("", |variant| variant.group);
            let program = program.fd().map_err(refused)?;
            Ok(Link::Event(event::open(group, hook.tracepoint)?.attach(program.as_fd())?))
        }
        _ => Err(refused(ProgramError::UnexpectedProgramType)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_raw_program_in_place_of_a_refused_one_is_told() {
        let refused = || HookError::Rejected(Rejection::of(&io::Error::from_raw_os_error(libc::EINVAL)));
        assert_eq!(caveats(false, None, None), []);
        assert_eq!(
            caveats(false, Some(refused()), None),
            [],
            "nothing preempts it: a trace event is not needed"
        );
        let [raw] = &caveats(false, None, Some(refused()))[..] else { panic!("one caveat") };
        let text = raw.to_string();
        assert!(text.contains("raw tracepoint") && text.contains("Invalid argument"), "{text}");
        let both = caveats(true, Some(refused()), Some(refused()));
        assert_eq!(both, [Caveat::Preemptible(Some(refused())), Caveat::Raw(refused())]);
        assert!(both[0].to_string().contains("recursion"), "{}", both[0]);
    }
}
