//! In: plain figures about the agent itself; out: its own families, through the encoder of [`exposition`](crate::exposition).
//! Reads nothing but arguments, except [`process`], which reads /proc/self. Knows no tenant's samples beyond passing a snapshot
//! on in [`render`].
//!
//! A family is a line of the table below and a method that sets it. METRICS.md derives from the table.

pub mod process;
mod store;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use process::ProcessStats;
pub use store::Declaration;
use store::{Counter, Gauge, Histogram, Info};

use crate::adapt::LoadState;
use crate::exposition::{Format, Metadata, MetricKind, Number, encode_snapshot, finish};
use crate::registry::Snapshot;

/// Bounds of the drain histogram, seconds: a drain takes well under a millisecond on a small host.
const DRAIN_BOUNDS: [f64; 11] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

/// Bounds of the histogram of pod lists, seconds: from a small node beside its API server to a large one far away.
const SYNC_BOUNDS: [f64; 9] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Whether a probe runs.
#[derive(Clone, Copy, Debug)]
pub struct ProbeState<'a> {
    /// The probe's name.
    pub probe: &'a str,
    /// `None`: attached. Else why not, in a few words.
    pub detached: Option<&'a str>,
    /// What it may miss while attached, in a few words.
    pub caveat: Option<&'a str>,
}

/// The fill of a kernel map.
#[derive(Clone, Copy, Debug)]
pub struct MapUsage<'a> {
    /// The map's name.
    pub map: &'a str,
    /// Entries in use; `None` where nobody counts them.
    pub entries: Option<u64>,
    /// Entries there is room for.
    pub capacity: u64,
    /// Kernel memory it holds, bytes.
    pub memory_bytes: u64,
}

/// How the source of pods fares.
#[derive(Clone, Copy, Debug)]
pub struct PodWatchFigures<'a> {
    /// `(reason, times the watch had to begin anew)`.
    pub restarts: &'a [(&'static str, u64)],
    /// `(reason, events not taken in)`.
    pub dropped: &'a [(&'static str, u64)],
    /// Since anything was told; `None` before the first time.
    pub last_event_age: Option<Duration>,
    /// Longest time one event took to take in.
    pub handler_max: Duration,
}

/// The host's condition as the controller sees it.
#[derive(Clone, Copy, Debug)]
pub struct HostReadings<'a> {
    /// Share of all CPUs' time that was not idle, 0 to 1.
    pub cpu_utilization: f64,
    /// Available memory over total memory, 0 to 1.
    pub memory_available: f64,
    /// `(resource, share of time some task waited for it)`, 0 to 1; empty where the kernel has no PSI.
    pub pressure: &'a [(&'a str, f64)],
}

/// The agent's own metrics. Clones share the values; every method may be called from any thread.
#[derive(Clone, Debug)]
pub struct SelfMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Makes the snapshot age that an encoding sets the one that it writes.
    encoding: Mutex<()>,
    families: Families,
}

/// Declares each family once: field, kind (with the bounds of a histogram), name without unit and suffix, unit, labels, help.
macro_rules! families {
    (@unit) => { None };
    (@unit $unit:literal) => { Some($unit) };
    ($(
        $field:ident: $kind:ident $(($bounds:expr))? $name:literal [$($unit:literal)?] $labels:tt $help:literal;
    )+) => {
        /// The agent's own families in the order in which they are exposed.
        pub static DECLARED: [Declaration; [$(stringify!($field)),+].len()] = [$(Declaration {
            metadata: Metadata {
                name: concat!($name $(, "_", $unit)?),
                help: $help,
                unit: families!(@unit $($unit)?),
                kind: MetricKind::$kind,
            },
            labels: &$labels,
        }),+];

        #[derive(Debug)]
        struct Families { $($field: $kind,)+ }

        impl Families {
            fn new() -> Self {
                let [$($field),+] = &DECLARED;
                Self { $($field: $kind::new($field $(, &$bounds)?),)+ }
            }

            fn encode(&self, format: Format, out: &mut BytesMut) {
                $(self.$field.encode(format, out);)+
            }
        }
    };
}

