//! `deploy/prometheus` and `deploy/grafana`: promtool's verdict on configuration, rules and queries, and a look at whether
//! every metric they name is one that METRICS.md has.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kernmeter_tests::Outcome;
use kernmeter_tests::settings::TempDir;
use serde_json::Value;

use super::tool;

kernmeter_tests::trials!(
    configuration_is_valid,
    rules_do_what_their_tests_say,
    every_alert_is_tested,
    queries_of_the_dashboard_are_valid,
    every_metric_exists
);

const RULES: [&str; 2] =
    ["prometheus/rules/kernmeter.recording.yaml", "prometheus/rules/kernmeter.alerts.yaml"];
const RULE_TESTS: &str = "prometheus/rules/kernmeter.test.yaml";
const DASHBOARD: &str = "grafana/kernmeter.json";

fn path(name: &str) -> PathBuf {
    tool::deploy().join(name)
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(path(name)).with_context(|| format!("read deploy/{name}"))
}

fn configuration_is_valid() -> Outcome {
    let promtool = tool::find("promtool")?;
    tool::run(Command::new(&promtool).args(["check", "config"]).arg(path("prometheus/prometheus.yaml")))?;
    let (out, err) =
        tool::run(Command::new(&promtool).args(["check", "rules", "--lint-fatal"]).args(RULES.map(path)))?;
    ensure!(out.matches("SUCCESS").count() == RULES.len(), "promtool says:\n{out}{err}");
    Ok(())
}

fn rules_do_what_their_tests_say() -> Outcome {
    tool::run(Command::new(tool::find("promtool")?).args(["test", "rules"]).arg(path(RULE_TESTS)))?;
    Ok(())
}

/// Values of `key` at the beginning of a line's content.
fn values<'a>(yaml: &'a str, key: &str) -> BTreeSet<&'a str> {
    yaml.lines()
        .filter_map(|line| line.trim().strip_prefix("- ")?.strip_prefix(key)?.strip_prefix(": "))
        .collect()
}

fn every_alert_is_tested() -> Outcome {
    let rules = read(RULES[1])?;
    let alerts = values(&rules, "alert");
    let tests = read(RULE_TESTS)?;
    ensure!(alerts.len() > 5, "hardly an alert found: {alerts:?}");
    // Once where it is silent, once where it fires.
    let fires = |alert: &str| {
        tests
            .split(&format!("alertname: {alert}\n"))
            .skip(1)
            .any(|rest| rest.trim_start().starts_with("exp_alerts:\n"))
    };
    for alert in alerts {
        ensure!(
            tests.contains(&format!("alertname: {alert}, exp_alerts: []")),
            "no test where {alert} is silent"
        );
        ensure!(fires(alert), "no test where {alert} fires");
    }
    Ok(())
}

fn dashboard() -> Result<Value> {
    serde_json::from_str(&read(DASHBOARD)?).context("the dashboard is no JSON")
}

/// The panels' queries with the dashboard's variables replaced.
fn queries(dashboard: &Value) -> Result<Vec<String>> {
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut queries = Vec::new();
    for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
        ensure!(target["datasource"]["uid"] == "${datasource}", "a fixed data source: {target}");
        let query = target["expr"].as_str().context("a target without a query")?;
        queries.push(query.replace("$range", "5m"));
    }
    Ok(queries)
}

fn queries_of_the_dashboard_are_valid() -> Outcome {
    let dashboard = dashboard()?;
    let variables = dashboard["templating"]["list"].as_array().context("no variables")?;
    ensure!(
        variables.iter().any(|variable| variable["name"] == "datasource" && variable["type"] == "datasource"),
        "no variable for the data source"
    );
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        ensure!(ids.insert(panel["id"].as_u64().context("a panel without id")?), "two panels have one id");
    }
    let queries = queries(&dashboard)?;
    ensure!(queries.len() > 10, "hardly a query: {queries:?}");
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (index, query) in queries.iter().enumerate() {
        let quoted = serde_json::to_string(query)?;
        writeln!(rules, "      - {{record: \"panel:{index}\", expr: {quoted}}}")?;
    }
    let dir = TempDir::new()?;
    let file = dir.write("dashboard.yaml", &rules)?;
    tool::run(Command::new(tool::find("promtool")?).args(["check", "rules"]).arg(file))?;
    Ok(())
}

/// Words of metric names' characters.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
}

fn every_metric_exists() -> Outcome {
    let documented = fs::read_to_string(tool::deploy().join("../METRICS.md"))?;
    let documented: BTreeSet<&str> =
        documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    ensure!(documented.len() > 30, "hardly a metric in METRICS.md: {documented:?}");
    let mut expressions = queries(&dashboard()?)?;
    let mut recorded = BTreeSet::new();
    let rules = RULES.map(read).into_iter().collect::<Result<Vec<_>>>()?;
    for text in &rules {
        recorded.extend(values(text, "record"));
        // Comments name files.
        expressions.extend(text.lines().filter(|line| !line.trim().starts_with('#')).map(str::to_owned));
    }
    ensure!(recorded.len() > 5, "hardly a recording rule: {recorded:?}");
    let mut seen = 0;
    for word in expressions.iter().flat_map(|text| words(text)) {
        let known = if word.contains(":kernmeter_") {
            recorded.contains(word.trim_end_matches(':'))
        } else if word.starts_with("kernmeter_") || word.starts_with("process_") {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix));
            documented.contains(word) || family.is_some_and(|family| documented.contains(family))
        } else {
            continue;
        };
        seen += 1;
        ensure!(known, "`{word}` is neither in METRICS.md nor recorded");
    }
    ensure!(seen > 40, "only {seen} metrics were looked up");
    Ok(())
}
