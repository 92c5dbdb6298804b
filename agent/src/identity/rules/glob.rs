//! In: a glob with named captures; out: a matcher over raw bytes in linear time. Knows no cgroups and no tenants.
//!
//! `*` any run without `/`, `**` any run, `?` one byte but `/`, `[abc]` `[a-z]` `[!abc]` one ASCII byte of (or not of) a
//! set, `{name}` a capture of one non-empty run without `/`, `{name:**}` the same across `/`. A `/**` at the end also
//! matches nothing (`/a/**` matches `/a`), and `/**/` also a single `/`. There is no escape character, as systemd's names
//! hold backslashes: `[*]` is a literal `*`, `[{]` a literal `{`. The whole text must match; runs are as long as can be.

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};

/// Longest glob, in bytes.
pub const GLOB_BYTES: usize = 1024;

/// Most captures of one glob.
const CAPTURES: usize = 16;

/// What is wrong with a glob or a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing there.
    #[error("is empty: write a value or leave the key out")]
    Empty,
    /// Too long.
    #[error("is longer than {0} bytes: shorten it")]
    TooLong(usize),
    /// A `{` without its `}`.
    #[error("`{{` is never closed: write `{{name}}`, or `[{{]` for a literal brace")]
    OpenBrace,
    /// A `}` without its `{`.
    #[error("`}}` was never opened: write `{{name}}`, or `[}}]` for a literal brace")]
    CloseBrace,
    /// Not a name.
    #[error(
        "`{{{0}}}` is no capture: write `{{name}}` or `{{name:**}}`, the name of a-z, 0-9 and `_`, beginning with a letter"
    )]
    BadName(String),
    /// The same capture twice in one rule.
    #[error("the capture `{{{0}}}` appears twice in this rule: give each its own name")]
    Repeated(String),
    /// A capture named like a built-in field.
    #[error(
        "`{{{0}}}` is a built-in field: give the capture another name, or write `*` here and use the field in `tenant`"
    )]
    BuiltIn(String),
    /// Too many captures.
    #[error("has more than {CAPTURES} captures: leave some out")]
    Captures,
    /// A `[` without its `]`.
    #[error("`[` is never closed: write `[abc]`, or `[[]` for a literal bracket")]
    OpenBracket,
    /// A set that matches nothing or is not ASCII.
    #[error("`[...]` needs one or more ASCII characters: list them, as in `[abc]` or `[a-z]`")]
    BadSet,
    /// A range that runs backwards.
    #[error("the range `{}-{}` runs backwards: swap its ends", .0.escape_debug(), .1.escape_debug())]
    BadRange(char, char),
    /// The compiled form is too large.
    #[error("is too complex: use fewer wildcards")]
    Complex,
    /// A cgroup glob that can never match.
    #[error("never matches, as cgroup paths begin with `/`: begin it with `/` or `**`")]
    Relative,
    /// Not a runtime.
    #[error("`{0}` is no container runtime: use docker, containerd, crio, podman, nspawn, lxc or any")]
    Runtime(String),
    /// A rule that matches everything.
    #[error(
        "matches nothing in particular: name at least one of cgroup, unit, slice, runtime, container_id, pod_uid, user, machine, namespace, pod, container, namespace_labels, namespace_annotations, pod_labels, pod_annotations"
    )]
    NoCondition,
    /// A template with a name that is neither field nor capture.
    #[error("`{{{name}}}` is neither a capture of this rule nor a built-in field ({fields})")]
    UnknownField {
        /// The name.
        name: String,
        /// What would be known.
        fields: String,
    },
    /// A character no tenant may have.
    #[error("`{}` cannot be part of a tenant: use A-Z, a-z, 0-9, `.`, `_`, `-` and `{{field}}`", .0.escape_debug())]
    BadCharacter(char),
    /// A template that begins with `_`, `.` or `-`.
    #[error("a tenant begins with a letter or digit{hint}", hint = if *.0 == '_' { ", names with `_` first are reserved: for the host's own write `reserve: host`" } else { "" })]
    BadStart(char),
    /// No key of a label or annotation.
    #[error(
        "`{0}` is no key of a label or annotation: write it as in Kubernetes, such as `app` or `example.com/team`"
    )]
    BadKey(String),
    /// A rule by what pods choose themselves, without a list of who may use which tenant.
    #[error(
        "is chosen by who creates a pod: add `allow: [{{ tenants: [...], namespaces: [...] }}]` to the rule, with the tenants that pods of these namespaces may have"
    )]
    NoAllow,
    /// The same in the default, which can have no such list.
    #[error("`{{{0}}}` is chosen by who creates a pod: use it in a rule with `allow`, not here")]
    NoAllowHere(&'static str),
    /// A list of permissions without any.
    #[error("allows nothing: list `tenants` and `namespaces`")]
    AllowsNothing,
    /// A capture where none is of use.
    #[error("has a capture, which means nothing here: write `*`")]
    NoCaptures,
    /// Too many rules.
    #[error("there are more than {0} rules: merge some with wildcards")]
    TooManyRules(usize),
}

