//! Routes x formats x credentials x attempts to pass for another tenant, over real connections with TLS: who sees what.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Read as _;

use flate2::read::GzDecoder;

use super::tls::{Client, Pki};
use super::{Response, Running, patient};
use crate::auth::Reader;
use crate::registry::{Detail, Family, Kind, Limits, Registry, Scale};

static CALLS: Family = Family {
    name: "kernmeter_calls",
    help: "Calls.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &["syscall"],
};
static WAIT: Family = Family {
    name: "kernmeter_wait_seconds",
    help: "Waits.",
    unit: Some("seconds"),
    kind: Kind::Histogram,
    scale: Scale::NanosToSeconds,
    labels: &[],
};

/// Pods that would like to be others: quotes, line feeds, ends of files, labels, markup.
const HOSTILE: [&str; 5] = [
    "p\"} 1\n# EOF\nkernmeter_calls_total{tenant_id=\"x\",pod=\"",
    "\\\",tenant_id=\"x",
    "</script><script>",
    "../../tenants/x/metrics",
    "\u{1f980}\0\r\n\t{}",
];

/// Publishes tenants `alpha`, `bravo` and `_host`; every series of the first two says whose it is in a label of its own.
fn publish(server: &Running) {
    let limits = Limits { series_per_tenant: 60, tenants: 10, retention_ns: 1 };
    let mut registry = Registry::new([&CALLS, &WAIT], |_| Detail::Pod, limits);
    for (tenant, mark) in [("alpha", "ALPHA"), ("bravo", "BRAVO"), ("_host", "HOST")] {
        for (n, hostile) in HOSTILE.iter().enumerate() {
            let labels = [tenant, mark, &format!("{mark}{hostile}"), ""].map(std::sync::Arc::<str>::from);
            let [tenant, namespace, pod, container] = &labels;
            let target = registry.acquire([tenant, namespace, pod, container]);
            for syscall in 0..8 {
                registry.add(target, &CALLS, &[&format!("{mark}{syscall}")], 1);
            }
            let mut buckets = [0; kernmeter_abi::histogram::BUCKETS];
            buckets[n] = 1;
            registry.observe(target, &WAIT, &[], &buckets, 1);
            if n == 0 {
                registry.release(target, 0);
            }
        }
    }
    registry.expire(10);
    server.state.snapshots().publish(std::sync::Arc::new(registry.publish(99_000_000_000)));
    server.state.set_attached();
}

/// The body as text, unpacked.
fn text(response: &Response) -> String {
    if response.header("content-encoding") != Some("gzip") {
        return response.text().to_owned();
    }
    let mut text = String::new();
    GzDecoder::new(response.body.as_slice()).read_to_string(&mut text).unwrap();
    text
}

/// Head and body without what names the moment.
fn fixed(response: &Response) -> String {
    let head = response.head.lines().filter(|line| !line.starts_with("date: "));
    head.fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{line}");
        all
    }) + &response.body.escape_ascii().to_string()
}

fn tenant(name: &str) -> Reader {
    Reader::Tenant(name.into())
}

