//! In: a machine that is set up; out: whether the agent, run as its users run it, counts exactly on this kernel. One
//! function per finding; bounds on times suit software emulation.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::loaded_programs;
use kernmeter::catalog;
use kernmeter::host::possible_cpus;
use kernmeter_tests::kernel::{bpf_objects, task_times};
use kernmeter_tests::{Agent, Hierarchy, Scrape, Settings, Workload, agent, skip};

use crate::machine::{self, Variant};
use crate::report::note;

mod container;
mod cpus;
mod doctor;
mod quota;
mod tracers;

use doctor::examine;

type Check = (&'static str, fn() -> Result<()>);

const SYSCALLS: &str = "kernmeter_syscalls_total";
const DURATION: &str = "kernmeter_syscall_duration_seconds";
const LOST: &str = "kernmeter_events_lost_total";

/// What is checked on a machine of this variant, in this order.
pub fn all(variant: Variant) -> Vec<Check> {
    match variant {
        Variant::V1Only => {
            return vec![("doctor", doctor::names_version_1), ("refusal", refusal_of_version_1)];
        }
        Variant::NoBtf => return vec![("doctor", doctor::names_types), ("refusal", refusal_without_types)],
        _ => {}
    }
    let doctor: fn() -> Result<()> = match variant {
        Variant::Confidentiality => doctor::names_confidentiality,
        _ => doctor::content,
    };
    let mut checks: Vec<Check> = vec![
        ("doctor", doctor),
        ("start", start),
        ("counts", counts),
        ("raw", raw_counts),
        ("cgroups", short_cgroups),
        ("processes", processes),
        ("cpu", cpu_time),
        ("blocked", blocked_time),
        ("buckets", histogram),
        ("contended", contended),
        ("throttled", quota::throttled),
        ("tracers", tracers::beside_others),
        ("balance", balance),
        ("exit", clean_exit),
    ];
    match variant {
        Variant::Hotplug => {
            checks.extend([("hotplug", cpus::come_and_go as fn() -> Result<()>), ("idle", cpus::idle)]);
        }
        Variant::Preempt => checks.push(("held-back", held_back)),
        Variant::MaxCpus => checks.push(("late-cpus", cpus::come_late)),
        Variant::Runc => checks.push(("container", container::is_metered)),
        Variant::ManyPossible => {
            // What has to do with the number of CPUs.
            let kept = ["doctor", "start", "counts", "cgroups", "cpu", "contended", "balance", "exit"];
            checks.retain(|(name, _)| kept.contains(name));
            checks.push(("sizes", sizes));
        }
        _ => {}
    }
    checks
}

/// What is checked where the kernel lacks what the programs need.
pub fn of_an_old_kernel() -> Vec<Check> {
    vec![("refusal", refusal)]
}

fn refusal() -> Result<()> {
    refuses_for("")
}

fn refusal_of_version_1() -> Result<()> {
    refuses_for("cgroup")
}

fn refusal_without_types() -> Result<()> {
    refuses_for("/sys/kernel/btf/vmlinux")
}

/// Where nothing can be metered, the agent ends at once with one clear line, which names the reason, and exit code 1.
fn refuses_for(reason: &str) -> Result<()> {
    let output = Command::new(agent::program()).args(["run"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    println!("refusal: {}: {said}", output.status);
    ensure!(output.status.code() == Some(1), "it ended with {}: {said}", output.status);
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    ensure!(errors == 1 && said.lines().count() == 1, "not one line that begins with `error: `: {said}");
    ensure!(said.contains(reason), "no word of `{reason}`: {said}");
    note(&format!("the agent refuses: {}", said.trim()));
    Ok(())
}

/// The agent starts and attaches every probe.
fn start() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let scrape = agent.fresh()?;
    let detached: Vec<String> = scrape
        .find("kernmeter_probe_attached", &[])
        .filter(|sample| sample.value() == 0.0)
        .map(|sample| format!("{:?}", sample.labels))
        .collect();
    ensure!(detached.is_empty(), "not attached: {}", detached.join(", "));
    // A probe counts as attached without its optional hooks.
    let mut loaded = Vec::new();
    for program in loaded_programs() {
        loaded.extend(program?.name_as_str().map(str::to_owned));
    }
    let missing: Vec<&str> = catalog::PROBES
        .iter()
        .filter(|probe| probe.by_default)
        .flat_map(|probe| probe.hooks)
        // Some kernels have a hook served by a variant of its program.
        .filter(|hook| !hook.programs().any(|program| loaded.iter().any(|name| name == program)))
        .map(|hook| hook.program)
        .collect();
    ensure!(missing.is_empty(), "not loaded: {}", missing.join(", "));
    let bytes = scrape.count("kernmeter_map_memory_bytes", &[]);
    let resident = kernmeter_tests::kernel::resident(agent.pid())?;
    ensure!(bytes > 0, "no map has a size");
    // More would be too much for the smallest machine of the matrix.
    ensure!(resident < machine::total_memory()? / 3, "{resident} bytes are resident");
    note(&format!("the agent's maps take {bytes} bytes, {resident} bytes are resident"));
    stop(agent)
}

/// The tables of an idle agent: most that they may take, by possible CPUs.
const MOST_IDLE: [(u32, u64); 3] = [(16, 16 << 20), (64, 32 << 20), (u32::MAX, 64 << 20)];

/// However many CPUs are possible, tables begin small, and one that is used has rows of its own.
fn sizes() -> Result<()> {
    let possible = possible_cpus();
    ensure!(possible >= 64, "{possible} CPUs are possible: this shows nothing");
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let bytes = |scrape: &Scrape| scrape.count("kernmeter_map_memory_bytes", &[]);
    let idle = bytes(&agent.fresh()?);
    let most = MOST_IDLE.iter().find(|(cpus, _)| possible <= *cpus).map_or(0, |(_, most)| *most);
    ensure!(idle <= most, "{idle} bytes on {possible} possible CPUs, {most} at most");
    let private = |scrape: &Scrape| scrape.count("kernmeter_row_events_total", &[("row", "private")]);
    let cgroup = hierarchy.tenant("often")?;
    // The first rows that are private come with a look at what is wanted.
    let (workload, _) =
        Workload::run(&cgroup, &["syscalls", "--getppid", "100000", "--rounds", "20", "--pause-ms", "100"])?;
    workload.finish()?;
    let scrape = agent.settle(100_000, |scrape| calls(scrape, "often", "getppid"))?;
    let additions = private(&scrape);
    ensure!(additions > 50_000, "{additions} events were added to private rows");
    note(&format!("{possible} possible CPUs: {idle} bytes idle, {} bytes in use", bytes(&scrape)));
    stop(agent)
}

/// Stops the agent; the conserved totals must agree.
fn stop(agent: Agent) -> Result<()> {
    agent.stop_conserved().map(|_| ())
}

fn calls(scrape: &Scrape, tenant: &str, syscall: &str) -> u64 {
    scrape.count(SYSCALLS, &[("tenant_id", tenant), ("syscall", syscall)])
}

/// 20,000 calls and 500 errors in a cgroup that is removed right after.
fn count_exactly(sections: &str) -> Result<Agent> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section(sections))?;
    let tenant = hierarchy.tenant("exact")?;
    let args = ["syscalls", "--getppid", "20000", "--openat-fail", "500"];
    let (workload, _) = Workload::run(&tenant, &args)?;
    workload.finish()?;
    let here = |s: &Scrape| calls(s, "exact", "getppid");
    let scrape = if machine::tells_names() {
        tenant.remove()?;
        agent.settle(20_000, here)?
    } else {
        // The agent can learn the name only while the cgroup is there.
        let scrape = agent.settle(20_000, here)?;
        tenant.remove()?;
        scrape
    };
    let own = [("tenant_id", "exact"), ("syscall", "openat"), ("errno", "ENAMETOOLONG")];
    let errors = scrape.count("kernmeter_syscall_errors_total", &own);
    ensure!(errors == 500, "{errors} errors instead of 500");
    let own = [("tenant_id", "exact"), ("syscall", "getppid")];
    let finished = scrape.count(&format!("{DURATION}_count"), &own);
    ensure!(finished == 20_000, "{finished} durations of 20000 calls");
    Ok(agent)
}