/// A problem and the character it is at, from 1.
pub type At = (usize, Problem);

/// A compiled glob.
#[derive(Clone, Debug)]
pub struct Glob {
    regex: Regex,
    /// Capture names, in the order of the groups.
    names: Vec<String>,
}

impl Glob {
    /// Compiles a glob.
    ///
    /// # Errors
    /// What is wrong, and at which character.
    pub fn new(glob: &str) -> Result<Self, At> {
        if glob.is_empty() {
            return Err((1, Problem::Empty));
        }
        if glob.len() > GLOB_BYTES {
            return Err((1, Problem::TooLong(GLOB_BYTES)));
        }
        let chars: Vec<char> = glob.chars().collect();
        let mut names = Vec::new();
        let mut pattern = String::from("(?s-u)\\A(?:");
        let mut at = 0;
        while at < chars.len() {
            let rest = &chars[at..];
            at += match rest {
                ['/', '*', '*', '/', ..] => {
                    pattern.push_str("/(?:.*/)?");
                    4
                }
                ['/', '*', '*'] => {
                    pattern.push_str("(?:/.*)?");
                    3
                }
                ['*', '*', ..] => {
                    pattern.push_str(".*");
                    2
                }
                ['*', ..] => {
                    pattern.push_str("[^/]*");
                    1
                }
                ['?', ..] => {
                    pattern.push_str("[^/]");
                    1
                }
                ['[', ..] => set(rest, &mut pattern).map_err(|problem| (at + 1, problem))?,
                ['{', ..] => {
                    let (name, deep, used) = capture(rest).map_err(|problem| (at + 1, problem))?;
                    if names.contains(&name) {
                        return Err((at + 1, Problem::Repeated(name)));
                    }
                    if names.len() == CAPTURES {
                        return Err((at + 1, Problem::Captures));
                    }
                    names.push(name);
                    pattern.push_str(if deep { "(.+)" } else { "([^/]+)" });
                    used
                }
                ['}', ..] => return Err((at + 1, Problem::CloseBrace)),
                [literal, ..] => {
                    pattern.push_str(&regex::escape(literal.encode_utf8(&mut [0; 4])));
                    1
                }
                [] => break,
            };
        }
        pattern.push_str(")\\z");
        let regex = RegexBuilder::new(&pattern)
            .size_limit(1 << 20)
            .dfa_size_limit(128 << 10)
            .build()
            .map_err(|_| (1, Problem::Complex))?;
        Ok(Self { regex, names })
    }

    /// The captures' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Matches the whole text and appends what each capture holds to `into`, in the order of [`names`](Self::names).
    /// Without a match nothing is appended.
    pub fn matches<'t>(&self, text: &'t [u8], into: &mut Vec<&'t [u8]>) -> bool {
        if self.names.is_empty() {
            return self.regex.is_match(text);
        }
        let Some(found) = self.regex.captures(text) else { return false };
        // Every group is part of every match, so none is ever absent.
        into.extend(
            (1..=self.names.len()).map(|group| found.get(group).map_or(&[][..], |held| held.as_bytes())),
        );
        true
    }
}

/// `{name}` or `{name:**}`: the name, whether it crosses `/`, and how many characters it takes.
fn capture(rest: &[char]) -> Result<(String, bool, usize), Problem> {
    let close = rest.iter().position(|c| *c == '}').ok_or(Problem::OpenBrace)?;
    let inner: String = rest[1..close].iter().collect();
    let (name, deep) = match inner.strip_suffix(":**") {
        Some(name) => (name, true),
        None => (inner.as_str(), false),
    };
    if is_name(name) { Ok((name.to_owned(), deep, close + 1)) } else { Err(Problem::BadName(shown(&inner))) }
}

