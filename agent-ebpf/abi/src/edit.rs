//! The changes of tables and queues that the agent has the program `edit` make: arguments are one of these, a key, a value. The
//! result is 0, or what is said here, or [`NONE`]. Knows no map handles.

/// What was asked for is not there, or the kernel refused.
pub const NONE: u32 = u32::MAX;

/// Numbers that one change gives back at most.
pub const PUSHED_AT_ONCE: u32 = 16;

/// Where a cgroup's events go, packed: the key is its id.
pub const CGROUP_GET: u32 = 0;
/// Says where a cgroup's events go: the value is packed.
pub const CGROUP_SET: u32 = 1;
/// The same for a cgroup that has no entry yet.
pub const CGROUP_ADD: u32 = 2;
/// Removes a cgroup's entry.
pub const CGROUP_REMOVE: u32 = 3;
/// Removes the key of a syscall row.
pub const SYSCALL_REMOVE: u32 = 4;
/// Removes the key of an errno row.
pub const ERRNO_REMOVE: u32 = 5;
/// Takes a free slot: its number.
pub const SLOT_POP: u32 = 6;
/// Gives slots back: as many as the value says, at most [`PUSHED_AT_ONCE`], with numbers from the key on.
pub const SLOT_PUSH: u32 = 7;
/// The same for syscall rows.
pub const SYSCALL_PUSH: u32 = 8;
/// The same for errno rows.
pub const ERRNO_PUSH: u32 = 9;
/// The same for private syscall rows.
pub const PRIVATE_SYSCALL_PUSH: u32 = 10;
/// The same for private slot rows.
pub const PRIVATE_SLOT_PUSH: u32 = 11;
/// Retires a word that names a private row: the key is the word's number over all CPUs. See [`crate::ways`].
pub const WAY_RETIRE: u32 = 12;
/// Frees a word that was retired.
pub const WAY_FREE: u32 = 13;

#[cfg(test)]
mod tests {
    use super::NONE;
    use crate::{CgroupRef, MAX_SLOTS};

    #[test]
    fn what_a_cgroup_is_bound_to_is_one_number() {
        for slot in [0, 1, MAX_SLOTS - 1] {
            for flags in 0..=CgroupRef::INHERIT | CgroupRef::POD {
                let own = CgroupRef { slot, flags };
                assert_eq!(CgroupRef::unpack(own.pack()), own);
                assert_ne!(own.pack(), NONE);
            }
        }
    }
}
