//! In: what the built agent says of itself; out: METRICS.md, the man page, completions. Writes no word of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{agent, build_ebpf, workspace};

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
}

/// `cargo xtask docs`.
pub fn run(arguments: &Arguments) -> Result<()> {
    build_ebpf::run()?;
    let binary = agent::release()?;
    if arguments.check {
        return check(&binary);
    }
    let metrics = metrics_path();
    report(&metrics, &says(&binary, &["metrics"])?)?;
    if let Some(folder) = &arguments.man { man(&binary, folder) } else { Ok(()) }
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
    let generated = says(binary, &["metrics"])?;
    if written == generated {
        return Ok(());
    }
    let same = written.lines().zip(generated.lines()).take_while(|(old, new)| old == new).count();
    bail!("METRICS.md differs from the agent's metrics at line {}; run `cargo xtask docs`", same + 1);
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
