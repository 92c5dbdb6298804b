//! In: a change of what programs look up; out: the change, made by a program. Knows keys, not what they mean.
//!
//! bpf(2) changes elements as well, but keeps programs from running on the CPU meanwhile: see `agent-ebpf/src/edit.rs`.

use std::ops::Range;

use aya::TestRun as _;
use aya::maps::MapData;
use aya::programs::{RawTracePoint, RawTracePointRunOptions};
use kernmeter_abi::{CgroupRef, edit};

use super::Kernel;
use super::maps::MapAccessError;
use super::rejection::{Rejection, chain};

/// Program that makes the change; never attached.
pub(super) const PROGRAM: &str = "edit";

/// What is handed out by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Slots.
    Slots,
    /// Syscall rows.
    SyscallRows,
    /// Errno rows.
    ErrnoRows,
}

impl Queue {
    /// Its map.
    const fn map(self) -> &'static str {
        match self {
            Self::Slots => "SLOT_FREE",
            Self::SyscallRows => "SYS_FREE",
            Self::ErrnoRows => "ERR_FREE",
        }
    }

    /// The change that puts a number into it.
    const fn push(self) -> u32 {
        match self {
            Self::Slots => edit::SLOT_PUSH,
            Self::SyscallRows => edit::SYSCALL_PUSH,
            Self::ErrnoRows => edit::ERRNO_PUSH,
        }
    }
}

/// A change of a table or a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    CgroupGet(u64),
    CgroupSet(u64, CgroupRef),
    CgroupAdd(u64, CgroupRef),
    CgroupRemove(u64),
    SyscallRemove(u32),
    ErrnoRemove(u64),
    SlotPop,
    Push(Queue, u32),
}

impl Edit {
    /// As the program takes it.
    fn arguments(self) -> [u64; 3] {
        let (change, key, value) = match self {
            Self::CgroupGet(id) => (edit::CGROUP_GET, id, 0),
            Self::CgroupSet(id, own) => (edit::CGROUP_SET, id, own.pack()),
            Self::CgroupAdd(id, own) => (edit::CGROUP_ADD, id, own.pack()),
            Self::CgroupRemove(id) => (edit::CGROUP_REMOVE, id, 0),
            Self::SyscallRemove(key) => (edit::SYSCALL_REMOVE, key.into(), 0),
            Self::ErrnoRemove(key) => (edit::ERRNO_REMOVE, key, 0),
            Self::SlotPop => (edit::SLOT_POP, 0, 0),
            Self::Push(queue, number) => (queue.push(), number.into(), 0),
        };
        [change.into(), key, value.into()]
    }
}

/// Changes of what programs look up. A key that is not there when it is to go is no error.
impl Kernel {
    fn edit(&self, change: Edit) -> Result<Option<u32>, MapAccessError> {
        let refused = |reason: String| MapAccessError { map: PROGRAM, reason };
        let program: Result<&RawTracePoint, _> =
            self.ebpf.program(PROGRAM).ok_or_else(|| refused("no such program".into()))?.try_into();
        let program = program.map_err(|error| refused(Rejection::of(&error).to_string()))?;
        let mut options = RawTracePointRunOptions::new();
        options.args[..3].copy_from_slice(&change.arguments());
        let run = program.test_run(options).map_err(|error| refused(Rejection::of(&error).to_string()))?;
        Ok(Some(run.return_value).filter(|result| *result != edit::NONE))
    }

    /// Where a cgroup's events go; `None` if it has no entry.
    ///
    /// # Errors
    /// The kernel refused to run the program; so with all that follow.
    pub fn cgroup(&self, id: u64) -> Result<Option<CgroupRef>, MapAccessError> {
        Ok(self.edit(Edit::CgroupGet(id))?.map(CgroupRef::unpack))
    }

    /// Says where a cgroup's events go. False if the table is full.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn set_cgroup(&self, id: u64, own: CgroupRef) -> Result<bool, MapAccessError> {
        Ok(self.edit(Edit::CgroupSet(id, own))?.is_some())
    }

    /// The same for a cgroup that has no entry; false also if it has one.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn add_cgroup(&self, id: u64, own: CgroupRef) -> Result<bool, MapAccessError> {
        Ok(self.edit(Edit::CgroupAdd(id, own))?.is_some())
    }

    /// Lets programs forget a cgroup.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn remove_cgroup(&self, id: u64) -> Result<(), MapAccessError> {
        self.edit(Edit::CgroupRemove(id)).map(drop)
    }

    /// Lets programs forget a syscall row's key.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn remove_syscall(&self, key: u32) -> Result<(), MapAccessError> {
        self.edit(Edit::SyscallRemove(key)).map(drop)
    }

    /// Lets programs forget an errno row's key.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn remove_errno(&self, key: u64) -> Result<(), MapAccessError> {
        self.edit(Edit::ErrnoRemove(key)).map(drop)
    }

    /// Takes a slot; `None` if none is free.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn pop_slot(&self) -> Result<Option<u32>, MapAccessError> {
        self.edit(Edit::SlotPop)
    }

    /// Gives a number back to be handed out.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`], or the queue is full.
    pub fn push(&self, queue: Queue, number: u32) -> Result<(), MapAccessError> {
        let refused = || MapAccessError { map: queue.map(), reason: "the queue is full".into() };
        self.edit(Edit::Push(queue, number))?.map(drop).ok_or_else(refused)
    }

    /// Gives all these numbers to be handed out. Before programs are attached, as it goes by bpf(2).
    ///
    /// # Errors
    /// The kernel refused: there is no such queue, or it is full.
    pub fn fill(&mut self, queue: Queue, mut numbers: Range<u32>) -> Result<(), MapAccessError> {
        let refused = |reason: String| MapAccessError { map: queue.map(), reason };
        let map = self.ebpf.map_mut(queue.map()).ok_or_else(|| refused("no such map".into()))?;
        let map: Result<aya::maps::Queue<&mut MapData, u32>, _> = map.try_into();
        let mut map = map.map_err(|error| refused(chain(&error)))?;
        numbers.try_for_each(|number| map.push(number, 0)).map_err(|error| refused(chain(&error)))
    }
}
