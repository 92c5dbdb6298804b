//! In: events of the agent and records from the kernel side; out: lines on standard error, unless that cannot be written.
//! Knows no metrics.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat};

/// Sends the agent's log to standard error. To be called once.
///
/// # Errors
/// A logger is set already.
pub fn init(log: Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // What the Kubernetes client fails at is told, once and in our words, by the room that uses it.
    // The kernel side's records come through the `log` crate under the target `aya_log`-given program names.
    let filter = EnvFilter::new(format!(
        "warn,kube_client=off,kernmeter={level},kernmeter_abi={level}",
        level = log.level.as_str()
    ));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A line that cannot be written is dropped. To say so on standard error would end the agent where that is what is broken.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Logfmt => builder.event_format(Logfmt).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
}

/// One event as `ts=... level=... msg="..." key=value ...`.
struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        out.write_str("ts=")?;
        SystemTime.format_time(&mut out)?;
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        write!(out, " level={level}")?;
        let mut fields = Fields { message: String::new(), rest: String::new() };
        event.record(&mut fields);
        write!(out, " msg={}", Quoted(&fields.message, true))?;
        writeln!(out, "{}", fields.rest)
    }
}

struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn push(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else if !field.name().starts_with("log.") {
            // Writing to a string cannot fail.
            let _ = write!(self.rest, " {}={}", field.name(), Quoted(value, false));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, &format!("{value:?}"));
    }
}

/// A value, quoted where logfmt needs it. Control characters are escaped: a line stays a line.
struct Quoted<'a>(&'a str, bool);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\';
        if self.1 || self.0.is_empty() || !self.0.chars().all(plain) {
            write!(f, "{:?}", self.0)
        } else {
            f.write_str(self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_break_out_of_their_line() {
        for (value, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("", "\"\""),
            ("two words", "\"two words\""),
            ("a\nlevel=error", "\"a\\nlevel=error\""),
            ("say \"hi\"", "\"say \\\"hi\\\"\""),
            ("\u{1b}[31m", "\"\\u{1b}[31m\""),
        ] {
            assert_eq!(Quoted(value, false).to_string(), expected);
        }
    }
}
