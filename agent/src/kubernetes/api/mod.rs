//! In: settings and credentials; out: a client of the Kubernetes API, and the sessions that use it. Knows no objects.

mod lines;
mod object;
mod pace;
mod request;
mod session;

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use object::Keys;
use session::{Kind, Session};
use tokio::sync::watch;

use super::queue::Queue;
use super::settings::{KubernetesError, Settings};
use super::stats::Restart;
use crate::identity::path::printable;
use crate::identity::pods::Wanted;

/// Longest piece of somebody else's error text that is logged or passed on, in bytes.
const MESSAGE_BYTES: usize = 300;

/// How to reach the API server.
#[derive(Clone, Debug)]
pub(super) struct Access {
    kubeconfig: Option<PathBuf>,
    connect_timeout: Duration,
}

impl Access {
    pub fn new(kubeconfig: Option<PathBuf>, settings: &Settings) -> Self {
        Self { kubeconfig, connect_timeout: settings.request_timeout }
    }

    /// A client with the credentials as they are on disk now. Connects to nobody.
    pub async fn client(&self) -> Result<Client, KubernetesError> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let shown = printable(path.as_os_str().as_encoded_bytes());
                let cannot = |error: &KubeconfigError| KubernetesError::Kubeconfig {
                    path: shown.clone(),
                    message: match error {
                        // Their texts show the lines around the place, which may hold a token.
                        KubeconfigError::Parse(_) => {
                            format!("it is no YAML of a kubeconfig{}", place(&error.to_string()))
                        }
                        other => message(other),
                    },
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| cannot(&error))?;
                let runs = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
                if runs.into_iter().any(|info| info.exec.is_some() || info.auth_provider.is_some()) {
                    return Err(KubernetesError::RunsProgram(shown));
                }
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| cannot(&error))?
            }
            None => Config::incluster().map_err(|error| KubernetesError::Account(message(&error)))?,
        };
        config.connect_timeout = Some(self.connect_timeout);
        // Whatever fails is tried again here, where it is counted and paced.
        config.default_retry = false;
        Client::try_from(config).map_err(|error| KubernetesError::Client(message(&error)))
    }
}

/// Watches the node's pods, and namespaces if any rule looks at them, until the handle is dropped.
pub(super) async fn run(
    node: &str,
    access: Access,
    client: Client,
    settings: &Settings,
    queue: Queue,
    mut wanted: watch::Receiver<Wanted>,
) {
    let counters = queue.counters.clone();
    let start = tokio::time::sleep(pace::part_of(settings.start_jitter));
    tokio::select! {
        () = start => {}
        // A change of rules before anything was asked needs no new start, only the end does.
        () = gone(&mut wanted) => return,
    }
    let session = |kind, keys: &Keys| {
        Session::new(kind, access.clone(), client.clone(), settings.clone(), queue.clone(), keys.clone())
    };
    loop {
        let keys = Keys::new(&wanted.borrow_and_update());
        let mut pods = session(Kind::Pods { node: node.to_owned() }, &keys);
        let mut namespaces = session(Kind::Namespaces, &keys);
        let both = async {
            tokio::select! {
                () = pods.run() => {}
                () = namespaces.run(), if keys.namespaces => {}
            }
        };
        tokio::select! {
            // Nobody reads the queue any more.
            () = both => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
        counters.restart(Restart::Wanted);
    }
}

/// Until the handle is gone; what it wanted meanwhile is still there to be seen.
async fn gone(wanted: &mut watch::Receiver<Wanted>) {
    while wanted.changed().await.is_ok() {}
}

/// `, line 3 column 5` of a parser's text, and nothing else of it.
fn place(text: &str) -> String {
    let Some(at) = text.find("line ") else { return String::new() };
    let place: String =
        text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == ' ').take(40).collect();
    format!(", {}", place.trim_end())
}

/// An error with its causes, in one bounded line.
fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many types repeat their cause in their own text.
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    bounded(&text)
}

/// Text from elsewhere: one line, cut.
fn bounded(text: &str) -> String {
    printable(&text.as_bytes()[..text.len().min(MESSAGE_BYTES)])
}
