//! In: ordered tenant rules, a cgroup's facts and its pod's; out: its tenant and why. Reads nothing and counts nothing.

mod compile;
mod glob;
mod spec;
mod template;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use compile::condition_key;
use compile::{Rule, Then};
pub use glob::{GLOB_BYTES, Problem};
pub use spec::{AllowSpec, MOST_RULES, MatchSpec, Outcome, RuleSet, RuleSpec};
use template::Subject;
pub use template::{RefusalReason, TENANT_BYTES, tenant_name};

use super::pods::{PodFacts, Wanted};
use super::{CgroupFacts, HOST, UNKNOWN, Users};

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
    pub key: Cow<'static, str>,
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
                return Err(RuleError {
                    place: place(MOST_RULES),
                    key: "match".into(),
                    character: 1,
                    problem,
                });
            }
            for (at, spec) in list.iter().enumerate() {
                rules.push(compile::compile(spec, place(at))?);
            }
        }
        if let Some(template) = &set.default {
            rules.push(Rule::default(template)?);
        }
        Ok(Self { rules, host: HOST.into() })
    }

    /// Labels and annotations that these rules look at.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for rule in &self.rules {
            rule.wants(&mut wanted);
        }
        for keys in [
            &mut wanted.pod_labels,
            &mut wanted.pod_annotations,
            &mut wanted.namespace_labels,
            &mut wanted.namespace_annotations,
        ] {
            keys.sort_unstable();
        }
        wanted
    }

    /// The tenant of a cgroup: the first rule that matches, gives an acceptable name, and may give it to this cgroup.
    ///
    /// What is known of a pod counts only for a cgroup whose path names this pod, where none but the kubelet makes
    /// cgroups ([`CgroupFacts::pod_uid`]).
    pub fn evaluate(&self, facts: &CgroupFacts, users: &Users, pod: Option<&PodFacts<'_>>) -> Verdict {
        let uid = facts.uid.map(|uid| uid.to_string());
        let subject = Subject::new(facts, uid.as_deref(), users, pod);
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
            let reason = match name {
                Ok(tenant) if rule.allows(&subject, &tenant) => {
                    return Verdict { tenant, decided_by: Some(rule.place), refusals };
                }
                Ok(_) => RefusalReason::NotAllowed,
                Err(reason) => reason,
            };
            refusals.push(Refusal { place: rule.place, reason });
        }
        Verdict { refusals, ..Verdict::unmatched() }
    }
}

#[cfg(test)]
mod tests;
