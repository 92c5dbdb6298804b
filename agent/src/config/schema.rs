//! In: YAML text; out: a checked [`Config`], or a problem with its place. Every value is read as written, so that one
//! strict parser and one kind of error serve them all.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::values::{
    absolute_path, did_you_mean, duration_in, file_path, listen_address, node_name, one_of, percent_in,
    shown, size_in, telemetry_path, whole_in,
};
use super::yaml::{ConfigProblem, Scalar, at, read, set};
use super::{AttachMode, Auto, Config, Known, LogFormat, LogLevel, PodSource, ReadMode, access};
use crate::catalog::family::Detail;
use crate::identity::UNKNOWN;
use crate::identity::rules::{
    AllowSpec, MatchSpec, Outcome, Place, RuleError, RuleSpec, Rules, condition_key,
};

macro_rules! section {
    ($name:ident { $($(#[$meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct $name { $($(#[$meta])* $field: Option<$type>,)* }
    };
}

section!(RawConfig {
    web: RawWeb,
    log: RawLog,
    kernel: RawKernel,
    drain: RawDrain,
    detail: RawDetail,
    limits: RawLimits,
    tenants: RawTenants,
    kubernetes: RawKubernetes,
    access: access::RawAccess,
});
section!(RawWeb {
    listen_address: Scalar,
    telemetry_path: Scalar,
    max_connections: Scalar,
    config_file: Scalar
});
section!(RawLog { level: Scalar, format: Scalar });
section!(RawKernel {
    memory_budget: Scalar,
    slots: Scalar,
    syscall_rows: Scalar,
    errno_rows: Scalar,
    private_rows: Scalar,
    attach: Scalar,
    read: Scalar,
    required_probes: Vec<Scalar>,
    additional_probes: Vec<Scalar>,
});
section!(RawDrain {
    intervals: RawIntervals,
    cpu: RawRange,
    memory_available: RawRange,
    pressure: RawPressure,
    hysteresis: Scalar,
    dwell: Scalar,
});
section!(RawIntervals { relaxed: Scalar, normal: Scalar, stressed: Scalar });
section!(RawRange { low: Scalar, high: Scalar });
section!(RawPressure { cpu: Scalar, memory: Scalar });
section!(RawDetail { default: Scalar, families: BTreeMap<String, Scalar>, });
section!(RawLimits { series_per_tenant: Scalar, tenants: Scalar, retention: Scalar });
section!(RawTenants { rules: Vec<Spanned<RawRule>>, fallback: Vec<Spanned<RawRule>>, default: Scalar, });
section!(RawKubernetes {
    pods: Scalar,
    node_name: Scalar,
    kubeconfig: Scalar,
    log_directory: Scalar,
    identity_timeout: Scalar,
    start_jitter: Scalar,
    request_timeout: Scalar,
    watch_timeout: Scalar,
});
section!(RawRule {
    #[serde(rename = "match")]
    matches: RawMatch,
    tenant: Scalar,
    reserve: Scalar,
    allow: Spanned<Vec<Spanned<RawAllow>>>,
});
section!(RawAllow { tenants: Vec<Scalar>, namespaces: Vec<Scalar> });
section!(RawMatch {
    cgroup: Scalar,
    unit: Scalar,
    slice: Scalar,
    runtime: Scalar,
    container_id: Scalar,
    pod_uid: Scalar,
    user: Scalar,
    machine: Scalar,
    namespace: Scalar,
    pod: Scalar,
    container: Scalar,
    namespace_labels: BTreeMap<String, Scalar>,
    namespace_annotations: BTreeMap<String, Scalar>,
    pod_labels: BTreeMap<String, Scalar>,
    pod_annotations: BTreeMap<String, Scalar>,
});

const LEVELS: &[(&str, LogLevel)] = &[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const FORMATS: &[(&str, LogFormat)] = &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)];
const POD_SOURCES: &[(&str, PodSource)] = &[
    ("auto", PodSource::Auto),
    ("off", PodSource::Off),
    ("api", PodSource::Api),
    ("directories", PodSource::Directories),
];
const DETAILS: &[(&str, Detail)] = &[
    ("tenant", Detail::Tenant),
    ("namespace", Detail::Namespace),
    ("pod", Detail::Pod),
    ("container", Detail::Container),
];

pub(super) fn parse(text: &str, known: &Known<'_>) -> Result<Config, ConfigProblem> {
    let raw: RawConfig = read(text)?;
    let mut config = Config::default();
    web(&mut config, raw.web.unwrap_or_default())?;
    log(&mut config, raw.log.unwrap_or_default())?;
    kernel(&mut config, raw.kernel.unwrap_or_default(), known)?;
    drain(&mut config, raw.drain.unwrap_or_default())?;
    detail(&mut config, raw.detail.unwrap_or_default(), known)?;
    limits(&mut config, raw.limits.unwrap_or_default())?;
    tenants(&mut config, raw.tenants.unwrap_or_default())?;
    kubernetes(&mut config, raw.kubernetes.unwrap_or_default())?;
    access::read(&mut config.access, raw.access.unwrap_or_default())?;
    Ok(config)
}

/// Values that contradict each other, at the last of them that was given. Defaults agree with each other, so at least
/// one was.
fn agree(
    holds: bool,
    given: &[Option<Location>],
    message: impl FnOnce() -> String,
) -> Result<(), ConfigProblem> {
    if holds {
        return Ok(());
    }
    let location = given.iter().flatten().max_by_key(|location| (location.line(), location.column()));
    Err(at(location.copied().unwrap_or(Location::UNKNOWN), message()))
}

fn web(config: &mut Config, raw: RawWeb) -> Result<(), ConfigProblem> {
    let web = &mut config.web;
    set(&mut web.listen_address, raw.listen_address, "web.listen_address", listen_address)?;
    set(&mut web.telemetry_path, raw.telemetry_path, "web.telemetry_path", telemetry_path)?;
    set(&mut web.max_connections, raw.max_connections, "web.max_connections", whole_in(1..=65_536))?;
    set(&mut web.config_file, raw.config_file, "web.config_file", |text| file_path(text).map(Some))?;
    Ok(())
}

fn log(config: &mut Config, raw: RawLog) -> Result<(), ConfigProblem> {
    set(&mut config.log.level, raw.level, "log.level", one_of(LEVELS))?;
    set(&mut config.log.format, raw.format, "log.format", one_of(FORMATS))?;
    Ok(())
}

fn auto(low: u32, high: u32) -> impl Fn(&str) -> Result<Auto, String> {
    move |text| match text {
        "auto" => Ok(Auto::Auto),
        _ => whole_in(low..=high)(text).map(Auto::Fixed).map_err(|message| message + ", or `auto`"),
    }
}

fn kernel(config: &mut Config, raw: RawKernel, known: &Known<'_>) -> Result<(), ConfigProblem> {
    let kernel = &mut config.kernel;
    set(&mut kernel.memory_budget, raw.memory_budget, "kernel.memory_budget", size_in(4..=4096))?;
    set(
        &mut kernel.slots,
        raw.slots,
        "kernel.slots",
        auto(kernmeter_abi::FIRST_SLOT, kernmeter_abi::MAX_SLOTS),
    )?;
    set(&mut kernel.syscall_rows, raw.syscall_rows, "kernel.syscall_rows", auto(64, 4 << 20))?;
    set(&mut kernel.errno_rows, raw.errno_rows, "kernel.errno_rows", auto(64, 4 << 20))?;
    set(&mut kernel.private_rows, raw.private_rows, "kernel.private_rows", auto(0, 4 << 20))?;
    let attach =
        one_of(&[("auto", AttachMode::Auto), ("raw", AttachMode::Raw), ("event", AttachMode::Event)]);
    set(&mut kernel.attach, raw.attach, "kernel.attach", attach)?;
    let read = one_of(&[("auto", ReadMode::Auto), ("batch", ReadMode::Batch)]);
    set(&mut kernel.read, raw.read, "kernel.read", read)?;
    kernel.required_probes = probes("kernel.required_probes", raw.required_probes, known)?;
    kernel.additional_probes = probes("kernel.additional_probes", raw.additional_probes, known)?;
    Ok(())
}

/// The probes a list names, each once.
fn probes(key: &str, names: Option<Vec<Scalar>>, known: &Known<'_>) -> Result<Vec<String>, ConfigProblem> {
    let mut probes = Vec::new();
    for probe in names.unwrap_or_default() {
        if !known.probes.contains(&probe.value.as_str()) {
            return Err(at(probe.referenced, unknown(key, "probe", &probe.value, known.probes)));
        }
        if !probes.contains(&probe.value) {
            probes.push(probe.value);
        }
    }
    Ok(probes)
}

fn unknown(key: &str, what: &str, name: &str, known: &[&str]) -> String {
    let hint = did_you_mean(name, known);
    let hint = if hint.is_empty() { ": `kernmeter probes` lists them".into() } else { hint };
    format!("{key}: there is no {what} `{}`{hint}", shown(name))
}

fn drain(config: &mut Config, raw: RawDrain) -> Result<(), ConfigProblem> {
    let drain = &mut config.drain;
    // Counters of 32 bits must not wrap within an interval.
    let interval = || duration_in(Duration::from_millis(100)..=Duration::from_mins(5));
    let intervals = raw.intervals.unwrap_or_default();
    let relaxed = set(&mut drain.relaxed, intervals.relaxed, "drain.intervals.relaxed", interval())?;
    let normal = set(&mut drain.normal, intervals.normal, "drain.intervals.normal", interval())?;
    let stressed = set(&mut drain.stressed, intervals.stressed, "drain.intervals.stressed", interval())?;
    agree(
        drain.relaxed <= drain.normal && drain.normal <= drain.stressed,
        &[relaxed, normal, stressed],
        || {
            "drain.intervals: relaxed must not be longer than normal, nor normal than stressed: put them in order".into()
        },
    )?;

    let percent = || percent_in(0.0..=100.0);
    let hysteresis = set(&mut drain.hysteresis, raw.hysteresis, "drain.hysteresis", percent_in(0.0..=50.0))?;
    let points = drain.hysteresis;
    let cpu = raw.cpu.unwrap_or_default();
    let low = set(&mut drain.cpu_low, cpu.low, "drain.cpu.low", percent())?;
    let high = set(&mut drain.cpu_high, cpu.high, "drain.cpu.high", percent())?;
    let apart = |low: f64, high: f64| low < high && low + points <= high;
    let too_near = |key: &str| {
        format!("{key}: low must be below high by at least drain.hysteresis ({points}): move them apart")
    };
    agree(apart(drain.cpu_low, drain.cpu_high), &[low, high, hysteresis], || too_near("drain.cpu"))?;
    let memory = raw.memory_available.unwrap_or_default();
    let low = set(&mut drain.memory_low, memory.low, "drain.memory_available.low", percent())?;
    let high = set(&mut drain.memory_high, memory.high, "drain.memory_available.high", percent())?;
    agree(apart(drain.memory_low, drain.memory_high), &[low, high, hysteresis], || {
        too_near("drain.memory_available")
    })?;

    let pressure = |text: &str| match text {
        "off" => Ok(None),
        _ => percent_in(1.0..=100.0)(text).map(Some).map_err(|message| message + ", or `off`"),
    };
    let raw_pressure = raw.pressure.unwrap_or_default();
    let cpu = set(&mut drain.pressure_cpu, raw_pressure.cpu, "drain.pressure.cpu", pressure)?;
    let memory = set(&mut drain.pressure_memory, raw_pressure.memory, "drain.pressure.memory", pressure)?;
    for (key, threshold, given) in [
        ("drain.pressure.cpu", drain.pressure_cpu, cpu),
        ("drain.pressure.memory", drain.pressure_memory, memory),
    ] {
        // At or below zero stress would never be left.
        agree(threshold.is_none_or(|threshold| threshold > points), &[given, hysteresis], || {
            format!(
                "{key}: must be above drain.hysteresis ({points}), or stress would never end: raise it or write `off`"
            )
        })?;
    }
    set(&mut drain.dwell, raw.dwell, "drain.dwell", duration_in(Duration::ZERO..=Duration::from_hours(1)))?;
    Ok(())
}

fn detail(config: &mut Config, raw: RawDetail, known: &Known<'_>) -> Result<(), ConfigProblem> {
    let detail = &mut config.detail;
    set(&mut detail.default, raw.default, "detail.default", one_of(DETAILS))?;
    for (family, level) in raw.families.unwrap_or_default() {
        // As `kernmeter probes` and a scrape show counters.
        let family = family.strip_suffix("_total").map(str::to_owned).unwrap_or(family);
        if !known.families.contains(&family.as_str()) {
            return Err(at(
                level.referenced,
                unknown("detail.families", "metric family", &family, known.families),
            ));
        }
        let mut value = detail.default;
        set(&mut value, Some(level), &format!("detail.families.{family}"), one_of(DETAILS))?;
        detail.families.insert(family, value);
    }
    Ok(())
}

fn limits(config: &mut Config, raw: RawLimits) -> Result<(), ConfigProblem> {
    let limits = &mut config.limits;
    set(
        &mut limits.series_per_tenant,
        raw.series_per_tenant,
        "limits.series_per_tenant",
        whole_in(10..=1_000_000),
    )?;
    set(&mut limits.tenants, raw.tenants, "limits.tenants", whole_in(1..=100_000))?;
    let week = Duration::from_hours(7 * 24);
    set(&mut limits.retention, raw.retention, "limits.retention", duration_in(Duration::ZERO..=week))?;
    Ok(())
}

fn kubernetes(config: &mut Config, raw: RawKubernetes) -> Result<(), ConfigProblem> {
    let kubernetes = &mut config.kubernetes;
    set(&mut kubernetes.pods, raw.pods, "kubernetes.pods", one_of(POD_SOURCES))?;
    let name = |text: &str| node_name(text).map(Some);
    set(&mut kubernetes.node_name, raw.node_name, "kubernetes.node_name", name)?;
    let file = |text: &str| absolute_path(text).map(Some);
    set(&mut kubernetes.kubeconfig, raw.kubeconfig, "kubernetes.kubeconfig", file)?;
    set(&mut kubernetes.log_directory, raw.log_directory, "kubernetes.log_directory", absolute_path)?;
    let (second, day) = (Duration::from_secs(1), Duration::from_hours(24));
    let identity_timeout = duration_in(second..=day);
    set(
        &mut kubernetes.identity_timeout,
        raw.identity_timeout,
        "kubernetes.identity_timeout",
        identity_timeout,
    )?;
    let jitter = duration_in(Duration::ZERO..=Duration::from_mins(5));
    set(&mut kubernetes.start_jitter, raw.start_jitter, "kubernetes.start_jitter", jitter)?;
    let request = duration_in(Duration::from_millis(100)..=Duration::from_mins(5));
    set(&mut kubernetes.request_timeout, raw.request_timeout, "kubernetes.request_timeout", request)?;
    // The API takes whole seconds, and the client no more than 294.
    let watch = duration_in(second..=Duration::from_secs(290));
    set(&mut kubernetes.watch_timeout, raw.watch_timeout, "kubernetes.watch_timeout", watch)?;
    Ok(())
}

/// Where a rule and its keys are.
#[derive(Default)]
struct RulePlaces {
    rule: Option<Location>,
    keys: Vec<(String, Location)>,
}

fn tenants(config: &mut Config, raw: RawTenants) -> Result<(), ConfigProblem> {
    let tenants = &mut config.tenants;
    let mut places: [Vec<RulePlaces>; 2] = Default::default();
    if let Some(list) = raw.rules {
        (tenants.rules, places[0]) = rules(list, Place::Rule)?;
    }
    if let Some(list) = raw.fallback {
        (tenants.fallback, places[1]) = rules(list, Place::Fallback)?;
    }
    let mut default = None;
    if let Some(raw) = raw.default {
        default = Some(raw.referenced);
        tenants.default = (raw.value != UNKNOWN).then_some(raw.value);
    }
    Rules::compile(tenants).map(|_| ()).map_err(|error: RuleError| {
        let rule = match error.place {
            Place::Rule(index) => places[0].get(index),
            Place::Fallback(index) => places[1].get(index),
            Place::Default => None,
        };
        let key = rule
            .and_then(|rule| rule.keys.iter().find(|(key, _)| *key == error.key))
            .map(|(_, place)| *place);
        let place = key.or(rule.and_then(|rule| rule.rule)).or(default).unwrap_or(Location::UNKNOWN);
        at(place, error.to_string())
    })
}

fn rules(
    list: Vec<Spanned<RawRule>>,
    place: fn(usize) -> Place,
) -> Result<(Vec<RuleSpec>, Vec<RulePlaces>), ConfigProblem> {
    let mut specs = Vec::with_capacity(list.len());
    let mut places = Vec::with_capacity(list.len());
    for (index, raw) in list.into_iter().enumerate() {
        let (here, raw) = (raw.referenced, raw.value);
        let mut keys = Vec::new();
        let mut take = |key: &str, scalar: Option<Scalar>| {
            scalar.map(|scalar| {
                keys.push((key.to_owned(), scalar.referenced));
                scalar.value
            })
        };
        let outcome = match (raw.tenant, raw.reserve) {
            (Some(template), None) => Outcome::Tenant(take("tenant", Some(template)).unwrap_or_default()),
            (None, Some(reserve)) if reserve.value == "host" => Outcome::ReserveHost,
            (None, Some(reserve)) => {
                let message = format!(
                    "{}.reserve: `{}` cannot be reserved: write `host`",
                    place(index),
                    shown(&reserve.value)
                );
                return Err(at(reserve.referenced, message));
            }
            (None, None) => {
                return Err(at(
                    here,
                    format!("{}: gives no tenant: add `tenant: NAME` or `reserve: host`", place(index)),
                ));
            }
            (Some(_), Some(reserve)) => {
                let message = format!("{}: has both `tenant` and `reserve`: leave one out", place(index));
                return Err(at(reserve.referenced, message));
            }
        };
        let given = raw.matches.unwrap_or_default();
        let mut matches = MatchSpec {
            cgroup: take("match.cgroup", given.cgroup),
            unit: take("match.unit", given.unit),
            slice: take("match.slice", given.slice),
            runtime: take("match.runtime", given.runtime),
            container_id: take("match.container_id", given.container_id),
            pod_uid: take("match.pod_uid", given.pod_uid),
            user: take("match.user", given.user),
            machine: take("match.machine", given.machine),
            namespace: take("match.namespace", given.namespace),
            pod: take("match.pod", given.pod),
            container: take("match.container", given.container),
            ..MatchSpec::default()
        };
        for (map, given, into) in [
            ("namespace_labels", given.namespace_labels, &mut matches.namespace_labels),
            ("namespace_annotations", given.namespace_annotations, &mut matches.namespace_annotations),
            ("pod_labels", given.pod_labels, &mut matches.pod_labels),
            ("pod_annotations", given.pod_annotations, &mut matches.pod_annotations),
        ] {
            for (key, glob) in given.unwrap_or_default() {
                let place = condition_key(map, &key);
                into.extend(take(&place, Some(glob)).map(|glob| (key, glob)));
            }
        }
        let allow = raw.allow.map(|list| allowed(list, &mut keys));
        specs.push(RuleSpec { matches, outcome, allow });
        places.push(RulePlaces { rule: Some(here), keys });
    }
    Ok((specs, places))
}

fn allowed(list: Spanned<Vec<Spanned<RawAllow>>>, keys: &mut Vec<(String, Location)>) -> Vec<AllowSpec> {
    keys.push(("allow".into(), list.referenced));
    let entries = list.value.into_iter().enumerate().map(|(index, entry)| {
        let place = format!("allow[{index}]");
        keys.push((place.clone(), entry.referenced));
        let mut globs = |name: &str, list: Option<Vec<Scalar>>| -> Vec<String> {
            let globs = list.unwrap_or_default().into_iter().enumerate();
            globs
                .map(|(n, glob)| {
                    keys.push((format!("{place}.{name}[{n}]"), glob.referenced));
                    glob.value
                })
                .collect()
        };
        AllowSpec {
            tenants: globs("tenants", entry.value.tenants),
            namespaces: globs("namespaces", entry.value.namespaces),
        }
    });
    entries.collect()
}
