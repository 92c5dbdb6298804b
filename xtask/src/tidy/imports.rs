//! In: a source file; out: complaints about imports of several modules in one `use`. The order of imports is rustfmt's.

use super::source::Source;

/// Checks one file.
pub fn check(source: &Source, complaints: &mut Vec<String>) {
    let mut start = 0;
    for (index, line) in source.code.split_inclusive('\n').enumerate() {
        let code = line.trim_start();
        let statement = code.strip_prefix("pub ").unwrap_or(code);
        if statement.starts_with("use ") {
            let at = start + line.len() - statement.len();
            let whole = source.code[at..].split(';').next().unwrap_or_default();
            if whole.split_once('{').is_some_and(|(_, list)| list.contains("::") || list.contains('{')) {
                complaints.push(format!(
                    "{}:{}: one `use` per module: no `::` and no braces inside braces",
                    source.path,
                    index + 1
                ));
            }
        }
        start += line.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_module_per_use() {
        let complaints = |text: &str| {
            let mut complaints = Vec::new();
            check(&Source::new("a.rs", text), &mut complaints);
            complaints
        };
        for good in [
            "use a::b::{C, D};\npub use super::{e, f};\n",
            "fn f() {\n    use a::{\n        b, C,\n    };\n}\n",
            "// use a::{b::C};\nlet x = \"use a::{b::C};\";\n",
            "let user = a::b::C { d: e::F };\n",
        ] {
            assert!(complaints(good).is_empty(), "{good}: {:?}", complaints(good));
        }
        assert!(complaints("\nuse a::{b::C, d};\n")[0].starts_with("a.rs:2: one `use`"));
        assert_eq!(complaints("pub use a::{\n    b,\n    c::{D, E},\n};\nuse f::{g};\n").len(), 1);
        assert_eq!(complaints("use a::{b, {c}};\n").len(), 1);
    }
}
