//! In: nothing; out: tenant rules as they are configured, and the built-in ones. Checks and matches nothing.

use std::collections::BTreeMap;

/// Most rules of one list.
pub const MOST_RULES: usize = 1000;

/// What a rule matches on: every condition given must hold. The syntax of globs is that of `glob`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchSpec {
    /// Glob over the cgroup path.
    pub cgroup: Option<String>,
    /// Glob over the systemd unit, with its suffix.
    pub unit: Option<String>,
    /// Glob over the systemd slice, with its suffix.
    pub slice: Option<String>,
    /// A runtime's name, or `any`.
    pub runtime: Option<String>,
    /// Glob over the full container id.
    pub container_id: Option<String>,
    /// Glob over the pod's UID.
    pub pod_uid: Option<String>,
    /// Glob over the user's name or number.
    pub user: Option<String>,
    /// Glob over the machine's name.
    pub machine: Option<String>,
    /// Glob over the pod's namespace.
    pub namespace: Option<String>,
    /// Glob over the pod's name. Who may create a pod chooses it.
    pub pod: Option<String>,
    /// Glob over the container's name in its pod. Who may create a pod chooses it.
    pub container: Option<String>,
    /// Globs over labels of the pod's namespace, by key.
    pub namespace_labels: BTreeMap<String, String>,
    /// Globs over annotations of the pod's namespace, by key.
    pub namespace_annotations: BTreeMap<String, String>,
    /// Globs over the pod's labels, by key. Who may create a pod chooses them.
    pub pod_labels: BTreeMap<String, String>,
    /// Globs over the pod's annotations, by key. Who may create a pod chooses them.
    pub pod_annotations: BTreeMap<String, String>,
}

/// What a rule gives to what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A tenant by template.
    Tenant(String),
    /// The reserved tenant of the host.
    ReserveHost,
}

/// Tenants that pods of some namespaces may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowSpec {
    /// Globs over tenants.
    pub tenants: Vec<String>,
    /// Globs over namespaces.
    pub namespaces: Vec<String>,
}

/// A rule as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// Its conditions.
    pub matches: MatchSpec,
    /// What it gives.
    pub outcome: Outcome,
    /// To pods of which namespaces it may give which tenants; `None` is no restriction, and refused where the rule looks
    /// at anything that pods choose themselves.
    pub allow: Option<Vec<AllowSpec>>,
}

impl RuleSpec {
    /// A rule without restriction.
    pub fn new(matches: MatchSpec, outcome: Outcome) -> Self {
        Self { matches, outcome, allow: None }
    }
}

/// All rules as configured, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The administrator's.
    pub rules: Vec<RuleSpec>,
    /// Asked when none of those applies.
    pub fallback: Vec<RuleSpec>,
    /// Template for what is left; `None` leaves it unknown.
    pub default: Option<String>,
}

impl Default for RuleSet {
    /// The host's own to the host, users before containers (a user can name cgroups as he likes within his own slice),
    /// pods by namespace, or by UID while it is not known, containers, machines; anything else by its first path
    /// component.
    fn default() -> Self {
        let none = MatchSpec::default();
        let some = |text: &str| Some(text.to_owned());
        let rule = |matches, tenant: &str| RuleSpec::new(matches, Outcome::Tenant(tenant.to_owned()));
        let host = |cgroup: &str| {
            RuleSpec::new(MatchSpec { cgroup: some(cgroup), ..MatchSpec::default() }, Outcome::ReserveHost)
        };
        Self {
            rules: Vec::new(),
            fallback: vec![
                host("/"),
                host("/init.scope"),
                rule(MatchSpec { user: some("*"), ..none.clone() }, "user-{user}"),
                rule(MatchSpec { user: some("*"), ..none.clone() }, "user-{uid}"),
                rule(MatchSpec { namespace: some("*"), ..none.clone() }, "{namespace}"),
                rule(MatchSpec { pod_uid: some("*"), ..none.clone() }, "pod-{pod_uid}"),
                rule(
                    MatchSpec { runtime: some("any"), container_id: some("*"), ..none.clone() },
                    "{runtime}-{container_id_short}",
                ),
                rule(MatchSpec { container_id: some("*"), ..none.clone() }, "container-{container_id_short}"),
                rule(MatchSpec { machine: some("*"), ..none }, "machine-{machine}"),
                host("/system.slice/**"),
            ],
            default: some("{top}"),
        }
    }
}
