//! In: a loaded object's maps; out: typed handles to its tables, queues and per-CPU counters. Knows keys and values, not what
//! they mean, and keeps the eBPF library's types to itself.

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, Queue};

use super::{Kernel, LoadError};

/// The kernel refused access to a map.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the kernel map `{map}`: {reason}")]
pub struct MapAccessError {
    /// Name of the map.
    pub map: &'static str,
    /// What the kernel said.
    pub reason: String,
}

fn refused(map: &'static str) -> impl Fn(MapError) -> MapAccessError {
    move |error| MapAccessError { map, reason: super::chain(&error) }
}

/// Why a map of the object cannot be had.
fn unusable(map: &'static str) -> impl Fn(MapError) -> LoadError {
    move |error| LoadError::Map(refused(map)(error))
}

/// What a program and the agent both look things up in.
pub struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Takes the map of this name out of the loaded object.
    ///
    /// # Errors
    /// There is no such map, or it was taken already.
    pub fn take(kernel: &mut Kernel, name: &'static str) -> Result<Self, LoadError> {
        let map = kernel.take_map(name)?.try_into().map_err(unusable(name))?;
        Ok(Self { name, map })
    }

    /// The value of a key.
    pub fn get(&self, key: K) -> Option<V> {
        self.map.get(&key, 0).ok()
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// The kernel refused; most often the table is full.
    pub fn set(&mut self, key: K, value: V) -> Result<(), MapAccessError> {
        self.map.insert(key, value, 0).map_err(refused(self.name))
    }

    /// Sets the value of a key that has none yet.
    ///
    /// # Errors
    /// The key has a value, or the kernel refused.
    pub fn add(&mut self, key: K, value: V) -> Result<(), MapAccessError> {
        /// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
        const NOEXIST: u64 = 1;
        self.map.insert(key, value, NOEXIST).map_err(refused(self.name))
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, key: K) {
        // The only error is that it is gone already.
        let _ = self.map.remove(&key);
    }
}

/// Numbers that programs and the agent take from and give back to.
pub struct FreeQueue {
    name: &'static str,
    map: Queue<MapData, u32>,
}

impl FreeQueue {
    /// Takes the map of this name out of the loaded object.
    ///
    /// # Errors
    /// There is no such map, or it was taken already.
    pub fn take(kernel: &mut Kernel, name: &'static str) -> Result<Self, LoadError> {
        let map = kernel.take_map(name)?.try_into().map_err(unusable(name))?;
        Ok(Self { name, map })
    }

    /// Gives a number back.
    ///
    /// # Errors
    /// The kernel refused: the queue is full.
    pub fn push(&mut self, number: u32) -> Result<(), MapAccessError> {
        self.map.push(number, 0).map_err(refused(self.name))
    }

    /// Takes a number; `None` if there is none.
    pub fn pop(&mut self) -> Option<u32> {
        self.map.pop(0).ok()
    }
}

/// Counters that every CPU keeps for itself.
pub struct PerCpuCounters<const N: usize>
where
    [u64; N]: Pod,
{
    name: &'static str,
    map: PerCpuArray<MapData, [u64; N]>,
}

impl<const N: usize> PerCpuCounters<N>
where
    [u64; N]: Pod,
{
    /// Takes the map of this name out of the loaded object.
    ///
    /// # Errors
    /// There is no such map, or it was taken already.
    pub fn take(kernel: &mut Kernel, name: &'static str) -> Result<Self, LoadError> {
        let map = kernel.take_map(name)?.try_into().map_err(unusable(name))?;
        Ok(Self { name, map })
    }

    /// The counters, added up over all possible CPUs.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub fn sum(&self) -> Result<[u64; N], MapAccessError> {
        let mut total = [0u64; N];
        for counters in self.map.get(&0, 0).map_err(refused(self.name))?.iter() {
            for (total, counter) in total.iter_mut().zip(counters) {
                *total = total.wrapping_add(*counter);
            }
        }
        Ok(total)
    }
}
