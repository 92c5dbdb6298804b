//! Comparisons over readings that are made up: right ones, wrong ones and hostile ones.

use super::*;

const SECOND: u64 = 1_000_000_000;
const CPUS: u64 = 2;
/// What the tests' readings may be apart: two CPUs, two ends, a tick at each.
const TOLERANCE_NS: u64 = CPUS * 2 * TICK_NS;

/// A host whose kernel and meter are told what to say.
struct Host {
    audit: Audit,
    now_ns: u64,
    /// The kernel's account by slot.
    usage_ns: Vec<Option<u64>>,
    read: Vec<u32>,
    skew_ns: u64,
}

impl Host {
    fn new(slots: u32) -> Host {
        Host {
            audit: Audit::new(slots, CPUS as u32, false),
            now_ns: 100 * SECOND,
            usage_ns: vec![Some(0); slots as usize],
            read: Vec::new(),
            skew_ns: 0,
        }
    }

    /// A pass ten seconds later, with births, CPU time metered by slot, and slots given back. Returns
    /// the comparisons that found a difference.
    fn pass(&mut self, births: &[(u32, u32)], cpu: &[(u32, u64)], freed: &[u32]) -> Vec<Comparison> {
        self.now_ns += 10 * SECOND;
        let mut batch = Batch {
            taken_ns: self.now_ns,
            births: births
                .iter()
                .map(|(slot, parent_slot)| Birth {
                    slot: *slot,
                    cgroup_id: 1000 + self.now_ns / SECOND * 100 + u64::from(*slot),
                    parent_slot: *parent_slot,
                    name: b"x".to_vec(),
                })
                .collect(),
            freed: freed.to_vec(),
            ..Batch::default()
        };
        for (slot, cpu_ns) in cpu {
            batch.rows.push(*slot, Subject::Slot)[CPU_CELL] = *cpu_ns;
        }
        self.read.clear();
        let Host { audit, usage_ns, read, skew_ns, now_ns } = self;
        let mut found = audit.pass(&batch, |slot, _| {
            read.push(slot);
            usage_ns[slot as usize].map(|usage_ns| Reading { usage_ns, read_ns: *now_ns + *skew_ns })
        });
        found.retain(|comparison| comparison.ratio > 0.0);
        found
    }

    /// CPU time in a slot that the kernel accounts to the slots `above` it as well.
    fn run(&mut self, slot: u32, ns: u64, above: &[u32]) -> Vec<Comparison> {
        for paying in above.iter().chain([&slot]) {
            if let Some(usage_ns) = &mut self.usage_ns[*paying as usize] {
                *usage_ns += ns;
            }
        }
        self.pass(&[], &[(slot, ns)], &[])
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.audit.outcomes[outcome as usize]
    }

    fn ratio(&self) -> f64 {
        self.audit.error_ratio(self.now_ns).expect("something was compared")
    }
}

/// `2` below the root, `3` and `4` below `2`.
fn tree() -> Host {
    let mut host = Host::new(16);
    host.pass(&[(2, SLOT_HOST), (3, 2), (4, 2)], &[], &[]);
    assert_eq!(host.count(Outcome::Baseline), 3);
    host
}

#[test]
fn accounts_that_agree() {
    let mut host = tree();
    for _ in 0..10 {
        assert_eq!(host.run(3, 2 * SECOND, &[2]), []);
        assert_eq!(host.run(4, 2 * SECOND, &[2]), []);
        assert_eq!(host.run(2, SECOND, &[]), []);
    }
    // 50 s in `2`, 20 s in each below. The first comparison takes 4 s, each reading from there on is one.
    assert_eq!(TOLERANCE_NS * RESOLUTION, 4 * SECOND);
    let little = host.count(Outcome::TooLittle);
    assert_eq!(host.count(Outcome::Compared) + little, 3 * 3 * 10);
    assert!(little < 20, "{little}");
    assert_eq!(host.count(Outcome::Unreadable) + host.count(Outcome::Late), 0);
    assert!(host.ratio() == 0.0);
}

