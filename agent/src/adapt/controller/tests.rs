//! In: made-up readings; out: verdicts on intervals. Reads no clock: time is an argument.

use proptest::prelude::*;

use super::LoadSignal::{All, Cpu, CpuPressure, Memory, MemoryPressure, Unread};
use super::LoadState::{Normal, Relaxed, Stressed};
use super::*;

fn reading(cpu: f64, memory: f64) -> LoadReading {
    LoadReading { cpu_busy_percent: cpu, memory_available_percent: memory, psi: None }
}

fn pressed(cpu: f64, memory: f64) -> LoadReading {
    LoadReading { psi: Some(Pressure { cpu, memory, io: 100.0 }), ..reading(10.0, 80.0) }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A controller brought into a state by its first reading.
fn in_state(state: LoadState) -> Controller {
    let mut controller = Controller::new(IntervalPolicy::default());
    let first = match state {
        Relaxed => reading(10.0, 80.0),
        Normal => reading(50.0, 50.0),
        Stressed => reading(90.0, 50.0),
    };
    assert_eq!(controller.step(secs(0), &first).state, state);
    controller
}

/// Seconds of the same reading, one a second, until the controller is in a state.
fn seconds_until(controller: &mut Controller, from: u64, reading: &LoadReading, state: LoadState) -> u64 {
    (1..1000)
        .find(|at| controller.step(secs(from + at), reading).state == state)
        .unwrap_or_else(|| panic!("never {state:?} with {reading:?}"))
}

/// CPU >= 75 % or free memory <= 20 %: 30 s; CPU <= 30 % and free memory >= 60 %: 5 s; else 15 s.
#[test]
fn first_reading_at_every_boundary() {
    for (cpu, memory, state, signal) in [
        (75.0, 100.0, Stressed, Cpu),
        (74.999, 100.0, Normal, Cpu),
        (100.0, 100.0, Stressed, Cpu),
        (0.0, 20.0, Stressed, Memory),
        (0.0, 20.001, Normal, Memory),
        (0.0, 0.0, Stressed, Memory),
        (75.0, 20.0, Stressed, Cpu),
        (30.0, 60.0, Relaxed, All),
        (30.001, 60.0, Normal, Cpu),
        (30.0, 59.999, Normal, Memory),
        (0.0, 100.0, Relaxed, All),
        (50.0, 40.0, Normal, Memory),
    ] {
        let decision = Controller::new(IntervalPolicy::default()).step(secs(0), &reading(cpu, memory));
        assert_eq!((decision.state, decision.signal), (state, signal), "cpu {cpu} memory {memory}");
        assert_eq!(decision.changed, state != Normal);
        let interval = [5, 15, 30][LoadState::ALL.iter().position(|s| *s == state).expect("known")];
        assert_eq!(decision.interval, secs(interval));
    }
    let policy =
        IntervalPolicy { pressure_cpu: Some(40.0), pressure_memory: Some(10.0), ..IntervalPolicy::default() };
    for (cpu, memory, state, signal) in [
        (40.0, 0.0, Stressed, CpuPressure),
        (39.99, 0.0, Relaxed, All),
        (0.0, 10.0, Stressed, MemoryPressure),
        (0.0, 9.99, Relaxed, All),
    ] {
        let decision = Controller::new(policy.clone()).step(secs(0), &pressed(cpu, memory));
        assert_eq!((decision.state, decision.signal), (state, signal), "pressure {cpu} {memory}");
    }
}

/// A host whose CPUs are contended has high pressure long before its CPU use is high.
#[test]
fn pressure_does_not_contradict_the_table() {
    for (cpu, memory, state) in [(55.0, 50.0, Normal), (50.0, 80.0, Normal), (20.0, 70.0, Relaxed)] {
        let psi = Some(Pressure { cpu: 60.0, memory: 15.0, io: 90.0 });
        let reading = LoadReading { psi, ..reading(cpu, memory) };
        let mut controller = Controller::new(IntervalPolicy::default());
        for at in 0..100 {
            assert_eq!(controller.step(secs(at), &reading).state, state, "CPU {cpu} %, after {at} s");
        }
    }
}

#[test]
fn hysteresis_on_the_way_out() {
    // From each state, held long enough for any dwell: where a reading leads.
    let policy = IntervalPolicy {
        pressure_cpu: Some(40.0),
        pressure_memory: Some(10.0),
        hysteresis: 5.0,
        ..IntervalPolicy::default()
    };
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
        assert_eq!(policy.wish(Some(from), &reading).state, to, "{from:?} {reading:?}");
    }
    // The default moves each way out by two points.
    let wish = |from, cpu| IntervalPolicy::default().wish(Some(from), &reading(cpu, 80.0)).state;
    assert_eq!((wish(Stressed, 73.001), wish(Stressed, 73.0)), (Stressed, Normal));
    assert_eq!((wish(Relaxed, 31.999), wish(Relaxed, 32.0)), (Relaxed, Normal));
}

