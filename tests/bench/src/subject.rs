//! In: an agent's program and settings; out: that agent running, in a cgroup of its own below ours, so that it ends when
//! ours is swept.

use std::path::PathBuf;

use anyhow::Result;
use kernmeter_tests::{Agent, Cgroup, Hierarchy, Settings};

/// An agent that is measured.
pub struct Subject {
    name: &'static str,
    program: PathBuf,
    cgroup: Cgroup,
}

impl Subject {
    /// Makes the cgroup.
    pub fn new(hierarchy: &Hierarchy, name: &'static str, program: PathBuf) -> Result<Self> {
        Ok(Self { name, program, cgroup: hierarchy.tenant(name.replace(' ', "-"))? })
    }

    /// What the report calls it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Starts the agent and waits until it meters.
    pub fn start(&self, settings: &Settings) -> Result<Agent> {
        let agent = Agent::start_program(&self.program, settings, &[])?;
        self.cgroup.enter(agent.pid())?;
        Ok(agent)
    }
}
