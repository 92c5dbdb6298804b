//! In: what `kernmeter doctor --json` says on this machine; out: whether it is content where the agent meters, and names
//! each lost ability with its remedy where something is missing.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use kernmeter::btf::Btf;
use kernmeter::host::BTF_PATH;
use kernmeter::kernel::offsets;
use kernmeter_tests::agent;

use crate::machine;

/// One line of doctor's.
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// `ok`, `warn` or `fail`.
    pub outcome: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: String,
}

/// All that doctor says.
pub struct Report {
    /// Its exit code said that the host can be metered.
    pub content: bool,
    /// Line by line.
    pub findings: Vec<Finding>,
}

/// What `kernmeter doctor --json` says. Whatever is not in order comes with a remedy.
pub fn examine() -> Result<Report> {
    let output = Command::new(agent::program()).args(["doctor", "--json"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let report: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("answer {text:?}"))?;
    let checks = report["checks"].as_array().context("no checks")?;
    let findings: Vec<Finding> = checks
        .iter()
        .map(|check| {
            let of = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            Finding { name: of("name"), outcome: of("outcome"), found: of("found"), remedy: of("remedy") }
        })
        .collect();
    for Finding { name, outcome, found, remedy } in &findings {
        println!("doctor: {outcome} {name}: {found} -> {remedy}");
        ensure!(outcome == "ok" || !remedy.is_empty(), "`{name}` is {outcome} without a remedy: {found}");
    }
    ensure!(findings.len() >= 6, "{} findings only", findings.len());
    Ok(Report { content: output.status.success(), findings })
}

/// Doctor finds nothing that keeps the agent from metering.
pub fn content() -> Result<()> {
    // Such a kernel is metered by other means, of which doctor tells.
    let table = ("task state", "warn", "Linux 5.13");
    let storage = offsets::has_task_storage(&types()?);
    lacks(if storage { &[] } else { std::slice::from_ref(&table) })
}

/// Under lockdown=confidentiality names are lost, the rest goes on.
pub fn names_confidentiality() -> Result<()> {
    let mut expected = vec![("lockdown", "warn", "lockdown=integrity")];
    // Trace events are locked away, and the programs must go where the kernel preempts them.
    if offsets::is_preemptible(&types()?)? {
        expected.push(("preemption", "warn", "recursion"));
    }
    lacks(&expected)
}

fn types() -> Result<Btf> {
    let data = std::fs::read(BTF_PATH).with_context(|| format!("read {BTF_PATH}"))?;
    Ok(Btf::parse(data)?)
}

/// Without type information every probe is lost.
pub fn names_types() -> Result<()> {
    lacks(&[
        ("kernel types", "fail", "CONFIG_DEBUG_INFO_BTF"),
        ("probe syscalls", "warn", "kernel types"),
        ("probe scheduler", "warn", "kernel types"),
        ("probe process", "warn", "kernel types"),
        ("probe cgroup", "warn", "kernel types"),
        ("probe faults", "warn", "kernel types"),
    ])
}

/// Without cgroup v2 no workload can be told from another.
pub fn names_version_1() -> Result<()> {
    lacks(&[("cgroups", "fail", "mount the v2 hierarchy")])
}

/// Whether this kernel preempts programs, and hides what would serve instead.
pub fn misses_preempted() -> bool {
    let btf = std::fs::read(BTF_PATH).ok().and_then(|data| Btf::parse(data).ok());
    let is_preemptible = btf.is_some_and(|btf| offsets::is_preemptible(&btf).unwrap_or(false));
    is_preemptible && !machine::tells_names()
}

/// Exactly these are not in order, with such an outcome and such a word in what is found or advised.
fn lacks(expected: &[(&str, &str, &str)]) -> Result<()> {
    let Report { content, findings } = examine()?;
    // What else is lost follows from the kernel.
    let mut expected = expected.to_vec();
    let btf = std::fs::read(BTF_PATH).ok().and_then(|data| Btf::parse(data).ok());
    if btf.is_some_and(|btf| !offsets::has_task_storage(&btf)) {
        expected.push(("task state", "warn", "upgrade to Linux 5.13"));
    }
    if misses_preempted() {
        expected.push(("preemption", "warn", "lockdown=integrity"));
    }
    for (name, outcome, word) in &expected {
        let finding = findings.iter().find(|finding| finding.name == *name);
        let finding = finding.with_context(|| format!("doctor says nothing of `{name}`"))?;
        let told = format!("{}; {}", finding.found, finding.remedy);
        ensure!(finding.outcome == *outcome, "`{name}` is {} instead of {outcome}: {told}", finding.outcome);
        ensure!(told.contains(word), "no word of `{word}` in: {told}");
    }
    for Finding { name, outcome, found, remedy } in &findings {
        let known = outcome == "ok" || expected.iter().any(|(expected, ..)| name == expected);
        ensure!(known, "`{name}` is {outcome}: {found}; {remedy}");
    }
    let fatal = expected.iter().any(|(_, outcome, _)| *outcome == "fail");
    ensure!(content != fatal, "doctor's exit code says {content}, with such findings");
    Ok(())
}
