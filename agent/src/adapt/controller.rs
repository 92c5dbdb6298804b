//! In: settings and readings of the host's load; out: the drain interval and why. Reads no clock and no file.
//!
//! Slower is quick, faster is slow: two readings in a row move to a longer interval, so that relief comes at once but one
//! spike means nothing; a shorter interval has to be wanted without a break for the whole dwell. While readings waver the
//! milder of the wanted states is taken.

use std::cmp::Ordering;
use std::time::Duration;

/// Consecutive readings that must agree before the interval gets longer.
const CONFIRMATIONS: u32 = 2;

/// Thresholds, in percent, and intervals.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Interval of [`State::Relaxed`].
    pub relaxed: Duration,
    /// Interval of [`State::Normal`].
    pub normal: Duration,
    /// Interval of [`State::Stressed`].
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

impl Default for Settings {
    fn default() -> Self {
        Self {
            relaxed: Duration::from_secs(5),
            normal: Duration::from_secs(15),
            stressed: Duration::from_secs(30),
            cpu_high: 75.0,
            cpu_low: 30.0,
            memory_low: 20.0,
            memory_high: 60.0,
            pressure_cpu: Some(40.0),
            pressure_memory: Some(10.0),
            hysteresis: 5.0,
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
pub struct Reading {
    /// CPU time used since the last reading, all CPUs.
    pub cpu_busy_percent: f64,
    /// Memory available without swapping.
    pub memory_available_percent: f64,
    /// Pressure, where the kernel tells.
    pub psi: Option<Pressure>,
}

impl Reading {
    fn is_valid(&self) -> bool {
        let percent = |value: f64| (0.0..=100.0).contains(&value);
        percent(self.cpu_busy_percent)
            && percent(self.memory_available_percent)
            && self.psi.is_none_or(|psi| percent(psi.cpu) && percent(psi.memory) && percent(psi.io))
    }
}

/// How the host is, from the shortest interval to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Little to do: drain often.
    Relaxed,
    /// In between.
    Normal,
    /// Busy, or short of memory: drain rarely.
    Stressed,
}

impl State {
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

/// What a step decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Time between drains.
    pub interval: Duration,
    /// The state it follows from.
    pub state: State,
    /// Whether this step changed the state.
    pub changed: bool,
    /// What decided: `cpu`, `memory`, `pressure_cpu`, `pressure_memory`, or `none` before the first reading and where no
    /// signal stands out.
    pub signal: &'static str,
    /// Why the state is what it is, in words.
    pub reason: &'static str,
}

/// A wanted state and the signal behind it.
#[derive(Clone, Copy, Debug)]
struct Wish {
    state: State,
    signal: &'static str,
    reason: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Pending {
    None,
    /// A longer interval is wanted: by this many readings, the mildest of them.
    Slower(u32, Wish),
    /// A shorter interval is wanted: since when, and the mildest wish since.
    Faster(Duration, Wish),
}

/// Turns readings into an interval.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    current: Wish,
    pending: Pending,
    started: bool,
    ignored: u64,
}

impl Controller {
    /// Begins in [`State::Normal`]; the first valid reading decides at once.
    pub fn new(settings: Settings) -> Self {
        let current = Wish { state: State::Normal, signal: "none", reason: "no reading yet" };
        Self { settings, current, pending: Pending::None, started: false, ignored: 0 }
    }

    /// Takes in a reading. `now` is a monotonic clock; one that runs backwards counts as standing still.
    pub fn step(&mut self, now: Duration, reading: &Reading) -> Decision {
        if !reading.is_valid() {
            self.ignored += 1;
            return self.decision(false);
        }
        let current = self.started.then_some(self.current.state);
        let wish = self.settings.wish(current, reading);
        if !self.started {
            self.started = true;
            let changed = wish.state != self.current.state;
            self.current = wish;
            return self.decision(changed);
        }
        let state = self.current.state;
        let taken = match wish.state.cmp(&state) {
            Ordering::Equal => {
                self.pending = Pending::None;
                // The state stays, but another signal may now be what holds it.
                self.current = wish;
                None
            }
            Ordering::Greater => {
                let (count, mildest) = match self.pending {
                    Pending::Slower(count, before) => {
                        (count + 1, if before.state < wish.state { before } else { wish })
                    }
                    _ => (1, wish),
                };
                self.pending = Pending::Slower(count, mildest);
                (count >= CONFIRMATIONS).then_some(mildest)
            }
            Ordering::Less => {
                let (since, mildest) = match self.pending {
                    Pending::Faster(since, before) => {
                        (since, if before.state > wish.state { before } else { wish })
                    }
                    _ => (now, wish),
                };
                self.pending = Pending::Faster(since, mildest);
                (now.saturating_sub(since) >= self.settings.dwell).then_some(mildest)
            }
        };
        if let Some(wish) = taken {
            self.current = wish;
            self.pending = Pending::None;
        }
        self.decision(taken.is_some())
    }

    /// What the last step decided, as if nothing had changed since.
    pub fn current(&self) -> Decision {
        self.decision(false)
    }

    fn decision(&self, changed: bool) -> Decision {
        let Wish { state, signal, reason } = self.current;
        Decision { interval: self.settings.interval(state), state, changed, signal, reason }
    }

    /// Readings that were void: not a number, or not a percentage.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes new settings without forgetting the state.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings;
        self.pending = Pending::None;
    }
}

impl Settings {
    /// The interval of a state.
    pub fn interval(&self, state: State) -> Duration {
        match state {
            State::Relaxed => self.relaxed,
            State::Normal => self.normal,
            State::Stressed => self.stressed,
        }
    }

