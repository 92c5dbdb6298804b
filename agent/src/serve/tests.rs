//! In: real TCP clients, good and bad; out: verdicts on a running server. Deadlines here only keep a failure from hanging.

mod access;
mod tls;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::registry::{Family, FamilyLayout, Kind, Layout, Scale, SeriesLayout, Snapshot};
use crate::selfmetrics::SelfMetrics;

pub(super) const HANG: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_hours(1);
const SECOND: u64 = 1_000_000_000;
/// Any free port.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

static FAMILY: Family = Family {
    name: "kernmeter_syscalls",
    help: "System calls.",
    unit: None,
    kind: Kind::Counter,
    scale: Scale::One,
    labels: &[],
};

pub(super) struct Running {
    pub(super) address: SocketAddr,
    pub(super) state: Arc<AppState>,
    clock: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Deadlines that never pass and no eviction, so that a test can shorten the one it is about.
pub(super) fn patient() -> ConnectionLimits {
    ConnectionLimits {
        max_connections: 64,
        header_timeout: NEVER,
        response_timeout: NEVER,
        idle_timeout: NEVER,
        grace: NEVER,
        drain_timeout: Duration::from_millis(200),
    }
}

impl Running {
    pub(super) fn start(limits: ConnectionLimits) -> Self {
        Self::with_authenticator(limits, Arc::default())
    }

