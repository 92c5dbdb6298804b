//! Real paths of each runtime, hostile ones, and bounds on whatever comes out.

use proptest::prelude::*;

use super::*;

const ID: &str = "4c01db0b339c8c3cf46d1fe73ac87e97ba09fd9b9a3d7d2cf4b1ff2f84a9e3b1";
const ID2: &str = "9d3f0e6a1b2c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6";
const UID: &str = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";
const UID_: &str = "0f859f0d_7d3f_4e6a_9cf2_6b3e5a6d2c11";
const HASH: &str = "d0d64bd62a4ec3a5d5a3dc1a8c1ab8a4";

fn facts(path: &str) -> CgroupFacts {
    CgroupFacts::recognise(path.as_bytes())
}

#[test]
fn units_and_slices() {
    for (path, kind, unit, slice) in [
        ("/", Kind::Root, None, None),
        ("", Kind::Root, None, None),
        ("///", Kind::Root, None, None),
        ("/init.scope", Kind::Unit, Some("init.scope"), None),
        ("/system.slice", Kind::Slice, None, Some("system.slice")),
        ("/system.slice/nginx.service", Kind::Unit, Some("nginx.service"), Some("system.slice")),
        ("/system.slice/nginx.service/worker", Kind::Unit, Some("nginx.service"), Some("system.slice")),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            Kind::Unit,
            Some("getty@tty1.service"),
            Some("system-getty.slice"),
        ),
        ("/system.slice/dev-hugepages.mount", Kind::Unit, Some("dev-hugepages.mount"), Some("system.slice")),
        ("/system.slice/dbus.socket", Kind::Unit, Some("dbus.socket"), Some("system.slice")),
        (
            "/payments.slice/payments-api.slice/api.service",
            Kind::Unit,
            Some("api.service"),
            Some("payments-api.slice"),
        ),
        ("/batch/job-17", Kind::Other, None, None),
        ("/.service", Kind::Other, None, None),
        ("/.slice/.scope", Kind::Other, None, None),
    ] {
        let facts = facts(path);
        assert_eq!(
            (facts.kind, facts.unit.as_deref(), facts.slice.as_deref()),
            (kind, unit, slice),
            "{path}"
        );
        assert_eq!(
            (facts.container_id, facts.pod_uid, facts.uid, facts.runtime),
            (None, None, None, None),
            "{path}"
        );
    }
}

#[test]
fn users() {
    for (path, kind, unit, uid, session) in [
        ("/user.slice", Kind::Slice, None, None, None),
        ("/user.slice/user-1000.slice", Kind::Slice, None, Some(1000), None),
        (
            "/user.slice/user-1000.slice/session-3.scope",
            Kind::Session,
            Some("session-3.scope"),
            Some(1000),
            Some("3"),
        ),
        (
            "/user.slice/user-0.slice/session-c1.scope",
            Kind::Session,
            Some("session-c1.scope"),
            Some(0),
            Some("c1"),
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service",
            Kind::UserUnit,
            Some("user@1000.service"),
            Some(1000),
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/init.scope",
            Kind::UserUnit,
            Some("init.scope"),
            Some(1000),
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
            Kind::UserUnit,
            Some("foo.service"),
            Some(1000),
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-4242.scope",
            Kind::UserUnit,
            Some("app-gnome-firefox-4242.scope"),
            Some(1000),
            None,
        ),
        // A user's own unit cannot pose as a session, nor a slice elsewhere as a user.
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/session-9.scope",
            Kind::UserUnit,
            Some("session-9.scope"),
            Some(1000),
            None,
        ),
        ("/system.slice/user-1001.slice/x.service", Kind::Unit, Some("x.service"), None, None),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/user-0.slice",
            Kind::Slice,
            Some("user@1000.service"),
            Some(1000),
            None,
        ),
        ("/user.slice/user-4294967296.slice", Kind::Slice, None, None, None),
        ("/user.slice/user-+7.slice", Kind::Slice, None, None, None),
        ("/user.slice/user-007.slice", Kind::Slice, None, None, None),
        ("/user.slice/user-.slice", Kind::Slice, None, None, None),
    ] {
        let facts = facts(path);
        assert_eq!(
            (facts.kind, facts.unit.as_deref(), facts.uid, facts.session.as_deref()),
            (kind, unit, uid, session),
            "{path}"
        );
    }
}

