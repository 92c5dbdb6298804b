//! In: an engine after a pass; out: the agent's own metrics. Decides nothing and keeps nothing.

use kernmeter_abi::{Loss, Total};

use crate::catalog::family::Scale;
use crate::catalog::{self, PROBES};
use crate::drain::Batch;
use crate::engine::{self, Engine, PassReport, probe_state};
use crate::host::possible_cpus;
use crate::kernel::{HookStatus, ProgramStats};
use crate::kubernetes::Pods;
use crate::selfmetrics::process::read_process_stats;
use crate::selfmetrics::{MapUsage, PodWatchFigures, ProbeState, SelfMetrics};

/// Everything that a pass can tell.
pub(super) fn tell(own: &SelfMetrics, engine: &Engine, report: &PassReport, pods: Option<&Pods>) {
    let programs = engine.kernel().program_stats();
    own.observe_drain(report.took);
    accounting(own, engine, report);
    totals(own, engine.batch());
    losses(own, engine.batch(), &programs);
    run_times(own, &programs);
    slots_and_maps(own, engine);
    attribution(own, engine, report);
    if let Some(pods) = pods {
        pod_source(own, engine, pods);
    }
    series(own, engine);
    if let Ok(stats) = read_process_stats() {
        own.set_process(&stats);
    }
}

fn accounting(own: &SelfMetrics, engine: &Engine, report: &PassReport) {
    own.set_accounting_errors(report.error_ratios(possible_cpus()));
    let outcomes = engine.audited().outcomes();
    own.set_audit_readings(outcomes.map(|(outcome, n)| (outcome.as_str(), n)));
}

fn totals(own: &SelfMetrics, batch: &Batch) {
    let of = |scale: Scale| {
        let scaled = Total::ALL.iter().filter(move |total| catalog::scale_of(**total) == scale);
        scaled.map(|total| (total.as_str(), batch.totals_after[*total as usize]))
    };
    own.set_kernel_events(&of(Scale::One).collect::<Vec<_>>());
    let seconds = of(Scale::NanosToSeconds)
        .map(|(total, nanoseconds)| (total.trim_end_matches("_ns"), nanoseconds as f64 / 1e9));
    own.set_kernel_seconds(&seconds.collect::<Vec<_>>());
}

fn losses(own: &SelfMetrics, batch: &Batch, programs: &[ProgramStats]) {
    // A program that is already running on a CPU is not started again there: the kernel counts what it missed.
    let missed = programs.iter().map(|program| program.missed).sum();
    let losses = Loss::ALL.iter().map(|loss| ("kernel", loss.as_str(), batch.losses[*loss as usize]));
    own.set_events_lost(&losses.chain([("kernel", "recursion", missed)]).collect::<Vec<_>>());
}

fn run_times(own: &SelfMetrics, programs: &[ProgramStats]) {
    let ran = programs.iter().filter(|program| program.runs > 0);
    let ran = ran.map(|program| (program.program, program.run_ns as f64 / 1e9, program.runs));
    own.set_programs(&ran.collect::<Vec<_>>());
}

fn slots_and_maps(own: &SelfMetrics, engine: &Engine) {
    let slots = engine.slot_counts();
    own.set_slots(slots.free.into(), slots.live.into(), slots.dead.into());
    own.set_slots_recycled(engine.slot_generations());
    let (syscall_rows, errno_rows) = engine.rows_used();
    let (private_syscall_rows, private_slot_rows) = engine.private_rows();
    own.set_private_rows(private_syscall_rows.into(), private_slot_rows.into());
    let additions = engine.additions();
    own.set_row_events(additions.private, additions.shared);
    let maps = engine.kernel().map_sizes().iter().map(|size| MapUsage {
        map: &size.name,
        // Of the others nobody counts the entries, or they are always all in use.
        entries: match size.name.as_str() {
            "SLOTS" => Some(u64::from(slots.live + slots.dead)),
            "SLOT_ROWS" => Some(u64::from(slots.live + slots.dead + private_slot_rows)),
            "SYS_KEYS" => Some(syscall_rows.into()),
            "SYS_ROWS" => Some(u64::from(syscall_rows + private_syscall_rows)),
            "ERR_INDEX" | "ERR_KEYS" | "ERR_ROWS" => Some(errno_rows.into()),
            "SLOT_FREE" => Some(slots.free.into()),
            _ => None,
        },
        capacity: size.capacity.into(),
        memory_bytes: size.memory_bytes.unwrap_or_default(),
    });
    own.set_maps(&maps.collect::<Vec<_>>());
}

fn attribution(own: &SelfMetrics, engine: &Engine, report: &PassReport) {
    let attribution = engine.attribution();
    own.set_unresolved_slots(attribution.unresolved() as u64);
    let waiting = report.balances.iter().map(|balance| (balance.event, balance.waiting));
    own.set_unresolved_events(&waiting.collect::<Vec<_>>());
    own.set_identities_given_up(attribution.given_up().iter().map(|(reason, n)| (*reason, *n)));
    own.set_tenant_rule_refusals(attribution.refusals().iter().map(|(reason, n)| (*reason, *n)));
}

fn pod_source(own: &SelfMetrics, engine: &Engine, pods: &Pods) {
    let cache = engine.pods();
    let states = cache.counts().map(|(state, pods)| (state, pods as u64));
    own.set_pods(states, cache.memory_bytes() as u64);
    let figures = pods.stats();
    figures.syncs.iter().for_each(|took| own.observe_sync(*took));
    own.set_pod_source(&PodWatchFigures {
        restarts: &figures.restarts,
        dropped: &figures.dropped,
        last_event_age: figures.last_event_age,
        handler_max: figures.longest_handler_run,
    });
}

fn series(own: &SelfMetrics, engine: &Engine) {
    own.set_series(engine.registry().lines().map(|(tenant, lines)| (tenant, lines as u64)));
    own.set_series_limited(engine.registry().limited());
}

/// Which probes are in place. One that is off has no sample.
pub(super) fn probes(own: &SelfMetrics, hooks: &[HookStatus]) {
    let known: Vec<_> = PROBES.iter().map(|probe| (probe.name, probe_state(hooks, probe))).collect();
    let states = known.iter().filter_map(|(probe, state)| {
        let (detached, caveat) = match state {
            engine::ProbeState::Off => return None,
            engine::ProbeState::Attached(caveat) => (None, caveat.as_deref()),
            engine::ProbeState::Failed(reason) => (Some(reason.as_str()), None),
        };
        Some(ProbeState { probe, detached, caveat })
    });
    own.set_probes(&states.collect::<Vec<_>>());
}
