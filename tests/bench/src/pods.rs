//! In: the agent's release build and an API server in this process; out: what knowing a node's pods costs the agent, with
//! far more of them than a node has: 5,000 pods, 100 events a second. Judges nothing but that no event is lost.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kernmeter_tests::apiserver::{ApiServer, PodSpec};
use kernmeter_tests::{Agent, Scrape, Settings};

const NODE: &str = "node-a";
const PODS: usize = 5000;
const EVENTS_PER_SECOND: u32 = 100;

fn pod(number: usize, restarts: usize) -> PodSpec {
    let id = |container: usize| format!("{:064x}", (number * 4 + container) * 1000 + restarts);
    PodSpec::new(
        NODE,
        &format!("team-{}", number % 50),
        &format!("app-{number}-7d9f8b6c5-x2x4z"),
        &format!("{number:08x}-0000-4000-8000-000000000000"),
    )
    .container("main", &id(0))
    .container("sidecar", &id(1))
    .label("app", &format!("app-{number}"))
    .label("team", &format!("team-{}", number % 50))
    .label("pod-template-hash", "7d9f8b6c5")
    .annotation("example.com/config", &"c".repeat(200))
}

fn start(kubernetes: &str) -> Result<Agent> {
    let settings = Settings {
        intervals_ms: [5000; 3],
        drain: String::new(),
        rules: "    - match: {pod_labels: {team: \"{team}\"}}\n      tenant: \"{team}\"\n      \
                allow: [{tenants: [\"*\"], namespaces: [\"*\"]}]\n"
            .to_owned(),
        sections: String::new(),
    };
    Agent::start(&settings.section(&format!("kubernetes: {{{kubernetes}}}")))
}

/// What grew over a time, per second.
struct Span<'a> {
    agent: &'a Agent,
    begun: Instant,
    before: Scrape,
}

impl<'a> Span<'a> {
    fn begin(agent: &'a Agent) -> Result<Self> {
        Ok(Self { agent, begun: Instant::now(), before: agent.scrape()? })
    }

    /// CPU time over wall time, percent of one CPU.
    fn cpu(&self) -> Result<f64> {
        let name = "process_cpu_seconds_total";
        let grown = self.agent.scrape()?.sum(name, &[]) - self.before.sum(name, &[]);
        Ok(grown / self.begun.elapsed().as_secs_f64() * 100.0)
    }
}

fn mib(scrape: &Scrape) -> f64 {
    scrape.sum("process_resident_memory_bytes", &[]) / f64::from(1 << 20)
}

/// Prints CPU time and memory without pods, with pods and while they change.
pub fn run(quick: bool) -> Result<()> {
    let (rest, seconds) = if quick { (5, 10) } else { (30, 60) };
    println!("\npods of one node, {PODS} of them; then {EVENTS_PER_SECOND} events a second for {seconds} s");

    let agent = start("pods: off")?;
    let span = Span::begin(&agent)?;
    std::thread::sleep(Duration::from_secs(rest));
    println!("  without pods: CPU                           {:.2} % of one", span.cpu()?);
    println!("  without pods: resident memory               {:.1} MiB", mib(&agent.scrape()?));
    agent.stop()?;

    let server = ApiServer::start()?;
    server.put_all(&(0..PODS).map(|number| pod(number, 0)).collect::<Vec<_>>());
    let agent = start(&format!(
        "pods: api, node_name: {NODE}, kubeconfig: '{}', start_jitter: 0s",
        server.kubeconfig()?.display()
    ))?;
    let known = |scrape: &Scrape| scrape.count("kernmeter_pods", &[("state", "running")]) as usize;
    wait(&agent, |scrape| known(scrape) == PODS)?;
    let scrape = agent.fresh()?;
    println!(
        "  listing them                                {:.0} ms",
        scrape.sum("kernmeter_sync_duration_seconds_sum", &[]) * 1e3
    );
    println!(
        "  memory of the cache per pod                 {:.0} bytes",
        scrape.sum("kernmeter_pod_cache_memory_bytes", &[]) / PODS as f64
    );
    println!("  resident memory                             {:.1} MiB", mib(&scrape));
    let span = Span::begin(&agent)?;
    std::thread::sleep(Duration::from_secs(rest));
    println!("  nothing happens: CPU                        {:.2} % of one", span.cpu()?);

    let lists = agent.scrape()?.count("kernmeter_sync_duration_seconds_count", &[]);
    let span = Span::begin(&agent)?;
    let events = EVENTS_PER_SECOND * seconds;
    for event in 0..events {
        // Containers restart, pods are deleted and others come.
        let number = event as usize % PODS;
        match event % 10 {
            0 => server.delete(&pod(number, 0).uid),
            1 => server.put(&pod(PODS + event as usize, 0)),
            _ => server.put(&pod(number, event as usize)),
        }
        let due = span.begun + Duration::from_secs(1) / EVENTS_PER_SECOND * (event + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let cpu = span.cpu()?;
    let took = span.begun.elapsed();
    let expected = server.pods(NODE).len();
    wait(&agent, |scrape| known(scrape) == expected)?;
    let scrape = agent.fresh()?;
    let dropped = scrape.sum("kernmeter_dropped_events_total", &[]);
    println!("  {events} events in {:.1} s: CPU              {cpu:.2} % of one", took.as_secs_f64());
    println!(
        "  longest run of the handler                  {:.0} us",
        scrape.sum("kernmeter_event_handler_max_seconds", &[]) * 1e6
    );
    println!("  events dropped                              {dropped}");
    println!(
        "  lists after the first                       {}",
        scrape.count("kernmeter_sync_duration_seconds_count", &[]) - lists
    );
    println!("  resident memory                             {:.1} MiB", mib(&scrape));
    println!("  pods known at the end                       {} of {expected}", known(&scrape));
    agent.stop()?;
    ensure!(dropped == 0.0, "{dropped} events were dropped");
    Ok(())
}

fn wait(agent: &Agent, done: impl Fn(&Scrape) -> bool) -> Result<()> {
    let until = Instant::now() + Duration::from_mins(1);
    while !done(&agent.scrape()?) {
        if Instant::now() > until {
            bail!(
                "not in a minute: {}",
                agent
                    .text("text/plain")?
                    .lines()
                    .filter(|l| l.contains("pods"))
                    .collect::<Vec<_>>()
                    .join("; ")
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
