//! In: settings; out: the agent to measure, in a cgroup of its own below ours, so that it ends when ours is swept.

use anyhow::Result;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Settings};

/// Starts agents in their cgroup.
pub struct Subject {
    cgroup: Cgroup,
}

impl Subject {
    /// Makes the cgroup.
    pub fn new(hierarchy: &Hierarchy) -> Result<Self> {
        Ok(Self { cgroup: hierarchy.tenant("agent")? })
    }

    /// Starts an agent and waits until it meters.
    pub fn start(&self, settings: &Settings) -> Result<Agent> {
        let agent = Agent::start(settings)?;
        self.cgroup.enter(agent.pid())?;
        Ok(agent)
    }
}
