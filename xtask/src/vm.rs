//! In: names of kernels and variants; out: each booted under software emulation with the agent's tests as its first
//! process, one table of all results, and docs/KERNELS.md. Knows no single test.

mod apt;
mod boot;
mod document;
mod emulator;
mod initrd;
mod kernels;
mod matrix;
mod places;
mod prove;
mod results;
mod runtime;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use boot::Order;
use emulator::Emulator;
use initrd::Initrd;
use kernels::Kernel;
use matrix::{NEWEST, SERIES, VARIANTS, Variant};
use prove::Fault;
use results::{Machine, Outcome};

use crate::debian;
use crate::summary::Summary;

/// Longer takes no machine that works, even on a host that gives us a fifth of its time.
const LIMIT: Duration = Duration::from_mins(12);

/// Why a machine was not booted.
const OUT_OF_TIME: &str = "the time that `--within` gave was used up before its turn";

#[derive(clap::Args)]
pub struct Arguments {
    /// Series of the kernel, such as 6.1; `newest`; or `all` for the whole matrix
    #[arg(long, default_value = "all")]
    kernel: String,
    /// Run only this variant; `plain` is the kernel without any; `list` names them
    #[arg(long)]
    variant: Option<String>,
    /// Make only this check (and `programs`); compares nothing
    #[arg(long, conflicts_with = "update")]
    check: Option<String>,
    /// Keep the console and the report of every machine
    #[arg(long)]
    keep_log: bool,
    /// Also boot machines that hang, panic or break off on purpose: each must be told of as failed (always done with
    /// the whole matrix)
    #[arg(long)]
    prove: bool,
    /// Machines at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Boot no more machines after so many minutes; those left are told of as skipped
    #[arg(long, value_name = "MINUTES", conflicts_with = "update")]
    within: Option<u64>,
    /// Write docs/KERNELS.md instead of comparing with it
    #[arg(long, conflicts_with = "variant")]
    update: bool,
}

/// One machine to boot.
struct Job {
    series: String,
    variant: &'static Variant,
}

/// What every machine is booted with.
struct Yard {
    kernels: Vec<(String, Result<Kernel, String>)>,
    /// Or why there is none.
    emulator: Result<Emulator, String>,
    initrd: PathBuf,
    /// The same with runc in it; or why there is none.
    initrd_with_runc: Result<PathBuf, String>,
    logs: PathBuf,
    /// The one check to make.
    only: Option<String>,
    /// When no more machines are booted.
    until: Option<Instant>,
}

/// `cargo xtask vm`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.variant.as_deref() == Some("list") {
        for variant in VARIANTS {
            println!("{:16} {}", variant.name, variant.summary);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut summary = Summary::default();
    add(arguments, &mut summary)?;
    println!("{summary}");
    Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    /// The whole matrix, compared with the document; of it what can be booted within so many minutes.
    pub fn whole(within: Option<u64>) -> Self {
        Self {
            kernel: "all".to_owned(),
            variant: None,
            check: None,
            keep_log: false,
            jobs: 2,
            prove: true,
            within,
            update: false,
        }
    }
}

/// Boots what the arguments ask for and adds the results up.
pub fn add(arguments: &Arguments, summary: &mut Summary) -> Result<()> {
    let until = arguments.within.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let jobs = choose(arguments)?;
    let whole = arguments.kernel == "all" && arguments.variant.is_none();
    if arguments.update && !whole {
        bail!("docs/KERNELS.md is written from the whole matrix only: leave out `--kernel`");
    }
    let yard = prepare(arguments, &jobs, until)?;
    // A newest kernel that is one of the others is booted once.
    let version = |job: &Job| yard.kernel(&job.series).ok().map(|kernel| &kernel.version);
    let twin = |job: &Job| {
        let same = |other: &&Job| other.variant.name == job.variant.name && version(other) == version(job);
        (job.series == NEWEST && version(job).is_some())
            .then(|| jobs.iter().find(|other| other.series != NEWEST && same(other)))?
    };
    let booted: Vec<&Job> = jobs.iter().filter(|job| twin(job).is_none()).collect();
    let mut machines = side_by_side(arguments.jobs, &booted, |job| {
        let machine = yard.boot(job);
        println!("vm: {machine}");
        machine
    });
    for (place, job) in jobs.iter().enumerate() {
        if let Some(other) = twin(job)
            && let Some(machine) = machines.iter().find(|machine| machine.name == name(other))
        {
            let shown = machine.shown_as(&name(job));
            machines.insert(place.min(machines.len()), shown);
        }
    }
    let faults = if whole || arguments.prove { prove(&yard, arguments.jobs) } else { Vec::new() };
    if arguments.keep_log {
        println!("vm: logs are in {}", yard.logs.display());
    } else {
        let _ = fs::remove_dir_all(&yard.logs);
    }
    if let Some(check) = arguments.check.as_deref()
        && machines.iter().all(|machine| machine.outcome(check).is_none())
    {
        bail!("no machine that was booted makes a check `{check}`");
    }
    conclude(&machines, arguments, whole, summary)?;
    for (name, proof) in faults {
        match proof {
            Proof::Seen => summary.pass(1),
            Proof::Skipped(why) => summary.skip(&name, &why),
            Proof::Unseen(why) => {
                println!("failed: {name}: {why}");
                summary.fail(&name);
            }
        }
    }
    Ok(())
}

