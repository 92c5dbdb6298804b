//! In: a pinned worker and agents, one or two to compare; out: what each adds to a system call, a switch and a wake-up.
//! Without and with each agent in turns, so that a drift of the machine meets all alike.

use std::time::{Duration, Instant};

use anyhow::Result;
use kernmeter_tests::Settings;

use crate::alone;
use crate::pinned::Pinned;
use crate::spread::Spread;
use crate::subject::Subject;

/// How much to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Turns without and with each agent.
    pub turns: usize,
    /// Rounds of each loop in a turn; the median counts.
    pub rounds: u32,
}

/// From nanoseconds added to each loop, those added to one event.
type Event = fn(&[f64]) -> f64;

/// Which loops to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loops {
    /// The system call alone.
    Call,
    /// And the two that switch.
    Switch,
    /// And the one through as many cgroups.
    Ring(u32),
}

impl Loops {
    fn names(self) -> &'static [&'static str] {
        const NAMES: [&str; 4] = [
            "system call (getppid)",
            "yield (1 switch, 1 call)",
            "pipe (1 switch, 1 wake-up, 2 calls)",
            "the same through every cgroup in turn",
        ];
        match self {
            Self::Call => &NAMES[..1],
            Self::Switch => &NAMES[..3],
            Self::Ring(_) => &NAMES,
        }
    }

    /// What is told apart in the loops. `read`, `write` and `sched_yield` are taken to cost what `getppid` does.
    fn events(self) -> &'static [(&'static str, Event)] {
        const EVENTS: [(&str, Event); 5] = [
            ("system call", |added| added[0]),
            ("switch", |added| added[1] - added[0]),
            ("wake-up", |added| added[2] - added[1] - added[0]),
            ("switch and wake-up", |added| added[2] - 2.0 * added[0]),
            ("the same, next cgroup", |added| added[3] - 2.0 * added[0]),
        ];
        match self {
            Self::Call => &EVENTS[..1],
            Self::Switch => &EVENTS[..4],
            Self::Ring(_) => &EVENTS,
        }
    }
}

/// Readings of one loop, nanoseconds per event, turn by turn.
type Readings = Vec<f64>;

/// Measures in turns; prints the loops, and what they say about single events.
pub fn run(
    worker: &mut Pinned,
    subjects: &[Subject],
    settings: &Settings,
    loops: Loops,
    effort: Effort,
) -> Result<()> {
    let count = loops.names().len();
    let mut without = vec![Readings::new(); count];
    let mut with = vec![vec![Readings::new(); count]; subjects.len()];
    let mut turn = |agents: usize, readings: &mut [Readings]| -> Result<()> {
        if agents > 0 {
            warm_up(worker)?;
        }
        let turn = alone::measure(agents, || measure(worker, loops, effort.rounds))?;
        readings.iter_mut().zip(turn).for_each(|(readings, reading)| readings.push(reading));
        Ok(())
    };
    for n in 0..effort.turns {
        turn(0, &mut without)?;
        for place in 0..subjects.len() {
            // Each goes first as often as the other.
            let which = (place + n) % subjects.len();
            let agent = subjects[which].start(settings)?;
            turn(1, &mut with[which])?;
            agent.stop()?;
        }
    }
    print_loops(subjects, loops, &without, &with);
    print_events(subjects, loops, &without, &with);
    Ok(())
}

/// Has a worker call until what it uses is at hand: rows of its own come within half a second.
pub fn warm_up(worker: &mut Pinned) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        worker.call(100)?;
    }
    Ok(())
}

fn measure(worker: &mut Pinned, loops: Loops, rounds: u32) -> Result<Vec<f64>> {
    let mut readings = vec![worker.call(rounds)?];
    if loops != Loops::Call {
        readings.push(worker.switch(rounds)?);
        readings.push(worker.pipe(rounds)?);
    }
    if let Loops::Ring(_) = loops {
        readings.push(worker.hop(rounds.div_ceil(10))?);
    }
    Ok(readings)
}

fn print_loops(subjects: &[Subject], loops: Loops, without: &[Readings], with: &[Vec<Readings>]) {
    let title = match loops {
        Loops::Ring(cgroups) => format!("nanoseconds, {cgroups} cgroups more"),
        _ => "nanoseconds".to_owned(),
    };
    print!("\n{title:<40}{:<24}", "no agent");
    for subject in subjects {
        print!("{:<24}{:<8}", subject.name(), "ratio");
    }
    println!();
    for (index, name) in loops.names().iter().enumerate() {
        let none = Spread::of(without[index].clone());
        print!("{name:<40}{:<24}", none.to_string());
        for with in with {
            let with = Spread::of(with[index].clone());
            print!("{:<24}{:<8.2}", with.to_string(), with.median / none.median);
        }
        println!();
    }
}

fn print_events(subjects: &[Subject], loops: Loops, without: &[Readings], with: &[Vec<Readings>]) {
    print!("\n{:<40}", "nanoseconds added");
    for subject in subjects {
        print!("{:<24}", subject.name());
    }
    println!("{}", if subjects.len() == 2 { "new less old            new/old" } else { "" });
    for (name, of) in loops.events() {
        let added: Vec<Readings> = with.iter().map(|with| per_turn(without, with, *of)).collect();
        print!("{name:<40}");
        for added in &added {
            print!("{:<24}", Spread::of(added.clone()).to_string());
        }
        if let [old, new] = &added[..] {
            let less = Spread::of(new.iter().zip(old).map(|(new, old)| new - old));
            let ratio = Spread::of(new.clone()).median / Spread::of(old.clone()).median;
            print!("{:<24}{ratio:.2}", less.to_string());
        }
        println!();
    }
}

/// What an agent adds to an event, turn by turn.
fn per_turn(without: &[Readings], with: &[Readings], of: Event) -> Readings {
    (0..without[0].len())
        .map(|turn| {
            let added: Vec<f64> =
                with.iter().zip(without).map(|(with, without)| with[turn] - without[turn]).collect();
            of(&added)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart_turn_by_turn() {
        // A call costs 10 more, a switch 100, a wake-up 1000; in the second turn twice that.
        let without = vec![vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 6.0], vec![7.0, 8.0]];
        let added = [[10.0, 20.0], [110.0, 220.0], [1120.0, 2240.0], [5020.0, 5040.0]];
        let with: Vec<Readings> =
            (0..4).map(|i| (0..2).map(|t| without[i][t] + added[i][t]).collect()).collect();
        let events = Loops::Ring(1).events();
        let found: Vec<Readings> = events.iter().map(|(_, of)| per_turn(&without, &with, *of)).collect();
        let expected = [[10.0, 20.0], [100.0, 200.0], [1000.0, 2000.0], [1100.0, 2200.0], [5000.0, 5000.0]]
            .map(Vec::from);
        assert_eq!(found, expected);
        assert_eq!((Loops::Call.events().len(), Loops::Switch.events().len()), (1, 4));
    }
}
