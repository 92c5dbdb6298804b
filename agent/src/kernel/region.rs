//! In: an array map; out: aligned loads and stores of its elements. Knows bytes and offsets, not what they count.
//!
//! The map is shared memory with the kernel: loads are relaxed atomics of aligned words, so that a counter is never torn.
//! Where the kernel refuses the mapping, the map is copied by batched lookups before each pass instead.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::ReadMode;

enum Memory {
    Mapped { base: NonNull<u8>, len: usize },
    Copied { words: Vec<u64> },
}

/// The elements of one array map.
pub struct Region {
    memory: Memory,
    fd: OwnedFd,
    element: usize,
    entries: u32,
}

// SAFETY: the mapping is plain shared memory owned by this value; all access is by atomics or exclusive borrow.
unsafe impl Send for Region {}

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
    /// Opens a map of `entries` elements of `element` bytes (a multiple of 8), the sizes it was created with.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated, or neither mapping nor copying works.
    pub fn open(fd: BorrowedFd<'_>, element: usize, entries: u32, mode: ReadMode) -> io::Result<Region> {
        assert_eq!(element % 8, 0, "array elements are laid out in words of 8 bytes");
        let fd = fd.try_clone_to_owned()?;
        let len = element * entries as usize;
        let mapped = match mode {
            ReadMode::Auto => map(fd.as_fd(), len),
            ReadMode::Batch => None,
        };
        let memory = match mapped {
            Some(base) => Memory::Mapped { base, len },
            None => Memory::Copied { words: vec![0; len / 8] },
        };
        let mut region = Region { memory, fd, element, entries };
        region.refresh()?;
        Ok(region)
    }

    /// Whether the kernel's memory is read directly.
    pub fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped { .. })
    }

    /// Brings a copied region up to date; does nothing for a mapped one.
    ///
    /// # Errors
    /// The kernel refused the lookup.
    pub fn refresh(&mut self) -> io::Result<()> {
        let Memory::Copied { words } = &mut self.memory else { return Ok(()) };
        let mut keys = vec![0u32; self.entries as usize];
        let mut last = 0u32;
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: (&raw mut last) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: words.as_mut_ptr() as u64,
            count: self.entries,
            map_fd: self.fd.as_raw_fd() as u32,
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

    fn word(&self, index: u32, offset: usize) -> *mut u64 {
        assert!(index < self.entries && offset + 8 <= self.element && offset.is_multiple_of(8));
        let at = index as usize * self.element + offset;
        match &self.memory {
            // SAFETY: `at` is inside the mapping, by the assertion above.
            Memory::Mapped { base, .. } => unsafe { base.as_ptr().add(at).cast() },
            Memory::Copied { words } => words[at / 8..].as_ptr().cast_mut(),
        }
    }

    /// The word at `offset` bytes of an element.
    pub fn load(&self, index: u32, offset: usize) -> u64 {
        // SAFETY: an aligned word inside the memory; the kernel writes it with aligned stores.
        unsafe { AtomicU64::from_ptr(self.word(index, offset)) }.load(Ordering::Relaxed)
    }

    /// The half word at `offset` bytes of an element.
    pub fn load_u32(&self, index: u32, offset: usize) -> u32 {
        let word = self.word(index, offset & !7);
        // SAFETY: an aligned half of a word inside the memory.
        unsafe { AtomicU32::from_ptr(word.cast::<u32>().add(offset / 4 % 2)) }.load(Ordering::Relaxed)
    }

    /// The bytes at `offset` of an element; `len` is a multiple of 8.
    pub fn bytes(&self, index: u32, offset: usize, len: usize) -> Vec<u8> {
        (0..len / 8).flat_map(|i| self.load(index, offset + 8 * i).to_ne_bytes()).collect()
    }

    /// Writes a whole element. Only for elements that no program writes at this time.
    ///
    /// # Errors
    /// The kernel refused the update (copied regions only).
    pub fn store(&mut self, index: u32, element: &[u64]) -> io::Result<()> {
        assert_eq!(element.len() * 8, self.element);
        for (i, value) in element.iter().enumerate() {
            let word = self.word(index, 8 * i);
            // SAFETY: an aligned word inside the memory.
            unsafe { AtomicU64::from_ptr(word) }.store(*value, Ordering::Release);
        }
        if self.is_mapped() {
            return Ok(());
        }
        let attr = ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const index) as u64,
            value: element.as_ptr() as u64,
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

    /// Sets a whole element to zero. Only for elements that no program writes at this time.
    ///
    /// # Errors
    /// As [`store`](Region::store).
    pub fn clear(&mut self, index: u32) -> io::Result<()> {
        self.store(index, &vec![0; self.element / 8])
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Memory::Mapped { base, len } = self.memory {
            // SAFETY: exactly the mapping made in `map`, which nobody else holds.
            unsafe { libc::munmap(base.as_ptr().cast(), len) };
        }
    }
}

fn map(fd: BorrowedFd<'_>, len: usize) -> Option<NonNull<u8>> {
    // SAFETY: a new shared mapping of a map of this size; the kernel checks the rest.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast()) }
}
