//! Which source runs, and what a handle does when its source is none of the API.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::config::{Kubernetes, PodSource};

fn resolve(pods: PodSource, node: Option<&str>, environment: &Environment) -> Result<Option<Source>, String> {
    let config = Kubernetes { pods, node_name: node.map(str::to_owned), ..Kubernetes::default() };
    Settings::resolve(&config, environment)
        .map(|settings| settings.map(|settings| settings.source))
        .map_err(|error| error.to_string())
}

#[test]
fn the_source_follows_configuration_and_surroundings() {
    let nowhere = Environment::default();
    let inside = Environment { node_name: Some("n1".into()), service_account: true };
    let nameless = Environment { node_name: None, service_account: true };
    assert_eq!(resolve(PodSource::Off, Some("n"), &inside), Ok(None));
    assert_eq!(resolve(PodSource::Auto, Some("n"), &nowhere), Ok(None));
    assert_eq!(resolve(PodSource::Auto, None, &nameless), Ok(None));
    let directories = Source::Directories { path: PathBuf::from("/var/log/pods") };
    assert_eq!(resolve(PodSource::Directories, None, &nowhere), Ok(Some(directories)));
    if cfg!(feature = "kubernetes") {
        let api = |node: &str| Ok(Some(Source::Api { node: node.into(), kubeconfig: None }));
        assert_eq!(resolve(PodSource::Auto, None, &inside), api("n1"));
        assert_eq!(resolve(PodSource::Api, Some("n2"), &inside), api("n2"));
        let error = resolve(PodSource::Api, None, &nowhere).expect_err("no node");
        assert!(
            error.contains("set `kubernetes.node_name`, or the environment variable NODE_NAME"),
            "{error}"
        );
        let hostile = Environment { node_name: Some("n,x=y".into()), service_account: true };
        let error = resolve(PodSource::Api, None, &hostile).expect_err("no name");
        assert!(error.starts_with("NODE_NAME: `n,x=y` is no node's name"), "{error}");
    } else {
        let error = resolve(PodSource::Api, Some("n"), &inside).expect_err("not built");
        assert!(error.contains("use one with the cargo feature `kubernetes`"), "{error}");
        assert_eq!(resolve(PodSource::Auto, None, &inside), Ok(None));
    }
}

#[test]
fn an_unusable_kubeconfig_is_refused_at_the_start_without_its_contents() {
    if cfg!(not(feature = "kubernetes")) {
        return;
    }
    let dir = std::env::temp_dir().join(format!("kernmeter-kubeconfig-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("scratch");
    let start = |name: &str, text: Option<&str>| {
        let path = dir.join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("write");
        }
        let source = Source::Api { node: "n".into(), kubeconfig: Some(path) };
        Pods::start(&Settings::of(source), Wanted::default()).expect_err(name).to_string()
    };
    let runs = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}]\n\
        users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/touch, args: [/tmp/x]}}}]\n";
    for (name, text, expected) in [
        ("missing", None, "cannot use `"),
        ("broken", Some("token: s3cr3t: ["), "it is no YAML of a kubeconfig, line 1 column 14"),
        ("odd", Some("users: s3cr3t"), "it is no YAML of a kubeconfig"),
        ("empty", Some(""), "cannot use `"),
        ("runs", Some(runs), "gets its credentials from another program"),
    ] {
        let error = start(name, text);
        assert!(error.starts_with("kubernetes.kubeconfig: ") && error.contains(expected), "{error}");
        assert!(!error.contains('\n') && !error.contains("s3cr3t") && error.len() < 700, "{error}");
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn directories_are_told_when_they_change_and_the_handle_ends_soon() {
    let dir = std::env::temp_dir().join(format!("kernmeter-pods-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("shop_cart_u-1")).expect("scratch");
    let mut settings = Settings::of(Source::Directories { path: dir.clone() });
    settings.poll = Duration::from_millis(10);
    // A small queue: a list waits for room.
    settings.queue = 1;
    let mut pods = Pods::start(&settings, Wanted::default()).expect("start");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let list = |pods: &mut Pods| {
        let mut events = Vec::new();
        let mut names = Vec::new();
        let wait = async {
            while events.last() != Some(&PodEvent::ListComplete) {
                assert!(pods.recv(&mut events, 10).await);
            }
        };
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(10), wait).await.expect("a list") });
        assert_eq!(events.first(), Some(&PodEvent::ListBegins));
        for event in events {
            if let PodEvent::Listed(pod) = event {
                names.push(pod.name.to_string());
            }
        }
        names
    };
    assert_eq!(list(&mut pods), ["cart"]);
    std::fs::create_dir_all(dir.join("shop_till_u-2")).expect("another");
    assert_eq!(list(&mut pods), ["cart", "till"]);
    std::fs::remove_dir_all(dir.join("shop_cart_u-1")).expect("one less");
    assert_eq!(list(&mut pods), ["till"]);
    // Out of reach: nothing is told, so what was known stays.
    std::fs::remove_dir_all(&dir).expect("clean up");
    std::thread::sleep(Duration::from_millis(100));
    let mut events = Vec::new();
    runtime.block_on(async {
        let wait = tokio::time::timeout(Duration::from_millis(50), pods.recv(&mut events, 10));
        assert!(wait.await.is_err(), "{events:?}");
    });
    let stats = pods.stats();
    assert_eq!((stats.lists, stats.syncs.len()), (3, 3));
    assert!(pods.stats().syncs.is_empty(), "handed out once");
    let began = Instant::now();
    pods.stop();
    assert!(began.elapsed() < STOP, "{:?}", began.elapsed());
}
