//! In: a change of what programs look up; out: the change, made by a program. Knows keys, not what they mean.
//!
//! bpf(2) changes elements as well, but keeps programs from running on the CPU meanwhile: see `agent-ebpf/src/edit.rs`.

use std::ops::Range;

use aya::TestRun as _;
use aya::programs::{ProgramError, RawTracePoint, RawTracePointRunOptions};
use kernmeter_abi::{CgroupRef, edit};

use super::Kernel;
use super::maps::MapAccessError;
use super::rejection::Rejection;

/// Program that makes the change; never attached.
pub(super) const PROGRAM: &str = "edit";
/// The table of cgroups.
const CGROUPS: &str = "CGROUPS";

/// What is handed out by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Slots.
    Slots,
    /// Syscall rows.
    SyscallRows,
    /// Errno rows.
    ErrnoRows,
    /// Private syscall rows.
    PrivateSyscallRows,
    /// Private slot rows.
    PrivateSlotRows,
}

/// What becomes of a word of a CPU's sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It names a row no more, and no other either.
    Retire,
    /// It is free.
    Free,
}

impl Queue {
    /// Its map.
    const fn map(self) -> &'static str {
        match self {
            Self::Slots => "SLOT_FREE",
            Self::SyscallRows => "SYS_FREE",
            Self::ErrnoRows => "ERR_FREE",
            Self::PrivateSyscallRows => "SYS_PRIVATE",
            Self::PrivateSlotRows => "SLOT_PRIVATE",
        }
    }

    /// The change that puts a number into it.
    const fn push(self) -> u32 {
        match self {
            Self::Slots => edit::SLOT_PUSH,
            Self::SyscallRows => edit::SYSCALL_PUSH,
            Self::ErrnoRows => edit::ERRNO_PUSH,
            Self::PrivateSyscallRows => edit::PRIVATE_SYSCALL_PUSH,
            Self::PrivateSlotRows => edit::PRIVATE_SLOT_PUSH,
        }
    }
}

/// Changes of what programs look up. A key that is not there when it is to go is no error.
impl Kernel {
    /// Has the program make a change of a map: see [`edit`]. `None` if it says [`edit::NONE`].
    fn edit(
        &self,
        map: &'static str,
        change: u32,
        key: u64,
        value: u32,
    ) -> Result<Option<u32>, MapAccessError> {
        let refused = |error: ProgramError| MapAccessError { map, reason: Rejection::of(&error).to_string() };
        let program = self.ebpf.program(PROGRAM).ok_or(ProgramError::NotLoaded).map_err(refused)?;
        let program: &RawTracePoint = program.try_into().map_err(refused)?;
        let mut options = RawTracePointRunOptions::new();
        options.args[..3].copy_from_slice(&[change.into(), key, value.into()]);
        let result = program.test_run(options).map_err(refused)?.return_value;
        Ok((result != edit::NONE).then_some(result))
    }

    /// Where a cgroup's events go; `None` if it has no entry.
    ///
    /// # Errors
    /// The kernel refused to run the program; so with all that follow.
    pub fn cgroup(&self, id: u64) -> Result<Option<CgroupRef>, MapAccessError> {
        Ok(self.edit(CGROUPS, edit::CGROUP_GET, id, 0)?.map(CgroupRef::unpack))
    }

    /// Says where a cgroup's events go. False if the table is full.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn set_cgroup(&self, id: u64, own: CgroupRef) -> Result<bool, MapAccessError> {
        Ok(self.edit(CGROUPS, edit::CGROUP_SET, id, own.pack())?.is_some())
    }

    /// The same for a cgroup that has no entry; false also if it has one.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn add_cgroup(&self, id: u64, own: CgroupRef) -> Result<bool, MapAccessError> {
        Ok(self.edit(CGROUPS, edit::CGROUP_ADD, id, own.pack())?.is_some())
    }

    /// Lets programs forget a cgroup.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn remove_cgroup(&self, id: u64) -> Result<(), MapAccessError> {
        self.edit(CGROUPS, edit::CGROUP_REMOVE, id, 0).map(drop)
    }

    /// Lets programs forget a syscall row's key.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn remove_syscall(&self, key: u32) -> Result<(), MapAccessError> {
        self.edit("SYS_INDEX", edit::SYSCALL_REMOVE, key.into(), 0).map(drop)
    }

    /// Lets programs forget an errno row's key.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn remove_errno(&self, key: u64) -> Result<(), MapAccessError> {
        self.edit("ERR_INDEX", edit::ERRNO_REMOVE, key, 0).map(drop)
    }

    /// Takes a slot; `None` if none is free.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn pop_slot(&self) -> Result<Option<u32>, MapAccessError> {
        self.edit(Queue::Slots.map(), edit::SLOT_POP, 0, 0)
    }

    /// Retires a word that names a private row, or frees one that was retired: see [`kernmeter_abi::ways`].
    ///
    /// # Errors
    /// As [`Kernel::cgroup`].
    pub fn set_way(&self, way: u32, change: Way) -> Result<(), MapAccessError> {
        let change = match change {
            Way::Retire => edit::WAY_RETIRE,
            Way::Free => edit::WAY_FREE,
        };
        self.edit("SETS", change, way.into(), 0).map(drop)
    }

    /// Gives a number back to be handed out.
    ///
    /// # Errors
    /// As [`Kernel::cgroup`], or the queue is full.
    pub fn push(&self, queue: Queue, number: u32) -> Result<(), MapAccessError> {
        self.push_some(queue, number, 1)
    }

    fn push_some(&self, queue: Queue, first: u32, count: u32) -> Result<(), MapAccessError> {
        let refused = || MapAccessError { map: queue.map(), reason: "the queue is full".into() };
        self.edit(queue.map(), queue.push(), first.into(), count)?.map(drop).ok_or_else(refused)
    }

    /// Gives all these numbers to be handed out.
    ///
    /// # Errors
    /// As [`Kernel::push`].
    pub fn fill(&self, queue: Queue, numbers: Range<u32>) -> Result<(), MapAccessError> {
        let end = numbers.end;
        numbers
            .step_by(edit::PUSHED_AT_ONCE as usize)
            .try_for_each(|first| self.push_some(queue, first, (end - first).min(edit::PUSHED_AT_ONCE)))
    }
}
