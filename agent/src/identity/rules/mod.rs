//! In: ordered tenant rules and a cgroup's facts; out: its tenant and why. Reads nothing and counts nothing.

mod glob;
mod template;

use std::fmt;
use std::sync::Arc;

pub use glob::{GLOB_BYTES, Problem};
pub use template::{RefusalReason, TENANT_BYTES, tenant_name};

use glob::{At, Glob, shown};
use template::{Field, Subject, Template};

use super::pods::{PodFacts, Wanted};
use super::{CgroupFacts, HOST, Runtime, UNKNOWN, Users};

/// Most rules of one list.
pub const MOST_RULES: usize = 1000;

/// What a rule matches on: every condition given must hold. See [`glob`] for the syntax.
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
}

/// What a rule gives to what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A tenant by template.
    Tenant(String),
    /// The reserved tenant of the host.
    ReserveHost,
}

/// A rule as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// Its conditions.
    pub matches: MatchSpec,
    /// What it gives.
    pub outcome: Outcome,
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
    /// pods, containers, machines; anything else by its first path component.
    fn default() -> Self {
        let none = MatchSpec::default();
        let some = |text: &str| Some(text.to_owned());
        let rule = |matches, tenant: &str| RuleSpec { matches, outcome: Outcome::Tenant(tenant.to_owned()) };
        let host = |cgroup: &str| RuleSpec {
            matches: MatchSpec { cgroup: some(cgroup), ..MatchSpec::default() },
            outcome: Outcome::ReserveHost,
        };
        Self {
            rules: Vec::new(),
            fallback: vec![
                host("/"),
                host("/init.scope"),
                rule(MatchSpec { user: some("*"), ..none.clone() }, "user-{user}"),
                rule(MatchSpec { user: some("*"), ..none.clone() }, "user-{uid}"),
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

/// Where a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In `rules`, from 0.
    Rule(usize),
    /// In `fallback`, from 0.
    Fallback(usize),
    /// The `default` template.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(at) => write!(f, "tenants.rules[{at}]"),
            Self::Fallback(at) => write!(f, "tenants.fallback[{at}]"),
            Self::Default => f.write_str("tenants.default"),
        }
    }
}

/// A rule that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{dot}{key}: {problem} (character {character})", dot = if .key.is_empty() { "" } else { "." })]
pub struct RuleError {
    /// Which rule.
    pub place: Place,
    /// Which of its keys, such as `match.cgroup`; empty for the default.
    pub key: &'static str,
    /// At which character of the value, from 1.
    pub character: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// A rule that matched but whose template gave no acceptable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which rule.
    pub place: Place,
    /// Why.
    pub reason: RefusalReason,
}

/// Whose a cgroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The tenant; never empty.
    pub tenant: Arc<str>,
    /// What decided; `None` if nothing applied and the tenant is [`UNKNOWN`].
    pub decided_by: Option<Place>,
    /// Rules that matched before but were refused, in order.
    pub refusals: Vec<Refusal>,
}

