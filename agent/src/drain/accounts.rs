//! In: what accounts took and were given back; out: what each holds, what is free. Knows no slot's life and no tenants.

use std::io;

use kernmeter_abi::{Holdings, RESOURCES, Resource, may_take};

use crate::kernel::region::Region;

/// Accounts and the pool: see [`Holdings`].
pub(super) struct Accounts {
    /// Written by the programs alone.
    taken: Region,
    /// Written here alone.
    given: Region,
    /// The element behind those of the slots.
    pool: u32,
}

impl Accounts {
    /// Accounts that hold nothing, for `slots` slots, and a pool that has nothing.
    pub(super) fn new(taken: Region, given: Region, slots: u32) -> Accounts {
        Accounts { taken, given, pool: slots }
    }

    /// Puts more of a resource into the pool.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub(super) fn add(&mut self, resource: Resource, count: u64) -> io::Result<()> {
        self.give_to(self.pool, resource, count)
    }

    /// Brings copies up to date.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.taken.refresh()
    }

    /// What an account holds.
    pub(super) fn held(&self, account: u32, resource: Resource) -> u64 {
        let offset = size_of::<u64>() * resource as usize;
        self.taken.load(account, offset).wrapping_sub(self.given.load(account, offset))
    }

    /// What nobody holds.
    pub(super) fn free(&self, resource: Resource) -> u64 {
        self.held(self.pool, resource).wrapping_neg()
    }

    /// Slots that ever went to accounts of their own, while the agent ran.
    pub(super) fn root_slots(&self) -> u64 {
        self.taken.load(self.pool, size_of::<u64>() * Resource::RootSlots as usize)
    }

    /// Whether an account may have another one.
    pub(super) fn allows(&self, account: u32, resource: Resource) -> bool {
        may_take(self.held(account, resource), self.free(resource))
    }

    /// Whether there is one left for an account that holds none.
    pub(super) fn is_left(&self, resource: Resource) -> bool {
        may_take(0, self.free(resource))
    }

    /// Gives back what an account held.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub(super) fn give(&mut self, account: u32, resource: Resource, count: u64) -> io::Result<()> {
        self.give_to(account, resource, count)?;
        self.give_to(self.pool, resource, count)
    }

    fn give_to(&mut self, element: u32, resource: Resource, count: u64) -> io::Result<()> {
        let mut values: [u64; RESOURCES] =
            std::array::from_fn(|i| self.given.load(element, size_of::<u64>() * i));
        values[resource as usize] = values[resource as usize].wrapping_add(count);
        self.given.store(element, &values)
    }

    /// Puts one on an account, which the agent takes for it.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub(super) fn charge(&mut self, account: u32, resource: Resource) -> io::Result<()> {
        self.give(account, resource, u64::MAX)
    }
}

const _: () = assert!(size_of::<Holdings>() == RESOURCES * size_of::<u64>());
