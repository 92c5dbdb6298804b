//! In: sources, documents and the eBPF object; out: complaints, each with its place and what the rule is. Mends nothing.

mod circles;
mod code;
mod imports;
mod markdown;
mod object;
mod paths;
mod placement;
mod rooms;
mod source;
mod unsafety;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
pub use markdown::wrap;
pub use object::check as object;
use source::Source;

/// Folders with our own Rust sources.
const PACKAGES: [&str; 4] = ["agent", "agent-ebpf", "tests", "xtask"];

/// Checks every source file and document of the workspace.
pub fn sources(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for package in PACKAGES {
        collect(&root.join(package), "rs", &mut files)?;
    }
    let sources: Vec<Source> =
        read(root, files)?.into_iter().map(|(path, text)| Source::new(path, text)).collect();
    let mut complaints = Vec::new();
    documents(root)?.iter().for_each(|(path, text)| markdown::check(path, text, &mut complaints));
    for source in &sources {
        header(source, &mut complaints);
        imports::check(source, &mut complaints);
        placement::check(source, &mut complaints);
        unsafety::check(source, &mut complaints);
        rooms::check(source, &mut complaints);
    }
    rooms::check_table(&sources, &mut complaints);
    circles::check(&sources, &mut complaints);
    Ok(complaints)
}

/// The workspace's Markdown files: their paths, relative to it, and their texts.
pub fn documents(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        files.extend(path.extension().is_some_and(|extension| extension == "md").then_some(path));
    }
    for folder in ["docs", "deploy"] {
        collect(&root.join(folder), "md", &mut files)?;
    }
    read(root, files)
}

/// Reads files in order of their paths, which become relative to `root`.
fn read(root: &Path, mut files: Vec<PathBuf>) -> Result<Vec<(String, String)>> {
    files.sort();
    let read = |file: &PathBuf| {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read \"{}\"", file.display()))?;
        Ok((file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned(), text))
    };
    files.iter().map(read).collect()
}

/// Files of the eBPF programs.
pub fn programs(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(&root.join("agent-ebpf/src"), "rs", &mut files)?;
    Ok(files)
}

fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read \"{}\"", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != "target" {
            collect(&path, extension, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(())
}

fn header(source: &Source, complaints: &mut Vec<String>) {
    let first = source.text.lines().next().unwrap_or_default();
    if first.strip_prefix("//!").is_none_or(|says| says.trim().len() < 10) {
        complaints.push(format!(
            "{}:1: the first line must be `//!` and say what enters, what leaves, what the file refuses to know",
            source.path
        ));
    }
}
