//! In: the kernel's type information; out: for every program whether this kernel accepts it, and how many instructions
//! its verifier looked at. Attaches nothing.

use anyhow::{Context, Result, bail};
use aya::programs::{Iter, Program, RawTracePoint};
use kernmeter::btf::Btf;
use kernmeter::engine::BTF_PATH;
use kernmeter::probes::load::{Kernel, lockdown, possible_cpus};
use kernmeter::probes::offsets;
use kernmeter::probes::size::{Plan, Wishes};

use crate::report::Report;

/// Loads every program once, as the agent does. Fails when one was rejected.
///
/// # Errors
/// What the kernel refused, the names of rejected programs.
pub fn check(report: &mut Report) -> Result<()> {
    let data = std::fs::read(BTF_PATH).with_context(|| format!("read {BTF_PATH}"))?;
    let btf = Btf::parse(data)?;
    let mut constants = offsets::resolve(&btf)?;
    for (name, value) in &constants.values {
        report.line(&format!("note {name}={value}"));
    }
    drop(btf);
    constants.values.push(("HAS_PROBE_READ", u32::from(lockdown() != "confidentiality")));
    let wishes = Wishes { budget: 16 << 20, ..Wishes::default() };
    let mut kernel = Kernel::load(Plan::new(possible_cpus(), &wishes)?, &constants)?;
    let mut rejected = Vec::new();
    let reasons: Vec<(&str, String)> =
        kernel.hooks().iter().map(|status| (status.hook.program, status.reason.clone())).collect();
    let own_btf = aya::Btf::from_sys_fs()?;
    let names: Vec<String> = kernel.ebpf_mut().programs().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        let Some(program) = kernel.ebpf_mut().program_mut(&name) else { continue };
        if let Ok(info) = program.info() {
            report.accepted(&name, info.verified_instruction_count());
            continue;
        }
        let reason = match reasons.iter().find(|(program, _)| *program == name) {
            Some((_, reason)) => reason.clone(),
            None => again(program, &own_btf),
        };
        report.rejected(&name, &reason);
        rejected.push(name);
    }
    if !rejected.is_empty() {
        rejected.sort();
        bail!("the kernel rejected {} of the programs: {}", rejected.len(), rejected.join(", "));
    }
    Ok(())
}

/// Loads a program that belongs to no hook once more, for the reason.
fn again(program: &mut Program, btf: &aya::Btf) -> String {
    let tried = match program {
        Program::Iter(_) => {
            <&mut Iter>::try_from(program).map_err(|e| e.to_string()).map(|p| p.load("task", btf))
        }
        Program::RawTracePoint(_) => {
            <&mut RawTracePoint>::try_from(program).map_err(|e| e.to_string()).map(RawTracePoint::load)
        }
        _ => return "not loaded: it belongs to no hook".to_owned(),
    };
    match tried {
        Ok(Ok(())) => "accepted at the second attempt only".to_owned(),
        Ok(Err(error)) => format!("{:#}", anyhow::Error::new(error)),
        Err(error) => error,
    }
}
