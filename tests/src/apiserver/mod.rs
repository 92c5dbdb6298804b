//! In: pods, namespaces and faults, as a test wants them; out: a Kubernetes API server in this process: real HTTP, and the
//! list and watch protocol of pods and namespaces. Knows nothing of the agent.

mod answer;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
pub use store::PodSpec;
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::settings::TempDir;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// A list, or a page of it.
    List,
    /// A watch.
    Watch,
}

/// Kinds of objects served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// `/api/v1/pods`.
    Pods,
    /// `/api/v1/namespaces`.
    Namespaces,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused with this status, and perhaps a time in seconds after which to come back.
    Status(u16, Option<u32>),
    /// Never answered.
    Silent,
    /// Answered with a head, and then nothing.
    HeadOnly,
    /// 200, and text that is no JSON.
    Garbage,
    /// 200, half of what there is, and a broken connection. Of a watch: half of its first event.
    Truncated,
    /// 200, and the end. Of a list: an empty body.
    EndAtOnce,
    /// Of a watch: an `ERROR` event with this status.
    ErrorEvent(u16),
    /// What there is, in pieces of so many bytes with a pause before each.
    Slow(usize, Duration),
    /// A line that never ends.
    Endless,
}

/// How streams of events are spoilt, as long as it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoil {
    /// Every event comes twice.
    pub duplicates: bool,
    /// Events that wait are sent in another order; those of one object keep theirs.
    pub reordered: bool,
    /// After so many events comes half of the next one, and the connection breaks.
    pub cut_after: Option<usize>,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What it wanted.
    pub verb: Verb,
    /// Of which objects.
    pub resource: Resource,
    /// Its parameters.
    pub query: BTreeMap<String, String>,
    /// Its `Accept` header.
    pub accept: String,
    /// When it came.
    pub at: Instant,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    faults: Vec<(Verb, Resource, Fault, usize)>,
    spoil: Spoil,
    asked: VecDeque<Asked>,
    token: Option<String>,
    /// Streams of an earlier epoch break.
    epoch: u64,
    bookmarks: Option<Duration>,
    connections: u64,
}

#[derive(Clone, Debug)]
struct Shared {
    state: Arc<Mutex<State>>,
    /// Sent to whenever streams have something to look at.
    stirred: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.stirred.send_modify(|n| *n += 1);
        done
    }
}

/// A running server; gone with its guard.
#[derive(Debug)]
pub struct ApiServer {
    shared: Shared,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    dir: TempDir,
    authority: Option<String>,
}

impl ApiServer {
    /// Starts one on a free port of the loopback address, with plain HTTP.
    ///
    /// # Errors
    /// No port, no thread.
    pub fn start() -> Result<Self> {
        Self::serve(None, None)
    }

