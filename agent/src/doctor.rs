//! In: this host, read only; out: what can run here, what cannot, why, and what to do. Loads nothing, changes nothing.

use std::fmt;

use caps::{CapSet, Capability};
use serde::Serialize;

use crate::btf::Btf;
use crate::catalog;
use crate::host::{BTF_PATH, Lockdown, lockdown, possible_cpus, total_memory};
use crate::identity::tree::{Hierarchy, Mode};
use crate::kernel::size::{Plan, TooSmall, Wishes, budget_on};
use crate::kernel::{event, offsets};
use crate::kubernetes::{Environment, KubernetesError, Settings, Source};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Fine.
    Ok,
    /// The agent runs, with something missing.
    Warn,
    /// The agent cannot run.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

/// Everything looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The checks, in order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether the agent would meter here.
    pub fn can_meter(&self) -> bool {
        self.checks.iter().all(|check| check.outcome != Outcome::Fail)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            let outcome = match check.outcome {
                Outcome::Ok => "ok  ",
                Outcome::Warn => "warn",
                Outcome::Fail => "FAIL",
            };
            writeln!(f, "{outcome}  {:width$}  {}", check.name, check.found)?;
            if !check.remedy.is_empty() {
                writeln!(f, "      {:width$}  -> {}", "", check.remedy)?;
            }
        }
        let verdict = if self.can_meter() {
            "this host can be metered"
        } else {
            "this host cannot be metered as it is"
        };
        writeln!(f, "\n{verdict}")
    }
}

/// Looks at everything the agent needs.
pub fn examine() -> Report {
    let btf = read_btf();
    let mut checks = vec![kernel(), privileges(), locked_down(), btf_check(&btf), cgroups()];
    checks.extend(btf.as_ref().ok().map(task_state));
    checks.extend(btf.as_ref().ok().map(preemption));
    checks.extend(probe_checks(btf.as_ref().ok()));
    checks.push(memory(btf.as_ref().ok()));
    checks.push(pods());
    checks.push(statistics());
    Report { checks }
}

fn check(name: &str, outcome: Outcome, found: impl Into<String>, remedy: &str) -> Check {
    Check { name: name.to_owned(), outcome, found: found.into(), remedy: remedy.to_owned() }
}

/// From where pods would be learnt with the default configuration.
fn pods() -> Check {
    const NAME: &str = "pods";
    let here = Environment::current();
    match Settings::resolve(&crate::config::Kubernetes::default(), &here) {
        Ok(None) if here.service_account => {
            check(NAME, Outcome::Warn, "pods are known by UID only", &KubernetesError::NoNode.to_string())
        }
        Ok(Some(Settings { source: Source::Api { node, .. }, .. })) => {
            check(NAME, Outcome::Ok, format!("told by the Kubernetes API, those of node `{node}`"), "")
        }
        Ok(_) => check(
            NAME,
            Outcome::Ok,
            "no Kubernetes service account here: pods, if there are any, are known by UID; see `kubernetes.pods`",
            "",
        ),
        Err(error) => check(NAME, Outcome::Warn, "pods are known by UID only", &error.to_string()),
    }
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    check("kernel", Outcome::Ok, format!("Linux {release}"), "")
}

fn privileges() -> Check {
    // Always readable for the own thread; without an answer nothing is held.
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    if effective.contains(&Capability::CAP_SYS_ADMIN) {
        return check("privileges", Outcome::Ok, "CAP_SYS_ADMIN (more than needed)", "");
    }
    let missing: Vec<_> = [Capability::CAP_BPF, Capability::CAP_PERFMON]
        .iter()
        .filter(|capability| !effective.contains(capability))
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        check("privileges", Outcome::Ok, "CAP_BPF, CAP_PERFMON", "")
    } else {
        check(
            "privileges",
            Outcome::Fail,
            format!("missing {}", missing.join(", ")),
            "run as root, or give the process CAP_BPF and CAP_PERFMON",
        )
    }
}

