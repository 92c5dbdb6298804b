//! In: which table is to grow; out: another chunk of its rows in the kernel, and that chunk as memory. Knows no row's owner.

use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::{ArrayOfMaps, Map, MapData};
use kernmeter_abi::{SLOT_CHUNK, SYSCALL_CHUNK, SlotRow, SyscallRow};

use super::maps::MapAccessError;
use super::region::Region;
use super::rejection::chain;
use super::{Kernel, MapSize, memory_of};
use crate::config::ReadMode;

/// `BPF_MAP_TYPE_HASH`, `BPF_MAP_TYPE_ARRAY` and `BPF_F_MMAPABLE` of `include/uapi/linux/bpf.h`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;

/// Chunks that are added at the same time: each takes a thread, and three descriptors.
const AT_A_TIME: usize = 48;

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

    /// The chunks that hold these rows, but for one of which there are rows before.
    pub fn chunks(self, rows: Range<u32>) -> Range<u32> {
        rows.start.div_ceil(self.chunk())..rows.end.div_ceil(self.chunk())
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
    /// Makes the chunks at these indexes of tables, all zero. Programs find their rows at once. With each the kernel waits for
    /// programs that are running, some 10 ms: so up to [`AT_A_TIME`] are added at the same time, and wait for the same.
    ///
    /// # Errors
    /// The kernel refused: most often its memory, or that of the agent's cgroup, is used up. None of these chunks is to be used.
    pub fn add_chunks(
        &mut self,
        chunks: &[(Table, u32)],
        mode: ReadMode,
    ) -> Result<Vec<(Table, u32, Region)>, MapAccessError> {
        let mut regions = Vec::with_capacity(chunks.len());
        for some in chunks.chunks(AT_A_TIME) {
            regions.extend(self.add_some(some, mode)?);
        }
        Ok(regions)
    }

    fn add_some(
        &mut self,
        chunks: &[(Table, u32)],
        mode: ReadMode,
    ) -> Result<Vec<(Table, u32, Region)>, MapAccessError> {
        let make = |(table, index): &(Table, u32)| {
            let (name, element, entries) = (table.map(), table.row_size(), table.chunk());
            let inner = create(name, [ARRAY, 4, element as u32, entries, MMAPABLE])?;
            let region = Region::open(inner.fd().as_fd(), element, entries, mode);
            Ok((*table, *index, inner, region.map_err(MapAccessError::of(name))?))
        };
        let new: Vec<_> = chunks.iter().map(make).collect::<Result<_, MapAccessError>>()?;
        std::thread::scope(|scope| {
            let mut adding = Vec::new();
            for (table, index, inner, _) in &new {
                let (name, outer, inner) = (table.map(), self.outer(table.map())?, inner.fd().as_fd());
                adding.push(scope.spawn(move || add_inner(name, outer, *index, inner)));
            }
            let panicked = |_| Err(MapAccessError { map: "a chunk", reason: "a thread panicked".into() });
            adding.into_iter().try_for_each(|added| added.join().unwrap_or_else(panicked))
        })?;
        let add = |(table, index, inner, region): (Table, u32, MapData, Region)| {
            self.count(table.map(), table.chunk(), memory_of(&inner));
            (table, index, region)
        };
        Ok(new.into_iter().map(add).collect())
    }

    /// Makes the second index of syscall rows.
    ///
    /// # Errors
    /// As [`Kernel::add_chunks`].
    pub fn add_second_index(&mut self, entries: u32) -> Result<(), MapAccessError> {
        let name = "SYS_INDEX_MORE";
        let inner = create(name, [HASH, 4, 4, entries, 0])?;
        add_inner(name, self.outer(name)?, 0, inner.fd().as_fd())?;
        self.count(name, entries, memory_of(&inner));
        Ok(())
    }

    /// The map that holds these maps.
    fn outer(&self, name: &'static str) -> Result<BorrowedFd<'_>, MapAccessError> {
        match self.ebpf.map(name) {
            Some(Map::ArrayOfMaps(outer)) => Ok(outer.fd().as_fd()),
            _ => Err(MapAccessError { map: name, reason: "no such map".into() }),
        }
    }

    /// Counts what was made in the sizes that are told.
    fn count(&mut self, name: &'static str, entries: u32, bytes: Option<u64>) {
        let Some(size) = self.sizes.iter_mut().find(|size| size.name == name) else { return };
        let MapSize { capacity, memory_bytes, .. } = size;
        *capacity += entries;
        *memory_bytes = memory_bytes.zip(bytes).map(|(before, more)| before + more);
    }
}

/// Puts a map into one of maps. The kernel returns when no program uses what was there before.
fn add_inner(
    name: &'static str,
    outer: BorrowedFd<'_>,
    index: u32,
    inner: BorrowedFd<'_>,
) -> Result<(), MapAccessError> {
    let refused = |reason: String| MapAccessError { map: name, reason };
    // Descriptors of their own: several threads do this at the same time.
    let own = |fd: BorrowedFd<'_>| {
        let fd = fd.try_clone_to_owned().map_err(|error| refused(error.to_string()))?;
        MapData::from_fd(fd).map_err(|error| refused(chain(&error)))
    };
    let outer: Result<ArrayOfMaps<MapData>, _> = Map::ArrayOfMaps(own(outer)?).try_into();
    let mut outer = outer.map_err(|error| refused(chain(&error)))?;
    outer.set(index, &own(inner)?, 0).map_err(|error| refused(chain(&error)))
}

/// Makes a map of this type, size of key and of value, number of entries, and with these flags.
fn create(
    name: &'static str,
    [map_type, key, value, entries, flags]: [u32; 5],
) -> Result<MapData, MapAccessError> {
    let map = aya_obj::Map::new_from_params(map_type, key, value, entries, flags);
    let reason = |error| MapAccessError { map: name, reason: chain(&error) };
    MapData::create(map, name, None).map_err(reason)
}
