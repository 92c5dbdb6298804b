//! In: an X.509 certificate in DER whose chain has been verified; out: the names it carries. Verifies nothing and trusts no
//! length in it.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Names beyond this many are not looked at.
const MAX_NAMES: usize = 256;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
/// `commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// `subjectAltName`, 2.5.29.17.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// What a certificate calls its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names, e-mail addresses, URIs and IP addresses of the subject's alternative names, as text.
    pub alternative: Vec<String>,
    /// `CN=` and each common name of the subject.
    pub common: Vec<String>,
}

impl Names {
    /// All of them as configuration writes them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.alternative.iter().chain(&self.common).map(String::as_str)
    }
}

/// The names in a certificate; none if it is not one.
pub(super) fn names(certificate: &[u8]) -> Names {
    let mut names = Names::default();
    let mut body =
        Der(certificate).take(SEQUENCE).and_then(|mut outer| outer.take(SEQUENCE)).unwrap_or(Der(&[]));
    // Version (tagged), serial, algorithm, issuer, validity, then the subject, its key, and what is tagged.
    body.take(0xa0);
    for _ in 0..4 {
        body.next();
    }
    if let Some(subject) = body.take(SEQUENCE) {
        common_names(subject, &mut names.common);
    }
    body.next();
    while let Some((tag, field)) = body.next() {
        if tag == 0xa3
            && let Some(extensions) = Der(field).take(SEQUENCE)
        {
            alternative_names(extensions, &mut names.alternative);
        }
    }
    names
}

fn common_names(mut subject: Der<'_>, found: &mut Vec<String>) {
    while let Some(mut set) = subject.take(SET) {
        while let Some(mut attribute) = set.take(SEQUENCE) {
            if attribute.take(OID).is_some_and(|oid| oid.0 == COMMON_NAME)
                && let Some((_, value)) = attribute.next()
                && let Some(name) = text(value)
                && found.len() < MAX_NAMES
            {
                found.push(format!("CN={name}"));
            }
        }
    }
}

fn alternative_names(mut extensions: Der<'_>, found: &mut Vec<String>) {
    while let Some(mut extension) = extensions.take(SEQUENCE) {
        if extension.take(OID).is_none_or(|oid| oid.0 != ALTERNATIVE_NAMES) {
            continue;
        }
        // Whether it is critical, if that is said.
        extension.take(0x01);
        let Some(mut list) = extension.take(OCTETS).and_then(|mut octets| octets.take(SEQUENCE)) else {
            continue;
        };
        while let Some((tag, value)) = list.next() {
            let name = match tag {
                // rfc822Name, dNSName, uniformResourceIdentifier, iPAddress.
                0x81 | 0x82 | 0x86 => text(value),
                0x87 => address(value),
                _ => None,
            };
            if found.len() < MAX_NAMES {
                found.extend(name);
            }
        }
    }
}

/// ASCII and UTF-8 strings; other kinds of string are no names here, nor is what holds control characters.
fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).to_string())
}

/// A run of DER elements.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element if it has this tag; else nothing is passed.
    fn take(&mut self, tag: u8) -> Option<Der<'a>> {
        if self.0.first() != Some(&tag) {
            return None;
        }
        self.next().map(|(_, content)| Der(content))
    }

    /// The next element: tag and content. Nothing at the end, or if its length leads beyond it.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            // Four bytes of length are more than any certificate needs.
            0x81..=0x84 => {
                let (bytes, after) = rest.split_at_checked(usize::from(first - 0x80))?;
                rest = after;
                bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common: &str) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned(), "10.0.0.7".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Acme");
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names.extend([
            SanType::URI("spiffe://cluster/ns/a".try_into().unwrap()),
            SanType::Rfc822Name("ops@a.example".try_into().unwrap()),
            SanType::IpAddress("::1".parse().unwrap()),
        ]);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn every_kind_of_name() {
        let names = names(&certificate("prometheus"));
        assert_eq!(names.common, ["CN=prometheus"]);
        let expected = ["a.example", "10.0.0.7", "spiffe://cluster/ns/a", "ops@a.example", "::1"];
        assert_eq!(names.alternative, expected);
        assert_eq!(names.iter().count(), 6);
    }

    #[test]
    fn control_characters_are_no_names() {
        assert_eq!(names(&certificate("a\nb")).common, [""; 0]);
        assert_eq!(text(b""), None);
        assert_eq!(text(b"a\0"), None);
    }

    #[test]
    fn what_is_cut_or_changed_is_no_panic() {
        let whole = certificate("x");
        for length in 0..whole.len() {
            names(&whole[..length]);
        }
        for at in 0..whole.len() {
            for value in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                names(&broken);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(names(&bytes).iter().count() <= 2 * MAX_NAMES);
        }
    }
}
