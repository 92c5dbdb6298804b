//! In: the Kubernetes API of one node's pods, or the kubelet's directories; out: events about pods, through a bounded
//! queue. Knows no counts, no tenants and no rules beyond the label keys they name.
//!
//! A source runs on a thread of its own, so that neither TLS nor JSON ever holds up a drain. What it hears it converts
//! at once and puts into the queue without waiting; an event that finds the queue full is dropped, counted, and makes
//! the source list everything again.

#[cfg(feature = "kubernetes")]
mod api;
mod directories;
mod queue;
mod settings;
mod stats;

use std::sync::{Arc, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::Duration;

use queue::Queue;
pub use settings::{Environment, KubernetesError, Settings, Source};
use stats::Counters;
pub use stats::Stats;
use tokio::sync::{mpsc, watch};

use crate::identity::pods::{PodEvent, Wanted};
use crate::privileges;

/// How long [`Pods::stop`] waits for the source's thread; then the thread is left to the end of the process.
const STOP: Duration = Duration::from_secs(2);

/// A running source of pods. Dropping it stops it.
#[derive(Debug)]
pub struct Pods {
    events: mpsc::Receiver<PodEvent>,
    /// `None` once stopped: the source ends when it sees the sender gone.
    wanted: Option<watch::Sender<Wanted>>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
    ended: blocking::Receiver<()>,
}

impl Pods {
    /// Starts the source that `settings` name. Contacts nobody before it returns.
    ///
    /// # Errors
    /// Credentials that cannot be read or used, or no thread.
    pub fn start(settings: &Settings, wanted: Wanted) -> Result<Self, KubernetesError> {
        let counters = Arc::new(Counters::default());
        let (sender, events) = mpsc::channel(settings.queue.max(1));
        let (wanted, watched) = watch::channel(wanted);
        let (told, ready) = blocking::sync_channel(1);
        let (ending, ended) = blocking::sync_channel::<()>(1);
        let queue = Queue::new(sender, Arc::clone(&counters));
        let settings = settings.clone();
        let thread = std::thread::Builder::new()
            .name("pods".into())
            .spawn(move || {
                privileges::drop_all();
                run(&settings, queue, watched, &told);
                // Whoever stops the source may have stopped waiting.
                let _ = ending.send(());
            })
            .map_err(KubernetesError::Thread)?;
        // A thread that ends without a word has panicked; its message is in the log.
        ready.recv().unwrap_or(Err(KubernetesError::Died))?;
        Ok(Self { events, wanted: Some(wanted), counters, thread: Some(thread), ended })
    }

    /// Waits for events and appends at most `most` of them, at least one. Cancel-safe. `false`: the source has ended.
    pub async fn recv(&mut self, into: &mut Vec<PodEvent>, most: usize) -> bool {
        self.events.recv_many(into, most.max(1)).await > 0
    }

    /// Which labels and annotations to tell from now on. If they differ from before, everything is listed again.
    pub fn want(&self, wanted: Wanted) {
        if let Some(sender) = &self.wanted {
            sender.send_if_modified(|present| {
                let differs = *present != wanted;
                if differs {
                    *present = wanted;
                }
                differs
            });
        }
    }

    /// What the source has done so far. Durations of lists are handed out once.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// Stops the source and waits for it, at most two seconds.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.wanted = None;
        self.events.close();
        let Some(thread) = self.thread.take() else { return };
        // The thread drops its end when it panics, which counts as ended.
        if let Err(blocking::RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP) {
            tracing::warn!("the source of pods does not end: it is left behind");
            return;
        }
        let _ = thread.join();
    }
}

/// The thread: tells over `ready` whether the source could be set up, then runs it to its end.
fn run(
    settings: &Settings,
    queue: Queue,
    wanted: watch::Receiver<Wanted>,
    ready: &blocking::SyncSender<Result<(), KubernetesError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(KubernetesError::Thread(error)));
            return;
        }
    };
    match &settings.source {
        Source::Directories { path } => {
            let _ = ready.send(Ok(()));
            runtime.block_on(directories::run(path, settings.poll, queue, wanted));
        }
        #[cfg(feature = "kubernetes")]
        Source::Api { node, kubeconfig } => runtime.block_on(async {
            let access = api::Access::new(kubeconfig.clone(), settings);
            match access.client().await {
                Ok(client) => {
                    let _ = ready.send(Ok(()));
                    api::run(node, access, client, settings, queue, wanted).await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        }),
        #[cfg(not(feature = "kubernetes"))]
        Source::Api { .. } => {
            let _ = ready.send(Err(KubernetesError::NotBuilt));
        }
    }
    // Looking up a host's name may still block a helper thread.
    runtime.shutdown_timeout(Duration::from_millis(100));
}

#[cfg(test)]
mod tests;
