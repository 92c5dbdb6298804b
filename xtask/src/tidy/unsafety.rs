//! In: a source file; out: complaints about `unsafe` where it may not be, or without the reason why it is sound.

use super::source::Source;

/// The only files that may say `unsafe`: those that talk to the kernel through memory, and the tests that play it
/// hostile programs. A path that ends in `/` stands for all below it.
const ALLOWED: [&str; 7] = [
    "agent-ebpf/src/",
    "agent/src/kernel/region.rs",
    // The counting allocator of the unit tests.
    "agent/src/allocations.rs",
    "agent/src/lifecycle.rs",
    "agent/src/kernel/event.rs",
    "agent/src/kernel/wake.rs",
    "tests/",
];

/// Lines of one statement that may lie between the reason and the word.
const STATEMENT: usize = 4;

/// Checks one file.
pub fn check(source: &Source, complaints: &mut Vec<String>) {
    let allowed = ALLOWED
        .iter()
        .any(|path| source.path == *path || (path.ends_with('/') && source.path.starts_with(path)));
    let text: Vec<&str> = source.text.lines().collect();
    for (index, code) in source.code.lines().enumerate() {
        if !says_unsafe(code) {
            continue;
        }
        let place = format!("{}:{}", source.path, index + 1);
        if !allowed {
            complaints.push(format!(
                "{place}: `unsafe` is not allowed here (xtask/src/tidy/unsafety.rs lists where)"
            ));
        } else if !is_reasoned(&text, index) {
            complaints.push(format!(
                "{place}: `unsafe` needs a `// SAFETY:` comment above it that says why it is sound"
            ));
        }
    }
}

/// Whether a line opens an unsafe block, function, impl or extern block. Attributes such as `#[unsafe(no_mangle)]` and
/// lints named `unsafe_...` do not; a function pointer's type does not either.
fn says_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        let starts = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let after = after.trim_start();
        let opens = after.is_empty()
            || after.starts_with('{')
            || after.starts_with("impl")
            || after.starts_with("trait")
            || after.starts_with("extern") && !after.contains("fn(")
            || after.starts_with("fn ");
        starts && opens
    })
}

/// Whether the comment above the statement (attributes, and the statement's own first lines, may lie between) says
/// `SAFETY:`, or a documentation comment has a `# Safety` section.
fn is_reasoned(text: &[&str], index: usize) -> bool {
    let is_comment = |line: &str| line.starts_with("//");
    let mut statement = 0;
    let mut seen_comment = false;
    for line in text[..index].iter().rev().map(|line| line.trim()) {
        if is_comment(line) {
            seen_comment = true;
            if line.contains("SAFETY:") || line.contains("# Safety") {
                return true;
            }
        } else if seen_comment || line.is_empty() {
            return false;
        } else if !line.starts_with("#[") {
            // Still the same statement only while nothing above ends one.
            statement += 1;
            if statement > STATEMENT || line.ends_with([';', '}']) || line.ends_with('{') && statement > 1 {
                return false;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> usize {
        let mut complaints = Vec::new();
        check(&Source::new(path, text), &mut complaints);
        complaints.len()
    }

    #[test]
    fn only_listed_files() {
        let text = "// SAFETY: a reason.\nunsafe { f() }\n";
        assert_eq!(complaints("agent/src/kernel/region.rs", text), 0);
        assert_eq!(complaints("agent-ebpf/src/row.rs", text), 0);
        assert_eq!(complaints("agent/src/drain/fold.rs", text), 1);
        assert_eq!(complaints("agent/src/lifecycle.rs.rs", text), 1);
    }

    #[test]
    fn reasons() {
        let path = "tests/src/a.rs";
        for reasoned in [
            "// SAFETY: a reason\n// on two lines.\nlet a = unsafe { f() };",
            "// SAFETY: a reason.\nlet a =\n    unsafe { f() };",
            "/// Does.\n///\n/// # Safety\n/// Says.\n#[inline]\npub unsafe fn f() {}",
            "#[unsafe(no_mangle)]\nstatic A: u8 = 0;",
            "type F = unsafe fn(u8); // unsafe {",
            "let a = \"unsafe { }\";",
        ] {
            assert_eq!(complaints(path, reasoned), 0, "{reasoned}");
        }
        for bare in [
            "let a = unsafe { f() };",
            "// SAFETY: of another.\nlet b = 1;\nlet a = unsafe { f() };",
            "// SAFETY: of another.\n\nlet a = unsafe { f() };",
            "unsafe impl Sync for A {}",
            "// Some words.\nunsafe\n{ f() }",
        ] {
            assert_eq!(complaints(path, bare), 1, "{bare}");
        }
    }
}
