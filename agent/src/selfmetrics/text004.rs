//! In: `OpenMetrics` text as prometheus-client writes it; out: Prometheus text 0.0.4. Knows no metric by name.

use bytes::{BufMut, BytesMut};

/// Appends `openmetrics` to `out` as text 0.0.4: counters' HELP and TYPE carry `_total`, infos become gauges named like
/// their sample, unknown becomes untyped, quotes in HELP lose their escape, UNIT and EOF lines go. Samples stay as
/// they are. Expects each family's HELP line right before its TYPE line.
pub(super) fn to_text_004(openmetrics: &str, out: &mut BytesMut) {
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap_or((help, ""));
            let kind =
                lines.peek().and_then(|next| next.strip_prefix("# TYPE ")).and_then(|t| t.split_once(' '));
            let suffix = kind.map_or("", |(_, kind)| sample_suffix(kind));
            for part in ["# HELP ", name, suffix, " "] {
                out.put_slice(part.as_bytes());
            }
            put_help(text, out);
            out.put_slice(b"\n");
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' ')) {
            let plain = match kind {
                "info" => "gauge",
                "unknown" => "untyped",
                other => other,
            };
            for part in ["# TYPE ", name, sample_suffix(kind), " ", plain, "\n"] {
                out.put_slice(part.as_bytes());
            }
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            out.put_slice(line.as_bytes());
            out.put_slice(b"\n");
        }
    }
}

/// What a family's only sample has after the family's name.
fn sample_suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

/// HELP text without the escape of quotes, which 0.0.4 does not know; `\\` and `\n` stay.
fn put_help(text: &str, out: &mut BytesMut) {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.put_slice(before.as_bytes());
        // An escape is two bytes; the second may only be missing at the very end.
        let length = escape.len().min(2);
        let (escape, after) =
            if escape.is_char_boundary(length) { escape.split_at(length) } else { (escape, "") };
        out.put_slice(if escape == "\\\"" { b"\"" } else { escape.as_bytes() });
        rest = after;
    }
    out.put_slice(rest.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line() {
        let openmetrics = r##"# HELP a_seconds Say \"a\\b\"\n twice\\.
# TYPE a_seconds counter
# UNIT a_seconds seconds
a_seconds_total{x="# HELP \"\\\n"} 1.5
# HELP build Version.
# TYPE build info
build_info{version="1"} 1
# HELP g Gauge.
# TYPE g gauge
g 2
# HELP h_seconds Histogram.
# TYPE h_seconds histogram
# UNIT h_seconds seconds
h_seconds_sum 1.0
h_seconds_count 1
h_seconds_bucket{le="+Inf"} 1
# HELP u Unknown.
# TYPE u unknown
u 3
# EOF
"##;
        let expected = r##"# HELP a_seconds_total Say "a\\b"\n twice\\.
# TYPE a_seconds_total counter
a_seconds_total{x="# HELP \"\\\n"} 1.5
# HELP build_info Version.
# TYPE build_info gauge
build_info{version="1"} 1
# HELP g Gauge.
# TYPE g gauge
g 2
# HELP h_seconds Histogram.
# TYPE h_seconds histogram
h_seconds_sum 1.0
h_seconds_count 1
h_seconds_bucket{le="+Inf"} 1
# HELP u Unknown.
# TYPE u untyped
u 3
"##;
        let mut out = BytesMut::new();
        to_text_004(openmetrics, &mut out);
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }
}
