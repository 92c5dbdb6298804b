//! The harness of the integration tests: starts the agent, makes cgroups, runs workloads in them and reads scrapes.
//! Knows the agent by its command line, its log and its HTTP answers only; imports nothing of it.
#![allow(
    clippy::float_cmp,
    reason = "what is compared for equality are integers and constants written as floats"
)]

pub mod agent;
pub mod apiserver;
pub mod cgroup;
pub mod harmless;
pub mod http;
pub mod kernel;
pub mod program;
pub mod runc;
pub mod scrape;
pub mod settings;
pub mod trial;
pub mod workload;

pub use agent::Agent;
pub use cgroup::{Cgroup, Hierarchy};
pub use runc::{Container, Driver, Pod, Runtime};
pub use scrape::Scrape;
pub use settings::Settings;
pub use trial::{Outcome, Skip, run_on_host, trial};
pub use workload::Workload;
