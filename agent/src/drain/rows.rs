//! In: rows of one kind as they are; out: differences to the last look, summed over the parts of each. Remembers what was read;
//! gives nothing back to the programs.
//!
//! A row has one part that is always there, or one for each shard, and private parts that CPUs take and that are given back.
//! What a private part counted stays in the row's sums when it goes.

use std::collections::HashMap;
use std::io;

use kernmeter_abi::histogram::BUCKETS;

use super::batch::{Deltas, Subject};
use crate::catalog::RowKind;
use crate::kernel::region::Region;

/// What was read of a row last time.
struct Seen {
    slot: u32,
    subject: Subject,
    /// Sums over all parts there ever were of each counter.
    counters: Box<[u64]>,
    /// The part of these sums that parts counted which are gone.
    gone: Option<Box<[u64]>>,
    parts: Vec<Part>,
    /// Where it stands among the rows in use.
    place: usize,
}

/// Where some of a row's counts are.
struct Part {
    /// Its number in the table.
    row: u32,
    /// Counts of every bucket. They wrap at 2^32, so differences can be added up but counts cannot. A part that has counted
    /// nothing has none.
    buckets: Option<Box<[u32]>>,
    private: Option<Private>,
}

/// What is known of a private part.
struct Private {
    /// The word that names it.
    way: u32,
    /// Its counters, added up, when they were last read.
    sum: u64,
    /// Its events when they were last read.
    events: u64,
    /// When it last counted something, `CLOCK_MONOTONIC` nanoseconds.
    used_ns: u64,
    /// The pass that let its CPU forget it.
    retired: Option<u64>,
}

/// A private row that is nobody's any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    /// Its number in the table.
    pub row: u32,
    /// The word that named it.
    pub way: u32,
}

/// Events that rows counted, by where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    /// In private rows.
    pub private: u64,
    /// In rows that CPUs share.
    pub shared: u64,
}

/// The rows of one kind, in chunks of equal size, and what was read of those in use.
pub(super) struct Rows {
    /// Rows per chunk.
    chunk: u32,
    chunks: Vec<Option<Region>>,
    /// Byte offsets of the counters.
    counters: Vec<usize>,
    /// Byte offsets of the histograms' buckets.
    histograms: Vec<usize>,
    /// For each cell, in order: the place in `counters`, or in `histograms`.
    fields: Vec<Place>,
    /// Places in `counters` that together are the row's events.
    events: Vec<usize>,
    seen: HashMap<u32, Box<Seen>>,
    /// Rows in use.
    used: Vec<u32>,
    of_slot: HashMap<u32, Vec<u32>>,
    /// The counters of the row that is being read.
    now: Vec<u64>,
    additions: Additions,
    private_parts: u32,
}

#[derive(Clone, Copy)]
enum Place {
    Counter(usize),
    Histogram(usize),
}

impl Rows {
    /// Rows that nobody uses yet, of which there are none. The counters at the byte offsets `events` are what one event adds
    /// one to.
    pub(super) fn new(kind: RowKind, chunk: u32, events: &[usize]) -> Rows {
        let (mut counters, mut histograms, mut fields) = (Vec::new(), Vec::new(), Vec::new());
        for field in kind.fields() {
            if field.size == 8 {
                fields.push(Place::Counter(counters.len()));
                counters.push(field.offset);
            } else {
                fields.push(Place::Histogram(histograms.len()));
                histograms.push(field.offset);
            }
        }
        let place = |offset: &usize| counters.iter().position(|counter| counter == offset);
        Rows {
            chunk,
            chunks: Vec::new(),
            now: vec![0; counters.len()],
            events: events.iter().filter_map(place).collect(),
            counters,
            histograms,
            fields,
            seen: HashMap::new(),
            used: Vec::new(),
            of_slot: HashMap::new(),
            additions: Additions::default(),
            private_parts: 0,
        }
    }

    /// Adds the chunk at an index.
    pub(super) fn add_chunk(&mut self, index: u32, region: Region) {
        let index = index as usize;
        if self.chunks.len() <= index {
            self.chunks.resize_with(index + 1, || None);
        }
        self.chunks[index] = Some(region);
    }