    /// With credentials to show.
    pub(super) fn with_authenticator(limits: ConnectionLimits, authenticator: Arc<Authenticator>) -> Self {
        let clock = Arc::new(AtomicU64::new(100 * SECOND));
        let shared = Arc::clone(&clock);
        let state = AppState::new(
            SelfMetrics::new("0.1.0<", "abc"),
            "/metrics",
            "0.1.0<",
            Duration::from_mins(1),
            Box::new(move || shared.load(SeqCst)),
        );
        let state = Arc::new(state.with_authenticator(authenticator));
        let server = Server::bind(LOCAL).unwrap().with_limits(limits);
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let shutdown = async {
                let _ = stopped.await;
            };
            runtime.block_on(server.serve(serving, shutdown)).unwrap();
        });
        Self { address, state, clock, stop: Some(stop), thread: Some(thread) }
    }

    /// Publishes `series` series with labels of `label_bytes` bytes each.
    pub(super) fn publish(&self, series: u32, label_bytes: usize) {
        let labels = |i| format!("tenant_id=\"{i}{}\"", "x".repeat(label_bytes)).into_bytes().into();
        let series = (0..series).map(|i| SeriesLayout { labels: labels(i), first: 0, tenant: 0 }).collect();
        let families = vec![FamilyLayout { family: &FAMILY, series }];
        let layout = Arc::new(Layout { families, tenants: vec!["acme".into()] });
        let sequence = self.state.snapshots().load().sequence + 1;
        let taken_ns = self.clock.load(SeqCst);
        let snapshot = Snapshot { layout, values: vec![42], taken_ns, sequence };
        self.state.snapshots().publish(Arc::new(snapshot));
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream
    }

    pub(super) fn exchange(&self, request: impl AsRef<[u8]>) -> Response {
        let mut stream = self.connect();
        stream.write_all(request.as_ref()).unwrap();
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw).unwrap();
        Response::parse(&raw)
    }

    pub(super) fn get(&self, path: &str, headers: &str) -> Response {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"))
    }

    /// A whole scrape by a client that behaves.
    fn good_scrape(&self) {
        let response = self.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n");
        assert_eq!(response.status, 200);
        assert!(response.text().ends_with("# EOF\n"));
    }

    /// Signals the stop and waits for the server to end.
    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub(super) struct Response {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Response {
    pub(super) fn parse(raw: &[u8]) -> Self {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").expect("no end of headers") + 4;
        let head = String::from_utf8(raw[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: raw[end..].to_vec() }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(super) fn headers(&self, name: &str) -> Vec<&str> {
        let values = self.head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        values.collect()
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Whether the server ended the connection, by EOF or reset, before the client's patience did.
pub(super) fn is_closed(stream: &mut TcpStream) -> bool {
    let mut sink = Vec::new();
    match stream.read_to_end(&mut sink) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}

#[test]
fn metrics_in_the_format_asked_for() {
    let server = Running::start(patient());
    server.publish(1, 0);
    let plain = server.get("/metrics?format=openmetrics&x=%00", "");
    assert_eq!(plain.status, 200);
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(plain.header("vary"), Some("accept, accept-encoding"));
    assert_eq!(plain.header("content-length"), Some(plain.body.len().to_string().as_str()));
    assert_eq!(plain.header("content-encoding"), None);
    assert!(plain.text().contains("kernmeter_syscalls_total{tenant_id=\"0\"} 42\n"));
    assert!(plain.text().contains("kernmeter_snapshot_age_seconds 0.0\n"));
    assert!(plain.text().contains("kernmeter_scrapes_total{format=\"text-0.0.4\",code=\"200\"} 1\n"));

    let open = server.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\n");
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(open.text().starts_with("# HELP kernmeter_syscalls System calls.\n"));
    assert!(open.text().ends_with("\n# EOF\n"));
    let old = server.get("/metrics", "Accept: application/openmetrics-text;version=0.0.1\r\n");
    assert_eq!(
        old.header("content-type"),
        Some("application/openmetrics-text; version=0.0.1; charset=utf-8")
    );
}

#[test]
fn gzip_when_asked_for() {
    let server = Running::start(patient());
    server.publish(100, 10);
    let accept = "Accept: application/openmetrics-text\r\n";
    let packed = server.get("/metrics", &format!("{accept}Accept-Encoding: gzip, deflate\r\n"));
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("content-length"), Some(packed.body.len().to_string().as_str()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("kernmeter_syscalls_total{").count(), 100);
    assert!(text.ends_with("# EOF\n") && packed.body.len() < text.len());
    let refused = server.get("/metrics", &format!("{accept}Accept-Encoding: gzip;q=0\r\n"));
    assert_eq!(refused.header("content-encoding"), None);
    assert!(refused.text().ends_with("# EOF\n"));
}

#[test]
fn head_has_the_headers_and_no_body() {
    let server = Running::start(patient());
    server.publish(1, 0);
    let get = server.get("/metrics", "");
    let head = server.exchange("HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), get.header("content-length"));
    assert_eq!(head.header("content-type"), get.header("content-type"));
    let health = server.exchange("HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((health.status, health.header("content-length")), (200, Some("3")));
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let server = Running::start(patient());
    let response = server.exchange("GET /healthz HTTP/1.0\r\n\r\n");
    assert!(response.head.starts_with("http/1.0 200"));
    assert_eq!(response.text(), "ok\n");
}

#[test]
fn wrong_paths_and_methods() {
    let server = Running::start(patient());
    for path in ["/metricsx", "/metrics/", "/../metrics", "/%6detrics", "//", "/favicon.ico", "*"] {
        assert_eq!(server.get(path, "").status, 404, "{path}");
    }
    for (method, path) in [("PUT", "/metrics"), ("DELETE", "/"), ("OPTIONS", "/healthz"), ("BREW", "/readyz")]
    {
        let response =
            server.exchange(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        assert_eq!((response.status, response.header("allow")), (405, Some("get, head")), "{method}");
    }
    let scrape = server.get("/metrics", "");
    assert!(scrape.text().contains("kernmeter_scrapes_total{format=\"none\",code=\"405\"} 1\n"));
}

#[test]
fn landing_page_is_escaped() {
    let server = Running::start(patient());
    let page = server.get("/?q=%3Cscript%3E", "");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().contains("version 0.1.0&lt;.") && page.text().contains("href=\"/metrics\""));
    assert!(!page.text().contains("<script"));
}

#[test]
fn ready_only_while_seeing() {
    let server = Running::start(patient());
    let ready = || {
        let response = server.get("/readyz", "");
        (response.status, response.text().to_owned())
    };
    assert_eq!(ready(), (503, "not ready: starting: no probe attached yet\n".to_owned()));
    server.state.set_attached();
    assert_eq!(ready(), (503, "not ready: no snapshot taken yet\n".to_owned()));
    server.publish(1, 0);
    assert_eq!(ready(), (200, "ok\n".to_owned()));
    server.clock.fetch_add(60 * SECOND, SeqCst);
    assert_eq!(ready().0, 200);
    server.clock.fetch_add(SECOND, SeqCst);
    assert_eq!(ready(), (503, "not ready: last snapshot is 61 s old, more than 60 s\n".to_owned()));
    server.publish(1, 0);
    assert_eq!(ready().0, 200);
    assert_eq!(server.get("/healthz", "").status, 200);
}

#[test]
fn a_body_is_rendered_once_a_second_or_snapshot() {
    let server = Running::start(patient());
    server.publish(1, 0);
    let scrapes = |headers: &str| {
        let response = server.get("/metrics", headers);
        let line =
            response.text().lines().find(|l| l.starts_with("kernmeter_scrapes_total")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!((scrapes(""), scrapes(""), scrapes("")), (1, 1, 1));
    server.clock.fetch_add(SECOND - 1, SeqCst);
    assert_eq!(scrapes(""), 1);
    server.clock.fetch_add(1, SeqCst);
    assert_eq!((scrapes(""), scrapes("")), (5, 5));
    server.publish(1, 0);
    assert_eq!(scrapes(""), 7);
    // Another format is another body.
    let open = server.get("/metrics", "Accept: application/openmetrics-text\r\n");
    assert!(open.text().contains("{format=\"openmetrics-1.0.0\",code=\"200\"} 1\n"));
}

#[test]
fn without_credentials_configured_everyone_reads_every_tenant() {
    let server = Running::start(patient());
    server.publish(3, 0);
    let all = server.get("/metrics", "");
    let tenant =
        server.get("/tenants/acme/metrics?tenant_id=other", "Accept: application/openmetrics-text\r\n");
    assert_eq!((all.status, tenant.status), (200, 200));
    assert_eq!(tenant.text().matches("kernmeter_syscalls_total{").count(), 3);
    assert!(all.text().contains("kernmeter_build") && !tenant.text().contains("kernmeter_build"));
    assert!(tenant.text().ends_with("# EOF\n"));
    for path in ["/tenants/nobody/metrics", "/tenants/ACME/metrics", "/tenants/acme/", "/tenants"] {
        assert_eq!(server.get(path, "").status, 404, "{path}");
    }
    let posted =
        server.exchange("POST /tenants/acme/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(posted.status, 405);
    // Another snapshot is another body.
    server.publish(4, 0);
    assert_eq!(
        server.get("/tenants/acme/metrics", "").text().matches("kernmeter_syscalls_total{").count(),
        4
    );
}

#[test]
fn connections_are_kept_and_pipelines_answered_in_order() {
    let server = Running::start(patient());
    let mut stream = server.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut last = Vec::new();
        while !last.ends_with(b"\r\n\r\nok\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            last.push(byte[0]);
        }
    }
    let both = server.exchange(
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(both.status, 200);
    assert!(both.text().starts_with("ok\nHTTP/1.1 404 "));
}

#[test]
fn a_request_body_is_never_read_nor_taken_for_a_request() {
    let server = Running::start(patient());
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let long = smuggled.len() + 100_000;
    for (start, status) in [("POST /metrics", 405), ("GET /metrics", 200)] {
        let response = server
            .exchange(format!("{start} HTTP/1.1\r\nHost: x\r\nContent-Length: {long}\r\n\r\n{smuggled}"));
        assert_eq!((response.status, response.header("connection")), (status, Some("close")));
        assert!(!response.text().contains("HTTP/1.1"));
    }
    let expecting = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(server.exchange(expecting).status, 405);
}

#[test]
fn garbage_gets_an_error_and_the_door() {
    let server = Running::start(patient());
    for garbage in
        ["\0\x01\x02\r\n\r\n", "GET\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\r\n", "GET / HTTP/9.9\r\n\r\n"]
    {
        let mut stream = server.connect();
        stream.write_all(garbage.as_bytes()).unwrap();
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw).unwrap();
        assert_eq!(Response::parse(&raw).status, 400, "{garbage:?}");
    }
    let piped = server.exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\xff\xfe garbage \0\r\n\r\n");
    assert!(piped.status == 200 && piped.text().starts_with("ok\nHTTP/1.1 400 "));
    server.good_scrape();
}

#[test]
fn huge_headers_are_refused() {
    let server = Running::start(patient());
    let fits = format!("X-Large: {}\r\n", "x".repeat(12 * 1024));
    assert_eq!(server.get("/healthz", &fits).status, 200);
    for headers in [format!("X-Large: {}\r\n", "x".repeat(64 * 1024)), "X: y\r\n".repeat(1000)] {
        let mut stream = server.connect();
        // The server may hang up before it has been sent all, and a reset may overtake its answer.
        let _ = write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let mut raw = Vec::new();
        let ended = stream.read_to_end(&mut raw);
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
        assert!(raw.is_empty() || Response::parse(&raw).status == 431);
    }
    server.good_scrape();
}

#[test]
fn slow_headers_are_cut_at_the_deadline() {
    let server = Running::start(ConnectionLimits { header_timeout: Duration::from_millis(100), ..patient() });
    let mut silent = server.connect();
    let mut dribbling = server.connect();
    let mut writer = dribbling.try_clone().unwrap();
    let dribble = std::thread::spawn(move || {
        // Ends with the connection; each byte is one more sign of life.
        writer.write_all(b"GET /healthz HTTP/1.1\r\nX: ").unwrap();
        while writer.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(is_closed(&mut silent));
    assert!(is_closed(&mut dribbling));
    dribble.join().unwrap();
}

#[test]
fn a_kept_connection_gets_the_idle_time_then_the_door() {
    let server = Running::start(ConnectionLimits { idle_timeout: Duration::from_millis(100), ..patient() });
    let mut stream = server.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    assert_eq!(Response::parse(&raw).text(), "ok\n");
}

/// A body larger than both socket buffers, so that a client that does not read stops the server's writing.
fn publish_huge(server: &Running) {
    server.publish(100, 400_000);
}

#[test]
fn who_does_not_read_is_cut_at_the_deadline() {
    let limits =
        ConnectionLimits { max_connections: 1, response_timeout: Duration::from_millis(300), ..patient() };
    let server = Running::start(limits);
    publish_huge(&server);
    let mut stuck = server.connect();
    stuck.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut first = [0; 12];
    stuck.read_exact(&mut first).unwrap();
    // The only permit is taken until the deadline: an answer here means that it was freed.
    assert_eq!(server.get("/healthz", "").status, 200);
    let mut rest = Vec::new();
    let _ = stuck.read_to_end(&mut rest);
    assert!(rest.len() < 40_000_000);
}

#[test]
fn stuck_clients_on_every_seat_make_room() {
    let server = Running::start(ConnectionLimits {
        max_connections: 4,
        grace: Duration::from_millis(50),
        ..patient()
    });
    publish_huge(&server);
    let stuck: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for _ in 0..6 {
        assert_eq!(server.get("/healthz", "").status, 200);
    }
    drop(stuck);
}

#[test]
fn idle_connections_do_not_starve_a_good_scrape() {
    let server = Running::start(ConnectionLimits { grace: Duration::from_millis(50), ..patient() });
    server.publish(10, 10);
    let mut idle: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    for stream in idle.iter_mut().step_by(3) {
        // Some of them have been cut already.
        let _ = stream.write_all(b"GET /metrics HT");
    }
    for _ in 0..3 {
        server.good_scrape();
    }
    // At least as many as there were too many have been cut.
    let mut closed = 0;
    for stream in &mut idle {
        stream.set_nonblocking(true).unwrap();
        closed += usize::from(is_closed(stream));
    }
    assert!(closed >= 200 - 64, "{closed}");
}

#[test]
fn a_full_house_keeps_no_connection_alive() {
    let server = Running::start(ConnectionLimits { max_connections: 1, ..patient() });
    // Would never end if the server kept it, since all deadlines are far away.
    let response = server.exchange("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
}

#[test]
fn stopping_finishes_answers_under_way() {
    let mut server = Running::start(ConnectionLimits { drain_timeout: HANG, ..patient() });
    publish_huge(&server);
    let mut idle = server.connect();
    let mut busy = server.connect();
    busy.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut raw = vec![0; 1000];
    busy.read_exact(&mut raw).unwrap();
    server.stop.take().unwrap().send(()).unwrap();
    // The idle one is let go at once, while the busy one keeps the server up.
    assert!(is_closed(&mut idle));
    assert!(!server.thread.as_ref().unwrap().is_finished());
    busy.read_to_end(&mut raw).unwrap();
    let response = Response::parse(&raw);
    assert_eq!(response.header("content-length"), Some(response.body.len().to_string().as_str()));
    server.thread.take().unwrap().join().unwrap();
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn stopping_waits_for_nobody_longer_than_the_deadline() {
    let mut server = Running::start(patient());
    publish_huge(&server);
    let mut stuck = server.connect();
    stuck.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut first = [0; 12];
    stuck.read_exact(&mut first).unwrap();
    let mut half = server.connect();
    half.write_all(b"GET /healthz HT").unwrap();
    server.stop();
    assert!(is_closed(&mut half));
}

#[test]
fn a_client_that_half_closes_still_gets_its_answer() {
    let server = Running::start(patient());
    let mut stream = server.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).unwrap();
    assert_eq!(Response::parse(&raw).text(), "ok\n");
}

#[test]
fn bind_errors_say_what_to_do() {
    let taken = Server::bind(LOCAL).unwrap();
    let address = taken.local_addr();
    assert_eq!(
        Server::bind(address).unwrap_err().to_string(),
        format!(
            "cannot listen on `{address}`: address already in use; stop the other process or choose another with \
             --web.listen-address"
        )
    );
    // TEST-NET-1 is nobody's address.
    let nobody = SocketAddr::from(([192, 0, 2, 1], 0));
    assert!(matches!(Server::bind(nobody).unwrap_err(), ServeError::Listen { .. }));
    assert_ne!(Server::bind("[::]:0".parse().unwrap()).unwrap().local_addr().port(), 0);
}
