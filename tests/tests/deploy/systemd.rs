//! `deploy/systemd`: systemd's own verdict on the unit, and the agent under the unit's capabilities and system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Outcome, agent, skip};

use super::confined::{Confined, Notifications, configuration, copy_of_the_agent};
use super::tool;

kernmeter_tests::trials!(
    unit_is_sound_and_little_exposed,
    meters_with_the_units_capabilities,
    needs_no_other_calls
);

/// Highest exposure that systemd's rating may give.
const EXPOSURE: f64 = 3.5;
/// User and group of a service without any: `nobody`.
const NOBODY: &str = "65534";

fn unit() -> Result<String> {
    let path = tool::deploy().join("systemd/kernmeter.service");
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Every value of a setting, in order.
fn settings<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

fn unit_is_sound_and_little_exposed() -> Outcome {
    let analyze = tool::find("systemd-analyze")?;
    let dir = TempDir::new()?;
    // The binary is not installed here: systemd looks for the one the tests run.
    if !agent::program().exists() {
        skip!("no agent at {}", agent::program().display());
    }
    let installed = "/usr/bin/kernmeter";
    let text = unit()?;
    ensure!(text.contains(&format!("ExecStart={installed} ")), "the unit does not start {installed}");
    let path = fs::canonicalize(agent::program())?.display().to_string();
    // A drop-in beside a unit outside systemd's folders is not read: its lines go where they would take effect.
    let with = |name: &str| -> Result<String> {
        let path = tool::deploy().join("systemd").join(name);
        let drop_in = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.replace("[Install]", &format!("{drop_in}\n[Install]")))
    };
    let (with_tls, with_events) = (with("tls.conf")?, with("trace-events.conf")?);
    for (name, text) in
        [("as it is", text), ("with tls.conf", with_tls), ("with trace-events.conf", with_events)]
    {
        let copy = dir.write("kernmeter.service", &text.replace(installed, &path))?;
        let (out, err) = tool::run(Command::new(&analyze).args(["verify", "--man=no"]).arg(&copy))?;
        // systemd before 253 says that it ignores this key of the last; kernels that need it come with newer ones.
        let old = |line: &str| line.contains("Unknown key") && line.contains("'OpenFile'");
        let is_known = |line: &&str| name != "with trace-events.conf" || !old(line);
        let complaints: Vec<_> = out.lines().chain(err.lines()).filter(is_known).collect();
        ensure!(complaints.is_empty(), "{name}: systemd-analyze verify says:\n{}", complaints.join("\n"));
        let exposure = exposure(&analyze, &copy)?;
        println!("exposure {name}: {exposure}");
        ensure!(exposure <= EXPOSURE, "{name}: exposure {exposure} is above {EXPOSURE}");
    }
    // The verification can fail.
    let broken = dir.write("kernmeter.service", &unit()?.replace(installed, "kernmeter-is-not-here"))?;
    ensure!(
        tool::run(Command::new(&analyze).args(["verify", "--man=no"]).arg(broken)).is_err(),
        "a unit without a program passes"
    );
    Ok(())
}

/// systemd's rating of a unit: 0 is best, 10 worst.
fn exposure(analyze: &Path, unit: &Path) -> Result<f64> {
    let (out, _) =
        tool::run(Command::new(analyze).args(["security", "--offline=true", "--no-pager"]).arg(unit))?;
    let figure = out
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for kernmeter.service: "))
        .and_then(|(_, rest)| rest.split(' ').next())
        .with_context(|| format!("no exposure in:\n{out}"))?;
    Ok(figure.parse()?)
}

/// `setpriv` with the unit's capabilities and no user of its own, about to start what follows.
fn setpriv(unit: &str) -> Result<Command> {
    let [bounding] = settings(unit, "CapabilityBoundingSet")[..] else { bail!("not one bounding set") };
    ensure!(settings(unit, "AmbientCapabilities") == [bounding], "the two capability sets differ");
    let set = bounding.split(' ').fold("-all".to_owned(), |set, capability| {
        set + ",+" + &capability.trim_start_matches("CAP_").to_ascii_lowercase()
    });
    let mut command = Command::new(tool::find("setpriv")?);
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"])
        .arg(format!("--inh-caps={set}"))
        .arg(format!("--ambient-caps={set}"))
        .arg(format!("--bounding-set={set}"));
    Ok(command)
}

fn run_agent(command: &mut Command, dir: &TempDir) -> Result<()> {
    let config = dir.write("kernmeter.yaml", &configuration())?;
    let agent = dir.path().join("kernmeter");
    copy_of_the_agent(&agent)?;
    command
        .arg(agent)
        .args(["run", "--web.listen-address=127.0.0.1:0", "--config.file"])
        .arg(config)
        .env("NOTIFY_SOCKET", dir.path().join("notify"));
    Ok(())
}

