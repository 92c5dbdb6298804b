//! In: how busy the host is; out: how often to drain. Knows no maps and no counts: an interval never changes a total.
//!
//! [`controller`] is pure; [`load`] reads `/proc`.

pub mod controller;
pub mod load;

pub use controller::{Controller, Decision, IntervalPolicy, LoadReading, LoadSignal, LoadState, Pressure};
pub use load::{Load, ReadingError};
