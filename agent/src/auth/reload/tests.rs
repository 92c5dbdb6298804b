//! Real files: what they let in, what is refused, what a change does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use hyper::header::{AUTHORIZATION, HeaderMap};
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::config::Credentials;

/// A directory, removed when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("kernmeter-web-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn certificate(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tokens(operators: &[&Path], a: &[&Path]) -> Access {
    let files = |paths: &[&Path]| Credentials {
        bearer_token_files: paths.iter().map(|path| path.to_path_buf()).collect(),
        ..Credentials::default()
    };
    Access { operators: files(operators), tenants: [("a".to_owned(), files(a))].into(), mode: None }
}

fn reader(watched: &AuthFiles, authorization: &str) -> Option<Reader> {
    let mut headers = HeaderMap::new();
    if !authorization.is_empty() {
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(watched.authenticator().identify(&headers, None, [127, 0, 0, 1].into())).ok()
}

fn a() -> Reader {
    reader_of(Some("a"))
}

#[test]
fn tokens_are_checked_before_they_count() {
    let dir = Dir::new("tokens");
    let load = |text: &str| {
        let path = dir.write("token", text);
        AuthFiles::load(None, &tokens(&[], &[&path])).map_err(|error| error.to_string())
    };
    let watched = load("  0123456789abcdef\n\n").unwrap();
    assert_eq!(reader(&watched, "Bearer 0123456789abcdef"), Some(a()));
    for (text, part) in [
        ("", "holds 0 bytes: write a token of 16 to 4096"),
        ("0123456789abcde", "holds 15 bytes"),
        (&"x".repeat(5000), "holds 5000 bytes"),
        ("0123456789abcdef\n0123456789abcdef", "holds more than a token"),
        ("0123456789abcde\u{e9}", "holds more than a token"),
        ("0123456789 abcdef", "holds more than a token"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(part) && !error.contains("0123456789") && !error.contains('\n'), "{error}");
    }
    let path = dir.write("token", "0123456789abcdef");
    let copy = dir.write("copy", "0123456789abcdef");
    let error = AuthFiles::load(None, &tokens(&[&copy], &[&path])).unwrap_err().to_string();
    assert!(error.contains("another file holds too"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = AuthFiles::load(None, &tokens(&[], &[&path])).unwrap_err().to_string();
    assert!(error.contains("has mode 0644"), "{error}");
    let error = AuthFiles::load(None, &tokens(&[], &[Path::new("/nowhere")])).unwrap_err().to_string();
    assert!(error.contains("cannot read bearer token `/nowhere`"), "{error}");
}

#[test]
fn whose_a_user_is() {
    let dir = Dir::new("users");
    let hash = bcrypt::hash("pw", 4).unwrap();
    let web = dir.write("web.yml", &format!("basic_auth_users: {{u: {hash}, v: {hash}}}\n"));
    let users = |names: &[&str]| Credentials {
        basic_auth_users: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Credentials::default()
    };
    // u:pw and v:pw
    let (u, v) = ("Basic dTpwdw==", "Basic djpwdw==");
    let load = |access: &Access| AuthFiles::load(Some(&web), access).unwrap();
    let none = load(&Access::default());
    assert_eq!((reader(&none, u), reader(&none, v)), (Some(Reader::Operator), Some(Reader::Operator)));
    assert_eq!(reader(&none, ""), None);
    // Forgotten in the lists is nobody, never an operator.
    let tenant = load(&Access { tenants: [("a".to_owned(), users(&["u"]))].into(), ..Access::default() });
    assert_eq!((reader(&tenant, u), reader(&tenant, v)), (Some(a()), None));
    let operators = load(&Access { operators: users(&["v", "gone"]), ..Access::default() });
    assert_eq!((reader(&operators, u), reader(&operators, v)), (None, Some(Reader::Operator)));
    let open = AuthFiles::load(None, &Access::default()).unwrap();
    assert_eq!(reader(&open, ""), Some(Reader::Operator));
}

#[test]
fn certificates_need_somebody_who_verifies_them() {
    let access = Access {
        operators: Credentials { client_certificates: vec!["CN=ops".into()], ..Credentials::default() },
        ..Access::default()
    };
    let error = AuthFiles::load(None, &access).unwrap_err().to_string();
    assert!(error.contains("needs a `client_ca_file`"), "{error}");
}

#[test]
fn a_swapped_secret_is_followed_and_a_broken_one_is_not() {
    let dir = Dir::new("swap");
    for (generation, token) in [("1", "first-token-00000"), ("2", "second-token-0000"), ("3", "short")] {
        fs::create_dir(dir.0.join(generation)).unwrap();
        dir.write(&format!("{generation}/token"), token);
    }
    let swap = |generation: &str| {
        let _ = fs::remove_file(dir.0.join("..tmp"));
        symlink(generation, dir.0.join("..tmp")).unwrap();
        fs::rename(dir.0.join("..tmp"), dir.0.join("..data")).unwrap();
    };
    swap("1");
    let access = tokens(&[], &[&dir.0.join("..data/token")]);
    let mut watched = AuthFiles::load(None, &access).unwrap();
    let authenticator = watched.authenticator();
    let mut changes = authenticator.changes();
    assert!(!watched.changed());
    swap("2");
    assert!(watched.changed() && !watched.changed());
    assert!(watched.reload(&access).is_empty());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(reader(&watched, "Bearer second-token-0000"), Some(a()));
    assert_eq!(reader(&watched, "Bearer first-token-00000"), None);
    swap("3");
    assert!(watched.changed());
    assert_eq!(watched.reload(&access).len(), 1);
    assert!(!watched.changed(), "complained of once");
    assert_eq!(reader(&watched, "Bearer second-token-0000"), None, "that is in no file any more");
    // A file that the new configuration names and that comes late is noticed.
    let late = tokens(&[&dir.0.join("late")], &[&dir.0.join("..data/token")]);
    swap("2");
    assert_eq!(watched.reload(&late).len(), 1);
    assert_eq!(reader(&watched, "Bearer second-token-0000"), Some(a()), "held back by no other");
    assert!(!watched.changed());
    dir.write("late", "operator-token-00");
    assert!(watched.changed());
    assert!(watched.reload(&late).is_empty());
    assert_eq!(reader(&watched, "Bearer operator-token-00"), Some(Reader::Operator));
}

#[test]
fn certificates_and_keys_that_do_not_go_together() {
    let dir = Dir::new("pairs");
    dir.certificate("one");
    dir.certificate("two");
    dir.write("empty.pem", "");
    dir.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let cut = fs::read_to_string(dir.0.join("one.crt")).unwrap();
    dir.write("cut.pem", &cut[..cut.len() / 2]);
    let load = |certificate: &str, key: &str, more: &str| {
        let text = format!("tls_server_config: {{cert_file: {certificate}, key_file: {key}{more}}}");
        AuthFiles::load(Some(&dir.write("web.yml", &text)), &Access::default())
            .map_err(|error| error.to_string())
    };
    let verify = |ca: &str| format!(", client_ca_file: {ca}, client_auth_type: VerifyClientCertIfGiven");
    let good = load("one.crt", "one.key", "").unwrap();
    assert!(
        good.authenticator().policy().tls().is_some()
            && !good.authenticator().policy().requires_credentials()
    );
    assert!(load("one.crt", "one.key", &verify("two.crt")).is_ok());
    for (certificate, key, more, part) in [
        ("one.crt", "two.key", String::new(), "cannot be used with key"),
        ("one.crt", "one.crt", String::new(), "holds no private key"),
        ("one.key", "one.key", String::new(), "holds no certificate"),
        ("empty.pem", "one.key", String::new(), "holds no certificate"),
        ("cut.pem", "one.key", String::new(), "certificate `"),
        ("broken.pem", "one.key", String::new(), "cannot be used with key"),
        ("absent", "one.key", String::new(), "cannot read certificate"),
        ("one.crt", "absent", String::new(), "cannot read key"),
        ("one.crt", "one.key", verify("empty.pem"), "client CA"),
        ("one.crt", "one.key", verify("broken.pem"), "client CA"),
    ] {
        let error = load(certificate, key, &more).unwrap_err();
        assert!(error.contains(part) && !error.contains('\n'), "{certificate} {key}: {error}");
    }
    fs::set_permissions(dir.0.join("one.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = load("one.crt", "one.key", "").unwrap_err();
    assert!(error.contains("has mode 0644"), "{error}");
}

/// Fault 41: from each state to each other, by a reload. What was guarded stays guarded unless it is said in a word.
#[test]
fn a_reload_never_loosens() {
    let dir = Dir::new("loosen");
    dir.certificate("one");
    let token = dir.write("token", "0123456789abcdef");
    let hash = bcrypt::hash("pw", 4).unwrap();
    let (web, tls) = (dir.0.join("web.yml"), "tls_server_config: {cert_file: one.crt, key_file: one.key");
    let verify = format!("{tls}, client_ca_file: one.crt, client_auth_type: RequireAndVerifyClientCert");
    let users = |names: &[&str]| Credentials {
        basic_auth_users: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Credentials::default()
    };
    let texts = [
        String::new(),
        "# nothing".to_owned(),
        format!("basic_auth_users: {{u: {hash}}}"),
        format!("{tls}}}"),
        format!("{tls}}}\nbasic_auth_users: {{u: {hash}}}"),
        format!("{verify}}}"),
        format!("{verify}, client_allowed_sans: [a]}}\nbasic_auth_users: {{u: {hash}}}"),
    ];
    let accesses = [
        Access::default(),
        tokens(&[&token], &[]),
        Access { tenants: [("a".to_owned(), users(&["u"]))].into(), ..Access::default() },
        Access { operators: users(&["u"]), ..Access::default() },
    ];
    let level = |settings: &WebConfigFile, access: &Access| Guard::of(settings, access);
    let (mut refused, mut accepted) = (0, 0);
    for (from_text, from) in texts.iter().flat_map(|text| accesses.iter().map(move |access| (text, access))) {
        for (to_text, to) in texts.iter().flat_map(|text| accesses.iter().map(move |access| (text, access))) {
            dir.write("web.yml", from_text);
            let mut watched = AuthFiles::load(Some(&web), from).unwrap();
            let before = level(&watched.in_force.settings, &watched.in_force.access);
            dir.write("web.yml", to_text);
            let wanted = level(&read_settings(Some(&web)).unwrap(), to);
            let problems = watched.reload(to);
            let after = level(&watched.in_force.settings, &watched.in_force.access);
            assert_eq!(before.lost_in(after), None, "{before:?} became {after:?}");
            let policy = watched.authenticator().policy();
            assert_eq!((policy.requires_credentials(), policy.tls().is_some()), (after.0[0], after.0[1]));
            assert_eq!(
                problems.is_empty(),
                before.lost_in(wanted).is_none(),
                "{before:?} {wanted:?} {problems:?}"
            );
            if problems.is_empty() {
                accepted += 1;
                assert_eq!(after, wanted);
            } else {
                refused += 1;
            }
        }
    }
    assert!(refused > 100 && accepted > 100, "{refused} {accepted}");
    // Said in a word it opens.
    dir.write("web.yml", &texts[6]);
    let mut watched = AuthFiles::load(Some(&web), &accesses[2]).unwrap();
    dir.write("web.yml", "");
    assert!(watched.reload(&Access { mode: Some(Mode::Open), ..Access::default() }).is_empty());
    assert_eq!(reader(&watched, ""), Some(Reader::Operator));
    assert!(watched.authenticator().policy().tls().is_none());
}

/// Fault 41: a file that is cut anywhere, emptied or gone.
#[test]
fn a_cut_web_configuration_opens_nothing() {
    let dir = Dir::new("cut");
    dir.certificate("one");
    let hash = bcrypt::hash("pw", 4).unwrap();
    let text = format!(
        "tls_server_config:\n  cert_file: one.crt\n  key_file: one.key\nbasic_auth_users:\n  u: \"{hash}\"\n  v: \"{hash}\"\n"
    );
    let web = dir.write("web.yml", &text);
    let mut watched = AuthFiles::load(Some(&web), &Access::default()).unwrap();
    for end in (0..text.len()).rev() {
        fs::write(&web, &text[..end]).unwrap();
        watched.reload_files();
        let policy = watched.authenticator().policy();
        assert!(policy.requires_credentials() && policy.tls().is_some(), "cut after {end} bytes");
        assert_eq!(reader(&watched, ""), None);
    }
    fs::remove_file(&web).unwrap();
    assert!(watched.changed());
    assert_eq!(watched.reload_files().len(), 1);
    assert!(watched.authenticator().policy().requires_credentials());
}

/// Fault 42: a token goes with its file, by itself.
#[test]
fn a_deleted_token_is_revoked() {
    let dir = Dir::new("revoked");
    let one = dir.write("one", "0123456789abcdef");
    let two = dir.write("two", "second-token-0000");
    let web = dir.write("web.yml", "http_server_config: {http2: false}");
    let access = tokens(&[&one], &[&two]);
    let mut watched = AuthFiles::load(Some(&web), &access).unwrap();
    fs::remove_file(&one).unwrap();
    // What else is broken does not hold it back.
    fs::write(&web, "tls_server_config: [").unwrap();
    assert!(watched.changed());
    let problems = watched.reload_files();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().any(|problem| problem.to_string().contains("cannot read bearer token")));
    assert_eq!(reader(&watched, "Bearer 0123456789abcdef"), None);
    assert_eq!(reader(&watched, "Bearer second-token-0000"), Some(a()));
    // Nor a configuration that names it no more, and is not taken.
    assert!(!watched.reload(&Access::default()).is_empty());
    fs::remove_file(&two).unwrap();
    assert!(watched.changed());
    watched.reload_files();
    assert_eq!(reader(&watched, "Bearer second-token-0000"), None);
    assert_eq!(reader(&watched, ""), None, "without any it is not open");
    dir.write("two", "third-token-00000");
    assert!(watched.changed());
    watched.reload_files();
    assert_eq!(reader(&watched, "Bearer third-token-00000"), Some(a()));
}

#[test]
fn a_mode_is_kept_to() {
    let dir = Dir::new("mode");
    let token = dir.write("token", "0123456789abcdef");
    let load = |access: Access| AuthFiles::load(None, &access).map_err(|error| error.to_string());
    let error = load(Access { mode: Some(Mode::Guarded), ..Access::default() }).unwrap_err();
    assert!(error.contains("there are no credentials"), "{error}");
    let error = load(Access { mode: Some(Mode::Open), ..tokens(&[&token], &[]) }).unwrap_err();
    assert!(error.contains("there are credentials"), "{error}");
    assert!(load(Access { mode: Some(Mode::Guarded), ..tokens(&[&token], &[]) }).is_ok());
    assert!(load(Access { mode: Some(Mode::Open), ..Access::default() }).is_ok());
    // Said by a reload to an open agent, it closes it; saying less does not open it again.
    let mut watched = load(Access::default()).unwrap();
    assert_eq!(reader(&watched, ""), Some(Reader::Operator));
    assert_eq!(watched.reload(&Access { mode: Some(Mode::Guarded), ..Access::default() }).len(), 1);
    assert_eq!(reader(&watched, ""), None);
    let problems = watched.reload(&Access::default());
    assert!(problems[0].to_string().contains("everyone could read everything"), "{problems:?}");
    assert_eq!(reader(&watched, ""), None);
    assert!(watched.reload(&Access { mode: Some(Mode::Open), ..Access::default() }).is_empty());
    assert_eq!(reader(&watched, ""), Some(Reader::Operator));
}
