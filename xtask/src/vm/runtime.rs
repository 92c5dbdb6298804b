//! In: the machine's own runc and busybox, or Debian's packages of them; out: both with the libraries they need, as files
//! for an initial file system. Installs nothing, runs neither.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt::{Apt, Sources};
use super::places::cache;
use crate::workspace;

/// Programs and Debian's packages of them.
const PROGRAMS: [(&str, &str); 2] = [("runc", "runc"), ("busybox", "busybox-static")];
/// Where a package may have its program.
const FOLDERS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];
/// Where packages have libraries, and where the loader looks for them.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Places in the initial file system and the files that belong there.
pub fn files() -> Result<Vec<(String, PathBuf)>> {
    let unpacked = cache().join("runtime");
    let mut files = BTreeMap::new();
    for (program, package) in PROGRAMS {
        let path = find(program, &unpacked).map_or_else(|| fetch(program, package, &unpacked), Ok)?;
        for (place, library) in libraries(&path, &unpacked)? {
            files.insert(place, library);
        }
        files.insert(format!("bin/{program}"), path);
    }
    Ok(files.into_iter().collect())
}

fn fetch(program: &str, package: &str, unpacked: &Path) -> Result<PathBuf> {
    println!("vm: fetching {package} into {} (nothing is installed)", unpacked.display());
    let apt = Apt::open(&cache().join("apt-machine"), &Sources::Machine)?;
    apt.unpack_with_dependencies(package, unpacked)
        .with_context(|| format!("cannot fetch {program}; install {package}"))?;
    find(program, unpacked).with_context(|| format!("package {package} holds no {program}"))
}

fn find(program: &str, unpacked: &Path) -> Option<PathBuf> {
    let below = |root: &Path| {
        FOLDERS.iter().map(|folder| root.join(folder).join(program)).find(|path| path.is_file())
    };
    workspace::which(program).or_else(|| below("/".as_ref())).or_else(|| below(unpacked))
}

/// What the loader would load with a program, and the loader itself.
fn libraries(program: &Path, unpacked: &Path) -> Result<Vec<(String, PathBuf)>> {
    let path = std::env::join_paths(LIBRARIES.map(|folder| unpacked.join(folder)))?;
    let mut ldd = workspace::command("ldd");
    let output = ldd
        .arg(program)
        .env("LD_LIBRARY_PATH", path)
        .env("LC_ALL", "C")
        .output()
        .context("cannot start `ldd`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("not a dynamic executable") || text.contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("`ldd {}` failed: {}", program.display(), said.trim());
    }
    listed(&text)
}

/// Lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f...)` and `/lib64/ld-linux-x86-64.so.2 (0x7f...)`.
fn listed(text: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let line = line.rsplit_once(" (").map_or(line, |(line, _)| line);
        match line.split_once(" => ") {
            Some((name, "not found")) => bail!("library {name} is missing"),
            Some((name, path)) => found.push((format!("{}/{name}", LIBRARIES[1]), PathBuf::from(path))),
            None => {
                if let Some(place) = line.strip_prefix('/') {
                    found.push((place.to_owned(), PathBuf::from(line)));
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let text = "\tlinux-vdso.so.1 (0x00007f67)\n\tlibc.so.6 => /opt/lib/libc.so.6 (0x00007f67)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f67)\n\tstatically linked\n";
        assert_eq!(
            listed(text).unwrap(),
            [
                ("lib/x86_64-linux-gnu/libc.so.6".to_owned(), PathBuf::from("/opt/lib/libc.so.6")),
                ("lib64/ld-linux-x86-64.so.2".to_owned(), PathBuf::from("/lib64/ld-linux-x86-64.so.2")),
            ]
        );
        assert!(listed("\tlibseccomp.so.2 => not found\n").is_err());
    }
}
