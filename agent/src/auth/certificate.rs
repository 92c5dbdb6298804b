//! In: an X.509 certificate in DER whose chain has been verified; out: the names it carries. Verifies nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Names of a kind beyond this many are not looked at.
const MAX_NAMES: usize = 256;

/// What a certificate calls its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// DNS names, e-mail addresses, URIs and IP addresses of the subject's alternative names, as text.
    pub alternative: Vec<String>,
    /// `CN=` and each common name of the subject.
    pub common: Vec<String>,
}

impl CertificateNames {
    /// All of them as configuration writes them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.alternative.iter().chain(&self.common).map(String::as_str)
    }
}

/// The names in a certificate; none if it is not one, alternative ones if they are there twice, or cannot be read.
pub(super) fn names(certificate: &[u8]) -> CertificateNames {
    let Ok(([], certificate)) = X509Certificate::from_der(certificate) else {
        return CertificateNames::default();
    };
    let common = certificate.subject().iter_common_name().filter_map(|name| text(name.as_str().ok()?));
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(
        |name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => text(name),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        },
    );
    CertificateNames {
        alternative: alternative.take(MAX_NAMES).collect(),
        common: common.take(MAX_NAMES).map(|name| format!("CN={name}")).collect(),
    }
}

/// What holds control characters is not a name.
fn text(text: &str) -> Option<String> {
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).into())).ok()
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
        assert_eq!(names(&certificate("admin\0.example")).common, [""; 0]);
        assert_eq!(text(""), None);
        // The other names stay.
        assert_eq!(names(&certificate("a\nb")).alternative.len(), 5);
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
