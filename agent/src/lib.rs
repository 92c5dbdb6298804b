//! kernmeter as a library: kernel rows in, Prometheus samples out. One module per room; each imports only rooms to its left.
#![deny(missing_docs)]

pub mod adapt;
pub mod attribute;
pub mod btf;
pub mod config;
pub mod drain;
pub mod exposition;
pub mod family;
pub mod identity;
pub mod names;
pub mod probes;
pub mod registry;
pub mod selfmetrics;
pub mod serve;
