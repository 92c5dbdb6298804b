//! Rules on pods: what they match, what they refuse, and that no pod can name itself into a tenant.

use super::*;
use crate::identity::pods::{Container, Namespace, Phase, Pod, PodCache, PodEvent};

fn pairs(pairs: &[(&str, &str)]) -> Box<[(Arc<str>, Arc<str>)]> {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn pod(namespace: &str, name: &str) -> Pod {
    Pod {
        uid: UID.into(),
        namespace: namespace.into(),
        name: name.into(),
        resource_version: "1".into(),
        config_hash: None,
        labels: pairs(&[("team", "red"), ("app.kubernetes.io/name", "cart")]),
        annotations: pairs(&[("example.com/owner", "ops/eu")]),
        phase: Phase::Running,
        containers: [Container { id: ID.into(), name: "web".into() }].into(),
    }
}

fn shop() -> Namespace {
    Namespace {
        name: "shop".into(),
        labels: pairs(&[("tier", "gold")]),
        annotations: pairs(&[("example.com/tenant", "acme")]),
    }
}

fn path() -> String {
    format!("/kubepods/burstable/pod{UID}/{ID}")
}

fn verdict_at(set: &RuleSet, path: &[u8], pod: &Pod, namespace: Option<&Namespace>) -> Verdict {
    let known = PodFacts { pod, container: Some(&pod.containers[0].name), namespace };
    let rules = Rules::compile(set).expect("valid rules");
    rules.evaluate(&CgroupFacts::recognise(path), &users(), Some(&known))
}

fn verdict(set: &RuleSet, pod: &Pod) -> Verdict {
    verdict_at(set, path().as_bytes(), pod, Some(&shop()))
}

fn allow(entries: &[(&[&str], &[&str])]) -> Vec<AllowSpec> {
    let all = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    entries
        .iter()
        .map(|(tenants, namespaces)| AllowSpec { tenants: all(tenants), namespaces: all(namespaces) })
        .collect()
}

fn allowing(conditions: &[(&str, &str)], tenant: &str, entries: &[(&[&str], &[&str])]) -> RuleSpec {
    RuleSpec { allow: Some(allow(entries)), ..rule(conditions, tenant) }
}

#[test]
fn conditions_and_fields() {
    let everything: &[(&[&str], &[&str])] = &[(&["*"], &["*"])];
    for (conditions, template, expected) in [
        (&[("namespace", "sh*")][..], "{namespace}", "shop"),
        (&[("namespace", "{a}op")], "t-{a}", "t-sh"),
        (&[("namespace", "other")], "x", UNKNOWN),
        (&[("pod", "cart-*")], "{pod}", "cart-7"),
        (&[("pod", "{app}-{n}")], "{app}", "cart"),
        (&[("container", "web")], "{namespace}.{container}", "shop.web"),
        (&[("container", "db")], "x", UNKNOWN),
        (&[("namespace_labels.tier", "{tier}")], "{tier}", "gold"),
        (&[("namespace_labels.tier", "silver")], "x", UNKNOWN),
        (&[("namespace_labels.none", "*")], "x", UNKNOWN),
        (&[("namespace_annotations.example.com/tenant", "{t}")], "{t}", "acme"),
        (&[("pod_labels.team", "{t}"), ("namespace_labels.tier", "{u}")], "{t}-{u}", "red-gold"),
        (&[("pod_labels.app.kubernetes.io/name", "c*")], "{namespace}-{pod_uid}", &format!("shop-{UID}")),
        (&[("pod_annotations.example.com/owner", "{team}/{region}")], "{team}.{region}", "ops.eu"),
        (&[("pod_annotations.example.com/owner", "*")], "x", UNKNOWN),
        (&[("pod_annotations.example.com/owner", "**")], "x", "x"),
        (&[("pod_labels.example.com/owner", "**")], "x", UNKNOWN),
        (&[("pod_uid", "*"), ("runtime", "containerd")], "{container}", "web"),
    ] {
        let set = only(vec![allowing(conditions, template, everything)]);
        assert_eq!(&*verdict(&set, &pod("shop", "cart-7")).tenant, expected, "{conditions:?}");
        // Nothing of a pod, where none is known.
        let without = Rules::compile(&set).expect("valid").evaluate(
            &CgroupFacts::recognise(path().as_bytes()),
            &users(),
            None,
        );
        assert_eq!(without.decided_by, None, "{conditions:?}");
    }
    let metadata = only(vec![rule(&[("namespace_labels.tier", "*")], "x")]);
    assert_eq!(&*verdict_at(&metadata, path().as_bytes(), &pod("shop", "p"), None).tenant, UNKNOWN);
}

#[test]
fn built_in_rules_name_pods_by_namespace() {
    let set = RuleSet::default();
    assert_eq!(&*verdict(&set, &pod("shop", "cart-7")).tenant, "shop");
    assert_eq!(evaluate(&set, path().as_bytes()).tenant, format!("pod-{UID}").into());
    // A namespace can have no such name; if one does, it is not believed.
    let refused = verdict(&set, &pod("_host", "p"));
    assert_eq!(&*refused.tenant, format!("pod-{UID}"));
    assert_eq!(refused.refusals[0].reason, RefusalReason::Reserved);
}

#[test]
fn what_a_pod_chooses_needs_permission() {
    let entries: &[(&[&str], &[&str])] =
        &[(&["red", "blue-*"], &["shop", "till-?"]), (&["ops"], &["kube-*"])];
    let mut set = RuleSet::default();
    set.rules.push(allowing(&[("pod_labels.team", "{team}")], "{team}", entries));
    let named = |namespace: &str, team: &str| {
        let found = verdict(&set, &Pod { labels: pairs(&[("team", team)]), ..pod(namespace, "red") });
        (found.tenant.to_string(), found.refusals.iter().map(|refusal| refusal.reason).collect::<Vec<_>>())
    };
    for (namespace, team) in [("shop", "red"), ("till-3", "blue-1"), ("kube-system", "ops")] {
        assert_eq!(named(namespace, team), (team.into(), vec![]));
    }
    for (namespace, team) in [("shop", "ops"), ("kube-system", "red"), ("till-33", "red"), ("evil", "red")] {
        assert_eq!(named(namespace, team), (namespace.into(), vec![RefusalReason::NotAllowed]), "{team}");
    }
    assert_eq!(named("shop", "_host").1, [RefusalReason::Reserved]);
    assert_eq!(named("shop", "red\n").1, [RefusalReason::BadCharacter]);

    // To the host as well.
    let mut host = RuleSet::default();
    let proxy = MatchSpec { pod: Some("kube-proxy-*".into()), ..MatchSpec::default() };
    let host_rule = RuleSpec::new(proxy, Outcome::ReserveHost);
    host.rules.push(RuleSpec { allow: Some(allow(&[(&[HOST], &["kube-system"])])), ..host_rule });
    assert_eq!(&*verdict(&host, &pod("kube-system", "kube-proxy-x")).tenant, HOST);
    assert_eq!(&*verdict(&host, &pod("evil", "kube-proxy-x")).tenant, "evil");

    // A restricted rule says nothing of what is no pod.
    let restricted = only(vec![allowing(&[("cgroup", "/**")], "x", entries)]);
    assert_eq!(evaluate(&restricted, b"/x").refusals[0].reason, RefusalReason::NotAllowed);
}

#[test]
fn rules_that_do_not_compile() {
    let missing = "is chosen by who creates a pod: add `allow: [{ tenants: [...], namespaces: [...] }]`";
    for (conditions, template, key) in [
        (&[("pod_labels.team", "*")][..], "x", "match.pod_labels.team"),
        (&[("pod_annotations.a/b", "*"), ("namespace", "n")], "x", "match.pod_annotations.a/b"),
        (&[("pod", "*")], "x", "match.pod"),
        (&[("container", "*")], "x", "match.container"),
        (&[("namespace", "*")], "{namespace}-{pod}", "tenant"),
        (&[("namespace", "*")], "{container}", "tenant"),
    ] {
        let error = Rules::compile(&only(vec![rule(conditions, template)])).expect_err(key);
        assert!(error.to_string().starts_with(&format!("tenants.rules[0].{key}: {missing}")), "{error}");
        assert_eq!(error.character, if template == "{namespace}-{pod}" { 13 } else { 1 });
    }
    for (conditions, template) in [
        (&[("namespace", "*")][..], "{namespace}"),
        (&[("namespace_labels.tier", "{t}")], "{t}"),
        (&[("namespace_annotations.tier", "{t}")], "{t}-{pod_uid}"),
    ] {
        assert!(Rules::compile(&only(vec![rule(conditions, template)])).is_ok(), "{conditions:?}");
    }
    let label = &[("pod_labels.team", "*")][..];
    for (entries, line) in [
        (&[][..], "allow: allows nothing"),
        (&[(&["a"][..], &[][..])], "allow[0]: allows nothing"),
        (&[(&["a"], &["b"]), (&[], &["b"])], "allow[1]: allows nothing"),
        (&[(&["a", "b["], &["b"])], "allow[0].tenants[1]: `[` is never closed"),
        (&[(&["a"], &["{n}"])], "allow[0].namespaces[0]: has a capture"),
        (&[(&["a"], &[""])], "allow[0].namespaces[0]: is empty"),
    ] {
        let error = Rules::compile(&only(vec![allowing(label, "x", entries)])).expect_err(line).to_string();
        assert!(error.starts_with(&format!("tenants.rules[0].{line}")), "{error}");
    }
    let long = format!("pod_labels.{}", "k".repeat(400));
    for key in [
        "pod_labels.",
        "pod_labels.a b",
        "pod_labels.-a",
        "namespace_labels.\u{e9}",
        "pod_annotations.a\n",
        &long,
    ] {
        let set = only(vec![allowing(&[(key, "*")], "x", &[(&["*"], &["*"])])]);
        let error = Rules::compile(&set).expect_err(key).to_string();
        assert!(error.contains("is no key of a label or annotation") && !error.contains('\n'), "{error}");
    }
    let default = RuleSet { default: Some("x{pod}".into()), ..RuleSet::default() };
    let error = Rules::compile(&default).expect_err("default");
    assert!(
        error.to_string().starts_with("tenants.default: `{pod}` is chosen by who creates a pod"),
        "{error}"
    );
    assert_eq!(error.character, 2);
}

#[test]
fn wanted_keys_are_listed_once() {
    let mut set = RuleSet::default();
    assert_eq!(Rules::compile(&set).expect("built-in").wanted(), Wanted::default());
    let everything: &[(&[&str], &[&str])] = &[(&["*"], &["*"])];
    set.rules = vec![
        allowing(
            &[("pod_labels.b", "*"), ("pod_labels.a", "x"), ("pod_annotations.c", "*")],
            "x",
            everything,
        ),
        allowing(&[("pod_labels.a", "*")], "x", everything),
    ];
    set.fallback = vec![rule(&[("namespace_labels.d", "*"), ("namespace_annotations.e", "*")], "x")];
    let wanted = Rules::compile(&set).expect("valid").wanted();
    assert_eq!(
        wanted,
        Wanted {
            pod_labels: vec!["a".into(), "b".into()],
            pod_annotations: vec!["c".into()],
            namespace_labels: vec!["d".into()],
            namespace_annotations: vec!["e".into()],
        }
    );
    assert!(wanted.namespaces());
}

/// Cgroups whose names are those of a pod, but which users or anybody else can make.
fn impostors() -> Vec<String> {
    let user = "/user.slice/user-1000.slice/user@1000.service";
    vec![
        format!("{user}{}", path()),
        format!(
            "{user}/app.slice/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{ID}.scope",
            UID.replace('-', "_")
        ),
        format!("{user}/kubepods-pod{}.slice:cri-containerd:{ID}", UID.replace('-', "_")),
        format!("/user.slice{}", path()),
        format!("/user.slice/kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_")),
        format!("/system.slice/user@1000.service{}", path()),
        format!("/system.slice/evil.service{}", path()),
        format!("/machine.slice/libpod-{ID}.scope{}", path()),
        format!("/lxc.payload.box{}", path()),
        format!("/system.slice/docker-{ID}.scope"),
        format!("/docker/{ID}"),
        format!("/{ID}"),
        format!("/pod{UID}/{ID}"),
        format!("/not-kubepods/pod{UID}/{ID}"),
    ]
}

