//! In: ticks, signals, changed files, news of pods; out: passes of the engine, and reloads. Serves nothing.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{EVENTS_AT_ONCE, figures, load, next_pods};
use crate::adapt::{Controller, Decision, Load};
use crate::auth::AuthFiles;
use crate::config::Config;
use crate::engine::{Engine, PassReport};
use crate::filewatch::FileWatch;
use crate::kernel::{KernelLog, Wake};
use crate::kubernetes::Pods;
use crate::lifecycle::{Request, Signals, monotonic_ns};
use crate::selfmetrics::{HostReadings, SelfMetrics};
use crate::serve::AppState;

/// How often the host's load is read.
const LOAD_TICK: Duration = Duration::from_secs(1);
/// How often the agent looks whether slots run out, besides when it is woken.
const PRESSURE_TICK: Duration = Duration::from_millis(100);

/// The engine and all that decides when it reads.
pub(super) struct Metering {
    pub(super) engine: Rc<RefCell<Engine>>,
    pub(super) own: SelfMetrics,
    pub(super) state: Arc<AppState>,
    pub(super) controller: Controller,
    pub(super) load: Load,
    /// The source of pods, while there is one.
    pub(super) pods: Option<Pods>,
    /// The file as it was at the start, without what the command line overrides.
    pub(super) loaded: Config,
    pub(super) file: Option<PathBuf>,
    pub(super) config_file: FileWatch,
    pub(super) auth: AuthFiles,
    /// The kernel side's rare messages.
    pub(super) kernel_log: Option<KernelLog>,
    /// What the kernel side wakes the agent with.
    pub(super) wake: Option<Wake>,
}

impl Metering {
    /// Drains whenever it is due until a signal asks to stop.
    pub(super) async fn until_stopped(&mut self, signals: &mut Signals) {
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
                    // A reload reads both. Credentials do not wait for a configuration that somebody is writing.
                    if self.config_file.settled() {
                        self.reload();
                    } else if self.auth.changed() {
                        self.reload_credentials();
                    }
                    if let Some(kernel_log) = &mut self.kernel_log {
                        kernel_log.flush();
                    }
                }
                () = sleep_until(drained + decision.interval) => {
                    drained = Instant::now();
                    self.drain();
                }
                () = next_wake(&mut self.wake) => self.look(&mut drained),
                _ = pressure_tick.tick() => self.look(&mut drained),
            }
        }
    }

    /// Makes room; a pass if slots may run out before the next one is due.
    fn look(&mut self, drained: &mut Instant) {
        if self.engine.borrow_mut().look() {
            *drained = Instant::now();
            self.drain();
        }
    }

    /// One pass, published.
    pub(super) fn drain(&mut self) {
        let passed = self.engine.borrow_mut().pass();
        match passed {
            Ok(report) => self.publish(&report),
            // Counts stay in the kernel: the next pass has them.
            Err(error) => {
                tracing::error!(%error, "cannot drain the kernel; trying again at the next interval");
            }
        }
    }

    fn publish(&mut self, report: &PassReport) {
        let mut engine = self.engine.borrow_mut();
        figures::tell(&self.own, &engine, report, self.pods.as_ref());
        self.state.snapshots().publish(Arc::new(engine.publish()));
    }

    /// Says whether readers must show credentials.
    pub(super) fn tell_access(&self) {
        self.own.set_access_guarded(self.auth.authenticator().policy().requires_credentials());
    }

    /// Says which probes are in place; from then on the agent sees.
    pub(super) fn tell_probes(&self) {
        figures::probes(&self.own, self.engine.borrow().kernel().hooks());
        self.state.set_attached();
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
        self.config_file.seen();
        let (needs_restart, problems) = match load(self.file.as_deref()) {
            Ok(new) => self.apply(&new),
            Err(error) => {
                let mut problems = vec![error.to_string()];
                problems.extend(self.auth.reload_files().iter().map(ToString::to_string));
                (None, problems)
            }
        };
        self.tell_reload(&problems);
        let what = if problems.is_empty() {
            "configuration reloaded"
        } else {
            "the rest of the configuration reloaded"
        };
        match needs_restart {
            Some(sections) if sections.is_empty() => tracing::info!("{what}"),
            Some(sections) => tracing::warn!(
                sections = sections.join(","),
                "{what}; these sections changed and apply after a restart"
            ),
            None => {}
        }
    }

    /// Applies a configuration; what is wrong with a part of it leaves that part as it was. Returns the sections that need a
    /// restart, unless the rules cannot be used, and what is wrong.
    fn apply(&mut self, new: &Config) -> (Option<Vec<&'static str>>, Vec<String>) {
        let mut problems: Vec<String> =
            self.auth.reload(&new.access).iter().map(ToString::to_string).collect();
        if let Err(error) = self.engine.borrow_mut().reload(new) {
            problems.push(error.to_string());
            return (None, problems);
        }
        if let Some(pods) = &self.pods {
            pods.want(self.engine.borrow().wanted());
        }
        self.controller.reconfigure(new.drain.clone());
        (Some(self.loaded.restart_needed(new)), problems)
    }

    /// Reads the files again that say who may read what.
    fn reload_credentials(&mut self) {
        let problems: Vec<String> = self.auth.reload_files().iter().map(ToString::to_string).collect();
        self.tell_reload(&problems);
        let what =
            if problems.is_empty() { "credentials reloaded" } else { "the other credentials reloaded" };
        tracing::info!("{what}");
    }

    fn tell_reload(&self, problems: &[String]) {
        self.tell_access();
        self.own.count_config_reload(problems.is_empty());
        for error in problems {
            tracing::error!(error, "the configuration, or a part of it, cannot be used");
        }
    }

    /// Detaches, drains for the last time, publishes and says the final totals.
    pub(super) fn finish(&mut self) {
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

/// Waits until the kernel side asks for room; for ever without a way to. Cancel-safe.
async fn next_wake(wake: &mut Option<Wake>) {
    if let Some(waiting) = wake {
        match waiting.woken().await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, "the kernel side cannot wake the agent: it looks ten times a second");
                *wake = None;
            }
        }
    }
    std::future::pending::<()>().await;
}
