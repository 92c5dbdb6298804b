//! In: names of kernels and variants; out: each booted under software emulation with the agent's tests as its first
//! process, one table of all results, and docs/KERNELS.md. Knows no single test.

mod apt;
mod boot;
mod document;
mod emulator;
mod initrd;
mod kernels;
mod matrix;
mod results;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::workspace;
use matrix::{SERIES, VARIANTS, Variant};
use results::{Machine, Outcome};

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
    /// Machines at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Write docs/KERNELS.md instead of comparing with it
    #[arg(long, conflicts_with = "variant")]
    update: bool,
}

/// One machine to boot.
struct Job {
    series: String,
    variant: &'static Variant,
}

/// `cargo xtask vm`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.variant.as_deref() == Some("list") {
        for variant in VARIANTS {
            println!("{:16} {}", variant.name, variant.summary);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let jobs = choose(arguments)?;
    let whole = arguments.kernel == "all" && arguments.variant.is_none();
    if arguments.update && !whole {
        bail!("docs/KERNELS.md is written from the whole matrix only: leave out `--kernel`");
    }
    let mut series: Vec<String> = jobs.iter().map(|job| job.series.clone()).collect();
    series.dedup();
    series.sort();
    series.dedup();
    let kernels = kernels::fetch(&series);
    let emulator = emulator::find()?;
    let initrd = initrd::build()?;
    let logs = scratch().join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create \"{}\"", logs.display()))?;

    let queue = Mutex::new(jobs.iter().enumerate());
    let machines = Mutex::new(Vec::new());
    let only = arguments.check.as_deref();
    let one = |job: &Job| -> Machine {
        let name = name(job);
        let kernel = kernels.iter().find(|(series, _)| *series == job.series).map(|(_, kernel)| kernel);
        match kernel {
            Some(Ok(kernel)) => {
                match boot::run(&name, job.variant, only, &kernel.image, &emulator, &initrd, &logs) {
                    Ok(ended) => Machine::read(&name, job.variant.name, &kernel.version, &ended),
                    Err(error) => Machine::failed(&name, job.variant.name, &format!("{error:#}")),
                }
            }
            Some(Err(reason)) => Machine::skipped(&name, job.variant.name, reason),
            None => Machine::skipped(&name, job.variant.name, "not fetched"),
        }
    };
    thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((place, job)) = next else { return };
                    let machine = one(job);
                    println!("vm: {machine}");
                    if let Ok(mut machines) = machines.lock() {
                        machines.push((place, machine));
                    }
                }
            });
        }
    });
    let mut machines = machines.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    machines.sort_by_key(|(place, _)| *place);
    let machines: Vec<Machine> = machines.into_iter().map(|(_, machine)| machine).collect();
    if arguments.keep_log {
        println!("vm: logs are in {}", logs.display());
    } else {
        let _ = fs::remove_dir_all(&logs);
    }
    conclude(&machines, arguments, whole)
}

/// Prints what came of it, and writes the document or compares with it.
fn conclude(machines: &[Machine], arguments: &Arguments, whole: bool) -> Result<ExitCode> {
    println!("\n{}", results::table(machines));
    for line in results::reasons(machines) {
        println!("{line}");
    }
    let mut deviations = Vec::new();
    if arguments.update {
        let written = document::write(machines)?;
        println!("vm: {} ({})", document::PATH, if written { "new" } else { "unchanged" });
    } else if arguments.check.is_none() {
        deviations = document::compare(machines, whole)?;
        for deviation in &deviations {
            println!("failed: {}: {deviation}", document::PATH);
        }
    }
    let count = |wanted: fn(&Outcome) -> bool| {
        machines.iter().flat_map(|machine| &machine.checks).filter(|(_, outcome)| wanted(outcome)).count()
    };
    let passed = count(|outcome| matches!(outcome, Outcome::Passed));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_))) + deviations.len();
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the arguments ask for.
fn choose(arguments: &Arguments) -> Result<Vec<Job>> {
    let asked = |series: &str| arguments.kernel == "all" || arguments.kernel == series;
    let is_series = |text: &str| {
        text.split_once('.').is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
    };
    if arguments.kernel != "all" && arguments.kernel != "newest" && !is_series(&arguments.kernel) {
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

/// What is fetched, and worth keeping where a folder survives; ignored by git.
fn cache() -> PathBuf {
    workspace::root().join(".cache/vm")
}

/// What a run builds and leaves.
fn scratch() -> PathBuf {
    workspace::target().join("vm")
}