#[test]
fn containers() {
    let u = "/user.slice/user-1000.slice/user@1000.service";
    for (path, runtime) in [
        (format!("/system.slice/docker-{ID}.scope"), Some(Runtime::Docker)),
        (format!("/docker/{ID}"), Some(Runtime::Docker)),
        (format!("/custom.slice/docker-{ID}.scope"), Some(Runtime::Docker)),
        (format!("/ecs/{HASH}/{ID}"), None),
        (format!("/tenant-parent/{ID}"), None),
        (format!("{u}/user.slice/docker-{ID}.scope"), Some(Runtime::Docker)),
        (format!("/system.slice/nerdctl-{ID}.scope"), Some(Runtime::Containerd)),
        (format!("/system.slice/cri-containerd-{ID}.scope"), Some(Runtime::Containerd)),
        (format!("/machine.slice/libpod-{ID}.scope"), Some(Runtime::Podman)),
        (format!("/machine.slice/libpod-{ID}.scope/container"), Some(Runtime::Podman)),
        (format!("/machine.slice/machine-libpod_pod_{ID2}.slice/libpod-{ID}.scope"), Some(Runtime::Podman)),
        (format!("{u}/user.slice/libpod-{ID}.scope/container"), Some(Runtime::Podman)),
        (format!("/libpod_parent/libpod-{ID}"), Some(Runtime::Podman)),
        (format!("/libpod_parent/{ID}/libpod-{ID2}"), Some(Runtime::Podman)),
        // The outermost container is the workload: kind nodes, docker in docker, systemd inside.
        (format!("/docker/{ID}/docker/{ID2}"), Some(Runtime::Docker)),
        (format!("/docker/{ID}/kubelet/kubepods/burstable/pod{UID}/{ID2}"), Some(Runtime::Docker)),
        (format!("/system.slice/docker-{ID}.scope/kubepods.slice/crio-{ID2}.scope"), Some(Runtime::Docker)),
        (format!("/system.slice/docker-{ID}.scope/system.slice/nginx.service"), Some(Runtime::Docker)),
    ] {
        let facts = facts(&path);
        assert_eq!(
            (facts.kind, facts.runtime, facts.container_id.as_deref()),
            (Kind::Container, runtime, Some(ID)),
            "{path}"
        );
        assert_eq!((facts.pod_uid.as_deref(), facts.container_id_short()), (None, Some(&ID[..12])), "{path}");
        assert_eq!(facts.uid, path.starts_with(u).then_some(1000), "{path}");
    }
}

#[test]
fn not_containers() {
    for path in [
        format!("/system.slice/crio-conmon-{ID}.scope"),
        format!("/machine.slice/libpod-conmon-{ID}.scope"),
        format!("/libpod_parent/libpod-conmon-{ID}"),
        format!("/system.slice/docker-{}.scope", &ID[..63]),
        format!("/system.slice/docker-{}.scope", ID.to_uppercase()),
        format!("/system.slice/docker-{ID}0.scope"),
        format!("/system.slice/docker{ID}.scope"),
        format!("/docker/{}", &ID[..12]),
        format!("/system.slice/containerd.service/{ID}"),
        "/system.slice/docker.service".into(),
        "/docker/buildkit".into(),
    ] {
        let facts = facts(&path);
        assert_eq!((facts.container_id, facts.runtime), (None, None), "{path}");
        assert_ne!(facts.kind, Kind::Container, "{path}");
    }
}

