//! In: one value as written; out: a duration, size, number or choice, or a line that says how to write it. Knows no keys.

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// A piece of outside text for an error line: escaped and cut.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        out.push_str("...");
    }
    out
}

/// Units of durations, longest first, in milliseconds.
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A duration such as `500ms`, `5s` or `1h30m`: whole numbers with units, longest unit first, each at most once.
///
/// # Errors
/// A line that says how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("`{}` is no duration: write one such as `500ms`, `5s`, `2m` or `1h30m`", shown(text));
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{0}` has no unit: write `{0}s` for seconds", shown(text)));
    }
    let mut rest = text;
    let mut units = DURATIONS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = number(rest).ok_or_else(bad)?;
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        // Units only get shorter, so none comes twice.
        let (_, scale) = units.by_ref().find(|(unit, _)| *unit == &tail[..letters]).ok_or_else(bad)?;
        total = number.checked_mul(*scale).and_then(|part| total.checked_add(part)).ok_or_else(bad)?;
        rest = &tail[letters..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(Duration::from_millis(total)) }
}

/// How long to meter for a table: shorter, and rates are those of a few events, or of none.
const LEAST_LOOK: Duration = Duration::from_millis(100);

/// As [`duration`], long enough to tell rates from.
///
/// # Errors
/// As [`duration`], or it is too short.
pub fn look(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < LEAST_LOOK {
        return Err(format!("`{}` is too short: use {} or more", shown(text), written(LEAST_LOOK)));
    }
    Ok(value)
}

/// A duration within a range.
pub(super) fn duration_in(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let value = duration(text)?;
        let (low, high) = (written(*range.start()), written(*range.end()));
        if range.contains(&value) { Ok(value) } else { Err(out_of_range(text, &low, &high)) }
    }
}

/// A duration as it is written in the configuration.
fn written(duration: Duration) -> String {
    let mut rest = duration.as_millis() as u64;
    let mut out = String::new();
    for (unit, scale) in DURATIONS {
        if rest >= scale {
            let _ = write!(out, "{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    if out.is_empty() { "0s".into() } else { out }
}

fn out_of_range(text: &str, low: &str, high: &str) -> String {
    format!("`{}` is out of range: use {low} to {high}", shown(text))
}

/// A number and what follows it.
fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A size in bytes such as `512KiB`, `64MiB` or `1GiB`.
///
/// # Errors
/// A line that says how to write it.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{}` is no size: write one such as `512KiB`, `64MiB` or `1GiB`", shown(text));
    let (number, unit) = number(text).ok_or_else(bad)?;
    if unit.is_empty() {
        return Err(format!(
            "`{0}` has no unit: write `{0}B` for bytes, or use KiB, MiB or GiB",
            shown(text)
        ));
    }
    if let "K" | "KB" | "kB" | "M" | "MB" | "G" | "GB" = unit {
        let binary = format!("{number}{}iB", unit[..1].to_ascii_uppercase());
        return Err(format!("`{}` is ambiguous: write `{binary}`", shown(text)));
    }
    let (_, scale) = SIZES.iter().find(|(known, _)| *known == unit).ok_or_else(bad)?;
    number.checked_mul(*scale).ok_or_else(bad)
}

/// A size within a range given in MiB.
pub(super) fn size_in(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let value = size(text)?;
        let (low, high) = (range.start() << 20, range.end() << 20);
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            Err(out_of_range(text, &format!("{}MiB", range.start()), &format!("{}MiB", range.end())))
        }
    }
}

/// A whole number within a range.
pub(super) fn whole_in(range: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, String> {
    move |text| match number(text) {
        Some((value, "")) if value >= u64::from(*range.start()) && value <= u64::from(*range.end()) => {
            Ok(value as u32)
        }
        Some((_, "")) => Err(out_of_range(text, &range.start().to_string(), &range.end().to_string())),
        _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(out_of_range(text, &range.start().to_string(), &range.end().to_string()))
        }
        _ => Err(format!("`{}` is no whole number: use {} to {}", shown(text), range.start(), range.end())),
    }
}

