//! In: what hooks document of their tracepoints, the kernel's type information; out: where the two contradict each
//! other. Attaches nothing.

use anyhow::{Context, Result, bail};
use kernmeter::btf::{Argument, Btf};
use kernmeter::catalog;
use kernmeter::host::BTF_PATH;

use crate::machine;

/// Major and minor number of a release.
pub type Release = (u32, u32);

/// A documented prototype, such as `f(int a, bool b), since 5.1; without b before`, or `; with long b before`.
#[derive(Debug, PartialEq, Eq)]
struct Documented<'a> {
    tracepoint: &'a str,
    /// Type and name of each argument.
    arguments: Vec<(&'a str, &'a str)>,
    since: Release,
    older: Older<'a>,
}

/// What older kernels have.
#[derive(Debug, PartialEq, Eq)]
enum Older<'a> {
    /// No such tracepoint.
    None,
    /// All arguments but these.
    Without(Vec<&'a str>),
    /// Another type for one of them: type and name.
    With(&'a str, &'a str),
}

/// Compares the prototype each hook documents with what this kernel's type information says.
///
/// # Errors
/// Every contradiction.
pub fn check() -> Result<()> {
    let data = std::fs::read(BTF_PATH).with_context(|| format!("read {BTF_PATH}"))?;
    let btf = Btf::parse(data)?;
    let release = numbers(&machine::release()).context("the kernel's release has no numbers")?;
    let mut wrong = Vec::new();
    let mut hooks = 0;
    for hook in catalog::PROBES.iter().flat_map(|probe| probe.hooks) {
        hooks += 1;
        let documented = parse(hook.prototype)
            .with_context(|| format!("`{}` documents {:?}", hook.program, hook.prototype))?;
        if documented.tracepoint != hook.tracepoint {
            wrong.push(format!("`{}` documents another tracepoint: {}", hook.tracepoint, hook.prototype));
        }
        let found = btf.tracepoint_prototype(hook.tracepoint)?;
        wrong.extend(contradiction(&documented, found.as_deref(), release));
    }
    if !wrong.is_empty() {
        bail!("{} of {hooks} hooks: {}", wrong.len(), wrong.join("; "));
    }
    Ok(())
}

/// Major and minor number at the start of a release.
pub fn numbers(release: &str) -> Option<Release> {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn parse(prototype: &str) -> Option<Documented<'_>> {
    let (head, tail) = prototype.rsplit_once("), since ")?;
    let (tracepoint, arguments) = head.split_once('(')?;
    let (since, rest) = tail.split_once("; ").map_or((tail, None), |(since, rest)| (since, Some(rest)));
    let older = match rest {
        None => Older::None,
        Some(rest) => {
            let rest = rest.strip_suffix(" before")?;
            match rest.strip_prefix("without ") {
                Some(names) => Older::Without(names.split(", ").collect()),
                None => argument(rest.strip_prefix("with ")?).map(|(kind, name)| Older::With(kind, name))?,
            }
        }
    };
    let arguments = arguments.split(',').map(argument).collect::<Option<Vec<_>>>()?;
    let has = |name: &str| arguments.iter().any(|(_, argument)| *argument == name);
    let known = match &older {
        Older::None => true,
        Older::Without(names) => names.iter().all(|name| has(name)),
        Older::With(_, name) => has(name),
    };
    known.then_some(())?;
    Some(Documented { tracepoint, arguments, since: numbers(since)?, older })
}

/// Type and name of an argument.
fn argument(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let start = text.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_')? + 1;
    let (kind, name) = (text[..start].trim(), &text[start..]);
    (!kind.is_empty() && !name.is_empty()).then_some((kind, name))
}

