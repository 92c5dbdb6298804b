//! In: published snapshots, readiness, the clock; out: what an answer is made of. Knows no sockets and no requests.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::bodies::{Bodies, View};
use crate::exposition::Format;
use crate::registry::Snapshot;
use crate::selfmetrics::SelfMetrics;
use crate::web::Guard;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// Reasons longer than this (bytes) are cut.
const MAX_REASON_BYTES: usize = 512;

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
    /// Why the agent sees nothing; `None` when it does.
    blind: RwLock<Option<String>>,
    bodies: Bodies,
    guard: Arc<Guard>,
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("telemetry_path", &self.telemetry_path).finish_non_exhaustive()
    }
}

impl AppState {
    /// Blind until [`Self::set_seeing`]. `telemetry_path` begins with `/`; a snapshot older than `max_age` makes the
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
            blind: RwLock::new(Some("starting: no probe attached yet".to_owned())),
            bodies: Bodies::default(),
            guard: Arc::default(),
        }
    }

    /// Asks `guard` who a request is from. Without it everybody is an operator.
    #[must_use]
    pub fn with_guard(self, guard: Arc<Guard>) -> Self {
        Self { guard, ..self }
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.guard
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
    pub fn set_seeing(&self) {
        *self.blind.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// No probe is attached, because of `reason`.
    pub fn set_blind(&self, reason: &str) {
        let reason: String = reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        *self.blind.write().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// `None` if the agent sees and its last look is recent, else why not, in one line.
    pub fn unready(&self) -> Option<String> {
        if let Some(reason) = self.blind.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Some(reason.clone());
        }
        let taken_ns = self.snapshots.load().taken_ns;
        if taken_ns == 0 {
            return Some("no snapshot taken yet".to_owned());
        }
        let age = Duration::from_nanos((self.clock)().saturating_sub(taken_ns));
        (age > self.max_age).then(|| {
            format!("last snapshot is {} s old, more than {} s", age.as_secs(), self.max_age.as_secs())
        })
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
