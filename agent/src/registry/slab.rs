//! In: things; out: small numbers that stand for them, used again once free. Returns memory; knows nothing of what it holds.

/// Boxed, so that a place which stays free below one in use holds no more than a pointer.
pub(super) struct Slab<T> {
    places: Vec<Option<Box<T>>>,
    /// Free places that are not at the end; numbers past the end are out of date.
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub const fn new() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> u32 {
        let value = Some(Box::new(value));
        while let Some(id) = self.free.pop() {
            if let Some(place) = self.places.get_mut(id as usize) {
                *place = value;
                return id;
            }
        }
        self.places.push(value);
        self.places.len() as u32 - 1
    }

    pub fn remove(&mut self, id: u32) -> Option<T> {
        let gone = self.places.get_mut(id as usize)?.take()?;
        self.free.push(id);
        while let Some(None) = self.places.last() {
            self.places.pop();
        }
        // As many as there are places at most: the rest is out of date.
        if self.free.len() > self.places.len() {
            let end = self.places.len();
            self.free.retain(|id| (*id as usize) < end);
        }
        trim(&mut self.places);
        trim(&mut self.free);
        Some(*gone)
    }

    pub fn get(&self, id: u32) -> Option<&T> {
        self.places.get(id as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.places.get_mut(id as usize)?.as_deref_mut()
    }

    /// All there are, with their numbers, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.places).filter_map(|(id, place)| Some((id, place.as_deref()?)))
    }

    /// All numbers are below this.
    pub fn end(&self) -> usize {
        self.places.len()
    }
}

/// Up to this, unused capacity is not worth the work of giving it back.
const SMALL: usize = 64;

/// The capacity to shrink to, if so much is unused that some goes back. A quarter more than is in use stays: so many
/// additions or removals lie between two reallocations that each costs a constant.
pub(super) fn excess(len: usize, capacity: usize) -> Option<usize> {
    (capacity > SMALL && len < capacity / 3).then_some(len + len / 4)
}

pub(super) fn trim<T>(list: &mut Vec<T>) {
    if let Some(enough) = excess(list.len(), list.capacity()) {
        list.shrink_to(enough);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Numbers stay unique, what they stand for is found, and room goes back.
        #[test]
        fn as_a_map(steps in proptest::collection::vec((any::<bool>(), 0usize..300), 0..600)) {
            let (mut slab, mut model) = (Slab::new(), BTreeMap::new());
            for (n, (insert, at)) in steps.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(model.insert(slab.insert(n), n), None);
                } else if let Some((&id, _)) = model.iter().nth(at) {
                    prop_assert_eq!(slab.remove(id), model.remove(&id));
                    prop_assert_eq!(slab.remove(id), None);
                }
                prop_assert!(slab.iter().eq(model.iter().map(|(id, n)| (*id, n))));
                prop_assert_eq!(slab.end(), model.last_key_value().map_or(0, |(id, _)| *id as usize + 1));
                prop_assert!(slab.free.len() <= slab.end());
            }
            for (id, n) in model {
                prop_assert_eq!(slab.get(id), Some(&n));
                prop_assert_eq!(slab.get_mut(id).copied(), Some(n));
                slab.remove(id);
            }
            prop_assert_eq!(slab.end(), 0);
            prop_assert!(slab.places.capacity().max(slab.free.capacity()) <= SMALL);
        }
    }
}
