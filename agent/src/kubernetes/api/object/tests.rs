//! Objects as the API sends them, and as it never should.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn keys() -> Keys {
    Keys::new(&Wanted {
        pod_labels: vec!["app".into(), "missing".into()],
        pod_annotations: vec!["team".into()],
        namespace_labels: vec!["owner".into()],
        namespace_annotations: Vec::new(),
    })
}

fn raw(value: &serde_json::Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("raw")
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

#[test]
fn a_pod_with_every_kind_of_container() {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "cart-1", "namespace": "shop", "uid": "u-1", "resourceVersion": "10",
            "labels": {"app": "cart", "other": "x"}, "annotations": {"team": "blue", "noise": "y"},
            "managedFields": [{"manager": "kubelet"}], "ownerReferences": null,
        },
        "spec": {"nodeName": "n", "containers": [{"name": "main", "image": "i"}]},
        "status": {
            "phase": "Running",
            "initContainerStatuses": [
                {"name": "init", "containerID": format!("containerd://{}", id('1')),
                 "state": {"terminated": {"exitCode": 0, "containerID": format!("containerd://{}", id('1'))}}},
            ],
            "containerStatuses": [
                {"name": "main", "containerID": format!("cri-o://{}", id('3')), "state": {"running": {}},
                 "lastState": {"terminated": {"containerID": format!("cri-o://{}", id('2'))}}},
                {"name": "waiting", "state": {"waiting": {"reason": "ContainerCreating"}}, "containerID": ""},
                {"name": "bare", "containerID": id('4')},
            ],
            "ephemeralContainerStatuses": [{"name": "debug", "containerID": format!("docker://{}", id('5'))}],
        },
    });
    let pod = pod(&raw(&object), &keys()).expect("a pod");
    assert_eq!((&*pod.uid, &*pod.namespace, &*pod.name), ("u-1", "shop", "cart-1"));
    assert_eq!((&*pod.resource_version, pod.phase, pod.config_hash), ("10", Phase::Running, None));
    let pair = |pairs: &[(Arc<str>, Arc<str>)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    };
    assert_eq!(pair(&pod.labels), [("app".to_owned(), "cart".to_owned())]);
    assert_eq!(pair(&pod.annotations), [("team".to_owned(), "blue".to_owned())]);
    let containers: Vec<(&str, &str)> = pod.containers.iter().map(|c| (&c.id[..1], &*c.name)).collect();
    assert_eq!(containers, [("1", "init"), ("3", "main"), ("2", "main"), ("4", "bare"), ("5", "debug")]);
}

#[test]
fn ids_of_containers() {
    for bad in
        ["", "containerd://", "containerd://abc", &id('g'), &id('A'), &format!("{}0", id('1')), "a://b://c"]
    {
        assert_eq!(container_id(bad), None, "{bad:?}");
    }
    assert_eq!(container_id(&format!("anything://{}", id('b'))), Some(&*id('b')));
}

#[test]
fn only_a_mirror_pod_has_the_hash_of_a_configuration() {
    let hash = "0123456789abcdef0123456789abcdef";
    let of = |annotations: serde_json::Value| {
        let metadata = json!({"name": "n", "namespace": "s", "uid": "u", "annotations": annotations});
        pod(&raw(&json!({"metadata": metadata})), &Keys::default()).expect("a pod").config_hash
    };
    assert_eq!(of(json!({CONFIG_HASH: hash, CONFIG_MIRROR: hash})).as_deref(), Some(hash));
    assert_eq!(of(json!({CONFIG_HASH: hash})), None);
    assert_eq!(of(json!({CONFIG_HASH: hash, CONFIG_MIRROR: "other"})), None);
    assert_eq!(of(json!({CONFIG_HASH: "x/../y", CONFIG_MIRROR: "x/../y"})), None);
}

#[test]
fn what_does_not_identify_a_pod_is_none() {
    let whole = json!({"name": "n", "namespace": "s", "uid": "u"});
    assert!(pod(&raw(&json!({"metadata": whole, "status": null})), &keys()).is_some());
    for (key, value) in [
        ("name", json!("")),
        ("name", json!("n".repeat(254))),
        ("name", json!(7)),
        ("uid", json!("")),
        ("uid", json!(null)),
        ("uid", json!("u".repeat(129))),
        ("namespace", json!(null)),
        ("labels", json!([1])),
    ] {
        let mut broken = whole.clone();
        broken[key] = value;
        assert_eq!(pod(&raw(&json!({"metadata": broken})), &keys()), None, "{broken}");
    }
    for other in [json!(null), json!(1), json!([]), json!({}), json!({"metadata": {}})] {
        assert_eq!(pod(&raw(&other), &keys()), None, "{other}");
        assert_eq!(namespace(&raw(&other), &keys()), None, "{other}");
    }
}

#[test]
fn huge_values_count_as_absent_and_many_containers_are_bounded() {
    let metadata = json!({
        "name": "n", "namespace": "s", "uid": "u",
        "labels": {"app": "x".repeat(1 << 20), "other": "y".repeat(1 << 20)},
        "annotations": {"team": "t".repeat(VALUE_BYTES)},
    });
    let statuses: Vec<serde_json::Value> =
        (0..1000).map(|n| json!({"name": format!("c{n}"), "containerID": format!("x://{n:064x}")})).collect();
    let object = json!({"metadata": metadata, "status": {"containerStatuses": statuses}});
    let pod = pod(&raw(&object), &keys()).expect("a pod");
    assert!(pod.labels.is_empty());
    assert_eq!(pod.annotations.len(), 1);
    assert_eq!(pod.containers.len(), CONTAINERS);
}

#[test]
fn a_namespace_whole_or_cut_down() {
    let metadata = json!({"name": "shop", "labels": {"owner": "acme", "x": "y"}, "annotations": null});
    for object in [
        json!({"metadata": metadata}),
        json!({"metadata": metadata, "spec": {"finalizers": []}, "status": {}}),
    ] {
        let namespace = namespace(&raw(&object), &keys()).expect("a namespace");
        assert_eq!((&*namespace.name, namespace.labels.len(), namespace.annotations.len()), ("shop", 1, 0));
    }
}

#[test]
fn versions_are_opaque_and_bounded() {
    let of =
        |version: serde_json::Value| super::version(&raw(&json!({"metadata": {"resourceVersion": version}})));
    assert_eq!(of(json!("not a number")).as_deref(), Some("not a number"));
    assert_eq!(of(json!("")), None);
    assert_eq!(of(json!(5)), None);
    assert_eq!(of(json!("9".repeat(VERSION_BYTES + 1))), None);
}

proptest! {
    #[test]
    fn any_text_is_an_object_or_none(text in any::<String>()) {
        if let Ok(object) = serde_json::from_str::<Box<RawValue>>(&text) {
            let _ = pod(&object, &keys());
            let _ = namespace(&object, &keys());
        }
    }
}