/// What a kernel of this release says against the documentation, if anything.
fn contradiction(documented: &Documented, found: Option<&[Argument]>, release: Release) -> Option<String> {
    let Documented { tracepoint, arguments, since, older } = documented;
    let (major, minor) = *since;
    let is_older = release < *since;
    let mut expected = arguments.clone();
    match older {
        Older::Without(names) if is_older => expected.retain(|(_, name)| !names.contains(name)),
        Older::With(kind, name) if is_older => {
            expected.iter_mut().filter(|(_, own)| own == name).for_each(|own| own.0 = kind);
        }
        _ => {}
    }
    let Some(found) = found else {
        let excused = is_older && *older == Older::None;
        return (!excused).then(|| {
            format!("`{tracepoint}` is documented since {major}.{minor}, but this kernel has none")
        });
    };
    if is_older && *older == Older::None {
        return Some(format!("`{tracepoint}` is documented since {major}.{minor}, but this kernel has it"));
    }
    let same = found.len() == expected.len()
        && found.iter().zip(&expected).all(|(found, (kind, name))| {
            squeezed(&found.type_name) == squeezed(kind)
                && found.name.as_deref().is_none_or(|own| own == *name)
        });
    (!same).then(|| {
        let show = |all: Vec<(&str, &str)>| {
            let one = |(kind, name)| format!("{kind} {name}").replace("* ", "*").trim_end().to_owned();
            all.into_iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let found = found
            .iter()
            .map(|argument| (argument.type_name.as_str(), argument.name.as_deref().unwrap_or_default()));
        format!(
            "`{tracepoint}` has ({}), documented for this kernel is ({})",
            show(found.collect()),
            show(expected)
        )
    })
}

/// Without the spaces that C does not need.
fn squeezed(kind: &str) -> String {
    kind.split_whitespace().collect::<Vec<_>>().join(" ").replace(" *", "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = "sched_switch(bool preempt, struct task_struct *prev, unsigned int prev_state), since 5.18; \
                          without prev_state before";

    fn arguments(types: &[(&str, Option<&str>)]) -> Vec<Argument> {
        types
            .iter()
            .map(|(kind, name)| Argument { type_name: (*kind).to_owned(), name: name.map(str::to_owned) })
            .collect()
    }

    #[test]
    fn every_hook_is_documented_so_that_it_can_be_checked() {
        for hook in catalog::PROBES.iter().flat_map(|probe| probe.hooks) {
            let documented = parse(hook.prototype).unwrap_or_else(|| panic!("{:?}", hook.prototype));
            assert_eq!(documented.tracepoint, hook.tracepoint);
        }
    }

    #[test]
    fn reads_what_is_documented() {
        let documented = parse(SWITCH).unwrap();
        assert_eq!(documented.since, (5, 18));
        assert_eq!(documented.older, Older::Without(vec!["prev_state"]));
        assert_eq!(
            documented.arguments,
            [("bool", "preempt"), ("struct task_struct *", "prev"), ("unsigned int", "prev_state")]
        );
        for wrong in
            ["f(int a)", "f(int a), since", "f(int), since 5.1", "f(int a), since 5.1; without b before"]
                .into_iter()
                .chain(["f(int a), since 5.1; with long b before", "f(int a), since 5.1; with long before"])
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn contradictions_are_seen() {
        let documented = parse(SWITCH).unwrap();
        let new =
            arguments(&[("bool", None), ("struct task_struct *", Some("prev")), ("unsigned int", None)]);
        let old = &new[..2];
        let against = |found: Option<&[Argument]>, release| contradiction(&documented, found, release);
        assert_eq!(against(Some(&new), (5, 18)), None);
        assert_eq!(against(Some(old), (5, 17)), None);
        // An argument too many, too few, of another type, of another name; no tracepoint at all.
        assert!(against(Some(&new), (5, 17)).unwrap().contains("unsigned int"));
        assert!(against(Some(old), (6, 1)).is_some());
        for (place, kind, name) in [(0, "int", "preempt"), (1, "struct task_struct *", "next")] {
            let mut other = new.clone();
            other[place] = arguments(&[(kind, Some(name))]).remove(0);
            assert!(against(Some(&other), (6, 1)).is_some(), "{kind} {name}");
        }
        assert!(against(None, (6, 1)).unwrap().contains("has none"));
        let wider = parse("f(u64 a, int b), since 6.18; with unsigned long a before").unwrap();
        let (narrow, wide) = (("unsigned long", Some("a")), ("u64", Some("a")));
        for (kind, release, is_right) in
            [(wide, (6, 18), true), (narrow, (6, 12), true), (wide, (6, 12), false), (narrow, (6, 18), false)]
        {
            let found = arguments(&[kind, ("int", None)]);
            assert_eq!(
                contradiction(&wider, Some(&found), release).is_none(),
                is_right,
                "{kind:?} {release:?}"
            );
        }
        assert!(contradiction(&wider, None, (5, 10)).is_some());
        let whole = parse("f(int a), since 6.1").unwrap();
        assert_eq!(contradiction(&whole, None, (5, 10)), None);
        assert!(
            contradiction(&whole, Some(&arguments(&[("int", None)])), (5, 10)).unwrap().contains("has it")
        );
    }
}