fn counts() -> Result<()> {
    stop(count_exactly("")?)
}

/// The same through the programs on raw tracepoints.
fn raw_counts() -> Result<()> {
    stop(count_exactly("kernel: {attach: raw}")?)
}

/// One and a half times as many cgroups as slots, each gone after moments; every count arrives.
fn short_cgroups() -> Result<()> {
    if !machine::tells_names() {
        skip!(
            "under lockdown=confidentiality no program may read a name: a cgroup that is gone before the agent looks \
             for it stays unknown, and its counts are those of `_unknown`"
        );
    }
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section("kernel: {slots: 40}"))?;
    let parent = hierarchy.tenant("parent")?;
    let root = hierarchy.own().dir().to_string_lossy().into_owned();
    for round in 1..=3u64 {
        let prefix = format!("r{round}");
        let args = ["swarm", "--root", &root, "--count", "20", "--calls", "100", "--prefix", &prefix];
        let (workload, _) = Workload::run(&parent, &args)?;
        workload.finish()?;
        agent.settle(round * 2000, |s| {
            let all = s.find(SYSCALLS, &[("syscall", "getppid")]);
            let ours = all.filter(|s| s.label("tenant_id").is_some_and(|tenant| tenant.starts_with('r')));
            ours.map(|s| s.value() as u64).sum()
        })?;
        for _ in 0..3 {
            agent.fresh()?;
        }
    }
    let scrape = agent.fresh()?;
    for tenant in (1..=3).flat_map(|round| (0..20).map(move |n| format!("r{round}-{n}"))) {
        let seen = calls(&scrape, &tenant, "getppid");
        ensure!(seen == 100, "{seen} calls of {tenant} instead of 100");
    }
    let refused = scrape.count(LOST, &[("reason", "slot_exhausted")]);
    ensure!(refused == 0, "{refused} cgroups found no slot");
    stop(agent)
}

