//! One tenant floods: the others' counts stay exact and the agent small.

use std::time::Duration;

use anyhow::ensure;
use kernmeter_tests::kernel::{descriptors, resident};
use kernmeter_tests::{Agent, Hierarchy, Outcome, Settings, Workload, trials};

use crate::counting::{WORKLOAD, calls, check_counts};

trials![others_stay_exact_and_memory_flat];

/// Most the agent may keep resident.
const RESIDENT: u64 = 40 << 20;
/// What the reading may differ by between the middle and the end of the flood.
const FLAT: u64 = 2 << 20;

fn others_stay_exact_and_memory_flat() -> Outcome {
    let hierarchy = Hierarchy::new()?;
    let agent = Agent::start(&Settings::new(&hierarchy))?;
    let (quiet, noisy) = (hierarchy.tenant("quiet")?, hierarchy.tenant("noisy")?);
    let mut flood = Workload::spawn(&noisy, &["flood", "--cpu", "0", "--forks"])?;
    flood.go()?;
    std::thread::sleep(Duration::from_secs(2));
    agent.fresh()?;
    let (early, early_descriptors) = (resident(agent.pid())?, descriptors(agent.pid())?);
    let (workload, _) = Workload::run(&quiet, &WORKLOAD)?;
    workload.finish()?;
    let scrape = agent.settle(1_000_000, |s| calls(s, "quiet", "getppid"))?;
    check_counts(&scrape, "quiet")?;
    std::thread::sleep(Duration::from_secs(2));
    agent.fresh()?;
    let (late, late_descriptors) = (resident(agent.pid())?, descriptors(agent.pid())?);
    flood.kill()?;
    println!("resident: {} KiB, later {} KiB", early >> 10, late >> 10);
    ensure!(late < RESIDENT && early < RESIDENT, "{early} and {late} bytes resident");
    ensure!(late < early + FLAT, "resident memory grows: {early}, then {late} bytes");
    ensure!(
        late_descriptors <= early_descriptors + 1,
        "descriptors grow: {early_descriptors}, then {late_descriptors}"
    );
    let made = calls(&scrape, "noisy", "getppid");
    ensure!(made > 100_000, "the flood made {made} calls only");
    agent.stop_conserved()?;
    Ok(())
}
