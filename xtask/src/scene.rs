//! In: a request; out: three small tenants at work in cgroups of their own, gone with whoever asked for them, however that
//! ended. Knows nothing of the agent that looks at them.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// The cgroups of the scene, directly below the root of the v2 hierarchy: without rules, each is the tenant of its name.
pub const TENANTS: [&str; 3] = ["shop", "search", "batch"];
/// Processes of `batch`.
const LOOPS: usize = 2;
/// An endless loop asks nobody whether it is still wanted, so it ends by itself, at the latest then.
const LONGEST: Duration = Duration::from_mins(15);
/// How long removing a cgroup may take once its tasks are killed.
const REMOVAL: Duration = Duration::from_secs(5);
/// What the process that holds the scene prints once everything runs.
const READY: &str = "ready";

#[derive(clap::Args)]
pub struct Arguments {
    /// Used by the command itself: hold the scene until standard input ends, or do the work of one tenant
    #[arg(hide = true)]
    role: Option<String>,
}

/// `cargo xtask scene`.
pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.role.as_deref() {
        None => {
            let _scene = Scene::start()?;
            println!("scene: {} are at work; end it with Ctrl-C", TENANTS.join(", "));
            // Ctrl-C ends this process; the scene is held by another one, which notices and cleans up.
            loop {
                thread::park();
            }
        }
        Some("hold") => hold(),
        Some("shop") => shop(),
        Some("search") => search(),
        Some("batch") => {
            batch();
            Ok(())
        }
        Some(other) => bail!("the scene has no part \"{other}\""),
    }
}

/// The scene, while this value lives.
pub struct Scene {
    holder: Child,
    /// The scene ends when this does.
    until: Option<ChildStdin>,
}

impl Scene {
    /// Starts the tenants and returns once all of them are at work. Needs root, a v2 hierarchy and `taskset`.
    pub fn start() -> Result<Self> {
        let mut holder = own("hold")?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C must not reach the process that cleans up.
            .process_group(0)
            .spawn()
            .context("cannot start the scene")?;
        let until = holder.stdin.take();
        let said = holder.stdout.take();
        let scene = Self { holder, until };
        let mut ready = [0; READY.len()];
        said.context("the scene has no output")?.read_exact(&mut ready).context("the scene did not start")?;
        Ok(scene)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.until.take());
        // It has the tenants killed and their cgroups removed by then.
        let _ = self.holder.wait();
    }
}

fn own(role: &str) -> Result<Command> {
    let mut command = workspace::command(env::current_exe().context("this program has no path")?);
    command.args(["scene", role]);
    Ok(command)
}

/// A tenant at work: its cgroup and its processes, killed and removed when dropped.
struct Tenant {
    cgroup: PathBuf,
    processes: Vec<Child>,
}

impl Tenant {
    fn start(mount: &Path, name: &str, processes: usize, cpu: Option<&str>) -> Result<Self> {
        let cgroup = mount.join(name);
        // One that is empty was left by a scene that was killed together with its holder.
        match fs::remove_dir(&cgroup) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                bail!("the scene needs the cgroup \"{}\" for itself, and it is in use", cgroup.display());
            }
            _ => {}
        }
        fs::create_dir(&cgroup).with_context(|| format!("cannot make \"{}\"", cgroup.display()))?;
        let mut tenant = Self { cgroup, processes: Vec::new() };
        for _ in 0..processes {
            let mut command = own(name)?;
            if let Some(cpu) = cpu {
                let program = command.get_program().to_owned();
                command = workspace::command("taskset");
                command.args(["--cpu-list", cpu]).arg(program).args(["scene", name]);
            }
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let child =
                child.with_context(|| format!("cannot start \"{}\"", command.get_program().display()))?;
            let id = child.id();
            tenant.processes.push(child);
            fs::write(tenant.cgroup.join("cgroup.procs"), id.to_string())
                .with_context(|| format!("cannot move a process into \"{}\"", tenant.cgroup.display()))?;
        }
        Ok(tenant)
    }

    /// Whether all its processes still run.
    fn is_alive(&mut self) -> bool {
        self.processes.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        let until = Instant::now() + REMOVAL;
        while self.cgroup.exists() && fs::remove_dir(&self.cgroup).is_err() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Holds the scene until standard input ends.
fn hold() -> Result<()> {
    let mount = v2_mount()?;
    let cpu = last_cpu()?;
    let [shop, search, batch] = TENANTS;
    let mut tenants = [
        Tenant::start(&mount, shop, 1, None)?,
        Tenant::start(&mount, search, 1, Some(&cpu))?,
        Tenant::start(&mount, batch, LOOPS, Some(&cpu))?,
    ];
    thread::sleep(Duration::from_millis(300));
    ensure!(
        tenants.iter_mut().all(Tenant::is_alive),
        "a tenant of the scene has ended; its message is above"
    );
    let mut out = std::io::stdout();
    out.write_all(READY.as_bytes()).and_then(|()| out.flush()).context("nobody waits for the scene")?;
    std::io::stdin().read_to_end(&mut Vec::new()).context("cannot wait for the scene's end")?;
    Ok(())
}

/// Writes a file, syncs it, and looks for files that are not there.
fn shop() -> Result<()> {
    let wanted = parent_id();
    let path = env::temp_dir().join(format!("kernmeter-scene-{}", process::id()));
    let file = File::create(&path).with_context(|| format!("cannot write \"{}\"", path.display()))?;
    fs::remove_file(&path)?;
    while parent_id() == wanted {
        file.write_all_at(&[b'.'; 4096], 0)?;
        file.sync_all()?;
        for _ in 0..40 {
            // That it is not there is the point.
            let _ = File::open("/nonexistent/item");
        }
        thread::sleep(Duration::from_millis(8));
    }
    Ok(())
}

/// Answers a short request every 10 ms.
fn search() -> Result<()> {
    let wanted = parent_id();
    let (mut client, mut server) = UnixStream::pair()?;
    thread::spawn(move || {
        let mut request = [0; 64];
        while server.read_exact(&mut request).is_ok() && server.write_all(&request).is_ok() {}
    });
    let mut answer = [0; 64];
    while parent_id() == wanted {
        thread::sleep(Duration::from_millis(10));
        client.write_all(&[b'?'; 64])?;
        client.read_exact(&mut answer)?;
    }
    Ok(())
}

/// Computes, and calls the kernel as little as possible.
fn batch() {
    let begun = Instant::now();
    while begun.elapsed() < LONGEST {
        for round in 0..1_000_000_u32 {
            std::hint::black_box(round);
        }
    }
}

/// Why there can be no scene here, root taken for granted.
pub fn cannot_run() -> Option<String> {
    if workspace::which("taskset").is_none() {
        return Some("`taskset` is not installed (package util-linux)".to_owned());
    }
    v2_mount().err().map(|error| format!("{error:#}"))
}

/// Where the v2 hierarchy is mounted whole.
fn v2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = left.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
        })
        .context("no cgroup v2 hierarchy is mounted")
}

/// The last CPU this process may use.
fn last_cpu() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cpu = list.and_then(|list| list.trim().rsplit([',', '-']).next());
    Ok(cpu.context("`/proc/self/status` names no CPU")?.to_owned())
}
