//! In: the kernel's type information; out: for every program whether this kernel accepts it, and how many instructions
//! its verifier looked at. Attaches nothing, and uses the smallest maps.

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::{BtfTracePoint, Iter, Program, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, EbpfLoader};
use kernmeter::catalog;
use kernmeter::host::{BTF_PATH, Lockdown, lockdown};
use kernmeter::kernel::rejection::{Rejection, chain};
use kernmeter::kernel::{object, offsets};

use crate::report::Report;

/// Loads every program of the object once, those included that the agent would not need on this kernel.
///
/// # Errors
/// The kernel refused the maps, or a program.
pub fn check(report: &mut Report) -> Result<()> {
    let data = std::fs::read(BTF_PATH).with_context(|| format!("read {BTF_PATH}"))?;
    let mut constants = offsets::resolve(&kernmeter::btf::Btf::parse(data)?)?;
    constants.values.push(("HAS_PROBE_READ", u32::from(lockdown() != Lockdown::Confidentiality)));
    let mut loader = EbpfLoader::new();
    loader.btf(None).allow_unsupported_maps();
    for (name, value) in &constants.values {
        loader.override_global(name, value, true);
    }
    // Kernels before 5.11 hold the maps against it.
    kernmeter::lifecycle::unlimit_locked_memory();
    let mut ebpf = loader.load(object(constants.task_storage)).map_err(|error| anyhow!(chain(&error)))?;
    let btf = Btf::from_sys_fs()?;
    let mut rejected = Vec::new();
    let mut programs: Vec<(&str, &mut Program)> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| *name);
    for (name, program) in programs {
        match load(name, program, &btf) {
            Ok(()) => {
                let info = program.info().ok();
                report.accepted(name, info.and_then(|info| info.verified_instruction_count()));
            }
            Err(error) => {
                report.rejected(name, &Rejection::from(error).to_string());
                rejected.push(name);
            }
        }
    }
    if !rejected.is_empty() {
        bail!("the kernel rejected {}", rejected.join(", "));
    }
    Ok(())
}

/// Loads one program the way its kind asks for.
fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(_) => {
            let mut hooks = catalog::PROBES.iter().flat_map(|probe| probe.hooks);
            let hook = hooks.find(|hook| hook.program == name);
            <&mut BtfTracePoint>::try_from(program)?.load(hook.map_or(name, |hook| hook.tracepoint), btf)
        }
        Program::RawTracePoint(_) => <&mut RawTracePoint>::try_from(program)?.load(),
        Program::TracePoint(_) => <&mut TracePoint>::try_from(program)?.load(),
        Program::Iter(_) => <&mut Iter>::try_from(program)?.load("task", btf),
        // A kind this does not know yet must not pass unseen.
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
