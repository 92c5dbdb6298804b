//! The agent's life: configuration in; metering and serving until a signal. Prints nothing but its log (and, if asked, a table).

use std::cell::RefCell;
use std::io::Write as _;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kernmeter_abi::{Loss, Total};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::adapt::{Controller, Decision, Load};
use crate::catalog::family::Scale;
use crate::catalog::{self, PROBES};
use crate::config::{Config, ConfigError};
use crate::engine::{self, Engine, Report, StartError, probe_state};
use crate::filewatch::FileWatch;
use crate::host::possible_cpus;
use crate::identity::PodKnowledge;
use crate::identity::pods::Event;
use crate::kernel::KernelLog;
use crate::kubernetes::{Environment, KubernetesError, Pods, Settings, Source};
use crate::lifecycle::{Request, ShutdownHooks, Signals, monotonic_ns};
use crate::selfmetrics::process::read_process_stats;
use crate::selfmetrics::{HostReadings, MapUsage, PodSource, ProbeState, SelfMetrics};
use crate::serve::{AppState, Limits, ServeError, Server};
use crate::web::Watched;
use crate::{known, privileges, table};

/// The binary's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The source revision it was built from.
pub const REVISION: &str = env!("KERNMETER_REVISION");

/// How often the host's load is read.
const LOAD_TICK: Duration = Duration::from_secs(1);
/// How often the agent looks whether slots run out.
const PRESSURE_TICK: Duration = Duration::from_millis(250);
/// Events about pods taken in before anything else gets its turn: some 100 microseconds.
const EVENTS_AT_ONCE: usize = 64;
/// How long `--show` watches before it prints its table.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// A snapshot older than this many of the longest interval is a failure of the drain.
const STALE_INTERVALS: u32 = 3;