    /// Brings copied chunks up to date.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.chunks.iter_mut().flatten().try_for_each(Region::refresh)
    }

    /// Whether the kernel's memory is read directly.
    pub(super) fn is_mapped(&self) -> bool {
        self.chunks.iter().flatten().all(Region::is_mapped)
    }

    /// Rows in use, private parts not counted.
    pub(super) fn len(&self) -> u32 {
        self.used.len() as u32
    }

    /// Private parts in use.
    pub(super) fn private_parts(&self) -> u32 {
        self.private_parts
    }

    /// Events counted so far, by where.
    pub(super) fn additions(&self) -> Additions {
        self.additions
    }

    /// Reads this row from now on, if it is not read yet. Its parts are always there.
    pub(super) fn meet(&mut self, row: u32, slot: u32, subject: Subject, parts: impl Iterator<Item = u32>) {
        if self.seen.contains_key(&row) {
            return;
        }
        let seen = Seen {
            slot,
            subject,
            counters: vec![0; self.counters.len()].into(),
            gone: None,
            parts: parts.map(|row| Part { row, buckets: None, private: None }).collect(),
            place: self.used.len(),
        };
        self.seen.insert(row, Box::new(seen));
        self.used.push(row);
        self.of_slot.entry(slot).or_default().push(row);
    }

    /// Reads a private part of a row from now on. False if the row is not read.
    pub(super) fn meet_private(&mut self, row: u32, part: u32, way: u32, now_ns: u64) -> bool {
        let Some(seen) = self.seen.get_mut(&row) else { return false };
        let private = Private { way, sum: 0, events: 0, used_ns: now_ns, retired: None };
        seen.parts.push(Part { row: part, buckets: None, private: Some(private) });
        self.private_parts += 1;
        true
    }

    /// The last sum of the counter at a byte offset of a row; 0 if the row is not in use.
    pub(super) fn last(&self, row: u32, offset: usize) -> u64 {
        let place = self.counters.iter().position(|counter| *counter == offset);
        self.seen.get(&row).zip(place).map_or(0, |(seen, place)| seen.counters[place])
    }

    /// Writes what every row in use counted since the last look into `deltas`.
    pub(super) fn read(&mut self, now_ns: u64, deltas: &mut Deltas) {
        let at = |chunks: &[Option<Region>], row: u32, offset: usize| {
            chunks[(row / self.chunk) as usize]
                .as_ref()
                .map_or(0, |region| region.load(row % self.chunk, offset))
        };
        for row in &self.used {
            let Some(seen) = self.seen.get_mut(row) else { continue };
            match &seen.gone {
                Some(gone) => self.now.copy_from_slice(gone),
                None => self.now.fill(0),
            }
            let mut in_private = 0u64;
            for part in &mut seen.parts {
                let (mut sum, mut events) = (0u64, 0u64);
                for (place, offset) in self.counters.iter().enumerate() {
                    let count = at(&self.chunks, part.row, *offset);
                    self.now[place] = self.now[place].wrapping_add(count);
                    if part.private.is_some() {
                        sum = sum.wrapping_add(count);
                        if self.events.contains(&place) {
                            events = events.wrapping_add(count);
                        }
                    }
                }
                if let Some(private) = &mut part.private
                    && sum != private.sum
                {
                    in_private += events.wrapping_sub(private.events);
                    (private.sum, private.events, private.used_ns) = (sum, events, now_ns);
                }
            }
            // No event reaches a histogram's buckets without reaching a counter.
            if *self.now == *seen.counters {
                continue;
            }
            let all = self.events.iter().fold(0u64, |sum, place| {
                sum.wrapping_add(self.now[*place].wrapping_sub(seen.counters[*place]))
            });
            self.additions.private += in_private;
            self.additions.shared += all.saturating_sub(in_private);
            let mut rest = deltas.push(seen.slot, seen.subject);
            for field in &self.fields {
                match *field {
                    Place::Counter(place) => {
                        rest[0] = self.now[place].wrapping_sub(seen.counters[place]);
                        rest = &mut rest[1..];
                    }
                    Place::Histogram(place) => {
                        let (cells, behind) = rest.split_at_mut(BUCKETS);
                        for part in &mut seen.parts {
                            let Some(region) = &self.chunks[(part.row / self.chunk) as usize] else {
                                continue;
                            };
                            let histogram = Buckets {
                                region,
                                index: part.row % self.chunk,
                                offset: self.histograms[place],
                                first: place * BUCKETS,
                                all: self.histograms.len() * BUCKETS,
                            };
                            histogram.read(&mut part.buckets, cells);
                        }
                        rest = behind;
                    }
                }
            }
            seen.counters.copy_from_slice(&self.now);
        }
    }

    /// Lets go of private parts that counted nothing since `before_ns`, at most so many: the words to be retired. Others may
    /// still be adding to them.
    pub(super) fn retire(&mut self, pass: u64, before_ns: u64, most: usize) -> Vec<u32> {
        let parts = self.seen.values_mut().flat_map(|seen| &mut seen.parts);
        let idle = parts.filter_map(|part| {
            part.private.as_mut().filter(|private| private.retired.is_none() && private.used_ns < before_ns)
        });
        let retire = |private: &mut Private| {
            private.retired = Some(pass);
            private.way
        };
        idle.take(most).map(retire).collect()
    }

    /// Ends private parts that were let go of before this pass, which has read them: nobody has added to them since.
    pub(super) fn end_retired(&mut self, pass: u64) -> Vec<Gone> {
        let mut ended = Vec::new();
        for seen in self.seen.values_mut() {
            let Seen { parts, gone, .. } = &mut **seen;
            parts.retain(|part| {
                let Some(Private { way, retired: Some(since), .. }) = part.private else { return true };
                if since >= pass {
                    return true;
                }
                let gone = gone.get_or_insert_with(|| vec![0; self.counters.len()].into());
                for (sum, offset) in gone.iter_mut().zip(&self.counters) {
                    let region = self.chunks[(part.row / self.chunk) as usize].as_ref();
                    let count = region.map_or(0, |region| region.load(part.row % self.chunk, *offset));
                    *sum = sum.wrapping_add(count);
                }
                ended.push(Gone { row: part.row, way });
                false
            });
        }
        self.private_parts -= ended.len() as u32;
        ended
    }

    /// Forgets all rows of a slot: these, and their private parts.
    pub(super) fn forget(&mut self, slot: u32) -> (Vec<(u32, Subject)>, Vec<Gone>) {
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for row in self.of_slot.remove(&slot).unwrap_or_default() {
            let Some(seen) = self.seen.remove(&row) else { continue };
            rows.push((row, seen.subject));
            let private =
                |part: &Part| part.private.as_ref().map(|private| Gone { row: part.row, way: private.way });
            parts.extend(seen.parts.iter().filter_map(private));
            self.used.swap_remove(seen.place);
            let moved = self.used.get(seen.place).and_then(|row| self.seen.get_mut(row));
            if let Some(moved) = moved {
                moved.place = seen.place;
            }
        }
        self.private_parts -= parts.len() as u32;
        (rows, parts)
    }

    /// Sets a row of the table to zero. Only for rows that no program can find.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub(super) fn clear(&mut self, row: u32) -> io::Result<()> {
        let region = self.chunks[(row / self.chunk) as usize].as_mut();
        region.map_or(Ok(()), |region| region.clear(row % self.chunk))
    }
}

/// A histogram of one part.
struct Buckets<'a> {
    region: &'a Region,
    index: u32,
    /// Byte offset of its first bucket.
    offset: usize,
    /// Its first bucket among those of all histograms of the row.
    first: usize,
    /// Buckets of all histograms of the row.
    all: usize,
}

impl Buckets<'_> {
    /// Adds to `cells` what the buckets counted since `last`, which becomes what they are now.
    fn read(&self, last: &mut Option<Box<[u32]>>, cells: &mut [u64]) {
        for (i, cell) in cells.iter_mut().enumerate() {
            let now = self.region.load_u32(self.index, self.offset + 4 * i);
            let before = last.as_ref().map_or(0, |last| last[self.first + i]);
            if now == before {
                continue;
            }
            *cell += u64::from(now.wrapping_sub(before));
            last.get_or_insert_with(|| vec![0; self.all].into())[self.first + i] = now;
        }
    }
}

#[cfg(test)]
mod tests;
