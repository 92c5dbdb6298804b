//! In: a YAML file; out: a checked configuration, or one line that says what is wrong, where, and what to do. Starts
//! nothing.

mod access;
mod schema;
pub mod values;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use access::{Access, Credentials, Mode};

use crate::adapt::IntervalPolicy;
use crate::catalog::family::Detail;
use crate::identity::path::printable;
use crate::identity::rules::RuleSet;

/// Largest configuration file, in bytes.
pub const FILE_BYTES: u64 = 1 << 20;

/// The embedded default file.
const DEFAULT: &str = include_str!("../../default.yaml");

/// The whole configuration. Built from defaults and a file; every value is in its documented range.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where metrics are served.
    pub web: Web,
    /// The agent's own log.
    pub log: Log,
    /// The kernel side.
    pub kernel: KernelOptions,
    /// How often the kernel is read.
    pub drain: IntervalPolicy,
    /// How finely workloads are told apart.
    pub detail: DetailLevels,
    /// Limits on what is exported.
    pub limits: ExportLimits,
    /// Whose a cgroup is; known to compile.
    pub tenants: RuleSet,
    /// Where pods' names come from.
    pub kubernetes: Kubernetes,
    /// Who may read what.
    pub access: Access,
}

/// `web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// Address and port.
    pub listen_address: SocketAddr,
    /// Path of the metrics; begins with `/` and is not one of the agent's other endpoints.
    pub telemetry_path: String,
    /// Connections served at once.
    pub max_connections: u32,
    /// TLS, passwords and headers, in the format of Prometheus' exporters.
    pub config_file: Option<PathBuf>,
}

/// `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least severity that is written.
    pub level: LogLevel,
    /// How lines look.
    pub format: LogFormat,
}

/// Severities of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// What needs attention.
    Warn,
    /// What happens.
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word used in configuration and filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value`.
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// A number, or left to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto {
    /// Derived from the memory budget and the machine.
    Auto,
    /// As configured.
    Fixed(u32),
}

/// How programs attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// As BTF tracepoints, or as raw tracepoints where the kernel refuses those; on trace events where the kernel would
    /// preempt them otherwise.
    Auto,
    /// As raw tracepoints only: no run-queue waits, no block times, no forks.
    Raw,
    /// On trace events where there is one, as BTF tracepoints else.
    Event,
}

/// How rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Mapped into the agent's memory, or by batched lookups where the kernel refuses that.
    Auto,
    /// By batched lookups only.
    Batch,
}

/// `kernel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Most memory for kernel-side tables, bytes.
    pub memory_budget: u64,
    /// Slots: workloads told apart at once.
    pub slots: Auto,
    /// Rows for (workload, syscall).
    pub syscall_rows: Auto,
    /// Rows for (workload, syscall, errno).
    pub errno_rows: Auto,
    /// Rows of each kind, at most, that CPUs have for themselves.
    pub private_rows: Auto,
    /// How programs attach.
    pub attach: AttachMode,
    /// How rows are read.
    pub read: ReadMode,
    /// Probes without which the agent does not start.
    pub required_probes: Vec<String>,
    /// Probes that are off by default and run here.
    pub additional_probes: Vec<String>,
}

/// `detail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetailLevels {
    /// For families not named.
    pub default: Detail,
    /// By family name.
    pub families: BTreeMap<String, Detail>,
}

impl DetailLevels {
    /// The level of a family.
    pub fn of(&self, family: &str) -> Detail {
        self.families.get(family).copied().unwrap_or(self.default)
    }
}

/// `limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportLimits {
    /// Series of one tenant.
    pub series_per_tenant: u32,
    /// Tenants.
    pub tenants: u32,
    /// How long series of a removed workload stay.
    pub retention: Duration,
}

/// Where pods' names, namespaces and labels come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// The Kubernetes API inside a pod or with a kubeconfig, else nowhere.
    Auto,
    /// Nowhere: pods are known by UID.
    Off,
    /// The Kubernetes API.
    Api,
    /// The kubelet's directories of logs: names only, and no API is contacted.
    Directories,
}

/// `kubernetes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// The source of pods.
    pub pods: PodSource,
    /// The node whose pods are watched; `None`: `$NODE_NAME`.
    pub node_name: Option<String>,
    /// A kubeconfig file; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where the kubelet keeps a directory for each pod.
    pub log_directory: PathBuf,
    /// How long counts wait for the identity of their pod before they are shown as `_unknown`.
    pub identity_timeout: Duration,
    /// The first request waits for a random part of this, so that the agents of a cluster do not all ask at once.
    pub start_jitter: Duration,
    /// Longest wait for an answer of the API, or for the next piece of a list.
    pub request_timeout: Duration,
    /// How long the server is asked to keep a watch open. One that says nothing for half as long is given up.
    pub watch_timeout: Duration,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            pods: PodSource::Auto,
            node_name: None,
            kubeconfig: None,
            log_directory: PathBuf::from("/var/log/pods"),
            identity_timeout: Duration::from_mins(5),
            start_jitter: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            watch_timeout: Duration::from_secs(290),
        }
    }
}