    /// The state a reading asks for, ignoring dwell. `current` moves the thresholds of its own way out by the hysteresis;
    /// `None` takes them as they are.
    fn wish(&self, current: Option<State>, reading: &Reading) -> Wish {
        let wish = |state, signal, reason| Wish { state, signal, reason };
        let leave_stressed = if current == Some(State::Stressed) { self.hysteresis } else { 0.0 };
        let leave_relaxed = if current == Some(State::Relaxed) { self.hysteresis } else { 0.0 };
        let (cpu, memory) = (reading.cpu_busy_percent, reading.memory_available_percent);
        // Inclusive on the way in and on the way out: at exactly `threshold - hysteresis` the state is left.
        let over = |value: f64, threshold: f64| {
            if leave_stressed > 0.0 { value > threshold - leave_stressed } else { value >= threshold }
        };
        if over(cpu, self.cpu_high) {
            return wish(State::Stressed, "cpu", "CPU use is at or above `drain.cpu.high`");
        }
        if over(-memory, -self.memory_low) {
            return wish(
                State::Stressed,
                "memory",
                "available memory is at or below `drain.memory_available.low`",
            );
        }
        if let Some(psi) = reading.psi {
            if self.pressure_cpu.is_some_and(|threshold| over(psi.cpu, threshold)) {
                return wish(
                    State::Stressed,
                    "pressure_cpu",
                    "CPU pressure is at or above `drain.pressure.cpu`",
                );
            }
            if self.pressure_memory.is_some_and(|threshold| over(psi.memory, threshold)) {
                return wish(
                    State::Stressed,
                    "pressure_memory",
                    "memory pressure is at or above `drain.pressure.memory`",
                );
            }
        }
        let under = |value: f64, threshold: f64| {
            if leave_relaxed > 0.0 { value < threshold + leave_relaxed } else { value <= threshold }
        };
        match (under(cpu, self.cpu_low), under(-memory, -self.memory_high)) {
            (true, true) => wish(State::Relaxed, "none", "CPU use is low and memory is plenty"),
            (false, true) => {
                wish(State::Normal, "cpu", "CPU use is between `drain.cpu.low` and `drain.cpu.high`")
            }
            (_, false) => wish(
                State::Normal,
                "memory",
                "available memory is between the limits of `drain.memory_available`",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::State::{Normal, Relaxed, Stressed};
    use super::*;

    fn reading(cpu: f64, memory: f64) -> Reading {
        Reading { cpu_busy_percent: cpu, memory_available_percent: memory, psi: None }
    }

    fn pressed(cpu: f64, memory: f64) -> Reading {
        Reading { psi: Some(Pressure { cpu, memory, io: 100.0 }), ..reading(10.0, 80.0) }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A controller brought into a state by its first reading.
    fn in_state(state: State) -> Controller {
        let mut controller = Controller::new(Settings::default());
        let first = match state {
            Relaxed => reading(10.0, 80.0),
            Normal => reading(50.0, 50.0),
            Stressed => reading(90.0, 50.0),
        };
        assert_eq!(controller.step(secs(0), &first).state, state);
        controller
    }

    #[test]
    fn first_reading_at_every_boundary() {
        for (cpu, memory, state, signal) in [
            (75.0, 100.0, Stressed, "cpu"),
            (74.999, 100.0, Normal, "cpu"),
            (100.0, 100.0, Stressed, "cpu"),
            (0.0, 20.0, Stressed, "memory"),
            (0.0, 20.001, Normal, "memory"),
            (0.0, 0.0, Stressed, "memory"),
            (75.0, 20.0, Stressed, "cpu"),
            (30.0, 60.0, Relaxed, "none"),
            (30.001, 60.0, Normal, "cpu"),
            (30.0, 59.999, Normal, "memory"),
            (0.0, 100.0, Relaxed, "none"),
            (50.0, 40.0, Normal, "memory"),
        ] {
            let decision = Controller::new(Settings::default()).step(secs(0), &reading(cpu, memory));
            assert_eq!((decision.state, decision.signal), (state, signal), "cpu {cpu} memory {memory}");
            assert_eq!(decision.changed, state != Normal);
            let interval = [5, 15, 30][State::ALL.iter().position(|s| *s == state).expect("known")];
            assert_eq!(decision.interval, secs(interval));
        }
        for (cpu, memory, state, signal) in [
            (40.0, 0.0, Stressed, "pressure_cpu"),
            (39.99, 0.0, Relaxed, "none"),
            (0.0, 10.0, Stressed, "pressure_memory"),
            (0.0, 9.99, Relaxed, "none"),
        ] {
            let decision = Controller::new(Settings::default()).step(secs(0), &pressed(cpu, memory));
            assert_eq!((decision.state, decision.signal), (state, signal), "pressure {cpu} {memory}");
        }
        let deaf = Settings { pressure_cpu: None, pressure_memory: None, ..Settings::default() };
        assert_eq!(Controller::new(deaf).step(secs(0), &pressed(100.0, 100.0)).state, Relaxed);
    }

    #[test]
    fn hysteresis_on_the_way_out() {
        // From each state, held long enough for any dwell: where a reading leads.
        for (from, reading, to) in [
            (Stressed, reading(70.001, 50.0), Stressed),
            (Stressed, reading(70.0, 50.0), Normal),
            (Stressed, reading(10.0, 24.999), Stressed),
            (Stressed, reading(10.0, 25.0), Normal),
            (Stressed, reading(30.0, 60.0), Relaxed),
            (Stressed, pressed(35.001, 0.0), Stressed),
            (Stressed, pressed(35.0, 0.0), Relaxed),
            (Stressed, pressed(0.0, 5.001), Stressed),
            (Stressed, pressed(0.0, 5.0), Relaxed),
            (Relaxed, reading(34.999, 60.0), Relaxed),
            (Relaxed, reading(35.0, 60.0), Normal),
            (Relaxed, reading(30.0, 55.001), Relaxed),
            (Relaxed, reading(30.0, 55.0), Normal),
            (Relaxed, reading(75.0, 60.0), Stressed),
            (Relaxed, reading(30.0, 20.0), Stressed),
            (Normal, reading(74.999, 60.0), Normal),
            (Normal, reading(75.0, 60.0), Stressed),
            (Normal, reading(30.001, 60.0), Normal),
            (Normal, reading(30.0, 60.0), Relaxed),
        ] {
            let mut controller = in_state(from);
            let mut decision = controller.current();
            for at in 1..=40 {
                decision = controller.step(secs(at), &reading);
            }
            assert_eq!(decision.state, to, "{from:?} {reading:?}");
        }
    }

    #[test]
    fn slower_takes_two_readings() {
        let mut controller = in_state(Relaxed);
        assert!(!controller.step(secs(1), &reading(90.0, 80.0)).changed, "one spike is none");
        assert!(!controller.step(secs(2), &reading(10.0, 80.0)).changed);
        assert!(!controller.step(secs(3), &reading(90.0, 80.0)).changed);
        let decision = controller.step(secs(4), &reading(90.0, 80.0));
        assert_eq!((decision.changed, decision.state, decision.signal), (true, Stressed, "cpu"));
        // Two that want different states: the milder first.
        let mut controller = in_state(Relaxed);
        controller.step(secs(1), &reading(50.0, 80.0));
        assert_eq!(controller.step(secs(2), &reading(90.0, 80.0)).state, Normal);
        controller.step(secs(3), &reading(90.0, 80.0));
        assert_eq!(controller.step(secs(4), &reading(90.0, 80.0)).state, Stressed);
    }

    #[test]
    fn faster_takes_the_dwell() {
        let mut controller = in_state(Stressed);
        for at in 1..=30 {
            assert!(!controller.step(secs(at), &reading(10.0, 80.0)).changed, "at {at} s");
        }
        let decision = controller.step(secs(31), &reading(10.0, 80.0));
        assert_eq!((decision.changed, decision.state), (true, Relaxed));

        // A busy reading begins the dwell anew.
        let mut controller = in_state(Stressed);
        for at in 1..=20 {
            controller.step(secs(at), &reading(10.0, 80.0));
        }
        controller.step(secs(21), &reading(90.0, 80.0));
        for at in 22..=51 {
            assert!(!controller.step(secs(at), &reading(10.0, 80.0)).changed, "at {at} s");
        }
        assert!(controller.step(secs(52), &reading(10.0, 80.0)).changed);

        // Wavering between normal and relaxed: normal first, relaxed after another dwell.
        let mut controller = in_state(Stressed);
        for at in 1..=31 {
            let cpu = if at == 10 { 50.0 } else { 10.0 };
            controller.step(secs(at), &reading(cpu, 80.0));
        }
        assert_eq!(controller.current().state, Normal);
        for at in 32..=61 {
            assert_eq!(controller.step(secs(at), &reading(10.0, 80.0)).state, Normal, "at {at} s");
        }
        assert_eq!(controller.step(secs(62), &reading(10.0, 80.0)).state, Relaxed);
    }

    #[test]
    fn void_readings_and_odd_clocks() {
        for bad in [
            reading(f64::NAN, 50.0),
            reading(50.0, f64::NAN),
            reading(-0.1, 50.0),
            reading(100.1, 50.0),
            reading(50.0, f64::INFINITY),
            pressed(f64::NAN, 0.0),
            pressed(0.0, 101.0),
        ] {
            let mut controller = in_state(Stressed);
            for at in 1..100 {
                let decision = controller.step(secs(at), &bad);
                assert_eq!((decision.state, decision.changed), (Stressed, false), "{bad:?}");
            }
            assert_eq!(controller.ignored(), 99);
        }
        let mut controller = in_state(Stressed);
        controller.step(secs(1000), &reading(10.0, 80.0));
        assert!(
            !controller.step(secs(1), &reading(10.0, 80.0)).changed,
            "a clock that runs backwards adds no dwell"
        );
        assert!(controller.step(secs(1030), &reading(10.0, 80.0)).changed);

        let mut untouched = Controller::new(Settings::default());
        let decision = untouched.step(secs(0), &reading(f64::NAN, 0.0));
        assert_eq!((decision.state, decision.interval, decision.signal), (Normal, secs(15), "none"));
    }

    #[test]
    fn no_hysteresis_means_the_plain_thresholds() {
        let settings = Settings { hysteresis: 0.0, dwell: Duration::ZERO, ..Settings::default() };
        let mut controller = Controller::new(settings);
        controller.step(secs(0), &reading(75.0, 80.0));
        assert_eq!(controller.step(secs(1), &reading(75.0, 80.0)).state, Stressed);
        assert_eq!(controller.step(secs(2), &reading(74.9, 80.0)).state, Normal);
    }

    #[test]
    fn settings_change_without_a_jump() {
        let mut controller = in_state(Stressed);
        controller.reconfigure(Settings { stressed: secs(60), ..Settings::default() });
        let decision = controller.current();
        assert_eq!((decision.state, decision.interval), (Stressed, secs(60)));
    }

    proptest! {
        #[test]
        fn never_faster_within_the_dwell(
            steps in proptest::collection::vec((0u64..20_000, -5.0..105.0, -5.0..105.0, 0.0..100.0), 1..400),
        ) {
            let settings = Settings::default();
            let mut controller = Controller::new(settings.clone());
            let mut now = Duration::ZERO;
            let mut changed_at: Option<Duration> = None;
            let mut state = None;
            for (wait, cpu, memory, psi) in steps {
                now += Duration::from_millis(wait);
                let reading = Reading {
                    psi: Some(Pressure { cpu: psi, memory: psi / 8.0, io: 0.0 }),
                    ..reading(cpu, memory)
                };
                let decision = controller.step(now, &reading);
                prop_assert_eq!(decision.interval, settings.interval(decision.state));
                if let (Some(before), true) = (state, decision.changed) {
                    prop_assert_ne!(before, decision.state);
                    if let (true, Some(at)) = (decision.state < before, changed_at) {
                        let held = now.saturating_sub(at);
                        prop_assert!(held >= settings.dwell, "faster after {:?}", held);
                    }
                    changed_at = Some(now);
                } else if let Some(before) = state {
                    prop_assert_eq!(before, decision.state);
                }
                state = Some(decision.state);
            }
        }
    }
}
