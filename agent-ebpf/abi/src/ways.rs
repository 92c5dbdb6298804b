//! In: a small set of words that one CPU keeps of the rows it adds to, and a row's key; out: whether it has a private row for
//! it, or what becomes of the set. Knows no maps, and what is in no row.
//!
//! A row that several CPUs add to is written with atomic additions, and each takes the cache line away from the others: 230 to
//! 275 ns with two of them. So a CPU that adds to a row again and again gets a private one, whose additions are plain. Each CPU
//! has sets of [`WAYS`] words, and a key belongs to one set. A word is 0, or counts how often the CPU has added to the shared
//! row of a key, or names the private row.
//!
//! The CPU makes a word that is 0 or counts into another, and into one that names a row. Only the agent makes the latter into
//! another: [`RETIRED`], and once no program can be using the row any more, 0.

/// Words of a set.
pub const WAYS: usize = 4;

/// The set a key belongs to, of `mask + 1` sets. Rows are numbered from 0 on, so that their keys spread evenly.
#[inline(always)]
pub const fn set_of(key: u32, mask: u32) -> u32 {
    key & mask
}

/// The key of a slot's row. That of a syscall row is its number.
#[inline(always)]
pub const fn key_of_slot(slot: u32) -> u32 {
    slot | 1 << 31
}

/// The slot whose row a key is; `None` for the key of a syscall row.
pub const fn slot_of(key: u32) -> Option<u32> {
    if key & 1 << 31 == 0 { None } else { Some(key & !(1 << 31)) }
}

/// Set in a word that names a row.
const NAMES_ROW: u64 = 1 << 31;
/// Additions to the shared row that are worth a private one.
const WORTH: u64 = 8;
/// A word that is nobody's for now.
pub const RETIRED: u64 = (u32::MAX as u64) << 32 | NAMES_ROW;

/// The word of a key, without what it says.
#[inline(always)]
const fn tag(key: u32) -> u64 {
    (key as u64 + 1) << 32
}

/// The word that says that a key has this private row.
#[inline(always)]
pub const fn naming(key: u32, row: u32) -> u64 {
    tag(key) | NAMES_ROW | row as u64
}

/// The private row that a word names, if the word is this key's.
#[inline(always)]
pub const fn row_in(word: u64, key: u32) -> Option<u32> {
    if word & !(NAMES_ROW - 1) == tag(key) | NAMES_ROW { Some((word & (NAMES_ROW - 1)) as u32) } else { None }
}

/// The key and the private row that a word names.
pub const fn named(word: u64) -> Option<(u32, u32)> {
    if word & NAMES_ROW == 0 || word == RETIRED {
        return None;
    }
    Some((((word >> 32) - 1) as u32, (word & (NAMES_ROW - 1)) as u32))
}

/// What becomes of a set in which a key has no private row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: every word names a row.
    Nothing,
    /// The word at this place becomes another.
    Write(usize, u64),
    /// The word at this place may become one that names a row.
    Claim(usize),
}

/// One more addition to the shared row of a key. A key for which there is no word takes the place of another that is added to
/// less often: each time it finds none, that one's count goes down.
#[inline(always)]
pub fn step(word: impl Fn(usize) -> u64, key: u32) -> Step {
    let (mut free, mut rival) = (WAYS, WAYS);
    let mut place = 0;
    while place < WAYS {
        let word = word(place);
        let is_ours = word >> 32 == tag(key) >> 32;
        if is_ours && word & NAMES_ROW == 0 {
            return if u64::from(word as u32) < WORTH {
                Step::Write(place, word + 1)
            } else {
                Step::Claim(place)
            };
        }
        if word == 0 && free == WAYS {
            free = place;
        } else if word != 0 && word & NAMES_ROW == 0 {
            rival = place;
        }
        place += 1;
    }
    if free < WAYS {
        return Step::Write(free, tag(key) | 1);
    }
    if rival == WAYS {
        return Step::Nothing;
    }
    let other = word(rival);
    Step::Write(rival, if other as u32 <= 1 { tag(key) | 1 } else { other - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set, as a CPU keeps it: it gives a row whenever one may be had.
    fn add(set: &mut [u64; WAYS], key: u32, next_row: &mut u32) -> Option<u32> {
        if let Some(row) = set.iter().find_map(|word| row_in(*word, key)) {
            return Some(row);
        }
        match step(|place| set[place], key) {
            Step::Nothing => {}
            Step::Write(place, word) => set[place] = word,
            Step::Claim(place) => {
                set[place] = naming(key, *next_row);
                *next_row += 1;
            }
        }
        None
    }

    #[test]
    fn a_row_that_is_added_to_often_becomes_private() {
        let (mut set, mut next) = ([0; WAYS], 7);
        for _ in 0..=WORTH {
            assert_eq!(add(&mut set, 3, &mut next), None);
        }
        assert_eq!(add(&mut set, 3, &mut next), Some(7));
        assert_eq!(add(&mut set, 4, &mut next), None, "another key of the set");
        assert_eq!(row_in(naming(3, 7), 2), None);
    }

    #[test]
    fn keys_of_slots_and_of_rows_differ() {
        let slot = key_of_slot(5);
        assert_eq!(row_in(naming(slot, 1), 5), None);
        assert_eq!(row_in(naming(slot, 1), slot), Some(1));
        assert_eq!(set_of(slot, 0xff), set_of(5, 0xff));
        assert_eq!(named(naming(slot, 1)), Some((slot, 1)));
        assert_eq!(named(naming(0, 0)), Some((0, 0)));
        assert_eq!((named(RETIRED), named(0), named(tag(5) | 3)), (None, None, None));
        for key in [0, 5, slot, key_of_slot(crate::MAX_SLOTS - 1)] {
            assert_eq!(row_in(RETIRED, key), None);
            assert_eq!(row_in(0, key), None);
        }
    }

    #[test]
    fn rare_keys_do_not_drive_out_a_frequent_one() {
        let (mut set, mut next) = ([0; WAYS], 0);
        for i in 0..1000 {
            // Many keys once each, one of them every other time.
            add(&mut set, 100 + i, &mut next);
            add(&mut set, 1, &mut next);
            add(&mut set, 1, &mut next);
        }
        assert!(set.iter().any(|word| row_in(*word, 1).is_some()), "{set:x?}");
    }

    #[test]
    fn a_set_that_is_full_stays_as_it_is_until_a_word_is_given_back() {
        let (mut set, mut next) = ([0; WAYS], 0);
        for key in 0..5 {
            for _ in 0..20 {
                add(&mut set, key, &mut next);
            }
        }
        assert_eq!(next, 4, "four private rows");
        assert_eq!(step(|place| set[place], 4), Step::Nothing);
        set[2] = RETIRED;
        assert_eq!(step(|place| set[place], 4), Step::Nothing, "the agent still reads its row");
        assert_eq!(add(&mut set, 2, &mut next), None);
        set[2] = 0;
        for _ in 0..20 {
            add(&mut set, 4, &mut next);
        }
        assert!(set.iter().any(|word| row_in(*word, 4).is_some()), "{set:x?}");
    }
}
