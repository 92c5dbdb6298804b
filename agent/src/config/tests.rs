//! The default file, its documentation, and one line per mistake.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::identity::rules::{AllowSpec, MatchSpec, Outcome, RuleSpec, Rules};

const KNOWN: Known<'static> = Known {
    families: &["kernmeter_syscalls", "kernmeter_cpu_seconds", "kernmeter_runqueue_wait_seconds"],
    probes: &["syscalls", "scheduler"],
};

/// Every key of the schema.
const KEYS: &[&str] = &[
    "web.listen_address",
    "web.telemetry_path",
    "web.max_connections",
    "web.config_file",
    "access.mode",
    "access.operators.bearer_token_files",
    "access.operators.basic_auth_users",
    "access.operators.client_certificates",
    "access.tenants",
    "log.level",
    "log.format",
    "kernel.memory_budget",
    "kernel.slots",
    "kernel.syscall_rows",
    "kernel.errno_rows",
    "kernel.private_rows",
    "kernel.attach",
    "kernel.read",
    "kernel.required_probes",
    "kernel.additional_probes",
    "drain.intervals.relaxed",
    "drain.intervals.normal",
    "drain.intervals.stressed",
    "drain.cpu.high",
    "drain.cpu.low",
    "drain.memory_available.low",
    "drain.memory_available.high",
    "drain.pressure.cpu",
    "drain.pressure.memory",
    "drain.hysteresis",
    "drain.dwell",
    "detail.default",
    "detail.families",
    "limits.series_per_tenant",
    "limits.tenants",
    "limits.retention",
    "tenants.rules",
    "tenants.fallback",
    "tenants.default",
    "kubernetes.pods",
    "kubernetes.node_name",
    "kubernetes.kubeconfig",
    "kubernetes.log_directory",
    "kubernetes.identity_timeout",
    "kubernetes.start_jitter",
    "kubernetes.request_timeout",
    "kubernetes.watch_timeout",
];

fn parse(yaml: &str) -> Result<Config, String> {
    Config::parse(yaml, "f.yaml", &KNOWN).map_err(|error| error.to_string())
}

fn good(yaml: &str) -> Config {
    parse(yaml).unwrap_or_else(|error| panic!("{yaml}\n{error}"))
}

#[test]
fn the_default_file_says_what_the_code_does() {
    assert_eq!(good(Config::default_yaml()), Config::default());
    for empty in ["", "\n", "# nothing\n", "---\n", "web:\n", "{}", "tenants: {rules: ~, default: ~}"] {
        assert_eq!(good(empty), Config::default(), "{empty:?}");
    }
    Rules::compile(&Config::default().tenants).expect("built-in rules");
}

#[test]
fn every_key_is_in_the_default_file_and_the_documentation() {
    let documentation = include_str!("../../../docs/configuration.md");
    for key in KEYS {
        assert!(documentation.contains(&format!("`{key}`")), "docs/configuration.md lacks `{key}`");
        let mut from = 0;
        for part in key.split('.') {
            let found = Config::default_yaml()[from..].find(&format!("{part}:"));
            from += found.unwrap_or_else(|| panic!("default.yaml lacks {key}"));
        }
    }
    // And KEYS is whole: what the schema lists for an unknown key is what KEYS has there.
    let mut sections: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for key in KEYS {
        let mut start = 0;
        for end in key.match_indices('.').map(|(at, _)| at).chain([key.len()]) {
            sections.entry(key[..start].trim_end_matches('.')).or_default().insert(&key[start..end]);
            start = end + 1;
        }
    }
    for (section, keys) in sections {
        let mut yaml = "{zzzzzzzz: 1}".to_owned();
        for part in section.rsplit('.').filter(|part| !part.is_empty()) {
            yaml = format!("{{{part}: {yaml}}}");
        }
        let error = parse(&yaml).expect_err(section);
        let (_, listed) = error.split_once("use one of ").unwrap_or_else(|| panic!("{error}"));
        assert_eq!(listed.split(", ").collect::<BTreeSet<_>>(), keys, "section {section:?}");
    }
}