/// `cargo xtask setup --vm`: fetches all that the whole matrix needs. What cannot be had is said: its machines are
/// skipped.
pub fn fetch() {
    tools();
    let found = |what: &str, found: Result<String>| match found {
        Ok(which) => println!("setup: {what}: {which}"),
        Err(error) => println!("setup: {what}: no: {error:#}"),
    };
    found("emulator", emulator::find().map(|emulator| emulator.name()));
    found("runc", runtime::files().map(|files| format!("with busybox, {} files", files.len())));
    let series: Vec<String> = SERIES.iter().map(|&series| series.to_owned()).collect();
    for (series, kernel) in kernels::fetch(&series) {
        found(&format!("kernel {series}"), kernel.map(|kernel| kernel.version).map_err(anyhow::Error::msg));
    }
}

/// Installs what unpacks kernels, and makes programs small, where it is missing and can be.
fn tools() {
    const PACKAGES: [&str; 3] = ["xz-utils", "zstd", "binutils"];
    if let Err(error) = debian::install(&PACKAGES) {
        println!("vm: {error:#}");
    }
}

/// Fetches and builds what the machines need.
fn prepare(arguments: &Arguments, jobs: &[Job], until: Option<Instant>) -> Result<Yard> {
    let mut series: Vec<String> = jobs.iter().map(|job| job.series.clone()).collect();
    series.sort();
    series.dedup();
    let text = |error: anyhow::Error| format!("{error:#}");
    tools();
    let emulator = emulator::find().map_err(text);
    let kernels = kernels::fetch(&series);
    let initrd = Initrd::build()?;
    let with_runc = || initrd.with(&runtime::files()?)?.write("initrd-runc.cpio");
    let initrd_with_runc = if jobs.iter().any(|job| job.variant.runc) {
        with_runc().map_err(text)
    } else {
        Err("not asked for".to_owned())
    };
    let logs = places::scratch().join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create \"{}\"", logs.display()))?;
    let initrd = initrd.write("initrd.cpio")?;
    Ok(Yard { kernels, emulator, initrd, initrd_with_runc, logs, only: arguments.check.clone(), until })
}

impl Yard {
    fn kernel(&self, series: &str) -> Result<&Kernel, &str> {
        let found = self.kernels.iter().find(|(name, _)| name == series).map(|(_, kernel)| kernel);
        found.map_or(Err("it was not asked for"), |kernel| kernel.as_ref().map_err(String::as_str))
    }

    /// Boots one machine, if everything it needs could be had.
    fn boot(&self, job: &Job) -> Machine {
        let only = self.only.as_deref().map(|check| format!("kernmeter.check={check}")).unwrap_or_default();
        self.boot_with(job, &name(job), only, LIMIT, "")
    }

    fn boot_with(&self, job: &Job, name: &str, parameters: String, limit: Duration, words: &str) -> Machine {
        let variant = job.variant;
        let initrd = match &self.initrd_with_runc {
            Ok(initrd) if variant.runc => initrd,
            Err(reason) if variant.runc => return Machine::skipped(name, variant.name, reason),
            _ => &self.initrd,
        };
        let (kernel, emulator) = match (self.kernel(&job.series), &self.emulator) {
            (Ok(kernel), Ok(emulator)) => (kernel, emulator),
            (Err(reason), _) => return Machine::skipped(name, variant.name, reason),
            (_, Err(reason)) => return Machine::skipped(name, variant.name, reason),
        };
        if self.until.is_some_and(|until| Instant::now() > until) {
            return Machine::skipped(name, variant.name, OUT_OF_TIME);
        }
        let order = Order { name, variant, kernel: &kernel.image, initrd, parameters, limit, words };
        match boot::run(&order, emulator, &self.logs) {
            Ok(ended) => Machine::read(name, variant.name, &kernel.version, &ended),
            Err(error) => Machine::failed(name, variant.name, &format!("{error:#}")),
        }
    }
}

/// Whether a fault of a machine was told of.
enum Proof {
    Seen,
    /// And what was told instead.
    Unseen(String),
    /// It was not booted.
    Skipped(String),
}