impl Verdict {
    /// The verdict on what no rule knows.
    pub fn unmatched() -> Self {
        Self { tenant: UNKNOWN.into(), decided_by: None, refusals: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuntimeIs {
    Any,
    One(Runtime),
}

/// The subjects that globs look at, in the order of their captures.
#[derive(Clone, Copy, Debug)]
enum On {
    Cgroup,
    Unit,
    Slice,
    ContainerId,
    PodUid,
    User,
    Machine,
}

#[derive(Clone, Debug)]
enum Then {
    Tenant(Template),
    ReserveHost,
}

#[derive(Clone, Debug)]
struct Rule {
    place: Place,
    runtime: Option<RuntimeIs>,
    globs: Vec<(On, Glob)>,
    then: Then,
}

/// Compiled rules.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    host: Arc<str>,
}

impl Rules {
    /// Compiles rules.
    ///
    /// # Errors
    /// The first rule that makes no sense, with the key and character.
    pub fn compile(set: &RuleSet) -> Result<Self, RuleError> {
        let mut rules = Vec::with_capacity(set.rules.len() + set.fallback.len() + 1);
        for (list, place) in [
            (&set.rules, Place::Rule as fn(usize) -> Place),
            (&set.fallback, Place::Fallback as fn(usize) -> Place),
        ] {
            if list.len() > MOST_RULES {
                let problem = Problem::TooManyRules(MOST_RULES);
                return Err(RuleError { place: place(MOST_RULES), key: "match", character: 1, problem });
            }
            for (at, spec) in list.iter().enumerate() {
                rules.push(compile_rule(spec, place(at))?);
            }
        }
        if let Some(template) = &set.default {
            let template = Template::new(template, &[]).map_err(|(character, problem)| RuleError {
                place: Place::Default,
                key: "",
                character,
                problem,
            })?;
            rules.push(Rule {
                place: Place::Default,
                runtime: None,
                globs: Vec::new(),
                then: Then::Tenant(template),
            });
        }
        Ok(Self { rules, host: HOST.into() })
    }

    /// Labels and annotations that these rules look at.
    pub fn wanted(&self) -> Wanted {
        Wanted::default()
    }

    /// The tenant of a cgroup: the first rule that matches and gives an acceptable name.
    pub fn evaluate(&self, facts: &CgroupFacts, users: &Users, _pod: Option<&PodFacts<'_>>) -> Verdict {
        let subject = Subject::new(facts, users);
        let mut refusals = Vec::new();
        let mut held = Vec::new();
        for rule in &self.rules {
            held.clear();
            if !rule.matches(&subject, &mut held) {
                continue;
            }
            let name = match &rule.then {
                Then::ReserveHost => Ok(self.host.clone()),
                Then::Tenant(template) => template.render(&subject, &held).map(Arc::from),
            };
            match name {
                Ok(tenant) => return Verdict { tenant, decided_by: Some(rule.place), refusals },
                Err(reason) => refusals.push(Refusal { place: rule.place, reason }),
            }
        }
        Verdict { refusals, ..Verdict::unmatched() }
    }
}

impl Rule {
    fn matches<'a>(&self, subject: &'a Subject<'a>, held: &mut Vec<&'a [u8]>) -> bool {
        let facts = subject.facts;
        let runtime = match self.runtime {
            None => true,
            Some(RuntimeIs::Any) => facts.runtime.is_some(),
            Some(RuntimeIs::One(runtime)) => facts.runtime == Some(runtime),
        };
        runtime
            && self.globs.iter().all(|(on, glob)| {
                let text = match on {
                    On::Cgroup => return glob.matches(&facts.path, held),
                    On::User => {
                        return [subject.user, subject.uid.as_deref()]
                            .into_iter()
                            .flatten()
                            .any(|text| glob.matches(text.as_bytes(), held));
                    }
                    On::Unit => &facts.unit,
                    On::Slice => &facts.slice,
                    On::ContainerId => &facts.container_id,
                    On::PodUid => &facts.pod_uid,
                    On::Machine => &facts.machine,
                };
                text.as_ref().is_some_and(|text| glob.matches(text.as_bytes(), held))
            })
    }
}

fn compile_rule(spec: &RuleSpec, place: Place) -> Result<Rule, RuleError> {
    let fail = |key, (character, problem): At| RuleError { place, key, character, problem };
    let matches = &spec.matches;
    let runtime = match matches.runtime.as_deref() {
        None => None,
        Some("any") => Some(RuntimeIs::Any),
        Some(name) => match Runtime::ALL.into_iter().find(|runtime| runtime.as_str() == name) {
            Some(runtime) => Some(RuntimeIs::One(runtime)),
            None => return Err(fail("match.runtime", (1, Problem::Runtime(shown(name))))),
        },
    };
    let mut globs = Vec::new();
    let mut captures: Vec<String> = Vec::new();
    for (key, on, text) in [
        ("match.cgroup", On::Cgroup, &matches.cgroup),
        ("match.unit", On::Unit, &matches.unit),
        ("match.slice", On::Slice, &matches.slice),
        ("match.container_id", On::ContainerId, &matches.container_id),
        ("match.pod_uid", On::PodUid, &matches.pod_uid),
        ("match.user", On::User, &matches.user),
        ("match.machine", On::Machine, &matches.machine),
    ] {
        let Some(text) = text else { continue };
        let glob = Glob::new(text).map_err(|at| fail(key, at))?;
        if matches!(on, On::Cgroup) && !text.starts_with(['/', '*', '?', '[', '{']) {
            return Err(fail(key, (1, Problem::Relative)));
        }
        for name in glob.names() {
            let character =
                |name: &str| text.find(&format!("{{{name}")).map_or(1, |at| text[..at].chars().count() + 1);
            if Field::named(name).is_some() {
                return Err(fail(key, (character(name), Problem::BuiltIn(name.clone()))));
            }
            if captures.contains(name) {
                return Err(fail(key, (character(name), Problem::Repeated(name.clone()))));
            }
            captures.push(name.clone());
        }
        globs.push((on, glob));
    }
    if globs.is_empty() && runtime.is_none() {
        return Err(fail("match", (1, Problem::NoCondition)));
    }
    let then = match &spec.outcome {
        Outcome::ReserveHost => Then::ReserveHost,
        Outcome::Tenant(template) => {
            Then::Tenant(Template::new(template, &captures).map_err(|at| fail("tenant", at))?)
        }
    };
    Ok(Rule { place, runtime, globs, then })
}

#[cfg(test)]
mod tests;
