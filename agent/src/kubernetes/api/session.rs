//! In: one kind of object; out: its list and then its changes as events, for as long as anybody reads them. Knows no rules.
//!
//! There is one way to fail: the reason is counted, the wait grows until a watch has lasted, and what was done last is
//! tried again. A watch resumes at the last version it saw; only where the server does not know that version any more,
//! an event was lost on the way to the queue, or resuming fails again and again, everything is listed anew.

use std::time::Instant;

use kube::Client;
use kube::api::{ListParams, VersionMatch, WatchParams};
use kube::core::Request;
use serde_json::value::RawValue;

use super::lines::Lines;
use super::object::{self, Keys, List, Status, WatchLine};
use super::pace::{Pace, part_of};
use super::request::{Failure, ask};
use super::{Access, bounded};
use crate::identity::pods::PodEvent;
use crate::kubernetes::queue::{Closed, Queue};
use crate::kubernetes::settings::Settings;
use crate::kubernetes::stats::{Dropped, Restart};

/// Most bytes of one answer to a list. A list that has more is asked for by pages, and a page by smaller ones.
const LIST_BYTES: usize = 16 << 20;
/// Most bytes of one event. The API server takes no object of more than about 1.5 MiB.
const EVENT_BYTES: usize = 4 << 20;
/// Namespaces kept of a list.
const NAMESPACES: usize = 50_000;
/// Attempts to resume a watch that end in nonsense, before everything is listed instead.
const NONSENSE: u32 = 2;

/// What is watched.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The pods of one node.
    Pods {
        /// Its name.
        node: String,
    },
    /// All namespaces' metadata.
    Namespaces,
}

/// Lists and watches one kind of object.
pub(super) struct Session {
    kind: Kind,
    access: Access,
    client: Client,
    settings: Settings,
    queue: Queue,
    keys: Keys,
    pace: Pace,
    /// Where the watch stands; `None`: to be listed.
    version: Option<String>,
    /// The last version known, for a list that is not older.
    seen: Option<String>,
    /// Whether to list by pages from the database, not at once from the server's cache.
    by_pages: bool,
    page: u32,
    nonsense: u32,
    /// The reason that was logged last, until all is well again.
    complaint: Option<Restart>,
}

/// Why a list or a watch is over.
enum End {
    /// To be tried again.
    Failed(Failure),
    /// To be listed again.
    Lost(Failure),
    /// Nobody reads the queue.
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl Session {
    pub fn new(
        kind: Kind,
        access: Access,
        client: Client,
        settings: Settings,
        queue: Queue,
        keys: Keys,
    ) -> Self {
        let pace = Pace::new(settings.backoff_least, settings.backoff_most);
        let objects = settings.page.max(1);
        Self {
            kind,
            access,
            client,
            settings,
            queue,
            keys,
            pace,
            version: None,
            seen: None,
            by_pages: false,
            page: objects,
            nonsense: 0,
            complaint: None,
        }
    }

    /// Until nobody reads the queue any more.
    pub async fn run(&mut self) {
        loop {
            let end = match self.version.clone() {
                None => match self.list().await {
                    Ok(version) => {
                        self.version = Some(version);
                        continue;
                    }
                    Err(end) => end,
                },
                Some(version) => {
                    let began = Instant::now();
                    let end = self.watch(version).await;
                    if began.elapsed() >= self.settings.healthy {
                        self.pace.reset();
                        self.recovered();
                    }
                    end
                }
            };
            let (failure, lost) = match end {
                End::Failed(failure) => (failure, false),
                End::Lost(failure) => (failure, true),
                End::Closed => return,
            };
            self.queue.counters.restart(failure.reason);
            self.complain(&failure);
            self.decide(failure.reason, lost);
            tokio::time::sleep(self.pace.next(failure.retry_after)).await;
            if failure.reason == Restart::Unauthorized {
                // Credentials change on disk. Those that cannot be read now are kept as they were.
                match self.access.client().await {
                    Ok(client) => self.client = client,
                    Err(error) => {
                        tracing::warn!(%error, "credentials cannot be read again: keeping those that were");
                    }
                }
            }
        }
    }

    /// How to go on after a failure.
    fn decide(&mut self, reason: Restart, lost: bool) {
        let nonsense = matches!(reason, Restart::Malformed | Restart::TooLarge);
        self.nonsense = if nonsense { self.nonsense + 1 } else { 0 };
        if self.version.is_some() {
            if lost || reason == Restart::Gone || self.nonsense >= NONSENSE {
                self.version = None;
            }
            return;
        }
        // A list failed. The cache may not have the version asked for, or too much at once.
        match reason {
            Restart::TooLarge if self.by_pages => self.page = (self.page / 2).max(1),
            Restart::TooLarge | Restart::Gone | Restart::Refused | Restart::ServerError => {
                self.by_pages = true;
            }
            _ => {}
        }
        if reason == Restart::Gone {
            self.seen = None;
        }
    }

    fn complain(&mut self, failure: &Failure) {
        let (what, message) = (self.what(), &failure.message);
        let reason = Restart::ALL[failure.reason as usize].1;
        // The end of a watch in due course is no news, and neither is the same trouble again.
        if self.complaint == Some(failure.reason) || failure.reason == Restart::Ended {
            tracing::debug!(what, reason, message, "asking the Kubernetes API again");
        } else {
            self.complaint = Some(failure.reason);
            tracing::warn!(what, reason, message, "{}", advice(failure.reason));
        }
    }

    fn recovered(&mut self) {
        if self.complaint.take().is_some() {
            tracing::info!(what = self.what(), "the Kubernetes API answers again");
        }
    }

    fn what(&self) -> &'static str {
        match self.kind {
            Kind::Pods { .. } => "pods",
            Kind::Namespaces => "namespaces",
        }
    }

