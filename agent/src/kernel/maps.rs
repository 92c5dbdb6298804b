//! In: a loaded object's maps; out: counters that every CPU keeps for itself, and the error of an access. Knows no counter's
//! meaning.

use super::region::Region;
use super::{Kernel, LoadError};
use crate::config::ReadMode;

/// The kernel refused access to a map.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the kernel map `{map}`: {reason}")]
pub struct MapAccessError {
    /// Name of the map.
    pub map: &'static str,
    /// What the kernel said.
    pub reason: String,
}

impl MapAccessError {
    /// The error of an access to this map.
    pub fn of(map: &'static str) -> impl Fn(std::io::Error) -> MapAccessError {
        move |error| MapAccessError { map, reason: error.to_string() }
    }
}

/// Counters that every CPU keeps for itself.
pub struct PerCpuCounters<const N: usize> {
    name: &'static str,
    region: Region,
    cpus: u32,
}

impl<const N: usize> PerCpuCounters<N> {
    /// Opens the map of this name of the loaded object.
    ///
    /// # Errors
    /// There is no such map, or the kernel refuses access to it.
    pub fn open(kernel: &Kernel, name: &'static str, mode: ReadMode) -> Result<Self, LoadError> {
        let cpus = kernel.plan().cpus;
        let region = Region::open(kernel.array_fd(name)?, 8 * N, cpus, mode);
        Ok(Self { name, region: region.map_err(MapAccessError::of(name))?, cpus })
    }

    /// The counters, added up over all possible CPUs.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub fn sum(&mut self) -> Result<[u64; N], MapAccessError> {
        self.region.refresh().map_err(MapAccessError::of(self.name))?;
        let sum = |counter| {
            (0..self.cpus).fold(0u64, |sum, cpu| sum.wrapping_add(self.region.load(cpu, 8 * counter)))
        };
        Ok(std::array::from_fn(sum))
    }
}
