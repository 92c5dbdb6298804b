//! The image, and the agent in a container of runc with the security context, mounts and limits of the `DaemonSet`. Without an
//! image (`cargo xtask image --check` gives one) a stand-in holds the agent under test and borrows the host's libraries.
//! One thing differs from a pod: the container shares the host's network, so that the trial can scrape it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kernmeter_tests::Outcome;
use kernmeter_tests::apiserver::{ApiServer, PodSpec};
use kernmeter_tests::settings::TempDir;
use serde_json::{Value, json};

use super::confined::{Confined, copy_of_the_agent};
use super::{kubernetes, tool};

kernmeter_tests::trials!(image_holds_one_static_binary, meters_as_in_the_daemon_set);

/// The OCI archive to test, if any.
const IMAGE: &str = "KERNMETER_IMAGE";
/// The node the pod is said to be on.
const NODE: &str = "node-1";
/// How long the agent may take to learn of its node's pods.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest unpacked image, bytes.
const LARGEST: u64 = 12_000_000;
/// What containerd hides from containers, and what it lets them read only.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A digest's file.
fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
    Ok(layout.join("blobs").join(digest.replace(':', "/")))
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// An unpacked image: its configuration and the archive of its only layer.
fn unpack(archive: &Path, into: &Path) -> Result<(Value, PathBuf)> {
    fs::create_dir(into)?;
    tool::run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into))?;
    let index = read(&into.join("index.json"))?;
    let manifest = read(&blob(into, &index["manifests"][0])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == 1, "{} layers instead of one", layers.len());
    let config = read(&blob(into, &manifest["config"])?)?;
    Ok((config["config"].clone(), blob(into, &layers[0])?))
}

fn image_holds_one_static_binary() -> Outcome {
    let Some(archive) = std::env::var_os(IMAGE) else {
        kernmeter_tests::skip!("no image: `cargo xtask image --check` builds one");
    };
    let dir = TempDir::new()?;
    let (config, layer) = unpack(Path::new(&archive), &dir.path().join("layout"))?;
    ensure!(config["Entrypoint"] == json!(["/kernmeter"]), "another entry point: {config}");
    ensure!(config["Cmd"] == json!(["run"]), "another command: {config}");
    ensure!(config["Labels"]["org.opencontainers.image.title"] == "kernmeter", "no labels: {config}");
    let (list, _) = tool::run(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&layer))?;
    let [line] = list.lines().collect::<Vec<_>>()[..] else { bail!("not one file:\n{list}") };
    let fields: Vec<&str> = line.split_whitespace().collect();
    ensure!(fields[0] == "-r-xr-xr-x" && fields[1] == "65534/65534", "owner or mode is another: {line}");
    ensure!(fields.last() == Some(&"kernmeter"), "another file: {line}");
    let size: u64 = fields[2].parse()?;
    println!("image: {:.1} MB", size as f64 / 1e6);
    ensure!(size <= LARGEST, "{size} bytes are more than {LARGEST}");
    Ok(())
}

/// A root file system, and the mounts it needs besides.
fn root(dir: &TempDir) -> Result<Vec<Value>> {
    let root = dir.path().join("rootfs");
    fs::create_dir(&root)?;
    if let Some(archive) = std::env::var_os(IMAGE) {
        let (_, layer) = unpack(Path::new(&archive), &dir.path().join("layout"))?;
        tool::run(Command::new("tar").arg("-xpf").arg(layer).arg("-C").arg(root))?;
        return Ok(Vec::new());
    }
    copy_of_the_agent(&root.join("kernmeter"))?;
    Ok(["/lib", "/lib64", "/usr/lib"]
        .iter()
        .filter(|path| Path::new(path).exists())
        .map(|path| bind(path, path, &["rbind", "ro"]))
        .collect())
}

fn bind(from: impl AsRef<Path>, to: &str, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": from.as_ref(), "options": options})
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("not a text: {value}"))
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What takes the cluster's place: the configuration and the service account's folder, and who answers for the API server.
struct Cluster {
    server: ApiServer,
    config: PathBuf,
    account: PathBuf,
    /// `KUBERNETES_SERVICE_HOST` and `_PORT`, as the kubelet sets them.
    environment: [String; 2],
}

impl Cluster {
    fn start(dir: &TempDir) -> Result<Self> {
        let server = ApiServer::start_tls()?;
        let (config, account) = (dir.path().join("config"), dir.path().join("account"));
        fs::create_dir(&config)?;
        fs::create_dir(&account)?;
        let kubeconfig = server.kubeconfig()?;
        fs::copy(kubeconfig.with_file_name("ca.pem"), account.join("ca.crt"))?;
        fs::copy(server.token_file(), account.join("token"))?;
        fs::write(account.join("namespace"), "kernmeter")?;
        let text = fs::read_to_string(kubeconfig)?;
        let address = text.split("https://").nth(1).and_then(|rest| rest.split('\'').next());
        let (host, port) = address.and_then(|address| address.split_once(':')).context("no address")?;
        let environment =
            [format!("KUBERNETES_SERVICE_HOST={host}"), format!("KUBERNETES_SERVICE_PORT={port}")];
        Ok(Self { server, config, account, environment })
    }
}

