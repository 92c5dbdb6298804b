//! Tables of credentials and whom they stand for.

use super::*;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn tenant(name: &str) -> Reader {
    reader_of(Some(name))
}

fn readers() -> Readers {
    let mut readers = Readers::default();
    readers.require_credentials();
    for (token, reader) in [
        ("operator-token-0", Reader::Operator),
        ("tenant-a-token-0", tenant("a")),
        ("tenant-b-token-0", tenant("b")),
    ] {
        assert!(readers.add_token(token, reader));
    }
    let hash = |password| bcrypt::hash(password, 4).unwrap();
    readers.add_user("ops".into(), hash("opspw"), Reader::Operator);
    readers.add_user("alice".into(), hash("alicepw"), tenant("a"));
    readers.add_user("with:no".into(), hash("x"), tenant("a"));
    for (name, reader) in [
        ("CN=ops", Reader::Operator),
        ("a.example", tenant("a")),
        ("CN=a", tenant("a")),
        ("b.example", tenant("b")),
    ] {
        readers.add_certificate(name.into(), reader);
    }
    readers
}

fn identify(
    readers: &Readers,
    authorization: &[&str],
    certificate: Option<&CertificateNames>,
) -> Result<Reader, Refusal> {
    let mut headers = HeaderMap::new();
    for value in authorization {
        headers.append(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(readers.identify(&Passwords::new(), &headers, certificate, PEER))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn authorization_headers() {
    let readers = readers();
    for (header, expected) in [
        ("Bearer operator-token-0".to_owned(), Ok(Reader::Operator)),
        ("Bearer tenant-a-token-0".into(), Ok(tenant("a"))),
        ("bEaReR   tenant-b-token-0".into(), Ok(tenant("b"))),
        ("Bearer tenant-a-token-1".into(), Err(Refusal::Token)),
        ("Bearer tenant-a-token-".into(), Err(Refusal::Token)),
        ("Bearer tenant-a-token-0x".into(), Err(Refusal::Token)),
        ("Bearer tenant-a-token-0 tenant-b-token-0".into(), Err(Refusal::Token)),
        ("Bearer tenant-a-token-0,tenant-b-token-0".into(), Err(Refusal::Token)),
        ("Bearer TENANT-A-TOKEN-0".into(), Err(Refusal::Token)),
        ("Bearer ".into(), Err(Refusal::Malformed)),
        ("Bearer".into(), Err(Refusal::Malformed)),
        ("tenant-a-token-0".into(), Err(Refusal::Malformed)),
        ("Digest username=a".into(), Err(Refusal::Malformed)),
        (String::new(), Err(Refusal::Malformed)),
        (basic("ops", "opspw"), Ok(Reader::Operator)),
        (basic("alice", "alicepw"), Ok(tenant("a"))),
        (basic("alice", "alicepw").replace("Basic", "BASIC"), Ok(tenant("a"))),
        (basic("alice", "opspw"), Err(Refusal::Password)),
        (basic("alice", ""), Err(Refusal::Password)),
        (basic("Alice", "alicepw"), Err(Refusal::Password)),
        (basic("alice\0", "alicepw"), Err(Refusal::Password)),
        (basic("nobody", "alicepw"), Err(Refusal::Password)),
        // A name with a colon cannot be told from a password.
        (basic("with:no", "x"), Err(Refusal::Password)),
        (format!("Basic {}", STANDARD.encode("alice")), Err(Refusal::Malformed)),
        (format!("Basic {}", STANDARD.encode(b"\xff:x")), Err(Refusal::Malformed)),
        ("Basic ?".into(), Err(Refusal::Malformed)),
    ] {
        assert_eq!(identify(&readers, &[&header], None), expected, "{header}");
    }
    assert_eq!(identify(&readers, &[], None), Err(Refusal::Missing));
    let twice = ["Bearer tenant-a-token-0", "Bearer tenant-b-token-0"];
    assert_eq!(identify(&readers, &twice, None), Err(Refusal::Malformed));
}

#[test]
fn certificates() {
    let readers = readers();
    let names = |alternative: &[&str], common: &[&str]| CertificateNames {
        alternative: alternative.iter().map(|name| (*name).to_owned()).collect(),
        common: common.iter().map(|name| format!("CN={name}")).collect(),
    };
    for (names, expected) in [
        (names(&["a.example"], &[]), Ok(tenant("a"))),
        (names(&["x.example", "a.example"], &["a", "x"]), Ok(tenant("a"))),
        (names(&[], &["ops"]), Ok(Reader::Operator)),
        // An alternative name is no common name, and the other way round.
        (names(&["ops"], &[]), Err(Refusal::Certificate)),
        (names(&[], &["a.example"]), Err(Refusal::Certificate)),
        (names(&["a.example", "b.example"], &[]), Err(Refusal::Certificate)),
        (names(&["a.example"], &["ops"]), Err(Refusal::Certificate)),
        (names(&["A.EXAMPLE"], &[]), Err(Refusal::Certificate)),
        (names(&[], &[]), Err(Refusal::Certificate)),
    ] {
        assert_eq!(identify(&readers, &[], Some(&names)), expected, "{names:?}");
    }
    // What the header says counts alone, also when it is wrong.
    let a = names(&["a.example"], &[]);
    assert_eq!(identify(&readers, &["Bearer tenant-b-token-0"], Some(&a)), Ok(tenant("b")));
    assert_eq!(identify(&readers, &["Bearer wrong-wrong-wrong"], Some(&a)), Err(Refusal::Token));
}

#[test]
fn without_credentials_configured_everybody_is_an_operator() {
    let readers = Readers::default();
    for authorization in [&[][..], &["Bearer x"], &["nonsense", "twice"]] {
        assert_eq!(identify(&readers, authorization, None), Ok(Reader::Operator));
    }
}

#[test]
fn the_same_token_is_taken_once() {
    let mut readers = readers();
    assert!(!readers.add_token("tenant-a-token-0", tenant("b")));
}

#[test]
fn challenges_name_what_would_help() {
    assert_eq!((readers().challenges().len(), Readers::default().challenges().len()), (2, 1));
}

/// Who is not there costs what the dearest user costs. Printed, not judged: machines are noisy.
#[test]
fn unknown_users_cost_the_same() {
    let mut readers = Readers::default();
    readers.require_credentials();
    readers.add_user("cheap".into(), bcrypt::hash("x", 4).unwrap(), tenant("a"));
    readers.add_user("dear".into(), bcrypt::hash("x", 8).unwrap(), tenant("a"));
    assert!(
        readers.dummy.starts_with("$2b$08$") && bcrypt::verify("", &readers.dummy).is_ok_and(|right| !right)
    );
    for user in ["dear", "nobody"] {
        let begun = std::time::Instant::now();
        assert_eq!(identify(&readers, &[&basic(user, "wrong")], None), Err(Refusal::Password));
        println!("{user}: {:?}", begun.elapsed());
    }
}
