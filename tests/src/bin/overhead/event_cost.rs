//! In: a pinned worker, with or without a ring of cgroups; out: what a system call and a switch cost without and with the
//! agent. Both are measured in turns, so that a drift of the machine meets both alike.

use anyhow::Result;
use kernmeter_tests::Settings;

use crate::alone;
use crate::pinned::Pinned;
use crate::spread::Spread;
use crate::subject::Subject;

/// How much to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Turns without and with the agent.
    pub turns: u32,
    /// Rounds of each loop in a turn; the median counts.
    pub rounds: u32,
}

/// Readings of one loop, nanoseconds per event.
#[derive(Default)]
struct Readings {
    without: Vec<f64>,
    with: Vec<f64>,
}

impl Readings {
    /// Each turn's difference: what the agent adds.
    fn added(&self) -> Spread {
        Spread::of(self.with.iter().zip(&self.without).map(|(with, without)| with - without))
    }

    fn print(&self, name: &str) {
        let (without, with) = (Spread::of(self.without.clone()), Spread::of(self.with.clone()));
        println!(
            "{name:<44} {without:<26} {with:<26} {:<26} {:.2}",
            self.added().to_string(),
            with.median / without.median
        );
    }
}

/// Measures both loops, and a third round the ring where there is one; prints a table.
pub fn run(
    worker: &mut Pinned,
    subject: &Subject,
    settings: &Settings,
    cgroups: u32,
    effort: Effort,
) -> Result<()> {
    let mut readings = [Readings::default(), Readings::default(), Readings::default()];
    for _ in 0..effort.turns {
        let [syscall, switch, hop] = turn(worker, 0, cgroups, effort.rounds)?;
        readings[0].without.push(syscall);
        readings[1].without.push(switch);
        readings[2].without.push(hop);
        let agent = subject.start(settings)?;
        let [syscall, switch, hop] = turn(worker, 1, cgroups, effort.rounds)?;
        readings[0].with.push(syscall);
        readings[1].with.push(switch);
        readings[2].with.push(hop);
        agent.stop()?;
    }
    let [syscall, switch, hop] = &readings;
    println!(
        "\n{:<44} {:<26} {:<26} {:<26} ratio",
        format!("nanoseconds per event, {cgroups} cgroups more"),
        "without agent",
        "with agent",
        "added"
    );
    syscall.print("system call (getppid)");
    switch.print("pipe switch (1 switch, 1 wake-up, 2 calls)");
    let both_calls = 2.0 * syscall.added().median;
    println!(
        "{:<44} {:>79.0}",
        "  of it in the scheduler (less 2 calls)",
        switch.added().median - both_calls
    );
    if cgroups > 0 {
        hop.print("the same through every cgroup in turn");
        println!(
            "{:<44} {:>79.0}",
            "  of it in the scheduler (less 2 calls)",
            hop.added().median - both_calls
        );
    }
    Ok(())
}

fn turn(worker: &mut Pinned, agents: usize, cgroups: u32, rounds: u32) -> Result<[f64; 3]> {
    alone::measure(agents, || {
        let hop = if cgroups > 0 { worker.hop(rounds.div_ceil(10))? } else { f64::NAN };
        Ok([worker.syscall(rounds)?, worker.switch(rounds)?, hop])
    })
}
