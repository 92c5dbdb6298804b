//! In: the configuration and the environment; out: which source runs and how, or a line that says what is missing.
//! Contacts nobody.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::values::node_name;
use crate::config::{Kubernetes, PodSource};

/// The token that a pod's service account has.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How pods are learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From where.
    pub source: Source,
    /// The first request waits for a random part of this.
    pub start_jitter: Duration,
    /// Longest wait for an answer, or the next piece of a list.
    pub request_timeout: Duration,
    /// How long the server is asked to keep a watch open; half of it without a word ends the watch.
    pub watch_timeout: Duration,
    /// Wait after the first failure; doubles with each that follows.
    pub backoff_least: Duration,
    /// Longest wait after a failure.
    pub backoff_most: Duration,
    /// A watch that lasted this long was no failure: the next wait begins small again.
    pub healthy: Duration,
    /// Events in the queue.
    pub queue: usize,
    /// Objects asked for at once in a list by pages.
    pub page: u32,
    /// Time between two looks at the directories.
    pub poll: Duration,
}

/// From where pods are learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The Kubernetes API.
    Api {
        /// The node whose pods are watched.
        node: String,
        /// A kubeconfig file; `None`: the pod's service account.
        kubeconfig: Option<PathBuf>,
    },
    /// The kubelet's directories.
    Directories {
        /// The directory of directories.
        path: PathBuf,
    },
}

/// What the agent's surroundings say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `$NODE_NAME`.
    pub node_name: Option<String>,
    /// Whether a service account can be used: its token is mounted and `$KUBERNETES_SERVICE_HOST` is set.
    pub service_account: bool,
}

impl Environment {
    /// That of this process.
    pub fn current() -> Self {
        Self {
            node_name: std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()),
            service_account: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
                && Path::new(TOKEN).exists(),
        }
    }
}

/// Why there is no source of pods. One line each.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// No name of the node.
    #[error(
        "kubernetes.pods: `api` needs the node's name: set `kubernetes.node_name`, or the environment variable \
         NODE_NAME by the downward API (`fieldPath: spec.nodeName`)"
    )]
    NoNode,
    /// `$NODE_NAME` is none.
    #[error("NODE_NAME: {0}")]
    BadNode(String),
    /// The cargo feature is missing.
    #[error(
        "kubernetes.pods: this build cannot talk to the Kubernetes API: use one with the cargo feature \
         `kubernetes`, or write `directories` or `off`"
    )]
    NotBuilt,
    /// The kubeconfig will not do.
    #[error("kubernetes.kubeconfig: cannot use `{path}`: {message}; check the file")]
    Kubeconfig {
        /// Printable.
        path: String,
        /// What is wrong, without the file's contents.
        message: String,
    },
    /// The kubeconfig runs a program.
    #[error(
        "kubernetes.kubeconfig: `{0}` gets its credentials from another program (`exec` or `auth-provider`), and the \
         agent starts none: put a token file or a client certificate there"
    )]
    RunsProgram(String),
    /// The service account will not do.
    #[error(
        "cannot use the pod's service account: {0}; let the pod mount its token, or set `kubernetes.kubeconfig`"
    )]
    Account(String),
    /// The credentials cannot be used.
    #[error("cannot make a client of the Kubernetes API: {0}; check certificates and keys")]
    Client(String),
    /// No thread.
    #[error("cannot start the thread for pods: {0}; raise the limit of tasks")]
    Thread(#[source] io::Error),
    /// The thread ended at once.
    #[error("the thread for pods ended at once: see the log before this line")]
    Died,
}

impl Settings {
    /// The source that configuration and environment ask for; `None`: none.
    ///
    /// # Errors
    /// The API is asked for by name and something it needs is missing.
    pub fn resolve(config: &Kubernetes, environment: &Environment) -> Result<Option<Self>, KubernetesError> {
        let built = cfg!(feature = "kubernetes");
        let node = || match (&config.node_name, &environment.node_name) {
            (Some(name), _) => Ok(name.clone()),
            (None, Some(name)) => node_name(name).map_err(KubernetesError::BadNode),
            (None, None) => Err(KubernetesError::NoNode),
        };
        let api = |node| Source::Api { node, kubeconfig: config.kubeconfig.clone() };
        let source = match config.pods {
            PodSource::Off => None,
            PodSource::Directories => Some(Source::Directories { path: config.log_directory.clone() }),
            PodSource::Api if !built => return Err(KubernetesError::NotBuilt),
            PodSource::Api => Some(api(node()?)),
            PodSource::Auto => {
                let possible = built && (config.kubeconfig.is_some() || environment.service_account);
                match possible.then(node) {
                    Some(Ok(node)) => Some(api(node)),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "pods are known by UID only");
                        None
                    }
                    None => None,
                }
            }
        };
        Ok(source.map(|source| Self {
            source,
            start_jitter: config.start_jitter,
            request_timeout: config.request_timeout,
            watch_timeout: config.watch_timeout,
            ..Self::of(Source::Directories { path: PathBuf::new() })
        }))
    }

    /// A source with the default timing.
    pub fn of(source: Source) -> Self {
        let config = Kubernetes::default();
        Self {
            source,
            start_jitter: config.start_jitter,
            request_timeout: config.request_timeout,
            watch_timeout: config.watch_timeout,
            backoff_least: Duration::from_millis(250),
            backoff_most: Duration::from_secs(30),
            healthy: Duration::from_secs(10),
            queue: 4096,
            page: 250,
            poll: Duration::from_secs(2),
        }
    }
}
