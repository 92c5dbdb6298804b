//! The agent's life: configuration in; metering and serving until a signal. Prints nothing but its log (and, if asked, a table).

mod figures;
mod metering;

use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use metering::Metering;
use tokio::sync::oneshot;

use crate::adapt::{Controller, Load};
use crate::auth::AuthFiles;
use crate::catalog::PROBES;
use crate::config::{Config, ConfigError};
use crate::engine::{Engine, StartError};
use crate::filewatch::FileWatch;
use crate::identity::PodKnowledge;
use crate::identity::pods::PodEvent;
use crate::kernel::{KernelLog, Wake};
use crate::kubernetes::{Environment, KubernetesError, Pods, Settings, Source};
use crate::lifecycle::{ShutdownHooks, Signals, monotonic_ns};
use crate::selfmetrics::SelfMetrics;
use crate::selfmetrics::process::read_process_stats;
use crate::serve::{AppState, ConnectionLimits, ServeError, Server};
use crate::{known, privileges, table};

/// The binary's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The source revision it was built from.
pub const REVISION: &str = env!("KERNMETER_REVISION");

/// Events about pods taken in before anything else gets its turn: some 100 microseconds.
const EVENTS_AT_ONCE: usize = 64;
/// How long `--show` watches before it prints its table.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// A snapshot older than this many of the longest interval is a failure of the drain.
const STALE_INTERVALS: u32 = 3;