/// Name, certificate, header and whose it is.
type Shown = (&'static str, Option<&'static str>, &'static str, Option<Reader>);

fn credentials() -> Vec<Shown> {
    let operator = Some(Reader::Operator);
    vec![
        ("none", None, "", None),
        ("token of nobody", None, "Authorization: Bearer alpha-token-00000x\r\n", None),
        (
            "two tokens",
            None,
            "Authorization: Bearer alpha-token-000000\r\nAuthorization: Bearer bravo-token-000000\r\n",
            None,
        ),
        ("token of a", None, "Authorization: Bearer alpha-token-000000\r\n", Some(tenant("alpha"))),
        ("token of b", None, "Authorization: Bearer bravo-token-000000\r\n", Some(tenant("bravo"))),
        ("token of operators", None, "Authorization: Bearer opera-token-000000\r\n", operator.clone()),
        // alpha:pw, bravo:pw, ops:pw, alpha:no, other:pw
        ("user a", None, "Authorization: Basic YWxwaGE6cHc=\r\n", Some(tenant("alpha"))),
        ("user b", None, "Authorization: basic YnJhdm86cHc=\r\n", Some(tenant("bravo"))),
        ("user operator", None, "Authorization: Basic b3BzOnB3\r\n", operator.clone()),
        ("wrong password", None, "Authorization: Basic YWxwaGE6bm8=\r\n", None),
        ("user in no list", None, "Authorization: Basic b3RoZXI6cHc=\r\n", None),
        ("no colon", None, "Authorization: Basic YWxwaGE=\r\n", None),
        ("certificate of a", Some("alpha.example"), "", Some(tenant("alpha"))),
        ("certificate of b", Some("bravo.example"), "", Some(tenant("bravo"))),
        ("certificate of operators", Some("CN=ops"), "", operator),
        ("certificate of nobody", Some("other.example"), "", None),
        (
            "certificate of a, token of b",
            Some("alpha.example"),
            "Authorization: Bearer bravo-token-000000\r\n",
            Some(tenant("bravo")),
        ),
        ("certificate of operators, bad token", Some("CN=ops"), "Authorization: Bearer xxxxx\r\n", None),
    ]
}

/// What a path shows to a reader who may be there: whose series, or nothing of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Own,
    Of(&'static str),
    Landing,
    Open,
    Nothing,
}

const PATHS: [(&str, Shows); 28] = [
    ("/metrics", Shows::Own),
    ("/metrics?tenant_id=bravo&tenant=alpha&id=_host", Shows::Own),
    ("/tenants/alpha/metrics", Shows::Of("alpha")),
    ("/tenants/bravo/metrics", Shows::Of("bravo")),
    ("/tenants/bravo/metrics?tenant=alpha", Shows::Of("bravo")),
    ("/tenants/_host/metrics", Shows::Of("_host")),
    ("/tenants/nobody/metrics", Shows::Of("nobody")),
    ("/", Shows::Landing),
    ("/healthz", Shows::Open),
    ("/readyz", Shows::Open),
    // An absolute URI names the same path, whatever its authority.
    ("http://bravo/metrics", Shows::Own),
    ("https://alpha@bravo:1/tenants/bravo/metrics", Shows::Of("bravo")),
    ("/tenants/alpha/../bravo/metrics", Shows::Nothing),
    ("/tenants/alpha%2f..%2fbravo/metrics", Shows::Nothing),
    ("/tenants/%62ravo/metrics", Shows::Nothing),
    ("/tenants/bravo%00/metrics", Shows::Nothing),
    ("/tenants/BRAVO/metrics", Shows::Of("BRAVO")),
    ("/Tenants/bravo/metrics", Shows::Nothing),
    ("/tenants//bravo/metrics", Shows::Nothing),
    ("//tenants/bravo/metrics", Shows::Nothing),
    ("/tenants/bravo//metrics", Shows::Nothing),
    ("/tenants/bravo/metrics/", Shows::Nothing),
    ("/tenants/bravo/metrics;tenant=alpha", Shows::Nothing),
    ("/tenants/./bravo/metrics", Shows::Nothing),
    ("/tenants/bravo/healthz", Shows::Nothing),
    ("/metrics/", Shows::Nothing),
    ("/%6detrics", Shows::Nothing),
    ("/debug/pprof", Shows::Nothing),
];

const FORMATS: [(&str, bool); 5] = [
    ("", false),
    ("Accept: text/plain;version=0.0.4\r\nAccept-Encoding: gzip\r\n", true),
    ("Accept: application/openmetrics-text;version=1.0.0\r\n", false),
    ("Accept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n", true),
    ("Accept: application/openmetrics-text;version=0.0.1\r\n", false),
];

/// Headers that name another tenant, as proxies and other servers have them.
const SMUGGLED: &str = "X-Tenant: bravo\r\nX-Scope-OrgID: bravo\r\nX-Forwarded-User: bravo\r\nX-Remote-User: ops\r\n\
    X-Original-URL: /tenants/bravo/metrics\r\nX-Rewrite-URL: /tenants/bravo/metrics\r\nX-HTTP-Method-Override: GET\r\n\
    Forwarded: for=bravo;host=bravo\r\nCookie: tenant=bravo; Authorization=Bearer bravo-token-000000\r\n\
    Proxy-Authorization: Bearer bravo-token-000000\r\nX-Authorization: Bearer bravo-token-000000\r\n\
    X-SSL-Client-CN: ops\r\nX-Forwarded-Client-Cert: Subject=\"CN=ops\"\r\nTenant-Id: bravo\r\n";

/// Which marks a body may hold.
fn check_marks(all: &str, allowed: &[&str], context: &str) {
    for mark in ["ALPHA", "BRAVO", "HOST", "alpha", "bravo", "_host"] {
        let may = allowed.contains(&mark.to_ascii_lowercase().trim_start_matches('_'));
        assert!(may || !all.contains(mark), "{context}: shows {mark}");
    }
}

/// The status a reader must get, and whose series (`Some`) if it is 200.
fn expected<'a>(reader: Option<&'a Reader>, shows: Shows, method: &str) -> (u16, Option<&'a str>) {
    let Some(reader) = reader else {
        return match shows {
            Shows::Open if method == "POST" => (405, None),
            Shows::Open => (200, None),
            _ => (401, None),
        };
    };
    let view = match (shows, reader) {
        (Shows::Own, Reader::Operator) => Some("everything"),
        (Shows::Own, Reader::Tenant(own)) => Some(&**own),
        (Shows::Of(name), Reader::Operator) => {
            ["alpha", "bravo", "_host"].into_iter().find(|known| *known == name)
        }
        (Shows::Of(name), Reader::Tenant(own)) => (name == &**own).then_some(&**own),
        _ => None,
    };
    if view.is_none() && !matches!(shows, Shows::Landing | Shows::Open) {
        return (404, None);
    }
    if method == "POST" { (405, None) } else { (200, view) }
}

