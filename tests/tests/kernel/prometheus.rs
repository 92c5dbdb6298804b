//! The real Prometheus, promtool and Python's parser read what the agent writes, and count what was done.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, http, skip, trials};

use crate::counting::{WORKLOAD, calls, check_counts};

trials![prometheus_scrapes_both_formats, promtool_has_nothing_to_complain_of, python_parses_open_metrics];

/// What a scraper that knows nothing newer sends.
pub const TEXT: &str = "text/plain;version=0.0.4";
/// What Prometheus 2.42 sends.
pub const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                                text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// A program somewhere in the system, or a skip.
pub fn tool(name: &str) -> Result<String> {
    for dir in ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin", "/sbin"] {
        let path = format!("{dir}/{name}");
        if Path::new(&path).exists() {
            return Ok(path);
        }
    }
    skip!("{name} is not installed")
}

/// Runs a program on a text.
fn pipe(mut command: Command, text: &str) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let text = text.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    Ok(output)
}

/// Lets promtool read a text exposition.
pub fn promtool(text: &str) -> Outcome {
    let mut command = Command::new(tool("promtool")?);
    command.args(["check", "metrics"]);
    let output = pipe(command, text)?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success() && said.is_empty(), "promtool: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// Lets Python's `prometheus_client` read an `OpenMetrics` exposition.
pub fn python(text: &str) -> Outcome {
    const SCRIPT: &str = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        print(sum(len(f.samples) for f in parse(sys.stdin.buffer.read().decode('utf-8'))))\n";
    let interpreters = ["/usr/bin/python3", "python3"];
    let imports = |python: &&&str| {
        Command::new(python)
            .args(["-c", "import prometheus_client.openmetrics.parser"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let Some(python) = interpreters.iter().find(imports) else {
        skip!("no python3 with prometheus_client (Debian: python3-prometheus-client)");
    };
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]);
    let output = pipe(command, text)?;
    ensure!(output.status.success(), "python: {}", String::from_utf8_lossy(&output.stderr));
    let parsed: usize = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    let lines = text.lines().filter(|l| !l.starts_with('#')).count();
    ensure!(parsed == lines, "python found {parsed} samples in {lines} lines");
    Ok(())
}

fn promtool_has_nothing_to_complain_of() -> Outcome {
    tool("promtool")?;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("lint")?;
    let (workload, _) = Workload::run(&tenant, &["syscalls", "--getppid", "10", "--openat-fail", "10"])?;
    workload.finish()?;
    agent.settle(10, |s| calls(s, "lint", "getppid"))?;
    promtool(&agent.text(TEXT)?)?;
    agent.stop_conserved()?;
    Ok(())
}

fn python_parses_open_metrics() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let tenant = hierarchy.tenant("parsed")?;
    let (workload, _) = Workload::run(&tenant, &["syscalls", "--getppid", "10", "--openat-fail", "10"])?;
    workload.finish()?;
    agent.settle(10, |s| calls(s, "parsed", "getppid"))?;
    let text = agent.text(OPEN_METRICS)?;
    ensure!(text.ends_with("\n# EOF\n"), "no EOF");
    python(&text)?;
    agent.stop_conserved()?;
    Ok(())
}

/// A running Prometheus; killed when dropped.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(targets: &[(&str, SocketAddr)]) -> Result<Self> {
        let jobs: Vec<_> = targets.iter().map(|(job, address)| (*job, *address, String::new())).collect();
        Self::start_with(&jobs)
    }

    /// Each job with more lines of its configuration, indented by two.
    pub fn start_with(jobs: &[(&str, SocketAddr, String)]) -> Result<Self> {
        let program = tool("prometheus")?;
        let dir = TempDir::new()?;
        let mut config = String::from("global: {scrape_interval: 1s}\nscrape_configs:\n");
        for (job, address, more) in jobs {
            write!(config, "- job_name: {job}\n  static_configs: [{{targets: [\"{address}\"]}}]\n{more}")?;
        }
        let file = dir.write("prometheus.yml", &config)?;
        // A free port, as far as one can know one beforehand.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log"))?)
            .spawn()?;
        let prometheus = Self { child, address, _dir: dir };
        let until = Instant::now() + Duration::from_secs(30);
        while !http::get(address, "/-/ready", &[]).is_ok_and(|r| r.status == 200) {
            ensure!(Instant::now() < until, "Prometheus does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(prometheus)
    }

    fn api(&self, path: &str) -> Result<serde_json::Value> {
        let response = http::get(self.address, path, &[])?;
        let answer: serde_json::Value = serde_json::from_slice(&response.body)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The only value of an instant query; none while there is no data.
    pub fn query(&self, promql: &str) -> Result<Option<f64>> {
        let mut path = String::from("/api/v1/query?query=");
        for byte in promql.bytes() {
            write!(path, "%{byte:02x}")?;
        }
        let data = self.api(&path)?;
        let Some(result) = data["result"].get(0) else { return Ok(None) };
        Ok(Some(result["value"][1].as_str().context("no value")?.parse()?))
    }
}

/// Hands each request on to the agent, asking for text 0.0.4 whatever the scraper prefers.
fn text_only_proxy(agent: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = || -> Result<()> {
                let mut reader = BufReader::new(stream.try_clone()?);
                let mut line = String::from("-");
                while !line.trim_end().is_empty() {
                    line.clear();
                    reader.read_line(&mut line)?;
                }
                let response = http::get(agent, "/metrics", &[("Accept", TEXT)])?;
                let kind = response.header("content-type").unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 {} -\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n",
                    response.status
                );
                (&stream).write_all(head.as_bytes())?;
                (&stream).write_all(&response.body)?;
                Ok(())
            };
            // Prometheus notices, and the test asks it.
            let _ = serve();
        }
    });
    Ok(address)
}

