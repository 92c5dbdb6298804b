//! Tables of web configurations: what they ask for, and what is refused where.

use proptest::prelude::*;

use super::*;

const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

fn good(text: &str) -> WebConfigFile {
    parse(text, Path::new("/etc/web")).unwrap_or_else(|p| panic!("{}:{}: {}", p.line, p.column, p.message))
}

#[test]
fn nothing_asks_for_nothing() {
    for text in [
        "",
        "\n\n",
        "# all\n  # comments\n",
        "{}",
        "tls_server_config: {}",
        "tls_server_config: {cert_file: ''}",
    ] {
        let settings = good(text);
        assert!(settings.tls.is_none() && settings.users.is_empty() && settings.headers.is_empty(), "{text}");
    }
}

#[test]
fn everything_at_once() {
    let settings = good(&format!(
        "tls_server_config:
  cert_file: server.crt
  key_file: /keys/server.key
  client_ca_file: ../ca.crt
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [scraper.example]
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305]
  prefer_server_cipher_suites: false
  curve_preferences: [X25519, CurveP256]
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=31536000
    x-frame-options: DENY
basic_auth_users:
  prometheus: {HASH}
"
    ));
    let tls = settings.tls.unwrap();
    assert_eq!(tls.certificate, Path::new("/etc/web/server.crt"));
    assert_eq!(tls.key, Path::new("/keys/server.key"));
    assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/etc/web/../ca.crt")));
    assert_eq!(
        (tls.client_auth, tls.min_version, tls.max_version),
        (ClientAuth::Required, TlsVersion::Tls12, TlsVersion::Tls13)
    );
    assert_eq!((tls.allowed_names.len(), tls.prefer_server_suites), (1, false));
    let suites: Vec<String> = tls.suites.unwrap().into_iter().map(suite_name).collect();
    assert_eq!(suites, ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
    assert_eq!(tls.groups.unwrap().len(), 2);
    assert_eq!(settings.headers.len(), 2);
    assert_eq!(settings.users["prometheus"], HASH);
    assert_eq!(settings.warnings.len(), 1);
    for (name, expected) in [
        ("", ClientAuth::None),
        ("NoClientCert", ClientAuth::None),
        ("VerifyClientCertIfGiven", ClientAuth::IfGiven),
        ("RequireAndVerifyClientCert", ClientAuth::Required),
    ] {
        let ca = if expected == ClientAuth::None { "" } else { "ca" };
        let text = format!(
            "tls_server_config: {{cert_file: c, key_file: k, client_ca_file: '{ca}', client_auth_type: '{name}'}}"
        );
        assert_eq!(good(&text).tls.unwrap().client_auth, expected);
    }
}

#[test]
fn what_is_refused_and_where() {
    let tls = |more: &str| format!("tls_server_config:\n  cert_file: c\n  key_file: k\n  {more}\n");
    let user = |hash: &str| format!("basic_auth_users:\n  a: {hash}\n");
    for (text, line, part) in [
        ("tls_config: {}".to_owned(), 1, "unknown key `tls_config`, use one of tls_server_config"),
        ("basic_auth_user: {}".to_owned(), 1, "did you mean `basic_auth_users`?"),
        (tls("cert_fil: x"), 4, "did you mean `cert_file`?"),
        (tls("cert_file: x"), 4, "appears twice"),
        ("tls_server_config: {cert_file: c}".to_owned(), 1, "`key_file` is missing"),
        ("tls_server_config: {key_file: c}".to_owned(), 1, "`cert_file` is missing"),
        (tls("key: inline"), 4, "use `key_file`"),
        (tls("client_auth_type: Sometimes"), 4, "is none of NoClientCert"),
        (
            tls("client_auth_type: RequireAnyClientCert"),
            4,
            "without verifying it: use VerifyClientCertIfGiven",
        ),
        (tls("client_auth_type: RequestClientCert"), 4, "without verifying it"),
        (tls("client_auth_type: RequireAndVerifyClientCert"), 2, "without `client_ca_file`"),
        (tls("client_ca_file: x"), 2, "without `client_auth_type`"),
        (tls("client_allowed_sans: [x]"), 2, "without `client_auth_type`"),
        (tls("min_version: TLS11"), 4, "`TLS11` is broken and not offered: use TLS12 or TLS13"),
        (tls("min_version: SSL3"), 4, "is none of TLS13, TLS12"),
        (tls("min_version: TLS13\n  max_version: TLS12"), 5, "min_version is above max_version"),
        (
            tls("cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]"),
            4,
            "is not offered: use TLS_AES_256_GCM_SHA384",
        ),
        (
            tls("cipher_suites: [TLS_AES_128_GCM_SHA256]\n  max_version: TLS12"),
            2,
            "leaves nothing for TLS 1.2",
        ),
        (tls("curve_preferences: [CurveP521]"), 4, "`CurveP521` is not offered: use X25519"),
        (tls("prefer_server_cipher_suites: perhaps"), 4, "is none of true, false"),
        ("http_server_config: {http2: yes}".to_owned(), 1, "is none of true, false"),
        (
            "http_server_config: {headers: {Server: x}}".to_owned(),
            1,
            "may not be set: use one of Content-Security-Policy",
        ),
        ("http_server_config: {headers: {X-Frame-Options: all}}".to_owned(), 1, "write deny or sameorigin"),
        (
            "http_server_config: {headers: {X-XSS-Protection: \"a\\nb\"}}".to_owned(),
            1,
            "write printable ASCII",
        ),
        ("rate_limit: {burst: 5}".to_owned(), 1, "web.max_connections"),
        (user("secret"), 2, "not a bcrypt hash: write one such as"),
        (user("$2y$10$short"), 2, "not a bcrypt hash"),
        (user(&HASH.replace("2y", "2x")), 2, "not a bcrypt hash"),
        (user(&HASH.replace("$10$", "$03$")), 2, "not a bcrypt hash"),
        (user(&HASH.replace("$10$", "$31$")), 2, "bcrypt cost 31 would take seconds"),
        ("basic_auth_users: {'a:b': x}".to_owned(), 1, "no user has such a name"),
        ("basic_auth_users: [x]".to_owned(), 1, "expected"),
        ("a: [".to_owned(), 1, ""),
    ] {
        let problem =
            parse(&text, Path::new("/")).map(|_| ()).err().unwrap_or_else(|| panic!("accepted: {text}"));
        assert!(problem.message.contains(part), "{text}: {}", problem.message);
        assert_eq!(problem.line.max(1), line, "{text}: {}", problem.message);
        assert!(
            !problem.message.contains('\n') && !problem.message.contains("X0h1gDsPsz"),
            "{}",
            problem.message
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_settings_or_one_line(text in "[a-z_:{}\\[\\]\\n #'\"$0-9&*!|>-]{0,120}") {
        if let Err(problem) = parse(&text, Path::new("/")) {
            prop_assert!(!problem.message.chars().any(char::is_control), "{}", problem.message);
        }
    }
}
