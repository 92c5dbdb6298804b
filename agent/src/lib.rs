//! kernmeter as a library: kernel rows in, Prometheus samples out. One module per room; each imports only rooms to its left.
#![deny(missing_docs)]

pub mod registry;