/// Forks, threads, programs and ends in exact numbers.
fn processes() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("family")?;
    let args = ["processes", "--forks", "40", "--threads", "20", "--execs", "10"];
    let (workload, _) = Workload::run(&tenant, &args)?;
    workload.finish()?;
    let count = |scrape: &Scrape, what: &str| {
        scrape.count(&format!("kernmeter_{what}_total"), &[("tenant_id", "family")])
    };
    let scrape = agent.settle(51, |s| count(s, "processes_exited"))?;
    let seen = ["processes_forked", "threads_started", "processes_exec"].map(|what| count(&scrape, what));
    // The first process may be billed to the cgroup it was made from.
    ensure!(
        seen == [50, 20, 11] || seen == [51, 20, 11],
        "forks, threads, execs {seen:?} instead of [50, 20, 11]"
    );
    let tasks = scrape.sum("kernmeter_tasks", &[("tenant_id", "family")]);
    ensure!(tasks == 0.0, "{tasks} tasks left over");
    stop(agent)
}

/// Time on a CPU and switches of a task that is still there agree with the kernel's own account.
fn cpu_time() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("spin")?;
    let (workload, _) = Workload::run(&tenant, &["spin", "--threads", "2", "--cpu", "0", "--ms", "500"])?;
    std::thread::sleep(Duration::from_millis(100));
    let scrape = scrape_of(&agent, "spin")?;
    let own = [("tenant_id", "spin")];
    let times = task_times(workload.pid())?;
    for (what, seen, expected) in [
        ("on a CPU", scrape.sum("kernmeter_cpu_seconds_total", &own), times.cpu),
        ("waiting for one", scrape.sum("kernmeter_runqueue_wait_seconds_sum", &own), times.wait),
    ] {
        println!("{what}: {seen} s, the kernel says {expected} s");
        ensure!((seen - expected).abs() <= expected * 0.05, "{what} {seen} s, the kernel says {expected} s");
    }
    let switches =
        |kind| scrape.count("kernmeter_context_switches_total", &[("tenant_id", "spin"), ("kind", kind)]);
    let seen = (switches("voluntary"), switches("involuntary"));
    let expected = (times.voluntary, times.involuntary);
    ensure!(seen == expected, "switches {seen:?}, the kernel says {expected:?}");
    workload.finish()?;
    stop(agent)
}

