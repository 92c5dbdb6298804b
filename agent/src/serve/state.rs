//! In: published snapshots, readiness, the clock; out: what an answer is made of, rendered at most once a second per
//! format. Knows no sockets and no requests.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::exposition::{Format, gzip};
use crate::registry::Snapshot;
use crate::selfmetrics::{SelfMetrics, render};

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// A rendered body is served again for this long as long as no new snapshot comes, so that any number of scrapers cost
/// no more than one.
const BODY_LIFETIME_NS: u64 = 1_000_000_000;

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
    bodies: Mutex<Bodies>,
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("telemetry_path", &self.telemetry_path).finish_non_exhaustive()
    }
}

/// Bodies by format and compression, and the buffer they are rendered in.
#[derive(Debug, Default)]
struct Bodies {
    scratch: BytesMut,
    cached: [Option<Rendered>; Format::ALL.len() * 2],
}

#[derive(Debug)]
struct Rendered {
    sequence: u64,
    at_ns: u64,
    bytes: Bytes,
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
            bodies: Mutex::default(),
        }
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

    /// The body in `format`, compressed or not. Rendered under a lock: of many scrapers coming at once one works and
    /// the others share what it made.
    pub(super) fn body(&self, format: Format, compressed: bool) -> Bytes {
        let snapshot = self.snapshots.load();
        let mut guard = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let Bodies { scratch, cached } = &mut *guard;
        let now_ns = (self.clock)();
        let fresh = |rendered: &&Rendered| {
            rendered.sequence == snapshot.sequence
                && now_ns.saturating_sub(rendered.at_ns) < BODY_LIFETIME_NS
                && rendered.at_ns <= now_ns
        };
        let slot = format as usize * 2 + usize::from(compressed);
        if let Some(rendered) = cached[slot].as_ref().filter(fresh) {
            return rendered.bytes.clone();
        }
        // What is out of date only holds memory.
        for slot in cached.iter_mut() {
            if slot.as_ref().is_none_or(|rendered| !fresh(&rendered)) {
                *slot = None;
            }
        }
        render(&snapshot, &self.own, format, now_ns, scratch);
        // Compressing into memory does not fail; if it did, an empty body would be an honest broken scrape.
        let bytes = if compressed {
            gzip(scratch).map(Bytes::from).unwrap_or_default()
        } else {
            Bytes::copy_from_slice(scratch)
        };
        cached[slot] = Some(Rendered { sequence: snapshot.sequence, at_ns: now_ns, bytes: bytes.clone() });
        bytes
    }
}