    fn path(&self) -> Request {
        Request::new(format!("/api/v1/{}", self.what()))
    }

    fn selector(&self) -> Option<String> {
        match &self.kind {
            Kind::Pods { node } => Some(format!("spec.nodeName={node}")),
            Kind::Namespaces => None,
        }
    }

    /// Lists everything into the queue; returns the version of the list.
    async fn list(&mut self) -> Result<String, End> {
        let began = Instant::now();
        let mut namespaces = Vec::new();
        let mut next_page = None;
        let mut first = true;
        loop {
            let body = self.list_page(next_page.take()).await?;
            let mut page: List = serde_json::from_slice(&body).map_err(|error| {
                Failure::new(Restart::Malformed, format!("no list: {}", bounded(&error.to_string())))
            })?;
            self.queue.counters.heard();
            // The list begins when the server has answered: until then what is known stays.
            if std::mem::take(&mut first) && matches!(self.kind, Kind::Pods { .. }) {
                self.queue.put(PodEvent::ListBegins).await?;
            }
            for object in page.items.unwrap_or_default() {
                self.listed(object, &mut namespaces).await?;
            }
            next_page = page.metadata.next_page();
            if next_page.is_some() {
                continue;
            }
            let version = page
                .metadata
                .version()
                .ok_or_else(|| Failure::new(Restart::Malformed, "the list has no resourceVersion"))?;
            let last = match self.kind {
                Kind::Pods { .. } => PodEvent::ListComplete,
                Kind::Namespaces => PodEvent::Namespaces(namespaces),
            };
            self.queue.put(last).await?;
            self.queue.counters.list_complete(began.elapsed());
            tracing::debug!(what = self.what(), took = ?began.elapsed(), "listed");
            self.by_pages = false;
            self.seen = Some(version.clone());
            return Ok(version);
        }
    }

    async fn list_page(&self, next_page: Option<String>) -> Result<Vec<u8>, Failure> {
        let mut params = ListParams { field_selector: self.selector(), ..ListParams::default() };
        if self.by_pages {
            params.limit = Some(self.page);
        } else {
            // From the server's cache, which costs its database nothing, but never older than what was seen.
            params.resource_version = Some(self.seen.clone().unwrap_or_else(|| "0".into()));
            params.version_match = Some(VersionMatch::NotOlderThan);
        }
        params.continue_token = next_page;
        let request = match self.kind {
            Kind::Pods { .. } => self.path().list(&params),
            Kind::Namespaces => self.path().list_metadata(&params),
        };
        let wait = self.settings.request_timeout;
        ask(&self.client, request, wait).await?.whole(LIST_BYTES, wait).await
    }

    async fn listed(
        &self,
        object: &RawValue,
        namespaces: &mut Vec<crate::identity::pods::Namespace>,
    ) -> Result<(), Closed> {
        let began = Instant::now();
        match self.kind {
            Kind::Pods { .. } => {
                let pod = object::pod(object, &self.keys);
                self.queue.counters.handled(began.elapsed());
                match pod {
                    Some(pod) => self.queue.put(PodEvent::Listed(pod)).await?,
                    None => self.queue.counters.drop_event(Dropped::Malformed),
                }
            }
            Kind::Namespaces => match object::namespace(object, &self.keys) {
                Some(namespace) if namespaces.len() < NAMESPACES => namespaces.push(namespace),
                Some(_) => self.queue.counters.drop_event(Dropped::TooLarge),
                None => self.queue.counters.drop_event(Dropped::Malformed),
            },
        }
        Ok(())
    }

