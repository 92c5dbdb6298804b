//! In: what a source of pods does; out: figures about it. Knows no metric by name.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Durations of lists kept until they are asked for; the oldest go first.
const SYNCS: usize = 64;

/// Figures about a source of pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Watches begun anew since the start, by reason; every reason is named.
    pub restarts: Vec<(&'static str, u64)>,
    /// Events that did not reach the queue since the start, by reason; every reason is named.
    pub dropped: Vec<(&'static str, u64)>,
    /// How long each list took that was completed since the last call, from its first request to its last object in the
    /// queue; at most the last 64.
    pub syncs: Vec<Duration>,
    /// Lists completed since the start.
    pub lists: u64,
    /// Since the source last told anything: a list, an event, a bookmark, a look at the directories. `None`: never.
    pub last_event_age: Option<Duration>,
    /// Longest time from an event's arrival to its place in the queue.
    pub longest_handler_run: Duration,
}

/// An enumeration of reasons with their label values.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            pub(super) const ALL: &[(Self, &'static str)] = &[$((Self::$variant, $label)),+];
        }
    };
}

reasons! {
    /// Why a watch was begun anew.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only the API has watches"))]
    Restart {
        /// The server ended it in due course.
        Ended = "ended",
        /// The connection broke, or could not be made.
        Disconnected = "disconnected",
        /// The server said nothing for too long.
        Silent = "silent",
        /// 410: the server no longer knows the version.
        Gone = "gone",
        /// 401.
        Unauthorized = "unauthorized",
        /// 403.
        Forbidden = "forbidden",
        /// 429.
        Throttled = "throttled",
        /// 5xx.
        ServerError = "server_error",
        /// Any other refusal.
        Refused = "refused",
        /// No JSON, or not the JSON of a list or watch.
        Malformed = "malformed",
        /// An answer beyond all bounds.
        TooLarge = "too_large",
        /// The queue was full.
        QueueFull = "queue_full",
        /// Rules look at other labels than before.
        Wanted = "wanted_changed",
    }
}

reasons! {
    /// Why an event did not reach the queue.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only the API has events"))]
    Dropped {
        /// The queue was full; everything is listed again.
        QueueFull = "queue_full",
        /// An object without a usable UID, name or namespace, or no object at all.
        Malformed = "malformed",
        /// Larger than any object can be; everything is listed again.
        TooLarge = "too_large",
    }
}

/// Shared by a source's thread and its handle.
#[derive(Debug, Default)]
pub(super) struct Counters {
    restarts: [AtomicU64; Restart::ALL.len()],
    dropped: [AtomicU64; Dropped::ALL.len()],
    lists: AtomicU64,
    longest_run_ns: AtomicU64,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    syncs: VecDeque<Duration>,
    heard: Option<Instant>,
}

#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only the API has watches"))]
impl Counters {
    pub fn restart(&self, reason: Restart) {
        self.restarts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn drop_event(&self, reason: Dropped) {
        self.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Something was told just now.
    pub fn heard(&self) {
        self.times().heard = Some(Instant::now());
    }

    pub fn list_complete(&self, took: Duration) {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let mut times = self.times();
        if times.syncs.len() == SYNCS {
            times.syncs.pop_front();
        }
        times.syncs.push_back(took);
        times.heard = Some(Instant::now());
    }

    /// The handler of an event ran this long.
    pub fn handled(&self, took: Duration) {
        self.longest_run_ns.fetch_max(took.as_nanos() as u64, Ordering::Relaxed);
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read(&self) -> Stats {
        let (syncs, heard) = {
            let mut times = self.times();
            (times.syncs.drain(..).collect(), times.heard)
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            restarts: Restart::ALL
                .iter()
                .zip(&self.restarts)
                .map(|((_, label), n)| (*label, count(n)))
                .collect(),
            dropped: Dropped::ALL
                .iter()
                .zip(&self.dropped)
                .map(|((_, label), n)| (*label, count(n)))
                .collect(),
            syncs,
            lists: count(&self.lists),
            last_event_age: heard.map(|heard| heard.elapsed()),
            longest_handler_run: Duration::from_nanos(count(&self.longest_run_ns)),
        }
    }
}
