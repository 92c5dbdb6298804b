//! In: an exposition in either text format; out: samples by name and labels. Refuses what neither format allows.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// One sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name with its suffix.
    pub name: String,
    /// Labels in their order.
    pub labels: Vec<(String, String)>,
    /// The value exactly as written.
    pub text: String,
}

impl Sample {
    /// The value of a label, if present.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The value as a float.
    pub fn value(&self) -> f64 {
        self.text.parse().unwrap_or(f64::NAN)
    }
}

/// A whole scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// All samples in their order.
    pub samples: Vec<Sample>,
    /// Type by family name.
    pub types: BTreeMap<String, String>,
}

impl Scrape {
    /// Parses `OpenMetrics` or Prometheus text.
    ///
    /// # Errors
    /// A line that is neither a comment nor a sample, or a sample that appears twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self::default();
        let mut seen = std::collections::HashSet::new();
        for line in text.split('\n').filter(|l| !l.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                if let Some((name, kind)) = comment.strip_prefix("TYPE ").and_then(|c| c.split_once(' ')) {
                    ensure!(scrape.types.insert(name.into(), kind.into()).is_none(), "two types for {name}");
                }
                continue;
            }
            let sample = parse_sample(line).with_context(|| format!("bad line {line:?}"))?;
            ensure!(seen.insert((sample.name.clone(), sample.labels.clone())), "sample twice: {line}");
            scrape.samples.push(sample);
        }
        Ok(scrape)
    }

    /// The samples of that name that have all these labels.
    pub fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |s| s.name == name && labels.iter().all(|(n, v)| s.label(n) == Some(*v)))
    }

    /// The sum of an integer metric over all samples with these labels. 0 when there are none.
    ///
    /// # Panics
    /// When a value is not an integer.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.find(name, labels).map(|s| integer(&s.text)).sum()
    }

    /// The sum of a metric over all samples with these labels. 0 when there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(Sample::value).sum()
    }

    /// Non-cumulative counts by upper bound (the last is infinite) of a histogram, summed over samples with these labels.
    ///
    /// # Errors
    /// When the buckets of one series are not cumulative, or disagree with its count.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Result<Vec<(f64, u64)>> {
        let mut sums: Vec<(f64, u64)> = Vec::new();
        for series in self.series(name, labels)? {
            if sums.is_empty() {
                sums = series.buckets;
            } else {
                for (sum, own) in sums.iter_mut().zip(&series.buckets) {
                    ensure!(sum.0 == own.0, "{name}: series with different bounds");
                    sum.1 += own.1;
                }
            }
        }
        Ok(sums)
    }

    /// Every series of a histogram.
    ///
    /// # Errors
    /// As [`histogram`](Self::histogram).
    pub fn series(&self, name: &str, labels: &[(&str, &str)]) -> Result<Vec<Series>> {
        let (bucket, count, sum) = (format!("{name}_bucket"), format!("{name}_count"), format!("{name}_sum"));
        let mut all: BTreeMap<Vec<(String, String)>, Series> = BTreeMap::new();
        for sample in self.find(&bucket, labels) {
            let le = sample.label("le").context("bucket without le")?;
            let le = if le == "+Inf" { f64::INFINITY } else { le.parse()? };
            let own: Vec<_> = sample.labels.iter().filter(|(n, _)| n != "le").cloned().collect();
            all.entry(own).or_default().buckets.push((le, integer(&sample.text)));
        }
        for sample in self.find(&count, labels) {
            all.get_mut(&sample.labels).context("count without buckets")?.count = integer(&sample.text);
        }
        for sample in self.find(&sum, labels) {
            all.get_mut(&sample.labels).context("sum without buckets")?.sum = sample.value();
        }
        for (own, series) in &mut all {
            series.labels.clone_from(own);
            let mut before = (f64::NEG_INFINITY, 0);
            for bucket in &mut series.buckets {
                ensure!(
                    bucket.0 > before.0 && bucket.1 >= before.1,
                    "{name}{own:?}: not cumulative at {bucket:?}"
                );
                let total = bucket.1;
                bucket.1 -= before.1;
                before = (bucket.0, total);
            }
            ensure!(
                before == (f64::INFINITY, series.count),
                "{name}{own:?}: count {} but {before:?}",
                series.count
            );
        }
        Ok(all.into_values().collect())
    }
}

/// One histogram series.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Labels without `le`.
    pub labels: Vec<(String, String)>,
    /// Upper bound and the number of values up to it that no lower bucket holds.
    pub buckets: Vec<(f64, u64)>,
    /// `_count`.
    pub count: u64,
    /// `_sum`.
    pub sum: f64,
}

fn integer(text: &str) -> u64 {
    text.parse()
        .or_else(|_| text.strip_suffix(".0").unwrap_or(text).parse())
        .unwrap_or_else(|_| panic!("not an integer: {text}"))
}

fn parse_sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let name = line[..end].to_owned();
    ensure!(
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':'),
        "bad name"
    );
    let mut labels = Vec::new();
    let mut rest = &line[end..];
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            if let Some(after) = inner.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = inner.split_once("=\"").context("label without value")?;
            let (value, after) = unquote(after)?;
            labels.push((label.to_owned(), value));
            inner = after.strip_prefix(',').unwrap_or(after);
        }
    }
    let text = rest.strip_prefix(' ').context("no space before the value")?;
    ensure!(text.parse::<f64>().is_ok(), "bad value {text:?}");
    Ok(Sample { name, labels, text: text.to_owned() })
}

fn unquote(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[i + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                other => bail!("bad escape {other:?}"),
            },
            c => value.push(c),
        }
    }
    bail!("label value does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unescaped() {
        let scrape =
            Scrape::parse("# TYPE a counter\na_total{x=\"q\\\"n\\nb\\\\\",y=\"}\"} 3\nb 1.5\n# EOF\n")
                .unwrap();
        assert_eq!(scrape.count("a_total", &[("x", "q\"n\nb\\"), ("y", "}")]), 3);
        assert_eq!(scrape.samples[1].text, "1.5");
        assert!(Scrape::parse("a 1\na 2\n").is_err());
        assert!(Scrape::parse("a{x=\"y} 1\n").is_err());
    }

    #[test]
    fn buckets_become_plain_counts() {
        let text = "h_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 5\nh_count 5\nh_sum 9\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.histogram("h", &[]).unwrap(), [(1.0, 2), (f64::INFINITY, 3)]);
        let wrong = Scrape::parse(&text.replace("count 5", "count 4")).unwrap();
        assert!(wrong.histogram("h", &[]).is_err());
    }
}
