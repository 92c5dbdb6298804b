//! In: the eBPF objects that `cargo xtask build-ebpf` left in the target folder, and git's revision; out: where the agent
//! finds all of it at compile time. Builds no eBPF itself: that takes another toolchain.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variable and file of each object: task state in task storage; in a table.
const OBJECTS: [(&str, &str); 2] = [
    ("KERNMETER_EBPF_OBJECT", "kernmeter.bpf.o"),
    ("KERNMETER_EBPF_TABLE_OBJECT", "kernmeter-task-table.bpf.o"),
];

fn main() {
    revision();
    for (name, file) in OBJECTS {
        println!("cargo::rerun-if-env-changed={name}");
        match object(name, file).and_then(of_this_abi) {
            Ok(path) => {
                println!("cargo::rerun-if-changed={}", path.display());
                println!("cargo::rustc-env={name}={}", path.display());
            }
            // This alone ends the build. An exit code would only add a dozen lines to the one that helps.
            Err(message) => return println!("cargo::error={message}"),
        }
    }
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// An object: the one the environment names, or the one in cargo's target folder, wherever that is.
fn object(name: &str, file: &str) -> Result<PathBuf, String> {
    if let Some(path) = variable(name).map(PathBuf::from) {
        let path = std::path::absolute(&path).unwrap_or(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("{name} names \"{}\", which is not a file", path.display()))
        };
    }
    // `OUT_DIR` is some levels below the target folder: how many depends on `--target`.
    let out = variable("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let above_out = out.ancestors().skip(1).take(6).map(Path::to_owned);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|root| root.join("target"));
    variable("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .into_iter()
        .chain(above_out)
        .chain(workspace)
        .map(|dir| dir.join(file))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            "the eBPF object that the agent embeds is missing: run `cargo xtask build-ebpf` first".to_owned()
        })
}

/// Refuses an object whose rows are laid out in another way than the agent reads them: its counts would be other counts.
fn of_this_abi(path: PathBuf) -> Result<PathBuf, String> {
    let object =
        std::fs::read(&path).map_err(|error| format!("cannot read \"{}\": {error}", path.display()))?;
    let fingerprint = kernmeter_abi::FINGERPRINT_TEXT;
    if object.windows(fingerprint.len()).any(|text| text == fingerprint) {
        return Ok(path);
    }
    Err(format!(
        "the eBPF object \"{}\" was built from another layout of rows: run `cargo xtask build-ebpf` again",
        path.display()
    ))
}

/// `KERNMETER_REVISION`: as given by the environment (releases), else git's, else `unknown`.
fn revision() {
    println!("cargo::rerun-if-env-changed=KERNMETER_REVISION");
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.git/HEAD");
    // Not the branch itself: a new commit alone is no reason to build the agent again.
    if head.is_file() {
        println!("cargo::rerun-if-changed={}", head.display());
    }
    let given = variable("KERNMETER_REVISION").and_then(|value| value.into_string().ok());
    let revision = given.or_else(git_revision).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=KERNMETER_REVISION={revision}");
}

fn git_revision() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