/// A fresh scrape in which a tenant's name is known.
fn scrape_of(agent: &Agent, tenant: &str) -> Result<Scrape> {
    let own = [("tenant_id", tenant)];
    for _ in 0..20 {
        let scrape = agent.fresh()?;
        if scrape.find(SYSCALLS, &own).next().is_some() {
            return Ok(scrape);
        }
    }
    bail!("nothing is known of `{tenant}`")
}

/// Nanoseconds the workload measured itself.
fn measured(lines: &[String]) -> Result<Vec<f64>> {
    let ns = lines.iter().filter_map(|line| line.strip_prefix("ns="));
    ns.map(|text| Ok(text.parse::<f64>().context("bad ns")? / 1e9)).collect()
}

/// A sleep of half a second is blocked time of nanosleep.
fn blocked_time() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("asleep")?;
    let (workload, lines) = Workload::run(&tenant, &["sleep", "--ms", "500"])?;
    let took = measured(&lines)?.iter().sum::<f64>();
    let scrape = scrape_of(&agent, "asleep")?;
    let own = [("tenant_id", "asleep"), ("syscall", "nanosleep")];
    let blocked = scrape.sum("kernmeter_blocked_seconds_total", &own);
    println!("blocked {blocked} s, measured {took} s");
    ensure!((0.5 * 0.98..=took).contains(&blocked), "blocked {blocked} s, measured {took} s");
    workload.finish()?;
    stop(agent)
}

/// Fault 35: a task that is preempted on its way to sleep, and woken before it gets there, has been waiting for a CPU all the
/// while.
fn held_back() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("held")?;
    let (workload, lines) = Workload::run(&tenant, &["stopped", "--ms", "500"])?;
    workload.finish()?;
    ensure!(lines == ["preempted"], "the task was not preempted on its way to sleep: {lines:?}");
    let waited =
        scrape_of(&agent, "held")?.sum("kernmeter_runqueue_wait_seconds_sum", &[("tenant_id", "held")]);
    println!("waited {waited} s");
    ensure!((0.5..2.0).contains(&waited), "waited {waited} s of the 0.5 s for which it was held back");
    stop(agent)
}

/// Five sleeps lie in the buckets of their durations as measured from outside.
fn histogram() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("sleeps")?;
    let (workload, lines) = Workload::run(&tenant, &["sleep", "--ms", "100", "--times", "5"])?;
    let measured = measured(&lines)?;
    let scrape = scrape_of(&agent, "sleeps")?;
    let own = [("tenant_id", "sleeps"), ("syscall", "nanosleep")];
    let series = scrape.series(DURATION, &own)?;
    ensure!(series.len() == 1, "{} series of one syscall", series.len());
    let longest = measured.iter().fold(0.0, |a: f64, b| a.max(*b));
    let filled: Vec<_> = series[0].buckets.iter().filter(|bucket| bucket.1 > 0).collect();
    let count: u64 = filled.iter().map(|bucket| bucket.1).sum();
    ensure!(count == 5, "{count} calls in buckets instead of 5");
    // The bucket of a duration: the first bound that is not below it.
    let bound = |value: f64| series[0].buckets.iter().map(|bucket| bucket.0).find(|le| *le >= value);
    let (least, most) = (bound(0.1), bound(longest));
    ensure!(
        filled.iter().all(|bucket| Some(bucket.0) >= least && Some(bucket.0) <= most),
        "5 sleeps of 0.1 to {longest} s are in {filled:?}"
    );
    workload.finish()?;
    stop(agent)
}