#[test]
fn who_may_read_what() {
    let config = good(
        "access:
  operators: {basic_auth_users: [ops], client_certificates: ['CN=ops']}
  tenants:
    acme: {bearer_token_files: [tokens/acme, /etc/acme]}
    b.2: {basic_auth_users: [b], client_certificates: [b.example]}
",
    );
    let lists: Vec<_> = config.access.lists().collect();
    assert_eq!(lists.len(), 3);
    assert_eq!((lists[0].0, lists[1].0, lists[2].0), (None, Some("acme"), Some("b.2")));
    assert_eq!(lists[1].1.bearer_token_files, [Path::new("tokens/acme"), Path::new("/etc/acme")]);
    assert!(!config.access.is_empty() && Config::default().access.is_empty());
    for (yaml, part) in [
        ("{operator: {}}", "did you mean `operators`?"),
        ("{operators: {tokens: []}}", "unknown key `tokens`"),
        ("{operators: {bearer_token_files: x}}", "expected a list"),
        ("{operators: {bearer_token_files: ['']}}", "access.operators.bearer_token_files: `` is no path"),
        ("{operators: {basic_auth_users: ['a:b']}}", "no user name has a colon"),
        ("{operators: {basic_auth_users: [\"a\\nb\"]}}", "is no name"),
        ("{operators: {client_certificates: ['CN=']}}", "`CN=` is no name"),
        ("{tenants: {_host: {basic_auth_users: [a]}}}", "access.tenants._host: no tenant has this name"),
        ("{tenants: {'a/b': {basic_auth_users: [a]}}}", "no tenant has this name"),
        ("{tenants: {'../a': {basic_auth_users: [a]}}}", "no tenant has this name"),
        ("{tenants: {a: {}}}", "access.tenants.a: gives nobody access"),
        (
            "{tenants: {a: {basic_auth_users: [x]}, b: {basic_auth_users: [x]}}}",
            "`x` is already in access.tenants.a",
        ),
        (
            "{operators: {client_certificates: [x]}, tenants: {a: {client_certificates: [x]}}}",
            "`x` is already in access.operators",
        ),
        (
            "{tenants: {a: {bearer_token_files: [x]}, b: {bearer_token_files: [x]}}}",
            "`x` is already in access.tenants.a: one reader, one list",
        ),
    ] {
        let error = parse(&format!("access: {yaml}")).expect_err(yaml);
        assert!(error.contains(part), "{yaml}: {error}");
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let dir = std::env::temp_dir().join(format!("kernmeter-config-paths-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("kernmeter.yml");
    std::fs::write(
        &file,
        "{web: {config_file: web.yml}, access: {tenants: {a: {bearer_token_files: [t/a, /etc/a]}}}}",
    )
    .unwrap();
    let config = Config::load(Some(&file), &KNOWN).unwrap();
    assert_eq!(config.web.config_file, Some(dir.join("web.yml")));
    assert_eq!(
        config.access.tenants["a"].bearer_token_files,
        [dir.join("t/a"), Path::new("/etc/a").to_owned()]
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn examples_of_the_documentation_parse() {
    for documentation in
        [include_str!("../../../docs/configuration.md"), include_str!("../../../docs/tenants.md")]
    {
        let examples: Vec<&str> = documentation
            .split("```yaml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap_or_default())
            .collect();
        assert!(examples.len() >= 3);
        for example in examples {
            good(example);
        }
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of keys")]
fn values_arrive() {
    let config = good(
        "web: {listen_address: ':9', telemetry_path: /m, max_connections: 1}
log: {level: trace, format: json}
kernel: {memory_budget: 1GiB, slots: 65536, syscall_rows: 64, errno_rows: auto, private_rows: 0, attach: raw, read: batch, required_probes: [scheduler, scheduler], additional_probes: [syscalls]}
drain:
  intervals: {relaxed: 100ms, normal: 1s, stressed: 5m}
  cpu: {low: 10, high: 90.5}
  memory_available: {low: 5, high: 50}
  pressure: {cpu: 41, memory: 4%}
  hysteresis: 3
  dwell: 0s
detail: {default: pod, families: {kernmeter_syscalls: container}}
limits: {series_per_tenant: 10, tenants: 1, retention: 1h}
tenants:
  rules:
    - match: {unit: 'a-{x}.service', runtime: any, user: 1000}
      tenant: t-{x}
    - match: {machine: m}
      reserve: host
    - match: {namespace: 'n-*', pod: p, container: c, namespace_labels: {l: '{a}'}, namespace_annotations: {x/a: b},
        pod_labels: {l: '*', m: '?'}, pod_annotations: {y: z}}
      tenant: '{a}'
      allow: [{tenants: ['*'], namespaces: [n-1, n-2]}]
  fallback: []
  default: _unknown
kubernetes:
  pods: directories
  node_name: node-1.example
  kubeconfig: /k
  log_directory: /l
  identity_timeout: 1s
  start_jitter: 0s
  request_timeout: 100ms
  watch_timeout: 1s
",
    );
    assert_eq!(config.web.listen_address, "[::]:9".parse().expect("address"));
    assert_eq!((config.web.telemetry_path.as_str(), config.web.max_connections), ("/m", 1));
    assert_eq!(config.log, Log { level: LogLevel::Trace, format: LogFormat::Json });
    assert_eq!(config.log.level.as_str(), "trace");
    assert_eq!(
        config.kernel,
        KernelOptions {
            memory_budget: 1 << 30,
            slots: Auto::Fixed(65_536),
            syscall_rows: Auto::Fixed(64),
            errno_rows: Auto::Auto,
            private_rows: Auto::Fixed(0),
            attach: AttachMode::Raw,
            read: ReadMode::Batch,
            required_probes: vec!["scheduler".into()],
            additional_probes: vec!["syscalls".into()],
        }
    );
    let expected = IntervalPolicy {
        relaxed: Duration::from_millis(100),
        normal: Duration::from_secs(1),
        stressed: Duration::from_mins(5),
        cpu_high: 90.5,
        cpu_low: 10.0,
        memory_low: 5.0,
        memory_high: 50.0,
        pressure_cpu: Some(41.0),
        pressure_memory: Some(4.0),
        hysteresis: 3.0,
        dwell: Duration::ZERO,
    };
    assert_eq!(config.drain, expected);
    assert_eq!(config.detail.of("kernmeter_syscalls"), Detail::Container);
    assert_eq!(config.detail.of("kernmeter_cpu_seconds"), Detail::Pod);
    assert_eq!(
        config.limits,
        ExportLimits { series_per_tenant: 10, tenants: 1, retention: Duration::from_hours(1) }
    );
    let first = MatchSpec {
        unit: Some("a-{x}.service".into()),
        runtime: Some("any".into()),
        user: Some("1000".into()),
        ..MatchSpec::default()
    };
    let second = MatchSpec { machine: Some("m".into()), ..MatchSpec::default() };
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, glob)| ((*key).to_owned(), (*glob).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let third = MatchSpec {
        namespace: Some("n-*".into()),
        pod: Some("p".into()),
        container: Some("c".into()),
        namespace_labels: map(&[("l", "{a}")]),
        namespace_annotations: map(&[("x/a", "b")]),
        pod_labels: map(&[("l", "*"), ("m", "?")]),
        pod_annotations: map(&[("y", "z")]),
        ..MatchSpec::default()
    };
    let allow = AllowSpec { tenants: vec!["*".into()], namespaces: vec!["n-1".into(), "n-2".into()] };
    assert_eq!(
        config.tenants,
        RuleSet {
            rules: vec![
                RuleSpec::new(first, Outcome::Tenant("t-{x}".into())),
                RuleSpec::new(second, Outcome::ReserveHost),
                RuleSpec { allow: Some(vec![allow]), ..RuleSpec::new(third, Outcome::Tenant("{a}".into())) },
            ],
            fallback: Vec::new(),
            default: None,
        }
    );
    kubernetes_arrives(&config);
    assert_eq!(
        Config::default().restart_needed(&config),
        ["web", "log", "kernel", "kubernetes", "detail", "limits"]
    );
    assert!(config.restart_needed(&config).is_empty());
}

fn kubernetes_arrives(config: &Config) {
    assert_eq!(
        config.kubernetes,
        Kubernetes {
            pods: PodSource::Directories,
            node_name: Some("node-1.example".into()),
            kubeconfig: Some("/k".into()),
            log_directory: "/l".into(),
            identity_timeout: Duration::from_secs(1),
            start_jitter: Duration::ZERO,
            request_timeout: Duration::from_millis(100),
            watch_timeout: Duration::from_secs(1),
        }
    );
}

/// Each text is refused with one line that begins so, after the file's name.
fn refused(mistakes: &[(&str, &str)]) {
    for (yaml, line) in mistakes {
        let error = parse(yaml).expect_err(yaml);
        assert!(error.starts_with(&format!("f.yaml:{line}")), "{yaml}\n  wanted {line}\n  got    {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn mistakes_in_values() {
    refused(&[
        ("wbe: {}", "1:1: unknown key `wbe`, did you mean `web`?"),
        ("web:\n  lisen_address: x", "2:3: unknown key `lisen_address`, did you mean `listen_address`?"),
        (
            "colour: red",
            "1:1: unknown key `colour`, use one of web, log, kernel, drain, detail, limits, tenants, kubernetes",
        ),
        ("web:\n  listen_address: here", "2:19: web.listen_address: `here` is no address: write IP:PORT"),
        ("web: {telemetry_path: metrics}", "1:23: web.telemetry_path: `metrics` is no usable path"),
        ("web: {max_connections: 0}", "1:24: web.max_connections: `0` is out of range: use 1 to 65536"),
        (
            "log: {level: inof}",
            "1:14: log.level: `inof` is none of error, warn, info, debug, trace, did you mean `info`?",
        ),
        ("kernel: {memory_budget: 64MB}", "1:25: kernel.memory_budget: `64MB` is ambiguous: write `64MiB`"),
        (
            "kernel: {memory_budget: 1MiB}",
            "1:25: kernel.memory_budget: `1MiB` is out of range: use 4MiB to 4096MiB",
        ),
        ("kernel: {slots: 1}", "1:17: kernel.slots: `1` is out of range: use 2 to 65536, or `auto`"),
        ("kernel: {slots: 65537}", "1:17: kernel.slots: `65537` is out of range"),
        ("kernel: {slots: few}", "1:17: kernel.slots: `few` is no whole number: use 2 to 65536, or `auto`"),
        (
            "kernel:\n  required_probes:\n    - sycalls",
            "3:7: kernel.required_probes: there is no probe `sycalls`, did you mean `syscalls`?",
        ),
        (
            "kernel: {required_probes: [disk]}",
            "1:28: kernel.required_probes: there is no probe `disk`: `kernmeter probes` lists them",
        ),
        ("drain: {dwell: 30}", "1:16: drain.dwell: `30` has no unit: write `30s`"),
        (
            "drain: {intervals: {stressed: 10m}}",
            "1:31: drain.intervals.stressed: `10m` is out of range: use 100ms to 5m",
        ),
        (
            "drain: {intervals: {relaxed: 20s}}",
            "1:30: drain.intervals: relaxed must not be longer than normal",
        ),
        (
            "drain:\n  cpu:\n    low: 80",
            "3:10: drain.cpu: low must be below high by at least drain.hysteresis (2)",
        ),
        ("drain: {cpu: {low: 75, high: 75}, hysteresis: 0}", "1:47: drain.cpu: low must be below high"),
        ("drain: {hysteresis: 46}", "1:21: drain.cpu: low must be below high"),
        ("drain: {memory_available: {high: 21}}", "1:34: drain.memory_available: low must be below high"),
        ("drain: {cpu: {high: 101}}", "1:21: drain.cpu.high: `101` is out of range: use 0 to 100"),
        ("drain: {cpu: {high: .nan}}", "1:21: drain.cpu.high: `.nan` is no percentage"),
        ("drain: {pressure: {memory: 2}}", "1:28: drain.pressure.memory: must be above drain.hysteresis (2)"),
        (
            "drain: {pressure: {cpu: no}}",
            "1:25: drain.pressure.cpu: `no` is no percentage: use 1 to 100, or `off`",
        ),
    ]);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of mistakes")]
fn mistakes_in_form_and_rules() {
    refused(&[
        (
            "detail: {default: unit}",
            "1:19: detail.default: `unit` is none of tenant, namespace, pod, container",
        ),
        (
            "detail: {families: {kernmeter_syscals: pod}}",
            "1:40: detail.families: there is no metric family `kernmeter_syscals`, did you mean `kernmeter_syscalls`?",
        ),
        (
            "detail: {families: {kernmeter_syscalls: all}}",
            "1:41: detail.families.kernmeter_syscalls: `all` is none of",
        ),
        ("limits: {tenants: 0}", "1:19: limits.tenants: `0` is out of range"),
        ("limits: {retention: 8d}", "1:21: limits.retention: `8d` is out of range: use 0s to 7d"),
        ("tenants:\n  rules:\n    - tenant: x", "3:7: tenants.rules[0].match: matches nothing in particular"),
        ("tenants:\n  rules:\n    - match: {unit: a}", "3:7: tenants.rules[0]: gives no tenant: add"),
        (
            "tenants: {rules: [{match: {unit: a}, tenant: b, reserve: host}]}",
            "1:58: tenants.rules[0]: has both",
        ),
        (
            "tenants: {rules: [{match: {unit: a}, reserve: _me}]}",
            "1:47: tenants.rules[0].reserve: `_me` cannot be reserved",
        ),
        (
            "tenants:\n  rules:\n    - match: {unit: a}\n      tenant: b\n    - match: {unit: 'x{y'}\n      tenant: b",
            "5:21: tenants.rules[1].match.unit: `{` is never closed: write `{name}`, or `[{]` for a literal brace (character 2)",
        ),
        (
            "tenants:\n  fallback:\n    - match: {unit: a}\n      tenant: 'b-{c}'",
            "4:15: tenants.fallback[0].tenant: `{c}` is neither a capture of this rule nor a built-in field (unit,",
        ),
        (
            "tenants: {default: _mine}",
            "1:20: tenants.default: a tenant begins with a letter or digit, names with `_` first",
        ),
        ("tenants: {rules: [{mach: {}}]}", "1:20: unknown key `mach`, did you mean `match`?"),
        (
            "tenants:\n  rules:\n    - match:\n        pod_labels:\n          team: '{t}'\n      tenant: '{t}'",
            "5:17: tenants.rules[0].match.pod_labels.team: is chosen by who creates a pod: add `allow: [{ tenants: [...], namespaces: [...] }]`",
        ),
        (
            "tenants:\n  rules:\n    - match: {namespace: '*'}\n      tenant: '{namespace}-{pod}'",
            "4:15: tenants.rules[0].tenant: is chosen by who creates a pod",
        ),
        (
            "tenants:\n  rules:\n    - match: {pod: a}\n      tenant: b\n      allow:\n        - tenants: [b]\n          namespaces: [c, '{d}']",
            "7:27: tenants.rules[0].allow[0].namespaces[1]: has a capture",
        ),
        (
            "tenants:\n  rules:\n    - match: {pod: a}\n      tenant: b\n      allow:\n        - tenants: [b]",
            "6:11: tenants.rules[0].allow[0]: allows nothing",
        ),
        (
            "tenants: {rules: [{match: {pod: a}, tenant: b, allow: []}]}",
            "1:55: tenants.rules[0].allow: allows nothing",
        ),
        (
            "tenants: {rules: [{match: {pod: a}, tenant: b, allow: [{tenant: b}]}]}",
            "1:57: unknown key `tenant`, did you mean `tenants`?",
        ),
        (
            "tenants: {rules: [{match: {namespace_labels: {a b: x}}, tenant: b}]}",
            "1:52: tenants.rules[0].match.namespace_labels.a b: `a b` is no key of a label",
        ),
        (
            "tenants: {rules: [{match: {namespace: '{namespace}'}, tenant: b}]}",
            "1:39: tenants.rules[0].match.namespace: `{namespace}` is a built-in field: give the capture another name, or write `*` here",
        ),
        (
            "tenants: {default: '{container}'}",
            "1:20: tenants.default: `{container}` is chosen by who creates a pod",
        ),
        ("tenants: {rules: [{match: {pod_labels: x}, tenant: b}]}", "1:40: expected `key: value` lines here"),
        ("kubernetes: {pods: on}", "1:20: kubernetes.pods: `on` is none of auto, off, api, directories"),
        (
            "kubernetes: {node_name: 'a,metadata.name=b'}",
            "1:25: kubernetes.node_name: `a,metadata.name=b` is no node's name",
        ),
        ("kubernetes: {kubeconfig: here}", "1:26: kubernetes.kubeconfig: `here` is no absolute path"),
        ("kubernetes: {log_directory: ''}", "1:29: kubernetes.log_directory: `` is no absolute path"),
        (
            "kubernetes: {identity_timeout: 0s}",
            "1:32: kubernetes.identity_timeout: `0s` is out of range: use 1s to 1d",
        ),
        (
            "kubernetes: {watch_timeout: 5m}",
            "1:29: kubernetes.watch_timeout: `5m` is out of range: use 1s to 4m50s",
        ),
        ("web: 3", "1:6: expected `key: value` lines here"),
        ("- a", "1:1: expected `key: value` lines here"),
        ("web: {telemetry_path: [a]}", "1:23: expected a single value here"),
        ("kernel: {required_probes: a}", "1:27: expected a list here"),
        ("kernel: {required_probes: [~]}", "1:28: expected a value here, found nothing"),
        ("log:\n  level: info\n  level: warn", "3:3: the key `level` appears twice: remove one"),
        ("log:\nlog:\n", "2:1: the key `log` appears twice"),
        ("log: {}\n---\nlog: {}\n", "3:1: a second YAML document"),
        ("web: {", "1:"),
        ("web:\n\tlog: 1", "2:"),
        ("web: {<<: {}}", "1:7: merge keys"),
        ("web: *nothing", "1:6: broken YAML"),
    ]);
}

#[test]
fn files() {
    let dir = std::env::temp_dir().join(format!("kernmeter-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("scratch");
    let load = |name: &str| Config::load(Some(&dir.join(name)), &KNOWN).map_err(|error| error.to_string());
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).expect("write");

    assert_eq!(Config::load(None, &KNOWN).expect("defaults"), Config::default());
    write("good.yaml", b"limits: {tenants: 7}");
    assert_eq!(load("good.yaml").map(|config| config.limits.tenants), Ok(7));
    for text in ["", " \n\t\n", "# of this host", "\u{feff}", "---\n", "---\n# x\nnull\n...\n", "~"] {
        write("empty.yaml", text.as_bytes());
        assert!(load("empty.yaml").expect_err("empty").contains("empty.yaml` is empty: write `{}`"));
    }
    write("defaults.yaml", b"{}\n");
    assert_eq!(load("defaults.yaml"), Ok(Config::default()));
    let error = load("none\n.yaml").expect_err("missing");
    assert!(
        error.starts_with("cannot read configuration `/")
            && error.contains("none\\n.yaml")
            && !error.contains('\n'),
        "{error}"
    );
    assert!(load(".").expect_err("directory").contains("is not a regular file"));
    write("utf16.yaml", b"web:\n  # \xff\xfe");
    let error = load("utf16.yaml").expect_err("not UTF-8");
    assert!(error.ends_with("utf16.yaml:2:5: not UTF-8: save the configuration as UTF-8"), "{error}");
    let mut large = b"{} #".to_vec();
    large.resize(FILE_BYTES as usize, b'#');
    write("large.yaml", &large);
    assert_eq!(load("large.yaml"), Ok(Config::default()));
    large.push(b'#');
    write("large.yaml", &large);
    assert!(load("large.yaml").expect_err("too large").contains("larger than 1 MiB"));
    write("broken.yaml", b"web: {max_connections: 0}");
    assert!(load("broken.yaml").expect_err("invalid").contains("broken.yaml:1:24: web.max_connections"));
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn hostile_documents_end_soon() {
    for yaml in [
        "[".repeat(500_000),
        "{a: ".repeat(200_000),
        format!("a: &a [x]\nb: &b [{0}]\nc: &c [{1}]\nweb: *c\n", "*a,".repeat(1000), "*b,".repeat(1000)),
        format!("\"{}\": 1", "k".repeat(900_000)),
        "\u{0}".into(),
        "web: \"\u{1b}[31m\\x1b[31m\"".into(),
    ] {
        let error = parse(&yaml).expect_err("refused");
        assert!(!error.chars().any(char::is_control) && error.len() < 1000, "{error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_one_line(text in any::<String>(), mangle in any::<prop::sample::Index>(), with in any::<char>()) {
        let mut mangled = Config::default_yaml().to_owned();
        let at = mangle.index(mangled.len());
        if mangled.is_char_boundary(at) && mangled.is_char_boundary(at + 1) {
            mangled.replace_range(at..=at, &with.to_string());
        }
        for yaml in [text, mangled] {
            if let Err(error) = parse(&yaml) {
                prop_assert!(!error.chars().any(char::is_control) && error.len() < 1000, "{}", error);
            }
        }
    }
}