fn locked_down() -> Check {
    match lockdown() {
        Lockdown::Confidentiality => check(
            "lockdown",
            Outcome::Warn,
            "confidentiality: programs cannot read names of cgroups",
            "names are learnt from /sys instead, late; boot with lockdown=integrity to have them at once",
        ),
        mode => check("lockdown", Outcome::Ok, mode.to_string(), ""),
    }
}

fn read_btf() -> Result<Btf, String> {
    let data = std::fs::read(BTF_PATH).map_err(|error| error.to_string())?;
    Btf::parse(data).map_err(|error| error.to_string())
}

fn btf_check(btf: &Result<Btf, String>) -> Check {
    match btf {
        Ok(btf) => match offsets::resolve(btf) {
            Ok(constants) => check(
                "kernel types",
                Outcome::Ok,
                format!("{BTF_PATH}, {} constants found", constants.values.len()),
                "",
            ),
            Err(error) => check(
                "kernel types",
                Outcome::Fail,
                error.to_string(),
                "this kernel is not supported yet: report it",
            ),
        },
        Err(error) => check(
            "kernel types",
            Outcome::Fail,
            format!("cannot read `{BTF_PATH}`: {error}"),
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y and let the agent read /sys/kernel/btf",
        ),
    }
}

/// Where programs keep what they know of each task.
fn task_state(btf: &Btf) -> Check {
    const NAME: &str = "task state";
    if offsets::has_task_storage(btf) {
        return check(NAME, Outcome::Ok, "kept by the kernel with each task", "");
    }
    if lockdown() == Lockdown::Confidentiality {
        return check(
            NAME,
            Outcome::Fail,
            "this kernel keeps no state of tasks for tracing programs, and lockdown forbids reading it from memory",
            "boot with lockdown=integrity, or upgrade to Linux 5.13 or newer",
        );
    }
    let tasks = plan(true).map_or(0, |plan| plan.tasks);
    check(
        NAME,
        Outcome::Warn,
        format!(
            "this kernel keeps no state of tasks for tracing programs: a table holds that of {tasks} tasks; calls of tasks \
             beyond are counted without name and duration, with the reason `task_state_failed`"
        ),
        "upgrade to Linux 5.13 or newer, which has no such limit; before 5.11 let the agent lift its limit on locked memory \
         (CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity)",
    )
}

/// Whether programs can run with preemption off, without which they miss events on kernels that preempt them.
fn preemption(btf: &Btf) -> Check {
    const NAME: &str = "preemption";
    if !offsets::is_preemptible(btf).unwrap_or(false) {
        return check(NAME, Outcome::Ok, "off while programs on tracepoints of system calls run", "");
    }
    let hooks = catalog::PROBES.iter().flat_map(|probe| probe.hooks);
    let mut events = hooks.filter_map(|hook| Some((hook.event_variant.as_ref()?.group, hook.tracepoint)));
    match events.find_map(|(group, name)| event::number(group, name).err()) {
        None => check(
            NAME,
            Outcome::Ok,
            "this kernel preempts programs on tracepoints: trace events are used",
            "",
        ),
        Some(_) if lockdown() == Lockdown::Confidentiality => check(
            NAME,
            Outcome::Warn,
            "this kernel preempts programs on tracepoints, and then skips them for others; lockdown hides the trace events \
             that would serve instead",
            "boot with lockdown=integrity; until then events are lost on busy cpus, and counted as `recursion` in \
             kernmeter_events_lost_total",
        ),
        Some(error) => check(
            NAME,
            Outcome::Warn,
            format!("this kernel preempts programs on tracepoints, and then skips them for others: {error}"),
            "until then events are lost on busy cpus, and counted as `recursion` in kernmeter_events_lost_total",
        ),
    }
}

