//! In: a request's method, path and headers; out: the whole response. Reads no body, knows no sockets.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};

use super::bodies::View;
use super::state::AppState;
use crate::auth::{CertificateNames, Reader, Refusal};
use crate::exposition::{accepts_gzip, negotiate};

/// Who shows no credentials where none are needed: sees what a tenant without series sees.
static NOBODY: LazyLock<Reader> = LazyLock::new(|| Reader::Tenant("".into()));

const PLAIN: &str = "text/plain; charset=utf-8";

/// What a path asks for. Compared byte by byte, never decoded: `%2e`, `//` or another case is another path, and so is
/// nobody's. An absolute URI's authority and the `Host` header are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Landing,
    Alive,
    Ready,
    /// The reader's own: everything, or his tenant's series.
    Metrics,
    /// Those of the tenant of this name, which may not exist.
    TenantMetrics(&'a str),
    Nowhere,
}

impl<'a> Route<'a> {
    pub(super) fn of(path: &'a str, telemetry_path: &str) -> Self {
        match path {
            _ if path == telemetry_path => Self::Metrics,
            "/" => Self::Landing,
            "/healthz" => Self::Alive,
            "/readyz" => Self::Ready,
            _ => match path.strip_prefix("/tenants/").and_then(|rest| rest.strip_suffix("/metrics")) {
                Some(name) if is_tenant_name(name) => Self::TenantMetrics(name),
                _ => Self::Nowhere,
            },
        }
    }
}

/// Whether a path may name this tenant: as tenant rules make names, and the reserved ones.
fn is_tenant_name(name: &str) -> bool {
    let inner = name.strip_prefix('_').unwrap_or(name);
    name.len() <= 64
        && inner.starts_with(|c: char| c.is_ascii_alphanumeric())
        && inner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Who speaks on a connection.
pub(super) struct Caller {
    pub(super) address: IpAddr,
    /// The names of the verified certificate, if one was shown.
    pub(super) certificate: Option<CertificateNames>,
}

/// Answers one request.
pub(super) async fn answer<B>(state: &AppState, request: &Request<B>, caller: &Caller) -> Response<Bytes> {
    let policy = state.authenticator().policy();
    let route = Route::of(request.uri().path(), state.telemetry_path());
    // Whether the agent is alive is nobody's secret: a probe's credentials, if any, are not even looked at.
    let known = if route == Route::Alive && policy.requires_credentials() {
        Err(Refusal::Missing)
    } else {
        state.authenticator().identify(request.headers(), caller.certificate.as_ref(), caller.address).await
    };
    let open = matches!(route, Route::Alive | Route::Ready);
    let mut response = match known {
        Err(refusal) if !open => {
            state.own().count_access_refusal(refusal.as_str());
            refuse(state, refusal, &policy.challenges())
        }
        known => respond(state, request, route, known.as_ref().unwrap_or(&NOBODY)),
    };
    for (name, value) in policy.headers() {
        response.headers_mut().insert(name, value.clone());
    }
    response
}

/// Who is refused learns nothing but how to ask, whatever he asked for.
fn refuse(state: &AppState, refusal: Refusal, challenges: &[HeaderValue]) -> Response<Bytes> {
    if refusal == Refusal::Busy {
        state.own().count_scrape(None, StatusCode::SERVICE_UNAVAILABLE.as_u16());
        let mut response = text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "busy, try again\n");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    }
    state.own().count_scrape(None, StatusCode::UNAUTHORIZED.as_u16());
    let mut response = text(StatusCode::UNAUTHORIZED, PLAIN, "unauthorized\n");
    for challenge in challenges {
        response.headers_mut().append(WWW_AUTHENTICATE, challenge.clone());
    }
    response
}

