//! Processes, threads and programs are counted exactly; the number of live tasks returns to where it was.

use anyhow::ensure;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, trials};

use crate::family::{BLOCKED, DURATION, SYSCALLS, WAIT};

trials![
    forks_threads_execs_and_exits,
    odd_ends_of_calls,
    tasks_older_than_the_agent,
    zombies_are_no_tasks,
    page_faults
];

fn count(scrape: &Scrape, what: &str, tenant: &str) -> u64 {
    scrape.count(&format!("kernmeter_{what}_total"), &[("tenant_id", tenant)])
}

fn forks_threads_execs_and_exits() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("family")?;
    let args = ["processes", "--forks", "200", "--threads", "50", "--execs", "20"];
    let (workload, _) = Workload::run(&tenant, &args)?;
    let exited = |s: &Scrape| count(s, "processes_exited", "family");
    let scrape = agent.settle(220, exited)?;
    let tasks = scrape.sum("kernmeter_tasks", &[("tenant_id", "family")]);
    ensure!(tasks == 1.0, "{tasks} tasks while one process waits");
    workload.finish()?;
    let scrape = agent.settle(221, exited)?;
    // The first process was made by the test, in the test's own cgroup; its exec was already made here.
    let forked = count(&scrape, "processes_forked", "family");
    ensure!(forked == 220 || forked == 221, "{forked} forks instead of 220 (221 with the first)");
    ensure!(
        count(&scrape, "threads_started", "family") == 50,
        "{} threads",
        count(&scrape, "threads_started", "family")
    );
    ensure!(
        count(&scrape, "processes_exec", "family") == 21,
        "{} execs",
        count(&scrape, "processes_exec", "family")
    );
    let tasks = scrape.sum("kernmeter_tasks", &[("tenant_id", "family")]);
    ensure!(tasks == 0.0, "{tasks} tasks after all have ended");
    agent.stop_conserved()?;
    Ok(())
}

/// execve from a thread that is not the leader, exit while another thread is in a call, SIGKILL in a call, a call that is
/// interrupted and restarted: nothing lasts 100 s that was asleep for milliseconds, and nobody stays behind.
fn odd_ends_of_calls() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("odd")?;
    let (workload, _) = Workload::run(&tenant, &["odd-ends", "--times", "20"])?;
    workload.finish()?;
    let scrape = agent.settle(81, |s| count(s, "processes_exited", "odd"))?;
    let seen =
        ["processes_forked", "threads_started", "processes_exec"].map(|what| count(&scrape, what, "odd"));
    ensure!(seen == [80, 40, 21] || seen == [81, 40, 21], "forks, threads, execs: {seen:?}");
    let tasks = scrape.sum("kernmeter_tasks", &[("tenant_id", "odd")]);
    ensure!(tasks == 0.0, "{tasks} tasks after all have ended");
    for (family, most) in [(DURATION, 4.0), (WAIT, 4.0)] {
        let buckets = scrape.histogram(family, &[("tenant_id", "odd")])?;
        let long: Vec<_> = buckets.iter().filter(|(le, n)| *le > most && *n > 0).collect();
        ensure!(long.is_empty(), "{family} has {long:?}");
    }
    let sleeps = [("tenant_id", "odd"), ("syscall", "nanosleep")];
    let (entered, finished) =
        (scrape.count(SYSCALLS, &sleeps), scrape.count(&format!("{DURATION}_count"), &sleeps));
    ensure!(
        (120..=160).contains(&entered) && finished == entered,
        "{finished} of {entered} sleeps finished; 160 were begun, on a quick machine"
    );
    let blocked = scrape.sum(BLOCKED, &[("tenant_id", "odd")]);
    ensure!(blocked < 30.0, "blocked for {blocked} s");
    agent.stop_conserved()?;
    Ok(())
}

