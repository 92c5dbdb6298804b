//! In: a request's method, path and headers; out: the whole response. Reads no body, knows no sockets.

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};

use super::state::AppState;
use crate::exposition::{accepts_gzip, negotiate};

const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers one request. Path and headers choose route and format, nothing else; the query is ignored.
pub(super) fn respond<B>(state: &AppState, request: &Request<B>) -> Response<Bytes> {
    let path = request.uri().path();
    let is_metrics = path == state.telemetry_path();
    if !is_metrics && !matches!(path, "/" | "/healthz" | "/readyz") {
        return text(StatusCode::NOT_FOUND, PLAIN, "not found\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        if is_metrics {
            state.own().count_scrape(None, StatusCode::METHOD_NOT_ALLOWED.as_u16());
        }
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if is_metrics {
        return metrics(state, request.headers());
    }
    match path {
        "/healthz" => text(StatusCode::OK, PLAIN, "ok\n"),
        "/readyz" => match state.unready() {
            None => text(StatusCode::OK, PLAIN, "ok\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {reason}\n")),
        },
        _ => landing(state),
    }
}

/// Whether a body follows the request's headers.
pub(super) fn has_body<B: Body>(request: &Request<B>) -> bool {
    !request.body().is_end_stream()
}

fn metrics(state: &AppState, headers: &HeaderMap) -> Response<Bytes> {
    let format = negotiate(joined(headers, &ACCEPT).as_deref());
    let compressed = accepts_gzip(joined(headers, &ACCEPT_ENCODING).as_deref());
    // Counted first, so that a scrape that renders sees itself.
    state.own().count_scrape(Some(format), StatusCode::OK.as_u16());
    let mut response = text(StatusCode::OK, format.content_type(), state.body(format, compressed));
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// A header's values as one; those that are not text are left out. Sent twice means joined with commas (RFC 9110, 5.3).
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut all = values.next()?.to_owned();
    for value in values {
        all.push(',');
        all.push_str(value);
    }
    Some(all)
}

fn landing(state: &AppState) -> Response<Bytes> {
    let (path, version) = (escaped(state.telemetry_path()), escaped(state.version()));
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>kernmeter</title></head>\n\
         <body>\n<h1>kernmeter</h1>\n<p>eBPF host telemetry per tenant, version {version}.</p>\n<ul>\n\
         <li><a href=\"{path}\">Metrics</a></li>\n<li><a href=\"/healthz\">Alive</a></li>\n\
         <li><a href=\"/readyz\">Ready</a></li>\n</ul>\n</body>\n</html>\n"
    );
    let mut response = text(StatusCode::OK, "text/html; charset=utf-8", page);
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// Text for HTML, attributes included.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_is_escaped() {
        assert_eq!(escaped(r#"<a href="x">&'</a>"#), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;&lt;/a&gt;");
    }

    #[test]
    fn repeated_headers_are_joined() {
        let mut headers = HeaderMap::new();
        assert_eq!(joined(&headers, &ACCEPT), None);
        headers.append(ACCEPT, HeaderValue::from_static("a/b"));
        headers.append(ACCEPT, HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append(ACCEPT, HeaderValue::from_static("c/d"));
        assert_eq!(joined(&headers, &ACCEPT).as_deref(), Some("a/b,c/d"));
    }
}