/// Answers one request of a reader that his credentials have told. The path chooses among what the reader may see, headers
/// choose the format; the query is ignored.
fn respond<B>(state: &AppState, request: &Request<B>, route: Route<'_>, reader: &Reader) -> Response<Bytes> {
    let view = match (route, reader) {
        (Route::Metrics, Reader::Operator) => Some(View::Everything),
        (Route::Metrics, Reader::Tenant(own)) => Some(View::Tenant(Arc::clone(own))),
        (Route::TenantMetrics(name), Reader::Operator) => state.tenant(name).map(View::Tenant),
        // Another tenant's name is like one that does not exist: neither is looked up.
        (Route::TenantMetrics(name), Reader::Tenant(own)) => {
            (name == &**own).then(|| View::Tenant(Arc::clone(own)))
        }
        (Route::Landing | Route::Alive | Route::Ready | Route::Nowhere, _) => None,
    };
    if view.is_none() && !matches!(route, Route::Landing | Route::Alive | Route::Ready) {
        return text(StatusCode::NOT_FOUND, PLAIN, "not found\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        if view.is_some() {
            state.own().count_scrape(None, StatusCode::METHOD_NOT_ALLOWED.as_u16());
        }
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if let Some(view) = view {
        return metrics(state, &view, request.headers());
    }
    match route {
        Route::Alive => text(StatusCode::OK, PLAIN, "ok\n"),
        Route::Ready => match state.unready() {
            None => text(StatusCode::OK, PLAIN, "ok\n"),
            Some(reason) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                PLAIN,
                // Reasons name probes, kernels and intervals.
                match reader {
                    Reader::Operator => format!("not ready: {reason}\n"),
                    Reader::Tenant(_) => "not ready\n".to_owned(),
                },
            ),
        },
        _ => landing(state, reader),
    }
}

/// Whether a body follows the request's headers.
pub(super) fn has_body<B: Body>(request: &Request<B>) -> bool {
    !request.body().is_end_stream()
}

fn metrics(state: &AppState, view: &View, headers: &HeaderMap) -> Response<Bytes> {
    let format = negotiate(joined(headers, &ACCEPT).as_deref());
    let compressed = accepts_gzip(joined(headers, &ACCEPT_ENCODING).as_deref());
    // Counted first, so that a scrape that renders sees itself.
    state.own().count_scrape(Some(format), StatusCode::OK.as_u16());
    let mut response = text(StatusCode::OK, format.content_type(), state.body(view, format, compressed));
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

fn landing(state: &AppState, reader: &Reader) -> Response<Bytes> {
    let path = escaped(state.telemetry_path());
    let version = match reader {
        Reader::Operator => format!(", version {}", escaped(state.version())),
        Reader::Tenant(_) => String::new(),
    };
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>kernmeter</title></head>\n\
         <body>\n<h1>kernmeter</h1>\n<p>eBPF host telemetry per tenant{version}.</p>\n<ul>\n\
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
    fn paths_are_compared_not_decoded() {
        let of = |path| Route::of(path, "/metrics");
        assert_eq!(of("/metrics"), Route::Metrics);
        assert_eq!(of("/tenants/acme/metrics"), Route::TenantMetrics("acme"));
        assert_eq!(of("/tenants/_host/metrics"), Route::TenantMetrics("_host"));
        for path in [
            "",
            "*",
            "/tenants/",
            "/tenants//metrics",
            "/tenants/acme",
            "/tenants/acme/",
            "/tenants/acme/metrics/",
            "/tenants/acme//metrics",
            "//tenants/acme/metrics",
            "/Tenants/acme/metrics",
            "/tenants/acme/Metrics",
            "/tenants/ac%6de/metrics",
            "/tenants/acme%2fmetrics",
            "/tenants/acme%2F/metrics",
            "/tenants/../tenants/acme/metrics",
            "/tenants/./acme/metrics",
            "/tenants/acme/../other/metrics",
            "/tenants/a;b/metrics",
            "/tenants/acme /metrics",
            "/tenants/./metrics",
            "/tenants/../metrics",
            "/tenants/__host/metrics",
            "/tenants/_/metrics",
            "/tenants/\u{e9}/metrics",
            "/./metrics",
            "/metrics/",
            "/METRICS",
        ] {
            assert_eq!(of(path), Route::Nowhere, "{path}");
        }
        let long = format!("/tenants/{}/metrics", "a".repeat(65));
        assert_eq!(of(&long), Route::Nowhere);
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