families! {
    build: Info "kernmeter_build" [] ["version", "revision"] "Version and source revision of the agent.";
    drain_duration: Histogram(DRAIN_BOUNDS) "kernmeter_drain_duration" ["seconds"] []
        "Time one read of the kernel maps took.";
    sync_duration: Histogram(SYNC_BOUNDS) "kernmeter_sync_duration" ["seconds"] []
        "Time a list of all pods of this node took.";
    probe_attached: Gauge "kernmeter_probe_attached" [] ["probe", "reason"]
        "Whether the probe is attached (1; a reason says what it may miss) or not (0, with the reason).";
    events_lost: Counter "kernmeter_events_lost" [] ["stage", "reason"]
        "Events that could not be accounted in full, by the stage that lost them and why.";
    kernel_events: Counter "kernmeter_kernel_events" [] ["event"]
        "Events seen in the kernel, counted there independently of tenants.";
    kernel_seconds: Counter "kernmeter_kernel" ["seconds"] ["kind"]
        "Time seen in the kernel, counted there independently of tenants.";
    accounting_error: Gauge "kernmeter_accounting_error" ["ratio"] ["quantity"]
        "Relative difference between the sum over tenants and the independent kernel totals; cpu_by_cgroup: the largest difference between a cgroup's CPU time and its cpu.stat that was found in the last ten minutes, without a sample while nothing was compared.";
    audit_readings: Counter "kernmeter_audit_readings" [] ["outcome"]
        "Readings of cpu.stat of cgroups, by what became of them: compared with what was metered, or why not.";
    map_entries: Gauge "kernmeter_map_entries" [] ["map"] "Entries in use in the kernel map.";
    map_capacity: Gauge "kernmeter_map_capacity" [] ["map"] "Entries the kernel map has room for.";
    map_memory: Gauge "kernmeter_map_memory" ["bytes"] ["map"] "Kernel memory the map holds.";
    slots: Gauge "kernmeter_slots" [] ["state"] "Slots of accounting in the kernel, by state.";
    slots_recycled: Counter "kernmeter_slots_recycled" [] []
        "Slots cleared and given back after their cgroup was removed and its last counts were read.";
    private_rows: Gauge "kernmeter_private_rows" [] ["kind"]
        "Rows of counters that a CPU has for itself, by what they count: system calls or slots.";
    row_events: Counter "kernmeter_row_events" [] ["row"]
        "System calls and switches that were counted, by the kind of row they were added to: a private one, of one CPU, or one that CPUs share, which is dearer.";
    sample: Gauge "kernmeter_sample" ["ratio"] []
        "Share of system calls whose duration is measured. This version samples nothing: always 1.";
    degradation: Gauge "kernmeter_degradation_level" [] ["signal", "reason"]
        "Steps given up to spare the host, beyond a longer interval. This version gives up none: always 0.";
    program_seconds: Counter "kernmeter_program_run" ["seconds"] ["program"]
        "Time the kernel program ran; only while kernel.bpf_stats_enabled is on.";
    program_runs: Counter "kernmeter_program_runs" [] ["program"]
        "Times the kernel program ran; only while kernel.bpf_stats_enabled is on.";
    unresolved_slots: Gauge "kernmeter_unresolved_slots" [] []
        "Slots whose workload is not known yet, those of removed cgroups included.";
    unresolved_events: Gauge "kernmeter_unresolved_events" [] ["event"]
        "Events (nanoseconds, where the event ends in _ns) of unresolved slots: in no tenant's series yet.";
    identities_given_up: Counter "kernmeter_identities_given_up" [] ["reason"]
        "Slots billed to _unknown, because their workload was not learnt in time or too many waited.";
    pods: Gauge "kernmeter_pods" [] ["state"]
        "Pods of this node that are known, by phase; deleted ones are kept until their last counts are read.";
    pod_cache_memory: Gauge "kernmeter_pod_cache_memory" ["bytes"] [] "Memory that holds what is known of pods, estimated.";
    watch_restarts: Counter "kernmeter_watch_restarts" [] ["reason"]
        "Times the watch of pods had to begin anew, by what ended it.";
    dropped_events: Counter "kernmeter_dropped_events" [] ["reason"]
        "Events about pods that were not taken in; where one was lost (queue_full, too_large) everything is listed again.";
    last_event_age: Gauge "kernmeter_last_event_age" ["seconds"] []
        "Time since the source of pods last told anything.";
    event_handler_max: Gauge "kernmeter_event_handler_max" ["seconds"] []
        "Longest time that taking in one event about a pod took.";
    interval: Gauge "kernmeter_interval" ["seconds"] [] "Present interval between reads of the kernel maps.";
    interval_state: Gauge "kernmeter_interval_state" [] ["state"]
        "State of the interval's controller: 1 for the present one.";
    host_cpu: Gauge "kernmeter_host_cpu_utilization" ["ratio"] []
        "Share of the host's CPU time in use, smoothed over some 5 s as the interval's controller sees it.";
    host_memory: Gauge "kernmeter_host_memory_available" ["ratio"] []
        "Share of the host's memory that is available, smoothed over some 5 s as the interval's controller sees it.";
    host_pressure: Gauge "kernmeter_host_pressure" ["ratio"] ["resource"]
        "Share of the last ten seconds in which some task waited for the resource.";
    snapshot_age: Gauge "kernmeter_snapshot_age" ["seconds"] []
        "Time between reading the kernel and writing these samples.";
    series: Gauge "kernmeter_series" [] ["tenant_id"] "Series exposed for the tenant.";
    series_limited: Counter "kernmeter_series_limited" [] []
        "Series folded into a tenant's overflow series by its limit.";
    tenant_rule_refusals: Counter "kernmeter_tenant_rule_refusals" [] ["reason"]
        "Tenant names that rules produced and that were refused.";
    access_guarded: Gauge "kernmeter_access_guarded" [] []
        "Whether readers must show credentials: 1, or 0 if everyone who reaches the port reads everything.";
    config_reloads: Counter "kernmeter_config_reloads" [] ["result"] "Reloads of the configuration or of credentials, by result.";
    access_refusals: Counter "kernmeter_access_refusals" [] ["reason"]
        "Requests and TLS handshakes refused for their credentials, by reason.";
    scrapes: Counter "kernmeter_scrapes" [] ["format", "code"]
        "Scrapes answered, by format and HTTP status code.";
    process_cpu: Counter "process_cpu" ["seconds"] [] "Total user and system CPU time spent.";
    process_resident: Gauge "process_resident_memory" ["bytes"] [] "Resident memory size.";
    process_virtual: Gauge "process_virtual_memory" ["bytes"] [] "Virtual memory size.";
    process_open_fds: Gauge "process_open_fds" [] [] "Number of open file descriptors.";
    process_max_fds: Gauge "process_max_fds" [] [] "Maximum number of open file descriptors.";
    process_start: Gauge "process_start_time" ["seconds"] [] "Start time of the process since the Unix epoch.";
    process_threads: Gauge "process_threads" [] [] "Number of threads.";
}