/// The mounts of the container, with what the cluster would put there.
fn volumes(pod: &Value, cluster: &Cluster) -> Result<Vec<Value>> {
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    let mut mounts = Vec::new();
    for mount in pod["containers"][0]["volumeMounts"].as_array().context("no mounts")? {
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == mount["name"])
            .context("a mount without volume")?;
        let from = if let Some(path) = volume["hostPath"]["path"].as_str() {
            Path::new(path)
        } else if volume["projected"].is_object() {
            &cluster.account
        } else {
            &cluster.config
        };
        ensure!(mount["readOnly"] == true, "a mount that can be written: {mount}");
        let propagation = if mount["mountPropagation"] == "HostToContainer" { "rslave" } else { "rprivate" };
        mounts.push(bind(from, text(&mount["mountPath"])?, &["rbind", "ro", propagation]));
    }
    Ok(mounts)
}

/// The arguments of the container, but on an address of the trial's and with a log it can read.
fn arguments(container: &Value) -> Vec<String> {
    let given =
        list(&container["args"]).into_iter().filter(|given| !given.starts_with("--web.listen-address="));
    std::iter::once("/kernmeter")
        .chain(given)
        .chain(["--web.listen-address=127.0.0.1:0", "--log.format=logfmt"])
        .map(str::to_owned)
        .collect()
}

/// What runc is to do, from what the kubelet is told.
fn specification(pod: &Value, mounts: Vec<Value>, cluster: &Cluster) -> Result<Value> {
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    ensure!(list(&context["capabilities"]["drop"]) == ["ALL"], "not all capabilities are dropped");
    let added: Vec<String> =
        list(&context["capabilities"]["add"]).iter().map(|name| format!("CAP_{name}")).collect();
    let namespaces: Vec<Value> = ["mount", "ipc", "uts", "cgroup", "pid"]
        .into_iter()
        .filter(|kind| *kind != "pid" || pod["hostPID"] != true)
        .map(|kind| json!({"type": kind}))
        .collect();
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    all.extend(mounts);
    all.extend(volumes(pod, cluster)?);
    let [host, port] = &cluster.environment;
    // The profile of components/seccomp-localhost: narrower than any runtime's own.
    let seccomp = read(&tool::deploy().join("kubernetes/seccomp/kernmeter.json"))?;
    let memory = text(&container["resources"]["limits"]["memory"])?;
    let memory: u64 = memory.strip_suffix("Mi").context("the memory limit is not in Mi")?.parse()?;
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "hostname": "kernmeter",
        "mounts": all,
        "process": {
            "terminal": false,
            "cwd": "/",
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": arguments(container),
            "env": [format!("NODE_NAME={NODE}"), host, port],
            "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
            "capabilities": {"bounding": added, "effective": added, "permitted": added},
        },
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp,
            "resources": {"memory": {"limit": memory << 20}, "devices": [{"allow": false, "access": "rwm"}]},
        },
    }))
}

/// A container that is gone when the trial is.
struct Container {
    runc: PathBuf,
    dir: TempDir,
    id: String,
}

impl Container {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(self.dir.path().join("state")).arg(name);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Usually it is gone already.
        let _ = self.command("delete").args(["--force", &self.id]).output();
    }
}

fn meters_as_in_the_daemon_set() -> Outcome {
    tool::need_root()?;
    let runc = tool::find("runc")?;
    let dir = TempDir::new()?;
    let id = format!("kernmeter-test-{}", std::process::id());
    let mounts = root(&dir)?;
    let cluster = Cluster::start(&dir)?;
    cluster.server.put(&PodSpec::new(NODE, "shop", "cart-0", "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11"));
    cluster.server.put(&PodSpec::new("another", "shop", "cart-1", "1f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11"));
    let yaml = fs::read_to_string(tool::deploy().join("kubernetes/base/kernmeter.yaml"))?;
    let often = "\ndrain:\n  intervals: {relaxed: 200ms, normal: 200ms, stressed: 200ms}\nkubernetes:\n  start_jitter: 0s\n";
    fs::write(cluster.config.join("kernmeter.yaml"), yaml + often)?;
    let daemon_set = kubernetes::daemon_set()?;
    let specification = specification(&daemon_set["spec"]["template"]["spec"], mounts, &cluster)?;
    dir.write("config.json", &specification.to_string())?;

    let container = Container { runc, dir, id };
    let mut command = container.command("run");
    command.arg("--bundle").arg(container.dir.path()).arg(&container.id);
    let agent = Confined::start(&mut command)?;
    let (state, _) = tool::run(container.command("state").arg(&container.id))?;
    let pid = serde_json::from_str::<Value>(&state)?["pid"].as_u64().context("no process")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    println!(
        "capabilities: effective {}, bounding {}",
        field("CapEff").unwrap_or("?"),
        field("CapBnd").unwrap_or("?")
    );
    // Bits 38 and 39: CAP_PERFMON and CAP_BPF.
    for (name, expected) in [
        ("CapEff", "000000c000000000"),
        ("CapPrm", "000000c000000000"),
        ("CapBnd", "000000c000000000"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        ensure!(field(name) == Some(expected), "{name} is not {expected}:\n{status}");
    }
    let scrape = agent.meters()?;
    // Tasks that are older than the agent are known: it sees the host's processes, not only its own.
    ensure!(scrape.sum("kernmeter_tasks", &[]) > 1.0, "no tasks but the agent's");
    // The service account leads it to the pod of its node, through the filter of system calls.
    let begun = Instant::now();
    loop {
        let scrape = agent.meters()?;
        let pods = scrape.sum("kernmeter_pods", &[("state", "running")]);
        if pods > 0.0 {
            ensure!(pods < 2.0, "{pods} pods, but only one is of this node");
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "it knows no pod after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (ended, log) = agent.stop()?;
    ensure!(ended.success() && log.contains("final totals"), "it ended with {ended}:\n{log}");
    Ok(())
}
