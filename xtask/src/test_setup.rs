//! In: a Debian machine; out: the outside programs and mounts the tests use, with nothing of theirs left running. What
//! cannot be had is said aloud and left out: the tests that need it skip themselves.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{debian, workspace};

/// Debian packages and what the tests do with them.
const PACKAGES: [(&str, &str); 8] = [
    ("gcc", "links the workload"),
    ("bpftool", "an independent look at programs and maps"),
    ("prometheus", "scrapes the agent; brings promtool"),
    ("python3-prometheus-client", "an independent OpenMetrics parser"),
    ("strace", "lists the system calls the unit and the image must allow"),
    ("runc", "runs containers as a kubelet would"),
    ("busybox-static", "is what runs in them besides the workload"),
    ("python3-venv", "holds kubernetes-validate"),
];
/// Compares manifests with the schemas of Kubernetes, which it brings: a package of Python.
const VALIDATOR: &str = "kubernetes-validate";
/// The release that is used. It knows the schemas up to that of Kubernetes.
const VALIDATOR_RELEASE: &str = "1.37.0";
/// How long pip may take.
const PIP_LIMIT: Duration = Duration::from_mins(2);
/// Services those packages start.
const SERVICES: [(&str, &str); 1] = [("prometheus.service", "/usr/bin/prometheus")];
/// File systems the tests look into: type, where, why. The agent itself needs neither.
const MOUNTS: [(&str, &str, &str); 2] = [
    ("bpf", "/sys/fs/bpf", "nothing may stay pinned there"),
    ("tracefs", "/sys/kernel/tracing", "the kernel's own list of tracepoints"),
];

/// Installs and mounts what is missing.
pub fn run() -> Result<()> {
    let names = PACKAGES.map(|(package, _)| package);
    let before: HashSet<PathBuf> = service_processes().into_iter().collect();
    match debian::install(&names) {
        Ok(installed) => {
            for (package, purpose) in PACKAGES {
                let state = if installed.contains(&package) { "installed" } else { "found" };
                println!("setup: {package} ({state}): {purpose}");
            }
            if !installed.is_empty() {
                end_services(&before)?;
            }
        }
        Err(error) => println!("setup: for the tests: {error:#}; tests that need it are skipped"),
    }
    match validator() {
        Ok(state) => println!("setup: {VALIDATOR} {VALIDATOR_RELEASE} ({state}): the schemas of Kubernetes"),
        Err(error) => println!("setup: {VALIDATOR}: {error:#}; tests that need it are skipped"),
    }
    for (kind, place, purpose) in MOUNTS {
        println!("setup: {kind} on {place}: {}: {purpose}", mount(kind, place)?);
    }
    Ok(())
}

/// Puts the validator into a virtual environment of its own in `.tools`. From where, pip's configuration says.
fn validator() -> Result<&'static str> {
    let folder = workspace::tools().join(VALIDATOR);
    let python = folder.join("bin/python3");
    let installed = || {
        let query = format!("from importlib.metadata import version; print(version('{VALIDATOR}'))");
        // The program itself breaks when the workspace is moved, since its first line names its folder.
        let runs =
            workspace::output(Command::new(folder.join("bin").join(VALIDATOR)).arg("--version")).is_ok();
        let version = workspace::output(Command::new(&python).args(["-c", &query]));
        runs && version.is_ok_and(|version| version.trim() == VALIDATOR_RELEASE)
    };
    if installed() {
        return Ok("found");
    }
    workspace::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let release = format!("{VALIDATOR}=={VALIDATOR_RELEASE}");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--retries", "1", &release]);
    workspace::run_within(&mut pip, PIP_LIMIT)?;
    if installed() { Ok("installed") } else { bail!("it was installed, but does not start") }
}

fn mount(kind: &str, place: &str) -> Result<String> {
    let mounted = fs::read_to_string("/proc/self/mounts")?.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(place) && fields.next() == Some(kind)
    });
    if mounted {
        return Ok("found".to_owned());
    }
    if !workspace::is_root() {
        return Ok("not mounted, and only root can".to_owned());
    }
    let mount = workspace::output(Command::new("mount").args(["-t", kind, kind, place]));
    Ok(mount.map_or_else(|error| format!("cannot be mounted: {error:#}"), |_| "mounted".to_owned()))
}

/// `/proc` folders of processes that run one of the services' programs.
fn service_processes() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            fs::read_link(path.join("exe"))
                .is_ok_and(|program| SERVICES.iter().any(|(_, service)| program == Path::new(service)))
        })
        .collect()
}

/// Ends the services that installing has started, and only those: what ran before goes on.
fn end_services(before: &HashSet<PathBuf>) -> Result<()> {
    if Path::new("/run/systemd/system").is_dir() && before.is_empty() {
        for (service, _) in SERVICES {
            workspace::run(workspace::command("systemctl").args(["disable", "--now", service]))?;
            println!("setup: {service} (disabled; the tests start their own)");
        }
    }
    for process in service_processes().into_iter().filter(|process| !before.contains(process)) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()) else { continue };
        workspace::run(Command::new("sh").args(["-c", "kill -TERM \"$0\"", pid]))?;
        println!("setup: process {pid}, started by a package, was ended");
    }
    Ok(())
}
