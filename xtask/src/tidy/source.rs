//! In: a folder; out: the Rust sources below it, read and lexed. Knows no rule.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::code;

/// A source file of ours.
pub struct Source {
    /// Relative to the workspace, with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// The text with comments and the contents of literals blanked, line for line.
    pub code: String,
}

impl Source {
    /// A file with this text.
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { path: path.into(), code: code::blank(&text), text }
    }

    /// The code in front of the file's unit tests; none in a file of tests.
    pub fn shipped(&self) -> &str {
        if self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/") && !self.path.starts_with("tests/")
        {
            return "";
        }
        let tests = self.code.find("#[cfg(test)]\nmod tests {");
        &self.code[..tests.unwrap_or(self.code.len())]
    }
}

/// Reads every source file below `folder`, in order of their paths.
pub fn read(root: &Path, folder: &str) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    collect(&root.join(folder), &mut files)?;
    files.sort();
    files
        .iter()
        .map(|file| {
            let text =
                fs::read_to_string(file).with_context(|| format!("cannot read \"{}\"", file.display()))?;
            Ok(Source::new(file.strip_prefix(root).unwrap_or(file).to_string_lossy(), text))
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read \"{}\"", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != "target" {
            collect(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