/// Whether faults of machines are seen.
fn prove(yard: &Yard, at_a_time: u8) -> Vec<(String, Proof)> {
    let Some((series, _)) = yard.kernels.iter().rev().find(|(_, kernel)| kernel.is_ok()) else {
        return Vec::new();
    };
    if yard.emulator.is_err() {
        return Vec::new();
    }
    let job = Job { series: series.clone(), variant: &VARIANTS[0] };
    let faults: Vec<&Fault> = prove::FAULTS.iter().collect();
    side_by_side(at_a_time, &faults, |fault| {
        let name = format!("fault {}", fault.name);
        let parameters = format!("kernmeter.fault={} kernmeter.check=none", fault.name);
        let machine = yard.boot_with(&job, &name, parameters, fault.limit, fault.console);
        if let Some(Outcome::Skipped(why)) = machine.outcome("boot") {
            return (name, Proof::Skipped(why.clone()));
        }
        let proof = fault.unseen(&machine).map_or(Proof::Seen, Proof::Unseen);
        println!("vm: {name}: {}", if matches!(proof, Proof::Seen) { "seen" } else { "NOT seen" });
        (name, proof)
    })
}

/// Does `work` on several things at a time. Results are in the order of the things.
fn side_by_side<T: Sync, R: Send>(at_a_time: u8, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let queue = Mutex::new(things.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((place, thing)) = next else { return };
                    let result = work(thing);
                    if let Ok(mut done) = done.lock() {
                        done.push((place, result));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Prints what came of it, adds it up, and writes the document or compares with it.
fn conclude(machines: &[Machine], arguments: &Arguments, whole: bool, summary: &mut Summary) -> Result<()> {
    println!("\n{}", results::table(machines));
    for line in results::reasons(machines) {
        println!("{line}");
    }
    for machine in machines.iter().filter(|machine| machine.same_as.is_none()) {
        for (check, outcome) in &machine.checks {
            let name = format!("vm {}: {check}", machine.name);
            match outcome {
                Outcome::Passed => summary.pass(1),
                Outcome::Failed(_) => summary.fail(&name),
                Outcome::Skipped(why) => summary.skip(&name, why),
            }
        }
    }
    if arguments.update {
        if machines.iter().any(|machine| matches!(machine.outcome("boot"), Some(Outcome::Skipped(_)))) {
            bail!("not every machine of the matrix could be booted: {} stays as it is", document::PATH);
        }
        let written = document::write(machines)?;
        println!("vm: {} ({})", document::PATH, if written { "new" } else { "unchanged" });
    } else if arguments.check.is_none() {
        let deviations = document::compare(machines, whole)?;
        for deviation in &deviations {
            summary.fail(&format!("{}: {deviation}", document::PATH));
        }
        if !deviations.is_empty() {
            println!("vm: if that is intended: `cargo xtask vm --update`");
        }
    }
    Ok(())
}

/// What the arguments ask for.
fn choose(arguments: &Arguments) -> Result<Vec<Job>> {
    let asked = |series: &str| arguments.kernel == "all" || arguments.kernel == series;
    let is_series = |text: &str| {
        text.split_once('.').is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
    };
    if arguments.kernel != "all" && arguments.kernel != NEWEST && !is_series(&arguments.kernel) {
        bail!("no such kernel \"{}\"; give a series such as `6.1`, or `newest`, or `all`", arguments.kernel);
    }
    let job = |series: &str, variant| Job { series: series.to_owned(), variant };
    let mut jobs = Vec::new();
    match arguments.variant.as_deref() {
        None => {
            // Every kernel as it is, then each variant on its own kernels.
            let plain = &VARIANTS[0];
            if arguments.kernel == "all" {
                jobs.extend(SERIES.iter().map(|series| job(series, plain)));
            } else {
                jobs.push(job(&arguments.kernel, plain));
            }
            for variant in &VARIANTS[1..] {
                jobs.extend(
                    variant.series.iter().filter(|series| asked(series)).map(|series| job(series, variant)),
                );
            }
        }
        Some(name) => {
            let variant = VARIANTS.iter().find(|variant| variant.name == name);
            let variant = variant
                .with_context(|| format!("no such variant \"{name}\"; `--variant list` names them"))?;
            if arguments.kernel == "all" {
                jobs.extend(variant.series.iter().map(|series| job(series, variant)));
            } else {
                jobs.push(job(&arguments.kernel, variant));
            }
        }
    }
    Ok(jobs)
}

fn name(job: &Job) -> String {
    if job.variant.name == VARIANTS[0].name {
        job.series.clone()
    } else {
        format!("{} {}", job.series, job.variant.name)
    }
}