#[test]
fn pods() {
    let (be, bu, gu) = (Qos::BestEffort, Qos::Burstable, Qos::Guaranteed);
    let (cd, co) = (Some(Runtime::Containerd), Some(Runtime::Crio));
    for (path, uid, qos, container) in [
        (format!("/kubepods/pod{UID}/{ID}"), UID, gu, cd),
        (format!("/kubepods/burstable/pod{UID}/{ID}"), UID, bu, cd),
        (format!("/kubepods/besteffort/pod{UID}/{ID}"), UID, be, cd),
        (format!("/kubepods/burstable/pod{UID}/crio-{ID}"), UID, bu, co),
        (format!("/kubepods/burstable/pod{HASH}/{ID}"), HASH, bu, cd),
        (format!("/kubelet/kubepods/burstable/pod{UID}/{ID}"), UID, bu, cd),
        (format!("/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope"), UID, gu, cd),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope"
            ),
            UID,
            bu,
            cd,
        ),
        (
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{ID}.scope"
            ),
            UID,
            be,
            co,
        ),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/crio-{ID}.scope"
            ),
            HASH,
            bu,
            co,
        ),
        (
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope"
            ),
            UID,
            bu,
            cd,
        ),
        (format!("/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}"), UID, bu, cd),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/docker-{ID}.scope"
            ),
            UID,
            bu,
            Some(Runtime::Docker),
        ),
    ] {
        let facts = facts(&path);
        assert_eq!((facts.pod_uid.as_deref(), facts.qos), (Some(uid), Some(qos)), "{path}");
        assert_eq!(
            (facts.kind, facts.runtime, facts.container_id.as_deref()),
            (Kind::Container, container, Some(ID)),
            "{path}"
        );
    }
    // The pod's own cgroup, and CRI-O's monitor inside it, which is of the pod but not a container.
    let own = facts(&format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice"));
    assert_eq!((own.kind, own.pod_uid.as_deref(), own.container_id), (Kind::Pod, Some(UID), None));
    let own = facts(&format!("/kubepods/pod{UID}"));
    assert_eq!((own.kind, own.pod_uid.as_deref(), own.qos), (Kind::Pod, Some(UID), Some(gu)));
    let monitor = facts(&format!(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-conmon-{ID}.scope"
    ));
    assert_eq!(
        (monitor.kind, monitor.pod_uid.as_deref(), monitor.container_id),
        (Kind::Unit, Some(UID), None)
    );
    let monitor = facts(&format!("/kubepods/burstable/pod{UID}/crio-conmon-{ID}"));
    assert_eq!((monitor.kind, monitor.container_id), (Kind::Other, None));
    // No pods outside kubepods, and no malformed UIDs.
    for path in [
        format!("/pod{UID}/{ID}"),
        format!("/system.slice/x-pod{UID_}.slice/y.service"),
        format!("/kubepods/pod{}/x", &UID[..35]),
        format!("/kubepods/pod{}/x", UID.replace('-', "x")),
        "/kubepods/burstable".into(),
        "/kubepods.slice/kubepods-burstable-pod.slice".into(),
    ] {
        assert_eq!(facts(&path).pod_uid, None, "{path}");
    }
}

