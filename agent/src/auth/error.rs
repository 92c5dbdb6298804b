//! Why web configuration or credentials cannot be used. Each is one line.

use std::io;

/// Why there is no access to configure. The old configuration, if any, stays.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file that is named cannot be read.
    #[error("cannot read {what} `{file}`: {source}; check the path and who may read it")]
    Read {
        /// What it holds.
        what: &'static str,
        /// The path, printable.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is named will not do.
    #[error("{what} `{file}` {message}")]
    File {
        /// What it holds.
        what: &'static str,
        /// The path, printable.
        file: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Broken YAML, an unknown key, or a value that will not do.
    #[error("{file}:{line}:{column}: {message}")]
    Invalid {
        /// The path, printable.
        file: String,
        /// From 1.
        line: u64,
        /// In characters, from 1.
        column: u64,
        /// What is wrong and what to do.
        message: String,
    },
    /// `access` asks for what the web configuration does not give.
    #[error("{0}")]
    Access(String),
}
