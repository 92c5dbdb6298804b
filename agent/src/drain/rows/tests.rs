//! In: random additions of several CPUs, passes, private rows that come and go, slots that are freed; out: whether what was
//! read is what was added, row for row.

use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;

use kernmeter_abi::SyscallRow;
use kernmeter_abi::ways::{self, Step, WAYS};
use proptest::prelude::*;

use super::*;

const CPUS: usize = 3;
/// Shared rows, and the most private ones: too few for every CPU and row.
const SHARED: u32 = 6;
const PRIVATE: u32 = 8;
const CHUNK: u32 = 8;
const SETS: usize = 2;

/// What happens next.
#[derive(Clone, Debug)]
enum Happens {
    /// A CPU adds to a row so many times.
    Adds { cpu: usize, row: u32, times: u8 },
    /// A CPU looks a row up, and adds to what it found after whatever comes next.
    AddsLate { cpu: usize, row: u32 },
    /// The agent reads. Private rows that counted nothing since so many passes are taken back.
    Pass { idle: u64 },
    /// The slot that a row belongs to is given to somebody else.
    Frees { row: u32 },
}

fn happens() -> impl Strategy<Value = Happens> {
    let (cpu, row) = (0..CPUS, 0..SHARED);
    prop_oneof![
        8 => (cpu.clone(), row.clone(), 1..30u8).prop_map(|(cpu, row, times)| Happens::Adds { cpu, row, times }),
        2 => (cpu, row.clone()).prop_map(|(cpu, row)| Happens::AddsLate { cpu, row }),
        4 => (0..3u64).prop_map(|idle| Happens::Pass { idle }),
        1 => row.prop_map(|row| Happens::Frees { row }),
    ]
}

/// CPUs, rows and the agent. Row `n` is slot `n`'s, and holds the calls of a system call that changes with its owner.
struct Model {
    rows: Rows,
    deltas: Deltas,
    sets: [[[u64; WAYS]; SETS]; CPUS],
    known: Vec<bool>,
    free: VecDeque<u32>,
    owner: [u32; SHARED as usize],
    pass: u64,
    /// Where a CPU that looked a row up will add.
    late: Vec<(u32, u32)>,
    added: BTreeMap<(u32, u32), u64>,
    read: BTreeMap<(u32, u32), u64>,
    was_private: u64,
}

const CALLS: usize = offset_of!(SyscallRow, calls);
const FIRST_BUCKET: usize = offset_of!(SyscallRow, buckets);

impl Model {
    fn new() -> Model {
        let mut rows = Rows::new(RowKind::Syscall, CHUNK, &[CALLS]);
        for chunk in 0..2 {
            rows.add_chunk(chunk, Region::in_memory(size_of::<SyscallRow>(), CHUNK));
        }
        let mut model = Model {
            rows,
            deltas: Deltas::default(),
            sets: [[[0; WAYS]; SETS]; CPUS],
            known: vec![false; CPUS * SETS * WAYS],
            free: (CHUNK..CHUNK + PRIVATE).collect(),
            owner: [0; SHARED as usize],
            pass: 0,
            late: Vec::new(),
            added: BTreeMap::new(),
            read: BTreeMap::new(),
            was_private: 0,
        };
        (0..SHARED).for_each(|row| model.meet(row));
        model
    }

    fn meet(&mut self, row: u32) {
        self.rows.meet(row, row, Subject::Syscall(self.owner[row as usize]), std::iter::once(row));
    }

    fn word(&mut self, way: u32) -> &mut u64 {
        let way = way as usize;
        &mut self.sets[way / WAYS / SETS][way / WAYS % SETS][way % WAYS]
    }

    /// As programs do: the part of a row that a CPU adds to now. The CPU comes nearer to a private one.
    fn look_up(&mut self, cpu: usize, row: u32) -> u32 {
        let set = &mut self.sets[cpu][ways::set_of(row, SETS as u32 - 1) as usize];
        if let Some(private) = set.iter().find_map(|word| ways::row_in(*word, row)) {
            return private;
        }
        match ways::step(|place| set[place], row) {
            Step::Nothing => {}
            Step::Write(place, word) => set[place] = word,
            Step::Claim(place) => {
                if let Some(private) = self.free.pop_front() {
                    set[place] = ways::naming(row, private);
                }
            }
        }
        row
    }

    /// One call, and its duration.
    fn add(&mut self, row: u32, part: u32) {
        let region = self.rows.chunks[(part / CHUNK) as usize].as_ref().unwrap();
        region.add(part % CHUNK, CALLS, 1);
        region.add(part % CHUNK, FIRST_BUCKET, 1);
        self.was_private += u64::from(part != row);
        *self.added.entry((row, self.owner[row as usize])).or_default() += 1;
    }

