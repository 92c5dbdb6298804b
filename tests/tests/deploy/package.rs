//! The Debian package, installed into a Debian of its own: what it brings, that it starts, and that nothing of it is left
//! after a purge. `cargo xtask deb --check` gives both; without them the trials are skipped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Outcome, Skip};

use super::confined::Confined;
use super::tool;

kernmeter_tests::trials!(package_satisfies_lintian, package_installs_starts_and_leaves_nothing);

/// The package to test.
const PACKAGE: &str = "KERNMETER_DEB";
/// An archive of a small Debian.
const DEBIAN: &str = "KERNMETER_DEBIAN";
/// What the package must bring, and with which mode.
const FILES: [(&str, u32); 11] = [
    ("usr/bin/kernmeter", 0o755),
    ("usr/lib/systemd/system/kernmeter.service", 0o644),
    ("etc/kernmeter/kernmeter.yaml", 0o644),
    ("usr/share/man/man1/kernmeter.1.gz", 0o644),
    ("usr/share/bash-completion/completions/kernmeter", 0o644),
    ("usr/share/zsh/vendor-completions/_kernmeter", 0o644),
    ("usr/share/fish/vendor_completions.d/kernmeter.fish", 0o644),
    ("usr/share/doc/kernmeter/copyright", 0o644),
    ("usr/share/doc/kernmeter/changelog.Debian.gz", 0o644),
    ("usr/share/doc/kernmeter/docs/configuration.md", 0o644),
    ("usr/share/doc/kernmeter/examples/prometheus/rules/kernmeter.alerts.yaml", 0o644),
];
const CONFIG: &str = "etc/kernmeter/kernmeter.yaml";
/// Makes systemd start it at boot.
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/kernmeter.service";

fn given(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .ok_or_else(|| Skip("no Debian package: `cargo xtask deb --check` builds one".to_owned()))?;
    Ok(PathBuf::from(path))
}

fn package_satisfies_lintian() -> Outcome {
    let package = given(PACKAGE)?;
    let lintian = tool::find("lintian")?;
    let (out, _) =
        tool::run(Command::new(lintian).args(["--allow-root", "--fail-on=error", "--no-cfg"]).arg(package))?;
    println!("lintian: {} tags\n{}", out.lines().count(), out.trim_end());
    Ok(())
}

/// A Debian of its own in a folder.
struct Debian {
    dir: TempDir,
}

impl Debian {
    fn unpack(archive: &Path) -> Result<Self> {
        let dir = TempDir::new()?;
        let root = dir.path().join("root");
        fs::create_dir(&root)?;
        // Its own devices cannot be made everywhere; the host's are mounted over them.
        tool::run(Command::new("tar").args(["--exclude=./dev/*", "-xpf"]).arg(archive).arg("-C").arg(&root))?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    /// A command inside, with mounts that vanish with it. Its process becomes the command.
    fn command(&self, arguments: &[&str]) -> Command {
        let script = r#"for place in proc sys dev; do mount --rbind "/$place" "$0/$place" || exit 70; done
            exec chroot "$0" "$@""#;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(self.path(""))
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let (out, err) = tool::run(&mut self.command(arguments))?;
        Ok(out + &err)
    }

    /// Every path, but for what dpkg writes about its own work.
    fn paths(&self) -> Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
                let entry = entry?;
                let path = entry.path();
                let inside = path.strip_prefix(self.path(""))?.to_owned();
                if ["var/lib/dpkg", "var/log", "var/cache", "dev"].iter().any(|own| inside.starts_with(own)) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                }
                paths.insert(inside);
            }
        }
        Ok(paths)
    }
}

fn package_installs_starts_and_leaves_nothing() -> Outcome {
    let package = given(PACKAGE)?;
    let archive = given(DEBIAN)?;
    tool::need_root()?;
    let debian = Debian::unpack(&archive)?;
    let before = debian.paths()?;
    fs::copy(&package, debian.path("kernmeter.deb"))?;
    let install = || debian.run(&["dpkg", "--install", "/kernmeter.deb"]);
    println!("{}", install()?.trim_end());

    for (file, mode) in FILES {
        let status = fs::metadata(debian.path(file)).with_context(|| format!("no {file}"))?;
        ensure!(status.permissions().mode() & 0o7777 == mode, "{file} has another mode");
        ensure!((status.uid(), status.gid()) == (0, 0), "{file} is somebody else's");
    }
    ensure!(debian.path(ENABLED).is_symlink(), "the service is not enabled");
    let version = debian.run(&["kernmeter", "--version"])?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "another version: {version}");
    debian.run(&["kernmeter", "config", "check", "/etc/kernmeter/kernmeter.yaml"])?;
    let status = debian.run(&["dpkg", "--verify", "kernmeter"])?;
    ensure!(status.is_empty(), "dpkg --verify says:\n{status}");
    it_runs(&debian)?;

    // What the administrator wrote survives a new package and a removal.
    let changed = fs::read_to_string(debian.path(CONFIG))? + "# changed\n";
    fs::write(debian.path(CONFIG), &changed)?;
    install()?;
    ensure!(fs::read_to_string(debian.path(CONFIG))? == changed, "an upgrade overwrites the configuration");
    debian.run(&["dpkg", "--remove", "kernmeter"])?;
    ensure!(!debian.path("usr/bin/kernmeter").exists(), "the binary is still there");
    ensure!(fs::read_to_string(debian.path(CONFIG))? == changed, "a removal takes the configuration");
    debian.run(&["dpkg", "--purge", "kernmeter"])?;
    fs::remove_file(debian.path("kernmeter.deb"))?;
    let after = debian.paths()?;
    let left: Vec<_> = after.difference(&before).collect();
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(left.is_empty() && gone.is_empty(), "left over: {left:?}, gone: {gone:?}");
    println!("after the purge all of {} paths are as they were", before.len());
    Ok(())
}

/// The installed agent with the installed configuration.
fn it_runs(debian: &Debian) -> Result<()> {
    let unit = fs::read_to_string(debian.path("usr/lib/systemd/system/kernmeter.service"))?;
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("no ExecStart")?;
    let mut arguments: Vec<&str> = line.split(' ').collect();
    arguments.push("--web.listen-address=127.0.0.1:0");
    let agent = Confined::start(&mut debian.command(&arguments))?;
    agent.meters()?;
    let (ended, log) = agent.stop()?;
    ensure!(ended.success(), "it ended with {ended}:\n{log}");
    Ok(())
}
