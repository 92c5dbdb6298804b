//! In: connections; out: answers to lists and watches, spoilt as the test asks. Knows no objects.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::store::Change;
use super::{Asked, Fault, Resource, Shared, Spoil, Verb};

/// Requests remembered.
const ASKED: usize = 1_000_000;

type Piece = Result<Bytes, io::Error>;

/// A body that is fed piece by piece; an error breaks the connection.
struct Feed(mpsc::Receiver<Piece>);

impl Body for Feed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.state().connections += 1;
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, shared.clone()));
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes away, or a body that breaks off as the test asked, is none of our errors.
            let _ = match tls {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => return,
                },
            };
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Shared) -> Result<Response<Feed>, Infallible> {
    let query = parameters(request.uri().query().unwrap_or_default());
    let resource = match request.uri().path() {
        "/api/v1/pods" => Resource::Pods,
        "/api/v1/namespaces" => Resource::Namespaces,
        other => return Ok(refusal(404, &format!("no such path: {other}"), None)),
    };
    let verb = if query.get("watch").is_some_and(|value| value == "true") { Verb::Watch } else { Verb::List };
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let accept = header(ACCEPT).to_owned();
    let (fault, spoil, known) = {
        let mut state = shared.state();
        if state.asked.len() < ASKED {
            let (query, accept) = (query.clone(), accept.clone());
            state.asked.push_back(Asked { verb, resource, query, accept, at: Instant::now() });
        }
        let known =
            state.token.as_ref().is_none_or(|token| header(AUTHORIZATION) == format!("Bearer {token}"));
        let found =
            state.faults.iter_mut().find(|(v, r, _, times)| (*v, *r) == (verb, resource) && *times > 0);
        let fault = found.map(|(_, _, fault, times)| {
            *times -= 1;
            *fault
        });
        (fault, state.spoil, known)
    };
    if !known {
        return Ok(refusal(401, "Unauthorized", None));
    }
    match fault {
        Some(Fault::Status(code, after)) => return Ok(refusal(code, "as the test wants it", after)),
        Some(Fault::Silent) => std::future::pending::<()>().await,
        Some(Fault::HeadOnly) => {
            let (feed, body) = mpsc::channel(1);
            // The feed is kept, so that the body never ends.
            tokio::spawn(async move { feed.closed().await });
            return Ok(ok(body));
        }
        Some(Fault::EndAtOnce) => return Ok(ok(mpsc::channel(1).1)),
        Some(Fault::Garbage) => {
            return Ok(said(b"<html>\x00\xff{\"type\":\"ADDED\",\"object\":</html>\n".to_vec(), None));
        }
        Some(Fault::Endless) => {
            let (feed, body) = mpsc::channel(1);
            let piece = Bytes::from(vec![b' '; 1 << 16]);
            tokio::spawn(async move { while feed.send(Ok(piece.clone())).await.is_ok() {} });
            return Ok(ok(body));
        }
        Some(Fault::ErrorEvent(code)) => {
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "as the test wants it"});
            return Ok(said(format!("{}\n", json!({"type": "ERROR", "object": status})).into_bytes(), None));
        }
        Some(Fault::Truncated | Fault::Slow(..)) | None => {}
    }
    Ok(match verb {
        Verb::List => list(resource, &query, &accept, fault, &shared),
        Verb::Watch => watch(resource, &query, fault, spoil, shared),
    })
}

fn list(
    resource: Resource,
    query: &BTreeMap<String, String>,
    accept: &str,
    fault: Option<Fault>,
    shared: &Shared,
) -> Response<Feed> {
    // As the real one: a list from the cache knows no pages.
    let cached = query.contains_key("resourceVersion") && !query.contains_key("limit");
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|_| !cached);
    let next = query.get("continue").map(String::as_str);
    let page = shared.state().store.list(resource, node(query).as_deref(), limit, next);
    let Ok(mut page) = page else {
        return refusal(410, "The provided continue parameter is too old", None);
    };
    let metadata_only = accept.contains("as=PartialObjectMetadataList");
    if metadata_only {
        for item in &mut page.items {
            *item = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": item["metadata"]});
        }
    }
    let mut metadata = json!({"resourceVersion": page.version});
    if let Some(next) = page.next {
        metadata["continue"] = next.into();
    }
    let kind = if metadata_only { "PartialObjectMetadataList" } else { "List" };
    let whole = json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": page.items});
    said(whole.to_string().into_bytes(), fault)
}

fn watch(
    resource: Resource,
    query: &BTreeMap<String, String>,
    fault: Option<Fault>,
    spoil: Spoil,
    shared: Shared,
) -> Response<Feed> {
    let version = query.get("resourceVersion").map(String::as_str).unwrap_or_default();
    let Ok(position) = shared.state().store.position(version) else {
        return refusal(410, "too old resource version", None);
    };
    let (feed, body) = mpsc::channel(64);
    let node = node(query);
    let bookmarks = query.get("allowWatchBookmarks").is_some_and(|value| value == "true");
    let seconds = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(1800);
    tokio::spawn(async move {
        let stream = Stream { resource, node, position, bookmarks, spoil, fault, feed, sent: 0 };
        let _ = tokio::time::timeout(Duration::from_secs(seconds), stream.run(shared)).await;
    });
    ok(body)
}

