//! In: a tenant template, a cgroup's fields and captures; out: a tenant's name, or why there is none. Matches nothing.

use super::glob::{At, Problem, is_name, shown};
use crate::identity::{CgroupFacts, PodFacts, Users};

/// Longest tenant name, in bytes.
pub const TENANT_BYTES: usize = 63;

/// Longest template, in bytes.
const TEMPLATE_BYTES: usize = 512;

/// Why a rule that matched gave no tenant; it is then as if it had not matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The template names a field that this cgroup does not have.
    Missing,
    /// The name is empty.
    Empty,
    /// The name is longer than [`TENANT_BYTES`].
    TooLong,
    /// The name begins with `_`: reserved.
    Reserved,
    /// The name has a character other than `A-Za-z0-9._-`, or begins with `.` or `-`.
    BadCharacter,
    /// The name is not UTF-8.
    NotUtf8,
    /// Pods of this namespace may not have this tenant by this rule.
    NotAllowed,
}

impl RefusalReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Missing,
        Self::Empty,
        Self::TooLong,
        Self::Reserved,
        Self::BadCharacter,
        Self::NotUtf8,
        Self::NotAllowed,
    ];

    /// The name used in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing_field",
            Self::Empty => "empty",
            Self::TooLong => "too_long",
            Self::Reserved => "reserved",
            Self::BadCharacter => "bad_character",
            Self::NotUtf8 => "not_utf8",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// Accepts `[A-Za-z0-9][A-Za-z0-9._-]{0,62}` and nothing else.
///
/// # Errors
/// What keeps it from being a tenant's name.
pub fn tenant_name(raw: &[u8]) -> Result<&str, RefusalReason> {
    let (Some(first), true) = (raw.first(), raw.len() <= TENANT_BYTES) else {
        return Err(if raw.is_empty() { RefusalReason::Empty } else { RefusalReason::TooLong });
    };
    let name = std::str::from_utf8(raw).map_err(|_| RefusalReason::NotUtf8)?;
    if *first == b'_' {
        return Err(RefusalReason::Reserved);
    }
    if !first.is_ascii_alphanumeric() || !raw.iter().all(|b| allowed(char::from(*b))) {
        return Err(RefusalReason::BadCharacter);
    }
    Ok(name)
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// A built-in field of templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Unit,
    Slice,
    Uid,
    User,
    Runtime,
    ContainerId,
    ContainerIdShort,
    PodUid,
    Machine,
    Namespace,
    Pod,
    Container,
    Top,
}

impl Field {
    pub const ALL: [(&'static str, Self); 13] = [
        ("unit", Self::Unit),
        ("slice", Self::Slice),
        ("uid", Self::Uid),
        ("user", Self::User),
        ("runtime", Self::Runtime),
        ("container_id", Self::ContainerId),
        ("container_id_short", Self::ContainerIdShort),
        ("pod_uid", Self::PodUid),
        ("machine", Self::Machine),
        ("namespace", Self::Namespace),
        ("pod", Self::Pod),
        ("container", Self::Container),
        ("top", Self::Top),
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, field)| *field)
    }
}

/// What rules look at: a cgroup's facts, its user's name and number as text, and its pod where it has one.
pub(super) struct Subject<'a> {
    pub facts: &'a CgroupFacts,
    pub uid: Option<&'a str>,
    pub user: Option<&'a str>,
    pub pod: Option<&'a PodFacts<'a>>,
}

impl<'a> Subject<'a> {
    /// `uid` is the user's number as text. A pod that the cgroup's path does not name is ignored.
    pub fn new(
        facts: &'a CgroupFacts,
        uid: Option<&'a str>,
        users: &'a Users,
        pod: Option<&'a PodFacts<'a>>,
    ) -> Self {
        Self {
            facts,
            uid,
            user: facts.uid.and_then(|uid| users.name(uid)),
            pod: pod.filter(|known| known.of(facts)),
        }
    }

