//! In: sources and the eBPF object; out: complaints, each with its place and what the rule is. Mends nothing.

mod circles;
mod code;
mod imports;
mod object;
mod paths;
mod placement;
mod rooms;
mod source;
mod unsafety;

use std::path::Path;

use anyhow::Result;
pub use object::check as object;
use source::Source;

/// Folders with our own Rust sources.
const PACKAGES: [&str; 4] = ["agent", "agent-ebpf", "tests", "xtask"];

/// Checks every source file of the workspace.
pub fn sources(root: &Path) -> Result<Vec<String>> {
    let mut sources = Vec::new();
    for package in PACKAGES {
        sources.extend(source::read(root, package)?);
    }
    let mut complaints = Vec::new();
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

fn header(source: &Source, complaints: &mut Vec<String>) {
    let first = source.text.lines().next().unwrap_or_default();
    if first.strip_prefix("//!").is_none_or(|says| says.trim().len() < 10) {
        complaints.push(format!(
            "{}:1: the first line must be `//!` and say what enters, what leaves, what the file refuses to know",
            source.path
        ));
    }
}
