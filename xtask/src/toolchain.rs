//! In: the compilers on this machine; out: the one that can build the eBPF object, remembered in `.tools` and checked
//! each time it is used. Installs nothing.

pub mod install;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The release of bpf-linker that is used.
pub const BPF_LINKER: &str = "0.13.0";
/// The LLVM majors this bpf-linker can be linked with.
const LLVM_MAJORS: [u32; 3] = [21, 22, 23];
/// The oldest rustc minor version that builds this workspace.
const RUSTC_MINOR: u32 = 95;

/// How a compiler came to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A rustup toolchain with the component `rust-src`.
    Rustup,
    /// The system's own packages.
    Debian,
}

impl Way {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Rustup => "rustup",
            Self::Debian => "debian",
        }
    }
}

/// A compiler that has its own library's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// How it came here.
    pub way: Way,
    /// The compiler itself, not a proxy.
    pub rustc: PathBuf,
    /// The cargo that belongs to it.
    pub cargo: PathBuf,
    /// First line of `rustc -vV`.
    pub version: String,
    /// The LLVM major it is built with.
    pub llvm: u32,
}

impl Toolchain {
    /// Looks at a compiler; an error says what is missing for the eBPF build.
    pub fn probe(way: Way, rustc: &Path, cargo: &Path) -> Result<Self> {
        let version = workspace::output(workspace::command(rustc).arg("-vV"))?;
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:").context("`rustc -vV` prints no release")?;
        let minor = release.strip_prefix("1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        if minor.is_none_or(|minor| minor < RUSTC_MINOR) {
            bail!("`{}` is rustc {release}; 1.{RUSTC_MINOR} or newer is needed", rustc.display());
        }
        let llvm = field("LLVM version:")
            .and_then(|text| text.split('.').next()?.parse::<u32>().ok())
            .context("`rustc -vV` prints no LLVM version")?;
        if !LLVM_MAJORS.contains(&llvm) {
            bail!("`{}` uses LLVM {llvm}; bpf-linker {BPF_LINKER} knows {LLVM_MAJORS:?}", rustc.display());
        }
        if !cargo.is_file() {
            bail!("\"{}\" is missing", cargo.display());
        }
        let toolchain = Self {
            way,
            rustc: rustc.to_owned(),
            cargo: cargo.to_owned(),
            version: version.lines().next().unwrap_or_default().to_owned(),
            llvm,
        };
        let sources = toolchain.sources()?;
        if !sources.join("library/core/src/lib.rs").is_file() || !sources.join("library/Cargo.lock").is_file()
        {
            bail!("`{}` has no library sources in \"{}\"", rustc.display(), sources.display());
        }
        Ok(toolchain)
    }

    /// The compiler's folder.
    pub fn sysroot(&self) -> Result<PathBuf> {
        let sysroot = workspace::output(workspace::command(&self.rustc).args(["--print", "sysroot"]))?;
        Ok(PathBuf::from(sysroot.trim_end()))
    }

    /// Where its library's sources are, or would be.
    pub fn sources(&self) -> Result<PathBuf> {
        Ok(self.sysroot()?.join("lib/rustlib/src/rust"))
    }

    /// The shared LLVM this compiler runs on, or another of the same major.
    pub fn llvm_library(&self) -> Result<PathBuf> {
        let major = self.llvm;
        let folders = [
            self.sysroot()?.join("lib"),
            PathBuf::from("/usr/lib/x86_64-linux-gnu"),
            PathBuf::from(format!("/usr/lib/llvm-{major}/lib")),
        ];
        let prefix = format!("libLLVM.so.{major}.");
        for folder in &folders {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let mut found: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| {
                    path.file_name()
                        .and_then(|name| name.to_str())
                        .is_some_and(|name| name.starts_with(&prefix))
                })
                .collect();
            found.sort();
            if let Some(path) = found.pop() {
                return Ok(path);
            }
        }
        bail!("no \"{prefix}*\" in {}", folders.map(|folder| format!("\"{}\"", folder.display())).join(", "))
    }

    fn record(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "way={}", self.way.as_str());
        let _ = writeln!(text, "rustc={}", self.rustc.display());
        let _ = writeln!(text, "cargo={}", self.cargo.display());
        let _ = writeln!(text, "version={}", self.version);
        let _ = writeln!(text, "llvm={}", self.llvm);
        let _ = writeln!(text, "bpf_linker={BPF_LINKER}");
        text
    }

    /// Remembers this compiler for the builds to come.
    pub fn remember(&self) -> Result<()> {
        workspace::write_if_changed(&record_path(), self.record().as_bytes())?;
        Ok(())
    }
}

