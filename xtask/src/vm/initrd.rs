//! In: the workspace; out: an initial file system with the tests as its first process, the agent and the workload beside
//! them, all static. Knows nothing of machines.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::places::scratch;
use crate::{agent, build_ebpf, workspace};

/// Programs and where they lie in the initial file system.
const PROGRAMS: [(&str, &str); 3] =
    [("vm", "init"), ("kernmeter", "bin/kernmeter"), ("workload", "bin/workload")];
const FOLDERS: [&str; 6] = ["bin", "dev", "etc", "proc", "sys", "tmp"];
/// Modes of `stat(2)`.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An initial file system: the tests, the agent and the workload.
pub struct Initrd {
    archive: Archive,
}

impl Initrd {
    /// Builds what is in every one of them.
    pub fn build() -> Result<Self> {
        build_ebpf::run()?;
        // Static, for there is nothing else in the machine; not link-time optimised, for building takes long enough. The agent
        // is that of `agent::release`, with all it is made of: the same flags, so that nothing is built twice.
        let (mut cargo, built) = agent::static_build()?;
        cargo
            .arg("--release")
            .args(["--package", "kernmeter", "--bin", "kernmeter"])
            .args(["--package", "kernmeter-tests", "--bin", "workload"])
            .args(["--package", "kernmeter-vm", "--bin", "vm"]);
        workspace::run(&mut cargo)?;
        let built = built.join("release");
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.add(folder, FOLDER, &[]);
        }
        for (program, place) in PROGRAMS {
            archive.add(place, PROGRAM, &stripped(&built.join(program))?);
        }
        Ok(Self { archive })
    }

    /// The same with more programs: places and files.
    pub fn with(&self, files: &[(String, PathBuf)]) -> Result<Self> {
        let mut archive = self.archive.clone();
        let mut folders = BTreeSet::new();
        for (place, _) in files {
            let parents = place.match_indices('/').map(|(at, _)| &place[..at]);
            folders.extend(parents.filter(|folder| !FOLDERS.contains(folder)));
        }
        for folder in folders {
            archive.add(folder, FOLDER, &[]);
        }
        for (place, file) in files {
            let bytes = fs::read(file).with_context(|| format!("cannot read \"{}\"", file.display()))?;
            archive.add(place, PROGRAM, &bytes);
        }
        Ok(Self { archive })
    }

    /// Writes it. Returns its path.
    pub fn write(&self, name: &str) -> Result<PathBuf> {
        let path = scratch().join(name);
        workspace::write_if_changed(&path, &self.archive.clone().finish())?;
        Ok(path)
    }
}

/// The program without what only debuggers read, where there is a tool for that: the machines are small.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let small = scratch().join("stripped");
    fs::create_dir_all(scratch()).context("cannot create the folder of the initial file system")?;
    let strip = workspace::which("strip").and_then(|strip| {
        workspace::output(workspace::command(strip).arg("-o").arg(&small).arg(program)).ok()
    });
    let path = if strip.is_some() { &small } else { program };
    let bytes = fs::read(path).with_context(|| format!("cannot read \"{}\"", path.display()))?;
    let _ = fs::remove_file(&small);
    Ok(bytes)
}

/// A cpio archive in the kernel's `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Clone, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let name_size = name.len() as u32 + 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_data_are_aligned() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        // 110 bytes of header, the name with its NUL, padding.
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..120], b"12345\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[54..62], b"00000005");
    }
}
