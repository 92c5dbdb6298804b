//! In: one rule as configured; out: the rule compiled, or what is wrong with it and where. Orders no rules.

use std::borrow::Cow;

use super::glob::{At, Glob, Problem, shown};
use super::spec::{AllowSpec, MatchSpec, Outcome, RuleSpec};
use super::template::{Field, Subject, Template};
use super::{Place, RuleError};
use crate::identity::Runtime;
use crate::identity::pods::Wanted;
use crate::identity::pods::record::Pair;

/// Longest key of a label or annotation, in bytes: a DNS name, `/`, and 63 more.
const KEY_BYTES: usize = 253 + 1 + 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuntimeIs {
    Any,
    One(Runtime),
}

/// What a glob looks at.
#[derive(Clone, Debug)]
enum On {
    Cgroup,
    Unit,
    Slice,
    ContainerId,
    PodUid,
    User,
    Machine,
    Namespace,
    Pod,
    Container,
    NamespaceLabel(Box<str>),
    NamespaceAnnotation(Box<str>),
    PodLabel(Box<str>),
    PodAnnotation(Box<str>),
}

impl On {
    /// Whether who creates a pod chooses this.
    fn chosen_by_pods(&self) -> bool {
        matches!(self, Self::Pod | Self::Container | Self::PodLabel(_) | Self::PodAnnotation(_))
    }
}

/// What a rule that matched gives.
#[derive(Clone, Debug)]
pub(super) enum Then {
    Tenant(Template),
    ReserveHost,
}

/// Tenants that pods of some namespaces may have.
#[derive(Clone, Debug)]
struct Allow {
    tenants: Vec<Glob>,
    namespaces: Vec<Glob>,
}

/// A compiled rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub place: Place,
    pub then: Then,
    runtime: Option<RuntimeIs>,
    /// In the order of their captures.
    globs: Vec<(On, Glob)>,
    allow: Option<Vec<Allow>>,
}

impl Rule {
    /// The template for what no rule has decided.
    pub fn default(template: &str) -> Result<Self, RuleError> {
        let fail = |(character, problem): At| RuleError {
            place: Place::Default,
            key: "".into(),
            character,
            problem,
        };
        let template = Template::new(template, &[]).map_err(fail)?;
        if let Some((character, field)) = template.chosen_by_pods() {
            return Err(fail((character, Problem::NoAllowHere(field))));
        }
        let then = Then::Tenant(template);
        Ok(Self { place: Place::Default, then, runtime: None, globs: Vec::new(), allow: None })
    }

    /// Whether all conditions hold; appends what captures hold to `held`.
    pub fn matches<'a>(&self, subject: &Subject<'a>, held: &mut Vec<&'a [u8]>) -> bool {
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
                        return [subject.user, subject.uid]
                            .into_iter()
                            .flatten()
                            .any(|text| glob.matches(text.as_bytes(), held));
                    }
                    On::Unit => facts.unit.as_deref(),
                    On::Slice => facts.slice.as_deref(),
                    On::ContainerId => facts.container_id.as_deref(),
                    On::PodUid => facts.pod_uid.as_deref(),
                    On::Machine => facts.machine.as_deref(),
                    On::Namespace => subject.pod.map(|known| &*known.pod.namespace),
                    On::Pod => subject.pod.map(|known| &*known.pod.name),
                    On::Container => subject.pod.and_then(|known| known.container),
                    On::NamespaceLabel(key) => {
                        subject.pod.and_then(|known| value(&known.namespace?.labels, key))
                    }
                    On::NamespaceAnnotation(key) => {
                        subject.pod.and_then(|known| value(&known.namespace?.annotations, key))
                    }
                    On::PodLabel(key) => subject.pod.and_then(|known| value(&known.pod.labels, key)),
                    On::PodAnnotation(key) => {
                        subject.pod.and_then(|known| value(&known.pod.annotations, key))
                    }
                };
                text.is_some_and(|text| glob.matches(text.as_bytes(), held))
            })
    }

    /// Whether this rule may give this tenant to this cgroup.
    pub fn allows(&self, subject: &Subject<'_>, tenant: &str) -> bool {
        let Some(allow) = &self.allow else { return true };
        let Some(known) = subject.pod else { return false };
        let any = |globs: &[Glob], text: &str| {
            globs.iter().any(|glob| glob.matches(text.as_bytes(), &mut Vec::new()))
        };
        allow.iter().any(|entry| any(&entry.tenants, tenant) && any(&entry.namespaces, &known.pod.namespace))
    }

    /// Adds the labels and annotations this rule looks at.
    pub fn wants(&self, wanted: &mut Wanted) {
        for (on, _) in &self.globs {
            let (list, key) = match on {
                On::NamespaceLabel(key) => (&mut wanted.namespace_labels, key),
                On::NamespaceAnnotation(key) => (&mut wanted.namespace_annotations, key),
                On::PodLabel(key) => (&mut wanted.pod_labels, key),
                On::PodAnnotation(key) => (&mut wanted.pod_annotations, key),
                _ => continue,
            };
            if !list.iter().any(|known| **known == **key) {
                list.push(key.to_string());
            }
        }
    }
}

fn value<'a>(pairs: &'a [Pair], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
}

/// The key of a condition on a label or annotation, as [`RuleError::key`] has it.
pub fn condition_key(map: &str, key: &str) -> String {
    format!("match.{map}.{}", shown(key))
}

/// A condition: its key in the configuration, what it looks at, its glob.
type Condition<'a> = (Cow<'static, str>, On, &'a str);

