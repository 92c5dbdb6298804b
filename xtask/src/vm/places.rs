//! In: the workspace; out: the folders virtual machines are made in. Makes none.

use std::path::PathBuf;

use crate::workspace;

/// What is fetched, and worth keeping where a folder survives; ignored by git.
pub fn cache() -> PathBuf {
    workspace::root().join(".cache/vm")
}

/// What a run builds and leaves.
pub fn scratch() -> PathBuf {
    workspace::target().join("vm")
}
