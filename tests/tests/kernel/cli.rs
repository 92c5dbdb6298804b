//! The other commands: what they print, their exit codes, and that they leave nothing behind.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::agent::program;
use kernmeter_tests::kernel::{bpf_objects, check_nothing_left};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Hierarchy, Outcome, Settings, Workload, http, trials};

trials![
    doctor_finds_everything_in_order,
    the_default_configuration_is_valid,
    probes_are_listed,
    a_snapshot_is_exact,
    a_snapshot_is_a_table,
    help_and_version,
    what_makes_no_sense_is_refused,
    metering_goes_on_where_nothing_can_be_written,
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

fn what_makes_no_sense_is_refused() -> Outcome {
    let dir = TempDir::new()?;
    let missing = dir.path().join("nofile.yml").display().to_string();
    for (args, expected, absent) in [
        (&["snapshot", "--for", "0s"][..], "`0s` is too short: use 100ms or more", "TENANT"),
        // The option was not given here, and need not be.
        (&["config", "check", &missing], missing.as_str(), "--config.file"),
    ] {
        let output = kernmeter(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{args:?} ended with {}: {stderr}", output.status);
        ensure!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
        ensure!(stderr.contains(expected) && !stderr.contains(absent), "{args:?} said {stderr}");
    }
    Ok(())
}

/// The log, the first table, or both go to a full disk: the agent meters and serves, past the table, until it is told to stop.
fn metering_goes_on_where_nothing_can_be_written() -> Outcome {
    let full = || OpenOptions::new().write(true).open("/dev/full");
    for log_is_full in [true, false] {
        // Where nothing is logged nobody learns which port the kernel chose.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut agent = Command::new(program())
            .args(["run", "--show", "--web.listen-address", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(full()?)
            .stderr(if log_is_full { Stdio::from(full()?) } else { Stdio::null() })
            .spawn()?;
        let begin = Instant::now();
        let served = loop {
            if let Some(status) = agent.try_wait()? {
                break Err(anyhow::anyhow!("the agent ended with {status}; log full: {log_is_full}"));
            }
            if begin.elapsed() > Duration::from_secs(5)
                && http::get(address, "/metrics", &[]).is_ok_and(|r| r.status == 200)
            {
                break Ok(());
            }
            if begin.elapsed() > Duration::from_secs(30) {
                break Err(anyhow::anyhow!("the agent serves nothing; log full: {log_is_full}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        // SAFETY: the child is not reaped before `wait`, so the id is its own.
        unsafe { libc::kill(agent.id() as i32, libc::SIGTERM) };
        let status = agent.wait()?;
        served?;
        ensure!(
            status.success(),
            "the agent was told to stop and ended with {status}; log full: {log_is_full}"
        );
    }
    Ok(())
}