#[test]
fn only_the_kubelets_cgroups_are_pods() {
    let mut cache = PodCache::default();
    cache.apply(PodEvent::Applied(pod("shop", "cart-7")), 0);
    let set = RuleSet::default();
    let real = CgroupFacts::recognise(path().as_bytes());
    let known = PodFacts::find(&cache, &real).expect("the pod's own");
    assert_eq!((&*known.pod.name, known.container, known.namespace), ("cart-7", Some("web"), None));
    for impostor in impostors() {
        let facts = CgroupFacts::recognise(impostor.as_bytes());
        assert_eq!(PodFacts::find(&cache, &facts), None, "{impostor}");
        // Nor if somebody else looked the pod up.
        assert_eq!(
            verdict_at(&set, impostor.as_bytes(), known.pod, None),
            evaluate(&set, impostor.as_bytes())
        );
    }
}

#[test]
fn a_pod_is_found_by_uid_before_container() {
    let other = "9d3f0e6a1b2c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6";
    let hash = "d0d64bd62a4ec3a5d5a3dc1a8c1ab8a4";
    let mut cache = PodCache::default();
    cache.apply(PodEvent::Applied(pod("shop", "cart-7")), 0);
    let thief = Container { id: other.into(), name: "x".into() };
    cache.apply(
        PodEvent::Applied(Pod { uid: "u2".into(), containers: [thief].into(), ..pod("evil", "thief") }),
        0,
    );
    cache.apply(PodEvent::Namespaces(vec![shop()]), 0);
    let find = |path: &str| {
        let found = PodFacts::find(&cache, &CgroupFacts::recognise(path.as_bytes()));
        found.map(|known| {
            (known.pod.name.to_string(), known.container.map(str::to_owned), known.namespace.is_some())
        })
    };
    assert_eq!(find(&format!("/kubepods/pod{UID}/{ID}")), Some(("cart-7".into(), Some("web".into()), true)));
    assert_eq!(find(&format!("/kubepods/pod{UID}")), Some(("cart-7".into(), None, true)));
    assert_eq!(find(&format!("/kubepods/pod{UID}/{}", "a".repeat(64))), Some(("cart-7".into(), None, true)));
    // Another pod says it has the container: the path is the kubelet's word.
    assert_eq!(find(&format!("/kubepods/pod{UID}/{other}")), Some(("cart-7".into(), None, true)));
    // A static pod of unknown hash, by its container.
    assert_eq!(find(&format!("/kubepods/pod{hash}/{ID}")), Some(("cart-7".into(), Some("web".into()), true)));
    assert_eq!(find(&format!("/kubepods/pod{hash}")), None);
}

