//! In: sources and the eBPF object; out: complaints, each with its place and what the rule is. Mends nothing.

mod code;
mod markdown;
mod object;
mod rooms;
mod unsafety;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
pub use markdown::wrap;
pub use object::check as object;

/// Folders with our own Rust sources.
const PACKAGES: [&str; 4] = ["agent", "agent-ebpf", "tests", "xtask"];

/// A source file of ours.
struct Source {
    /// Relative to the workspace, with `/`.
    path: String,
    text: String,
    /// The text with comments and the contents of literals blanked, line for line.
    code: String,
}

/// Checks every source file of the workspace.
pub fn sources(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for package in PACKAGES {
        collect(&root.join(package), "rs", &mut files)?;
    }
    files.sort();
    let mut complaints = Vec::new();
    documents(root)?.iter().for_each(|(path, text)| markdown::check(path, text, &mut complaints));
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read \"{}\"", file.display()))?;
        let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        let source = Source { path, code: code::blank(&text), text };
        header(&source, &mut complaints);
        unsafety::check(&source, &mut complaints);
        rooms::check(&source, &mut complaints);
    }
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
    files.sort();
    let read = |file: &PathBuf| {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read \"{}\"", file.display()))?;
        Ok((file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned(), text))
    };
    files.iter().map(read).collect()
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
