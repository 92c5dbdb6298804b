//! In: settings and readings of the host's load; out: the drain interval and why. Reads no clock and no file.
//!
//! Decisions follow the smoothed reading: an exponentially weighted mean of CPU use and of available memory with a time
//! constant of [`SMOOTHING`]. One busy second moves the mean of an idle host by 18 points; a step from idle to full load
//! reaches the default threshold of 75 % after 7 s.
//!
//! A longer interval is taken at once, so that relief comes quickly. A shorter one, only after the mean has asked for it or
//! for a still shorter one without a break for the whole dwell.

use std::time::Duration;

/// Time constant of the smoothed reading: a step has done 63 % of its way after this time.
pub const SMOOTHING: Duration = Duration::from_secs(5);

/// Thresholds, in percent, and intervals.
#[derive(Clone, Debug, PartialEq)]
pub struct IntervalPolicy {
    /// Interval of [`LoadState::Relaxed`].
    pub relaxed: Duration,
    /// Interval of [`LoadState::Normal`].
    pub normal: Duration,
    /// Interval of [`LoadState::Stressed`].
    pub stressed: Duration,
    /// CPU use at or above this is stress.
    pub cpu_high: f64,
    /// CPU use at or below this, with memory at or above `memory_high`, is relaxed.
    pub cpu_low: f64,
    /// Available memory at or below this is stress.
    pub memory_low: f64,
    /// Available memory at or above this, with CPU use at or below `cpu_low`, is relaxed.
    pub memory_high: f64,
    /// CPU pressure (PSI `some avg10`) at or above this is stress; `None` ignores it.
    pub pressure_cpu: Option<f64>,
    /// Memory pressure (PSI `some avg10`) at or above this is stress; `None` ignores it.
    pub pressure_memory: Option<f64>,
    /// Points by which a reading must pass a threshold on the way out of a state.
    pub hysteresis: f64,
    /// How long a shorter interval must be wanted before it is taken.
    pub dwell: Duration,
}

impl Default for IntervalPolicy {
    fn default() -> Self {
        Self {
            relaxed: Duration::from_secs(5),
            normal: Duration::from_secs(15),
            stressed: Duration::from_secs(30),
            cpu_high: 75.0,
            cpu_low: 30.0,
            memory_low: 20.0,
            memory_high: 60.0,
            pressure_cpu: None,
            pressure_memory: None,
            hysteresis: 2.0,
            dwell: Duration::from_secs(30),
        }
    }
}

/// Pressure stall information: percent of the last ten seconds in which some task waited for the resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: f64,
    /// For memory.
    pub memory: f64,
    /// For block I/O; reported, decides nothing.
    pub io: f64,
}

/// How busy the host is. Percentages from 0 to 100; anything else makes the reading void.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadReading {
    /// CPU time used since the last reading, all CPUs.
    pub cpu_busy_percent: f64,
    /// Memory available without swapping.
    pub memory_available_percent: f64,
    /// Pressure, where the kernel tells.
    pub psi: Option<Pressure>,
}

impl LoadReading {
    fn is_valid(&self) -> bool {
        let percent = |value: f64| (0.0..=100.0).contains(&value);
        percent(self.cpu_busy_percent)
            && percent(self.memory_available_percent)
            && self.psi.is_none_or(|psi| percent(psi.cpu) && percent(psi.memory) && percent(psi.io))
    }

    /// The mean with a later reading that stands for the time `passed`. Pressure is taken as it is: the kernel has averaged it
    /// over ten seconds.
    fn smoothed(&self, later: &Self, passed: Duration) -> Self {
        let weight = 1.0 - (-passed.as_secs_f64() / SMOOTHING.as_secs_f64()).exp();
        let toward = |old: f64, new: f64| old + weight * (new - old);
        Self {
            cpu_busy_percent: toward(self.cpu_busy_percent, later.cpu_busy_percent),
            memory_available_percent: toward(self.memory_available_percent, later.memory_available_percent),
            psi: later.psi,
        }
    }
}

