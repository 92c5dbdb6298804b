//! In: text from anywhere; out: bytes that cannot leave a quoted label value or a HELP line. Knows no registry and no I/O.

use bytes::BufMut;

/// Stands for NUL, which no exposition format can carry (Prometheus' lexer takes it for the end of the input).
const NUL_REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Appends `value` to `out` as it stands between the quotes of a label, in every text format: backslash, double quote
/// and line feed become `\\`, `\"` and `\n`; NUL becomes U+FFFD; all else is kept. The quotes are the caller's.
pub fn escape_label_value(out: &mut Vec<u8>, value: &str) {
    out.reserve(value.len());
    escape(out, value, true);
}

/// Appends `name="value"` pairs joined by commas, after what is there already.
pub fn append_labels<'a>(out: &mut Vec<u8>, names: &[&str], values: impl IntoIterator<Item = &'a str>) {
    for (name, value) in names.iter().zip(values) {
        if !out.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"=\"");
        escape_label_value(out, value);
        out.push(b'"');
    }
}

/// Appends `help` to `out` as it stands at the end of a HELP line. `OpenMetrics` escapes double quotes as well, text
/// 0.0.4 does not know that escape.
pub fn escape_help(out: &mut impl BufMut, help: &str, escape_quotes: bool) {
    escape(out, help, escape_quotes);
}

fn escape(out: &mut impl BufMut, text: &str, quotes: bool) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let replacement: &[u8] = match byte {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'"' if quotes => b"\\\"",
            0 => NUL_REPLACEMENT,
            _ => continue,
        };
        out.put_slice(&bytes[copied..at]);
        out.put_slice(replacement);
        copied = at + 1;
    }
    out.put_slice(&bytes[copied..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads one quoted label value the way Prometheus' lexer does; `None` unless it ends exactly at the closing quote.
    fn parse_quoted(quoted: &[u8]) -> Option<String> {
        let mut bytes = quoted.strip_prefix(b"\"")?.iter();
        let mut value = Vec::new();
        loop {
            match bytes.next()? {
                b'"' => break,
                b'\\' => value.push(match bytes.next()? {
                    b'n' => b'\n',
                    b'\\' => b'\\',
                    b'"' => b'"',
                    _ => return None,
                }),
                b'\n' | 0 => return None,
                other => value.push(*other),
            }
        }
        bytes.as_slice().is_empty().then(|| String::from_utf8(value).ok())?
    }

    fn quoted(value: &str) -> Vec<u8> {
        let mut out = b"\"".to_vec();
        escape_label_value(&mut out, value);
        out.push(b'"');
        out
    }

    #[test]
    fn escapes_are_the_formats_own() {
        for (value, expected) in [
            ("", r#""""#),
            ("plain", r#""plain""#),
            (r"a\b", r#""a\\b""#),
            ("a\"} 1\nevil{x=\"y", r#""a\"} 1\nevil{x=\"y""#),
            ("a\0b", "\"a\u{fffd}b\""),
            ("é\r\t</script>", "\"é\r\t</script>\""),
        ] {
            assert_eq!(String::from_utf8(quoted(value)).unwrap(), expected);
        }
    }

    #[test]
    fn help_quotes_depend_on_the_format() {
        let mut out: Vec<u8> = Vec::new();
        escape_help(&mut out, "a \"b\" \\ \n.", true);
        assert_eq!(out, br#"a \"b\" \\ \n."#);
        out.clear();
        escape_help(&mut out, "a \"b\" \\ \n.", false);
        assert_eq!(out, br#"a "b" \\ \n."#);
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in "[\\x00-\\x7fé\\\\\"\n]{0,64}") {
            prop_assert_eq!(parse_quoted(&quoted(&value)), Some(value.replace('\0', "\u{fffd}")));
        }
    }
}
