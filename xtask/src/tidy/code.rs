//! In: Rust source; out: the same lines without what is not code (comments, literals). A lexer just good enough for that.

/// Blanks comments, strings and character literals; line breaks stay, so lines keep their numbers.
pub fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skip(rest, out.chars().next_back());
        if skipped == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        out.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[skipped..];
    }
    out
}

/// How many bytes at the start of `text` are a comment or a literal; `before` is the character ahead of them.
fn skip(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some(raw) = text.strip_prefix('r').or_else(|| text.strip_prefix("br")) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = text.len() - raw.len() + hashes + 1;
            return text[start..].find(&end).map_or(text.len(), |at| start + at + end.len());
        }
    }
    if let Some(inner) = text.strip_prefix('\'') {
        // 'a' is a character, 'a alone a lifetime.
        let mut chars = inner.chars();
        let escaped = chars.next() == Some('\\');
        if escaped || chars.next() == Some('\'') {
            return quoted(text, '\'');
        }
    }
    0
}

fn quoted(text: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == end => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let here = &text[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (source, code) in [
            ("a // unsafe\nb", "a\nb"),
            ("a /* x /* unsafe */ y */ b", "a  b"),
            ("f(\"unsafe \\\" {\") + 1", "f() + 1"),
            ("r#\"unsafe \" \"# + br\"unsafe\" + 2", "+  + 2"),
            ("'\"' + b'\\'' + '\u{e9}'", "+ b +"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("let r = 1; for x in \"\\\\\" {}", "let r = 1; for x in  {}"),
            ("\"a\nb\"\nunsafe", "\n\nunsafe"),
        ] {
            let blanked = blank(source);
            assert_eq!(blanked.lines().count(), source.lines().count(), "{source:?}");
            let squeeze = |text: &str| text.replace(' ', "");
            assert_eq!(squeeze(&blanked), squeeze(code), "{source:?}");
        }
    }
}