    /// The same with TLS, under a certificate made for it.
    ///
    /// # Errors
    /// As [`start`](Self::start), or no certificate.
    pub fn start_tls() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(|error| anyhow::anyhow!("a key: {error}"))?;
        let config = tokio_rustls::rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        Self::serve(Some(TlsAcceptor::from(Arc::new(config))), Some(made.cert.pem()))
    }

    fn serve(tls: Option<TlsAcceptor>, authority: Option<String>) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Shared { state: Arc::default(), stirred: watch::channel(0).0 };
        shared.state().bookmarks = Some(Duration::from_millis(200));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::Builder::new().name("apiserver".into()).spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listening socket");
                tokio::select! {
                    () = answer::serve(listener, tls, serving) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_millis(100));
        })?;
        let dir = TempDir::new()?;
        Ok(Self { shared, address, stop: Some(stop), thread: Some(thread), dir, authority })
    }

    /// A kubeconfig for it. The token is read from the file `token` beside it; see [`token_file`](Self::token_file).
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        let mut cluster = format!("server: '{scheme}://{}'", self.address);
        if let Some(pem) = &self.authority {
            let path = self.dir.write("ca.pem", pem)?;
            cluster = format!("{cluster}, certificate-authority: '{}'", path.display());
        }
        if !self.token_file().exists() {
            self.dir.write("token", "secret-of-the-tests")?;
        }
        self.dir.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                 clusters: [{{name: k, cluster: {{{cluster}}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 users: [{{name: u, user: {{tokenFile: '{}'}}}}]\n",
                self.token_file().display()
            ),
        )
    }

    /// Where clients with that kubeconfig find their token.
    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    /// From now on only this token is accepted.
    pub fn require_token(&self, token: &str) {
        self.shared.change(|state| state.token = Some(token.to_owned()));
    }

    /// Creates or changes a pod.
    pub fn put(&self, pod: &PodSpec) {
        self.shared.change(|state| state.store.put(Resource::Pods, &pod.uid, pod.json()));
    }

    /// Creates or changes many pods at once, without telling watches of each.
    pub fn put_all(&self, pods: &[PodSpec]) {
        self.shared.change(|state| {
            for pod in pods {
                state.store.put(Resource::Pods, &pod.uid, pod.json());
            }
        });
    }

    /// Deletes a pod.
    pub fn delete(&self, uid: &str) {
        self.shared.change(|state| state.store.delete(Resource::Pods, uid));
    }

    /// Creates or changes a namespace.
    pub fn put_namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let json = store::namespace(name, labels);
        self.shared.change(|state| state.store.put(Resource::Namespaces, name, json));
    }

    /// Deletes a namespace.
    pub fn delete_namespace(&self, name: &str) {
        self.shared.change(|state| state.store.delete(Resource::Namespaces, name));
    }

    /// Puts a line as it is into the history of pods' events: watches send it, lists know nothing of it.
    pub fn inject(&self, line: &str) {
        self.shared.change(|state| state.store.inject(Resource::Pods, line));
    }

    /// Forgets the history before the present version: who stands there may go on.
    pub fn forget(&self) {
        self.shared.change(|state| state.store.forget());
    }

    /// Forgets the history and moves on: every version that anybody has seen is gone.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }

    /// Requests of this kind fail `times` times.
    pub fn fail(&self, verb: Verb, resource: Resource, fault: Fault, times: usize) {
        self.shared.change(|state| state.faults.push((verb, resource, fault, times)));
    }

    /// Requests for pods of this kind fail until [`heal`](Self::heal).
    pub fn fail_on(&self, verb: Verb, fault: Fault) {
        self.fail(verb, Resource::Pods, fault, usize::MAX);
    }

    /// No request fails any more, and no stream is spoilt.
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.faults.clear();
            state.spoil = Spoil::default();
        });
    }

    /// Spoils streams that begin from now on.
    pub fn spoil(&self, spoil: Spoil) {
        self.shared.change(|state| state.spoil = spoil);
    }

    /// Breaks the connections of all watches.
    pub fn break_streams(&self) {
        self.shared.change(|state| state.epoch += 1);
    }

    /// How often watches get bookmarks; `None`: never.
    pub fn bookmarks(&self, every: Option<Duration>) {
        self.shared.change(|state| state.bookmarks = every);
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.iter().cloned().collect()
    }

    /// How many requests of this kind for pods there were.
    pub fn count(&self, verb: Verb) -> usize {
        let state = self.shared.state();
        state.asked.iter().filter(|asked| asked.verb == verb && asked.resource == Resource::Pods).count()
    }

    /// Waits until so many requests of this kind for pods have come.
    ///
    /// # Errors
    /// When they do not come in time.
    pub fn wait_count(&self, verb: Verb, at_least: usize) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        while self.count(verb) < at_least {
            anyhow::ensure!(
                Instant::now() < until,
                "{verb:?}: {} requests instead of {at_least}",
                self.count(verb)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.state().connections
    }

    /// The truth about a node: of each pod its UID, namespace, name, version and container ids.
    pub fn pods(&self, node: &str) -> BTreeMap<String, Known> {
        self.shared.state().store.pods(node)
    }
}

/// What the server knows of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its resource version.
    pub version: String,
    /// Ids of its containers, sorted.
    pub containers: Vec<String>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join().map_err(|_| eprintln!("the API server of the tests panicked"));
        }
    }
}

/// How much was asked; for messages of tests.
impl std::fmt::Display for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state();
        write!(f, "{} requests on {} connections", state.asked.len(), state.connections)
    }
}

/// A loopback port that nobody listens on.
///
/// # Errors
/// No free port.
pub fn dead_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr().context("no address")?.port())
}
