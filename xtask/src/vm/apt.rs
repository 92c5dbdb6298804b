//! In: the machine's own apt configuration, read only; out: Debian packages unpacked below our cache, through an apt
//! configuration of our own. Changes nothing of the machine's.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Names by which Debian's own archive is told apart from other sources of packages.
const CODENAMES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];
/// Where Debian's keys are when its keyring package is installed.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists younger than this are good enough.
const FRESH: Duration = Duration::from_hours(24);

/// An apt of our own: its lists, cache and sources lie in one folder.
pub struct Apt {
    folder: PathBuf,
}

/// Which packages an [`Apt`] sees.
pub enum Sources<'a> {
    /// Those of the machine's own sources.
    Machine,
    /// Debian's main archive and its security archive, in these suites of each.
    Debian {
        /// Suites of the main archive.
        main: &'a [&'a str],
        /// Suites of the security archive.
        security: &'a [&'a str],
    },
}

impl Apt {
    /// Sets one up in a folder and reads the lists of packages, if those there are older than a day.
    pub fn open(folder: &Path, sources: &Sources) -> Result<Self> {
        if workspace::which("apt-get").is_none() || workspace::which("dpkg").is_none() {
            bail!("this is not a Debian system: there is no apt to fetch packages with");
        }
        let apt = Self { folder: folder.to_owned() };
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot create \"{}\"", folder.display()))?;
        }
        let changed = workspace::write_if_changed(&apt.config(), apt.configuration(sources)?.as_bytes())?;
        let stamp = folder.join("lists.stamp");
        let age = fs::metadata(&stamp)
            .and_then(|data| data.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if changed || age.is_none_or(|age| age > FRESH) {
            // Suites come and go: what the others have is still good.
            match workspace::output(apt.command("apt-get").args(["--quiet", "update"])) {
                Ok(_) => fs::write(&stamp, "").context("cannot write the lists' stamp")?,
                Err(error) => println!("vm: {error:#}; going on with the lists there are"),
            }
        }
        Ok(apt)
    }

    fn config(&self) -> PathBuf {
        self.folder.join("apt.conf")
    }

    /// How packages are fetched stays as the machine's administrator has set it; hooks and folders do not.
    fn configuration(&self, sources: &Sources) -> Result<String> {
        let folder = self.folder.display();
        let mut text = workspace::output(Command::new("apt-config").args(["dump", "Acquire"]))?;
        let _ = write!(
            text,
            "Dir::Etc::Parts \"/dev/null\";\nDir::Etc::Main \"/dev/null\";\n\
             Dir::State::Lists \"{folder}/lists\";\nDir::Cache \"{folder}\";\n\
             Dir::Cache::Archives \"{folder}/archives\";\nAPT::Sandbox::User \"root\";\n\
             Debug::NoLocking \"true\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        if let Sources::Debian { main, security } = sources {
            let list = self.folder.join("sources.list");
            workspace::write_if_changed(&list, debian(main, security)?.as_bytes())?;
            let _ = write!(
                text,
                "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n",
                list.display()
            );
        }
        Ok(text)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = workspace::command(program);
        command.env("APT_CONFIG", self.config()).env("LC_ALL", "C");
        command
    }

    /// Names of packages that begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = workspace::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Unpacks one package into a folder.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let folder = self.folder.join("download");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create \"{}\"", folder.display()))?;
        let mut download = self.command("apt-get");
        workspace::output(download.args(["--quiet", "download", package]).current_dir(&folder))?;
        let unpacked = unpack_all(&folder, into);
        let _ = fs::remove_dir_all(&folder);
        unpacked
    }

    /// Unpacks a package into a folder, with every package it needs that the machine has not installed.
    pub fn unpack_with_dependencies(&self, package: &str, into: &Path) -> Result<()> {
        let mut install = self.command("apt-get");
        install.args(["--quiet", "--yes", "--download-only", "--no-install-recommends", "install", package]);
        workspace::output(&mut install)?;
        let archives = self.folder.join("archives");
        unpack_all(&archives, into)?;
        for package in debs(&archives)? {
            let _ = fs::remove_file(package);
        }
        Ok(())
    }
}

/// Source lines for Debian's suites, at the mirrors that the machine's own sources name.
fn debian(main: &[&str], security: &[&str]) -> Result<String> {
    let targets = workspace::output(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))?;
    let mut mirrors = [const { BTreeSet::new() }; 2];
    for line in targets.lines() {
        let Some((uri, suite)) = line.split_once(' ') else { continue };
        let (name, part) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
        if CODENAMES.contains(&name) {
            mirrors[usize::from(matches!(part, "security" | "updates/"))].insert(uri.to_owned());
        }
    }
    let keys = if Path::new(KEYRING).is_file() { format!(" signed-by={KEYRING}") } else { String::new() };
    let mut text = String::new();
    for (mirrors, suites) in mirrors.iter().zip([main, security]) {
        for uri in mirrors {
            for suite in suites {
                let _ = writeln!(text, "deb [arch=amd64{keys}] {uri} {suite} main");
            }
        }
    }
    if text.is_empty() {
        bail!("apt's sources name no Debian archive to fetch kernels from");
    }
    Ok(text)
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read \"{}\"", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

fn unpack_all(folder: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot create \"{}\"", into.display()))?;
    for package in debs(folder)? {
        workspace::output(workspace::command("dpkg").arg("--extract").arg(package).arg(into))?;
    }
    Ok(())
}