/// A percentage, with or without the sign, within a range.
pub(super) fn percent_in(range: RangeInclusive<f64>) -> impl Fn(&str) -> Result<f64, String> {
    move |text| {
        let digits = text.strip_suffix('%').unwrap_or(text);
        // Digits and a point only: no exponents, no infinity, no signs.
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        match digits.parse::<f64>() {
            Ok(value) if plain && range.contains(&value) => Ok(value),
            Ok(_) => Err(out_of_range(text, &range.start().to_string(), &range.end().to_string())),
            Err(_) => {
                Err(format!("`{}` is no percentage: use {} to {}", shown(text), range.start(), range.end()))
            }
        }
    }
}

/// One of a few words.
pub(crate) fn one_of<T: Copy>(choices: &'static [(&'static str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            format!("`{}` is none of {}{}", shown(text), words.join(", "), did_you_mean(text, &words))
        })
    }
}

/// `HOST:PORT` with a numeric host; `:PORT` is every address.
///
/// # Errors
/// A line that says how to write it.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let address = match text.strip_prefix(':').map(|port| (number(port), port)) {
        Some((Some((port, "")), digits)) if digits.len() <= 5 => {
            u16::try_from(port).ok().map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        }
        _ => text.parse().ok(),
    };
    address.ok_or_else(|| {
        format!(
            "`{}` is no address: write IP:PORT such as `127.0.0.1:10058`, `[::1]:10058` or `:10058`",
            shown(text)
        )
    })
}

/// The name of a Kubernetes node. It becomes part of a field selector, where a comma would begin another condition.
///
/// # Errors
/// A line that says how to write it.
pub fn node_name(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(good) {
        return Err(format!(
            "`{}` is no node's name: write it as `kubectl get nodes` shows it, in a-z, 0-9, `-` and `.`",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

/// A path that does not depend on where the agent was started.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.len() > 4096 || text.contains('\0') {
        return Err(format!("`{}` is no absolute path: begin with `/`", shown(text)));
    }
    Ok(PathBuf::from(text))
}

/// The path of an HTTP endpoint of ours.
///
/// # Errors
/// A line that says how to write it.
pub fn telemetry_path(text: &str) -> Result<String, String> {
    let clean = text.len() <= 256
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b'~'))
        && !text.contains("//")
        && !text.split('/').any(|part| part == "." || part == "..");
    if !clean || !text.starts_with('/') || text.len() == 1 {
        return Err(format!(
            "`{}` is no usable path: write one such as `/metrics`, of letters, digits and /._-~",
            shown(text)
        ));
    }
    if text.starts_with("/tenants/") || matches!(text, "/healthz" | "/readyz") {
        return Err(format!("`{}` is taken: choose another, such as `/metrics`", shown(text)));
    }
    Ok(text.to_owned())
}

/// The path of a file; relative ones are the caller's to resolve.
pub(crate) fn file_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.len() > 4095 || text.contains('\0') {
        return Err(format!("`{}` is no path: write that of a file", shown(text)));
    }
    Ok(text.into())
}

/// `, did you mean ...?` if a candidate is close to a misspelt word, else nothing.
pub(crate) fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    closest(word, candidates).map(|found| format!(", did you mean `{found}`?")).unwrap_or_default()
}