/// A tenant's body: live, retired and overflowing series are there, and nobody else's.
fn check_tenant_body(body: &str, name: &str, openmetrics: bool, context: &str) {
    let label = format!("{{tenant_id=\"{name}\",");
    let samples: Vec<&str> = body.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(samples.iter().all(|line| line.contains(&label)), "{context}:\n{body}");
    for part in [
        "kernmeter_calls_total{",
        "kernmeter_retired_calls_total{",
        "_overflow",
        "kernmeter_wait_seconds_bucket{",
    ] {
        assert!(samples.iter().any(|line| line.contains(part)), "{context}: lacks {part}");
    }
    assert!(!body.contains("process_") && !body.contains("kernmeter_build"), "{context}");
    let ends = body.lines().filter(|line| *line == "# EOF").count();
    assert_eq!(ends, usize::from(openmetrics), "{context}");
}

fn check_answer(
    response: &Response,
    (status, view): (u16, Option<&str>),
    shows: Shows,
    reader: Option<&Reader>,
    (method, format, packed): (&str, &str, bool),
    context: &str,
) {
    assert_eq!(response.status, status, "{context}");
    if status == 401 {
        assert_eq!(response.headers("www-authenticate").len(), 2, "{context}");
    }
    let all = response.head.clone() + &text(response);
    match view {
        Some("everything") => {}
        Some(name) => check_marks(&all, &[name.trim_start_matches('_')], context),
        None => check_marks(&all, &[], context),
    }
    if status != 200 || method == "HEAD" {
        return;
    }
    let is_packed = response.header("content-encoding") == Some("gzip");
    assert_eq!(is_packed, packed && view.is_some(), "{context}");
    let body = text(response);
    match view {
        Some("everything") => {
            for mark in ["ALPHA", "BRAVO", "HOST", "kernmeter_build"] {
                assert!(body.contains(mark), "{context}: lacks {mark}");
            }
        }
        Some(name) => check_tenant_body(&body, name, format.contains("openmetrics"), context),
        None if shows == Shows::Landing => {
            assert_eq!(body.contains("0.1.0"), reader == Some(&Reader::Operator), "{context}");
        }
        None => assert_eq!(body, "ok\n", "{context}"),
    }
}

