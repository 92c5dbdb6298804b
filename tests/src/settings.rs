//! In: what a test wants of the agent; out: a configuration file in a directory that vanishes with its guard.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::Hierarchy;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory below the system's temporary one, readable by everybody, removed when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn new() -> Result<Self> {
        let name = format!("kmt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into it and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What differs from test to test; the rest is the agent's default.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Drain intervals, milliseconds: relaxed, normal, stressed.
    pub intervals_ms: [u32; 3],
    /// More lines of the `drain` section, indented by two.
    pub drain: String,
    /// Rules, one YAML list item each, indented by four.
    pub rules: String,
    /// More top-level sections.
    pub sections: String,
}

impl Settings {
    /// Drains every 200 ms; every cgroup below the test's own is a tenant by its name.
    pub fn new(hierarchy: &Hierarchy) -> Self {
        Self {
            intervals_ms: [200; 3],
            drain: String::new(),
            rules: rule(&format!("{}/{{name}}", hierarchy.own().path()), "{name}"),
            sections: String::new(),
        }
    }

    /// The same with another drain interval, whatever the load.
    #[must_use]
    pub fn every_ms(self, ms: u32) -> Self {
        Self { intervals_ms: [ms; 3], ..self }
    }

    /// The same with one more top-level section.
    #[must_use]
    pub fn section(mut self, yaml: &str) -> Self {
        self.sections.push_str(yaml.trim_end());
        self.sections.push('\n');
        self
    }

    /// The configuration file's text.
    pub fn yaml(&self) -> String {
        let [relaxed, normal, stressed] = self.intervals_ms;
        let Self { drain, rules, sections, .. } = self;
        format!(
            "drain:\n  intervals: {{relaxed: {relaxed}ms, normal: {normal}ms, stressed: {stressed}ms}}\n{drain}\
             tenants:\n  rules:\n{rules}{sections}"
        )
    }
}

/// A tenant rule on the cgroup's path.
pub fn rule(glob: &str, tenant: &str) -> String {
    format!("    - match: {{cgroup: \"{glob}\"}}\n      tenant: \"{tenant}\"\n")
}
