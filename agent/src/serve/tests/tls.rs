//! TLS as clients meet it: versions, certificates, slow handshakes, files that change. Also the certificates and the client
//! that the table of readers uses.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{ConnectionLimits, Response, Running, is_closed, patient};
use crate::auth::{Access, AuthFiles, Credentials};

/// A CA that signs what a test asks for.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// `name` is a DNS name, or `CN=` and a common name.
    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (Certificate, KeyPair) {
        let common = name.strip_prefix("CN=");
        let alternative = if common.is_some() { vec![] } else { vec![name.to_owned()] };
        let mut params = CertificateParams::new(alternative).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common.unwrap_or("unlisted"));
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }
}

/// The files of a server, in a directory that is removed when dropped.
pub(super) struct Pki {
    dir: PathBuf,
    servers: Authority,
    clients: Authority,
}

impl Pki {
    pub(super) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("kernmeter-serve-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let pki = Self { dir, servers: Authority::new("servers"), clients: Authority::new("clients") };
        pki.new_server_certificate();
        pki.write("clients.crt", &pki.clients.certificate.pem());
        for token in ["alpha", "bravo", "opera"] {
            pki.write(&format!("{token}.token"), &format!("{token}-token-000000\n"));
        }
        pki.hash_cost(4);
        pki
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn new_server_certificate(&self) {
        let (certificate, key) = self.servers.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        self.write("server.crt", &certificate.pem());
        self.write("server.key", &key.serialize_pem());
    }

    /// The web configuration, with users' passwords hashed at this cost.
    pub(super) fn hash_cost(&self, cost: u32) {
        let hash = bcrypt::hash("pw", cost).unwrap();
        self.web(&format!(
            "client_ca_file: clients.crt, client_auth_type: VerifyClientCertIfGiven}}\n\
             basic_auth_users: {{alpha: {hash}, bravo: {hash}, ops: {hash}, other: {hash}}}\n"
        ));
    }

    /// Writes the web configuration from within `tls_server_config` on.
    fn web(&self, rest: &str) {
        self.write(
            "web.yml",
            &format!("tls_server_config: {{cert_file: server.crt, key_file: server.key, {rest}"),
        );
    }

    fn load(&self, access: &Access) -> AuthFiles {
        AuthFiles::load(Some(&self.path("web.yml")), access).unwrap()
    }

    pub(super) fn access(&self) -> Access {
        let one = |token: &str, user: &str, name: &str| Credentials {
            bearer_token_files: vec![self.path(token)],
            basic_auth_users: vec![user.to_owned()],
            client_certificates: vec![name.to_owned()],
        };
        Access {
            mode: None,
            operators: one("opera.token", "ops", "CN=ops"),
            tenants: [
                ("alpha".to_owned(), one("alpha.token", "alpha", "alpha.example")),
                ("bravo".to_owned(), one("bravo.token", "bravo", "bravo.example")),
            ]
            .into(),
        }
    }

    pub(super) fn tenants(&self) -> AuthFiles {
        self.load(&self.access())
    }

    /// A client that trusts the server's CA; with a certificate of the clients' CA if a name is given.
    pub(super) fn client(&self, server: &Running, name: Option<&str>) -> Client {
        let signed = name.map(|name| self.clients.sign(name, ExtendedKeyUsagePurpose::ClientAuth));
        self.client_with(server, signed)
    }

    fn client_with(&self, server: &Running, signed: Option<(Certificate, KeyPair)>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.servers.certificate.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match signed {
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![certificate.der().clone()],
                    PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        // What browsers and Go offer; the server speaks the second.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Client { config: Arc::new(config), address: server.address, stream: None }
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Keeps its connection while the server does.
pub(super) struct Client {
    config: Arc<ClientConfig>,
    address: std::net::SocketAddr,
    stream: Option<Tls>,
}

impl Client {
    pub(super) fn basic(user: &str, password: &str) -> String {
        let value = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        format!("Authorization: Basic {value}\r\n")
    }

    fn connect(&self) -> std::io::Result<Tls> {
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_read_timeout(Some(super::tests::HANG))?;
        // The end of the handshake and the request are two writes: the second must not wait for an acknowledgement.
        tcp.set_nodelay(true)?;
        let connection = ClientConnection::new(Arc::clone(&self.config), "localhost".try_into().unwrap());
        let mut stream = StreamOwned::new(connection.unwrap(), tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// One answer; connects again if the server has let go of the connection.
    pub(super) fn exchange(&mut self, request: &str, head_only: bool) -> Response {
        self.try_exchange(request, head_only).unwrap_or_else(|error| panic!("{request:?}: {error}"))
    }

    fn try_exchange(&mut self, request: &str, head_only: bool) -> std::io::Result<Response> {
        if let Some(mut stream) = self.stream.take()
            && stream.write_all(request.as_bytes()).is_ok()
            && let Ok(response) = self.read(stream, head_only)
        {
            return Ok(response);
        }
        let mut stream = self.connect()?;
        stream.write_all(request.as_bytes())?;
        self.read(stream, head_only)
    }

    fn read(&mut self, mut stream: Tls, head_only: bool) -> std::io::Result<Response> {
        let mut raw = Vec::new();
        let mut chunk = [0; 16384];
        loop {
            if let Some(end) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                let response = Response::parse(&raw);
                let length: usize =
                    response.header("content-length").map_or(0, |length| length.parse().unwrap());
                if head_only || raw.len() >= end + 4 + length {
                    if response.header("connection") != Some("close") {
                        self.stream = Some(stream);
                    }
                    return Ok(response);
                }
            }
            match stream.read(&mut chunk)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => raw.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn http_1_1_over_tls_1_3() {
    let pki = Pki::new("plain");
    pki.web("}");
    let watched = pki.load(&Access::default());
    let server = Running::with_authenticator(patient(), watched.authenticator());
    let mut client = pki.client(&server, None);
    // Kept over several requests.
    for _ in 0..3 {
        assert_eq!(client.exchange(HEALTH, false).text(), "ok\n");
    }
    let connection = &client.stream.as_ref().unwrap().conn;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
    // TLS alone guards nothing: everyone is an operator, as with other exporters.
    assert_eq!(client.exchange("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false).status, 200);
    // A body larger than any buffer arrives whole.
    server.publish(100, 100_000);
    let large = client.exchange("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false);
    assert!(large.body.len() > 10_000_000 && large.text().contains("kernmeter_build_info"));
}

/// A `ClientHello` that offers nothing above version 3.`version`, and would do for TLS 1.2.
fn old_hello(version: u8) -> Vec<u8> {
    let mut hello = vec![3, version];
    hello.extend([7; 32]);
    hello.push(0);
    // ECDHE-ECDSA with AES-128-CBC-SHA and with AES-128-GCM-SHA256; no compression.
    hello.extend([0, 4, 0xc0, 0x09, 0xc0, 0x2b, 1, 0]);
    // P-256, uncompressed points, ECDSA with SHA-256.
    hello.extend([0, 22, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3]);
    let length = hello.len();
    let mut record = vec![22, 3, 1, 0, (length + 4) as u8, 1, 0, 0, length as u8];
    record.extend(hello);
    record
}

#[test]
fn below_tls_1_2_is_refused() {
    let pki = Pki::new("old");
    pki.web("min_version: TLS12}");
    let watched = pki.load(&Access::default());
    let server = Running::with_authenticator(patient(), watched.authenticator());
    for version in [0, 1, 2] {
        let mut stream = server.connect();
        stream.write_all(&old_hello(version)).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        // A fatal alert, whichever.
        assert_eq!((answer.len(), answer.first()), (7, Some(&21)), "3.{version}: {answer:?}");
        assert_eq!(answer[5], 2, "3.{version}");
    }
    // The same of TLS 1.2 is answered.
    let mut stream = server.connect();
    stream.write_all(&old_hello(3)).unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[5]), (22, 2));
    drop(stream);
    // Plain HTTP is no TLS.
    let mut stream = server.connect();
    stream.write_all(HEALTH.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"));
    let metrics = pki.client(&server, None).exchange("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false);
    let counted = |n: u32| format!("kernmeter_access_refusals_total{{reason=\"tls\"}} {n}\n");
    // The one that was answered and hung up may be counted by now.
    assert!([4, 5].iter().any(|n| metrics.text().contains(&counted(*n))), "{}", metrics.text());
}

#[test]
fn client_certificates_are_verified() {
    let pki = Pki::new("clients");
    let stranger = Authority::new("clients");
    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    let verify = |how: &str, more: &str| {
        pki.web(&format!("client_ca_file: clients.crt, client_auth_type: {how}{more}}}"));
        pki.load(&Access::default())
    };
    let required = verify("RequireAndVerifyClientCert", "");
    let given = verify("VerifyClientCertIfGiven", "");
    let named = verify("RequireAndVerifyClientCert", ", client_allowed_sans: [a.example, b.example]");
    for (how, watched, none, listed, unlisted) in [
        ("required", &required, false, true, true),
        ("if given", &given, true, true, true),
        ("named", &named, false, true, false),
    ] {
        let server = Running::with_authenticator(patient(), watched.authenticator());
        let gets = |signed| pki.client_with(&server, signed).try_exchange(HEALTH, false).is_ok();
        assert_eq!(gets(None), none, "{how}: none");
        assert_eq!(gets(Some(pki.clients.sign("b.example", usage.clone()))), listed, "{how}: listed");
        assert_eq!(gets(Some(pki.clients.sign("c.example", usage.clone()))), unlisted, "{how}: unlisted");
        // Of a CA of the same name, of the servers' CA, for another use, and by its own word.
        assert!(!gets(Some(stranger.sign("b.example", usage.clone()))), "{how}: strange CA");
        assert!(!gets(Some(pki.servers.sign("b.example", usage.clone()))), "{how}: wrong CA");
        let server_use = ExtendedKeyUsagePurpose::ServerAuth;
        assert!(!gets(Some(pki.clients.sign("b.example", server_use))), "{how}: wrong use");
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["b.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert!(!gets(Some((own, key))), "{how}: self-signed");
    }
}

#[test]
fn expired_client_certificates_are_refused() {
    let pki = Pki::new("expired");
    let watched = pki.tenants();
    let server = Running::with_authenticator(patient(), watched.authenticator());
    let mut params = CertificateParams::new(vec!["alpha.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &pki.clients.issuer).unwrap();
    assert!(pki.client_with(&server, Some((certificate, key))).try_exchange(HEALTH, false).is_err());
}

#[test]
fn slow_handshakes_are_cut_and_hold_nobody() {
    let pki = Pki::new("slow");
    pki.web("}");
    let watched = pki.load(&Access::default());
    let limits =
        ConnectionLimits { header_timeout: Duration::from_millis(200), max_connections: 8, ..patient() };
    let server = Running::with_authenticator(limits, watched.authenticator());
    let hello = old_hello(3);
    let mut slow: Vec<TcpStream> = (0..8)
        .map(|n| {
            let mut stream = server.connect();
            // From silent to all but the last byte.
            stream.write_all(&hello[..n * (hello.len() - 1) / 7]).unwrap();
            stream
        })
        .collect();
    // Every permit is taken; one is free again once the deadline has passed.
    assert_eq!(pki.client(&server, None).exchange(HEALTH, false).text(), "ok\n");
    assert!(slow.iter_mut().all(is_closed));
    // One that dribbles inside the tunnel is cut as without one.
    let mut stream = pki.client(&server, None).connect().unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    let begun = std::time::Instant::now();
    while stream.write_all(b"a").and_then(|()| stream.flush()).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
        assert!(begun.elapsed() < super::tests::HANG, "never cut");
    }
}

/// What the server shows as its certificate.
fn shown(client: &Client) -> CertificateDer<'static> {
    let stream = client.connect().unwrap();
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn certificates_are_replaced_and_broken_ones_are_not_taken() {
    let pki = Pki::new("reload");
    let access = pki.access();
    let mut watched = pki.tenants();
    let server = Running::with_authenticator(patient(), watched.authenticator());
    let mut client = pki.client(&server, Some("alpha.example"));
    let metrics = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(client.exchange(metrics, false).status, 200);
    let first = shown(&client);
    let mut kept = client.stream.take().unwrap();

    pki.new_server_certificate();
    assert!(watched.changed());
    assert!(watched.reload(&access).is_empty());
    let second = shown(&client);
    assert_ne!(first, second);
    // Who is connected is asked to come again.
    assert_eq!(kept.read(&mut [0; 1]).map_or(0, |n| n), 0);

    for (name, text) in [
        ("server.crt", "garbage"),
        ("server.key", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"),
        ("clients.crt", ""),
        ("alpha.token", "short"),
        ("web.yml", "tls_server_config: {cert_file: server.crt"),
        ("web.yml", "basic_auth_users: {alpha: plain}"),
    ] {
        let good = fs::read_to_string(pki.path(name)).unwrap();
        pki.write(name, text);
        assert!(watched.changed(), "{name}");
        let error = watched.reload(&access)[0].to_string();
        assert!(error.contains(name) && !error.contains('\n'), "{error}");
        assert_eq!(shown(&client), second, "{name}");
        assert_eq!(client.exchange(metrics, false).status, 200, "{name}");
        pki.write(name, &good);
        assert!(watched.changed(), "{name}");
        assert!(watched.reload(&access).is_empty());
    }

    // Another CA: whom the old one vouched for is a stranger.
    pki.write("clients.crt", &Authority::new("clients").certificate.pem());
    assert!(watched.reload(&access).is_empty());
    assert!(client.try_exchange(metrics, false).is_err());
    assert!(Path::new(&pki.dir).exists());
}