struct Stream {
    resource: Resource,
    node: Option<String>,
    position: u64,
    bookmarks: bool,
    spoil: Spoil,
    fault: Option<Fault>,
    feed: mpsc::Sender<Piece>,
    sent: usize,
}

impl Stream {
    async fn run(mut self, shared: Shared) {
        let mut stirred = shared.stirred.subscribe();
        let epoch = shared.state().epoch;
        let mut marked = Instant::now();
        loop {
            stirred.mark_unchanged();
            let (changes, now, every, broken) = {
                let mut state = shared.state();
                let changes = state.store.since(self.resource, self.node.as_deref(), self.position);
                (changes, state.store.now(), state.bookmarks, state.epoch != epoch)
            };
            if broken {
                let _ = self.feed.send(Err(io::Error::other("broken by the test"))).await;
                return;
            }
            let Ok(changes) = changes else {
                let status = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version"});
                let _ = self.say(&json!({"type": "ERROR", "object": status}).to_string()).await;
                return;
            };
            if self.events(changes).await.is_err() {
                return;
            }
            self.position = now.0;
            if every.is_some_and(|every| self.bookmarks && marked.elapsed() >= every) {
                marked = Instant::now();
                let object =
                    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": now.1}});
                if self.say(&json!({"type": "BOOKMARK", "object": object}).to_string()).await.is_err() {
                    return;
                }
            }
            let pause = every.unwrap_or(Duration::from_secs(1));
            tokio::select! {
                _ = stirred.changed() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.feed.closed() => return,
            }
        }
    }

    async fn events(&mut self, mut changes: Vec<Change>) -> Result<(), ()> {
        if self.spoil.reordered {
            // Objects in reverse; what concerns one of them keeps its order, since the sort is stable.
            changes.sort_by(|a, b| b.key.cmp(&a.key));
        }
        for change in changes {
            let half = &change.line[..change.line.floor_char_boundary(change.line.len() / 2)];
            if self.fault == Some(Fault::Truncated) || self.spoil.cut_after == Some(self.sent) {
                let _ = self.feed.send(Ok(Bytes::copy_from_slice(half.as_bytes()))).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let _ = self.feed.send(Err(io::Error::other("broken by the test"))).await;
                return Err(());
            }
            self.say(&change.line).await?;
            if self.spoil.duplicates {
                self.say(&change.line).await?;
            }
            self.sent += 1;
        }
        Ok(())
    }

    async fn say(&self, line: &str) -> Result<(), ()> {
        let line = Bytes::from(format!("{line}\n"));
        if let Some(Fault::Slow(size, pause)) = self.fault {
            for piece in line.chunks(size.max(1)) {
                tokio::time::sleep(pause).await;
                self.feed.send(Ok(Bytes::copy_from_slice(piece))).await.map_err(drop)?;
            }
            return Ok(());
        }
        self.feed.send(Ok(line)).await.map_err(drop)
    }
}

fn ok(body: mpsc::Receiver<Piece>) -> Response<Feed> {
    let mut response = Response::new(Feed(body));
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// A whole body, unless it is to be spoilt.
fn said(whole: Vec<u8>, fault: Option<Fault>) -> Response<Feed> {
    let (feed, body) = mpsc::channel(1);
    tokio::spawn(async move {
        let whole = Bytes::from(whole);
        match fault {
            Some(Fault::Truncated) => {
                let _ = feed.send(Ok(whole.slice(..whole.len() / 2))).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let _ = feed.send(Err(io::Error::other("broken by the test"))).await;
            }
            Some(Fault::Slow(size, pause)) => {
                for piece in whole.chunks(size.max(1)) {
                    tokio::time::sleep(pause).await;
                    if feed.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                        return;
                    }
                }
            }
            _ => {
                let _ = feed.send(Ok(whole)).await;
            }
        }
    });
    ok(body)
}

fn refusal(code: u16, message: &str, after: Option<u32>) -> Response<Feed> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
    let mut response = said(status.to_string().into_bytes(), None);
    *response.status_mut() =
        hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(seconds) = after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The node of a field selector.
fn node(query: &BTreeMap<String, String>) -> Option<String> {
    query.get("fieldSelector")?.strip_prefix("spec.nodeName=").map(str::to_owned)
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%' && after.len() >= 2)
            .then(|| u8::from_str_radix(std::str::from_utf8(&after[..2]).ok()?, 16).ok())
            .flatten();
        if let Some(byte) = code {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(if *first == b'+' { b' ' } else { *first });
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
