//! In: names; out: cgroups of the default (v2) hierarchy that vanish with their guard. Knows nothing of the agent.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long removing a cgroup may take once its tasks are killed.
const REMOVAL: Duration = Duration::from_secs(5);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cgroup that is removed, with its tasks killed, when dropped.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    path: String,
}

impl Cgroup {
    fn make(dir: PathBuf, path: String) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("make cgroup {}", dir.display()))?;
        Ok(Self { dir, path })
    }

    /// Where the cgroup is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path within the hierarchy, beginning with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last component of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Makes a cgroup in this one.
    ///
    /// # Errors
    /// When the kernel refuses the name.
    pub fn child(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        let name = name.as_ref();
        Self::make(self.dir.join(name), format!("{}/{}", self.path, name.to_string_lossy()))
    }

    /// An open descriptor of the directory, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(&self) -> Result<File> {
        File::open(&self.dir).with_context(|| format!("open {}", self.dir.display()))
    }

    /// Moves a process in.
    ///
    /// # Errors
    /// When the process is gone or the kernel refuses.
    pub fn enter(&self, pid: i32) -> Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("move {pid} into {}", self.path))
    }

    /// Lets a user do below it what he likes, as a service with `Delegate=yes` may.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delegate(&self, user: u32) -> Result<()> {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            let path = self.dir.join(file);
            chown(&path, Some(user), Some(user)).with_context(|| format!("give away {}", path.display()))?;
        }
        Ok(())
    }

    /// Seconds that the tasks of the cgroup, and of those below it, have run: `usage_usec` of its `cpu.stat`.
    ///
    /// # Errors
    /// When the cgroup is gone or the file makes no sense.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let text = fs::read_to_string(self.dir.join("cpu.stat")).context("read cpu.stat")?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(usage.context("no usage_usec in cpu.stat")?.parse::<f64>()? / 1e6)
    }

    /// Removes the cgroup now.
    ///
    /// # Errors
    /// When it still holds tasks or children.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir(&self.dir).with_context(|| format!("remove cgroup {}", self.dir.display()))
    }
}

/// Removes what is below a cgroup, as far as no task is in it any more.
fn remove_below(dir: &Path) {
    for child in fs::read_dir(dir).into_iter().flatten().flatten().filter(|c| c.path().is_dir()) {
        remove_below(&child.path());
        let _ = fs::remove_dir(child.path());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let until = Instant::now() + REMOVAL;
        while self.dir.exists() && fs::remove_dir(&self.dir).is_err() && Instant::now() < until {
            let _ = fs::write(self.dir.join("cgroup.kill"), "1");
            remove_below(&self.dir);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The default hierarchy's mount, with a cgroup of this test's own below which it makes tenants.
#[derive(Debug)]
pub struct Hierarchy {
    own: Cgroup,
}

impl Hierarchy {
    /// Makes `/kmt-<pid>-<n>`.
    ///
    /// # Errors
    /// When no cgroup-v2 hierarchy is mounted, or it cannot be written.
    pub fn new() -> Result<Self> {
        let name = format!("kmt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let own = Cgroup::make(mount()?.join(&name), format!("/{name}"))?;
        Ok(Self { own })
    }

    /// The cgroup all tenants of this test are in.
    pub fn own(&self) -> &Cgroup {
        &self.own
    }

    /// Makes a cgroup below the test's own; by the test's tenant rule its name is the tenant.
    ///
    /// # Errors
    /// When the kernel refuses the name.
    pub fn tenant(&self, name: impl AsRef<OsStr>) -> Result<Cgroup> {
        self.own.child(name)
    }
}

/// The mount point of the cgroup-v2 hierarchy.
///
/// # Errors
/// When there is none.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        if right.starts_with("cgroup2 ") && fields.get(3) == Some(&"/") {
            return Ok(PathBuf::from(fields[4]));
        }
    }
    bail!("no cgroup2 hierarchy is mounted whole")
}