#[test]
fn machines() {
    for (path, runtime, machine) in [
        ("/machine.slice/systemd-nspawn@web.service", Some(Runtime::Nspawn), "web"),
        (
            "/machine.slice/systemd-nspawn@web\\x2d1.service/payload/system.slice/a.service",
            Some(Runtime::Nspawn),
            "web-1",
        ),
        ("/machine.slice/machine-web.scope", Some(Runtime::Nspawn), "web"),
        ("/machine.slice/machine-web\\x2d1.scope/payload", Some(Runtime::Nspawn), "web-1"),
        ("/machine.slice/machine-qemu\\x2d3\\x2ddebian.scope/libvirt/vcpu0", None, "qemu-3-debian"),
        ("/machine.slice/machine-lxc\\x2d77\\x2dbox.scope", Some(Runtime::Lxc), "lxc-77-box"),
        ("/lxc.payload.web", Some(Runtime::Lxc), "web"),
        ("/lxc.payload.web/system.slice/nginx.service", Some(Runtime::Lxc), "web"),
        ("/lxc.payload/web/init.scope", Some(Runtime::Lxc), "web"),
        ("/lxc/101/ns", Some(Runtime::Lxc), "101"),
        ("/machine.slice/machine-bad\\xzz\\x.scope", Some(Runtime::Nspawn), "bad\\xzz\\x"),
    ] {
        let facts = facts(path);
        assert_eq!(
            (facts.kind, facts.runtime, facts.machine.as_deref()),
            (Kind::Machine, runtime, Some(machine)),
            "{path}"
        );
    }
    for path in ["/lxc.monitor.web", "/lxc.payload.", "/system.slice/machine-x.scope", "/lxc", "/a/lxc/b"] {
        assert_eq!(facts(path).machine, None, "{path}");
    }
}

#[test]
fn hostile_names() {
    let facts = CgroupFacts::recognise(b"/system.slice/a\"b\n\xff.service");
    assert_eq!(facts.unit.as_deref(), Some("a\"b\n\u{fffd}.service"));
    assert_eq!(facts.path, b"/system.slice/a\"b\n\xff.service");
    assert_eq!(printable(&facts.path), "/system.slice/a\\\"b\\n\u{fffd}.service");

    let long = [&b"/"[..], &[b'x'; 255]].concat().repeat(40);
    let cut = CgroupFacts::recognise(&long).path;
    let other = CgroupFacts::recognise(&[&long[..], b"y"].concat()).path;
    assert_eq!((cut.len(), other.len()), (PATH_BYTES, PATH_BYTES));
    assert_ne!(cut, other, "two long paths must not merge");

    assert_eq!(CgroupFacts::recognise(b"relative/x").path, b"/relative/x");
    assert_eq!(CgroupFacts::recognise(b"/").path, b"/");
    assert_eq!(CgroupFacts::recognise(b"").path, b"/");
    assert_eq!(CgroupFacts::recognise(b"/a/b").top(), b"a");
    assert_eq!(CgroupFacts::recognise(b"/").top(), b"");
}

fn component() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "system.slice",
        "user.slice",
        "user-1000.slice",
        "user@1000.service",
        "session-1.scope",
        "docker",
        "kubepods",
        "burstable",
        "pod",
        "kubepods-pod",
        ".slice",
        ".scope",
        ".service",
        "machine-",
        "\\x2d",
        "\\x",
        "lxc.payload.",
        "lxc",
        "libpod-",
        "crio-conmon-",
        ":cri-containerd:",
        ":",
        "-pod",
        ID,
        UID,
        UID_,
        HASH,
        "\u{e9}",
        "\n",
        "\"",
    ];
    let piece = prop_oneof![
        proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..300),
    ];
    proptest::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn nothing_panics_and_all_is_bounded(components in proptest::collection::vec(component(), 0..24)) {
        let path = components.join(&b'/');
        let facts = CgroupFacts::recognise(&path);
        prop_assert!(facts.path.len() <= PATH_BYTES && facts.path[0] == b'/');
        for field in [&facts.unit, &facts.slice, &facts.session, &facts.machine].into_iter().flatten() {
            prop_assert!(field.len() <= FIELD_BYTES);
        }
        if let Some(id) = &facts.container_id {
            prop_assert!(id.len() == 64 && is_hex(id.as_bytes()));
        }
        if let Some(uid) = &facts.pod_uid {
            prop_assert!(uid.len() == 36 || uid.len() == 32);
        }
        prop_assert_eq!(facts.kind == Kind::Container, facts.container_id.is_some());
        prop_assert_eq!(facts.kind == Kind::Machine, facts.machine.is_some());
        prop_assert!(printable(&path).len() <= 256 * 10 + 3);
    }
}
