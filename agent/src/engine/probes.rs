//! In: the catalogue, a configuration, what became of each hook; out: which probes run, which failed, which may miss events.
//! Loads nothing.

use super::StartError;
use crate::catalog::{PROBES, Probe};
use crate::config;
use crate::kernel::HookStatus;

/// Whether a probe runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// The configuration does not ask for it.
    Off,
    /// Each hook that it cannot do without is in place. With what it may miss, and why, if anything.
    Attached(Option<String>),
    /// It is not in place, and why.
    Failed(String),
}

/// The probes that a configuration asks for: those that run by default, those it adds, those it requires.
pub(super) fn chosen(kernel: &config::KernelOptions) -> Vec<&'static Probe> {
    let named = |probe: &Probe| {
        [&kernel.additional_probes, &kernel.required_probes]
            .iter()
            .any(|names| names.iter().any(|name| name == probe.name))
    };
    PROBES.iter().copied().filter(|probe| probe.by_default || named(probe)).collect()
}

/// What became of a probe.
pub fn probe_state(hooks: &[HookStatus], probe: &Probe) -> ProbeState {
    let mut own = hooks.iter().filter(|status| status.probe.name == probe.name).peekable();
    if own.peek().is_none() {
        return ProbeState::Off;
    }
    let mut caveat = None;
    for status in own {
        if let Some(error) = status.failure().filter(|_| !status.hook.optional) {
            return ProbeState::Failed(format!("`{}`: {error}", status.program));
        }
        caveat = caveat.or_else(|| Some(format!("`{}`: {}", status.program, status.caveats().first()?)));
    }
    ProbeState::Attached(caveat)
}

/// Refuses to run without a probe that the configuration requires, or without any; says what else is missing.
pub(super) fn check(hooks: &[HookStatus], required: &[String]) -> Result<(), StartError> {
    let failures: Vec<(&Probe, String)> = PROBES
        .iter()
        .filter_map(|probe| match probe_state(hooks, probe) {
            ProbeState::Failed(reason) => Some((*probe, reason)),
            ProbeState::Off | ProbeState::Attached(_) => None,
        })
        .collect();
    if let Some((probe, reason)) = failures.iter().find(|(probe, _)| required.iter().any(|r| r == probe.name))
    {
        return Err(StartError::Required(probe.name, reason.clone()));
    }
    let running = PROBES.iter().any(|probe| matches!(probe_state(hooks, probe), ProbeState::Attached(_)));
    if let Some((_, reason)) = failures.first().filter(|_| !running) {
        return Err(StartError::Blind(reason.clone()));
    }
    for status in hooks {
        let (probe, hook) = (status.probe.name, status.program);
        if let Some(reason) = status.failure() {
            tracing::warn!(probe, hook, %reason, "a hook could not attach: what it counts is missing");
        }
        for reason in status.caveats() {
            tracing::warn!(probe, hook, %reason, "a hook may miss events");
        }
    }
    Ok(())
}