/// Under load from all sides, what tenants got adds up to what the kernel saw.
fn balance() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenants = [hierarchy.tenant("left")?, hierarchy.tenant("right")?];
    let mut workloads = Vec::new();
    for tenant in &tenants {
        let mut workload = Workload::spawn(tenant, &["flood", "--forks"])?;
        workload.go()?;
        workloads.push(workload);
    }
    for _ in 0..3 {
        agent.fresh()?;
    }
    for workload in workloads {
        workload.kill()?;
    }
    let scrape = agent.fresh()?;
    for tenant in ["left", "right"] {
        let seen = scrape.count(SYSCALLS, &[("tenant_id", tenant)]);
        ensure!(seen > 100, "{seen} calls of `{tenant}` under load");
    }
    stop(agent)
}

/// Nothing of the agent's stays in the kernel, whether it was asked to go or killed.
fn clean_exit() -> Result<()> {
    let hierarchy = Hierarchy::new()?;
    // What is on its way out from before is no concern here: only what is new must go.
    let before = bpf_objects()?;
    let added = || -> Result<usize> { Ok(bpf_objects()?.ids.difference(&before.ids).count()) };
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut agent = Agent::start(&Settings::new(&hierarchy))?;
        ensure!(added()? > 0, "the agent loaded nothing");
        agent.stop_by(signal)?;
        // The kernel frees programs after a grace period.
        for _ in 0..100 {
            if added()? == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(added()? == 0, "{} programs, maps or links are left 5 s after signal {signal}", added()?);
    }
    Ok(())
}

/// Waits until all calls of a tenant have arrived. If they do not, the console tells what did.
fn all_arrive(agent: &Agent, tenant: &str, expected: u64) -> Result<()> {
    let Err(error) = agent.settle(expected, |s| calls(s, tenant, "getppid")) else { return Ok(()) };
    let scrape = agent.fresh()?;
    let lost: Vec<String> = scrape
        .find(LOST, &[])
        .filter(|sample| sample.value() != 0.0)
        .map(|sample| format!("{} {}", sample.label("reason").unwrap_or_default(), sample.text))
        .collect();
    for sample in &scrape.samples {
        let of_interest =
            sample.label("syscall") == Some("getppid") || sample.name.starts_with("kernmeter_kernel_events");
        if of_interest && !sample.name.ends_with("_bucket") {
            println!("{} {:?} {}", sample.name, sample.labels, sample.text);
        }
    }
    Err(error.context(format!("calls of `{tenant}` (events lost: {})", lost.join(", "))))
}

/// Three tenants make calls on one CPU, so that they preempt each other wherever the kernel lets them, and the agent, which
/// reads and changes maps meanwhile; each call is counted.
fn contended() -> Result<()> {
    const CALLS: u64 = 100_000;
    const TENANTS: [&str; 3] = ["one", "two", "three"];
    if doctor::misses_preempted() {
        skip!(
            "this kernel preempts programs on tracepoints and then skips them for others, and lockdown=confidentiality \
             hides the trace events that would serve instead: such events are lost, and counted as `recursion`"
        );
    }
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    machine::pin_all(agent.pid(), 0)?;
    let cgroups: Vec<_> = TENANTS.into_iter().map(|name| hierarchy.tenant(name)).collect::<Result<_>>()?;
    let mut workloads = Vec::new();
    for cgroup in &cgroups {
        let number = CALLS.to_string();
        let workload = Workload::spawn(cgroup, &["syscalls", "--getppid", &number])?;
        machine::pin(workload.pid(), 0)?;
        workloads.push(workload);
    }
    for workload in &mut workloads {
        workload.go()?;
    }
    for mut workload in workloads {
        workload.results()?;
        workload.finish()?;
    }
    for tenant in TENANTS {
        all_arrive(&agent, tenant, CALLS)?;
    }
    stop(agent)
}
