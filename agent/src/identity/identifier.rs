//! In: tenant rules, user names, what was told of pods; out: whose a cgroup path is and how sure that is. Counts nothing.

use super::pods::{PodCache, PodEvent, PodFacts, Wanted};
use super::{Certainty, CgroupFacts, Identify, Identity, Rules, Users, Verdict, describe};

/// What will be told of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKnowledge {
    /// Nothing: pods are known by UID.
    None,
    /// Names and namespaces.
    Names,
    /// Their containers, labels and annotations too, and their namespaces'.
    Everything,
}

/// Rules and user names as of the last load, and what was told of pods.
pub struct Identifier {
    rules: Rules,
    users: Users,
    knowledge: PodKnowledge,
    pods: PodCache,
    /// The rules look at namespaces' metadata, and it will be told.
    wants_namespaces: bool,
    lists: Lists,
    /// Counts the reloads.
    generation: u64,
}

/// Whether the list of pods holds the labels that the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    /// It does.
    Fresh,
    /// The rules look at others since the last reload; a new list was asked for.
    Awaited,
    /// That list has begun.
    Begun,
}

impl Identifier {
    /// Knows no pods yet.
    pub fn new(rules: Rules, users: Users, knowledge: PodKnowledge) -> Identifier {
        let wants_namespaces = knowledge == PodKnowledge::Everything && rules.wanted().namespaces();
        let (pods, lists) = (PodCache::default(), Lists::Fresh);
        Identifier { rules, users, knowledge, pods, wants_namespaces, lists, generation: 0 }
    }

    /// Applies new rules and user names. If the rules look at labels that were not asked for before, pods count as unknown
    /// until they have been listed again.
    pub fn reload(&mut self, rules: Rules, users: Users) {
        if self.knowledge == PodKnowledge::Everything && rules.wanted() != self.rules.wanted() {
            self.lists = Lists::Awaited;
        }
        self.wants_namespaces = self.knowledge == PodKnowledge::Everything && rules.wanted().namespaces();
        (self.rules, self.users) = (rules, users);
        self.generation += 1;
    }

    /// Takes in what was told of pods.
    pub fn learn(&mut self, event: PodEvent, now_ns: u64) {
        let lists = match (self.lists, &event) {
            (Lists::Awaited, PodEvent::ListBegins) => Lists::Begun,
            (Lists::Begun, PodEvent::ListComplete) => Lists::Fresh,
            (lists, _) => lists,
        };
        if lists != self.lists {
            self.lists = lists;
            self.generation += 1;
        }
        self.pods.apply(event, now_ns);
    }

    /// Forgets pods that are long gone.
    pub fn expire(&mut self, now_ns: u64) {
        self.pods.expire(now_ns);
    }

    /// What is known of pods.
    pub fn pods(&self) -> &PodCache {
        &self.pods
    }

    /// Whether pods will be told of and no list of them is complete yet.
    pub fn awaits_pods(&self) -> bool {
        self.knowledge != PodKnowledge::None && !self.pods.is_complete()
    }

    /// What the rules want to know of pods.
    pub fn wanted(&self) -> Wanted {
        self.rules.wanted()
    }
}

