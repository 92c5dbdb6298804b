//! In: an array map; out: aligned loads and stores of its elements. Knows bytes and offsets, not what they count.
//!
//! The map is shared memory with the kernel: loads are relaxed atomics of aligned words, so that a counter is never torn.
//! Where the kernel refuses the mapping, the map is copied by batched lookups before each pass instead.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, slice};

use crate::config::ReadMode;

/// The elements of one array map.
pub struct Region {
    memory: Memory,
    /// Of a copied region: a mapping needs none, and there may be hundreds.
    fd: Option<OwnedFd>,
    element: usize,
    entries: u32,
}

enum Memory {
    Mapped(Mapping),
    Copied(Box<[AtomicU64]>),
}

impl Memory {
    fn words(&self) -> &[AtomicU64] {
        match self {
            Memory::Mapped(mapping) => mapping.words(),
            Memory::Copied(words) => words,
        }
    }
}

/// Memory that is shared with the kernel. Unmapped when dropped.
struct Mapping {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is owned by this value and is accessed by atomics only, from whatever thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `words` words of what `flags` and `fd` name. `None` if the kernel refuses.
    fn new(words: usize, flags: libc::c_int, fd: libc::c_int) -> Option<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel checks the rest.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), words * 8, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0)
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(base.cast()).map(|base| Mapping { base, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words` words from `base`, page-aligned and mapped until `self` is dropped. The kernel writes them at
        // any time, with aligned stores, which atomics allow.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`, which nobody else holds.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * 8) };
    }
}

/// `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_LOOKUP_BATCH` of `include/uapi/linux/bpf.h`.
const UPDATE_ELEM: libc::c_long = 2;
const LOOKUP_BATCH: libc::c_long = 24;

