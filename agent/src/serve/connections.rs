//! In: connections coming, making progress, going; out: who must be cut so that a good client is always admitted.
//! Knows sockets and clocks, no HTTP.
//!
//! Each connection is in one phase with one deadline: waiting for a request, reading its headers, answering. A sweep
//! cuts those past their deadline. At the limit, while another client waits, the connections that made no progress for
//! a grace period are cut: those of the address with most connections first, of these the stalest. Reading is no
//! progress, or a client that dribbles a header byte now and then would keep its place.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::ConnectionLimits;

const WAITING: u8 = 0;
const HEADERS: u8 = 1;
const ANSWERING: u8 = 2;
/// The answer is in the write buffer; the next flush ends it.
const FLUSHING: u8 = 3;

/// What one connection last did. Shared by its task, which writes it, and the table, which judges it.
#[derive(Debug)]
pub(super) struct Progress {
    epoch: Instant,
    limits: ConnectionLimits,
    phase: AtomicU8,
    /// Milliseconds since `epoch`.
    deadline: AtomicU64,
    /// When an answer last moved, or the connection came: milliseconds since `epoch`.
    moved: AtomicU64,
    is_cut: AtomicBool,
    cut: Notify,
}

impl Progress {
    fn new(epoch: Instant, limits: ConnectionLimits) -> Self {
        let progress = Self {
            epoch,
            limits,
            phase: AtomicU8::new(WAITING),
            deadline: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
        };
        // The first request gets no idle time before it.
        progress.enter(WAITING, limits.header_timeout);
        progress.has_moved();
        progress
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn enter(&self, phase: u8, limit: Duration) {
        self.phase.store(phase, Relaxed);
        self.deadline.store(self.now() + limit.as_millis() as u64, Relaxed);
    }

    fn has_moved(&self) {
        self.moved.store(self.now(), Relaxed);
    }

    fn bytes_read(&self) {
        if self.phase.load(Relaxed) == WAITING {
            self.enter(HEADERS, self.limits.header_timeout);
        }
    }

    /// The headers of a request are complete.
    pub(super) fn request_begun(&self) {
        self.enter(ANSWERING, self.limits.response_timeout);
        self.has_moved();
    }

    /// All of the answer is in hyper's hands.
    pub(super) fn response_buffered(&self) {
        if self.phase.load(Relaxed) == ANSWERING {
            self.phase.store(FLUSHING, Relaxed);
        }
    }

    fn flushed(&self) {
        if self.phase.load(Relaxed) == FLUSHING {
            self.enter(WAITING, self.limits.idle_timeout);
            self.has_moved();
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_between_requests(&self) -> bool {
        self.phase.load(Relaxed) == WAITING
    }

    /// Completes when the connection is to be cut.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }

    fn cut_now(&self) {
        if !self.is_cut.swap(true, Relaxed) {
            // Keeps one permit if the task is not waiting at this moment.
            self.cut.notify_one();
        }
    }
}

#[derive(Debug)]
struct Entry {
    id: u64,
    peer: IpAddr,
    progress: Arc<Progress>,
}

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    epoch: Instant,
    limits: ConnectionLimits,
    table: Mutex<(u64, Vec<Entry>)>,
    /// A permit was given back.
    freed: Notify,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { epoch: Instant::now(), limits, table: Mutex::default(), freed: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, (u64, Vec<Entry>)> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often to look for connections past their deadline: a quarter of the shortest.
    pub(super) fn sweep_interval(&self) -> Duration {
        let ConnectionLimits { header_timeout, response_timeout, idle_timeout, .. } = self.limits;
        (header_timeout.min(response_timeout).min(idle_timeout) / 4).max(Duration::from_millis(10))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table().1.is_empty()
    }

    fn is_full(&self) -> bool {
        self.table().1.len() >= self.limits.max_connections
    }

    /// Takes a permit; the caller has waited for [`Self::room`].
    pub(super) fn admit(this: &Arc<Self>, peer: IpAddr) -> ConnectionPermit {
        let progress = Arc::new(Progress::new(this.epoch, this.limits));
        let mut table = this.table();
        table.0 += 1;
        let id = table.0;
        table.1.push(Entry { id, peer, progress: Arc::clone(&progress) });
        ConnectionPermit { connections: Arc::clone(this), id, peer, progress }
    }

    /// Completes when a permit is free, cutting connections without progress until one is. Holds nothing if dropped.
    pub(super) async fn room(&self) {
        while self.is_full() {
            self.cut_stalest();
            let _ = tokio::time::timeout(self.limits.grace / 4, self.freed.notified()).await;
        }
    }

    /// Completes when no connection is left.
    pub(super) async fn emptied(&self) {
        while !self.is_empty() {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.freed.notified()).await;
        }
    }

    pub(super) fn cut_overdue(&self) {
        let now = self.epoch.elapsed().as_millis() as u64;
        for entry in &self.table().1 {
            if entry.progress.deadline.load(Relaxed) <= now {
                entry.progress.cut_now();
            }
        }
    }

    pub(super) fn cut_all(&self) {
        for entry in &self.table().1 {
            entry.progress.cut_now();
        }
    }

    fn cut_stalest(&self) {
        let table = self.table();
        // One that is already cut is about to free its permit.
        if table.1.iter().any(|entry| entry.progress.is_cut.load(Relaxed)) {
            return;
        }
        let latest =
            (self.epoch.elapsed().as_millis() as u64).checked_sub(self.limits.grace.as_millis() as u64);
        let permits_of = |peer| table.1.iter().filter(|entry| entry.peer == peer).count();
        let victim = table
            .1
            .iter()
            .map(|entry| (entry, entry.progress.moved.load(Relaxed)))
            .filter(|(_, moved)| latest.is_some_and(|latest| *moved <= latest))
            .max_by_key(|(entry, moved)| (permits_of(entry.peer), std::cmp::Reverse(*moved)));
        if let Some((entry, _)) = victim {
            entry.progress.cut_now();
        }
    }
}

/// One connection's place among those that may be open, given back when dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    connections: Arc<Connections>,
    id: u64,
    peer: IpAddr,
    progress: Arc<Progress>,
}

impl ConnectionPermit {
    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Where it comes from.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether no other connection could be admitted now.
    pub(super) fn is_at_limit(&self) -> bool {
        self.connections.is_full()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.table().1.retain(|entry| entry.id != self.id);
        self.connections.freed.notify_one();
    }
}

/// A stream that reports its progress. Of TLS it watches what is inside: half a record is no sign of life.
pub(super) struct ProgressStream<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S> ProgressStream<S> {
    pub(super) fn new(stream: S, progress: Arc<Progress>) -> Self {
        Self { stream, progress }
    }

    fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.progress.has_moved();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ProgressStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.bytes_read();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ProgressStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        // hyper flushes the stream only when its own buffer is empty.
        if matches!(result, Poll::Ready(Ok(()))) {
            self.progress.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Permits of the given (last byte of the address, milliseconds since progress); which of them are cut.
    fn cut_after(permits: &[(u8, u64)]) -> Vec<bool> {
        let limits = ConnectionLimits { grace: Duration::from_millis(200), ..ConnectionLimits::default() };
        let epoch = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        let connections = Arc::new(Connections { epoch, ..Connections::new(limits) });
        let permits: Vec<ConnectionPermit> = permits
            .iter()
            .map(|(host, ago)| {
                let permit = Connections::admit(&connections, IpAddr::from([10, 0, 0, *host]));
                permit.progress.moved.store(permit.progress.now() - ago, Relaxed);
                permit
            })
            .collect();
        connections.cut_stalest();
        // One at a time: a second look changes nothing while the first victim is still leaving.
        connections.cut_stalest();
        permits.iter().map(|permit| permit.progress.is_cut.load(Relaxed)).collect()
    }

    #[test]
    fn the_stalest_of_the_greediest_address_makes_room() {
        assert_eq!(cut_after(&[]), [false; 0]);
        assert_eq!(cut_after(&[(1, 50_000)]), [true]);
        assert_eq!(cut_after(&[(1, 0), (1, 0)]), [false, false]);
        assert_eq!(cut_after(&[(1, 300), (2, 9000), (3, 400)]), [false, true, false]);
        assert_eq!(cut_after(&[(1, 300), (2, 9000), (1, 400)]), [false, false, true]);
        assert_eq!(cut_after(&[(1, 0), (2, 9000), (1, 0)]), [false, true, false]);
    }

    #[test]
    fn phases_and_their_deadlines() {
        let limits = ConnectionLimits::default();
        let epoch = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        let progress = Progress::new(epoch, limits);
        // Half a second of rounding is more than the test takes.
        let left = || Duration::from_secs((progress.deadline.load(Relaxed) - progress.now() + 500) / 1000);
        assert!(progress.is_between_requests());
        assert_eq!(left(), limits.header_timeout);
        progress.bytes_read();
        assert!(!progress.is_between_requests());
        progress.request_begun();
        assert_eq!(left(), limits.response_timeout);
        // A flush of what came before is not the end of this answer.
        progress.flushed();
        assert!(!progress.is_between_requests());
        progress.response_buffered();
        progress.flushed();
        assert!(progress.is_between_requests());
        assert_eq!(left(), limits.idle_timeout);
        progress.bytes_read();
        assert_eq!(left(), limits.header_timeout);
    }
}