    fn end_late(&mut self) {
        for (row, part) in std::mem::take(&mut self.late) {
            self.add(row, part);
        }
    }

    fn pass(&mut self, idle: u64) {
        self.pass += 1;
        for way in 0..self.known.len() as u32 {
            let Some((row, part)) = ways::named(*self.word(way)) else { continue };
            if !self.known[way as usize] {
                self.known[way as usize] = self.rows.meet_private(row, part, way, self.pass);
            }
        }
        self.deltas.clear();
        self.rows.read(self.pass, &mut self.deltas);
        for delta in self.deltas.iter() {
            let Subject::Syscall(owner) = delta.subject else { panic!("{:?}", delta.subject) };
            let cell = |offset| delta.cells[RowKind::Syscall.cell_of(offset)];
            assert_eq!(cell(CALLS), cell(FIRST_BUCKET), "each call has its duration");
            *self.read.entry((delta.slot, owner)).or_default() += cell(CALLS);
        }
        for gone in self.rows.end_retired(self.pass) {
            self.give_back(gone);
        }
        for way in self.rows.retire(self.pass, self.pass.saturating_sub(idle), usize::MAX) {
            *self.word(way) = ways::RETIRED;
        }
    }

    fn give_back(&mut self, gone: Gone) {
        self.rows.clear(gone.row).unwrap();
        self.known[gone.way as usize] = false;
        *self.word(gone.way) = 0;
        self.free.push_back(gone.row);
    }

    /// Nobody uses the row any more, and a pass has read it.
    fn free_slot(&mut self, row: u32) {
        let (rows, private) = self.rows.forget(row);
        assert_eq!(rows.len(), 1);
        for gone in private {
            self.give_back(gone);
        }
        self.rows.clear(row).unwrap();
        self.owner[row as usize] += 1;
        self.meet(row);
    }

    fn happen(&mut self, happens: &Happens) {
        match *happens {
            Happens::Adds { cpu, row, times } => {
                for _ in 0..times {
                    let part = self.look_up(cpu, row);
                    self.add(row, part);
                }
                self.end_late();
            }
            Happens::AddsLate { cpu, row } => {
                self.end_late();
                let part = self.look_up(cpu, row);
                self.late.push((row, part));
            }
            // What began before one pass has ended by the next: the late ones outlast one.
            Happens::Pass { idle } => {
                let late = std::mem::take(&mut self.late);
                self.pass(idle);
                self.late = late;
                self.end_late();
            }
            Happens::Frees { row } => {
                self.end_late();
                self.pass(u64::MAX);
                self.free_slot(row);
            }
        }
    }
}

proptest! {
    /// Nothing is lost, and nothing is billed to another, while private rows come, run out, are taken back and change hands.
    #[test]
    fn sums_are_conserved(steps in proptest::collection::vec(happens(), 1..120)) {
        let mut model = Model::new();
        for step in &steps {
            model.happen(step);
        }
        model.end_late();
        model.pass(0);
        prop_assert_eq!(&model.added, &model.read);
        let Additions { private, shared } = model.rows.additions();
        prop_assert_eq!(private + shared, model.added.values().sum::<u64>());
        prop_assert_eq!(private, model.was_private);
        // Every private row is free, or named once.
        let named = model.sets.iter().flatten().flatten().filter_map(|word| ways::named(*word));
        let mut all: Vec<u32> = named.map(|(_, row)| row).chain(model.free.iter().copied()).collect();
        model.pass(0);
        model.pass(0);
        all.sort_unstable();
        all.dedup();
        prop_assert!(all.len() <= PRIVATE as usize);
        prop_assert_eq!(model.free.len(), PRIVATE as usize, "after three idle passes none is in use");
    }
}

#[test]
fn a_part_that_is_gone_stays_in_the_sums() {
    let mut model = Model::new();
    for _ in 0..50 {
        let part = model.look_up(0, 2);
        model.add(2, part);
    }
    assert!(model.was_private > 30, "{}", model.was_private);
    for _ in 0..4 {
        model.pass(0);
    }
    assert_eq!((model.rows.private_parts(), model.free.len()), (0, PRIVATE as usize));
    let part = model.look_up(0, 2);
    model.add(2, part);
    model.pass(0);
    assert_eq!(model.read, BTreeMap::from([((2, 0), 51)]));
    assert_eq!(model.rows.last(2, CALLS), 51);
}
