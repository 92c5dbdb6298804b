//! In: a change of what programs look up; out: the change, made by a program. Knows keys, not what they mean.
//!
//! bpf(2) changes elements as well, but keeps programs from running on the CPU meanwhile: see `agent-ebpf/src/edit.rs`.

use aya::TestRun as _;
use aya::programs::{RawTracePoint, RawTracePointRunOptions};
use kernmeter_abi::{CgroupRef, edit};

use super::Kernel;
use super::maps::MapAccessError;
use super::rejection::Rejection;

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
    Push { queue: Queue, first: u32, count: u32 },
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
            Self::Push { queue, first, count } => {
                let change = match queue {
                    Queue::Slots => edit::SLOT_PUSH,
                    Queue::SyscallRows => edit::SYSCALL_PUSH,
                    Queue::ErrnoRows => edit::ERRNO_PUSH,
                };
                (change, first.into(), count)
            }
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

    /// Gives `count` numbers from `first` on to be handed out.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`], or the queue is full.
    pub fn push(&self, queue: Queue, first: u32, count: u32) -> Result<(), MapAccessError> {
        let mut from = first;
        while from < first + count {
            let count = edit::MOST_PUSHES.min(first + count - from);
            if self.edit(Edit::Push { queue, first: from, count })?.is_none() {
                return Err(MapAccessError { map: PROGRAM, reason: format!("no room in {queue:?}") });
            }
            from += count;
        }
        Ok(())
    }
}