fn meters_with_the_units_capabilities() -> Outcome {
    tool::need_root()?;
    let dir = TempDir::new()?;
    let mut notifications = Notifications::listen(&dir)?;
    let mut command = setpriv(&unit()?)?;
    run_agent(&mut command, &dir)?;
    let agent = Confined::start(&mut command)?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    // Bits 38 and 39: CAP_PERFMON and CAP_BPF.
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        ensure!(status.contains(&format!("{set}:\t000000c000000000\n")), "{set} is another:\n{status}");
    }
    // Once attached, it sees to it that they cannot be passed on.
    for set in ["CapInh", "CapAmb"] {
        ensure!(status.contains(&format!("{set}:\t0000000000000000\n")), "{set} is not empty:\n{status}");
    }
    ensure!(status.contains(&format!("Uid:\t{NOBODY}\t")), "it runs as another user:\n{status}");
    agent.meters()?;
    notifications.wait_for("READY=1")?;
    notifications.wait_for("WATCHDOG=1")?;
    agent.signal("HUP")?;
    // Of two signals that wait the later may be taken first.
    agent.wait_for_reload()?;
    let (ended, log) = agent.stop()?;
    ensure!(ended.success(), "it ended with {ended}:\n{log}");
    ensure!(log.contains("configuration reloaded"), "no reload in its log:\n{log}");
    notifications.wait_for("STOPPING=1")?;
    Ok(())
}

fn needs_no_other_calls() -> Outcome {
    tool::need_root()?;
    let strace = tool::find("strace")?;
    let unit = unit()?;
    let allowed = allowed_calls(&unit)?;
    let dir = TempDir::new()?;
    let _notifications = Notifications::listen(&dir)?;
    let trace = dir.write("trace", "")?;
    // The tracer runs with the agent's privileges, so nothing but the agent is traced.
    tool::run(Command::new("chown").arg(NOBODY).arg(&trace))?;
    let mut command = setpriv(&unit)?;
    command.arg(strace).args(["-f", "-qq", "-I", "never", "-e", "signal=none", "-o"]).arg(&trace);
    run_agent(&mut command, &dir)?;
    let agent = Confined::start(&mut command)?;
    agent.meters()?;
    // The tracer's child is the agent.
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    let child = fs::read_to_string(children)?;
    let child = child.split_whitespace().next().context("the tracer has no child")?;
    tool::run(Command::new("kill").args(["-s", "HUP", child]))?;
    agent.wait_for_reload()?;
    tool::run(Command::new("kill").args(["-s", "TERM", child]))?;
    let (_, log) = agent.ended()?;
    ensure!(log.contains("stopped"), "it did not end in order:\n{log}");
    let made = calls(&trace)?;
    ensure!(made.len() > 20 && made.contains("bpf"), "hardly a call was traced: {made:?}");
    let refused: Vec<_> = made.difference(&allowed).collect();
    ensure!(refused.is_empty(), "the unit's SystemCallFilter refuses {refused:?}");
    Ok(())
}

/// The names of the calls in an strace log.
fn calls(trace: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(trace)?;
    let name = |line: &str| {
        let (_, call) = line.split_once(' ')?;
        let (name, _) = call.trim_start().split_once('(')?;
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then(|| name.to_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}

/// Adds a call, or all calls of a group.
fn add<'a>(into: &mut BTreeSet<&'a str>, name: &'a str, groups: &BTreeMap<&str, Vec<&'a str>>) {
    match groups.get(name) {
        Some(members) => members.iter().for_each(|member| add(into, member, groups)),
        None => {
            into.insert(name);
        }
    }
}

/// The calls a unit's filter leaves, as this systemd reads it.
fn allowed_calls(unit: &str) -> Result<BTreeSet<String>> {
    let analyze = tool::find("systemd-analyze")?;
    let (text, _) = tool::run(Command::new(analyze).args(["--no-pager", "syscall-filter"]))?;
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut group = "";
    for line in text.lines() {
        match line.trim() {
            name if line.starts_with('@') => group = name,
            "" => {}
            comment if comment.starts_with('#') => {}
            member => groups.entry(group).or_default().push(member),
        }
    }
    let mut allowed = BTreeSet::new();
    // The kernel and the C library cannot do without these; systemd adds them to every list.
    add(&mut allowed, "@default", &groups);
    for filter in settings(unit, "SystemCallFilter") {
        let denied = filter.strip_prefix('~');
        for name in denied.unwrap_or(filter).split(' ') {
            let mut calls = BTreeSet::new();
            add(&mut calls, name, &groups);
            if denied.is_some() {
                allowed = &allowed - &calls;
            } else {
                allowed.extend(calls);
            }
        }
    }
    ensure!(!allowed.contains("mount"), "the filter allows `mount`: it is no filter");
    Ok(allowed.into_iter().map(str::to_owned).collect())
}