/// Why the agent ended with a failure.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel side could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Pods cannot be watched.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// The server could not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. `web` says who may read what. `loaded` is `file` without what the command line overrides in `config`. `show` prints a first table to standard output.
///
/// # Errors
/// The agent could not start. Nothing stays behind in the kernel.
pub async fn run(
    config: Config,
    loaded: Config,
    file: Option<PathBuf>,
    web: Watched,
    show: bool,
) -> Result<(), RunError> {
    // The cheap refusals first: nothing is loaded for a port that is taken.
    let server = Server::bind(config.web.listen_address)?
        .with_limits(Limits { max_connections: config.web.max_connections as usize, ..Limits::default() });
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (engine, pods) = start(&config)?;
    let engine = Rc::new(RefCell::new(engine));
    let own = SelfMetrics::new(VERSION, REVISION);
    let max_age = config.drain.stressed.max(config.drain.normal) * STALE_INTERVALS;
    let state =
        AppState::new(own.clone(), &config.web.telemetry_path, VERSION, max_age, Box::new(monotonic_ns));
    let state = Arc::new(state.with_guard(web.guard()));
    let mut metering = Metering {
        engine: Rc::clone(&engine),
        own,
        state: Arc::clone(&state),
        controller: Controller::new(config.drain.clone()),
        load: Load::new(),
        cpus: possible_cpus(),
        pods,
        loaded,
        config_file: FileWatch::new(file.clone()),
        file,
        web,
        kernel_log: engine
            .borrow_mut()
            .kernel_mut()
            .take_log()
            .map_err(|reason| tracing::warn!(%reason, "the kernel side's log cannot be read"))
            .ok(),
    };
    metering.drain();
    metering.tell_probes();

    let address = server.local_addr();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = serve(server, Arc::clone(&state), stopped)?;
    tracing::info!(
        version = VERSION,
        address = %address,
        path = config.web.telemetry_path,
        probes = PROBES.len(),
        "listening"
    );
    sd_ready();
    {
        let showing =
            first_look(&engine, show.then(|| format!("http://{address}{}", config.web.telemetry_path)));
        let metered = metering.until_stopped(&mut signals);
        tokio::select! {
            () = metered => {}
            never = showing => match never {},
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping; a second signal ends at once");

    let metering = RefCell::new(metering);
    let mut hooks = ShutdownHooks::default();
    hooks.register("log", Duration::from_millis(200), async {
        tracing::info!("stopped");
        let _ = std::io::stderr().flush();
    });
    // Programs go first, so that the last counts are final; then they are read and said.
    hooks.register("kernel", Duration::from_secs(1), async {
        metering.borrow_mut().finish();
    });
    hooks.register("server", Duration::from_millis(500), async move {
        let _ = stop.send(());
        let _ = serving.await;
    });
    tokio::select! {
        _ = hooks.run() => Ok(()),
        () = signals.stop() => {
            tracing::warn!("second signal: ending at once");
            std::process::exit(1)
        }
    }
}

/// Starts metering, gives up the capabilities that are no longer needed, and starts the source of pods.
///
/// # Errors
/// Nothing can be metered, or the configured source of pods cannot be used. Nothing stays behind in the kernel.
pub fn start(config: &Config) -> Result<(Engine, Option<Pods>), RunError> {
    let source = Settings::resolve(&config.kubernetes, &Environment::current())?;
    let knowledge = match source.as_ref().map(|settings| &settings.source) {
        None => PodKnowledge::None,
        Some(Source::Directories { .. }) => PodKnowledge::Names,
        Some(Source::Api { .. }) => PodKnowledge::Everything,
    };
    let engine = Engine::start(config, knowledge)?;
    // Everything is attached, and no other thread runs yet.
    match privileges::drop_unneeded() {
        Ok((kept, dropped)) => tracing::debug!(kept = kept.join(","), dropped, "capabilities reduced"),
        Err(error) => tracing::warn!(%error),
    }
    let pods = source.map(|settings| Pods::start(&settings, engine.wanted())).transpose()?;
    Ok((engine, pods))
}

/// Serves on a thread of its own: rendering, compressing and handshakes never hold up a drain. Completes when the server
/// has stopped.
fn serve(
    server: Server,
    state: Arc<AppState>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> Result<tokio::sync::oneshot::Receiver<()>, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ServeError::Accept)?;
    let (done, serving) = tokio::sync::oneshot::channel();
    let run = move || {
        let result = runtime.block_on(server.serve(state, async {
            let _ = stopped.await;
        }));
        if let Err(error) = result {
            tracing::error!(%error, "the server stopped");
        }
        // Nobody waits any more if the agent ended meanwhile.
        let _ = done.send(());
    };
    std::thread::Builder::new().name("http".into()).spawn(run).map_err(ServeError::Accept)?;
    Ok(serving)
}

struct Metering {
    engine: Rc<RefCell<Engine>>,
    own: SelfMetrics,
    state: Arc<AppState>,
    controller: Controller,
    load: Load,
    cpus: u32,
    /// The source of pods, while there is one.
    pods: Option<Pods>,
    /// The file as it was at the start, without what the command line overrides.
    loaded: Config,
    file: Option<PathBuf>,
    config_file: FileWatch,
    web: Watched,
    /// The kernel side's rare messages.
    kernel_log: Option<KernelLog>,
}

impl Metering {
    /// Drains whenever it is due until a signal asks to stop.
    async fn until_stopped(&mut self, signals: &mut Signals) {
        let mut load_tick = interval(LOAD_TICK);
        load_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pressure_tick = interval(PRESSURE_TICK);
        pressure_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drained = Instant::now();
        let mut decision = self.controller.current();
        self.tell_interval(&decision);
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            tokio::select! {
                more = next_pods(&mut self.pods, &mut events) => {
                    if !more {
                        tracing::error!("the source of pods has ended; later pods are billed to `_unknown` until a restart");
                        self.pods = None;
                    }
                    self.engine.borrow_mut().learn_pods(events.drain(..));
                }
                request = signals.next() => match request {
                    Request::Stop => return,
                    Request::Reload => self.reload(),
                },
                _ = load_tick.tick() => {
                    decision = self.read_load();
                    self.watchdog();
                    // Both are asked, so that neither is read twice.
                    if self.config_file.changed() | self.web.changed() {
                        self.reload();
                    }
                    if let Some(kernel_log) = &mut self.kernel_log {
                        kernel_log.flush();
                    }
                }
                () = sleep_until(drained + decision.interval) => {
                    drained = Instant::now();
                    self.drain();
                }
                _ = pressure_tick.tick() => {
                    if self.engine.borrow().is_pressed() {
                        drained = Instant::now();
                        self.drain();
                    }
                }
            }
        }
    }

    /// One pass, published.
    fn drain(&mut self) {
        let passed = self.engine.borrow_mut().pass();
        match passed {
            Ok(report) => self.publish(&report),
            // Counts stay in the kernel: the next pass has them.
            Err(error) => {
                tracing::error!(%error, "cannot drain the kernel; trying again at the next interval");
            }
        }
    }

    fn publish(&mut self, report: &Report) {
        let mut engine = self.engine.borrow_mut();
        self.own.observe_drain(report.took);
        self.own.set_accounting_error(report.error_ratio(self.cpus));
        let batch = engine.batch();
        let totals =
            |scale: Scale| Total::ALL.iter().filter(move |total| catalog::scale_of(**total) == scale);
        let events: Vec<_> =
            totals(Scale::One).map(|total| (total.as_str(), batch.totals_after[*total as usize])).collect();
        self.own.set_kernel_events(&events);
        let seconds: Vec<_> = totals(Scale::NanosToSeconds)
            .map(|total| {
                (total.as_str().trim_end_matches("_ns"), batch.totals_after[*total as usize] as f64 / 1e9)
            })
            .collect();
        self.own.set_kernel_seconds(&seconds);
        let programs = engine.kernel().program_stats();
        // A program that is already running on a CPU is not started again there: the kernel counts what it missed.
        let missed = programs.iter().map(|program| program.missed).sum();
        let losses: Vec<_> = Loss::ALL
            .iter()
            .map(|loss| ("kernel", loss.as_str(), batch.losses[*loss as usize]))
            .chain([("kernel", "recursion", missed)])
            .collect();
        let ran: Vec<_> = programs
            .iter()
            .filter(|program| program.runs > 0)
            .map(|program| (program.program, program.run_ns as f64 / 1e9, program.runs))
            .collect();
        self.own.set_programs(&ran);
        self.own.set_events_lost(&losses);
        let slots = engine.slot_counts();
        self.own.set_slots(slots.free.into(), slots.live.into(), slots.dead.into());
        self.own.set_slots_recycled(engine.slot_generations());
        let (syscall_rows, errno_rows) = engine.rows_used();
        let maps: Vec<_> = engine
            .kernel()
            .map_sizes()
            .iter()
            .map(|size| MapUsage {
                map: &size.name,
                // Of the others nobody counts the entries, or they are always all in use.
                entries: match size.name.as_str() {
                    "SLOTS" | "SLOT_ROWS" => Some(u64::from(slots.live + slots.dead)),
                    "SYS_INDEX" | "SYS_META" | "SYS_ROWS" => Some(syscall_rows.into()),
                    "ERR_INDEX" | "ERR_META" | "ERR_ROWS" => Some(errno_rows.into()),
                    "SLOT_FREE" => Some(slots.free.into()),
                    _ => None,
                },
                capacity: size.capacity.into(),
                memory_bytes: size.memory_bytes.unwrap_or_default(),
            })
            .collect();
        self.own.set_maps(&maps);
        let attribution = engine.attribution();
        self.own.set_unresolved_slots(attribution.unresolved() as u64);
        let waiting: Vec<_> =
            report.balances.iter().map(|balance| (balance.event, balance.waiting)).collect();
        self.own.set_unresolved_events(&waiting);
        self.own.set_identities_given_up(attribution.given_up().iter().map(|(reason, n)| (*reason, *n)));
        self.own.set_tenant_rule_refusals(attribution.refusals().iter().map(|(reason, n)| (*reason, *n)));
        if let Some(pods) = &self.pods {
            let cache = engine.pods();
            let states = cache.counts().map(|(state, pods)| (state, pods as u64));
            self.own.set_pods(states, cache.memory_bytes() as u64);
            let figures = pods.stats();
            figures.syncs.iter().for_each(|took| self.own.observe_sync(*took));
            self.own.set_pod_source(&PodSource {
                restarts: &figures.restarts,
                dropped: &figures.dropped,
                last_event_age: figures.last_event_age,
                handler_max: figures.longest_handler_run,
            });
        }
        self.own.set_series(engine.registry().lines().map(|(tenant, lines)| (tenant, lines as u64)));
        self.own.set_series_limited(engine.registry().limited());
        if let Ok(stats) = read_process_stats() {
            self.own.set_process(&stats);
        }
        self.state.snapshots().publish(Arc::new(engine.publish()));
    }

    fn tell_probes(&self) {
        let engine = self.engine.borrow();
        let hooks = engine.kernel().hooks();
        let known: Vec<_> = PROBES.iter().map(|probe| (probe.name, probe_state(hooks, probe))).collect();
        let states: Vec<_> = known
            .iter()
            .filter_map(|(probe, state)| {
                let (detached, caveat) = match state {
                    engine::ProbeState::Off => return None,
                    engine::ProbeState::Attached(caveat) => (None, caveat.as_deref()),
                    engine::ProbeState::Failed(reason) => (Some(reason.as_str()), None),
                };
                Some(ProbeState { probe, detached, caveat })
            })
            .collect();
        self.own.set_probes(&states);
        self.state.set_seeing();
    }

    fn read_load(&mut self) -> Decision {
        match self.load.read() {
            Ok(Some(reading)) => {
                let decision = self.controller.step(Duration::from_nanos(monotonic_ns()), &reading);
                let reading = self.controller.smoothed().unwrap_or(reading);
                let psi = reading.psi.map(|psi| {
                    [("cpu", psi.cpu / 100.0), ("memory", psi.memory / 100.0), ("io", psi.io / 100.0)]
                });
                self.own.set_host(&HostReadings {
                    cpu_utilization: reading.cpu_busy_percent / 100.0,
                    memory_available: reading.memory_available_percent / 100.0,
                    pressure: psi.as_ref().map_or(&[], |psi| psi.as_slice()),
                });
                if decision.changed {
                    tracing::info!(
                        state = decision.state.as_str(),
                        interval = ?decision.interval,
                        signal = decision.signal.as_str(),
                        reason = decision.reason(),
                        "drain interval changed"
                    );
                }
                self.tell_interval(&decision);
                decision
            }
            Ok(None) => self.controller.current(),
            Err(error) => {
                tracing::warn!(%error, "cannot read the host's load; the drain interval stays as it is");
                self.controller.current()
            }
        }
    }

    fn tell_interval(&self, decision: &Decision) {
        self.own.set_interval(decision.interval, decision.state);
    }

    fn watchdog(&self) {
        if self.state.unready().is_none() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    /// Reads the configuration again and applies what can change while running.
    fn reload(&mut self) {
        // What changed until now is in what is read now.
        self.config_file.changed();
        let result = self.try_reload();
        self.own.count_config_reload(result.is_ok());
        match result {
            Ok(needs_restart) if needs_restart.is_empty() => tracing::info!("configuration reloaded"),
            Ok(needs_restart) => tracing::warn!(
                sections = needs_restart.join(","),
                "configuration reloaded; these sections changed and apply after a restart"
            ),
            Err(error) => tracing::error!(error, "configuration not reloaded, the old one stays"),
        }
    }

    fn try_reload(&mut self) -> Result<Vec<&'static str>, String> {
        let new = load(self.file.as_deref()).map_err(|error| error.to_string())?;
        self.web.reload(&new.access).map_err(|error| error.to_string())?;
        self.engine.borrow_mut().reload(&new).map_err(|error| error.to_string())?;
        if let Some(pods) = &self.pods {
            pods.want(self.engine.borrow().wanted());
        }
        let sections = self.loaded.restart_needed(&new);
        self.controller.reconfigure(new.drain.clone());
        Ok(sections)
    }

    /// Detaches, drains for the last time, publishes and says the final totals.
    fn finish(&mut self) {
        let finished = self.engine.borrow_mut().finish();
        match finished {
            Ok(report) => {
                for balance in &report.balances {
                    tracing::info!(
                        event = balance.event,
                        kernel = balance.kernel_after,
                        attributed = balance.attributed,
                        "final totals"
                    );
                }
                self.publish(&report);
            }
            Err(error) => {
                tracing::error!(%error, "the last drain failed: counts since the one before are lost");
            }
        }
    }
}

