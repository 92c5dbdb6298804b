//! In: pods as a kubelet names them, commands; out: containers that runc runs in the pods' cgroups, gone with their guards.
//! Knows nothing of the agent or of the Kubernetes API.
//!
//! runc is told whole cgroup paths, so that both drivers' forms can be had with or without systemd. On a hybrid host its
//! limits go through the v1 controllers; that the process is in the v2 cgroup of the same path is seen to here.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::program;
use crate::settings::TempDir;
use crate::workload::{Ended, Workload, control};

/// Who names cgroups: the kubelet and the runtime must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Slices and scopes: `kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`.
    Systemd,
    /// Plain directories: `kubepods/burstable/pod<uid>/<id>`.
    Cgroupfs,
}

/// A pod's quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Directly below `kubepods`.
    Guaranteed,
    /// Below `burstable`.
    Burstable,
    /// Below `besteffort`.
    BestEffort,
}

/// A pod as far as cgroups know it. Its cgroups are removed with it.
#[derive(Debug)]
pub struct Pod {
    uid: String,
    dir: String,
    driver: Driver,
}

impl Pod {
    /// A pod with a UID that no other has.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new(driver: Driver, qos: Qos) -> Result<Self> {
        let hex = random_hex()?;
        let uid =
            format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]);
        Ok(Self::with_uid(driver, qos, uid))
    }

    /// A static pod: its cgroup carries the hash of its configuration, 32 digits, which is not the UID the API gives.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn fixed(driver: Driver, qos: Qos) -> Result<Self> {
        Ok(Self::with_uid(driver, qos, random_hex()?[..32].to_owned()))
    }

    fn with_uid(driver: Driver, qos: Qos, uid: String) -> Self {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        };
        let dir = match (driver, class) {
            (Driver::Cgroupfs, "") => format!("/kubepods/pod{uid}"),
            (Driver::Cgroupfs, class) => format!("/kubepods/{class}/pod{uid}"),
            (Driver::Systemd, "") => format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_")),
            (Driver::Systemd, class) => format!(
                "/kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{}.slice",
                uid.replace('-', "_")
            ),
        };
        Self { uid, dir, driver }
    }

    /// What its cgroup calls it: its UID, or the hash of a static pod.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The cgroup path of one of its containers.
    fn path_of(&self, id: &str) -> String {
        match self.driver {
            Driver::Systemd => format!("{}/cri-containerd-{id}.scope", self.dir),
            Driver::Cgroupfs => format!("{}/{id}", self.dir),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The pod's own directory and those above it, as far as they are empty, in every hierarchy.
        for mount in mounts().unwrap_or_default() {
            let mut dir = self.dir.as_str();
            while !dir.is_empty() && fs::remove_dir(mount.join(&dir[1..])).is_ok() {
                dir = dir.rsplit_once('/').map_or("", |(above, _)| above);
            }
        }
    }
}

/// runc, with a root file system that holds busybox and the workload program.
#[derive(Debug)]
pub struct Runtime {
    program: PathBuf,
    dir: TempDir,
    /// The root is the kernel's initial one, which nothing can be put in the place of.
    is_initial_root: bool,
}

impl Runtime {
    /// Finds runc and busybox. From then on this process adopts what runc leaves behind.
    ///
    /// # Errors
    /// A [`Skip`](crate::Skip) when either is not installed.
    pub fn find() -> Result<Self> {
        let program = program::find("runc")?;
        let busybox = program::find("busybox")?;
        // SAFETY: this option takes integers and concerns future orphans only.
        let adopted = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        ensure!(adopted == 0, "become subreaper: {}", std::io::Error::last_os_error());
        let dir = TempDir::new()?;
        let root = dir.path().join("rootfs");
        fs::create_dir(&root)?;
        for (from, name) in [(busybox.as_path(), "busybox"), (crate::workload::program()?, "workload")] {
            let to = root.join(name);
            fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let is_initial_root = mounts
            .lines()
            .rfind(|line| line.split(' ').nth(1) == Some("/"))
            .is_some_and(|root| matches!(root.split(' ').nth(2), Some("rootfs" | "ramfs")));
        Ok(Self { program, dir, is_initial_root })
    }

    /// Starts the workload program as a pod's container; it waits for [`Workload::go`].
    ///
    /// # Errors
    /// When runc refuses.
    pub fn workload(&self, pod: &Pod, args: &[&str]) -> Result<Container<'_>> {
        self.start(pod, &[&["/workload"], args].concat())
    }