/// How the host is, from the shortest interval to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoadState {
    /// Little to do: drain often.
    Relaxed,
    /// In between.
    Normal,
    /// Busy, or short of memory: drain rarely.
    Stressed,
}

impl LoadState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Relaxed, Self::Normal, Self::Stressed];

    /// The name used in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relaxed => "relaxed",
            Self::Normal => "normal",
            Self::Stressed => "stressed",
        }
    }
}

/// The reading that a state follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadSignal {
    /// No reading yet.
    Unread,
    /// CPU use.
    Cpu,
    /// Available memory.
    Memory,
    /// CPU pressure.
    CpuPressure,
    /// Memory pressure.
    MemoryPressure,
    /// CPU use and memory together: both are at their ease.
    All,
}

impl LoadSignal {
    /// The name used in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unread => "none",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::CpuPressure => "pressure_cpu",
            Self::MemoryPressure => "pressure_memory",
            Self::All => "all",
        }
    }
}

/// What a step decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Time between drains.
    pub interval: Duration,
    /// The state it follows from.
    pub state: LoadState,
    /// Whether this step changed the state.
    pub changed: bool,
    /// What decided.
    pub signal: LoadSignal,
}

impl Decision {
    /// Why the state is what it is, in words.
    pub const fn reason(&self) -> &'static str {
        match (self.signal, self.state) {
            (LoadSignal::Unread, _) => "no reading yet",
            (LoadSignal::All, LoadState::Relaxed) => "CPU use is low and memory is plenty",
            (LoadSignal::All, _) => "CPU use is low and memory is plenty, not yet for `drain.dwell`",
            (LoadSignal::Cpu, LoadState::Stressed) => "CPU use is at or above `drain.cpu.high`",
            (LoadSignal::Cpu, _) => "CPU use is between `drain.cpu.low` and `drain.cpu.high`",
            (LoadSignal::Memory, LoadState::Stressed) => {
                "available memory is at or below `drain.memory_available.low`"
            }
            (LoadSignal::Memory, _) => "available memory is between the limits of `drain.memory_available`",
            (LoadSignal::CpuPressure, _) => "CPU pressure is at or above `drain.pressure.cpu`",
            (LoadSignal::MemoryPressure, _) => "memory pressure is at or above `drain.pressure.memory`",
        }
    }
}

/// A wanted state and the signal behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    state: LoadState,
    signal: LoadSignal,
}

/// Turns readings into an interval.
#[derive(Clone, Debug)]
pub struct Controller {
    policy: IntervalPolicy,
    current: Wish,
    /// Since when no wish has exceeded [`LoadState::Relaxed`], and [`LoadState::Normal`].
    calm_since: [Option<Duration>; 2],
    /// The smoothed reading and when it was last brought up to date; `None` before the first.
    mean: Option<(Duration, LoadReading)>,
    ignored: u64,
}

impl Controller {
    /// Begins in [`LoadState::Normal`]; the first valid reading decides at once.
    pub fn new(policy: IntervalPolicy) -> Self {
        let current = Wish { state: LoadState::Normal, signal: LoadSignal::Unread };
        Self { policy, current, calm_since: [None; 2], mean: None, ignored: 0 }
    }

    /// Takes in a reading. `now` is a monotonic clock; one that runs backwards counts as standing still.
    pub fn step(&mut self, now: Duration, reading: &LoadReading) -> Decision {
        if !reading.is_valid() {
            self.ignored += 1;
            return self.decision(false);
        }
        let Some((at, mean)) = self.mean else {
            self.mean = Some((now, *reading));
            let wish = self.policy.wish(None, reading);
            let changed = wish.state != self.current.state;
            self.current = wish;
            return self.decision(changed);
        };
        let mean = mean.smoothed(reading, now.saturating_sub(at));
        self.mean = Some((now.max(at), mean));
        let wish = self.policy.wish(Some(self.current.state), &mean);
        let calmest = self.calmest_for_the_dwell(now, wish.state);
        let before = self.current.state;
        let state = if wish.state < before { calmest.min(before) } else { wish.state };
        // The state may stay although another signal now holds it; while a shorter interval waits, the old one does.
        if state != before || wish.state == before {
            self.current = Wish { state, signal: wish.signal };
        }
        self.decision(state != before)
    }

