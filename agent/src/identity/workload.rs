//! In: a cgroup's facts and its tenant; out: the label values of its samples, clean and bounded. Escapes for no format.

use std::sync::Arc;

use super::{CgroupFacts, PodFacts, Verdict, fingerprint};

/// Longest label value, in bytes.
pub const LABEL_BYTES: usize = 128;

/// Values of the workload labels, in the order of [`crate::catalog::family::WORKLOAD_LABELS`]: UTF-8, no control characters,
/// at most [`LABEL_BYTES`] long. Quotes and backslashes are escaped where they are written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// `tenant_id`.
    pub tenant: Arc<str>,
    /// `k8s_namespace`: empty outside Kubernetes.
    pub namespace: Arc<str>,
    /// `pod`: the pod's name, or its UID while the name is not known; else the systemd unit, else the cgroup path.
    pub pod: Arc<str>,
    /// `container`: the container's name in its pod, else twelve digits of the container id, or empty.
    pub container: Arc<str>,
}

impl Workload {
    /// A workload of which only the tenant is known.
    pub fn of_tenant(tenant: &str) -> Self {
        let empty: Arc<str> = "".into();
        Self { tenant: tenant.into(), namespace: empty.clone(), pod: empty.clone(), container: empty }
    }
}

/// The labels of a cgroup, as far as its path and its pod tell. A pod that the path does not name is ignored.
pub fn describe(facts: &CgroupFacts, verdict: &Verdict, pod: Option<&PodFacts<'_>>) -> Workload {
    let tenant = verdict.tenant.clone();
    let id = facts.container_id_short().unwrap_or_default();
    if let Some(known) = pod.filter(|known| known.of(facts)) {
        let container = known.container.map_or_else(|| id.into(), |name| label(name.as_bytes()).into());
        return Workload {
            tenant,
            namespace: label(known.pod.namespace.as_bytes()).into(),
            pod: label(known.pod.name.as_bytes()).into(),
            container,
        };
    }
    let pod = match (&facts.pod_uid, &facts.unit) {
        (Some(uid), _) => label(uid.as_bytes()),
        // Invalid bytes were replaced when the unit was recognised; the path still tells such units apart.
        (None, Some(unit)) if unit.contains(char::REPLACEMENT_CHARACTER) => marked(unit, &facts.path),
        (None, Some(unit)) => label(unit.as_bytes()),
        (None, None) => label(&facts.path),
    };
    Workload { tenant, namespace: "".into(), pod: pod.into(), container: id.into() }
}

/// Makes any bytes a label value. What had to be changed or cut ends in `~` and a fingerprint of the original, so that
/// two names do not become one.
pub fn label(raw: &[u8]) -> String {
    match std::str::from_utf8(raw) {
        Ok(text) if text.len() <= LABEL_BYTES && !text.contains(unprintable) => text.to_owned(),
        Ok(text) => marked(text, raw),
        // No more is kept than this; the rest needs no conversion.
        Err(_) => marked(&String::from_utf8_lossy(&raw[..raw.len().min(LABEL_BYTES)]), raw),
    }
}

