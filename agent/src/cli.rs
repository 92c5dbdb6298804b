//! In: the command line; out: calls into the agent and exit codes: 0 fine, 1 failure, 2 bad usage or configuration.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::auth::AuthFiles;
use crate::config::{Config, Log, LogFormat, LogLevel, Mode, values};
use crate::engine::Engine;
use crate::run::{self, REVISION, VERSION};
use crate::table::{Look, Sort, Table};
use crate::{docs, doctor, log};

/// Exit code for bad usage and bad configuration.
const USAGE: u8 = 2;

/// How long a snapshot waits for the first list of pods beyond its time.
const PODS_PATIENCE: Duration = Duration::from_secs(5);

/// Meters system calls and scheduling per tenant, in the kernel, for Prometheus.
#[derive(Parser)]
#[command(name = "kernmeter", version = FULL_VERSION, disable_help_subcommand = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Meter and serve metrics until SIGTERM or SIGINT; SIGHUP reloads the configuration
    Run {
        #[command(flatten)]
        common: Common,
        /// Address and port to serve on; overrides `web.listen_address`
        #[arg(long = "web.listen-address", value_name = "ADDRESS", value_parser = values::listen_address)]
        listen_address: Option<SocketAddr>,
        /// Path of the metrics; overrides `web.telemetry_path`
        #[arg(long = "web.telemetry-path", value_name = "PATH", value_parser = values::telemetry_path)]
        telemetry_path: Option<String>,
        /// TLS, passwords and headers, in the format of Prometheus' exporters; overrides `web.config_file`
        #[arg(long = "web.config.file", value_name = "FILE")]
        web_config_file: Option<PathBuf>,
        /// Print where to scrape and, after three seconds, a first table
        #[arg(long)]
        show: bool,
    },
    /// Say what can run here, what cannot, why, and what to do; changes nothing
    Doctor {
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Meter for a while and print a table per tenant
    Snapshot {
        #[command(flatten)]
        common: Common,
        /// How long to meter, 100ms or more
        #[arg(long = "for", value_name = "DURATION", default_value = "5s", value_parser = values::look)]
        time: Duration,
        /// What to sort by, largest first
        #[arg(long, value_enum, default_value_t)]
        sort: Sort,
        /// One JSON object instead of a table, with the kernel's own totals to compare with
        #[arg(long)]
        json: bool,
    },
    /// Check a configuration, or print the default one
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// List the probes: hooks, needs, cost, metrics
    Probes {
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Print documentation generated from this binary
    Docs {
        #[command(subcommand)]
        command: DocsCommand,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Configuration file; without it the built-in defaults apply (see `kernmeter config default`)
    #[arg(long = "config.file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Least severity logged; overrides `log.level`
    #[arg(long = "log.level", value_name = "LEVEL", value_enum)]
    level: Option<Level>,
    /// Format of log lines; overrides `log.format`
    #[arg(long = "log.format", value_name = "FORMAT", value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Logfmt,
    Json,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration file; says what is wrong and where, or nothing
    Check {
        /// The file
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// The file, as the other commands take it
        #[arg(long = "config.file", value_name = "FILE", conflicts_with = "file")]
        config_file: Option<PathBuf>,
        /// Also this web configuration, and every file that it and `access` name
        #[arg(long = "web.config.file", value_name = "FILE")]
        web_config_file: Option<PathBuf>,
    },
    /// Print the built-in configuration, with comments
    Default,
}

#[derive(Subcommand)]
enum DocsCommand {
    /// METRICS.md: every metric
    Metrics,
    /// The man page, in roff
    Man,
    /// Shell completions
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

const FULL_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("KERNMETER_REVISION"), ")");

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments.command) {
        Ok(code) => code,
        // A reader that closes its end early, such as `head`, is no failure.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let (text, code) = match failure {
                Failure::Usage(text) => (text, USAGE),
                Failure::Runtime(text) => (text, 1),
                Failure::Output(error) => (format!("cannot write the output: {error}"), 1),
            };
            // Where this cannot be said, the exit code does.
            let _ = writeln!(io::stderr(), "error: {text}");
            ExitCode::from(code)
        }
    }
}

