//! In: rows of one kind as they are; out: differences to the last look, summed over shards. Remembers what was read; gives
//! nothing back to the programs.

use std::io;

use kernmeter_abi::histogram::BUCKETS;

use super::batch::{Deltas, Subject};
use crate::catalog::RowKind;
use crate::kernel::region::Region;

/// What was read of a row last time.
struct Seen {
    slot: u32,
    subject: Subject,
    /// Sums over shards of each counter.
    counters: Box<[u64]>,
    /// Counts of every bucket by shard. They wrap at 2^32, so differences can be added up but counts cannot. A shard that has
    /// counted nothing has none.
    buckets: Box<[Option<Box<[u32]>>]>,
}

/// The rows of one kind, `[shard][row]`, and what was read of those in use.
pub(super) struct Rows {
    region: Region,
    /// Rows per shard.
    per_shard: u32,
    shards: u32,
    /// Byte offsets of the counters.
    counters: Vec<usize>,
    /// Byte offsets of the histograms' buckets.
    histograms: Vec<usize>,
    /// For each cell, in order: the place in `counters`, or in `histograms`.
    fields: Vec<Place>,
    seen: Vec<Option<Box<Seen>>>,
    /// Rows in use, in the order they were met.
    used: Vec<u32>,
    /// The counters of the row that is being read.
    now: Vec<u64>,
}

#[derive(Clone, Copy)]
enum Place {
    Counter(usize),
    Histogram(usize),
}

impl Rows {
    /// Rows that nobody uses yet.
    pub(super) fn new(kind: RowKind, region: Region, rows: u32, shards: u32) -> Rows {
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
        Rows {
            region,
            per_shard: rows,
            shards,
            now: vec![0; counters.len()],
            counters,
            histograms,
            fields,
            seen: (0..rows).map(|_| None).collect(),
            used: Vec::new(),
        }
    }

    /// Brings a copied region up to date.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.region.refresh()
    }

    /// Whether the kernel's memory is read directly.
    pub(super) fn is_mapped(&self) -> bool {
        self.region.is_mapped()
    }

    /// Rows in use.
    pub(super) fn len(&self) -> u32 {
        self.used.len() as u32
    }

    /// Reads this row from now on, if it is not read yet.
    pub(super) fn meet(&mut self, row: u32, slot: u32, subject: Subject) {
        if self.seen[row as usize].is_some() {
            return;
        }
        let shards = if self.histograms.is_empty() { 0 } else { self.shards };
        self.seen[row as usize] = Some(Box::new(Seen {
            slot,
            subject,
            counters: vec![0; self.counters.len()].into(),
            buckets: (0..shards).map(|_| None).collect(),
        }));
        self.used.push(row);
    }

    /// The last sum of the counter at a byte offset of a row; 0 if the row is not in use.
    pub(super) fn last(&self, row: u32, offset: usize) -> u64 {
        let place = self.counters.iter().position(|counter| *counter == offset);
        let seen = self.seen[row as usize].as_ref();
        seen.zip(place).map_or(0, |(seen, place)| seen.counters[place])
    }

    /// Writes what every row in use counted since the last look into `deltas`.
    pub(super) fn read(&mut self, deltas: &mut Deltas) {
        for row in &self.used {
            let Some(seen) = &mut self.seen[*row as usize] else { continue };
            for (now, offset) in self.now.iter_mut().zip(&self.counters) {
                *now = (0..self.shards).fold(0u64, |sum, shard| {
                    sum.wrapping_add(self.region.load(shard * self.per_shard + row, *offset))
                });
            }
            // No event reaches a histogram's buckets without reaching a counter.
            if *self.now == *seen.counters {
                continue;
            }
            let mut rest = deltas.push(seen.slot, seen.subject);
            for field in &self.fields {
                match *field {
                    Place::Counter(place) => {
                        rest[0] = self.now[place].wrapping_sub(seen.counters[place]);
                        rest = &mut rest[1..];
                    }
                    Place::Histogram(place) => {
                        let (cells, behind) = rest.split_at_mut(BUCKETS);
                        for (shard, last) in seen.buckets.iter_mut().enumerate() {
                            let index = shard as u32 * self.per_shard + row;
                            read_buckets(
                                &self.region,
                                index,
                                self.histograms[place],
                                place,
                                self.histograms.len(),
                                last,
                                cells,
                            );
                        }
                        rest = behind;
                    }
                }
            }
            seen.counters.copy_from_slice(&self.now);
        }
    }

    /// Forgets all rows of a slot and returns them.
    pub(super) fn forget(&mut self, slot: u32) -> Vec<(u32, Subject)> {
        let mut forgotten = Vec::new();
        self.used.retain(|row| {
            let entry = &mut self.seen[*row as usize];
            match entry {
                Some(seen) if seen.slot == slot => {
                    forgotten.push((*row, seen.subject));
                    *entry = None;
                    false
                }
                _ => true,
            }
        });
        forgotten
    }

    /// Sets a row to zero on every shard. Only for rows that no program can find.
    ///
    /// # Errors
    /// The kernel refused access to the map.
    pub(super) fn clear(&mut self, row: u32) -> io::Result<()> {
        (0..self.shards).try_for_each(|shard| self.region.clear(shard * self.per_shard + row))
    }
}

/// Adds to `cells` what the buckets at `offset` of one shard's row counted since `last`, which becomes what they are now.
/// `place` is the histogram's number among the `histograms` of the row.
fn read_buckets(
    region: &Region,
    index: u32,
    offset: usize,
    place: usize,
    histograms: usize,
    last: &mut Option<Box<[u32]>>,
    cells: &mut [u64],
) {
    for (i, cell) in cells.iter_mut().enumerate() {
        let now = region.load_u32(index, offset + 4 * i);
        let before = last.as_ref().map_or(0, |last| last[place * BUCKETS + i]);
        if now == before {
            continue;
        }
        *cell += u64::from(now.wrapping_sub(before));
        let last = last.get_or_insert_with(|| vec![0; histograms * BUCKETS].into());
        last[place * BUCKETS + i] = now;
    }
}
