//! In: `Accept` and `Accept-Encoding` values, hostile; out: the format and whether to compress. Knows nothing of HTTP else.

/// More elements than this in one header are not looked at: a real client sends fewer than ten.
const MAX_ELEMENTS: usize = 64;

/// A text exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `OpenMetrics` 1.0.0.
    OpenMetrics100,
    /// The same text, labelled 0.0.1 for clients that accept only that.
    OpenMetrics001,
    /// Prometheus text 0.0.4, the fallback.
    Text004,
}

impl Format {
    /// Every format, the one preferred by the server first.
    pub const ALL: [Self; 3] = [Self::OpenMetrics100, Self::OpenMetrics001, Self::Text004];

    /// The `Content-Type` to answer with.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics100 => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::OpenMetrics001 => "application/openmetrics-text; version=0.0.1; charset=utf-8",
            Self::Text004 => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A short name for metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenMetrics100 => "openmetrics-1.0.0",
            Self::OpenMetrics001 => "openmetrics-0.0.1",
            Self::Text004 => "text-0.0.4",
        }
    }

    /// Whether the `OpenMetrics` rules hold: family names without `_total`, UNIT lines, a final `# EOF`.
    pub const fn is_openmetrics(self) -> bool {
        matches!(self, Self::OpenMetrics100 | Self::OpenMetrics001)
    }

    const fn media(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::OpenMetrics100 => ("application", "openmetrics-text", "1.0.0"),
            Self::OpenMetrics001 => ("application", "openmetrics-text", "0.0.1"),
            Self::Text004 => ("text", "plain", "0.0.4"),
        }
    }
}

/// Chooses the format for an `Accept` header (several of them joined with commas). The highest quality wins, then the
/// more specific range; what is asked for by name goes to `OpenMetrics` first, what only a wildcard allows to text
/// 0.0.4. No header, an unreadable one, or one that names nothing we have: text 0.0.4.
pub fn negotiate(accept: Option<&str>) -> Format {
    let Some(accept) = accept else { return Format::Text004 };
    let ranges: Vec<Range> = Split::new(accept, ',').take(MAX_ELEMENTS).filter_map(Range::parse).collect();
    let offers = Format::ALL.into_iter().enumerate().filter_map(|(order, format)| {
        // RFC 9110, 12.5.1: the most specific matching range gives the quality.
        let (specificity, quality) = ranges
            .iter()
            .filter_map(|range| range.specificity(format).map(|s| (s, range.quality)))
            .max_by_key(|(specificity, _)| *specificity)?;
        let order = if specificity == 0 { order } else { Format::ALL.len() - order };
        (quality > 0).then_some(((quality, specificity, order), format))
    });
    offers.max_by_key(|(rank, _)| *rank).map_or(Format::Text004, |(_, format)| format)
}

/// Whether an `Accept-Encoding` header allows gzip and does not prefer the identity. No header: no.
pub fn accepts_gzip(accept_encoding: Option<&str>) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for element in Split::new(accept_encoding.unwrap_or(""), ',').take(MAX_ELEMENTS) {
        let mut parts = Split::new(element, ';');
        let coding = parts.next().unwrap_or("").trim();
        let Some(quality) = quality_of(parts) else { continue };
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            gzip = gzip.max(Some(quality));
        } else if coding == "*" {
            any = Some(quality);
        } else if coding.eq_ignore_ascii_case("identity") {
            identity = Some(quality);
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// One media range of an `Accept` header.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    charset: Option<&'a str>,
    /// Thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    /// `None` for what is not a media range with a readable quality; such an element is ignored.
    fn parse(element: &'a str) -> Option<Self> {
        let mut parts = Split::new(element, ';');
        let (kind, subtype) = parts.next()?.trim().split_once('/')?;
        let (mut version, mut charset, mut quality) = (None, None, 1000);
        for parameter in parts {
            // Other parameters, such as `escaping`, ask for nothing that our names (all legacy-valid) do not fulfil.
            let Some((name, value)) = parameter.split_once('=') else { continue };
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("q") {
                quality = thousandths(value)?;
            } else if name.eq_ignore_ascii_case("version") {
                version = Some(value);
            } else if name.eq_ignore_ascii_case("charset") {
                charset = Some(value);
            }
        }
        Some(Self { kind: kind.trim(), subtype: subtype.trim(), version, charset, quality })
    }

    /// How exactly this range names `format` (0 for `*/*`), or `None` if it does not cover it.
    fn specificity(&self, format: Format) -> Option<u8> {
        let (kind, subtype, version) = format.media();
        if self.version.is_some_and(|v| v != version)
            || self.charset.is_some_and(|c| !c.eq_ignore_ascii_case("utf-8"))
        {
            return None;
        }
        if self.kind == "*" && self.subtype == "*" {
            Some(0)
        } else if !self.kind.eq_ignore_ascii_case(kind) {
            None
        } else if self.subtype == "*" {
            Some(1)
        } else if self.subtype.eq_ignore_ascii_case(subtype) {
            Some(2 + u8::from(self.version.is_some()) + u8::from(self.charset.is_some()))
        } else {
            None
        }
    }
}

