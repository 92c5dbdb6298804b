//! Who reads what of a real agent: tokens, the real Prometheus over TLS, files that change, configurations that are refused.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::agent::program;
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, Workload, http, trials};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::counting::calls;
use crate::prometheus::{OPEN_METRICS, Prometheus, TEXT, promtool, python, tool};

trials![
    tenants_read_their_own,
    prometheus_reads_over_tls,
    changed_secrets_are_followed,
    nothing_opens_by_absence,
    broken_access_is_refused_at_the_start,
];

const OPERATOR: &str = "operator-token-0000";

/// Writes a file that only root may read.
fn secret(dir: &TempDir, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.write(name, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

/// Tokens of operators and of the tenants `one` and `two`.
fn access(dir: &TempDir) -> Result<String> {
    let operators = secret(dir, "operators", OPERATOR)?;
    let one = secret(dir, "one", "tenant-one-token-00\n")?;
    let two = secret(dir, "two", "tenant-two-token-00\n")?;
    Ok(format!(
        "access:\n  operators: {{bearer_token_files: [{}]}}\n  tenants:\n    one: {{bearer_token_files: [{}]}}\n    \
         two: {{bearer_token_files: [{}]}}\n",
        operators.display(),
        one.display(),
        two.display()
    ))
}

fn get(address: SocketAddr, path: &str, token: &str, accept: &str) -> Result<http::Response> {
    http::get(address, path, &[("Authorization", &format!("Bearer {token}")), ("Accept", accept)])
}

fn tenants_read_their_own() -> Outcome {
    let dir = TempDir::new()?;
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy).section(&access(&dir)?))?;
    let address = agent.address();
    for (tenant, count) in [("one", "1000"), ("two", "2000")] {
        let cgroup = hierarchy.tenant(tenant)?;
        let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", count])?;
        workload.finish()?;
    }
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let all = get(address, "/metrics", OPERATOR, OPEN_METRICS)?;
        let all = Scrape::parse(all.text()?)?;
        if calls(&all, "one", "getppid") == 1000 && calls(&all, "two", "getppid") == 2000 {
            break;
        }
        ensure!(Instant::now() < until, "the operator does not see what was done");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (tenant, other, count) in [("one", "two", 1000), ("two", "one", 2000)] {
        let token = format!("tenant-{tenant}-token-00");
        for path in ["/metrics".to_owned(), format!("/tenants/{tenant}/metrics?tenant={other}")] {
            for accept in [OPEN_METRICS, TEXT] {
                let response = get(address, &path, &token, accept)?;
                ensure!(response.status == 200, "{tenant} {path}: {}", response.status);
                let text = response.text()?;
                let own = format!("{{tenant_id=\"{tenant}\",");
                let strange = text.lines().find(|line| !line.starts_with('#') && !line.contains(&own));
                ensure!(strange.is_none(), "{tenant} {path} shows {strange:?}");
                let scrape = Scrape::parse(text)?;
                ensure!(calls(&scrape, tenant, "getppid") == count, "{tenant} {path}: wrong count");
                if accept == TEXT { promtool(text)? } else { python(text)? }
            }
        }
        for path in
            [&format!("/tenants/{other}/metrics"), "/tenants/_host/metrics", "/tenants/nobody/metrics"]
        {
            ensure!(get(address, path, &token, TEXT)?.status == 404, "{tenant} may ask for {path}");
            ensure!(
                get(address, path, "no-token-of-anybody", TEXT)?.status == 401,
                "a stranger may ask for {path}"
            );
        }
    }
    for path in ["/metrics", "/", "/nothing"] {
        ensure!(http::get(address, path, &[])?.status == 401, "{path} is open");
    }
    ensure!(http::get(address, "/healthz", &[])?.text()? == "ok\n", "not alive");
    agent.stop_conserved()?;
    Ok(())
}

