//! In: which table is to grow; out: another chunk of its rows in the kernel, and that chunk as memory. Knows no row's owner.

use std::os::fd::AsFd as _;

use aya::maps::{ArrayOfMaps, MapData};
use kernmeter_abi::{SLOT_CHUNK, SYSCALL_CHUNK, SlotRow, SyscallRow};

use super::maps::MapAccessError;
use super::region::Region;
use super::{Kernel, MapSize, memory_of};
use crate::config::ReadMode;

/// `BPF_MAP_TYPE_HASH`, `BPF_MAP_TYPE_ARRAY` and `BPF_F_MMAPABLE` of `include/uapi/linux/bpf.h`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;

/// A table that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Rows of slots.
    Slots,
    /// Syscall rows.
    Syscalls,
}

impl Table {
    /// Rows of a chunk.
    pub const fn chunk(self) -> u32 {
        match self {
            Self::Slots => SLOT_CHUNK,
            Self::Syscalls => SYSCALL_CHUNK,
        }
    }

    const fn row_size(self) -> usize {
        match self {
            Self::Slots => size_of::<SlotRow>(),
            Self::Syscalls => size_of::<SyscallRow>(),
        }
    }

    /// Its map.
    const fn map(self) -> &'static str {
        match self {
            Self::Slots => "SLOT_ROWS",
            Self::Syscalls => "SYS_ROWS",
        }
    }
}

impl Kernel {
    /// Makes the chunk at an index of a table, all zero. Programs find its rows at once. The kernel waits for programs that are
    /// running: some 10 ms.
    ///
    /// # Errors
    /// The kernel refused: most often its memory, or that of the agent's cgroup, is used up.
    pub fn add_chunk(&mut self, table: Table, index: u32, mode: ReadMode) -> Result<Region, MapAccessError> {
        let (name, element, entries) = (table.map(), table.row_size(), table.chunk());
        let inner = create(name, [ARRAY, 4, element as u32, entries, MMAPABLE])?;
        let region = Region::open(inner.fd().as_fd(), element, entries, mode);
        let region = region.map_err(MapAccessError::of(name))?;
        self.add_inner(name, index, &inner, entries)?;
        Ok(region)
    }

    /// Makes the second index of syscall rows.
    ///
    /// # Errors
    /// As [`Kernel::add_chunk`].
    pub fn add_second_index(&mut self, entries: u32) -> Result<(), MapAccessError> {
        let name = "SYS_INDEX_MORE";
        let inner = create(name, [HASH, 4, 4, entries, 0])?;
        self.add_inner(name, 0, &inner, entries)
    }

    fn add_inner(
        &mut self,
        name: &'static str,
        index: u32,
        inner: &MapData,
        entries: u32,
    ) -> Result<(), MapAccessError> {
        let refused = |reason: String| MapAccessError { map: name, reason };
        let outer = self.ebpf.map_mut(name).ok_or_else(|| refused("no such map".into()))?;
        let outer: Result<ArrayOfMaps<&mut MapData>, _> = outer.try_into();
        let mut outer = outer.map_err(|error| refused(super::rejection::chain(&error)))?;
        outer.set(index, inner, 0).map_err(|error| refused(super::rejection::chain(&error)))?;
        self.count(name, entries, memory_of(inner));
        Ok(())
    }

    /// Counts what was made in the sizes that are told.
    fn count(&mut self, name: &'static str, entries: u32, bytes: Option<u64>) {
        let Some(size) = self.sizes.iter_mut().find(|size| size.name == name) else { return };
        let MapSize { capacity, memory_bytes, .. } = size;
        *capacity += entries;
        *memory_bytes = memory_bytes.zip(bytes).map(|(before, more)| before + more);
    }
}

/// Makes a map of this type, size of key and of value, number of entries, and with these flags.
fn create(
    name: &'static str,
    [map_type, key, value, entries, flags]: [u32; 5],
) -> Result<MapData, MapAccessError> {
    let map = aya_obj::Map::new_from_params(map_type, key, value, entries, flags);
    let reason = |error| MapAccessError { map: name, reason: super::rejection::chain(&error) };
    MapData::create(map, name, None).map_err(reason)
}