enum Failure {
    Usage(String),
    Runtime(String),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    match command {
        Command::Run { common, listen_address, telemetry_path, web_config_file, show } => {
            drop(out);
            let loaded = load(&common)?;
            let mut config = configure(&common, loaded.clone());
            if let Some(address) = listen_address {
                config.web.listen_address = address;
            }
            if let Some(path) = telemetry_path {
                config.web.telemetry_path = path;
            }
            if web_config_file.is_some() {
                config.web.config_file = web_config_file;
            }
            start_log(config.log)?;
            let web = open_web(&config)?;
            let runtime = runtime()?;
            runtime
                .block_on(run::run(config, loaded, common.file, web, show))
                .map_err(|error| Failure::Runtime(error.to_string()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Snapshot { common, time, sort, json } => {
            let mut config = configure(&common, load(&common)?);
            if common.level.is_none() {
                config.log.level = LogLevel::Warn;
            }
            // One who asks once does not come with a whole fleet.
            config.kubernetes.start_jitter = Duration::ZERO;
            start_log(config.log)?;
            if !json && io::stderr().is_terminal() {
                let _ = writeln!(io::stderr(), "metering for {time:?} ...");
            }
            snapshot(&config, time, sort, json, &mut out)
        }
        Command::Doctor { json } => {
            let report = doctor::examine();
            if json {
                serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
                writeln!(out)?;
            } else {
                write!(out, "{report}")?;
            }
            Ok(if report.can_meter() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Config { command: ConfigCommand::Default } => {
            out.write_all(Config::default_yaml().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config { command: ConfigCommand::Check { file, config_file, web_config_file } } => {
            let file = file.or(config_file);
            let config = run::load(file.as_deref()).map_err(|error| Failure::Usage(error.to_string()))?;
            if web_config_file.is_some() {
                AuthFiles::load(web_config_file.as_deref(), &config.access)
                    .map_err(|error| Failure::Usage(error.to_string()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Probes { json } => {
            if json {
                writeln!(out, "{}", docs::probes_json())?;
            } else {
                out.write_all(docs::probes_text().as_bytes())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Docs { command } => {
            match command {
                DocsCommand::Metrics => out.write_all(docs::metrics_markdown().as_bytes())?,
                DocsCommand::Man => out.write_all(&man()?)?,
                DocsCommand::Completions { shell } => {
                    clap_complete::generate(shell, &mut Arguments::command(), "kernmeter", &mut out);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One page: the command and each subcommand with its options.
fn man() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut command = Arguments::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands() {
        let name: &'static str = format!("kernmeter {}", sub.get_name()).leak();
        let sub = clap_mangen::Man::new(sub.clone().name(name).bin_name(name));
        sub.render_synopsis_section(&mut page)?;
        sub.render_description_section(&mut page)?;
        sub.render_options_section(&mut page)?;
    }
    Ok(page)
}

fn load(common: &Common) -> Result<Config, Failure> {
    run::load(common.file.as_deref()).map_err(|error| Failure::Usage(error.to_string()))
}

/// The file's configuration with what the command line overrides.
fn configure(common: &Common, mut config: Config) -> Config {
    if let Some(level) = common.level {
        config.log.level = match level {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
            Level::Debug => LogLevel::Debug,
            Level::Trace => LogLevel::Trace,
        };
    }
    if let Some(format) = common.format {
        config.log.format = match format {
            Format::Logfmt => LogFormat::Logfmt,
            Format::Json => LogFormat::Json,
        };
    }
    config
}

/// Reads who may read what. That it travels in the clear, or is for everyone, is said once.
fn open_web(config: &Config) -> Result<AuthFiles, Failure> {
    let web = AuthFiles::load(config.web.config_file.as_deref(), &config.access)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let policy = web.authenticator().policy();
    let address = config.web.listen_address;
    if address.ip().is_loopback() {
        return Ok(web);
    }
    if !policy.requires_credentials() && config.access.mode != Some(Mode::Open) {
        tracing::warn!(
            %address,
            "everyone who reaches this address reads every tenant's metrics: name readers in `access` (docs/access.md), or \
             write `access: {{mode: open}}` if that is meant"
        );
    }
    if policy.requires_credentials() && policy.tls().is_none() {
        tracing::warn!(
            "tokens and passwords travel unencrypted: add tls_server_config to the web configuration"
        );
    }
    Ok(web)
}

fn start_log(config: Log) -> Result<(), Failure> {
    log::init(config).map_err(|error| Failure::Runtime(format!("cannot start the log: {error}")))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Runtime(format!("cannot start the runtime: {error}")))
}

fn snapshot(
    config: &Config,
    time: Duration,
    sort: Sort,
    json: bool,
    out: &mut impl io::Write,
) -> Result<ExitCode, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::Runtime(error.to_string());
    let runtime = runtime()?;
    let (mut engine, mut pods) = run::start(config).map_err(|error| failed(&error))?;
    let mut events = Vec::new();
    // Sleeps, and takes in what is told of pods meanwhile.
    let mut listen = |engine: &mut Engine, time: Duration| {
        runtime.block_on(async {
            let listening = async {
                while run::next_pods(&mut pods, &mut events).await {
                    engine.learn_pods(events.drain(..));
                }
                pods = None;
                std::future::pending::<()>().await;
            };
            // It never ends by itself.
            let _ = tokio::time::timeout(time, listening).await;
        });
    };
    let begun = std::time::Instant::now();
    let before = Look::take(engine.registry());
    // Long looks drain as the agent would, so that nothing wraps and slots do not run out.
    while begun.elapsed() < time {
        let left = time.saturating_sub(begun.elapsed());
        listen(&mut engine, left.min(Duration::from_millis(200)));
        if engine.look() || begun.elapsed().as_secs() % 5 == 4 {
            engine.pass().map_err(|error| failed(&error))?;
        }
    }
    // What was counted waits for the pods' names; who asks for a table waits a little.
    let begun_waiting = std::time::Instant::now();
    while engine.knows_too_few_pods() && begun_waiting.elapsed() < PODS_PATIENCE {
        listen(&mut engine, Duration::from_millis(50));
    }
    let metered = begun_waiting.duration_since(begun);
    let report = engine.finish().map_err(|error| failed(&error))?;
    let mut table = Table::between(&before, &Look::take(engine.registry()), metered);
    if !json {
        out.write_all(table.render(sort).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    table.sort(sort);
    let totals: Vec<_> = report
        .balances
        .iter()
        .map(|balance| {
            serde_json::json!({
                "event": balance.event,
                "kernel": balance.kernel_after,
                "attributed": balance.attributed,
            })
        })
        .collect();
    let value = serde_json::json!({
        "version": VERSION,
        "revision": REVISION,
        "seconds": table.seconds,
        "tenants": table.tenants,
        "totals": totals,
    });
    serde_json::to_writer_pretty(&mut *out, &value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_man_page_has_every_command() {
        let page = String::from_utf8(man().unwrap()).unwrap();
        for command in Arguments::command().get_subcommands() {
            assert!(page.contains(command.get_name()), "{}", command.get_name());
        }
        assert!(page.contains("web.listen"));
    }
}
