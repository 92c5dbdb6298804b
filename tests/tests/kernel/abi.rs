//! Calls of the other x86 ABIs have their own label and their own names.

use anyhow::ensure;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Outcome, Scrape, Settings, Workload, skip, trials};

use crate::NATIVE;
use crate::family::{ERRORS, SYSCALLS};

trials![int_0x80_from_64_bit_code, a_32_bit_program, x32_numbers];

const CALLS: u64 = 5000;

fn run(agent: &Agent, cgroup: &Cgroup, command: &str, abi: &str) -> anyhow::Result<Scrape> {
    if !cfg!(target_arch = "x86_64") {
        skip!("x86-64 only");
    }
    let mut workload = Workload::spawn(cgroup, &[command, "--calls", "5000"])?;
    workload.go()?;
    workload.finish()?;
    let tenant = cgroup.name();
    agent.settle(CALLS, |s| s.count(SYSCALLS, &[("tenant_id", tenant), ("syscall", "getppid"), ("abi", abi)]))
}

/// 64 is `getppid` and 41 `dup` for 32-bit programs, `semget` and `socket` for 64-bit ones.
fn check_native_untouched(scrape: &Scrape, tenant: &str) -> Outcome {
    for syscall in ["getppid", "semget", "socket"] {
        let seen = scrape.count(SYSCALLS, &[("tenant_id", tenant), ("syscall", syscall), ("abi", NATIVE)]);
        ensure!(seen == 0, "{seen} 64-bit {syscall} calls were never made");
    }
    Ok(())
}

fn int_0x80_from_64_bit_code() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let scrape = run(&agent, &hierarchy.tenant("int80")?, "int80", "ia32")?;
    let own = [("tenant_id", "int80"), ("abi", "ia32"), ("syscall", "dup")];
    ensure!(scrape.count(SYSCALLS, &own) == CALLS, "{} dup calls", scrape.count(SYSCALLS, &own));
    let failed = scrape.count(ERRORS, &[own[0], own[1], own[2], ("errno", "EBADF")]);
    ensure!(failed == CALLS, "{failed} dup failed with EBADF");
    check_native_untouched(&scrape, "int80")?;
    agent.stop_conserved()?;
    Ok(())
}

fn a_32_bit_program() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let scrape = run(&agent, &hierarchy.tenant("ia32")?, "ia32", "ia32")?;
    let exits = scrape.count(SYSCALLS, &[("tenant_id", "ia32"), ("abi", "ia32"), ("syscall", "exit")]);
    ensure!(exits == 1, "{exits} ia32 exit calls");
    check_native_untouched(&scrape, "ia32")?;
    agent.stop_conserved()?;
    Ok(())
}

fn x32_numbers() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let scrape = run(&agent, &hierarchy.tenant("x32")?, "x32", "x32")?;
    check_native_untouched(&scrape, "x32")?;
    agent.stop_conserved()?;
    Ok(())
}