/// The `q` among the parameters left, 1000 without one, `None` if it is unreadable.
fn quality_of(parameters: Split) -> Option<u16> {
    let mut quality = 1000;
    for parameter in parameters {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            quality = thousandths(value.trim())?;
        }
    }
    Some(quality)
}

/// A `qvalue`: `0` to `1` with at most three decimals, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut value = u16::from(whole == "1");
    for place in 0..3 {
        value = value * 10 + fraction.as_bytes().get(place).map_or(0, |digit| u16::from(digit - b'0'));
    }
    (value <= 1000).then_some(value)
}

/// Splits at `separator` outside double quotes.
struct Split<'a> {
    rest: Option<&'a str>,
    separator: char,
}

impl<'a> Split<'a> {
    fn new(text: &'a str, separator: char) -> Self {
        Self { rest: Some(text), separator }
    }
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let (mut quoted, mut escaped) = (false, false);
        for (at, c) in rest.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                c if c == self.separator && !quoted => {
                    self.rest = Some(&rest[at + 1..]);
                    return Some(&rest[..at]);
                }
                _ => {}
            }
        }
        self.rest = None;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Format::{OpenMetrics001, OpenMetrics100, Text004};
    use super::*;

    /// Prometheus 2.42.
    const V2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    /// Prometheus 2.42 with native histograms.
    const V2_PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
        encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;\
        version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    /// Prometheus 3.x.
    const V3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
        application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
        text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

    #[test]
    fn formats_by_accept() {
        for (accept, expected) in [
            (None, Text004),
            (Some(""), Text004),
            (Some(V2), OpenMetrics100),
            (Some(V2_PROTOBUF), OpenMetrics100),
            (Some(V3), OpenMetrics100),
            (Some("*/*"), Text004),
            (Some("text/*"), Text004),
            (Some("text/plain"), Text004),
            (Some("application/*"), OpenMetrics100),
            (Some("application/openmetrics-text"), OpenMetrics100),
            (Some("APPLICATION/OpenMetrics-Text; Version=1.0.0; Q=1"), OpenMetrics100),
            (Some("application/openmetrics-text; version=\"1.0.0\"; charset=utf-8"), OpenMetrics100),
            (Some("application/openmetrics-text; version=0.0.1"), OpenMetrics001),
            (Some("application/openmetrics-text; version=0.0.1, text/plain;q=0.9"), OpenMetrics001),
            (Some("application/openmetrics-text; version=2.0.0"), Text004),
            (Some("application/openmetrics-text; version=2.0.0, */*;q=0.1"), Text004),
            (Some("text/plain;q=0.9, application/openmetrics-text;q=0.8"), Text004),
            (Some("text/plain;q=0.8, application/openmetrics-text;q=0.9"), OpenMetrics100),
            (Some("text/plain, application/openmetrics-text"), OpenMetrics100),
            // The more specific range gives the quality, even when it is lower.
            (Some("*/*, application/openmetrics-text;q=0"), Text004),
            (
                Some("application/openmetrics-text;version=1.0.0;q=0, application/openmetrics-text"),
                OpenMetrics001,
            ),
            (Some("text/plain;q=0, application/openmetrics-text;q=0.001"), OpenMetrics100),
            (Some("application/openmetrics-text;charset=latin-1"), Text004),
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"), Text004),
            (Some("image/png"), Text004),
            (Some("application/json;q=0"), Text004),
            // Unreadable elements are ignored, the rest counts.
            (Some(";;,,q=1,/, application/openmetrics-text;q=nan"), Text004),
            (Some("application/openmetrics-text;q=1.5, text/plain;q=0.1"), Text004),
            (Some("a/b;x=\"1,application/openmetrics-text\""), Text004),
        ] {
            assert_eq!(negotiate(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn gzip_by_accept_encoding() {
        for (header, expected) in [
            (None, false),
            (Some(""), false),
            (Some("gzip"), true),
            (Some("GZIP"), true),
            (Some("x-gzip"), true),
            (Some("deflate, gzip;q=1.0, *;q=0.5"), true),
            (Some("gzip;q=0"), false),
            (Some("gzip;q=0.000"), false),
            (Some("gzip; q=0.001"), true),
            (Some("gzip;q=0, *"), false),
            (Some("*"), true),
            (Some("*;q=0"), false),
            (Some("identity"), false),
            (Some("identity;q=0.5, gzip;q=0.5"), true),
            (Some("identity, gzip;q=0.5"), false),
            (Some("br"), false),
            (Some("gzip;q=2"), false),
            (Some("gzipped"), false),
        ] {
            assert_eq!(accepts_gzip(header), expected, "{header:?}");
        }
    }

    #[test]
    fn qualities() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("0.5", Some(500)),
            ("0.75", Some(750)),
            ("0.001", Some(1)),
            ("1.001", None),
            ("0.0001", None),
            ("", None),
            (".5", None),
            ("-1", None),
            ("0.5e1", None),
        ] {
            assert_eq!(thousandths(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "[ -~]{0,200}") {
            negotiate(Some(&header));
            accepts_gzip(Some(&header));
        }
    }
}