/// Files that metering has open at most: programs, maps and hooks, some 80, and for a moment three for each of the chunks of rows
/// that are made at a time, at most 48.
const METERING_FILES: u64 = 256;

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
    /// Too few files may be open.
    #[error(
        "only {limit} files may be open, and metering needs up to {METERING_FILES}, connections {connections} more: raise the limit \
         to {needed} (`ulimit -n {needed}`, or `LimitNOFILE={needed}` of the service)",
        needed = METERING_FILES + connections
    )]
    OpenFiles {
        /// The limit, as it is.
        limit: u64,
        /// Connections that may be served at once.
        connections: u64,
    },
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. `auth` says who may read what. `loaded` is `file` without what the command line overrides
/// in `config`. `show` prints a first table to standard output.
///
/// # Errors
/// The agent could not start. Nothing stays behind in the kernel.
pub async fn run(
    config: Config,
    loaded: Config,
    file: Option<PathBuf>,
    auth: AuthFiles,
    show: bool,
) -> Result<(), RunError> {
    // The cheap refusals first: nothing is loaded for a port that is taken.
    check_open_files(&config)?;
    let server = bind(&config)?;
    let address = server.local_addr();
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (mut engine, pods) = start(&config)?;
    let (kernel_log, wake) = (take_log(&mut engine), take_wake(&mut engine));
    let engine = Rc::new(RefCell::new(engine));
    let own = SelfMetrics::new(VERSION, REVISION);
    let state = Arc::new(state(&config, &own, &auth));
    let mut metering = Metering {
        kernel_log,
        wake,
        engine: Rc::clone(&engine),
        own,
        state: Arc::clone(&state),
        controller: Controller::new(config.drain.clone()),
        load: Load::new(),
        pods,
        loaded,
        config_file: FileWatch::new(file.clone()),
        file,
        auth,
    };
    metering.drain();
    metering.tell_probes();
    metering.tell_access();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(server, state, stopped)?;
    say_ready(&config, address);
    let shown = first_look(&engine, show.then(|| format!("http://{address}{}", config.web.telemetry_path)));
    tokio::select! {
        () = metering.until_stopped(&mut signals) => {}
        never = shown => match never {},
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping; a second signal ends at once");
    shut_down(metering, stop, serving, &mut signals).await;
    Ok(())
}

/// Refuses to start where metering itself would run out of files, and warns where that takes all connections that may come.
fn check_open_files(config: &Config) -> Result<(), RunError> {
    let limit = read_process_stats().ok().and_then(|stats| stats.max_fds).unwrap_or(u64::MAX);
    let error = RunError::OpenFiles { limit, connections: u64::from(config.web.max_connections) };
    if limit < METERING_FILES {
        return Err(error);
    }
    if limit < METERING_FILES + u64::from(config.web.max_connections) {
        tracing::warn!("{error}");
    }
    Ok(())
}

/// Takes the address that the configuration names.
fn bind(config: &Config) -> Result<Server, ServeError> {
    let limits = ConnectionLimits {
        max_connections: config.web.max_connections as usize,
        ..ConnectionLimits::default()
    };
    Ok(Server::bind(config.web.listen_address)?.with_limits(limits))
}

/// What requests see: snapshots, the agent's own metrics, who may read.
fn state(config: &Config, own: &SelfMetrics, auth: &AuthFiles) -> AppState {
    let max_age = config.drain.stressed.max(config.drain.normal) * STALE_INTERVALS;
    AppState::new(own.clone(), &config.web.telemetry_path, VERSION, max_age, Box::new(monotonic_ns))
        .with_authenticator(auth.authenticator())
}

/// The kernel side's rare messages; none if they cannot be read.
fn take_log(engine: &mut Engine) -> Option<KernelLog> {
    let taken = engine.kernel_mut().take_log();
    taken.map_err(|reason| tracing::warn!(%reason, "the kernel side's log cannot be read")).ok()
}

/// What the kernel side wakes the agent with; none if it cannot.
fn take_wake(engine: &mut Engine) -> Option<Wake> {
    let taken = engine.kernel_mut().take_wake();
    taken
        .map_err(|error| tracing::warn!(%error, "the kernel side cannot wake the agent: it looks ten times a second"))
        .ok()
}

/// Says where to scrape, in the log and to the service manager.
fn say_ready(config: &Config, address: SocketAddr) {
    let path = &config.web.telemetry_path;
    tracing::info!(version = VERSION, %address, path, probes = PROBES.len(), "listening");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
}

/// Ends the server, then metering, then the log, each within its deadline; at once on a second signal.
async fn shut_down(
    metering: Metering,
    stop: oneshot::Sender<()>,
    serving: oneshot::Receiver<()>,
    signals: &mut Signals,
) {
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
        _ = hooks.run() => {}
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
        Ok(reduced) => tracing::debug!(
            kept = reduced.kept.join(","),
            dropped = reduced.dropped,
            bounded = reduced.is_bounded,
            "capabilities reduced"
        ),
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
    stopped: oneshot::Receiver<()>,
) -> Result<oneshot::Receiver<()>, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ServeError::Accept)?;
    let (done, serving) = oneshot::channel();
    let run = move || {
        privileges::drop_all();
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

/// Appends what the source of pods tells next; waits for ever without one. `false`: it has ended. Cancel-safe.
pub async fn next_pods(pods: &mut Option<Pods>, into: &mut Vec<PodEvent>) -> bool {
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

/// Prints where to scrape and a first table, if standard output takes it. Never completes.
async fn first_look(engine: &RefCell<Engine>, url: Option<String>) -> std::convert::Infallible {
    if let Some(url) = url
        && let Err(error) = print_first_look(engine, &url).await
    {
        tracing::warn!(%error, "cannot print the first table");
    }
    std::future::pending().await
}

async fn print_first_look(engine: &RefCell<Engine>, url: &str) -> std::io::Result<()> {
    let before = table::Look::take(engine.borrow().registry());
    let mut out = std::io::stdout();
    writeln!(out, "metrics: {url}\nlooking for {} s ...", FIRST_LOOK.as_secs())?;
    let mut due = pin!(tokio::time::sleep(FIRST_LOOK));
    due.as_mut().await;
    let passed = engine.borrow_mut().pass();
    if passed.is_ok() {
        let after = table::Look::take(engine.borrow().registry());
        let table = table::Table::between(&before, &after, FIRST_LOOK);
        write!(out, "\n{}", table.render(table::Sort::Cpu))?;
        out.flush()?;
    }
    Ok(())
}