#[test]
fn who_sees_what() {
    let pki = Pki::new("matrix");
    let mut watched = pki.tenants();
    let server = Running::with_authenticator(patient(), watched.authenticator());
    publish(&server);
    let asks: Vec<(&str, &str, bool)> = FORMATS
        .into_iter()
        .map(|(format, packed)| ("GET", format, packed))
        .chain([("HEAD", "", false), ("POST", "", false)])
        .collect();
    let mut requests = 0;
    let mut unauthorized = HashSet::new();
    for (who, certificate, header, reader) in credentials() {
        let mut client = pki.client(&server, certificate);
        let mut elsewhere = HashSet::new();
        for ((path, shows), (method, format, packed)) in
            PATHS.into_iter().flat_map(|path| asks.iter().map(move |ask| (path, *ask)))
        {
            // Combined with other formats they would say the same again.
            for smuggled in ["", SMUGGLED].into_iter().take(if format.is_empty() { 2 } else { 1 }) {
                let body = if method == "POST" { "tenant_id=bravo" } else { "" };
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nHost: bravo\r\n{smuggled}{header}{format}Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let response = client.exchange(&request, method == "HEAD");
                requests += 1;
                let context = format!("{who}: {method} {path} {format:?}");
                let expected = expected(reader.as_ref(), shows, method);
                check_answer(&response, expected, shows, reader.as_ref(), (method, format, packed), &context);
                // Nobody learns anything from how he is refused.
                match (method, expected.0) {
                    ("GET", 401) => unauthorized.insert(fixed(&response)),
                    ("GET", 404) => elsewhere.insert(fixed(&response)),
                    _ => false,
                };
            }
        }
        assert!(elsewhere.len() <= 1, "{who} can tell what exists: {elsewhere:#?}");
    }
    assert_eq!(unauthorized.len(), 1, "{unauthorized:#?}");
    println!("{requests} requests, {} kinds of credentials", credentials().len());
    // What is taken back counts no more, on connections that are open as well.
    let mut client = pki.client(&server, None);
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alpha-token-000000\r\n\r\n";
    assert_eq!(client.exchange(request, false).status, 200);
    pki.write("alpha.token", "other-token-000000");
    assert!(watched.changed());
    assert!(watched.reload(&pki.access()).is_empty());
    assert_eq!(client.exchange(request, false).status, 401);
}

#[test]
fn probes_tell_strangers_nothing() {
    let pki = Pki::new("probes");
    let watched = pki.tenants();
    let server = Running::with_authenticator(patient(), watched.authenticator());
    let mut client = pki.client(&server, None);
    let mut get = |path: &str, header: &str| {
        let response = client.exchange(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n"), false);
        (response.status, response.text().to_owned())
    };
    let [operator, alpha, wrong] = ["opera-token-000000", "alpha-token-000000", "wrong-token-000000"]
        .map(|token| format!("Authorization: Bearer {token}\r\n"));
    for header in ["", &alpha, &wrong] {
        assert_eq!(get("/readyz", header), (503, "not ready\n".to_owned()), "{header}");
        assert_eq!(get("/healthz", header), (200, "ok\n".to_owned()), "{header}");
    }
    assert_eq!(get("/readyz", &operator), (503, "not ready: starting: no probe attached yet\n".to_owned()));
    let (_, metrics) = get("/metrics", &operator);
    // Probes are no attempts.
    assert!(!metrics.contains("kernmeter_access_refusals_total{"), "{metrics}");
}

/// A flood of wrong passwords and of wrong tokens holds up neither who shows a token nor who is known.
#[test]
fn a_flood_of_wrong_passwords_holds_up_no_scrape() {
    let pki = Pki::new("flood");
    pki.hash_cost(10);
    let watched = pki.tenants();
    let server = Running::with_authenticator(patient(), watched.authenticator());
    publish(&server);
    let scrape = |header: &str| {
        let mut client = pki.client(&server, None);
        let begun = std::time::Instant::now();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{header}\r\n");
        assert_eq!(client.exchange(&request, false).status, 200, "{header}");
        begun.elapsed()
    };
    let known = "Authorization: Basic YWxwaGE6cHc=\r\n";
    let first = scrape(known);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut by_token, mut by_password) = (Vec::new(), Vec::new());
    let refused = std::thread::scope(|scope| {
        let flooders: Vec<_> = (0..8)
            .map(|flooder| {
                let (stop, pki, server) = (&stop, &pki, &server);
                scope.spawn(move || {
                    let mut statuses = std::collections::BTreeMap::new();
                    let mut client = pki.client(server, None);
                    for n in 0u64.. {
                        if stop.load(std::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                        let guess = Client::basic("alpha", &format!("{flooder}-{n}"));
                        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{guess}\r\n");
                        *statuses.entry(client.exchange(&request, false).status).or_insert(0) += 1;
                    }
                    statuses
                })
            })
            .collect();
        for _ in 0..10 {
            by_token.push(scrape("Authorization: Bearer bravo-token-000000\r\n"));
            by_password.push(scrape(known));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        flooders.into_iter().map(|flooder| flooder.join().unwrap()).collect::<Vec<_>>()
    });
    println!(
        "first password {first:?}; under flood: token at most {:?}, known password at most {:?}; refused {refused:?}",
        by_token.iter().max().unwrap(),
        by_password.iter().max().unwrap()
    );
    assert!(refused.iter().all(|statuses| statuses.keys().all(|status| [401, 503].contains(status))));
}
