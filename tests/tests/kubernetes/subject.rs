//! In: an API server; out: the agent's source of pods with its cache, driven by hand. Knows no fault.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kernmeter::identity::pods::{CacheLimits, PodCache, PodEvent, Wanted};
use kernmeter::kubernetes::{Pods, Settings, Source, Stats};
use kernmeter_tests::apiserver::{ApiServer, Known, PodSpec};
use tokio::runtime::Runtime;

/// The node whose pods are watched.
pub const NODE: &str = "node-a";
/// How long the cache may take to equal the server's truth, on a busy machine.
const SETTLE: Duration = Duration::from_secs(20);

/// The source and the cache it fills.
pub struct Subject {
    pub pods: Pods,
    pub cache: PodCache,
    runtime: Runtime,
    began: Instant,
}

/// Times that let a test end soon: waits of 20 to 200 ms, answers within 400 ms, a word every 500 ms.
pub fn settings(server: &ApiServer) -> Result<Settings> {
    let source = Source::Api { node: NODE.into(), kubeconfig: Some(server.kubeconfig()?) };
    Ok(Settings {
        start_jitter: Duration::ZERO,
        request_timeout: Duration::from_millis(400),
        watch_timeout: Duration::from_secs(1),
        backoff_least: Duration::from_millis(20),
        backoff_most: Duration::from_millis(200),
        healthy: Duration::from_millis(500),
        ..Settings::of(source)
    })
}

impl Subject {
    pub fn start(settings: &Settings, wanted: Wanted) -> Result<Self> {
        Ok(Self {
            pods: Pods::start(settings, wanted)?,
            cache: PodCache::new(CacheLimits::default()),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            began: Instant::now(),
        })
    }

    pub fn of(server: &ApiServer) -> Result<Self> {
        Self::start(&settings(server)?, Wanted::default())
    }

    /// As [`Subject::of`], but no request and no stream ends for want of time, however slow the machine is: for tests that
    /// count requests.
    pub fn patient(server: &ApiServer) -> Result<Self> {
        let patient = Settings {
            request_timeout: Duration::from_secs(20),
            watch_timeout: Duration::from_mins(5),
            ..settings(server)?
        };
        Self::start(&patient, Wanted::default())
    }

    /// Takes in what comes within a time.
    pub fn pump(&mut self, span: Duration) -> Result<()> {
        let until = Instant::now() + span;
        let mut events: Vec<PodEvent> = Vec::new();
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let received = self
                .runtime
                .block_on(async { tokio::time::timeout(left, self.pods.recv(&mut events, 256)).await });
            ensure!(received != Ok(false), "the source ended by itself");
            let now = self.began.elapsed().as_nanos() as u64;
            for event in events.drain(..) {
                self.cache.apply(event, now);
            }
        }
        Ok(())
    }

    /// What the cache holds, in the server's terms, but for containers.
    fn view(&self) -> BTreeMap<String, Known> {
        let known = |pod: &kernmeter::identity::pods::Pod| Known {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            version: pod.resource_version.to_string(),
            containers: Vec::new(),
        };
        self.cache.snapshot().iter().map(|pod| (pod.uid.to_string(), known(pod))).collect()
    }

    /// What differs between the cache and the server's truth.
    fn difference(&self, server: &ApiServer) -> Option<String> {
        if !self.cache.is_complete() {
            return Some("no list was complete".into());
        }
        let truth = server.pods(NODE);
        let view = self.view();
        for (uid, known) in &truth {
            let expected = Known { containers: Vec::new(), ..known.clone() };
            if view.get(uid) != Some(&expected) {
                return Some(format!("{uid}: {:?} instead of {expected:?}", view.get(uid)));
            }
            for id in &known.containers {
                let found = self.cache.by_container(id).map(|(pod, _)| &*pod.uid);
                if found != Some(uid) {
                    return Some(format!("container {id} belongs to {found:?} instead of {uid}"));
                }
            }
            let named = self.cache.by_name(&known.namespace, &known.name).map(|pod| &*pod.uid);
            if named != Some(uid) {
                return Some(format!("{}/{} is {named:?} instead of {uid}", known.namespace, known.name));
            }
        }
        view.keys().find(|uid| !truth.contains_key(*uid)).map(|uid| format!("{uid} is there no more"))
    }

    /// Waits until the cache equals the server's truth, and sees that it stays so.
    pub fn settle(&mut self, server: &ApiServer) -> Result<Duration> {
        let began = Instant::now();
        while let Some(difference) = self.difference(server) {
            ensure!(
                began.elapsed() < SETTLE,
                "after {SETTLE:?}: {difference}; {server}; {:?}",
                self.pods.stats()
            );
            self.pump(Duration::from_millis(10))?;
        }
        let took = began.elapsed();
        self.pump(Duration::from_millis(50))?;
        match self.difference(server) {
            None => Ok(took),
            Some(difference) => anyhow::bail!("it was right, then: {difference}"),
        }
    }

    pub fn stats(&self) -> Stats {
        self.pods.stats()
    }

    pub fn restarts(&self, reason: &str) -> u64 {
        of(&self.stats().restarts, reason)
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        of(&self.stats().dropped, reason)
    }

    /// Stops the source; returns how long that took.
    pub fn stop(self) -> Duration {
        let began = Instant::now();
        self.pods.stop();
        began.elapsed()
    }
}

fn of(counts: &[(&str, u64)], reason: &str) -> u64 {
    counts.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
}

/// A container id made of a number.
pub fn id(number: usize) -> String {
    format!("{number:064x}")
}

/// The pod of a number, with two containers.
pub fn pod(number: usize) -> PodSpec {
    PodSpec::new(NODE, &format!("team-{}", number % 3), &format!("pod-{number}"), &format!("uid-{number}"))
        .container("main", &id(2 * number))
        .container("sidecar", &id(2 * number + 1))
        .label("app", &format!("app-{number}"))
}

/// Pods on the node and elsewhere.
pub fn populate(server: &ApiServer, pods: usize) {
    let mut all: Vec<PodSpec> = (0..pods).map(pod).collect();
    all.extend(
        (0..5).map(|number| {
            PodSpec::new("node-b", "team-0", &format!("far-{number}"), &format!("far-{number}"))
        }),
    );
    server.put_all(&all);
}

/// What happens to pods all day: restarts, deletions, and new ones under old names.
pub fn churn(server: &ApiServer, round: usize) {
    let base = 1000 * (round + 1);
    // Apart from those of `pod`.
    let ids = 1_000_000 + base;
    for number in 0..4 {
        // A container restarted: the id is another.
        server.put(&pod(number).container("again", &id(ids + number)));
    }
    server.delete("uid-5");
    // Deleted, and made anew under the same name with another UID.
    server.delete("uid-6");
    let mut again = pod(6);
    again.uid = format!("uid-6-of-{round}");
    again.containers = vec![("main".into(), id(ids + 500))];
    server.delete(&format!("uid-6-of-{}", round.wrapping_sub(1)));
    server.put(&again);
    server.put(&pod(base));
    server.put(&PodSpec::new("node-b", "team-0", "far-9", &format!("far-{base}")));
}
