//! The other commands: what they print, their exit codes, and that they leave nothing behind.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernmeter_tests::agent::program;
use kernmeter_tests::kernel::{bpf_objects, check_nothing_left};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Hierarchy, Outcome, Settings, Workload, trials};

trials![
    doctor_finds_everything_in_order,
    the_default_configuration_is_valid,
    probes_are_listed,
    a_snapshot_is_exact,
    a_snapshot_is_a_table,
    help_and_version,
];

fn kernmeter(args: &[&str]) -> Result<Output> {
    Ok(Command::new(program()).args(args).stdin(Stdio::null()).output()?)
}

fn said(output: &Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ended with {}: {stderr}", output.status);
    Ok(String::from_utf8(output.stdout.clone())?)
}

fn doctor_finds_everything_in_order() -> Outcome {
    let before = bpf_objects()?;
    let text = said(&kernmeter(&["doctor"])?)?;
    for probe in ["syscalls", "scheduler", "process", "cgroup"] {
        ensure!(text.contains(probe), "doctor says nothing of {probe}:\n{text}");
    }
    check_nothing_left(&before)
}

fn the_default_configuration_is_valid() -> Outcome {
    let text = said(&kernmeter(&["config", "default"])?)?;
    let dir = TempDir::new()?;
    let file = dir.write("default.yml", &text)?;
    said(&kernmeter(&["config", "check", &file.to_string_lossy()])?)?;
    Ok(())
}

fn probes_are_listed() -> Outcome {
    let text = said(&kernmeter(&["probes"])?)?;
    for word in ["syscalls", "scheduler", "process", "cgroup", "sys_enter", "sched_switch", "task_newtask"] {
        ensure!(text.contains(word), "no {word} in:\n{text}");
    }
    Ok(())
}

fn a_snapshot_is_exact() -> Outcome {
    let before = bpf_objects()?;
    let hierarchy = Hierarchy::new()?;
    let dir = TempDir::new()?;
    let file = dir.write("kernmeter.yml", &Settings::new(&hierarchy).yaml())?;
    let tenant = hierarchy.tenant("snapped")?;
    let child = Command::new(program())
        .args(["snapshot", "--for", "4s", "--json", "--config.file"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Long enough for it to attach, and short of its end.
    std::thread::sleep(Duration::from_secs(2));
    let (workload, _) =
        Workload::run(&tenant, &["syscalls", "--getppid", "100000", "--openat-fail", "1000"])?;
    workload.finish()?;
    let text = said(&child.wait_with_output()?)?;
    let json: serde_json::Value = serde_json::from_str(&text).context("not JSON")?;
    let totals = json["totals"].as_array().context("no totals")?;
    ensure!(totals.len() >= 10, "{} totals", totals.len());
    for total in totals {
        ensure!(total["kernel"].is_u64() && total["kernel"] == total["attributed"], "not conserved: {total}");
    }
    let tenants = json["tenants"].as_array().context("no tenants")?;
    let own = tenants.iter().find(|t| t["tenant"] == "snapped" || t["tenant_id"] == "snapped");
    let own = own.with_context(|| format!("no tenant \"snapped\" in {text}"))?;
    let calls = own["syscalls"].as_u64().with_context(|| format!("no \"syscalls\" in {own}"))?;
    ensure!(calls >= 101_000, "{calls} calls of a tenant that made 101,000");
    check_nothing_left(&before)
}

fn a_snapshot_is_a_table() -> Outcome {
    for sort in [&[][..], &["--sort", "syscalls"], &["--sort", "cpu"]] {
        let text = said(&kernmeter(&[&["snapshot", "--for", "1s"], sort].concat())?)?;
        ensure!(text.lines().count() >= 2 && text.contains("_host"), "not a table:\n{text}");
        ensure!(
            text.to_lowercase().contains("tenant") && text.to_lowercase().contains("cpu"),
            "no headings:\n{text}"
        );
    }
    Ok(())
}

fn help_and_version() -> Outcome {
    let help = said(&kernmeter(&["--help"])?)?;
    for command in ["run", "doctor", "snapshot", "config", "probes"] {
        ensure!(help.contains(command), "no {command} in:\n{help}");
    }
    ensure!(said(&kernmeter(&["run", "--help"])?)?.contains("--web.listen-address"), "run --help");
    ensure!(said(&kernmeter(&["--version"])?)?.starts_with("kernmeter "), "--version");
    Ok(())
}
