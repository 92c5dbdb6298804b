//! In: a snapshot, a view of it, a format; out: the rendered body, made once for all who ask. Knows no requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::exposition::{Format, encode_tenant, finish, gzip};
use crate::registry::Snapshot;
use crate::selfmetrics::{SelfMetrics, render};

/// A whole body is served again for this long as long as no new snapshot comes, so that any number of scrapers cost
/// no more than one. A tenant's body says nothing of the present and lasts as long as its snapshot.
const WHOLE_LIFETIME_NS: u64 = 1_000_000_000;
/// Tenants' bodies kept, in number and in bytes; the oldest go first.
const TENANT_BODIES: usize = 512;
const TENANT_BYTES: usize = 32 << 20;
/// A buffer up to this size is kept in any case.
const LARGE: usize = 64 << 10;

/// What a body shows: everything, or one tenant's series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum View {
    Everything,
    Tenant(Arc<str>),
}

/// Bodies by view, format and compression, and the buffer they are rendered in.
#[derive(Debug, Default)]
pub(super) struct Bodies(Mutex<Cache>);

#[derive(Debug, Default)]
struct Cache {
    scratch: BytesMut,
    /// The longest that was rendered since the last new snapshot, bytes.
    longest: usize,
    rendered: HashMap<(View, Format, bool), Rendered>,
    /// Bytes of the tenants' bodies.
    tenant_bytes: usize,
    /// Of which snapshot they are.
    sequence: u64,
}

#[derive(Debug)]
struct Rendered {
    at_ns: u64,
    bytes: Bytes,
}

impl Bodies {
    /// The body of `view` in `format`, compressed or not. Rendered under a lock: of many scrapers coming at once one
    /// works and the others share what it made.
    pub(super) fn get(
        &self,
        snapshot: &Snapshot,
        own: &SelfMetrics,
        view: &View,
        format: Format,
        compressed: bool,
        now_ns: u64,
    ) -> Bytes {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = &mut *guard;
        if cache.sequence != snapshot.sequence {
            // What is out of date only holds memory.
            cache.rendered.clear();
            cache.tenant_bytes = 0;
            cache.sequence = snapshot.sequence;
            // Bodies get shorter when workloads end.
            let longest = std::mem::take(&mut cache.longest);
            if cache.scratch.capacity() > LARGE && longest < cache.scratch.capacity() / 4 {
                cache.scratch = BytesMut::new();
            }
        }
        let key = (view.clone(), format, compressed);
        if let Some(rendered) = cache.rendered.get(&key) {
            let lasts = rendered.at_ns <= now_ns && now_ns - rendered.at_ns < WHOLE_LIFETIME_NS;
            if lasts || *view != View::Everything {
                return rendered.bytes.clone();
            }
            cache.rendered.remove(&key);
        }
        let scratch = &mut cache.scratch;
        match view {
            View::Everything => render(snapshot, own, format, now_ns, scratch),
            View::Tenant(name) => {
                scratch.clear();
                // A tenant that has nothing yet sees a whole, empty body.
                if let Some(tenant) = snapshot.layout.tenant(name) {
                    encode_tenant(snapshot, tenant, format, scratch);
                }
                finish(format, scratch);
            }
        }
        cache.longest = cache.longest.max(scratch.len());
        // Compressing into memory does not fail; if it did, an empty body would be an honest broken scrape.
        let bytes = if compressed {
            gzip(scratch).map(Bytes::from).unwrap_or_default()
        } else {
            Bytes::copy_from_slice(scratch)
        };
        cache.keep(key, Rendered { at_ns: now_ns, bytes: bytes.clone() });
        bytes
    }
}

impl Cache {
    fn keep(&mut self, key: (View, Format, bool), rendered: Rendered) {
        if key.0 != View::Everything {
            let size = rendered.bytes.len();
            if size > TENANT_BYTES {
                return;
            }
            while self.rendered.len() >= TENANT_BODIES || self.tenant_bytes + size > TENANT_BYTES {
                let tenants = self.rendered.iter().filter(|((view, ..), _)| *view != View::Everything);
                let oldest = tenants.min_by_key(|(_, rendered)| rendered.at_ns).map(|(key, _)| key.clone());
                let Some(gone) = oldest.and_then(|oldest| self.rendered.remove(&oldest)) else { break };
                self.tenant_bytes -= gone.bytes.len();
            }
            self.tenant_bytes += size;
        }
        self.rendered.insert(key, rendered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Family, FamilyLayout, Layout, SeriesLayout};

    static FAMILY: Family = Family::counter("kernmeter_calls", "Calls.");

    /// Fault 39.
    #[test]
    fn the_buffer_shrinks_with_the_bodies() {
        let bodies = Bodies::default();
        let own = SelfMetrics::new("", "");
        let get = |sequence, series| {
            let labels =
                |n| format!("tenant_id=\"{n}\",k8s_namespace=\"{}\"", "x".repeat(100)).into_bytes().into();
            let series =
                (0..series).map(|n| SeriesLayout { labels: labels(n), first: 0, tenant: 0 }).collect();
            let families = vec![FamilyLayout { family: &FAMILY, series }];
            let layout = Arc::new(Layout { families, tenants: vec!["a".into()] });
            let snapshot = Snapshot { layout, values: vec![1], taken_ns: 1, sequence };
            let size = bodies.get(&snapshot, &own, &View::Everything, Format::Text004, false, 0).len();
            bodies.get(&snapshot, &own, &View::Tenant("nobody".into()), Format::Text004, true, 0);
            (size, bodies.0.lock().unwrap().scratch.capacity())
        };
        let (size, capacity) = get(1, 10_000);
        assert!(capacity >= size && size > 1_000_000, "{size}, {capacity}");
        assert_eq!(get(2, 10_000).1, capacity, "made anew with each snapshot");
        for sequence in 3..5 {
            get(sequence, 10);
        }
        let (size, capacity) = get(5, 10);
        assert!(size < LARGE && capacity <= LARGE, "{size}, {capacity}");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let bodies = Bodies::default();
        let own = SelfMetrics::new("", "");
        let snapshot = Snapshot { sequence: 1, ..Snapshot::default() };
        let get = |name: &str, now| {
            bodies.get(&snapshot, &own, &View::Tenant(name.into()), Format::OpenMetrics100, false, now)
        };
        for n in 0..3 * TENANT_BODIES {
            assert_eq!(get(&format!("t{n}"), n as u64), "# EOF\n");
        }
        {
            let cache = bodies.0.lock().unwrap();
            assert_eq!((cache.rendered.len(), cache.tenant_bytes), (TENANT_BODIES, TENANT_BODIES * 6));
            let last =
                (View::Tenant(format!("t{}", 3 * TENANT_BODIES - 1).into()), Format::OpenMetrics100, false);
            assert!(cache.rendered.contains_key(&last));
        }
        let mut cache = Cache::default();
        let body = |mebibytes: usize| Rendered { at_ns: 0, bytes: vec![0; mebibytes << 20].into() };
        let key = |name: &str| (View::Tenant(name.into()), Format::Text004, true);
        cache.keep(key("small"), body(1));
        cache.keep(key("large"), body(32));
        assert_eq!((cache.rendered.len(), cache.tenant_bytes), (1, 32 << 20));
        cache.keep(key("huge"), body(33));
        assert_eq!((cache.rendered.len(), cache.tenant_bytes), (1, 32 << 20));
    }
}