/// Appends what the source of pods tells next; waits for ever without one. `false`: it has ended. Cancel-safe.
pub async fn next_pods(pods: &mut Option<Pods>, into: &mut Vec<Event>) -> bool {
    match pods {
        Some(pods) => pods.recv(into, EVENTS_AT_ONCE).await,
        None => std::future::pending().await,
    }
}

/// Loads a configuration with the names this build knows.
///
/// # Errors
/// As [`Config::load`].
pub fn load(file: Option<&std::path::Path>) -> Result<Config, ConfigError> {
    known(|known| Config::load(file, known))
}

fn sd_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
}

/// Prints where to scrape and a first table. Never completes.
async fn first_look(engine: &RefCell<Engine>, url: Option<String>) -> std::convert::Infallible {
    if let Some(url) = url {
        let before = table::Look::take(engine.borrow().registry());
        println!("metrics: {url}");
        println!("looking for {} s ...", FIRST_LOOK.as_secs());
        let mut due = pin!(tokio::time::sleep(FIRST_LOOK));
        due.as_mut().await;
        let passed = engine.borrow_mut().pass();
        if passed.is_ok() {
            let after = table::Look::take(engine.borrow().registry());
            let table = table::Table::between(&before, &after, FIRST_LOOK);
            print!("\n{}", table.render(table::Sort::Cpu));
        }
    }
    std::future::pending().await
}