impl SelfMetrics {
    /// All families, with the build's `version` and `revision` (source commit, or empty).
    pub fn new(version: &str, revision: &str) -> Self {
        let families = Families::new();
        families.build.replace([([version, revision], Number::Integer(1))]);
        families.series_limited.set(0_u64);
        // Dashboards written for agents that sample must not read an absent series as unknown.
        families.sample.set(1.0);
        families.degradation.replace([(["none", "none"], Number::Integer(0))]);
        for result in ["success", "failure"] {
            families.config_reloads.add([result], 0);
        }
        Self { inner: Arc::new(Inner { encoding: Mutex::default(), families }) }
    }

    fn families(&self) -> &Families {
        &self.inner.families
    }

    /// Every probe's state; replaces what was said before.
    pub fn set_probes(&self, probes: &[ProbeState]) {
        let rows = probes.iter().map(|p| {
            let reason = p.detached.or(p.caveat).unwrap_or_default();
            ([p.probe, reason], Number::Integer(u64::from(p.detached.is_none())))
        });
        self.families().probe_attached.replace(rows);
    }

    /// Absolute counts of lost events as `(stage, reason, count)`, all of them, never falling.
    pub fn set_events_lost(&self, rows: &[(&str, &str, u64)]) {
        self.families()
            .events_lost
            .replace(rows.iter().map(|(stage, reason, n)| ([*stage, *reason], (*n).into())));
    }

    /// The independent kernel totals as `(event, count)`, all of them, never falling.
    pub fn set_kernel_events(&self, rows: &[(&str, u64)]) {
        self.families().kernel_events.replace(rows.iter().map(|(event, n)| ([*event], (*n).into())));
    }

    /// The independent kernel totals of time as `(kind, seconds)`, all of them, never falling.
    pub fn set_kernel_seconds(&self, rows: &[(&str, f64)]) {
        self.families().kernel_seconds.replace(rows.iter().map(|(kind, n)| ([*kind], Number::Float(*n))));
    }

