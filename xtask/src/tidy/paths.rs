//! In: lexed Rust code; out: the modules it names by `crate::`. Knows no rule.

/// Top-level modules named after `crate::` on a line. `use crate::{a, b}` is unfolded by looking for it in the whole code
/// once, at the line where it begins.
pub fn modules<'a>(code: &'a str, line: &'a str) -> Vec<&'a str> {
    let mut used = Vec::new();
    // `line` is a slice of `code`: what follows it is found by its place.
    let start = line.as_ptr() as usize - code.as_ptr() as usize;
    for (at, path) in line.match_indices("crate::") {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[start + at + path.len()..];
        match rest.strip_prefix('{') {
            Some(list) => used.extend(top_level(list)),
            None => used.extend(word(rest)),
        }
    }
    // Items of `lib.rs` itself (a constant, say) begin with a capital or are not modules.
    used.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    used
}

fn word(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

/// First words of the elements of a brace list whose opening brace has been taken off.
fn top_level(list: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut depth = 0;
    let mut fresh = true;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            _ if c.is_whitespace() => {}
            _ => {
                if fresh && depth == 0 {
                    found.extend(word(&list[at..]));
                }
                fresh = false;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_those_behind_crate() {
        let code = "use crate::a::B;\nfn f(x: crate::b::C) -> $crate::c::D {}\nuse crate::{d, e::F,\n  g};\nuse crate::H;";
        let found: Vec<&str> = code.lines().flat_map(|line| modules(code, line)).collect();
        assert_eq!(found, ["a", "b", "d", "e", "g"]);
    }
}
