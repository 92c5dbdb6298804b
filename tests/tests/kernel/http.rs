//! What the agent answers, to whom, and that nobody can hold it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use kernmeter_tests::{Agent, Hierarchy, Outcome, Scrape, Settings, http, trials};

use crate::prometheus::{OPEN_METRICS, TEXT};

trials![paths_methods_and_formats, gzip_is_the_same_text, slow_clients_hold_nobody];

fn paths_methods_and_formats() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let address = agent.address();
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?collect[]=x", 200),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("HEAD", "/readyz", 200),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
    ] {
        let response = http::request(address, method, path, &[])?;
        ensure!(
            response.status == status,
            "{method} {path} answered {} instead of {status}",
            response.status
        );
    }
    for (accept, kind) in [
        (OPEN_METRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (TEXT, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", "text/plain; version=0.0.4; charset=utf-8"),
        ("image/png", "text/plain; version=0.0.4; charset=utf-8"),
    ] {
        let response = http::get(address, "/metrics", &[("Accept", accept)])?;
        let got = response.header("content-type").context("no content type")?.to_owned();
        ensure!(got.replace("; ", ";") == kind.replace("; ", ";"), "{accept}: {got} instead of {kind}");
        ensure!(response.text()?.ends_with("# EOF\n") == kind.contains("openmetrics"), "{accept}: wrong end");
        Scrape::parse(response.text()?)?;
    }
    let landing = http::get(address, "/", &[])?;
    ensure!(landing.text()?.contains("/metrics"), "the landing page has no link");
    agent.stop_conserved()?;
    Ok(())
}

fn gzip_is_the_same_text() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let response =
        http::get(agent.address(), "/metrics", &[("Accept-Encoding", "gzip"), ("Accept", OPEN_METRICS)])?;
    ensure!(response.header("content-encoding") == Some("gzip"), "not compressed");
    let mut text = String::new();
    flate2::read::GzDecoder::new(response.body.as_slice()).read_to_string(&mut text)?;
    let scrape = Scrape::parse(&text)?;
    ensure!(scrape.find("kernmeter_build_info", &[]).count() == 1, "no build info");
    let refused = http::get(agent.address(), "/metrics", &[("Accept-Encoding", "gzip;q=0")])?;
    ensure!(refused.header("content-encoding").is_none(), "compressed against the client's will");
    agent.stop_conserved()?;
    Ok(())
}

fn slow_clients_hold_nobody() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(agent.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        if n % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")?;
        }
        slow.push(stream);
    }
    let mut garbage = TcpStream::connect(agent.address())?;
    garbage.write_all(&[0xff; 4096])?;
    let mut huge = TcpStream::connect(agent.address())?;
    let _ = huge.write_all(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    // Not all of them may be let in at once, but the agent must answer somebody who asks properly.
    agent.scrape()?;
    drop(slow);
    agent.scrape()?;
    agent.stop_conserved()?;
    Ok(())
}