    /// Relative differences from the kernel's own counts as `(quantity, ratio)`, all of them; 0 is right.
    pub fn set_accounting_errors<'a>(&self, rows: impl IntoIterator<Item = (&'a str, f64)>) {
        let rows = rows.into_iter().map(|(quantity, ratio)| ([quantity], Number::Float(ratio)));
        self.families().accounting_error.replace(rows);
    }

    /// Absolute counts of readings of the kernel's account of CPU time as `(outcome, count)`, all of them, never falling.
    pub fn set_audit_readings<'a>(&self, rows: impl IntoIterator<Item = (&'a str, u64)>) {
        self.families().audit_readings.replace(rows.into_iter().map(|(outcome, n)| ([outcome], n.into())));
    }

    /// The fill of every kernel map; replaces what was said before.
    pub fn set_maps(&self, maps: &[MapUsage]) {
        let rows = |value: fn(&MapUsage) -> u64| maps.iter().map(move |m| ([m.map], value(m).into()));
        self.families().map_entries.replace(maps.iter().filter_map(|m| Some(([m.map], m.entries?.into()))));
        self.families().map_capacity.replace(rows(|m| m.capacity));
        self.families().map_memory.replace(rows(|m| m.memory_bytes));
    }

    /// Slots never used or given back, in use, and of removed workloads not given back yet.
    pub fn set_slots(&self, free: u64, live: u64, dead: u64) {
        let rows = [(["free"], free.into()), (["live"], live.into()), (["dead"], dead.into())];
        self.families().slots.replace(rows);
    }

    /// Private rows in use.
    pub fn set_private_rows(&self, syscalls: u64, slots: u64) {
        self.families().private_rows.replace([(["syscall"], syscalls.into()), (["slot"], slots.into())]);
    }

    /// Events counted so far in private rows, and in shared ones.
    pub fn set_row_events(&self, private: u64, shared: u64) {
        self.families().row_events.replace([(["private"], private.into()), (["shared"], shared.into())]);
    }

    /// Run time and runs of the kernel programs as `(program, seconds, runs)`, all that ever ran while the kernel counted.
    pub fn set_programs(&self, rows: &[(&str, f64, u64)]) {
        let seconds = rows.iter().map(|(program, seconds, _)| ([*program], Number::Float(*seconds)));
        self.families().program_seconds.replace(seconds);
        self.families()
            .program_runs
            .replace(rows.iter().map(|(program, _, runs)| ([*program], (*runs).into())));
    }

    /// Absolute count of slots given back.
    pub fn set_slots_recycled(&self, count: u64) {
        self.families().slots_recycled.set(count);
    }

    /// Slots without an identity.
    pub fn set_unresolved_slots(&self, count: u64) {
        self.families().unresolved_slots.set(count);
    }

    /// Events that wait in unresolved slots, as `(event, count)`, all of them.
    pub fn set_unresolved_events(&self, rows: &[(&str, u64)]) {
        self.families().unresolved_events.replace(rows.iter().map(|(event, n)| ([*event], (*n).into())));
    }

    /// Absolute counts of slots that waited in vain as `(reason, count)`, all of them, never falling.
    pub fn set_identities_given_up<'a>(&self, rows: impl IntoIterator<Item = (&'a str, u64)>) {
        self.families().identities_given_up.replace(rows.into_iter().map(|(reason, n)| ([reason], n.into())));
    }

    /// Pods that are known as `(state, count)`, and the bytes they take; replaces what was said before.
    pub fn set_pods<'a>(&self, rows: impl IntoIterator<Item = (&'a str, u64)>, memory_bytes: u64) {
        self.families().pods.replace(rows.into_iter().map(|(state, n)| ([state], n.into())));
        self.families().pod_cache_memory.set(memory_bytes);
    }

    /// How long one list of all pods took.
    pub fn observe_sync(&self, took: Duration) {
        self.families().sync_duration.observe(took);
    }

    /// How the source of pods fares: absolute counts of restarts and of dropped events by reason, never falling.
    pub fn set_pod_source(&self, source: &PodWatchFigures<'_>) {
        let row = |(reason, n): &(&'static str, u64)| ([*reason], Number::Integer(*n));
        self.families().watch_restarts.replace(source.restarts.iter().map(row));
        self.families().dropped_events.replace(source.dropped.iter().map(row));
        let age = source.last_event_age.map(|age| ([], Number::Float(age.as_secs_f64())));
        self.families().last_event_age.replace(age);
        self.families().event_handler_max.set(source.handler_max.as_secs_f64());
    }

    /// How long one drain took.
    pub fn observe_drain(&self, took: Duration) {
        self.families().drain_duration.observe(took);
    }

    /// The present drain interval and the controller's state.
    pub fn set_interval(&self, interval: Duration, state: LoadState) {
        self.families().interval.set(interval.as_secs_f64());
        let rows = LoadState::ALL.map(|s| ([s.as_str()], Number::Integer(u64::from(s == state))));
        self.families().interval_state.replace(rows);
    }

    /// The readings the interval was decided on.
    pub fn set_host(&self, readings: &HostReadings) {
        self.families().host_cpu.set(readings.cpu_utilization);
        self.families().host_memory.set(readings.memory_available);
        let rows = readings.pressure.iter().map(|(resource, share)| ([*resource], (*share).into()));
        self.families().host_pressure.replace(rows);
    }

    /// Exposed series per tenant; replaces what was said before.
    pub fn set_series<'a>(&self, per_tenant: impl IntoIterator<Item = (&'a str, u64)>) {
        self.families().series.replace(per_tenant.into_iter().map(|(tenant, n)| ([tenant], n.into())));
    }

    /// Absolute count of series folded by a limit.
    pub fn set_series_limited(&self, count: u64) {
        self.families().series_limited.set(count);
    }

    /// Absolute counts of refused tenant names as `(reason, count)`, all of them, never falling.
    pub fn set_tenant_rule_refusals<'a>(&self, rows: impl IntoIterator<Item = (&'a str, u64)>) {
        self.families()
            .tenant_rule_refusals
            .replace(rows.into_iter().map(|(reason, n)| ([reason], n.into())));
    }

    /// Whether readers must show credentials.
    pub fn set_access_guarded(&self, is_guarded: bool) {
        self.families().access_guarded.set(f64::from(u8::from(is_guarded)));
    }

    /// Counts one reload of the configuration, or of credentials.
    pub fn count_config_reload(&self, success: bool) {
        self.families().config_reloads.add([if success { "success" } else { "failure" }], 1);
    }

    /// Counts one request or handshake refused for its credentials; `reason` is one of a fixed few.
    pub fn count_access_refusal(&self, reason: &str) {
        self.families().access_refusals.add([reason], 1);
    }

    /// Counts one scrape; `format` is `None` when none was answered with.
    pub fn count_scrape(&self, format: Option<Format>, code: u16) {
        let mut buffer = itoa::Buffer::new();
        self.families().scrapes.add([format.map_or("none", Format::name), buffer.format(code)], 1);
    }

    /// The agent's own resource use.
    pub fn set_process(&self, stats: &ProcessStats) {
        let families = self.families();
        families.process_cpu.set(stats.cpu_seconds);
        families.process_resident.set(stats.resident_memory_bytes);
        families.process_virtual.set(stats.virtual_memory_bytes);
        families.process_open_fds.set(stats.open_fds);
        families.process_max_fds.replace(stats.max_fds.into_iter().map(|max| ([], max.into())));
        families.process_start.set(stats.start_time_seconds);
        families.process_threads.set(stats.threads);
    }

    /// Appends the agent's own families to `out`, without the end marker. `taken_ns` is when the kernel was last read
    /// (0: never) and `now_ns` the present, both nanoseconds of `CLOCK_MONOTONIC`.
    pub fn encode(&self, format: Format, taken_ns: u64, now_ns: u64, out: &mut BytesMut) {
        let _encoding = self.inner.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        let age = (taken_ns > 0).then(|| Duration::from_nanos(now_ns.saturating_sub(taken_ns)).as_secs_f64());
        self.families().snapshot_age.replace(age.map(|age| ([], Number::Float(age))));
        self.families().encode(format, out);
    }
}

/// Replaces `out` with a whole body: the snapshot's families, the agent's own, the format's end. `now_ns` as in
/// [`SelfMetrics::encode`].
pub fn render(snapshot: &Snapshot, own: &SelfMetrics, format: Format, now_ns: u64, out: &mut BytesMut) {
    out.clear();
    encode_snapshot(snapshot, format, out);
    own.encode(format, snapshot.taken_ns, now_ns, out);
    finish(format, out);
}