fn cgroups() -> Check {
    match Hierarchy::find() {
        Ok(found) => {
            let mode = match found.mode {
                Mode::Unified => "v2",
                Mode::Hybrid => "v2 beside v1 controllers (hybrid)",
            };
            let at = found.mount.display();
            if found.is_whole() {
                check("cgroups", Outcome::Ok, format!("{mode}, at {at}"), "")
            } else {
                check(
                    "cgroups",
                    Outcome::Warn,
                    format!("{mode}, at {at}, but only a part of the hierarchy is mounted there"),
                    "mount the host's /sys/fs/cgroup into the agent's container",
                )
            }
        }
        Err(error) => {
            // The remedy ends the message, behind a separator.
            let text = error.to_string();
            let found = text.trim_end_matches(error.remedy()).trim_end_matches([' ', ';', ':']);
            check("cgroups", Outcome::Fail, found, error.remedy())
        }
    }
}

fn probe_checks(btf: Option<&Btf>) -> Vec<Check> {
    let Some(btf) = btf else {
        let lost = |probe: &&'static catalog::Probe| {
            let found = format!("cannot attach: {}", probe.summary);
            check(&format!("probe {}", probe.name), Outcome::Warn, found, "see `kernel types`")
        };
        return catalog::PROBES.iter().rev().map(lost).collect();
    };
    let one = |probe: &&'static catalog::Probe| {
        let missing: Vec<_> = probe
            .hooks
            .iter()
            .filter(|hook| !matches!(btf.tracepoint_args(hook.tracepoint), Ok(Some(_))))
            .collect();
        let names = |hooks: &[&catalog::Hook]| {
            hooks.iter().map(|hook| format!("`{}`", hook.tracepoint)).collect::<Vec<_>>().join(", ")
        };
        let name = format!("probe {}", probe.name);
        let off = if probe.by_default { "" } else { " (off unless `kernel.additional_probes` names it)" };
        let remedy = "the kernel lacks these tracepoints: is it built with CONFIG_TRACEPOINTS and CONFIG_FTRACE_SYSCALLS?";
        if missing.is_empty() {
            check(
                &name,
                Outcome::Ok,
                format!("{} hooks found; {}{off}", probe.hooks.len(), probe.summary),
                "",
            )
        } else if missing.iter().all(|hook| hook.optional) {
            check(&name, Outcome::Warn, format!("without {}", names(&missing)), remedy)
        } else {
            check(&name, Outcome::Warn, format!("cannot attach: no {}", names(&missing)), remedy)
        }
    };
    catalog::PROBES.iter().rev().map(one).collect()
}

/// The sizes of maps on this host with the default budget.
fn plan(task_table: bool) -> Result<Plan, TooSmall> {
    let budget = budget_on(total_memory(), crate::config::Config::default().kernel.memory_budget);
    Plan::new(possible_cpus(), &Wishes { budget, task_table, ..Wishes::default() })
}

fn memory(btf: Option<&Btf>) -> Check {
    match plan(btf.is_some_and(|btf| !offsets::has_task_storage(btf))) {
        Ok(plan) => check(
            "kernel memory",
            Outcome::Ok,
            format!(
                "about {} MiB at the start and {} MiB at most, for {} slots and {} syscall rows on {} possible CPUs, \
                 with the default budget",
                plan.bytes_at_start().div_ceil(1 << 20),
                plan.bytes().div_ceil(1 << 20),
                plan.slots,
                plan.syscall_rows,
                plan.cpus
            ),
            "",
        ),
        Err(error) => check("kernel memory", Outcome::Fail, error.to_string(), ""),
    }
}

fn statistics() -> Check {
    match std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").as_deref().map(str::trim) {
        Ok("1") => check(
            "program statistics",
            Outcome::Warn,
            "kernel.bpf_stats_enabled is 1",
            "it adds about 40 ns to each program run; set it to 0 unless you are measuring",
        ),
        _ => check("program statistics", Outcome::Ok, "off", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_remedy_and_one_line() {
        let report = examine();
        for check in &report.checks {
            assert!(!check.found.contains('\n'), "{check:?}");
            // Errors of other rooms carry their own remedy.
            let own = check.found.contains(';') || check.found.contains(':') || !check.remedy.is_empty();
            assert!(check.outcome == Outcome::Ok || own, "{check:?}");
        }
        assert!(report.to_string().ends_with("it is\n") || report.can_meter());
    }
}