    /// Starts what holds a pod together: a process that sleeps until it is killed.
    ///
    /// # Errors
    /// When runc refuses.
    pub fn sandbox(&self, pod: &Pod) -> Result<Container<'_>> {
        self.start(pod, &["/busybox", "sleep", "1000000"])
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.dir.path().join("state")).arg(name);
        command
    }

    fn start(&self, pod: &Pod, args: &[&str]) -> Result<Container<'_>> {
        let id = random_hex()?;
        let path = pod.path_of(&id);
        let bundle = self.dir.path().join(&id);
        fs::create_dir(&bundle)?;
        let specification = specification(&self.dir.path().join("rootfs"), &path, args);
        fs::write(bundle.join("config.json"), specification.to_string())?;
        let (ours, theirs) = control()?;
        // The container inherits the log, too: it goes to a file, not to a pipe that somebody would have to read.
        let log = bundle.join("log");
        let created = self
            .command("create")
            .args(self.is_initial_root.then_some("--no-pivot"))
            .arg("--bundle")
            .arg(&bundle)
            .arg("--pid-file")
            .arg(bundle.join("pid"))
            .arg(&id)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stderr(File::create(&log)?)
            .status()
            .context("start runc")?;
        if !created.success() {
            bail!("runc create failed ({created}): {}", fs::read_to_string(log)?);
        }
        let pid = fs::read_to_string(bundle.join("pid"))?.trim().parse().context("runc's pid file")?;
        let container = Container { runtime: self, id, path, workload: Some(Workload::adopt(pid, ours)?) };
        container.enter_v2(pid)?;
        run(self.command("start").arg(&container.id))?;
        Ok(container)
    }
}

/// What runc is to run: an unprivileged process with limits, in namespaces of its own.
fn specification(root: &Path, cgroup: &str, args: &[&str]) -> Value {
    let mut mounts =
        vec![json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]})];
    // The workload program is linked with the host's libraries.
    mounts.extend(
        ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|library| Path::new(library).exists()).map(|library| {
            json!({"destination": library, "type": "bind", "source": library, "options": ["rbind", "ro"]})
        }),
    );
    let namespaces: Vec<Value> =
        ["pid", "mount", "ipc", "uts", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": false},
        "mounts": mounts,
        "process": {
            "terminal": false,
            "cwd": "/",
            "user": {"uid": 65534, "gid": 65534},
            "args": args,
            "env": ["PATH=/"],
            "noNewPrivileges": true,
        },
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {
                "memory": {"limit": 256 << 20},
                "cpu": {"shares": 256, "quota": 200_000, "period": 100_000},
                "pids": {"limit": 64},
            },
        },
    })
}

/// A running container; killed and deleted when dropped.
#[derive(Debug)]
pub struct Container<'a> {
    runtime: &'a Runtime,
    id: String,
    path: String,
    workload: Option<Workload>,
}

impl Container<'_> {
    /// Its id, 64 digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The first twelve digits of its id, as runtimes print them.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Its first process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn process(&mut self) -> Result<&mut Workload> {
        self.workload.as_mut().context("the container's process has ended")
    }

    /// Lets the workload do its work and reads the results; it then waits for [`finish`](Self::finish).
    ///
    /// # Errors
    /// When it fails or is silent for too long.
    pub fn run(&mut self) -> Result<Vec<String>> {
        let process = self.process()?;
        process.go()?;
        process.results()
    }

    /// Lets the process end, and removes the container with its cgroup.
    ///
    /// # Errors
    /// When it ended with an error or cannot be removed.
    pub fn finish(mut self) -> Result<Ended> {
        let ended = self.workload.take().context("the container's process has ended")?.finish()?;
        self.delete()?;
        Ok(ended)
    }

    /// Sees to it that the process is in the v2 cgroup of its path: on hybrid hosts only some versions of runc do.
    fn enter_v2(&self, pid: i32) -> Result<()> {
        let own = || -> Result<bool> {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            Ok(cgroups.lines().any(|line| line.strip_prefix("0::") == Some(&self.path)))
        };
        if !own()? {
            let dir = crate::cgroup::mount()?.join(&self.path[1..]);
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("move the container into {}", dir.display()))?;
        }
        ensure!(own()?, "the container is not in the v2 cgroup {}", self.path);
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        run(self.runtime.command("delete").arg("--force").arg(&self.id))?;
        // Where runc does not know of the v2 cgroup, it leaves it.
        let dir = crate::cgroup::mount()?.join(&self.path[1..]);
        if dir.exists() {
            fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // The guard of the process kills and reaps it.
        self.workload = None;
        let _ = self.delete();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().context("start runc")?;
    if !output.status.success() {
        bail!("runc failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// 64 random hexadecimal digits.
fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut digits = String::with_capacity(64);
    for byte in bytes {
        write!(digits, "{byte:02x}")?;
    }
    Ok(digits)
}

/// Every cgroup hierarchy's mount point, v1 and v2.
fn mounts() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(place))
        })
        .collect())
}
