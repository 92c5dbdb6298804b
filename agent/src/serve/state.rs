//! In: published snapshots, readiness, the clock; out: what an answer is made of. Knows no sockets and no requests.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::bodies::{Bodies, View};
use crate::auth::Authenticator;
use crate::exposition::Format;
use crate::registry::Snapshot;
use crate::selfmetrics::SelfMetrics;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// Why the agent is not ready to be scraped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// No probe is attached yet.
    #[error("starting: no probe attached yet")]
    Starting,
    /// The kernel has not been read yet.
    #[error("no snapshot taken yet")]
    NoSnapshot,
    /// The kernel has not been read for too long.
    #[error("last snapshot is {} s old, more than {} s", age.as_secs(), allowed.as_secs())]
    Stale {
        /// Age of the last snapshot.
        age: Duration,
        /// Up to this it counts as recent.
        allowed: Duration,
    },
}

/// The last published snapshot. Writers replace it whole; readers keep the one they got.
#[derive(Debug, Default)]
pub struct SnapshotCell {
    current: RwLock<Arc<Snapshot>>,
}

impl SnapshotCell {
    /// Makes `snapshot` the current one.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The current one; an empty one with `taken_ns` 0 before the first.
    pub fn load(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Everything the server's answers come from. Shared with the rooms that fill it.
pub struct AppState {
    snapshots: SnapshotCell,
    own: SelfMetrics,
    telemetry_path: String,
    version: String,
    max_age: Duration,
    clock: Clock,
    /// At least one probe is attached.
    attached: AtomicBool,
    bodies: Bodies,
    authenticator: Arc<Authenticator>,
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("telemetry_path", &self.telemetry_path).finish_non_exhaustive()
    }
}

impl AppState {
    /// Not ready until [`Self::set_attached`]. `telemetry_path` begins with `/`; a snapshot older than `max_age` makes the
    /// agent unready.
    pub fn new(
        own: SelfMetrics,
        telemetry_path: &str,
        version: &str,
        max_age: Duration,
        clock: Clock,
    ) -> Self {
        Self {
            snapshots: SnapshotCell::default(),
            own,
            telemetry_path: telemetry_path.to_owned(),
            version: version.to_owned(),
            max_age,
            clock,
            attached: AtomicBool::new(false),
            bodies: Bodies::default(),
            authenticator: Arc::default(),
        }
    }

    /// Asks `authenticator` who a request is from. Without it everybody is an operator.
    #[must_use]
    pub fn with_authenticator(self, authenticator: Arc<Authenticator>) -> Self {
        Self { authenticator, ..self }
    }

    pub(super) fn authenticator(&self) -> &Authenticator {
        &self.authenticator
    }

    /// Where snapshots are published.
    pub fn snapshots(&self) -> &SnapshotCell {
        &self.snapshots
    }

    /// The agent's own metrics.
    pub fn own(&self) -> &SelfMetrics {
        &self.own
    }

    /// At least one probe is attached.
    pub fn set_attached(&self) {
        self.attached.store(true, Relaxed);
    }

    /// `None` if a probe is attached and the last snapshot is recent, else why not.
    pub fn unready(&self) -> Option<Unready> {
        if !self.attached.load(Relaxed) {
            return Some(Unready::Starting);
        }
        let taken_ns = self.snapshots.load().taken_ns;
        if taken_ns == 0 {
            return Some(Unready::NoSnapshot);
        }
        let age = Duration::from_nanos((self.clock)().saturating_sub(taken_ns));
        (age > self.max_age).then_some(Unready::Stale { age, allowed: self.max_age })
    }

    pub(super) fn telemetry_path(&self) -> &str {
        &self.telemetry_path
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The name of a tenant that has series.
    pub(super) fn tenant(&self, name: &str) -> Option<Arc<str>> {
        let layout = Arc::clone(&self.snapshots.load().layout);
        layout.tenant(name).map(|tenant| Arc::clone(&layout.tenants[tenant as usize]))
    }

    /// The body of `view` in `format`, compressed or not.
    pub(super) fn body(&self, view: &View, format: Format, compressed: bool) -> Bytes {
        self.bodies.get(&self.snapshots.load(), &self.own, view, format, compressed, (self.clock)())
    }
}