#[test]
fn full_load_lengthens_the_interval_within_seconds() {
    for idle in [0.0, 10.0, 30.0] {
        let mut controller = Controller::new(IntervalPolicy::default());
        assert_eq!(controller.step(secs(0), &reading(idle, 80.0)).state, Relaxed);
        let took = seconds_until(&mut controller, 0, &reading(100.0, 80.0), Stressed);
        assert!((2..=7).contains(&took), "{took} s from {idle} %");
        assert_eq!(controller.current().signal, Cpu);
    }
    // Memory that runs out.
    let mut controller = in_state(Relaxed);
    let took = seconds_until(&mut controller, 0, &reading(10.0, 5.0), Stressed);
    assert!((2..=9).contains(&took), "{took} s");
    assert_eq!(controller.current().signal, Memory);
}

#[test]
fn one_busy_second_means_nothing() {
    for cpu in [75.0, 90.0, 100.0] {
        let mut controller = in_state(Relaxed);
        assert!(!controller.step(secs(1), &reading(cpu, 80.0)).changed);
        for at in 2..100 {
            assert!(!controller.step(secs(at), &reading(10.0, 80.0)).changed, "at {at} s");
        }
    }
}

#[test]
fn a_spiky_second_does_not_restart_the_dwell() {
    // Calm after stress, but for one busy second in ten: it is relaxed after the dwell and stays so.
    let mut controller = in_state(Stressed);
    let mut relaxed_at = None;
    for at in 1..=300 {
        let cpu = if at % 10 == 0 { 100.0 } else { 5.0 };
        let state = controller.step(secs(at), &reading(cpu, 80.0)).state;
        match relaxed_at {
            None if state == Relaxed => relaxed_at = Some(at),
            Some(since) => assert_eq!(state, Relaxed, "at {at} s, relaxed since {since} s"),
            None => {}
        }
    }
    assert!(relaxed_at.is_some_and(|at| at <= 60), "relaxed at {relaxed_at:?} s");
}

#[test]
fn faster_takes_the_dwell() {
    // The mean of 90 % falls to 73 % in two seconds and to 30 % in seven.
    let mut controller = in_state(Stressed);
    assert_eq!(seconds_until(&mut controller, 0, &reading(10.0, 80.0), Normal), 32);
    assert_eq!(controller.current().signal, All);
    assert_eq!(seconds_until(&mut controller, 32, &reading(10.0, 80.0), Relaxed), 5);

    // Load that lasts begins the dwell anew.
    let mut controller = in_state(Stressed);
    for at in 1..=20 {
        controller.step(secs(at), &reading(10.0, 80.0));
    }
    for at in 21..=30 {
        assert!(!controller.step(secs(at), &reading(90.0, 80.0)).changed);
    }
    assert_eq!(seconds_until(&mut controller, 30, &reading(10.0, 80.0), Normal), 31);

    // Normal load after stress: normal after the dwell, and relaxed a dwell after the last normal reading.
    let mut controller = in_state(Stressed);
    assert_eq!(seconds_until(&mut controller, 0, &reading(50.0, 80.0), Normal), 33);
    assert_eq!(seconds_until(&mut controller, 33, &reading(10.0, 80.0), Relaxed), 34);
}