fn record_path() -> PathBuf {
    workspace::tools().join("ebpf-toolchain")
}

/// The bpf-linker of this workspace.
pub fn bpf_linker() -> PathBuf {
    workspace::tools().join("bin/bpf-linker")
}

/// Whether the bpf-linker of this workspace is there, starts (its LLVM may be gone) and is the wanted release.
pub fn check_bpf_linker() -> Result<()> {
    let path = bpf_linker();
    if !path.is_file() {
        bail!("\"{}\" is missing", path.display());
    }
    let version = workspace::output(workspace::command(&path).arg("--version"))?;
    if version.split_whitespace().nth(1) != Some(BPF_LINKER) {
        bail!("\"{}\" is not release {BPF_LINKER} but `{}`", path.display(), version.trim());
    }
    Ok(())
}

/// The remembered compiler, if all it needs is still there and unchanged; an error says what is not.
pub fn remembered() -> Result<Toolchain> {
    let path = record_path();
    let text = fs::read_to_string(&path)
        .with_context(|| format!("nothing is recorded in \"{}\"", path.display()))?;
    let toolchain = revive(&text)?;
    check_bpf_linker()?;
    Ok(toolchain)
}

fn revive(text: &str) -> Result<Toolchain> {
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
            .with_context(|| format!("the record of the eBPF toolchain has no `{name}`"))
    };
    let way = match field("way")? {
        "rustup" => Way::Rustup,
        "debian" => Way::Debian,
        other => bail!("the record of the eBPF toolchain has an unknown way \"{other}\""),
    };
    let toolchain = Toolchain::probe(way, Path::new(field("rustc")?), Path::new(field("cargo")?))?;
    if toolchain.record() != text {
        bail!("`{}` has changed since setup", toolchain.rustc.display());
    }
    Ok(toolchain)
}

/// The rustup toolchain in use, without a look at its sources: its name and its folder. `None` without rustup.
pub fn active_rustup() -> Option<(String, PathBuf)> {
    workspace::which("rustup")?;
    // Cargo's rustup proxy has left the toolchain it chose in RUSTUP_TOOLCHAIN, which rustup honours.
    let active = workspace::output(workspace::command("rustup").args(["show", "active-toolchain"])).ok()?;
    let name = active.split_whitespace().next()?.to_owned();
    let rustc =
        workspace::output(workspace::command("rustup").args(["which", "--toolchain", &name, "rustc"]))
            .ok()?;
    let folder = Path::new(rustc.trim_end()).parent()?.parent()?.to_owned();
    Some((name, folder))
}

/// The rustup toolchain in `folder`, if it can build the eBPF object.
pub fn rustup(folder: &Path) -> Result<Toolchain> {
    Toolchain::probe(Way::Rustup, &folder.join("bin/rustc"), &folder.join("bin/cargo"))
}

/// The system's compiler, if it can build the eBPF object.
pub fn debian() -> Result<Toolchain> {
    Toolchain::probe(Way::Debian, Path::new("/usr/bin/rustc"), Path::new("/usr/bin/cargo"))
}

/// Cargo's home: registry sources lie below it.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_records_are_refused() {
        for (text, complaint) in [
            ("", "has no `way`"),
            ("way=guess\n", "unknown way \"guess\""),
            ("way=debian\n", "has no `rustc`"),
            ("way=debian\nrustc=/nonexistent/rustc\ncargo=/nonexistent/cargo\n", "cannot start"),
        ] {
            let error = format!("{:#}", revive(text).unwrap_err());
            assert!(error.contains(complaint), "{text:?}: {error}");
        }
    }
}
