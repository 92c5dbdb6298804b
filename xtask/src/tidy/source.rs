//! In: a Rust file; out: its text, and the code in it without comments, literals and, on request, unit tests. Knows no rule.

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