fn tasks_older_than_the_agent() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let tenant = hierarchy.tenant("older")?;
    let workloads: Vec<_> = (0..5)
        .map(|_| Workload::spawn(&tenant, &["syscalls", "--getppid", "100"]))
        .collect::<Result<_, _>>()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tasks = |s: &Scrape| s.sum("kernmeter_tasks", &[("tenant_id", "older")]);
    let scrape = agent.fresh()?;
    ensure!(tasks(&scrape) == 5.0, "{} tasks of 5 that were there before", tasks(&scrape));
    for mut workload in workloads {
        workload.go()?;
        workload.results()?;
        workload.finish()?;
    }
    let scrape = agent.settle(500, |s| crate::counting::calls(s, "older", "getppid"))?;
    ensure!(tasks(&scrape) == 0.0, "{} tasks after all have ended", tasks(&scrape));
    ensure!(
        count(&scrape, "processes_exited", "older") == 5,
        "{} exits",
        count(&scrape, "processes_exited", "older")
    );
    agent.stop_conserved()?;
    Ok(())
}

fn zombies_are_no_tasks() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let tenant = hierarchy.tenant("undead")?;
    let zombie = Workload::spawn(&tenant, &["syscalls"])?;
    zombie.kill_unreaped()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tasks = |s: &Scrape| s.sum("kernmeter_tasks", &[("tenant_id", "undead")]);
    let before = tasks(&agent.fresh()?);
    ensure!(before == 0.0, "{before} tasks in a cgroup of one zombie older than the agent");
    let younger = Workload::spawn(&tenant, &["syscalls"])?;
    younger.kill_unreaped()?;
    let after = tasks(&agent.fresh()?);
    ensure!(after == 0.0, "{after} tasks in a cgroup of two zombies");
    agent.stop_conserved()?;
    Ok(())
}

/// Pages that the workload touches itself, and those that the kernel touches for it.
const OWN_PAGES: usize = 5000;
const KERNEL_PAGES: usize = 2000;
/// More faults than these a process has that only touches pages: of its stack and code.
const OTHER_FAULTS: u64 = 1000;

/// Touches new pages, one fault each: first itself, then by the kernel on its behalf.
fn touch_pages() {
    const PAGE: usize = 4096;
    let new_pages = |number: usize| {
        // SAFETY: new private memory, without huge pages, which would take one fault for 512 pages.
        let memory = unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let memory = libc::mmap(std::ptr::null_mut(), number * PAGE, access, kind, -1, 0);
            libc::madvise(memory, number * PAGE, libc::MADV_NOHUGEPAGE);
            memory.cast::<u8>()
        };
        (0..number).map(move |page| memory.wrapping_add(page * PAGE))
    };
    for page in new_pages(OWN_PAGES) {
        // SAFETY: inside the memory made above.
        unsafe { page.write_volatile(1) };
    }
    // SAFETY: a name that ends in NUL; the kernel checks the rest.
    let zero = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY) };
    for page in new_pages(KERNEL_PAGES) {
        // SAFETY: the kernel writes one byte inside the memory made above.
        unsafe { libc::read(zero, page.cast(), 1) };
    }
}

/// The probe `faults`: as many as the kernel's own count of the process says.
fn page_faults() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("kernel: {additional_probes: [faults]}"))?;
    let tenant = hierarchy.tenant("toucher")?;
    // SAFETY: it makes plain system calls and writes to memory of its own.
    let ended = unsafe { Workload::call(&tenant, touch_pages)? };
    let count = |scrape: &Scrape, mode: &str| {
        scrape.count("kernmeter_page_faults_total", &[("tenant_id", "toucher"), ("mode", mode)])
    };
    let scrape = agent.settle(ended.faults, |scrape| count(scrape, "user") + count(scrape, "kernel"))?;
    let (user, kernel) = (count(&scrape, "user"), count(&scrape, "kernel"));
    for (faults, pages) in [(user, OWN_PAGES as u64), (kernel, KERNEL_PAGES as u64)] {
        let expected = pages..pages + OTHER_FAULTS;
        ensure!(expected.contains(&faults), "{faults} faults, expected {expected:?}");
    }
    ensure!(
        user + kernel == ended.faults,
        "{user} and {kernel} faults are not the {} that getrusage(2) tells",
        ended.faults
    );
    agent.stop_conserved()?;
    Ok(())
}
