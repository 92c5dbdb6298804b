//! In: what each CPU says of itself at its switches; out: which CPUs idle, and since when. Knows no tasks.

use std::mem::offset_of;

use kernmeter_abi::CpuSince;

use super::maps::MapAccessError;
use super::region::Region;
use super::{Kernel, LoadError};
use crate::config::ReadMode;
use crate::host::online_cpus;

/// The map.
const MAP: &str = "CPU_SINCE";

/// Which CPUs idle.
pub struct Cpus {
    region: Region,
    possible: u32,
}

impl Cpus {
    /// Opens the map of the loaded object.
    ///
    /// # Errors
    /// There is no such map, or the kernel refuses access to it.
    pub fn open(kernel: &Kernel, mode: ReadMode) -> Result<Cpus, LoadError> {
        let possible = kernel.plan().cpus;
        let region = Region::open(kernel.array_fd(MAP)?, size_of::<CpuSince>(), possible, mode);
        Ok(Cpus { region: region.map_err(MapAccessError::of(MAP))?, possible })
    }

    /// Brings what is copied rather than mapped up to date.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub fn refresh(&mut self) -> Result<(), MapAccessError> {
        self.region.refresh().map_err(MapAccessError::of(MAP))
    }

    /// Since when a CPU idles, `CLOCK_MONOTONIC` nanoseconds; `None` if it does not. All that it counted before is in the rows.
    pub fn idle_since(&self, cpu: u32) -> Option<u64> {
        if cpu >= self.possible || self.region.load(cpu, offset_of!(CpuSince, is_idle)) == 0 {
            return None;
        }
        let since_ns = self.region.load(cpu, offset_of!(CpuSince, ns));
        (since_ns != 0).then_some(since_ns)
    }

    /// How long the CPUs that idle have done so, nanoseconds, all together. One that is offline does not idle.
    pub fn idle_ns(&self, now_ns: u64) -> u64 {
        let idle = online_cpus().into_iter().filter_map(|cpu| self.idle_since(cpu));
        idle.map(|since_ns| now_ns.saturating_sub(since_ns)).sum()
    }
}