fn conditions(matches: &MatchSpec) -> Vec<Condition<'_>> {
    let mut all: Vec<Condition<'_>> = Vec::new();
    for (key, on, text) in [
        ("match.cgroup", On::Cgroup, &matches.cgroup),
        ("match.unit", On::Unit, &matches.unit),
        ("match.slice", On::Slice, &matches.slice),
        ("match.container_id", On::ContainerId, &matches.container_id),
        ("match.pod_uid", On::PodUid, &matches.pod_uid),
        ("match.user", On::User, &matches.user),
        ("match.machine", On::Machine, &matches.machine),
        ("match.namespace", On::Namespace, &matches.namespace),
        ("match.pod", On::Pod, &matches.pod),
        ("match.container", On::Container, &matches.container),
    ] {
        all.extend(text.as_deref().map(|text| (key.into(), on, text)));
    }
    for (map, on, globs) in [
        ("namespace_labels", On::NamespaceLabel as fn(Box<str>) -> On, &matches.namespace_labels),
        ("namespace_annotations", On::NamespaceAnnotation, &matches.namespace_annotations),
        ("pod_labels", On::PodLabel, &matches.pod_labels),
        ("pod_annotations", On::PodAnnotation, &matches.pod_annotations),
    ] {
        all.extend(
            globs
                .iter()
                .map(|(key, glob)| (condition_key(map, key).into(), on(key.as_str().into()), glob.as_str())),
        );
    }
    all
}

/// Compiles a rule.
pub(super) fn compile(spec: &RuleSpec, place: Place) -> Result<Rule, RuleError> {
    let fail =
        |key: Cow<'static, str>, (character, problem): At| RuleError { place, key, character, problem };
    let matches = &spec.matches;
    let runtime = match matches.runtime.as_deref() {
        None => None,
        Some("any") => Some(RuntimeIs::Any),
        Some(name) => match Runtime::ALL.into_iter().find(|runtime| runtime.as_str() == name) {
            Some(runtime) => Some(RuntimeIs::One(runtime)),
            None => return Err(fail("match.runtime".into(), (1, Problem::Runtime(shown(name))))),
        },
    };
    let mut globs = Vec::new();
    let mut captures: Vec<String> = Vec::new();
    let mut chosen: Option<Cow<'static, str>> = None;
    for (key, on, text) in conditions(matches) {
        if let On::NamespaceLabel(name)
        | On::NamespaceAnnotation(name)
        | On::PodLabel(name)
        | On::PodAnnotation(name) = &on
            && !is_key(name)
        {
            return Err(fail(key, (1, Problem::BadKey(shown(name)))));
        }
        let glob = Glob::new(text).map_err(|at| fail(key.clone(), at))?;
        if matches!(on, On::Cgroup) && !text.starts_with(['/', '*', '?', '[', '{']) {
            return Err(fail(key, (1, Problem::Relative)));
        }
        for name in glob.names() {
            let character = text.find(&format!("{{{name}")).map_or(1, |at| text[..at].chars().count() + 1);
            if Field::named(name).is_some() {
                return Err(fail(key, (character, Problem::BuiltIn(name.clone()))));
            }
            if captures.contains(name) {
                return Err(fail(key, (character, Problem::Repeated(name.clone()))));
            }
            captures.push(name.clone());
        }
        if on.chosen_by_pods() {
            chosen.get_or_insert_with(|| key.clone());
        }
        globs.push((on, glob));
    }
    if globs.is_empty() && runtime.is_none() {
        return Err(fail("match".into(), (1, Problem::NoCondition)));
    }
    let mut at = 1;
    let then = match &spec.outcome {
        Outcome::ReserveHost => Then::ReserveHost,
        Outcome::Tenant(template) => {
            let template = Template::new(template, &captures).map_err(|at| fail("tenant".into(), at))?;
            if let Some((character, _)) = template.chosen_by_pods()
                && chosen.is_none()
            {
                (chosen, at) = (Some("tenant".into()), character);
            }
            Then::Tenant(template)
        }
    };
    let allow = match (&spec.allow, chosen) {
        (None, Some(key)) => return Err(fail(key, (at, Problem::NoAllow))),
        (None, None) => None,
        (Some(entries), _) => Some(compile_allow(entries).map_err(|(key, at)| fail(key.into(), at))?),
    };
    Ok(Rule { place, then, runtime, globs, allow })
}

fn compile_allow(entries: &[AllowSpec]) -> Result<Vec<Allow>, (String, At)> {
    if entries.is_empty() {
        return Err(("allow".into(), (1, Problem::AllowsNothing)));
    }
    let mut all = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let globs = |name: &str, texts: &[String]| {
            if texts.is_empty() {
                return Err((format!("allow[{index}]"), (1, Problem::AllowsNothing)));
            }
            let compiled = texts.iter().enumerate().map(|(n, text)| {
                let key = || format!("allow[{index}].{name}[{n}]");
                let glob = Glob::new(text).map_err(|at| (key(), at))?;
                if glob.names().is_empty() { Ok(glob) } else { Err((key(), (1, Problem::NoCaptures))) }
            });
            compiled.collect::<Result<Vec<Glob>, _>>()
        };
        all.push(Allow {
            tenants: globs("tenants", &entry.tenants)?,
            namespaces: globs("namespaces", &entry.namespaces)?,
        });
    }
    Ok(all)
}

/// Whether this may be the key of a label or annotation.
fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES).contains(&key.len())
        && key.starts_with(|c: char| c.is_ascii_alphanumeric())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'))
}
