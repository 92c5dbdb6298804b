//! In: a worker on each of two CPUs, in one cgroup, and an agent; out: what metering adds to a system call of one of them, and
//! of both at the same time: with private rows, and where both have to share one.

use std::thread;

use anyhow::Result;
use kernmeter_tests::Settings;

use crate::alone;
use crate::event_cost::{Effort, warm_up};
use crate::pinned::Pinned;
use crate::spread::Spread;
use crate::subject::Subject;

/// Readings of one loop, nanoseconds per call, turn by turn: of one CPU alone, and of one of two.
type Readings = [Vec<f64>; 2];

/// Measures without an agent and with each kind of rows in turns; prints what was read and what was added.
pub fn run(subject: &Subject, settings: &Settings, effort: Effort) -> Result<()> {
    let mut workers = [Pinned::start(0)?, Pinned::start(1)?];
    let kinds = [
        ("private rows", settings.clone()),
        ("shared rows", settings.clone().section("kernel: {private_rows: 0}")),
    ];
    let mut without = Readings::default();
    let mut with = [Readings::default(), Readings::default()];
    for _ in 0..effort.turns {
        turn(&mut workers, 0, effort.rounds, &mut without)?;
        for ((_, settings), readings) in kinds.iter().zip(&mut with) {
            let agent = subject.start(settings)?;
            workers.iter_mut().try_for_each(warm_up)?;
            turn(&mut workers, 1, effort.rounds, readings)?;
            agent.stop()?;
        }
    }
    println!("\n{:<40}{:<24}{:<24}{:<24}", "nanoseconds per call", "no agent", kinds[0].0, kinds[1].0);
    for (place, name) in ["one CPU", "the same, both CPUs at it"].iter().enumerate() {
        let text = |readings: &Readings| Spread::of(readings[place].clone()).to_string();
        println!("{name:<40}{:<24}{:<24}{:<24}", text(&without), text(&with[0]), text(&with[1]));
    }
    println!("\n{:<40}{:<24}{:<24}ratio", "nanoseconds added", "one CPU", "both CPUs");
    for ((name, _), with) in kinds.iter().zip(&with) {
        let [one, both] = [0, 1].map(|place| {
            Spread::of(with[place].iter().zip(&without[place]).map(|(with, without)| with - without))
        });
        println!("{name:<40}{:<24}{:<24}{:.2}", one.to_string(), both.to_string(), both.median / one.median);
    }
    Ok(())
}

fn turn(workers: &mut [Pinned; 2], agents: usize, rounds: u32, readings: &mut Readings) -> Result<()> {
    let [first, second] = workers;
    readings[0].push(alone::measure(agents, || first.call(rounds))?);
    readings[1].push(alone::measure(agents, || {
        thread::scope(|scope| {
            // Longer than the one that is read, so that it is never alone.
            let other = scope.spawn(|| second.call(2 * rounds));
            let reading = first.call(rounds);
            let _ = other.join();
            reading
        })
    })?);
    Ok(())
}
