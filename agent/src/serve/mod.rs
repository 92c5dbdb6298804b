//! In: TCP connections, hostile, and the published snapshot; out: HTTP/1 answers. Never touches a kernel map, reads no
//! request body, and lets no request decide anything but its route and format.

mod bodies;
mod body;
mod connections;
mod routes;
mod state;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use body::Body;
use connections::{ConnectionPermit, Connections, ProgressStream};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use routes::Caller;
pub use state::{AppState, Clock, SnapshotCell, Unready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::auth::{AccessPolicy, Authenticator, Refusal};

/// Largest request line and headers together, bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else listens there.
    #[error(
        "cannot listen on `{address}`: address already in use; stop the other process or choose another with \
         --web.listen-address"
    )]
    InUse {
        /// As it was asked for.
        address: SocketAddr,
    },
    /// Anything else the kernel refused.
    #[error("cannot listen on `{address}`: {source}; choose another with --web.listen-address")]
    Listen {
        /// As it was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The listening socket cannot be used from the runtime.
    #[error("cannot accept connections: {0}; is the limit on open files too low?")]
    Accept(#[source] io::Error),
}

/// How long and how many. The defaults suit a few scrapers.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Open connections; one more waits until one of them ends or is cut.
    pub max_connections: usize,
    /// From connecting, or from a further request's first byte, to the end of its headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the last byte of the answer taken by the kernel.
    pub response_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// When no connection is free, those without progress for this long make room, stalest first.
    pub grace: Duration,
    /// After the shutdown signal, for answers under way.
    pub drain_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 64,
            header_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            grace: Duration::from_millis(200),
            drain_timeout: Duration::from_secs(1),
        }
    }
}

/// A bound listener, not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local: SocketAddr,
    limits: ConnectionLimits,
}

impl Server {
    /// Listens on `address`; `[::]` is every address of the host, IPv4 included.
    ///
    /// # Errors
    /// [`ServeError`] says which address and what to do.
    pub fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let listener = TcpListener::bind(address).or_else(|error| {
            // A host without IPv6 has no `::`.
            let fallback = address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse;
            if fallback { TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())) } else { Err(error) }
        });
        let listener = listener.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::InUse { address },
            _ => ServeError::Listen { address, source },
        })?;
        let local = listener.local_addr().map_err(ServeError::Accept)?;
        Ok(Self { listener, local, limits: ConnectionLimits::default() })
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn with_limits(self, limits: ConnectionLimits) -> Self {
        Self { limits, ..self }
    }

    /// Where it listens; the real port when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Answers until `shutdown` completes, then stops accepting and lets answers under way finish within
    /// [`ConnectionLimits::drain_timeout`]. Runs on either flavour of the runtime, with its I/O and time drivers on.
    ///
    /// # Errors
    /// If the listener cannot be handed to the runtime. Failures of single connections are logged at debug level.
    pub async fn serve(
        self,
        state: Arc<AppState>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        self.listener.set_nonblocking(true).map_err(ServeError::Accept)?;
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(ServeError::Accept)?;
        let connections = Arc::new(Connections::new(self.limits));
        let (stop, stopping) = watch::channel(false);
        let mut sweep = tokio::time::interval(connections.sweep_interval());
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut shutdown = pin!(shutdown);
        let mut waiting: Option<(TcpStream, SocketAddr)> = None;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = sweep.tick(), if !connections.is_empty() => connections.cut_overdue(),
                accepted = listener.accept(), if waiting.is_none() => match accepted {
                    Ok(connection) => waiting = Some(connection),
                    Err(error) => pause_after(&error).await,
                },
                () = connections.room(), if waiting.is_some() => {
                    if let Some((stream, peer)) = waiting.take() {
                        let permit = Connections::admit(&connections, peer.ip());
                        tokio::spawn(converse(stream, permit, Arc::clone(&state), stopping.clone()));
                    }
                }
            }
        }
        drop((listener, waiting));
        // Nobody listening any more is fine: then no connection is open.
        let _ = stop.send(true);
        if tokio::time::timeout(self.limits.drain_timeout, connections.emptied()).await.is_err() {
            connections.cut_all();
            // Cutting takes one turn of each connection's task; it does not wait for any client.
            let _ = tokio::time::timeout(self.limits.drain_timeout, connections.emptied()).await;
        }
        Ok(())
    }
}

/// A peer that is gone before it is accepted is its own affair; out of descriptors needs a moment, not a busy loop.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        return;
    }
    tracing::warn!(%error, "cannot accept a connection, trying again; raise the limit on open files");
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// One connection from its first byte to its end. The handshake, if there is one, shares the deadline of the first
/// request's first byte.
async fn converse(
    stream: TcpStream,
    permit: ConnectionPermit,
    state: Arc<AppState>,
    mut stopping: watch::Receiver<bool>,
) {
    // Answers are written whole: waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    // Subscribed before the policy is looked at: another one in the meantime closes the connection.
    let changes = state.authenticator().changes();
    let policy = changes.borrow().clone();
    let Some(tls) = policy.tls() else {
        let caller = Caller { address: permit.peer(), certificate: None };
        return talk(stream, caller, &permit, &state, stopping, changes).await;
    };
    let progress = permit.progress();
    let accepted = tokio::select! {
        accepted = TlsAcceptor::from(Arc::clone(tls)).accept(stream) => accepted.map_err(|error| error.to_string()),
        () = progress.cut() => Err("too slow".to_owned()),
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    match accepted {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates();
            let certificate = chain.and_then(|chain| chain.first()).map(|leaf| Authenticator::names(leaf));
            let caller = Caller { address: permit.peer(), certificate };
            talk(stream, caller, &permit, &state, stopping, changes).await;
        }
        Err(error) => {
            state.own().count_access_refusal(Refusal::Handshake.as_str());
            tracing::debug!(error, "no handshake");
        }
    }
}

/// HTTP on a stream that is ready for it.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    caller: Caller,
    permit: &ConnectionPermit,
    state: &AppState,
    mut stopping: watch::Receiver<bool>,
    mut changes: watch::Receiver<Arc<AccessPolicy>>,
) {
    let progress = permit.progress();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        progress.request_begun();
        let (caller, progress) = (&caller, Arc::clone(&progress));
        async move {
            let mut response = routes::answer(state, &request, caller).await;
            // At the limit an idle connection must not keep others waiting; a body is never read.
            if permit.is_at_limit() || routes::has_body(&request) {
                let close = hyper::header::HeaderValue::from_static("close");
                response.headers_mut().insert(hyper::header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|bytes| Body::new(bytes, progress)))
        }
    });
    let io = TokioIo::new(ProgressStream::new(stream, Arc::clone(&progress)));
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(MAX_HEADER_BYTES)
            .max_header_size(MAX_HEADER_BYTES)
            // A client that is done sending may still be reading.
            .half_close(true)
            // The deadlines here are our own, see `connections`.
            .header_read_timeout(None)
            .serve_connection(io, service)
    );
    let mut told_to_stop = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = progress.cut() => return,
            // What has been shown and agreed on may count no more: who comes again shows it again.
            () = told(&mut stopping, &mut changes), if !told_to_stop => {
                told_to_stop = true;
                if progress.is_between_requests() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Completes when the server stops or another policy is in force.
async fn told(stopping: &mut watch::Receiver<bool>, changes: &mut watch::Receiver<Arc<AccessPolicy>>) {
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        _ = changes.changed() => {}
    }
}
