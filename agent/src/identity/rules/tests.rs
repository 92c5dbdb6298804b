//! Rules against real and hostile paths.

mod pods;

use proptest::prelude::*;

use super::*;

const ID: &str = "4c01db0b339c8c3cf46d1fe73ac87e97ba09fd9b9a3d7d2cf4b1ff2f84a9e3b1";
const UID: &str = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";

fn users() -> Users {
    Users::parse(b"root:x:0:0::/:\nalice:x:1000:1000::/:\nweb dev:x:1001:1001::/:\n")
}

fn rule(conditions: &[(&str, &str)], tenant: &str) -> RuleSpec {
    let mut matches = MatchSpec::default();
    for (key, value) in conditions {
        let at = match *key {
            "cgroup" => &mut matches.cgroup,
            "unit" => &mut matches.unit,
            "slice" => &mut matches.slice,
            "runtime" => &mut matches.runtime,
            "container_id" => &mut matches.container_id,
            "pod_uid" => &mut matches.pod_uid,
            "user" => &mut matches.user,
            "machine" => &mut matches.machine,
            "namespace" => &mut matches.namespace,
            "pod" => &mut matches.pod,
            "container" => &mut matches.container,
            other => {
                let (map, key) = other.split_once('.').expect("a condition");
                let map = match map {
                    "namespace_labels" => &mut matches.namespace_labels,
                    "namespace_annotations" => &mut matches.namespace_annotations,
                    "pod_labels" => &mut matches.pod_labels,
                    "pod_annotations" => &mut matches.pod_annotations,
                    other => panic!("{other}"),
                };
                map.insert(key.to_owned(), (*value).to_owned());
                continue;
            }
        };
        *at = Some((*value).to_owned());
    }
    RuleSpec::new(matches, Outcome::Tenant(tenant.to_owned()))
}

fn only(rules: Vec<RuleSpec>) -> RuleSet {
    RuleSet { rules, fallback: Vec::new(), default: None }
}

fn evaluate(set: &RuleSet, path: &[u8]) -> Verdict {
    Rules::compile(set).expect("valid rules").evaluate(&CgroupFacts::recognise(path), &users(), None)
}

fn tenant(set: &RuleSet, path: &str) -> String {
    evaluate(set, path.as_bytes()).tenant.to_string()
}

