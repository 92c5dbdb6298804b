//! In: a Debian machine; out: the outside programs and mounts the tests use, with nothing of theirs left running. What
//! cannot be had is said aloud and left out: the tests that need it skip themselves.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::debian;
use crate::workspace;

/// Debian packages and what the tests do with them.
const PACKAGES: [(&str, &str); 7] = [
    ("gcc", "links the workload"),
    ("bpftool", "an independent look at programs and maps"),
    ("prometheus", "scrapes the agent; brings promtool"),
    ("python3-prometheus-client", "an independent OpenMetrics parser"),
    ("strace", "lists the system calls the unit and the image must allow"),
    ("runc", "runs containers as a kubelet would"),
    ("busybox-static", "is what runs in them besides the workload"),
];
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
    for (kind, place, purpose) in MOUNTS {
        println!("setup: {kind} on {place}: {}: {purpose}", mount(kind, place)?);
    }
    Ok(())
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