/// Control characters, and those that end a line or turn the writing direction in a terminal or browser.
fn unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn marked(text: &str, original: &[u8]) -> String {
    let suffix = format!("~{:016x}", fingerprint(original));
    let mut out = String::with_capacity(LABEL_BYTES);
    for c in text.chars() {
        let c = if unprintable(c) { char::REPLACEMENT_CHARACTER } else { c };
        if out.len() + c.len_utf8() + suffix.len() > LABEL_BYTES {
            break;
        }
        out.push(c);
    }
    out + &suffix
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::pods::{Phase, Pod};

    fn described(path: &[u8]) -> Workload {
        describe(&CgroupFacts::recognise(path), &Verdict::unmatched(), None)
    }

    #[test]
    fn labels_of_workloads() {
        let id = "0123456789abcdef".repeat(4);
        let uid = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";
        for (path, pod, container) in [
            ("/system.slice/nginx.service".to_owned(), "nginx.service", ""),
            (format!("/kubepods/burstable/pod{uid}/{id}"), uid, "0123456789ab"),
            ("/batch/job-17".into(), "/batch/job-17", ""),
            (format!("/system.slice/docker-{id}.scope"), &format!("docker-{id}.scope"), "0123456789ab"),
            ("/".into(), "/", ""),
            ("/system.slice/a\"b\\c.service".into(), "a\"b\\c.service", ""),
        ] {
            let workload = described(path.as_bytes());
            assert_eq!(
                (&*workload.pod, &*workload.container, &*workload.namespace),
                (pod, container, ""),
                "{path}"
            );
            assert_eq!(&*workload.tenant, crate::identity::UNKNOWN);
        }
    }

    fn pod() -> Pod {
        Pod {
            uid: "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11".into(),
            namespace: "shop".into(),
            name: "cart-7\n".into(),
            resource_version: "".into(),
            config_hash: None,
            labels: Box::default(),
            annotations: Box::default(),
            phase: Phase::Running,
            containers: Box::default(),
        }
    }

    #[test]
    fn labels_of_pods() {
        let id = "0123456789abcdef".repeat(4);
        let uid = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";
        let pod = pod();
        let described = |path: String, container| {
            let known = PodFacts { pod: &pod, container, namespace: None };
            let workload =
                describe(&CgroupFacts::recognise(path.as_bytes()), &Verdict::unmatched(), Some(&known));
            [workload.namespace, workload.pod, workload.container].map(|value| value.to_string())
        };
        let name = label(b"cart-7\n");
        assert!(name.starts_with("cart-7\u{fffd}~"), "{name}");
        for (path, container, namespace, pod, expected) in [
            (format!("/kubepods/pod{uid}/{id}"), Some("web"), "shop", &*name, "web"),
            (format!("/kubepods/pod{uid}/{id}"), None, "shop", &name, "0123456789ab"),
            (format!("/kubepods/pod{uid}"), None, "shop", &name, ""),
            // Not this pod's, whoever says so.
            (
                format!("/kubepods/pod{}/{id}", uid.replace('0', "1")),
                Some("web"),
                "",
                &uid.replace('0', "1"),
                "0123456789ab",
            ),
            (format!("/docker/{id}"), Some("web"), "", &format!("/docker/{id}"), "0123456789ab"),
        ] {
            assert_eq!(described(path, container), [namespace, pod, expected].map(str::to_owned));
        }
    }

    #[test]
    fn altered_names_stay_apart() {
        for (a, b) in [
            (&b"/s.slice/x\xff.service"[..], &b"/s.slice/x\xfe.service"[..]),
            (b"/x\n", b"/x\r"),
            (b"/x\xe2\x80\xaey", b"/x\xe2\x80\xady"),
        ] {
            let (a, b) = (described(a).pod, described(b).pod);
            assert_ne!(a, b);
            assert!(!a.contains(unprintable) && a.contains('\u{fffd}') && a.contains('~'), "{a}");
        }
        let long = "/".to_owned() + &"\u{e9}".repeat(120);
        let (a, b) = (label((long.clone() + "a").as_bytes()), label((long + "b").as_bytes()));
        assert_ne!(a, b);
        assert!(a.len() <= LABEL_BYTES && a.starts_with("/\u{e9}\u{e9}"), "{a}");
        assert_eq!(label("x".repeat(LABEL_BYTES).as_bytes()), "x".repeat(LABEL_BYTES));
        assert_eq!(label("x".repeat(LABEL_BYTES + 1).as_bytes()).len(), LABEL_BYTES);
    }

    proptest! {
        #[test]
        fn any_pod_makes_bounded_labels(names in prop::array::uniform3(any::<String>()), long in 0..3_usize) {
            let uid = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";
            let mut names = names;
            names[long] = names[long].repeat(100);
            let pod = Pod { uid: uid.into(), namespace: (*names[0]).into(), name: (*names[1]).into(), ..pod() };
            let known = PodFacts { pod: &pod, container: Some(&names[2]), namespace: None };
            let facts = CgroupFacts::recognise(format!("/kubepods/pod{uid}/{}", "a".repeat(64)).as_bytes());
            let workload = describe(&facts, &Verdict::unmatched(), Some(&known));
            for (value, name) in [workload.namespace, workload.pod, workload.container].iter().zip(&names) {
                prop_assert!(value.len() <= LABEL_BYTES && !value.contains(unprintable), "{value:?}");
                prop_assert!(**value == **name || value.contains('~'));
            }
        }

        #[test]
        fn any_bytes_make_a_bounded_label(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            let value = label(&raw);
            prop_assert!(value.len() <= LABEL_BYTES && !value.contains(unprintable));
            let workload = described(&raw);
            prop_assert!(workload.pod.len() <= LABEL_BYTES && !workload.pod.contains(unprintable));
        }
    }
}