/// Whether this may name a capture.
pub fn is_name(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// A piece of the configuration for an error line.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

/// `[...]` up to its `]`; one directly after `[` or `[!` is a member.
fn set(rest: &[char], pattern: &mut String) -> Result<usize, Problem> {
    let negated = rest.get(1) == Some(&'!');
    let first = if negated { 2 } else { 1 };
    let close = rest
        .iter()
        .enumerate()
        .skip(first + 1)
        .find_map(|(at, c)| (*c == ']').then_some(at))
        .ok_or(Problem::OpenBracket)?;
    let members = &rest[first..close];
    if !members.iter().all(char::is_ascii) {
        return Err(Problem::BadSet);
    }
    pattern.push_str(if negated { "[^/" } else { "[" });
    let mut at = 0;
    while at < members.len() {
        let (low, high, used) = match &members[at..] {
            [low, '-', high, ..] => (*low, *high, 3),
            [one, ..] => (*one, *one, 1),
            [] => break,
        };
        if low > high {
            return Err(Problem::BadRange(low, high));
        }
        let _ = write!(pattern, "\\x{:02x}-\\x{:02x}", low as u32, high as u32);
        at += used;
    }
    pattern.push(']');
    Ok(close + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(glob: &str, text: &[u8]) -> Option<Vec<String>> {
        let glob = Glob::new(glob).expect("valid glob");
        let mut held = Vec::new();
        glob.matches(text, &mut held)
            .then(|| held.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect())
    }

    #[test]
    fn matching() {
        for (glob, text, held) in [
            ("/a/*", "/a/b", Some(&[][..])),
            ("/a/*", "/a/", Some(&[])),
            ("/a/*", "/a/b/c", None),
            ("/a/*", "x/a/b", None),
            ("/a/**", "/a", Some(&[])),
            ("/a/**", "/a/b/c", Some(&[])),
            ("/a/**", "/ab", None),
            ("/**", "/", Some(&[])),
            ("**", "", Some(&[])),
            ("/a/**/z", "/a/z", Some(&[])),
            ("/a/**/z", "/a/b/c/z", Some(&[])),
            ("/a/**/z", "/a/bz", None),
            ("a**z", "a/b/z", Some(&[])),
            ("a?c", "abc", Some(&[])),
            ("a?c", "a/c", None),
            ("a?c", "ac", None),
            ("[abc]x", "bx", Some(&[])),
            ("[abc]x", "dx", None),
            ("[!abc]x", "dx", Some(&[])),
            ("[!abc]x", "/x", None),
            ("[a-c0-9]", "7", Some(&[])),
            ("[]]", "]", Some(&[])),
            ("[!]]", "a", Some(&[])),
            ("[*][{][?]", "*{?", Some(&[])),
            ("[a-]", "-", Some(&[])),
            ("[\\]", "\\", Some(&[])),
            ("a.c", "abc", None),
            ("a\\x2db", "a\\x2db", Some(&[])),
            ("app-{name}.service", "app-web-1.service", Some(&["web-1"])),
            ("app-{name}.service", "app-.service", None),
            ("{a}-{b}", "x-y-z", Some(&["x-y", "z"])),
            ("/{a}/{b:**}", "/x/y/z", Some(&["x", "y/z"])),
            ("/{a}", "/x/y", None),
            ("caf\u{e9}", "caf\u{e9}", Some(&[])),
            ("A", "a", None),
        ] {
            assert_eq!(
                captured(glob, text.as_bytes()),
                held.map(|h| h.iter().map(ToString::to_string).collect()),
                "{glob} {text}"
            );
        }
        assert!(
            captured("/*/\u{e9}?", b"/\xff\n\x00/\xc3\xa9\xfe").is_some(),
            "invalid UTF-8 and control bytes match wildcards"
        );
        assert!(captured("[!a]", b"\xff").is_some());
    }

    #[test]
    fn refused() {
        for (glob, at, problem) in [
            ("", 1, Problem::Empty),
            ("/a/{x", 4, Problem::OpenBrace),
            ("/a}", 3, Problem::CloseBrace),
            ("{}", 1, Problem::BadName(String::new())),
            ("{A}", 1, Problem::BadName("A".into())),
            ("{a:*}", 1, Problem::BadName("a:*".into())),
            ("{a\n}", 1, Problem::BadName("a\\n".into())),
            ("{a}{b}{a}", 7, Problem::Repeated("a".into())),
            ("a[", 2, Problem::OpenBracket),
            ("[]", 1, Problem::OpenBracket),
            ("[!]", 1, Problem::OpenBracket),
            ("\u{e9}[z-a]", 2, Problem::BadRange('z', 'a')),
            ("[\u{e9}]", 1, Problem::BadSet),
        ] {
            assert_eq!(Glob::new(glob).map(|_| ()), Err((at, problem)), "{glob}");
        }
        assert_eq!(Glob::new(&"x".repeat(1025)).map(|_| ()), Err((1, Problem::TooLong(GLOB_BYTES))));
        let many = (0..17).fold(String::new(), |many, n| many + &format!("{{a{n}}}"));
        assert!(matches!(Glob::new(&many), Err((_, Problem::Captures))));
        assert!(Glob::new(&"**".repeat(512)).is_ok(), "wildcards are cheap");
    }

    proptest! {
        #[test]
        fn any_text_compiles_or_is_refused(glob in "\\PC{0,60}", text in proptest::collection::vec(any::<u8>(), 0..300)) {
            match Glob::new(&glob) {
                Ok(compiled) => {
                    let mut held = Vec::new();
                    let matched = compiled.matches(&text, &mut held);
                    prop_assert_eq!(held.len(), if matched { compiled.names().len() } else { 0 });
                    prop_assert!(held.iter().all(|bytes| !bytes.is_empty()));
                }
                Err((at, problem)) => {
                    prop_assert!(at >= 1 && at <= glob.chars().count() + 1);
                    prop_assert!(!problem.to_string().contains('\n'));
                }
            }
        }

        #[test]
        fn literals_match_themselves_alone(text in "[a-zA-Z0-9/.@:\\\\_+$^|()#&~ -]{1,40}", other in "[a-z/.]{1,40}") {
            prop_assume!(text != other);
            prop_assert!(captured(&text, text.as_bytes()).is_some());
            prop_assert!(captured(&text, other.as_bytes()).is_none());
        }
    }
}