/// A server's certificate with its CA, and a client's with the name `scraper.example`.
fn certificates(dir: &TempDir) -> Result<()> {
    for (ca_name, leaf_name, subject) in
        [("servers", "server", "127.0.0.1"), ("clients", "client", "scraper.example")]
    {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, ca_name);
        let ca_key = KeyPair::generate()?;
        secret(dir, &format!("{ca_name}.crt"), &params.self_signed(&ca_key)?.pem())?;
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![subject.to_owned()])?.signed_by(&key, &issuer)?;
        secret(dir, &format!("{leaf_name}.crt"), &leaf.pem())?;
        secret(dir, &format!("{leaf_name}.key"), &key.serialize_pem())?;
    }
    Ok(())
}

fn prometheus_reads_over_tls() -> Outcome {
    tool("prometheus")?;
    let dir = TempDir::new()?;
    certificates(&dir)?;
    let hash = bcrypt::hash("a password", 8)?;
    let web = secret(
        &dir,
        "web.yml",
        &format!(
            "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  client_ca_file: clients.crt\n  \
             client_auth_type: VerifyClientCertIfGiven\nbasic_auth_users:\n  scraper: \"{hash}\"\n"
        ),
    )?;
    let access = access(&dir)?
        .replace("    one: {", "    one: {basic_auth_users: [scraper], ")
        .replace("    two: {", "    two: {client_certificates: [scraper.example], ");
    let hierarchy = Hierarchy::new()?;
    let web = web.to_string_lossy();
    let settings = Settings::new(&hierarchy).section(&access);
    let agent = Agent::start_with(&settings, &["--web.config.file", &web])?;
    for tenant in ["one", "two", "three"] {
        let cgroup = hierarchy.tenant(tenant)?;
        let (workload, _) = Workload::run(&cgroup, &["syscalls", "--getppid", "1000"])?;
        workload.finish()?;
    }
    let file = |name: &str| dir.path().join(name).display().to_string();
    let tls =
        |more: &str| format!("  scheme: https\n  tls_config: {{ca_file: {}{more}}}\n", file("servers.crt"));
    let client = format!(", cert_file: {}, key_file: {}", file("client.crt"), file("client.key"));
    let bearer = |name: &str| format!("  authorization: {{credentials_file: {}}}\n", file(name));
    let basic = |password: &str| format!("  basic_auth: {{username: scraper, password: {password}}}\n");
    let address = agent.address();
    let prometheus = Prometheus::start_with(&[
        ("operator", address, tls("") + &bearer("operators")),
        ("token", address, tls("") + &bearer("two")),
        ("password", address, tls("") + &basic("a password")),
        ("wrong", address, tls("") + &basic("another password")),
        ("certificate", address, tls(&client)),
        ("path", address, tls("") + &bearer("operators") + "  metrics_path: /tenants/three/metrics\n"),
        ("other", address, tls("") + &bearer("one") + "  metrics_path: /tenants/two/metrics\n"),
        ("nobody", address, tls("")),
        ("plain", address, bearer("operators")),
    ])?;
    let query = |job: &str, tenant: &str| {
        prometheus.query(&format!(
            "sum(kernmeter_syscalls_total{{job='{job}',tenant_id='{tenant}',syscall='getppid'}})"
        ))
    };
    for (job, sees) in [
        ("operator", &["one", "two", "three"][..]),
        ("token", &["two"]),
        ("password", &["one"]),
        ("certificate", &["two"]),
        ("path", &["three"]),
        ("wrong", &[]),
        ("other", &[]),
        ("nobody", &[]),
        ("plain", &[]),
    ] {
        let until = Instant::now() + Duration::from_secs(20);
        for tenant in sees {
            while query(job, tenant)? != Some(1000.0) {
                ensure!(Instant::now() < until, "{job} does not see {tenant}: {:?}", query(job, tenant)?);
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        let up = if sees.is_empty() { 0.0 } else { 1.0 };
        while prometheus.query(&format!("up{{job='{job}'}}"))? != Some(up) {
            ensure!(Instant::now() < until, "{job} is not {up}");
            std::thread::sleep(Duration::from_millis(200));
        }
        if job != "operator" {
            let mine = sees.first().unwrap_or(&"");
            let strange = prometheus
                .query(&format!("count({{job='{job}',__name__=~'kernmeter_.*',tenant_id!='{mine}'}})"))?;
            ensure!(strange.is_none(), "{job} sees {strange:?} series of others");
        }
    }
    for reason in ["password", "missing", "tls"] {
        let counter = format!("kernmeter_access_refusals_total{{job='operator',reason='{reason}'}}");
        let until = Instant::now() + Duration::from_secs(20);
        while prometheus.query(&counter)?.is_none_or(|n| n < 1.0) {
            ensure!(Instant::now() < until, "refusals for {reason} are not counted");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    agent.stop_conserved()?;
    Ok(())
}

fn changed_secrets_are_followed() -> Outcome {
    let dir = TempDir::new()?;
    // As the kubelet mounts a Secret: a link to a directory that is replaced whole.
    for (generation, token) in [("1", "first-token-00000000"), ("2", "second-token-0000000"), ("3", "short")]
    {
        fs::create_dir(dir.path().join(generation))?;
        secret(&dir, &format!("{generation}/tenant"), token)?;
    }
    let swap = |generation: &str| -> Result<()> {
        symlink(generation, dir.path().join("..tmp"))?;
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data"))?;
        Ok(())
    };
    swap("1")?;
    let operators = secret(&dir, "operators", OPERATOR)?;
    let hierarchy = Hierarchy::new()?;
    let settings = Settings::new(&hierarchy).section(&format!(
        "access:\n  operators: {{bearer_token_files: [{}]}}\n  tenants:\n    one: {{bearer_token_files: [{}]}}\n",
        operators.display(),
        dir.path().join("..data/tenant").display()
    ));
    let mut agent = Agent::start(&settings)?;
    let address = agent.address();
    let status = |token: &str| get(address, "/metrics", token, TEXT).map(|response| response.status);
    ensure!(status("first-token-00000000")? == 200, "the first token is refused");
    swap("2")?;
    let swapped = Instant::now();
    while status("second-token-0000000")? != 200 {
        ensure!(swapped.elapsed() < Duration::from_secs(15), "the second token is not taken");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("a swapped token counts after {:?}", swapped.elapsed());
    ensure!(status("first-token-00000000")? == 401, "the first token is still taken");
    swap("3")?;
    let line =
        agent.wait_for(Duration::from_secs(15), |l| l.get("level").is_some_and(|level| level == "error"))?;
    let error = line.get("error").context("no reason")?;
    ensure!(error.contains("holds 5 bytes: write a token of 16"), "{error}");
    ensure!(status("second-token-0000000")? == 401, "a token that is in no file any more is taken");
    let metrics = get(address, "/metrics", OPERATOR, TEXT)?;
    ensure!(
        metrics.text()?.contains("kernmeter_config_reloads_total{result=\"failure\"} 1"),
        "the failure is not counted"
    );
    // By signal as well, held back by nothing else that is broken.
    secret(&dir, "operators", "renewed-operator-000")?;
    agent.signal(libc::SIGHUP);
    until(|| Ok(status("renewed-operator-000")? == 200)).context("the renewed token is not taken")?;
    ensure!(status(OPERATOR)? == 401, "the token before is still taken");
    swap("1")?;
    until(|| Ok(status("first-token-00000000")? == 200)).context("the mended token is not taken")?;
    agent.stop_conserved()?;
    Ok(())
}

/// Waits until it is so.
fn until(mut is_so: impl FnMut() -> Result<bool>) -> Outcome {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < Duration::from_secs(15), "not within {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Faults 41 and 42: a configuration that says less than before, is cut, or is gone opens nothing; a token goes with its file; what
/// is said in a word opens.
fn nothing_opens_by_absence() -> Outcome {
    let dir = TempDir::new()?;
    let hierarchy = Hierarchy::new()?;
    let without = Settings::new(&hierarchy);
    let guarded = without.clone().section(&access(&dir)?);
    let mut agent = Agent::start(&guarded)?;
    let address = agent.address();
    let status = |token: &str| get(address, "/metrics", token, TEXT).map(|response| response.status);
    let open = || Ok::<_, anyhow::Error>(http::get(address, "/metrics", &[])?.status == 200);
    let is_error = |l: &BTreeMap<String, String>| l.get("level").is_some_and(|level| level == "error");
    let text = guarded.yaml();
    let cut_before = text.find("access:").context("no access section")?;
    for (what, text) in [("no access section", without.yaml()), ("a cut file", text[..cut_before].to_owned())]
    {
        agent.swap_config(&text)?;
        let line = agent.wait_for(Duration::from_secs(15), is_error).context(what)?;
        let error = line.get("error").context("no reason")?;
        ensure!(error.contains("everyone could read everything"), "{what}: {error}");
        ensure!(!open()? && status(OPERATOR)? == 200, "{what}: opened, or closed to those who may");
    }
    fs::remove_file(dir.path().join("one"))?;
    until(|| Ok(status("tenant-one-token-00")? == 401)).context("a deleted token is still taken")?;
    let line = agent.wait_for(Duration::from_secs(15), is_error)?;
    ensure!(line.get("error").is_some_and(|error| error.contains("cannot read bearer token")), "{line:?}");
    ensure!(status("tenant-two-token-00")? == 200, "and another with it");
    agent.remove_config()?;
    let line = agent.wait_for(Duration::from_secs(15), is_error)?;
    ensure!(line.get("error").is_some_and(|error| error.contains("No such file")), "{line:?}");
    ensure!(!open()? && status(OPERATOR)? == 200, "opened with the file gone");
    agent.swap_config(&without.clone().section("access: {mode: open}\n").yaml())?;
    until(open).context("what is said in a word opens nothing")?;
    let scrape = Scrape::parse(http::get(address, "/metrics", &[])?.text()?)?;
    ensure!(scrape.sum("kernmeter_access_guarded", &[]) == 0.0, "it is said to be guarded");
    agent.stop_conserved()?;
    Ok(())
}

fn broken_access_is_refused_at_the_start() -> Outcome {
    let dir = TempDir::new()?;
    certificates(&dir)?;
    let short = secret(&dir, "short", "short")?;
    let open = secret(&dir, "open", OPERATOR)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644))?;
    let foreign = secret(&dir, "foreign", OPERATOR)?;
    std::os::unix::fs::chown(&foreign, Some(65534), None)?;
    let token =
        |path: &PathBuf| format!("access: {{operators: {{bearer_token_files: [{}]}}}}\n", path.display());
    for (main, web, part) in [
        (token(&short), "", "holds 5 bytes"),
        (token(&open), "", "has mode 0644"),
        (token(&foreign), "", "belongs to user 65534"),
        (token(&dir.path().join("absent")), "", "cannot read bearer token"),
        ("access: {tenants: {_host: {basic_auth_users: [a]}}}".into(), "", "no tenant has this name"),
        (
            "{}".into(),
            "tls_server_config: {cert_file: server.crt}",
            "web.yml:1:20: tls_server_config: `key_file` is missing",
        ),
        (
            "{}".into(),
            "tls_server_config: {cert_file: server.crt, key_file: client.key}",
            "cannot be used with key",
        ),
        (
            "{}".into(),
            "tls_server_config: {min_version: TLS10, cert_file: server.crt, key_file: server.key}",
            "use TLS12",
        ),
        ("{}".into(), "basic_auth_users: {a: plain}", "not a bcrypt hash"),
        ("{}".into(), "basic_auth_user: {}", "did you mean `basic_auth_users`"),
    ] {
        let config = dir.write("kernmeter.yml", &main)?;
        let web = secret(&dir, "web.yml", web)?;
        let output = Command::new(program())
            .args(["run", "--web.listen-address", "127.0.0.1:0", "--config.file"])
            .arg(config)
            .arg("--web.config.file")
            .arg(web)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{part}: ended with {}: {said}", output.status);
        ensure!(said.contains(part) && said.trim_end().lines().count() == 1, "{part}: {said}");
    }
    Ok(())
}