    fn field(&self, field: Field) -> Option<&[u8]> {
        let text = match field {
            Field::Unit => {
                let unit = self.facts.unit.as_deref()?;
                unit.strip_suffix(".service").unwrap_or(unit)
            }
            Field::Slice => {
                let slice = self.facts.slice.as_deref()?;
                slice.strip_suffix(".slice").unwrap_or(slice)
            }
            Field::Uid => self.uid?,
            Field::User => self.user.or(self.uid)?,
            Field::Runtime => self.facts.runtime?.as_str(),
            Field::ContainerId => self.facts.container_id.as_deref()?,
            Field::ContainerIdShort => self.facts.container_id_short()?,
            Field::PodUid => self.facts.pod_uid.as_deref()?,
            Field::Machine => self.facts.machine.as_deref()?,
            Field::Namespace => &*self.pod?.pod.namespace,
            Field::Pod => &*self.pod?.pod.name,
            Field::Container => self.pod?.container?,
            Field::Top => return Some(self.facts.top()).filter(|top| !top.is_empty()),
        };
        Some(text.as_bytes())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Field(Field),
    Capture(usize),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
    /// The first field that who creates a pod chooses, and the character it is at.
    chosen: Option<(usize, &'static str)>,
}

impl Template {
    /// Parses a template against the captures of its rule.
    pub fn new(template: &str, captures: &[String]) -> Result<Self, At> {
        if template.is_empty() {
            return Err((1, Problem::Empty));
        }
        if template.len() > TEMPLATE_BYTES {
            return Err((1, Problem::TooLong(TEMPLATE_BYTES)));
        }
        let chars: Vec<char> = template.chars().collect();
        let mut parts = Vec::new();
        let mut chosen = None;
        let mut literal = String::new();
        let mut fixed = 0;
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            if c == '{' {
                let close = chars[at..].iter().position(|c| *c == '}').ok_or((at + 1, Problem::OpenBrace))?;
                let name: String = chars[at + 1..at + close].iter().collect();
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                let part = part(&name, captures).map_err(|problem| (at + 1, problem))?;
                match part {
                    Part::Field(Field::Pod) => chosen = chosen.or(Some((at + 1, "pod"))),
                    Part::Field(Field::Container) => chosen = chosen.or(Some((at + 1, "container"))),
                    _ => {}
                }
                parts.push(part);
                at += close + 1;
                continue;
            }
            if c == '}' {
                return Err((at + 1, Problem::CloseBrace));
            }
            if !allowed(c) {
                return Err((at + 1, Problem::BadCharacter(c)));
            }
            if at == 0 && !c.is_ascii_alphanumeric() {
                return Err((1, Problem::BadStart(c)));
            }
            literal.push(c);
            fixed += 1;
            at += 1;
        }
        if fixed > TENANT_BYTES {
            return Err((1, Problem::TooLong(TENANT_BYTES)));
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts, chosen })
    }

    /// The first field that who creates a pod chooses: its character, from 1, and its name.
    pub fn chosen_by_pods(&self) -> Option<(usize, &'static str)> {
        self.chosen
    }

    /// Fills the template in.
    pub fn render(&self, subject: &Subject<'_>, held: &[&[u8]]) -> Result<String, RefusalReason> {
        let mut out = Vec::with_capacity(TENANT_BYTES + 1);
        for part in &self.parts {
            let text = match part {
                Part::Literal(text) => text.as_bytes(),
                Part::Field(field) => subject.field(*field).ok_or(RefusalReason::Missing)?,
                Part::Capture(at) => held.get(*at).ok_or(RefusalReason::Missing)?,
            };
            // One byte over is enough to be refused for.
            if out.len() + text.len() > TENANT_BYTES {
                return Err(RefusalReason::TooLong);
            }
            out.extend_from_slice(text);
        }
        tenant_name(&out).map(ToOwned::to_owned)
    }
}

fn part(name: &str, captures: &[String]) -> Result<Part, Problem> {
    if let Some(field) = Field::named(name) {
        return Ok(Part::Field(field));
    }
    if let Some(at) = captures.iter().position(|capture| capture == name) {
        return Ok(Part::Capture(at));
    }
    if !is_name(name) {
        return Err(Problem::BadName(shown(name)));
    }
    let fields = Field::ALL.map(|(name, _)| name).join(", ");
    Err(Problem::UnknownField { name: name.to_owned(), fields })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tenant_names() {
        for name in ["a", "A-1", "0", "shop.example_2", &"x".repeat(63)] {
            assert_eq!(tenant_name(name.as_bytes()), Ok(name));
        }
        for (raw, reason) in [
            (&b""[..], RefusalReason::Empty),
            (&[b'x'; 64], RefusalReason::TooLong),
            (b"_host", RefusalReason::Reserved),
            (b"_", RefusalReason::Reserved),
            (b".a", RefusalReason::BadCharacter),
            (b"-a", RefusalReason::BadCharacter),
            (b"a b", RefusalReason::BadCharacter),
            (b"a/b", RefusalReason::BadCharacter),
            (b"a\n", RefusalReason::BadCharacter),
            (b"a\"", RefusalReason::BadCharacter),
            (b"a\0", RefusalReason::BadCharacter),
            ("\u{e9}".as_bytes(), RefusalReason::BadCharacter),
            (b"a\xff", RefusalReason::NotUtf8),
        ] {
            assert_eq!(tenant_name(raw), Err(reason), "{raw:?}");
        }
    }

    #[test]
    fn refused_templates() {
        let captures = ["app".to_owned()];
        for (template, at) in [
            ("", 1),
            ("_x", 1),
            ("-x", 1),
            ("a b", 2),
            ("a{app", 2),
            ("a}", 2),
            ("x-{nope}", 3),
            ("{}", 1),
            ("{app:**}", 1),
        ] {
            let error = Template::new(template, &captures).expect_err(template);
            assert_eq!(error.0, at, "{template}: {}", error.1);
        }
        assert!(Template::new("{app}-{unit}.x_y", &captures).is_ok());
        assert!(Template::new("{app}", &[]).is_err());
        assert!(Template::new(&"x".repeat(64), &[]).is_err());
        let error = Template::new("{unti}", &[]).expect_err("unknown").1.to_string();
        assert!(error.contains("{unti}") && error.contains("unit, slice"), "{error}");
    }

    proptest! {
        #[test]
        fn only_well_formed_names_pass(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let form = regex::bytes::Regex::new("(?-u)\\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\\z").expect("pattern");
            prop_assert_eq!(tenant_name(&raw).is_ok(), form.is_match(&raw));
        }
    }
}