#[test]
fn built_in_rules() {
    let set = RuleSet::default();
    for (path, expected) in [
        ("/".to_owned(), HOST),
        ("/init.scope".into(), HOST),
        ("/system.slice".into(), HOST),
        ("/system.slice/ssh.service".into(), HOST),
        ("/system.slice/system-getty.slice/getty@tty1.service".into(), HOST),
        (format!("/system.slice/docker-{ID}.scope"), "docker-4c01db0b339c"),
        (format!("/docker/{ID}"), "docker-4c01db0b339c"),
        (format!("/anything/{ID}"), "container-4c01db0b339c"),
        (format!("/machine.slice/libpod-{ID}.scope"), "podman-4c01db0b339c"),
        (format!("/kubepods/burstable/pod{UID}/{ID}"), &format!("pod-{UID}")),
        (format!("/kubepods/burstable/pod{UID}"), &format!("pod-{UID}")),
        ("/user.slice/user-1000.slice/session-3.scope".into(), "user-alice"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service".into(), "user-alice"),
        ("/user.slice/user-4711.slice/session-3.scope".into(), "user-4711"),
        // A name no tenant may have: by number.
        ("/user.slice/user-1001.slice".into(), "user-1001"),
        // What a user names like someone's container or pod stays the user's.
        (format!("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{ID}.scope"), "user-alice"),
        (format!("/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{ID}"), "user-alice"),
        ("/machine.slice/systemd-nspawn@web.service".into(), "machine-web"),
        ("/lxc.payload.box/init.scope".into(), "machine-box"),
        ("/payments.slice/api.service".into(), "payments.slice"),
        ("/batch/job-17".into(), "batch"),
        ("/_host/x".into(), UNKNOWN),
        ("/with blank".into(), UNKNOWN),
    ] {
        assert_eq!(tenant(&set, &path), expected, "{path}");
    }
    let verdict = evaluate(&set, b"/_host/x");
    let refusal = Refusal { place: Place::Default, reason: RefusalReason::Reserved };
    assert_eq!((verdict.decided_by, verdict.refusals), (None, vec![refusal]));
    assert_eq!(evaluate(&set, b"/").decided_by, Some(Place::Fallback(0)));
}

#[test]
fn conditions_captures_and_fields() {
    let machine = "/machine.slice/systemd-nspawn@web.service";
    let docker = format!("/system.slice/docker-{ID}.scope");
    let pod = format!("/kubepods/pod{UID}/{ID}");
    let session = "/user.slice/user-1000.slice/session-3.scope";
    let shop = "/shop.slice/shop-eu.slice/app-cart.service";
    for (conditions, template, path, expected) in [
        (&[("unit", "app-{app}.service")][..], "{app}", shop, "cart"),
        (
            &[("unit", "app-{app}.service"), ("slice", "shop-{region}.slice")],
            "{app}.{region}",
            shop,
            "cart.eu",
        ),
        (&[("cgroup", "/{a}.slice/**")], "{a}", shop, "shop"),
        (&[("cgroup", "/{a}.slice/**")], "{unit}-{slice}", shop, "app-cart-shop-eu"),
        (&[("cgroup", "/{rest:**}")], "t-{rest}", "/abc", "t-abc"),
        (&[("unit", "app-{app}.service"), ("slice", "other.slice")], "{app}", shop, UNKNOWN),
        (&[("runtime", "docker")], "{runtime}-{container_id_short}", &docker, "docker-4c01db0b339c"),
        (&[("runtime", "podman")], "x", &docker, UNKNOWN),
        (&[("runtime", "any")], "x", &docker, "x"),
        (&[("runtime", "any")], "x", shop, UNKNOWN),
        (&[("runtime", "nspawn"), ("machine", "w*")], "{machine}", machine, "web"),
        (&[("container_id", "4c01*")], "x", &docker, "x"),
        (&[("container_id", "4c0")], "x", &docker, UNKNOWN),
        (&[("pod_uid", "0f859f0d-*")], "{pod_uid}", &pod, UID),
        (&[("user", "al{rest}")], "{user}-{uid}-{rest}", session, "alice-1000-ice"),
        (&[("user", "1000")], "{user}", session, "alice"),
        (&[("user", "100?")], "x", session, "x"),
        (&[("user", "bob")], "x", session, UNKNOWN),
        (&[("user", "*")], "x", shop, UNKNOWN),
        (&[("unit", "*.scope")], "{unit}", session, "session-3.scope"),
        (&[("cgroup", "/**")], "{top}", shop, "shop.slice"),
    ] {
        assert_eq!(tenant(&only(vec![rule(conditions, template)]), path), expected, "{conditions:?} {path}");
    }
}

#[test]
fn order_and_reserve() {
    let mut set = RuleSet::default();
    let backup = MatchSpec { unit: Some("backup.service".into()), ..MatchSpec::default() };
    set.rules.push(RuleSpec::new(backup, Outcome::ReserveHost));
    set.rules.push(rule(&[("cgroup", "/jobs/{name}/**")], "job-{name}"));
    set.rules.push(rule(&[("cgroup", "/jobs/**")], "jobs"));
    assert_eq!(tenant(&set, "/jobs.slice/backup.service"), HOST);
    assert_eq!(tenant(&set, "/jobs/a/b"), "job-a");
    assert_eq!(tenant(&set, "/jobs"), "jobs");
    assert_eq!(tenant(&set, "/jobs/a b"), "jobs");
    let verdict = evaluate(&set, b"/jobs/a b");
    assert_eq!(verdict.decided_by, Some(Place::Rule(2)));
    assert_eq!(verdict.refusals, [Refusal { place: Place::Rule(1), reason: RefusalReason::BadCharacter }]);
}

#[test]
fn refusals() {
    let long = format!("/{}", "x".repeat(64));
    for (template, path, reason) in [
        ("{name}", long.as_bytes(), RefusalReason::TooLong),
        ("{name}", b"/_host", RefusalReason::Reserved),
        ("{name}", b"/_", RefusalReason::Reserved),
        ("{name}", b"/\xff", RefusalReason::NotUtf8),
        ("{name}", b"/a\n", RefusalReason::BadCharacter),
        ("{name}", b"/a\"},tenant=\"b", RefusalReason::BadCharacter),
        ("{name}", b"/..", RefusalReason::BadCharacter),
        ("x-{unit}", b"/a", RefusalReason::Missing),
        ("{name}", b"/\xf0\x9f\xa6\x80", RefusalReason::BadCharacter),
    ] {
        let verdict = evaluate(&only(vec![rule(&[("cgroup", "/{name}")], template)]), path);
        assert_eq!((&*verdict.tenant, verdict.decided_by), (UNKNOWN, None));
        assert_eq!(verdict.refusals, [Refusal { place: Place::Rule(0), reason }], "{path:?}");
    }
}

#[test]
fn rules_that_do_not_compile() {
    for (conditions, template, line) in [
        (&[][..], "x", "tenants.rules[0].match: matches nothing in particular"),
        (&[("cgroup", "a/b")], "x", "tenants.rules[0].match.cgroup: never matches"),
        (&[("unit", "a{b")], "x", "tenants.rules[0].match.unit: `{` is never closed: write `{name}`"),
        (&[("runtime", "dokcer")], "x", "tenants.rules[0].match.runtime: `dokcer` is no container runtime"),
        (
            &[("unit", "{a}"), ("slice", "x{a}")],
            "x",
            "tenants.rules[0].match.slice: the capture `{a}` appears twice",
        ),
        (&[("unit", "-{unit}")], "x", "tenants.rules[0].match.unit: `{unit}` is a built-in field"),
        (
            &[("cgroup", "/{namespace}")],
            "x",
            "tenants.rules[0].match.cgroup: `{namespace}` is a built-in field: give the capture another name, or write `*`",
        ),
        (&[("unit", "{pod}")], "x", "tenants.rules[0].match.unit: `{pod}` is a built-in field"),
        (&[("unit", "{container}")], "x", "tenants.rules[0].match.unit: `{container}` is a built-in field"),
        (&[("unit", "{a}")], "{b}", "tenants.rules[0].tenant: `{b}` is neither a capture of this rule nor"),
        (
            &[("unit", "{a}")],
            "_{a}",
            "tenants.rules[0].tenant: a tenant begins with a letter or digit, names with `_`",
        ),
    ] {
        let error = Rules::compile(&only(vec![rule(conditions, template)])).expect_err(line).to_string();
        assert!(error.starts_with(line), "{error}");
    }
    let error =
        Rules::compile(&RuleSet { default: Some("x{y}".into()), ..RuleSet::default() }).expect_err("default");
    assert!(error.to_string().starts_with("tenants.default: `{y}`"), "{error}");
    assert_eq!(error.character, 2);
    let many = vec![rule(&[("unit", "x")], "x"); MOST_RULES + 1];
    assert!(Rules::compile(&only(many)).is_err());
}

proptest! {
    #[test]
    fn no_cgroup_gets_a_reserved_or_malformed_tenant_by_template(
        path in proptest::collection::vec(any::<u8>(), 0..200),
        glob in prop_oneof![Just("/{name:**}"), Just("/*{name}"), Just("/{name}/**")],
        template in prop_oneof![Just("{name}"), Just("{name}-x"), Just("a{name}"), Just("{top}")],
    ) {
        let verdict = evaluate(&only(vec![rule(&[("cgroup", glob)], template)]), &[b"/", &path[..]].concat());
        if verdict.decided_by.is_some() {
            prop_assert!(tenant_name(verdict.tenant.as_bytes()).is_ok());
        } else {
            prop_assert_eq!(&*verdict.tenant, UNKNOWN);
        }
    }
}
