//! In: a source file; out: complaints about unit tests that are not where one looks for them. Runs none.

use super::source::Source;

/// Lines of unit tests that a file may end with; more have a file of their own.
const INLINE: usize = 200;

/// Checks one file.
pub fn check(source: &Source, complaints: &mut Vec<String>) {
    let path = &source.path;
    if let Some(of) = path.strip_suffix("_tests.rs") {
        complaints.push(format!("{path}:1: unit tests of `{of}.rs` live in `{of}/tests.rs`"));
    }
    let Some(start) = source.code.find("#[cfg(test)]\nmod tests {") else { return };
    let (before, tests) = source.code.split_at(start);
    let (line, length) = (before.lines().count() + 1, tests.lines().count());
    if length > INLINE {
        let folder = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs")).unwrap_or(path);
        complaints.push(format!(
            "{path}:{line}: {length} lines of unit tests: more than {INLINE} live in `{folder}/tests.rs`"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_in_their_place() {
        let complaints = |path: &str, lines: usize| {
            let text = format!("//! A file.\n\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(lines));
            let mut complaints = Vec::new();
            check(&Source::new(path, text), &mut complaints);
            complaints
        };
        assert!(complaints("agent/src/a.rs", 100).is_empty());
        assert!(complaints("agent/src/a/tests.rs", 0).is_empty());
        assert!(complaints("agent/src/a_tests.rs", 0)[0].ends_with("live in `agent/src/a/tests.rs`"));
        let long = &complaints("agent/src/a/mod.rs", 300)[0];
        assert!(
            long.starts_with("agent/src/a/mod.rs:3: 303 lines") && long.contains("`agent/src/a/tests.rs`"),
            "{long}"
        );
    }
}