impl Identify for Identifier {
    fn identify(&self, path: &[u8]) -> Identity {
        let facts = CgroupFacts::recognise(path);
        let mut certainty = Certainty::Settled;
        let mut pod = None;
        if self.knowledge != PodKnowledge::None && facts.pod_uid.is_some() {
            pod = PodFacts::find(&self.pods, &facts);
            let enough = |known: &PodFacts<'_>| {
                self.lists == Lists::Fresh && (known.namespace.is_some() || !self.wants_namespaces)
            };
            let Some(known) = pod.filter(enough) else {
                // Rules that could say more must not be passed over for those that ask for less.
                let workload = describe(&facts, &Verdict::unmatched(), pod.as_ref());
                return Identity { workload, certainty: Certainty::PodUnknown, refusals: Vec::new() };
            };
            if self.knowledge == PodKnowledge::Everything
                && facts.container_id.is_some()
                && known.container.is_none()
            {
                certainty = Certainty::ContainerUnnamed;
            }
        }
        let verdict = self.rules.evaluate(&facts, &self.users, pod.as_ref());
        Identity {
            workload: describe(&facts, &verdict, pod.as_ref()),
            certainty,
            refusals: verdict.refusals.iter().map(|refusal| refusal.reason.as_str()).collect(),
        }
    }

    fn generation(&self) -> u64 {
        // Both only grow, so the sum is another whenever one of them is.
        self.generation + self.pods.generation()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::UNKNOWN;
    use crate::identity::pods::{Container, Namespace, Phase, Pod};
    use crate::identity::rules::{AllowSpec, MatchSpec, Outcome, RuleSet, RuleSpec};

    const UID: &str = "0f859f0d-7d3f-4e6a-9cf2-6b3e5a6d2c11";

    /// The built-in rules, behind one that gives a tenant.
    fn rules(condition: MatchSpec, tenant: &str, allow: Option<Vec<AllowSpec>>) -> Rules {
        let rule = RuleSpec { matches: condition, outcome: Outcome::Tenant(tenant.into()), allow };
        Rules::compile(&RuleSet { rules: vec![rule], ..RuleSet::default() }).expect("a valid rule")
    }

    fn built_in(knowledge: PodKnowledge) -> Identifier {
        let rules = Rules::compile(&RuleSet::default()).expect("the built-in rules are valid");
        Identifier::new(rules, Users::default(), knowledge)
    }

    fn pod(labels: &[(&str, &str)], containers: &[(&str, &str)]) -> Pod {
        Pod {
            uid: UID.into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            resource_version: "1".into(),
            config_hash: None,
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            annotations: Box::default(),
            phase: Phase::Running,
            containers: containers
                .iter()
                .map(|(id, name)| Container { id: id.repeat(64).into(), name: (*name).into() })
                .collect(),
        }
    }

    fn path(id: &str) -> Vec<u8> {
        format!("/kubepods/burstable/pod{UID}/{}", id.repeat(64)).into_bytes()
    }

    fn asked(identifier: &Identifier, id: &str) -> (String, String, Certainty) {
        let Identity { workload, certainty, .. } = identifier.identify(&path(id));
        let labels = [&*workload.namespace, &*workload.pod, &*workload.container].join("/");
        (workload.tenant.to_string(), labels, certainty)
    }

    fn listed(identifier: &mut Identifier, pod: Pod) {
        for event in [PodEvent::ListBegins, PodEvent::Listed(pod), PodEvent::ListComplete] {
            identifier.learn(event, 1);
        }
    }

    #[test]
    fn a_pod_is_unknown_then_nameless_then_settled() {
        let mut identifier = built_in(PodKnowledge::Everything);
        assert_eq!(
            asked(&identifier, "a"),
            (UNKNOWN.into(), format!("/{UID}/aaaaaaaaaaaa"), Certainty::PodUnknown)
        );
        let before = identifier.generation();
        listed(&mut identifier, pod(&[], &[]));
        assert_ne!(identifier.generation(), before);
        assert_eq!(
            asked(&identifier, "a"),
            ("shop".into(), "shop/web-1/aaaaaaaaaaaa".into(), Certainty::ContainerUnnamed)
        );
        let named = Pod { resource_version: "2".into(), ..pod(&[], &[("a", "main")]) };
        identifier.learn(PodEvent::Applied(named), 2);
        assert_eq!(asked(&identifier, "a"), ("shop".into(), "shop/web-1/main".into(), Certainty::Settled));
        // Others are no pods', whatever is known of pods.
        let elsewhere = identifier.identify(b"/user.slice/user-7.slice/kubepods/pod/x");
        assert_eq!(elsewhere.certainty, Certainty::Settled);
    }

    #[test]
    fn directories_name_no_containers() {
        let mut identifier = built_in(PodKnowledge::Names);
        listed(&mut identifier, pod(&[], &[]));
        assert_eq!(asked(&identifier, "a").2, Certainty::Settled);
        let mut without = built_in(PodKnowledge::None);
        listed(&mut without, pod(&[], &[]));
        assert_eq!(asked(&without, "a").2, Certainty::Settled);
    }

    #[test]
    fn a_rule_on_namespaces_is_not_passed_over_before_they_are_known() {
        let condition =
            MatchSpec { namespace_labels: [("team".into(), "{team}".into())].into(), ..MatchSpec::default() };
        let rules = rules(condition, "team-{team}", None);
        let mut identifier = Identifier::new(rules, Users::default(), PodKnowledge::Everything);
        listed(&mut identifier, pod(&[], &[("a", "main")]));
        assert_eq!(
            asked(&identifier, "a"),
            (UNKNOWN.into(), "shop/web-1/main".into(), Certainty::PodUnknown)
        );
        let shop = Namespace {
            name: "shop".into(),
            labels: [("team".into(), "blue".into())].into(),
            annotations: Box::default(),
        };
        identifier.learn(PodEvent::Namespaces(vec![shop]), 2);
        assert_eq!(
            asked(&identifier, "a"),
            ("team-blue".into(), "shop/web-1/main".into(), Certainty::Settled)
        );
    }

    #[test]
    fn labels_wanted_anew_are_waited_for() {
        let mut identifier = built_in(PodKnowledge::Everything);
        listed(&mut identifier, pod(&[], &[("a", "main")]));
        let by_label = || {
            let condition =
                MatchSpec { pod_labels: [("app".into(), "{app}".into())].into(), ..MatchSpec::default() };
            let allow = AllowSpec { tenants: vec!["app-*".into()], namespaces: vec!["shop".into()] };
            rules(condition, "app-{app}", Some(vec![allow]))
        };
        identifier.reload(by_label(), Users::default());
        assert_eq!(asked(&identifier, "a").2, Certainty::PodUnknown);
        // A list that was under way does not count, nor does a change of one pod.
        identifier.learn(PodEvent::ListComplete, 3);
        let labelled = Pod { resource_version: "3".into(), ..pod(&[("app", "till")], &[("a", "main")]) };
        identifier.learn(PodEvent::Applied(labelled.clone()), 3);
        assert_eq!(asked(&identifier, "a").2, Certainty::PodUnknown);
        listed(&mut identifier, labelled);
        assert_eq!(
            asked(&identifier, "a"),
            ("app-till".into(), "shop/web-1/main".into(), Certainty::Settled)
        );
        identifier.reload(by_label(), Users::default());
        assert_eq!(asked(&identifier, "a").2, Certainty::Settled, "the same labels as before");
    }
}
