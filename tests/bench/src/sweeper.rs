//! In: a cgroup, and an input that ends when its maker does, however that came about; out: the cgroup removed with all
//! below it, every process in it ended.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// Tries to remove the cgroup, 10 ms apart: processes take a moment to end.
const TRIES: u32 = 500;

/// Starts the sweeper. Its input is held by this process alone, until it ends.
pub fn start(dir: &Path) -> Result<std::process::Child> {
    Command::new(std::env::current_exe()?)
        .arg("sweep")
        .arg(dir)
        .stdin(Stdio::piped())
        // Ctrl-C is not for it.
        .process_group(0)
        .spawn()
        .context("start the sweeper")
}

/// Ends the sweeper and waits until it has swept.
pub fn finish(mut sweeper: std::process::Child) -> Result<()> {
    drop(sweeper.stdin.take());
    sweeper.wait().map(drop).context("wait for the sweeper")
}

/// The sweeper's own life.
pub fn sweep(dir: &Path) -> Result<()> {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing)?;
    for _ in 0..TRIES {
        if !dir.exists() {
            return Ok(());
        }
        let _ = fs::File::options()
            .write(true)
            .open(dir.join("cgroup.kill"))
            .and_then(|mut kill| kill.write_all(b"1"));
        remove(dir);
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("cannot remove cgroup \"{}\": remove it with rmdir", dir.display())
}

/// Removes a cgroup and those below it, as far as they are empty.
fn remove(dir: &Path) {
    if let Ok(children) = fs::read_dir(dir) {
        for child in children.flatten().filter(|child| child.path().is_dir()) {
            remove(&child.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