/// Names that the configuration may refer to, from the probe list.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Names of workload families.
    pub families: &'a [&'a str],
    /// Names of probes.
    pub probes: &'a [&'a str],
}

/// Why there is no configuration. One line each.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is unreadable.
    #[error("cannot read configuration `{file}`: {source}; check the path and who may read it")]
    Read {
        /// The path, printable.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, pipe or device.
    #[error("configuration `{0}` is not a regular file: name a YAML file")]
    NotAFile(String),
    /// Too large.
    #[error("configuration `{0}` is larger than 1 MiB: merge tenant rules with wildcards")]
    TooLarge(String),
    /// Nothing but white space, comments and other words for nothing.
    #[error("configuration `{0}` is empty: write `{{}}` into it if you want the defaults")]
    Empty(String),
    /// Not UTF-8.
    #[error("{file}:{line}:{column}: not UTF-8: save the configuration as UTF-8")]
    NotUtf8 {
        /// The path, printable.
        file: String,
        /// From 1.
        line: usize,
        /// In bytes, from 1.
        column: usize,
    },
    /// Broken YAML, an unknown key, or a value that will not do.
    #[error("{file}:{line}:{column}: {message}")]
    Invalid {
        /// The path, printable.
        file: String,
        /// From 1.
        line: u64,
        /// In characters, from 1.
        column: u64,
        /// What is wrong and what to do.
        message: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            web: Web {
                listen_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 10058)),
                telemetry_path: "/metrics".into(),
                max_connections: 128,
                config_file: None,
            },
            log: Log { level: LogLevel::Info, format: LogFormat::Logfmt },
            kernel: KernelOptions {
                memory_budget: 64 << 20,
                slots: Auto::Auto,
                syscall_rows: Auto::Auto,
                errno_rows: Auto::Auto,
                private_rows: Auto::Auto,
                attach: AttachMode::Auto,
                read: ReadMode::Auto,
                required_probes: Vec::new(),
                additional_probes: Vec::new(),
            },
            drain: IntervalPolicy::default(),
            detail: DetailLevels { default: Detail::Namespace, families: BTreeMap::new() },
            limits: ExportLimits {
                series_per_tenant: 5000,
                tenants: 1000,
                retention: Duration::from_mins(10),
            },
            tenants: RuleSet::default(),
            kubernetes: Kubernetes::default(),
            access: Access::default(),
        }
    }
}

/// Whether a line of YAML says nothing at all.
fn says_nothing(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim();
    line.is_empty() || line.starts_with('#') || matches!(line, "---" | "..." | "null" | "Null" | "NULL" | "~")
}

impl Config {
    /// The documented default file, as `kernmeter config default` prints it; it says the same as [`Config::default`].
    pub fn default_yaml() -> &'static str {
        DEFAULT
    }

    /// Reads and checks a file; the defaults without one.
    ///
    /// # Errors
    /// What is wrong first, with its place.
    pub fn load(path: Option<&Path>, known: &Known<'_>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let file = printable(path.as_os_str().as_bytes());
        let bytes = read(path, &file)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let line = before.split(|b| *b == b'\n').count();
            ConfigError::NotUtf8 { file: file.clone(), line, column: before.len() - line_start + 1 }
        })?;
        // Most often one that is being written, or could not be for want of room.
        if text.lines().all(says_nothing) {
            return Err(ConfigError::Empty(file));
        }
        let mut config = Self::parse(text, &file, known)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        // Joining an absolute path gives that path.
        let files = config.access.bearer_token_files_mut().chain(&mut config.web.config_file);
        files.for_each(|named| *named = directory.join(&*named));
        Ok(config)
    }

    /// Checks a YAML text; `file` names it in errors.
    ///
    /// # Errors
    /// What is wrong first, with its place.
    pub fn parse(text: &str, file: &str, known: &Known<'_>) -> Result<Self, ConfigError> {
        schema::parse(text, known).map_err(|problem| ConfigError::Invalid {
            file: file.to_owned(),
            line: problem.line.max(1),
            column: problem.column.max(1),
            message: problem.message,
        })
    }

    /// Sections that differ and take effect only with a restart. Everything else can be applied to a running agent.
    pub fn restart_needed(&self, new: &Self) -> Vec<&'static str> {
        let sections = [
            ("web", self.web != new.web),
            ("log", self.log != new.log),
            ("kernel", self.kernel != new.kernel),
            ("kubernetes", self.kubernetes != new.kubernetes),
            ("detail", self.detail != new.detail),
            ("limits", self.limits != new.limits),
        ];
        sections.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

fn read(path: &Path, file: &str) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |source| ConfigError::Read { file: file.to_owned(), source };
    // Before opening: opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(ConfigError::NotAFile(file.to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|opened| opened.take(FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES { Err(ConfigError::TooLarge(file.to_owned())) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests;