/// What a pod may say of itself: names it would like to have, and anything else.
fn said() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "a",
            "b",
            "a-b",
            "gold",
            "_host",
            "_unknown",
            "",
            "kube-system",
            "-",
            "a\nb",
            "a\"}"
        ])
        .prop_map(str::to_owned),
        "[a-z_-]{1,70}",
        any::<String>(),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|raw| String::from_utf8_lossy(&raw).into_owned()),
    ]
}

fn hostile_pod() -> impl Strategy<Value = Pod> {
    let namespace = prop::sample::select(vec!["a", "b", "a-b", "kube-system", "gold"]);
    (namespace, said(), said(), said(), said()).prop_map(|(namespace, name, container, label, annotation)| {
        Pod {
            labels: pairs(&[("team", &label)]),
            annotations: pairs(&[("team", &annotation)]),
            containers: [Container { id: ID.into(), name: container.into() }].into(),
            ..pod(namespace, &name)
        }
    })
}

/// A rule of the administrator, by what pods choose or not.
fn any_rule() -> impl Strategy<Value = RuleSpec> {
    let condition = prop::sample::select(vec![
        "namespace",
        "pod",
        "container",
        "pod_labels.team",
        "pod_annotations.team",
        "namespace_labels.tier",
    ]);
    let glob = prop::sample::select(vec!["{t}", "{t}-*", "*{t}", "a{t}", "{t:**}"]);
    let template = prop::sample::select(vec![
        "{t}",
        "gold",
        "{namespace}",
        "{namespace}-{t}",
        "x{t}",
        "{pod}",
        "{container}",
        "{t}{pod}",
    ]);
    let some = |from: &[&'static str]| prop::sample::subsequence(from.to_vec(), 1..=2);
    let entry = (some(&["*", "a", "b", "a-*", "gold", "?"]), some(&["*", "a", "b", "a-?", "kube-*"]));
    (condition, glob, template, prop::collection::vec(entry, 1..3)).prop_map(
        |(condition, glob, template, entries)| {
            let entries: Vec<(&[&str], &[&str])> = entries.iter().map(|(t, n)| (&t[..], &n[..])).collect();
            let free = rule(&[(condition, glob)], template);
            // Permission only where it is needed, so that both sorts of rules are there.
            if Rules::compile(&only(vec![free.clone()])).is_ok() {
                free
            } else {
                allowing(&[(condition, glob)], template, &entries)
            }
        },
    )
}

fn simple_glob(glob: &str, text: &str) -> bool {
    match glob.strip_suffix('*') {
        Some(start) => text.starts_with(start) && !text[start.len()..].contains('/'),
        None if glob.ends_with('?') => {
            let start = &glob[..glob.len() - 1];
            text.len() == glob.len() && text.starts_with(start)
        }
        None => glob == text,
    }
}

proptest! {
    /// A pod has a tenant that the administrator allows its namespace, or the one it has without saying anything.
    #[test]
    fn no_pod_names_itself_into_a_tenant(rules in prop::collection::vec(any_rule(), 0..6), pod in hostile_pod()) {
        let set = RuleSet { rules, ..RuleSet::default() };
        let found = verdict(&set, &pod);
        prop_assert_eq!(&found, &verdict(&set, &pod), "the same again");

        let unrestricted = RuleSet {
            rules: set.rules.iter().filter(|rule| rule.allow.is_none()).cloned().collect(),
            ..RuleSet::default()
        };
        let silent = Pod {
            namespace: pod.namespace.clone(),
            labels: Box::default(),
            annotations: Box::default(),
            ..self::pod("", "p")
        };
        let without = verdict(&unrestricted, &silent);
        let allowed = set.rules.iter().filter_map(|rule| rule.allow.as_ref()).flatten().any(|entry| {
            entry.tenants.iter().any(|glob| simple_glob(glob, &found.tenant))
                && entry.namespaces.iter().any(|glob| simple_glob(glob, &pod.namespace))
        });
        prop_assert!(allowed || found.tenant == without.tenant, "{found:?}, otherwise {without:?}");
        prop_assert!(tenant_name(found.tenant.as_bytes()).is_ok(), "{found:?}");
    }

    /// Whatever is below a user's slice, its tenant does not depend on any pod.
    #[test]
    fn users_cannot_pose_as_pods(
        parts in prop::collection::vec(prop_oneof![
            Just("kubepods".to_owned()),
            Just("kubepods.slice".to_owned()),
            Just("burstable".to_owned()),
            Just(format!("pod{UID}")),
            Just(format!("kubepods-pod{}.slice", UID.replace('-', "_"))),
            Just(format!("kubepods-pod{}.slice:cri-containerd:{ID}", UID.replace('-', "_"))),
            Just(ID.to_owned()),
            Just(format!("cri-containerd-{ID}.scope")),
            Just("user@1000.service".to_owned()),
            Just("app.slice".to_owned()),
        ], 0..6),
        top in prop::sample::select(vec!["/user.slice", "/user.slice/user-1000.slice", "/user.slice/user-1000.slice/user@1000.service"]),
    ) {
        let path = parts.iter().fold(top.to_owned(), |path, part| format!("{path}/{part}"));
        let set = RuleSet { rules: vec![rule(&[("namespace", "*")], "stolen")], ..RuleSet::default() };
        prop_assert_eq!(
            verdict_at(&set, path.as_bytes(), &pod("shop", "cart"), Some(&shop())),
            evaluate(&set, path.as_bytes())
        );
        let mut cache = PodCache::default();
        cache.apply(PodEvent::Applied(pod("shop", "cart-7")), 0);
        prop_assert_eq!(PodFacts::find(&cache, &CgroupFacts::recognise(path.as_bytes())), None);
    }
}