fn prometheus_scrapes_both_formats() -> Outcome {
    tool("prometheus")?;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let proxy = text_only_proxy(agent.address())?;
    let prometheus = Prometheus::start(&[("open", agent.address()), ("text", proxy)])?;
    let tenant = hierarchy.tenant("scraped")?;
    let (workload, _) = Workload::run(&tenant, &WORKLOAD)?;
    workload.finish()?;
    let scrape = agent.settle(1_000_000, |s| calls(s, "scraped", "getppid"))?;
    check_counts(&scrape, "scraped")?;
    for job in ["open", "text"] {
        for (expected, promql) in [
            (
                1e6,
                format!("sum(kernmeter_syscalls_total{{job='{job}',tenant_id='scraped',syscall='getppid'}})"),
            ),
            (
                1e4,
                format!(
                    "sum(kernmeter_syscall_errors_total{{job='{job}',tenant_id='scraped',errno='ENAMETOOLONG'}})"
                ),
            ),
            (
                1e6,
                format!(
                    "sum(kernmeter_syscall_duration_seconds_bucket{{job='{job}',tenant_id='scraped',syscall='getppid',le='+Inf'}})"
                ),
            ),
        ] {
            let until = Instant::now() + Duration::from_secs(15);
            loop {
                let value = prometheus.query(&promql)?;
                if value == Some(expected) {
                    break;
                }
                ensure!(Instant::now() < until, "{promql} is {value:?} instead of {expected}");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        let clashes = prometheus.query(&format!(
            "count({{job='{job}',exported_job!=''}} or {{job='{job}',exported_instance!=''}})"
        ))?;
        ensure!(clashes.is_none(), "{clashes:?} series carry labels that clash with the target's");
    }
    let targets = prometheus.api("/api/v1/targets")?;
    let targets = targets["activeTargets"].as_array().context("no targets")?;
    ensure!(targets.len() == 2, "{} targets", targets.len());
    for target in targets {
        ensure!(target["health"] == "up" && target["lastError"] == "", "{target}");
    }
    agent.stop_conserved()?;
    Ok(())
}
