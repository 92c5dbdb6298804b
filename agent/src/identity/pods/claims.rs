//! In: who lays claim to a key; out: the claimants in the order in which they came. Decides nothing between them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// A pod's place in the cache.
pub(super) type Index = u32;

/// The claimants of one key: nearly always one.
#[derive(Debug)]
pub(super) struct Claims {
    first: Index,
    /// Where the first claimant keeps what the key stands for; what that means is the owner's of the map.
    pub place: u32,
    others: Vec<Index>,
}

impl Claims {
    /// Who came first.
    pub fn first(&self) -> Index {
        self.first
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = Index> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }
}

/// Adds a claimant; one that is there keeps its place.
pub(super) fn claim<K: Eq + Hash>(map: &mut HashMap<K, Claims>, key: K, by: Index) {
    let claims = map.entry(key).or_insert_with(|| Claims { first: by, place: 0, others: Vec::new() });
    if !claims.iter().any(|other| other == by) {
        claims.others.push(by);
    }
}

/// Takes a claim back.
pub(super) fn release<K: Eq + Hash + Borrow<Q>, Q: Eq + Hash + ?Sized>(
    map: &mut HashMap<K, Claims>,
    key: &Q,
    by: Index,
) {
    let Some(claims) = map.get_mut(key) else { return };
    if claims.first != by {
        claims.others.retain(|other| *other != by);
    } else if claims.others.is_empty() {
        map.remove(key);
    } else {
        claims.first = claims.others.remove(0);
    }
}