/// `union bpf_attr`, the part for one element.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, the part for batches.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl Region {
    /// Opens a map of `entries` elements of `element` bytes, the sizes it was created with.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated, or neither mapping nor copying works.
    ///
    /// # Panics
    /// `element` is not a multiple of 8.
    pub fn open(fd: BorrowedFd<'_>, element: usize, entries: u32, mode: ReadMode) -> io::Result<Region> {
        assert_eq!(element % 8, 0, "array elements are laid out in words of 8 bytes");
        let fd = fd.try_clone_to_owned()?;
        let words = element / 8 * entries as usize;
        let mapped = match mode {
            ReadMode::Auto => Mapping::new(words, libc::MAP_SHARED, fd.as_raw_fd()),
            ReadMode::Batch => None,
        };
        let (memory, fd) = match mapped {
            Some(mapping) => (Memory::Mapped(mapping), None),
            None => (Memory::Copied((0..words).map(|_| AtomicU64::new(0)).collect()), Some(fd)),
        };
        let mut region = Region { memory, fd, element, entries };
        region.refresh()?;
        Ok(region)
    }

    /// Whether the kernel's memory is read directly.
    pub fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped(_))
    }

    /// Brings a copied region up to date; does nothing for a mapped one.
    ///
    /// # Errors
    /// The kernel refused the lookup.
    pub fn refresh(&mut self) -> io::Result<()> {
        let (Memory::Copied(words), Some(fd)) = (&mut self.memory, &self.fd) else { return Ok(()) };
        let mut keys = vec![0u32; self.entries as usize];
        let mut last = 0u32;
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: (&raw mut last).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: words.as_mut_ptr().expose_provenance() as u64,
            count: self.entries,
            map_fd: fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `attr` is laid out as the kernel expects and its pointers hold `entries` keys and values.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>() as libc::c_long)
        };
        // ENOENT says that the end of the map was reached, which is what was asked for.
        if done == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT) {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        assert!(index < self.entries && offset + 8 <= self.element && offset.is_multiple_of(8));
        &self.memory.words()[(index as usize * self.element + offset) / 8]
    }

    /// The word at `offset` bytes of an element.
    ///
    /// # Panics
    /// There is no such element, or no word at `offset`.
    pub fn load(&self, index: u32, offset: usize) -> u64 {
        self.word(index, offset).load(Ordering::Relaxed)
    }

    /// The half word at `offset` bytes of an element.
    ///
    /// # Panics
    /// There is no such element, or no half word at `offset`.
    pub fn load_u32(&self, index: u32, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        let word = self.load(index, offset & !7).to_ne_bytes();
        let (halves, _) = word.as_chunks();
        u32::from_ne_bytes(halves[offset % 8 / 4])
    }

    /// The bytes at `offset` of an element; `len` is a multiple of 8.
    pub fn bytes(&self, index: u32, offset: usize, len: usize) -> Vec<u8> {
        (0..len / 8).flat_map(|i| self.load(index, offset + 8 * i).to_ne_bytes()).collect()
    }

    /// Writes a whole element. Only for elements that no program writes at this time.
    ///
    /// # Errors
    /// The kernel refused the update (copied regions only).
    ///
    /// # Panics
    /// There is no such element, or it is of another size.
    pub fn store(&mut self, index: u32, element: &[u64]) -> io::Result<()> {
        assert_eq!(element.len() * 8, self.element);
        for (i, value) in element.iter().enumerate() {
            self.word(index, 8 * i).store(*value, Ordering::Release);
        }
        let Some(fd) = &self.fd else { return Ok(()) };
        let attr = ElementAttr {
            map_fd: fd.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const index).expose_provenance() as u64,
            value: element.as_ptr().expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: `attr` is laid out as the kernel expects; key and value have the map's sizes.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                UPDATE_ELEM,
                &raw const attr,
                size_of::<ElementAttr>() as libc::c_long,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// A region without a map behind it, all zero.
    #[cfg(test)]
    pub fn in_memory(element: usize, entries: u32) -> Region {
        let words = element / 8 * entries as usize;
        let memory = Memory::Copied((0..words).map(|_| AtomicU64::new(0)).collect());
        Region { memory, fd: None, element, entries }
    }

    /// Adds to the word at `offset` bytes of an element, as a program does.
    #[cfg(test)]
    pub fn add(&self, index: u32, offset: usize, value: u64) {
        self.word(index, offset).fetch_add(value, Ordering::Relaxed);
    }

    /// Sets a whole element to zero. Only for elements that no program writes at this time.
    ///
    /// # Errors
    /// As [`store`](Region::store).
    pub fn clear(&mut self, index: u32) -> io::Result<()> {
        self.store(index, &vec![0; self.element / 8])
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const ELEMENT: usize = 24;
    const ENTRIES: u32 = 3;
    const WORDS: usize = ELEMENT / 8 * ENTRIES as usize;

    /// What is at first in word `n`: other in both halves.
    fn word(n: u64) -> u64 {
        (n << 32) | (n + 100)
    }

    /// A region without a map behind it.
    fn region(memory: Memory) -> Region {
        let is_copied = matches!(memory, Memory::Copied(_));
        let fd = is_copied.then(|| File::open("/dev/null").unwrap().into());
        Region { memory, fd, element: ELEMENT, entries: ENTRIES }
    }

    fn copied() -> Region {
        region(Memory::Copied((0..WORDS as u64).map(|n| AtomicU64::new(word(n))).collect()))
    }

    fn mapped() -> Region {
        let mapping = Mapping::new(WORDS, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1).unwrap();
        for (n, at) in (0..).zip(mapping.words()) {
            at.store(word(n), Ordering::Relaxed);
        }
        region(Memory::Mapped(mapping))
    }

    #[test]
    fn elements_are_read_by_index_and_offset() {
        for region in [copied(), mapped()] {
            assert_eq!(region.load(0, 0), 100);
            assert_eq!(region.load(2, 16), word(8));
            assert_eq!((region.load_u32(1, 8), region.load_u32(1, 12)), (104, 4));
            assert_eq!(region.bytes(2, 8, 16), [word(7), word(8)].map(u64::to_ne_bytes).concat());
        }
    }

    #[test]
    fn elements_are_written_whole() {
        let mut region = mapped();
        region.store(1, &[1, 2, 3]).unwrap();
        assert_eq!([0, 8, 16].map(|offset| region.load(1, offset)), [1, 2, 3]);
        region.clear(1).unwrap();
        assert_eq!([0, 8, 16].map(|offset| region.load(1, offset)), [0; 3]);
        assert_eq!((region.load(0, 16), region.load(2, 0)), (word(2), word(6)), "others stay");
    }

    #[test]
    #[should_panic(expected = "index < self.entries")]
    fn an_index_behind_the_last_element_is_refused() {
        copied().load(ENTRIES, 0);
    }

    #[test]
    #[should_panic(expected = "offset + 8 <= self.element")]
    fn an_offset_behind_the_element_is_refused() {
        copied().load(0, ELEMENT);
    }
}