#[test]
fn half_of_the_time_is_missing() {
    let mut host = tree();
    host.usage_ns[2] = Some(10 * SECOND);
    host.usage_ns[3] = Some(10 * SECOND);
    let found = host.pass(&[], &[(3, 5 * SECOND)], &[]);
    let expected = (5 * SECOND - TOLERANCE_NS) as f64 / (10 * SECOND) as f64;
    assert_eq!(found.iter().map(|d| d.slot).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((found[1].kernel_ns, found[1].metered_ns), (10 * SECOND, 5 * SECOND));
    assert!((found[1].ratio - expected).abs() < 1e-9 && (host.ratio() - expected).abs() < 1e-9);
    // It is told once a minute, and shown until enough has been right to begin anew.
    assert_eq!(host.run(3, 40 * SECOND, &[2]), []);
    assert!((0.09..0.1).contains(&host.ratio()), "{}", host.ratio());
    assert_eq!(host.run(3, 10 * SECOND, &[2]), []);
    assert!(host.ratio() == 0.0);
}

#[test]
fn a_small_error_shows_in_time() {
    let mut host = tree();
    // The clock instead of the scheduler's count: 1.4 % too much.
    for _ in 0..40 {
        for usage_ns in &mut host.usage_ns[2..=3] {
            *usage_ns = usage_ns.map(|ns| ns + SECOND);
        }
        host.pass(&[], &[(3, SECOND + SECOND * 14 / 1000)], &[]);
    }
    // Of which 0.2 % is tolerated.
    assert!((0.0118..0.0122).contains(&host.ratio()), "{}", host.ratio());
}

#[test]
fn time_of_a_neighbour() {
    let mut host = tree();
    // 8 s of `3` are metered in `4`: their parent's sum is right all the same.
    host.usage_ns[2] = Some(8 * SECOND);
    host.usage_ns[3] = Some(8 * SECOND);
    let found = host.pass(&[], &[(4, 8 * SECOND)], &[]);
    let seen: Vec<_> = found.iter().map(|d| (d.slot, d.kernel_ns, d.metered_ns)).collect();
    assert_eq!(seen, [(3, 8 * SECOND, 0), (4, 0, 8 * SECOND)]);
    assert!(host.ratio() > 0.97, "{}", host.ratio());
}

#[test]
fn nothing_is_said_of_little_time() {
    let mut host = tree();
    host.usage_ns[3] = Some(3_900_000_000);
    assert_eq!(host.pass(&[], &[], &[]), []);
    assert_eq!(host.count(Outcome::Compared), 0);
    assert_eq!(host.audit.error_ratio(host.now_ns), None, "not 0: nobody knows");
    // The beginning stays: with a little more it is enough.
    host.usage_ns[3] = Some(4_100_000_000);
    assert_eq!(host.pass(&[], &[], &[]).len(), 1);
    assert_eq!(host.count(Outcome::Compared), 1);
}

#[test]
fn what_runs_between_the_readings_is_tolerated() {
    let mut host = tree();
    // The kernel is read 100 ms after the pass: two CPUs can have run 200 ms more. The tolerance grows with it.
    host.skew_ns = SECOND / 10;
    host.usage_ns[3] = Some(20 * SECOND + 2 * SECOND / 10);
    host.usage_ns[2] = host.usage_ns[3];
    assert_eq!(host.pass(&[], &[(3, 20 * SECOND)], &[]), []);
    assert_eq!(host.count(Outcome::Compared), 2);
    host.skew_ns = LATEST_NS + 1;
    host.usage_ns[3] = Some(90 * SECOND);
    assert_eq!(host.pass(&[], &[], &[]), []);
    assert_eq!((host.count(Outcome::Compared), host.count(Outcome::Late)), (2, 3));
}

#[test]
fn hosts_with_many_cpus_take_longer() {
    let mut audit = Audit::new(16, 256, true);
    let birth = |slot| Birth { slot, cgroup_id: u64::from(slot), parent_slot: 0, name: Vec::new() };
    let first = Batch { taken_ns: SECOND, births: vec![birth(2)], ..Batch::default() };
    audit.pass(&first, |_, _| Some(Reading { usage_ns: 0, read_ns: SECOND }));
    let next = Batch { taken_ns: 60 * SECOND, ..Batch::default() };
    audit.pass(&next, |_, _| Some(Reading { usage_ns: 256 * 59 * SECOND, read_ns: 60 * SECOND }));
    assert_eq!(audit.outcomes[Outcome::TooLittle as usize], 1);
}

#[test]
fn readings_that_fail() {
    let mut host = tree();
    // Gone, unreadable or not a number: nothing is said, and it goes on from where it was.
    host.usage_ns[3] = None;
    assert_eq!(host.pass(&[], &[(3, 10 * SECOND)], &[]).len(), 1, "its parent is compared");
    assert_eq!(host.count(Outcome::Unreadable), 1);
    host.usage_ns[3] = Some(10 * SECOND);
    host.usage_ns[2] = Some(10 * SECOND);
    let found = host.pass(&[], &[], &[]);
    assert_eq!(found, [], "both agree");
    assert!(host.ratio() == 0.0);
}

#[test]
fn a_count_that_falls_begins_anew() {
    let mut host = tree();
    host.run(3, 20 * SECOND, &[2]);
    let compared = host.count(Outcome::Compared);
    host.usage_ns[3] = Some(SECOND);
    host.usage_ns[2] = Some(0);
    assert_eq!(host.pass(&[], &[], &[]), []);
    assert_eq!(host.count(Outcome::Compared), compared);
    assert_eq!(host.run(3, 10 * SECOND, &[2]), []);
    assert_eq!(host.count(Outcome::Compared), compared + 2);
    // Nor do the largest numbers do harm.
    host.usage_ns[3] = Some(u64::MAX);
    assert_eq!(host.pass(&[], &[(3, u64::MAX)], &[]).len(), 1);
    assert!(host.ratio().is_finite());
}

#[test]
fn cgroups_that_ended_stay_in_the_sums_above() {
    let mut host = tree();
    // 3 and then its successor in the same slot run 5 s each, and are gone before they are looked at again.
    host.usage_ns[2] = Some(10 * SECOND);
    host.usage_ns[3] = None;
    host.now_ns -= 9 * SECOND + SECOND / 2;
    host.pass(&[], &[(3, 5 * SECOND)], &[3]);
    assert_eq!(host.read, [] as [u32; 0], "too soon after the pass before");
    host.pass(&[(3, 2)], &[(3, 5 * SECOND)], &[3]);
    assert_eq!(host.pass(&[], &[], &[]), []);
    assert_eq!((host.count(Outcome::Compared), host.ratio()), (2, 0.0));
}

#[test]
fn a_slot_of_another_owner_is_not_a_parent() {
    let mut host = tree();
    // 2 is gone, its slot belongs to a cgroup elsewhere; a last task of 3 runs on.
    host.pass(&[], &[], &[2]);
    host.pass(&[(2, SLOT_HOST)], &[], &[]);
    host.usage_ns[2] = Some(0);
    host.usage_ns[3] = None;
    assert_eq!(host.pass(&[], &[(3, 10 * SECOND)], &[]), []);
    assert_eq!(host.audit.nodes[2].as_ref().map(|node| node.metered_ns), Some(0));
    assert_eq!(host.audit.unplaced_ns, 10 * SECOND);
}

#[test]
fn time_of_unknown_cgroups_may_be_missing() {
    let mut host = tree();
    host.usage_ns[2] = Some(10 * SECOND);
    // A cgroup below 2 that found no slot: no statement until it is small beside the rest.
    assert_eq!(host.pass(&[], &[(SLOT_OVERFLOW, 10 * SECOND)], &[]), []);
    assert_eq!((host.count(Outcome::Compared), host.audit.unplaced_ns), (0, 10 * SECOND));
    host.usage_ns[2] = Some(1000 * SECOND);
    assert_eq!(host.pass(&[], &[(2, 990 * SECOND)], &[]), []);
    assert_eq!(host.count(Outcome::Compared), 1);
    // One whose parent found none is as unknown.
    host.pass(&[(5, SLOT_OVERFLOW)], &[(5, 3 * SECOND)], &[]);
    assert_eq!(host.audit.unplaced_ns, 13 * SECOND);
}

#[test]
fn an_outcome_is_not_shown_for_ever() {
    let mut host = tree();
    host.usage_ns[4] = Some(10 * SECOND);
    assert_eq!(host.pass(&[], &[], &[]).len(), 1);
    assert!(host.audit.error_ratio(host.now_ns + SHOWN_NS - 1).expect("recent") > 0.9);
    assert_eq!(host.audit.error_ratio(host.now_ns + SHOWN_NS), None);
    // Nor longer than its cgroup lives.
    host.pass(&[], &[], &[4]);
    assert_eq!(host.audit.error_ratio(host.now_ns), None);
}

#[test]
fn every_cgroup_has_its_turn_at_a_bounded_price() {
    let slots = 4096;
    let mut host = Host::new(slots);
    let births: Vec<_> = (2..slots).map(|slot| (slot, if slot % 4 == 2 { SLOT_HOST } else { 2 })).collect();
    host.pass(&births, &[], &[]);
    let mut seen = vec![0; slots as usize];
    for _ in 0..slots as usize / OTHERS_AT_ONCE {
        assert!(host.read.len() <= TOP_AT_ONCE + OTHERS_AT_ONCE);
        host.read.iter().for_each(|slot| seen[*slot as usize] += 1);
        host.pass(&[], &[], &[]);
    }
    assert!(seen[2..].iter().all(|times| *times > 0) && seen[..2] == [0, 0]);
}

#[test]
fn removed_cgroups_are_not_read() {
    let mut host = tree();
    let batch = Batch { taken_ns: host.now_ns + SECOND, deaths: vec![3, 99], ..Batch::default() };
    let mut read = Vec::new();
    host.audit.pass(&batch, |slot, _| {
        read.push(slot);
        None
    });
    assert_eq!(read, [2, 4]);
}

#[test]
fn a_closed_audit_reads_nothing() {
    let mut host = tree();
    host.audit.close();
    host.usage_ns[3] = Some(100 * SECOND);
    assert_eq!(host.pass(&[], &[], &[]), []);
    assert_eq!(host.read, [] as [u32; 0]);
}

#[test]
fn slots_that_do_not_exist() {
    let mut host = Host::new(4);
    assert_eq!(host.pass(&[(9, 77), (3, 77)], &[(9, SECOND), (77, SECOND)], &[9, 77]), []);
    assert_eq!(host.audit.unplaced_ns, 2 * SECOND);
}