#[test]
fn the_mean_follows_time_not_readings() {
    // A reading a second, or one of the same load after ten: the same mean.
    let mut often = in_state(Relaxed);
    for at in 1..=10 {
        often.step(secs(at), &reading(60.0, 40.0));
    }
    let mut rarely = in_state(Relaxed);
    rarely.step(secs(10), &reading(60.0, 40.0));
    let (often, rarely) = (often.smoothed().expect("read"), rarely.smoothed().expect("read"));
    assert!((often.cpu_busy_percent - rarely.cpu_busy_percent).abs() < 1e-9, "{often:?} {rarely:?}");
    let expected = 60.0 - 50.0 * (-2.0_f64).exp();
    assert!((rarely.cpu_busy_percent - expected).abs() < 1e-9, "{rarely:?}");
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

    let mut untouched = Controller::new(IntervalPolicy::default());
    let decision = untouched.step(secs(0), &reading(f64::NAN, 0.0));
    assert_eq!((decision.state, decision.interval, decision.signal), (Normal, secs(15), Unread));
    assert_eq!(untouched.smoothed(), None);
}

#[test]
fn no_hysteresis_means_the_plain_thresholds() {
    let policy = IntervalPolicy { hysteresis: 0.0, dwell: Duration::ZERO, ..IntervalPolicy::default() };
    let mut controller = Controller::new(policy);
    controller.step(secs(0), &reading(75.0, 80.0));
    assert_eq!(controller.step(secs(1), &reading(75.0, 80.0)).state, Stressed);
    assert_eq!(controller.step(secs(2), &reading(74.9, 80.0)).state, Normal);
}

#[test]
fn a_new_policy_does_not_change_the_state() {
    let mut controller = in_state(Stressed);
    controller.reconfigure(IntervalPolicy { stressed: secs(60), ..IntervalPolicy::default() });
    let decision = controller.current();
    assert_eq!((decision.state, decision.interval), (Stressed, secs(60)));
}

proptest! {
    #[test]
    fn never_faster_before_the_dwell(
        steps in proptest::collection::vec((0u64..20_000, -5.0..105.0, -5.0..105.0, 0.0..100.0), 1..400),
    ) {
        let policy = IntervalPolicy::default();
        let mut controller = Controller::new(policy.clone());
        let mut now = Duration::ZERO;
        // When a reading last asked for more than relaxed, and for more than normal.
        let mut asked = [Duration::ZERO; 2];
        for (wait, cpu, memory, psi) in steps {
            now += Duration::from_millis(wait);
            let reading = LoadReading {
                psi: Some(Pressure { cpu: psi, memory: psi / 8.0, io: 0.0 }),
                ..reading(cpu, memory)
            };
            let before = controller.smoothed().map(|_| controller.current().state);
            let decision = controller.step(now, &reading);
            prop_assert_eq!(decision.interval, policy.interval(decision.state));
            // The first reading decides at once.
            let (Some(before), Some(mean)) = (before, controller.smoothed()) else { continue };
            prop_assert_eq!(before != decision.state, decision.changed);
            let wish = policy.wish(Some(before), &mean).state;
            for (at, state) in asked.iter_mut().zip([Relaxed, Normal]) {
                if wish > state {
                    *at = now;
                }
            }
            if decision.state < before {
                let calm = now.saturating_sub(asked[decision.state as usize]);
                prop_assert!(calm >= policy.dwell, "{:?} after {:?}", decision.state, calm);
            }
            prop_assert!(decision.state >= wish, "slower at once");
        }
    }
}
