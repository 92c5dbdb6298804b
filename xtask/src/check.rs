//! In: the workspace; out: a verdict for each house rule, all of them, and one closing line. Knows no rule itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{agent, build_ebpf, docs, miri, tidy, workspace};

/// What came of a check that did not fail.
enum Verdict {
    Passed,
    Skipped(String),
}

type Check = (&'static str, fn() -> Result<Verdict>);

/// Cheap and telling first. Those after `the eBPF object builds` need that object.
const CHECKS: [Check; 10] = [
    ("formatting", formatting),
    ("house rules", house_rules),
    ("the eBPF object builds", object_builds),
    ("names in the object", object_names),
    ("lints", lints),
    ("lints of the programs", program_lints),
    ("METRICS.md", metrics),
    ("undefined behaviour", undefined_behaviour),
    ("console blocks of the documents", console),
    ("licences and advisories", dependencies),
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Run only checks whose name contains this
    filter: Option<String>,
}

/// `cargo xtask check`: runs every check, whatever the ones before said.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let chosen: Vec<Check> = CHECKS.into_iter().filter(|(name, _)| name.contains(filter)).collect();
    if chosen.is_empty() {
        bail!(
            "no check's name contains \"{filter}\"; there are: {}",
            CHECKS.map(|(name, _)| name).join(", ")
        );
    }
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut notes = Vec::new();
    for (name, check) in chosen {
        println!("check: {name}");
        match check() {
            Ok(Verdict::Passed) => passed += 1,
            Ok(Verdict::Skipped(reason)) => {
                skipped += 1;
                notes.push(format!("skipped: {name}: {reason}"));
            }
            Err(error) => {
                failed += 1;
                notes.push(format!("failed: {name}: {error:#}"));
            }
        }
    }
    for note in notes {
        println!("{note}");
    }
    println!("check: {passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A skip if this cargo subcommand is not there, which distributions package apart.
fn component(name: &str) -> Option<Verdict> {
    workspace::output(workspace::cargo().args([name, "--version"]))
        .err()
        .map(|_| Verdict::Skipped(format!("`cargo {name}` is not installed")))
}

fn formatting() -> Result<Verdict> {
    if let Some(skip) = component("fmt") {
        return Ok(skip);
    }
    // The programs' modules are found by a macro, which rustfmt does not follow.
    let programs = tidy::programs(&workspace::root())?;
    workspace::run(workspace::cargo().args(["fmt", "--all", "--", "--check"]).args(programs))?;
    Ok(Verdict::Passed)
}

fn house_rules() -> Result<Verdict> {
    complain(&tidy::sources(&workspace::root())?)
}

fn object_builds() -> Result<Verdict> {
    build_ebpf::run()?;
    Ok(Verdict::Passed)
}

fn object_names() -> Result<Verdict> {
    let mut complaints = Vec::new();
    for object in build_ebpf::objects() {
        complaints.extend(tidy::object(&object)?);
    }
    complain(&complaints)
}

fn complain(complaints: &[String]) -> Result<Verdict> {
    for complaint in complaints {
        println!("{complaint}");
    }
    match complaints.len() {
        0 => Ok(Verdict::Passed),
        1 => bail!("1 place, named above"),
        n => bail!("{n} places, named above"),
    }
}

fn lints() -> Result<Verdict> {
    if let Some(skip) = component("clippy") {
        return Ok(skip);
    }
    workspace::run(workspace::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--keep-going",
        "--",
        "-Dwarnings",
    ]))?;
    Ok(Verdict::Passed)
}

fn program_lints() -> Result<Verdict> {
    Ok(build_ebpf::lint()?.map_or(Verdict::Passed, Verdict::Skipped))
}

fn metrics() -> Result<Verdict> {
    docs::check(&agent::release()?)?;
    Ok(Verdict::Passed)
}

fn undefined_behaviour() -> Result<Verdict> {
    if !miri::is_installed() {
        return Ok(Verdict::Skipped("Miri is not installed; run `cargo xtask setup --miri`".to_owned()));
    }
    miri::run()?;
    Ok(Verdict::Passed)
}

fn console() -> Result<Verdict> {
    Ok(docs::check_console(&agent::release()?)?.map_or(Verdict::Passed, Verdict::Skipped))
}

fn dependencies() -> Result<Verdict> {
    let own = workspace::tools().join("bin/cargo-deny");
    let found = own.is_file().then_some(own).or_else(|| workspace::which("cargo-deny"));
    let Some(deny) = found else {
        return Ok(Verdict::Skipped(
            "cargo-deny is not installed; run `cargo xtask setup --deny`".to_owned(),
        ));
    };
    let run = |arguments: &[&str]| workspace::run(deny_command(&deny).args(arguments));
    run(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"])?;
    // The advisories lie in a repository of their own, which may be out of reach.
    if let Err(error) = run(&["fetch", "db"]) {
        return Ok(Verdict::Skipped(format!("licences passed; the advisories cannot be fetched: {error:#}")));
    }
    run(&["check", "advisories"])?;
    Ok(Verdict::Passed)
}

fn deny_command(deny: &PathBuf) -> std::process::Command {
    let mut command = workspace::command(deny);
    // It asks cargo for the dependency graph.
    if let Some(cargo) = std::env::var_os("CARGO") {
        command.env("CARGO", cargo);
    }
    command
}