/// The candidate nearest to a word, within two edits (swaps of neighbours count as one) and a third of its length.
fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let near =
        candidates.iter().map(|candidate| (strsim::osa_distance(word, candidate), *candidate)).min()?;
    (near.0 <= 2 && near.0 * 3 <= near.1.chars().count().max(3)).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn looks() {
        assert_eq!(look("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(look("0s"), Err("`0s` is too short: use 100ms or more".into()));
        assert_eq!(look("99ms"), Err("`99ms` is too short: use 100ms or more".into()));
        assert_eq!(look("5"), duration("5"));
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("5s", 5000),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("1m1ms", 60_001),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(written(Duration::from_millis(millis)), text);
        }
        for bad in [
            "",
            "s",
            "5 s",
            " 5s",
            "5s ",
            "-5s",
            "+5s",
            "1.5s",
            "5sec",
            "5S",
            "5s5s",
            "1s1m",
            "5s3",
            "99999999999999999999s",
            "999999999999999d",
            "5\u{b5}s",
        ] {
            let error = duration(bad).expect_err(bad);
            assert!(error.contains("is no duration: write one"), "{error}");
        }
        assert_eq!(duration("15"), Err("`15` has no unit: write `15s` for seconds".into()));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0B", 0), ("512KiB", 524_288), ("64MiB", 67_108_864), ("1GiB", 1_073_741_824)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (bad, part) in [
            ("64MB", "write `64MiB`"),
            ("64M", "write `64MiB`"),
            ("1kB", "write `1KiB`"),
            ("64", "has no unit"),
            ("64 MiB", "is no size"),
            ("-1MiB", "is no size"),
            ("1.5GiB", "is no size"),
            ("", "is no size"),
            ("99999999999999GiB", "is no size"),
        ] {
            let error = size(bad).expect_err(bad);
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(size_in(4..=64)("64MiB"), Ok(64 << 20));
        assert_eq!(size_in(4..=64)("65MiB"), Err("`65MiB` is out of range: use 4MiB to 64MiB".into()));
    }

    #[test]
    fn numbers() {
        assert_eq!(whole_in(2..=65_536)("65536"), Ok(65_536));
        for bad in ["1", "65537", "99999999999999999999999"] {
            assert!(whole_in(2..=65_536)(bad).expect_err(bad).contains("out of range: use 2 to 65536"));
        }
        for bad in ["", "0x10", "1e3", "-1", "many", "1.0"] {
            assert!(whole_in(2..=65_536)(bad).expect_err(bad).contains("is no whole number"));
        }
        for (text, value) in [("75", 75.0), ("0", 0.0), ("100", 100.0), ("12.5", 12.5), ("75%", 75.0)] {
            assert_eq!(percent_in(0.0..=100.0)(text), Ok(value));
        }
        for bad in ["", "%", "nan", "inf", "-1", "1e1", "100.1", "75 %", "."] {
            assert!(percent_in(0.0..=100.0)(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_and_paths() {
        for (text, address) in [
            ("127.0.0.1:10058", "127.0.0.1:10058"),
            (":10058", "[::]:10058"),
            ("[::1]:1", "[::1]:1"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert_eq!(listen_address(text).map(|address| address.to_string()), Ok(address.to_owned()));
        }
        for bad in [
            "",
            ":",
            "10058",
            "localhost:1",
            "127.0.0.1",
            "127.0.0.1:65536",
            ":65536",
            ":+1",
            "::1:5:6:7:8:9:10",
            "1.2.3.4:\n5",
        ] {
            assert!(listen_address(bad).is_err(), "{bad}");
        }
        assert_eq!(telemetry_path("/a/metrics"), Ok("/a/metrics".into()));
        for bad in [
            "",
            "/",
            "metrics",
            "//x",
            "/a?b",
            "/a b",
            "/a\n",
            "/../x",
            "/tenants/a/metrics",
            "/healthz",
            "/readyz",
            "/\u{e9}",
        ] {
            assert!(telemetry_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn suggestions() {
        let keys = ["listen_address", "telemetry_path", "max_connections", "cpu"];
        for (word, found) in [
            ("lisen_address", Some("listen_address")),
            ("listen-address", Some("listen_address")),
            ("telemetry_apth", Some("telemetry_path")),
            ("cup", Some("cpu")),
            ("xyz", None),
            ("", None),
            (&"l".repeat(1000), None),
        ] {
            assert_eq!(closest(word, &keys), found, "{word}");
        }
    }

    proptest! {
        #[test]
        fn durations_come_back(millis in 0u64..10_000_000_000) {
            let value = Duration::from_millis(millis);
            prop_assert_eq!(duration(&written(value)), Ok(value));
        }

        #[test]
        fn any_text_is_a_value_or_one_line(text in any::<String>()) {
            for error in [
                duration(&text).err(), size(&text).err(), listen_address(&text).err(), telemetry_path(&text).err(),
                whole_in(1..=9)(&text).err(), percent_in(0.0..=9.0)(&text).err(), one_of(&[("a", 1)])(&text).err(),
            ].into_iter().flatten() {
                prop_assert!(!error.chars().any(char::is_control) && error.len() < 1000, "{}", error);
            }
        }
    }
}