    /// Watches from a version on, until it ends; keeps `self.version` where the watch stands.
    async fn watch(&mut self, version: String) -> End {
        let span = self.settings.watch_timeout;
        // Agents that were started together shall not come back together.
        let asked = (span.mul_f64(0.75) + part_of(span / 4)).as_secs().max(1);
        let params = WatchParams {
            field_selector: self.selector(),
            timeout: Some(asked as u32),
            ..WatchParams::default()
        };
        let request = match self.kind {
            Kind::Pods { .. } => self.path().watch(&params, &version),
            Kind::Namespaces => self.path().watch_metadata(&params, &version),
        };
        let mut pieces = match ask(&self.client, request, self.settings.request_timeout).await {
            Ok(pieces) => pieces,
            Err(failure) => return failure.into(),
        };
        let opened = Instant::now();
        let mut lines = Lines::new(EVENT_BYTES);
        loop {
            if opened.elapsed() >= self.settings.healthy {
                self.recovered();
            }
            match pieces.next(span / 2).await {
                Ok(Some(piece)) => lines.push(&piece),
                // What is left of a line is of an event that will come again.
                Ok(None) => return Failure::new(Restart::Ended, "the server ended the watch").into(),
                Err(failure) => return failure.into(),
            }
            loop {
                let began = Instant::now();
                let line = match lines.next() {
                    Ok(Some(line)) => line,
                    Ok(None) => break,
                    Err(_) => {
                        self.queue.counters.drop_event(Dropped::TooLarge);
                        let message = format!("an event has more than {EVENT_BYTES} bytes");
                        return End::Lost(Failure::new(Restart::TooLarge, message));
                    }
                };
                let handled = self.handle(line);
                self.queue.counters.handled(began.elapsed());
                match handled {
                    Ok(Some(version)) => {
                        self.seen = Some(version.clone());
                        self.version = Some(version);
                        self.nonsense = 0;
                    }
                    Ok(None) => {}
                    Err(end) => return end,
                }
            }
        }
    }

    /// One event of a watch, without waiting for anything; returns the version that the watch has come to.
    fn handle(&self, line: &[u8]) -> Result<Option<String>, End> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let line: WatchLine = serde_json::from_slice(line).map_err(|error| {
            // Never the line itself.
            Failure::new(Restart::Malformed, format!("no event: {}", bounded(&error.to_string())))
        })?;
        self.queue.counters.heard();
        let object = line.object;
        let events: [Option<PodEvent>; 2] = match (line.kind.as_str(), &self.kind) {
            ("BOOKMARK", _) => return Ok(object::version(object)),
            ("ERROR", _) => {
                let status: Status = serde_json::from_str(object.get()).unwrap_or_default();
                let failure = Failure::of_status(&status);
                // What was sent before may not have been all there was.
                return Err(if failure.reason == Restart::Gone {
                    End::Lost(failure)
                } else {
                    failure.into()
                });
            }
            ("ADDED" | "MODIFIED", Kind::Pods { .. }) => {
                [object::pod(object, &self.keys).map(PodEvent::Applied), None]
            }
            // The last state first: it may name containers that no event before did.
            ("DELETED", Kind::Pods { .. }) => match object::pod(object, &self.keys) {
                Some(pod) => {
                    let uid = pod.uid.clone();
                    [Some(PodEvent::Applied(pod)), Some(PodEvent::Deleted { uid })]
                }
                None => [None, None],
            },
            ("ADDED" | "MODIFIED", Kind::Namespaces) => {
                [object::namespace(object, &self.keys).map(PodEvent::NamespaceApplied), None]
            }
            ("DELETED", Kind::Namespaces) => {
                let name = object::namespace(object, &self.keys).map(|namespace| namespace.name);
                [name.map(|name| PodEvent::NamespaceDeleted { name }), None]
            }
            _ => [None, None],
        };
        if events[0].is_none() {
            self.queue.counters.drop_event(Dropped::Malformed);
        }
        for event in events.into_iter().flatten() {
            if !self.queue.offer(event)? {
                let message = "events come faster than they are taken in";
                return Err(End::Lost(Failure::new(Restart::QueueFull, message)));
            }
        }
        Ok(object::version(object))
    }
}

/// What to do about it, in the log.
fn advice(reason: Restart) -> &'static str {
    match reason {
        Restart::Unauthorized => {
            "the Kubernetes API does not know the agent: check its token or certificate; trying again"
        }
        Restart::Forbidden => {
            "the Kubernetes API refuses the agent: let its role get, list and watch these objects; trying again"
        }
        Restart::Disconnected | Restart::Silent => {
            "the Kubernetes API cannot be reached: check address and network; trying again"
        }
        Restart::Throttled | Restart::ServerError => "the Kubernetes API is in trouble: trying again",
        Restart::Gone => "the Kubernetes API has forgotten where the watch stood: listing again",
        Restart::QueueFull => "events were dropped: listing again",
        Restart::Refused | Restart::Malformed | Restart::TooLarge | Restart::Ended | Restart::Wanted => {
            "the Kubernetes API gives no usable answer: trying again"
        }
    }
}
