//! In: all source files; out: complaints about top-level modules of a package that use each other in a circle. Tests are
//! left out: they may look at whatever they test with.

use std::collections::{BTreeMap, BTreeSet};

use super::paths;
use super::source::Source;

/// Roots of packages: folders in which a module is a file or a folder.
const ROOTS: [&str; 7] = [
    "agent-ebpf/abi/src/",
    "agent-ebpf/src/",
    "agent/src/",
    "tests/bench/src/",
    "tests/src/",
    "tests/vm/src/",
    "xtask/src/",
];

type Graph<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Checks every package.
pub fn check(sources: &[Source], complaints: &mut Vec<String>) {
    for root in ROOTS {
        let graph = graph(sources, root);
        let mut done = BTreeSet::new();
        for &module in graph.keys() {
            if let Some(circle) = circle(&graph, module, &mut Vec::new(), &mut done) {
                complaints
                    .push(format!("{root}: modules use each other in a circle: {}", circle.join(" -> ")));
            }
        }
    }
}

/// What each module of a package uses.
fn graph<'a>(sources: &'a [Source], root: &str) -> Graph<'a> {
    let mut graph = Graph::new();
    for source in sources {
        let Some(inside) = source.path.strip_prefix(root) else { continue };
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        // What is in these is the package itself, which its modules may name.
        if matches!(module, "lib" | "main" | "bin") {
            continue;
        }
        let code = source.shipped();
        let used = code.lines().flat_map(|line| paths::modules(code, line)).filter(|used| *used != module);
        graph.entry(module).or_default().extend(used);
    }
    graph
}

/// A circle that can be reached from `module`, unless all that can was looked at before.
fn circle<'a>(
    graph: &Graph<'a>,
    module: &'a str,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<&'a str>> {
    if let Some(start) = path.iter().position(|passed| *passed == module) {
        return Some(path[start..].iter().copied().chain([module]).collect());
    }
    if !done.insert(module) {
        return None;
    }
    path.push(module);
    let found = graph.get(module).into_iter().flatten().find_map(|used| circle(graph, used, path, done));
    path.pop();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(*path, *text)).collect();
        let mut complaints = Vec::new();
        check(&sources, &mut complaints);
        complaints
    }

    #[test]
    fn circles_are_named_once() {
        let circle = complaints(&[
            ("xtask/src/a.rs", "use crate::{b, z};"),
            ("xtask/src/b/mod.rs", "use crate::c::C;"),
            ("xtask/src/c.rs", "fn f() { crate::a::g() }"),
            ("xtask/src/z.rs", "use crate::c;"),
        ]);
        assert_eq!(circle, ["xtask/src/: modules use each other in a circle: a -> b -> c -> a"]);
    }

    #[test]
    fn no_circle_by_tests_or_other_packages() {
        let none = complaints(&[
            ("xtask/src/a.rs", "use crate::b;\nuse crate::a::own;\nuse crate::Item;"),
            ("xtask/src/b.rs", "\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n"),
            ("xtask/src/b/tests.rs", "use crate::a;"),
            ("agent/src/b.rs", "use crate::a;"),
            ("xtask/src/main.rs", "use crate::a;"),
        ]);
        assert!(none.is_empty(), "{none:?}");
    }
}
