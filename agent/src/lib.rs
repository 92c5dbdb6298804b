//! kernmeter as a library: kernel rows in, Prometheus samples out. One module per room; each imports only rooms to its left.
#![deny(missing_docs)]

pub mod adapt;
#[cfg(test)]
mod allocations;
pub mod attribute;
pub mod audit;
pub mod auth;
pub mod btf;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod docs;
pub mod doctor;
pub mod drain;
pub mod engine;
pub mod escape;
pub mod exposition;
pub mod filewatch;
pub mod host;
pub mod identity;
pub mod kernel;
pub mod kubernetes;
pub mod lifecycle;
pub mod log;
pub mod privileges;
pub mod registry;
pub mod run;
pub mod selfmetrics;
pub mod serve;
pub mod table;

/// Calls `with` with the names a configuration may refer to in this build.
pub fn known<T>(with: impl FnOnce(&config::Known<'_>) -> T) -> T {
    let families: Vec<&str> = catalog::families().map(|family| family.name).collect();
    let probes: Vec<&str> = catalog::PROBES.iter().map(|probe| probe.name).collect();
    with(&config::Known { families: &families, probes: &probes })
}
