//! In: blocks as documents hold them and as runs print them; out: which differences count. Runs nothing.

use super::*;

const DOCTOR: &str = "# kernmeter doctor
ok    kernel        Linux 6.18.44-fc-v657
ok    kernel types  /sys/kernel/btf/vmlinux, 18 constants found
ok    cgroups       v2 beside v1 controllers (hybrid), at /sys/fs/cgroup/unified

this host can be metered
";

#[test]
fn doctor_on_the_same_kernel() {
    let same = DOCTOR.replace("18 constants", "20 constants").replace("44-fc-v657", "45-fc-v7");
    assert_eq!(difference(Recipe::Doctor, DOCTOR, &same), None);
    let other = difference(Recipe::Doctor, DOCTOR, &DOCTOR.replace("hybrid", "mixed"));
    assert_eq!(other.map(|(line, _)| line), Some(3));
    let other = difference(Recipe::Doctor, DOCTOR, &DOCTOR.replace("can be", "may be"));
    assert_eq!(other.map(|(line, _)| line), Some(5));
}

#[test]
fn doctor_on_another_host() {
    let other = DOCTOR.replace("44-fc-v657", "12-amd64");
    // A fact of that host, in other words.
    let unified = other
        .replace("v2 beside v1 controllers (hybrid), at /sys/fs/cgroup/unified", "v2, at /sys/fs/cgroup");
    assert_eq!(difference(Recipe::Doctor, DOCTOR, &unified), None);
    // The same words everywhere.
    let found = difference(Recipe::Doctor, DOCTOR, &other.replace("constants found", "constants"));
    assert_eq!(found.map(|(line, _)| line), Some(2));
    // Something is missing here: its name is still there.
    let lacking = other.replace("ok    cgroups       v2 beside", "warn  cgroups       only") + "";
    assert_eq!(difference(Recipe::Doctor, DOCTOR, &lacking), None);
    let renamed = lacking.replace("cgroups  ", "groups  ");
    assert!(difference(Recipe::Doctor, DOCTOR, &renamed).is_some());
    let shorter = DOCTOR.replace("\nthis host can be metered\n", "");
    assert!(difference(Recipe::Doctor, DOCTOR, &shorter).is_some());
    assert!(difference(Recipe::Doctor, &shorter, DOCTOR).is_some());
}

const TABLE: &str = "# kernmeter run --show
metrics: http://127.0.0.1:10058/metrics
looking for 3 s ...

TENANT  TASKS     CPU  RUNQ P50  SLOWEST (P99)             BLOCKED ON
_host      94  101.2%     4.5us  poll 210ms, wait4 125ms   futex 9.78s
batch       2   93.7%         -  -                         -
shop        1    3.7%     2.3us  fsync 6.6ms               fsync 165ms
search      2    1.6%     7.6us  recvfrom 16ms             recvfrom 2.96s
";

#[test]
fn tables_differ_by_words_columns_and_rows() {
    let run = "# kernmeter run --show
metrics: http://127.0.0.1:41234/metrics
looking for 3 s ...

TENANT        TASKS     CPU  RUNQ P50  SLOWEST (P99)  BLOCKED ON
batch             2   93.7%         -  -              none 2.0ms
_host           194   71.2%     4.5us  poll 210ms     futex 9.78s
user-ann          1    0.7%         -  -              -
search            2    1.6%     7.6us  recvfrom 16ms  recvfrom 2.96s
shop              1    0.7%     2.3us  fsync 6.6ms    fsync 165ms
";
    assert_eq!(difference(Recipe::FirstMinute, TABLE, run), None);
    for (from, to, line) in [
        ("looking", "waiting", 2),
        ("RUNQ P50", "QUEUE P50", 4),
        ("shop ", "shoe ", 7),
        ("fsync 165ms", "-", 7),
        ("batch ", "other ", 5),
    ] {
        let found = difference(Recipe::FirstMinute, &TABLE.replace(from, to), run);
        assert!(found.is_some(), "{from} -> {to}");
        if from != "shop " && from != "batch " {
            assert_eq!(found.map(|(line, _)| line), Some(line), "{from} -> {to}");
        }
    }
}

#[test]
fn both_sides_of_an_account_are_equal() {
    let written =
        "ts=2026-11-21T18:00:00Z level=info msg=\"final totals\" event=cpu_ns kernel=5 attributed=5\n";
    let fresh =
        "ts=2026-11-22T18:00:00Z level=info msg=\"final totals\" event=cpu_ns kernel=77 attributed=77\n";
    assert_eq!(difference(Recipe::FinalTotals, written, fresh), None);
    assert!(difference(Recipe::FinalTotals, written, &fresh.replace("d=77", "d=76")).is_some());
    assert!(difference(Recipe::FinalTotals, written, &fresh.replace("cpu_ns", "wait_ns")).is_some());
    assert!(difference(Recipe::FinalTotals, written, "").is_some());
}
