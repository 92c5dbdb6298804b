//! In: what the built agent says of itself and does; out: METRICS.md, the man page, completions, and the console blocks of
//! the documents. Writes no word of its own.

mod compare;
mod console;
mod recipe;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use self::recipe::Runs;
use crate::{agent, build_ebpf, scene, tidy, workspace};

const SHELLS: [(&str, &str); 3] =
    [("bash", "kernmeter.bash"), ("zsh", "_kernmeter"), ("fish", "kernmeter.fish")];

#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if METRICS.md is not what the agent says
    #[arg(long)]
    check: bool,
    /// Also write the man page and shell completions into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    man: Option<PathBuf>,
    /// Also run what the console blocks of the documents show, on this host, and write what it prints (as root); with
    /// `--check`, compare
    #[arg(long)]
    console: bool,
    /// Only wrap the prose of all documents
    #[arg(long, exclusive = true)]
    wrap: bool,
}

/// `cargo xtask docs`.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.wrap {
        return wrap();
    }
    build_ebpf::run()?;
    let binary = agent::release()?;
    if arguments.check {
        check(&binary)?;
        if arguments.console
            && let Some(reason) = check_console(&binary)?
        {
            println!("docs: the console blocks were not compared: {reason}");
        }
        return Ok(());
    }
    let metrics = metrics_path();
    report(&metrics, &tidy::wrap(&says(&binary, &["metrics"])?))?;
    if let Some(folder) = &arguments.man {
        man(&binary, folder)?;
    }
    if arguments.console { write_console(&binary) } else { Ok(()) }
}

/// Wraps the prose of all documents.
fn wrap() -> Result<()> {
    for (path, text) in documents()? {
        report(&workspace::root().join(path), &tidy::wrap(&text))?;
    }
    Ok(())
}

/// Writes the man page and the shells' completions into a folder.
pub fn man(binary: &Path, folder: &Path) -> Result<()> {
    report(&folder.join("kernmeter.1"), &says(binary, &["man"])?)?;
    for (shell, file) in SHELLS {
        report(&folder.join(file), &says(binary, &["completions", shell])?)?;
    }
    Ok(())
}

fn metrics_path() -> PathBuf {
    workspace::root().join("METRICS.md")
}

/// Compares METRICS.md with what the agent says; an error names the first line that differs.
pub fn check(binary: &Path) -> Result<()> {
    let path = metrics_path();
    let written = fs::read_to_string(&path).with_context(|| format!("cannot read \"{}\"", path.display()))?;
    let generated = tidy::wrap(&says(binary, &["metrics"])?);
    if written == generated {
        return Ok(());
    }
    let same = written.lines().zip(generated.lines()).take_while(|(old, new)| old == new).count();
    bail!("METRICS.md differs from the agent's metrics at line {}; run `cargo xtask docs`", same + 1);
}

/// Writes the console blocks of all documents anew.
fn write_console(binary: &Path) -> Result<()> {
    if let Some(reason) = cannot_run(binary) {
        bail!("what the console blocks show cannot be run here: {reason}");
    }
    let mut runs = Runs::to_show(binary);
    for (path, text) in documents()? {
        let blocks = console::blocks(&path, &text)?;
        let contents: Vec<_> = blocks.iter().map(|block| runs.block(block.recipe)).collect::<Result<_>>()?;
        if !blocks.is_empty() {
            report(&workspace::root().join(path), &console::replace(&text, &blocks, &contents))?;
        }
    }
    Ok(())
}

/// Compares the console blocks of all documents with fresh runs. Returns why that cannot be done here, if it cannot.
pub fn check_console(binary: &Path) -> Result<Option<String>> {
    let mut blocks = Vec::new();
    for (path, text) in documents()? {
        blocks.extend(console::blocks(&path, &text)?.into_iter().map(|block| (path.clone(), block)));
    }
    if let Some(reason) = cannot_run(binary) {
        return Ok(Some(reason));
    }
    let mut runs = Runs::to_compare(binary);
    let mut differences = 0;
    for (path, block) in &blocks {
        let fresh = runs.block(block.recipe)?;
        if let Some((line, found)) = compare::difference(block.recipe, &block.text, &fresh) {
            println!("{path}:{}: a fresh run says here: {found}", block.line + line);
            differences += 1;
        }
    }
    println!("{} console blocks", blocks.len());
    if differences > 0 {
        bail!("{differences} console blocks differ, at the places above; run `cargo xtask docs --console`");
    }
    Ok(None)
}

/// Why commands of the documents cannot be run here.
fn cannot_run(binary: &Path) -> Option<String> {
    if !workspace::is_root() {
        return Some("the agent needs root".to_owned());
    }
    if let Some(reason) = scene::cannot_run() {
        return Some(reason);
    }
    let doctor = workspace::command(binary).arg("doctor").stdout(Stdio::null()).status();
    (!doctor.is_ok_and(|status| status.success()))
        .then(|| "this host cannot be metered, as `kernmeter doctor` says".to_owned())
}

/// The workspace's Markdown files, with their paths from its root.
fn documents() -> Result<Vec<(String, String)>> {
    tidy::documents(&workspace::root())
}

fn says(binary: &Path, subject: &[&str]) -> Result<String> {
    let text = workspace::output(workspace::command(binary).arg("docs").args(subject))?;
    if text.trim().is_empty() {
        bail!("`kernmeter docs {}` printed nothing", subject.join(" "));
    }
    Ok(text)
}

fn report(path: &Path, text: &str) -> Result<()> {
    let state = if workspace::write_if_changed(path, text.as_bytes())? { "written" } else { "unchanged" };
    println!("docs: {} ({state})", path.display());
    Ok(())
}