    /// The calmest state that no wish has exceeded for the whole dwell, this one included.
    fn calmest_for_the_dwell(&mut self, now: Duration, wish: LoadState) -> LoadState {
        let mut calmest = LoadState::Stressed;
        for (since, state) in self.calm_since.iter_mut().zip([LoadState::Relaxed, LoadState::Normal]) {
            *since = (wish <= state).then(|| since.unwrap_or(now));
            if since.is_some_and(|since| now.saturating_sub(since) >= self.policy.dwell) {
                calmest = calmest.min(state);
            }
        }
        calmest
    }

    /// What the last step decided, as if nothing had changed since.
    pub fn current(&self) -> Decision {
        self.decision(false)
    }

    /// The smoothed reading, which decisions follow; `None` before the first reading.
    pub fn smoothed(&self) -> Option<LoadReading> {
        self.mean.map(|(_, mean)| mean)
    }

    fn decision(&self, changed: bool) -> Decision {
        let Wish { state, signal } = self.current;
        Decision { interval: self.policy.interval(state), state, changed, signal }
    }

    /// Readings that were void: not a number, or not a percentage.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes a new policy without forgetting the state.
    pub fn reconfigure(&mut self, policy: IntervalPolicy) {
        self.policy = policy;
        self.calm_since = [None; 2];
    }
}

impl IntervalPolicy {
    /// The interval of a state.
    pub fn interval(&self, state: LoadState) -> Duration {
        match state {
            LoadState::Relaxed => self.relaxed,
            LoadState::Normal => self.normal,
            LoadState::Stressed => self.stressed,
        }
    }

    /// The state a reading asks for, ignoring dwell. `current` moves the thresholds of its own way out by the hysteresis;
    /// `None` takes them as they are.
    fn wish(&self, current: Option<LoadState>, reading: &LoadReading) -> Wish {
        let wish = |state, signal| Wish { state, signal };
        let leave_stressed = if current == Some(LoadState::Stressed) { self.hysteresis } else { 0.0 };
        let leave_relaxed = if current == Some(LoadState::Relaxed) { self.hysteresis } else { 0.0 };
        let (cpu, memory) = (reading.cpu_busy_percent, reading.memory_available_percent);
        // Inclusive on the way in and on the way out: at exactly `threshold - hysteresis` the state is left.
        let over = |value: f64, threshold: f64| {
            if leave_stressed > 0.0 { value > threshold - leave_stressed } else { value >= threshold }
        };
        if over(cpu, self.cpu_high) {
            return wish(LoadState::Stressed, LoadSignal::Cpu);
        }
        if over(-memory, -self.memory_low) {
            return wish(LoadState::Stressed, LoadSignal::Memory);
        }
        if let Some(psi) = reading.psi {
            if self.pressure_cpu.is_some_and(|threshold| over(psi.cpu, threshold)) {
                return wish(LoadState::Stressed, LoadSignal::CpuPressure);
            }
            if self.pressure_memory.is_some_and(|threshold| over(psi.memory, threshold)) {
                return wish(LoadState::Stressed, LoadSignal::MemoryPressure);
            }
        }
        let under = |value: f64, threshold: f64| {
            if leave_relaxed > 0.0 { value < threshold + leave_relaxed } else { value <= threshold }
        };
        match (under(cpu, self.cpu_low), under(-memory, -self.memory_high)) {
            (true, true) => wish(LoadState::Relaxed, LoadSignal::All),
            (false, true) => wish(LoadState::Normal, LoadSignal::Cpu),
            (_, false) => wish(LoadState::Normal, LoadSignal::Memory),
        }
    }
}

#[cfg(test)]
mod tests;
