//! In: Markdown; out: the same with its prose wrapped one way, and complaints about prose that is not. Leaves tables, code,
//! headings and comments as they are.

use std::mem;

/// Columns of prose.
const WIDTH: usize = 120;

/// Checks one document.
pub fn check(path: &str, text: &str, complaints: &mut Vec<String>) {
    let wrapped = wrap(text);
    if wrapped == text {
        return;
    }
    let same = text.lines().zip(wrapped.lines()).take_while(|(old, new)| old == new).count();
    complaints.push(format!(
        "{path}:{}: prose is wrapped at {WIDTH} columns, each line as full as it can be: run `cargo xtask docs --wrap`",
        same + 1
    ));
}

/// The document with its prose wrapped.
pub fn wrap(text: &str) -> String {
    let mut out = Wrapper::default();
    let mut fenced = false;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let fence = line.trim_start().starts_with("```");
        if fence || fenced {
            fenced ^= fence;
            out.verbatim(line);
        } else if line.trim_start().starts_with("<!--") {
            out.verbatim(line);
            let mut end = line;
            while !end.contains("-->") {
                let Some(line) = lines.next() else { break };
                out.verbatim(line);
                end = line;
            }
        } else if line.trim().is_empty() {
            out.blank();
        } else if is_structure(line) || out.begins() && !out.in_list && line.starts_with("    ") {
            out.verbatim(line);
        } else {
            out.prose(line);
        }
    }
    out.flush();
    out.text
}

/// Headings, rows of tables, quotes, rules and link definitions.
fn is_structure(line: &str) -> bool {
    let line = line.trim_start();
    let heading = line.trim_start_matches('#');
    heading.len() < line.len() && heading.starts_with(' ')
        || line.starts_with(['|', '>'])
        || line.starts_with('[') && line.contains("]: ")
        || !line.is_empty() && line.trim_end().bytes().all(|byte| matches!(byte, b'-' | b'=' | b'*'))
}

/// The length of a list item's mark with the spaces after it; none if the line begins no item.
fn mark(line: &str) -> Option<usize> {
    let (first, rest) = line.split_once(' ')?;
    let number =
        first.strip_suffix('.').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let is_mark = number || matches!(first, "-" | "*" | "+");
    is_mark.then(|| first.len() + 1 + rest.len() - rest.trim_start().len())
}

#[derive(Default)]
struct Wrapper {
    text: String,
    /// The paragraph at hand, what stands before its first line, and before the others.
    paragraph: String,
    first: String,
    indent: usize,
    in_list: bool,
}

impl Wrapper {
    /// Whether the next line begins a paragraph.
    fn begins(&self) -> bool {
        self.paragraph.is_empty()
    }

    fn verbatim(&mut self, line: &str) {
        self.flush();
        self.in_list &= line.starts_with(' ');
        self.line(line.trim_end());
    }

    fn blank(&mut self) {
        self.flush();
        self.line("");
    }

    fn prose(&mut self, line: &str) {
        let content = line.trim_start();
        let depth = line.len() - content.len();
        if let Some(mark) = mark(content) {
            self.flush();
            line[..depth + mark].clone_into(&mut self.first);
            self.indent = depth + mark;
            self.in_list = true;
            content[mark..].clone_into(&mut self.paragraph);
        } else if self.begins() {
            self.in_list &= depth > 0;
            line[..depth].clone_into(&mut self.first);
            self.indent = depth;
            content.clone_into(&mut self.paragraph);
        } else {
            self.paragraph.push(' ');
            self.paragraph.push_str(content);
        }
    }

    fn flush(&mut self) {
        let paragraph = mem::take(&mut self.paragraph);
        let mut line = mem::take(&mut self.first);
        let mut width = line.chars().count();
        let mut empty = true;
        for word in words(&paragraph) {
            let length = word.chars().count();
            if !empty && width + 1 + length > WIDTH {
                self.line(&line);
                line = " ".repeat(self.indent);
                width = self.indent;
                empty = true;
            }
            if !empty {
                line.push(' ');
                width += 1;
            }
            line.push_str(&word);
            width += length;
            empty = false;
        }
        if !empty {
            self.line(&line);
        }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// The pieces between which a line may end: not within code, and not where the next line would begin as something else.
fn words(paragraph: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut in_code = false;
    for word in paragraph.split_whitespace() {
        let structure = mark(&format!("{word} x")).is_some() || is_structure(&format!("{word} "));
        match words.last_mut() {
            Some(last) if in_code || structure => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
        in_code ^= word.matches('`').count() % 2 == 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_filled_and_the_rest_is_left() {
        let long = "word ".repeat(40);
        let kept = "# Heading\n\n| a | b |\n|---|---|\n\n```text\nshort\nlines\n```\n\n    code of\n    two lines\n\n<!-- a\nb -->\n";
        assert_eq!(wrap(kept), kept);
        assert_eq!(wrap("a\nb\n\nc\n"), "a b\n\nc\n");
        let wrapped = wrap(&format!("- {long}\n- b\n  c\n\n  d\n\n1. e\n   f\n\ng\n"));
        let lines: Vec<&str> = wrapped.lines().collect();
        assert_eq!(lines[0].len(), 2 + 23 * 5 - 1, "{wrapped}");
        assert!(lines[1].starts_with("  word"), "{wrapped}");
        assert_eq!(lines[2..], ["- b c", "", "  d", "", "1. e f", "", "g"]);
        assert_eq!(wrap(&wrapped), wrapped);
    }

    #[test]
    fn a_line_begins_as_what_it_is() {
        let filler = "x".repeat(118);
        for (text, wrapped) in [
            (format!("{filler} - b\n"), format!("{filler} -\nb\n")),
            (format!("{filler} `a b` c\n"), format!("{filler}\n`a b` c\n")),
            (format!("y {filler} # c\n"), format!("y\n{filler} #\nc\n")),
        ] {
            assert_eq!(wrap(&text), wrapped);
            assert_eq!(wrap(&wrapped), wrapped, "{text}");
        }
    }

    #[test]
    fn the_place_is_named() {
        let mut complaints = Vec::new();
        check("A.md", "# A\n\nfull\n", &mut complaints);
        assert!(complaints.is_empty());
        check("A.md", "# A\n\nnot\nfull\n", &mut complaints);
        assert!(complaints[0].starts_with("A.md:3: prose is wrapped"), "{complaints:?}");
    }
}
