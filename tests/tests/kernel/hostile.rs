//! Names chosen to break a scrape do not break it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::ensure;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Outcome, Settings, Workload, http, skip, trials};

use crate::family::SYSCALLS;
use crate::prometheus::{OPEN_METRICS, TEXT, promtool, python};

trials![names_never_break_a_scrape, no_name_becomes_a_reserved_tenant];

fn names_never_break_a_scrape() -> Outcome {
    let long = [b'n'; 255];
    let wide = "\u{1F980}".repeat(63);
    let names: [&[u8]; 14] = [
        b"quote\"inside",
        b"ends-with-backslash\\",
        b"\\n\\\"{}=,#",
        b"new\nline",
        b"carriage\rreturn\tand\x01\x7f\x1b[31m",
        b"invalid-\xff\xfe\xc3(-utf8",
        b"<script>alert(1)<",
        b"<img src=x onerror=alert(1)>",
        b"x\"} 1\rkernmeter_forged_total{a=\"",
        b"${tenant} {name} %s %n",
        b"# EOF",
        b" leading and trailing ",
        &long,
        wide.as_bytes(),
    ];
    // As they are, and as systemd units, whose names become a label.
    let mut all: Vec<Vec<u8>> = names.iter().map(|n| n.to_vec()).collect();
    all.extend(names.iter().filter(|n| n.len() < 240).map(|n| [n, b".service".as_slice()].concat()));
    let hierarchy = Hierarchy::new()?;
    let older: Vec<Cgroup> = all.iter().filter_map(|n| hierarchy.tenant(OsStr::from_bytes(n)).ok()).collect();
    let settings = Settings::new(&hierarchy)
        .section("detail: {default: container}\nlimits: {series_per_tenant: 100000}");
    let agent = Agent::start(&settings)?;
    // Once met by the start-up scan, once seen to be made.
    for cgroup in older {
        let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", "100"])?;
        workload.finish()?;
    }
    let mut made = 0;
    for name in &all {
        // The kernel itself refuses newlines.
        let Ok(cgroup) = hierarchy.tenant(OsStr::from_bytes(name)) else { continue };
        let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", "100"])?;
        workload.finish()?;
        made += 1;
    }
    ensure!(made >= 20, "the kernel took {made} of the names only");
    let reserved = ["_host", "_unknown", "_overflow", "_retired"];
    let scrape = agent.settle(made * 200, |s| {
        s.find(SYSCALLS, &[("syscall", "getppid")])
            .filter(|s| s.label("tenant_id").is_some_and(|t| !reserved.contains(&t)))
            .map(|s| s.value() as u64)
            .sum()
    })?;
    ensure!(scrape.samples.iter().all(|s| !s.name.contains("forged")), "a name has made its own sample");
    let quoted = scrape.count(SYSCALLS, &[("pod", "quote\"inside.service"), ("syscall", "getppid")]);
    ensure!(quoted == 200, "{quoted} calls of the unit with a quote in its name");
    for sample in &scrape.samples {
        for (name, value) in &sample.labels {
            ensure!(value.len() <= 1024, "a {name} label of {} bytes", value.len());
        }
    }
    promtool(&agent.text(TEXT)?)?;
    python(&agent.text(OPEN_METRICS)?)?;
    let landing = http::get(agent.address(), "/", &[])?;
    ensure!(!landing.text()?.contains("<script>alert"), "the landing page carries a cgroup's name");
    agent.stop_conserved()?;
    Ok(())
}

const NAMES: [&str; 5] = ["_host", "_unknown", "_overflow", "_retired", "__proto__"];

fn no_name_becomes_a_reserved_tenant() -> Outcome {
    if !cfg!(target_arch = "x86_64") {
        skip!("needs calls nobody else on the host makes: ia32's");
    }
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    for name in NAMES {
        let cgroup = hierarchy.tenant(name)?;
        let (workload, _) = Workload::run(&cgroup, &["int80", "--calls", "1000"])?;
        workload.finish()?;
    }
    let ia32 = [("abi", "ia32"), ("syscall", "getppid")];
    let scrape = agent.settle(1000 * NAMES.len() as u64, |s| s.count(SYSCALLS, &ia32))?;
    for name in ["_overflow", "_retired", "_unknown"] {
        let seen = scrape.count(SYSCALLS, &[("tenant_id", name), ia32[0], ia32[1]]);
        ensure!(seen == 0, "a cgroup's name made {seen} calls those of {name}");
    }
    agent.stop_conserved()?;
    Ok(())
}
