//! The catalogue against itself: nothing twice, nothing forgotten. The same checks see deliberate mistakes.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use kernmeter_abi::{SlotRow, Total};

use super::column::{number, optional};
use super::family::{Kind, Scale};
use super::probes::UNBILLED;
use super::*;

/// What is wrong with these probes, a line each.
fn mistakes(probes: &[&Probe]) -> Vec<String> {
    let mut found = Vec::new();
    let columns: Vec<&Column> = probes.iter().flat_map(|probe| probe.columns).collect();
    found.extend(fields(&columns));
    found.extend(probes.iter().flat_map(|probe| families_of(probe)));
    found.extend(columns.iter().flat_map(|column| labels(column)));
    found.extend(totals(&columns));
    found.extend(names(probes));
    found
}

/// Each field of each row has one column.
fn fields(columns: &[&Column]) -> Vec<String> {
    let mut found = Vec::new();
    for kind in RowKind::ALL {
        for field in kind.fields() {
            let users = columns.iter().filter(|c| c.row == kind && c.fields.contains(&field.name)).count();
            match users {
                0 => found.push(format!("field `{}` of a {kind:?} row has no column", field.name)),
                1 => {}
                n => found.push(format!("field `{}` of a {kind:?} row has {n} columns", field.name)),
            }
        }
    }
    found
}

/// Each family of a probe has a column, and each column a family of its probe, of the same kind.
fn families_of(probe: &Probe) -> Vec<String> {
    let mut found = Vec::new();
    for family in probe.families {
        if !probe.columns.iter().any(|column| column.family == *family) {
            found.push(format!("family `{}` has no column", family.name));
        }
    }
    for column in probe.columns {
        let name = column.family.name;
        if !probe.families.contains(&column.family) {
            found.push(format!("column {:?} adds to `{name}`, which its probe does not list", column.fields));
        }
        if matches!(column.cells, Cells::Histogram { .. }) != (column.family.kind == Kind::Histogram) {
            found.push(format!("column {:?} and family `{name}` are not of the same kind", column.fields));
        }
    }
    found
}

/// A column has a value for each label of its family, and its row knows it.
fn labels(column: &Column) -> Vec<String> {
    let mut found = Vec::new();
    if column.labels.len() != column.family.labels.len() {
        found.push(format!("column {:?} has not the labels of `{}`", column.fields, column.family.name));
    }
    for label in column.labels {
        let known = match label {
            Label::Fixed(_) => true,
            Label::Syscall | Label::Abi => column.row != RowKind::Slot,
            Label::Errno => column.row == RowKind::Errno,
        };
        if !known {
            found.push(format!("column {:?}: a {:?} row knows no {label:?}", column.fields, column.row));
        }
    }
    found
}

/// Each total belongs to one quantity, each quantity to a column, and the families of a quantity to no other.
fn totals(columns: &[&Column]) -> Vec<String> {
    let mut found = Vec::new();
    let mut quantities: Vec<&Quantity> = Vec::new();
    for quantity in columns.iter().flat_map(|column| [column.quantity, column.events]).flatten() {
        if !quantities.contains(&quantity) {
            quantities.push(quantity);
        }
    }
    for total in Total::ALL {
        let quantities = quantities.iter().filter(|quantity| quantity.totals.contains(total)).count();
        let unbilled = UNBILLED.iter().filter(|(unbilled, _)| unbilled == total).count();
        match (quantities, unbilled) {
            (1, 0) | (0, 1) => {}
            (0, 0) => found.push(format!("total `{}` has no column, and is not UNBILLED", total.as_str())),
            _ => found.push(format!("total `{}` is in several quantities, or UNBILLED too", total.as_str())),
        }
    }
    let mut by_family: BTreeMap<&str, BTreeSet<[Option<&str>; 2]>> = BTreeMap::new();
    for column in columns {
        let used = [column.quantity, column.events].map(|quantity| quantity.map(|quantity| quantity.name));
        by_family.entry(column.family.name).or_default().insert(used);
    }
    let mixed = by_family.iter().filter(|(_, used)| used.len() > 1);
    found
        .extend(mixed.map(|(name, used)| format!("columns of `{name}` are of several quantities: {used:?}")));
    found
}

/// Names are those of the conventions, and no two things share one.
fn names(probes: &[&Probe]) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for family in probes.iter().flat_map(|probe| probe.families) {
        let name = family.name;
        let unit = family.unit.is_none_or(|unit| name.ends_with(&format!("_{unit}")));
        if !name.starts_with("kernmeter_") || name.ends_with("_total") || !unit {
            found.push(format!("family `{name}` is not named as the conventions ask"));
        }
        if family.kind == Kind::Histogram && family.scale != Scale::NanosToSeconds {
            found.push(format!("histogram `{name}` is not of durations"));
        }
        if !seen.insert(name) {
            found.push(format!("family `{name}` is declared twice"));
        }
    }
    for program in probes.iter().flat_map(|probe| probe.hooks).flat_map(Hook::programs) {
        if program.len() > 15 {
            found.push(format!("the kernel would cut the program's name `{program}`"));
        }
        if !seen.insert(program) {
            found.push(format!("program `{program}` serves two hooks"));
        }
    }
    found
}

#[test]
fn declarations_are_sound() {
    assert_eq!(mistakes(PROBES), [""; 0]);
    assert!(PROBES.is_sorted_by_key(|probe| probe.stage), "probes are not in the order they are attached in");
}

static SPARE: Family = Family::counter("kernmeter_spare", "Nothing.");
static SPARES: [&Family; 1] = [&SPARE];
static NO_PROBE: Probe = Probe {
    name: "spare",
    summary: "",
    needs: "",
    cost: "",
    stage: Stage::Events,
    by_default: false,
    hooks: &[],
    families: &[],
    columns: &[],
};

static TWICE: [Column; 1] = [number!(Slot, SlotRow.cpu_ns => SPARE [])];
static CPU_AGAIN: Quantity = Quantity { name: "cpu_again", totals: &[Total::CpuNs] };
static UNLISTED: [Column; 1] = [number!(Slot, SlotRow.cpu_ns => SPARE [], CPU_AGAIN)];
static LABELLED: [Column; 1] = [number!(Slot, SlotRow.cpu_ns => SPARE [Label::Syscall])];

/// What a probe beside the real ones makes wrong.
fn beside(probe: Probe) -> Vec<String> {
    let probe: &'static Probe = Box::leak(Box::new(probe));
    mistakes(&[PROBES, &[probe]].concat())
}

#[test]
fn deliberate_mistakes_are_told() {
    assert_eq!(
        beside(Probe { families: &SPARES, columns: &TWICE, ..NO_PROBE }),
        ["field `cpu_ns` of a Slot row has 2 columns"]
    );
    assert_eq!(beside(Probe { families: &SPARES, ..NO_PROBE }), ["family `kernmeter_spare` has no column"]);
    let found = beside(Probe { columns: &UNLISTED, ..NO_PROBE });
    assert!(found.contains(
        &"column [\"cpu_ns\"] adds to `kernmeter_spare`, which its probe does not list".to_owned()
    ));
    let found = beside(Probe { families: &SPARES, columns: &LABELLED, ..NO_PROBE });
    assert!(found.contains(&"column [\"cpu_ns\"] has not the labels of `kernmeter_spare`".to_owned()));
    assert!(found.contains(&"column [\"cpu_ns\"]: a Slot row knows no Syscall".to_owned()));
    let without: Vec<&Probe> = PROBES.iter().copied().filter(|probe| probe.name != "cgroup").collect();
    assert_eq!(
        mistakes(&without),
        [
            "field `moved_in` of a Slot row has no column",
            "field `folded` of a Slot row has no column",
            "total `moved` has no column, and is not UNBILLED",
        ]
    );
}

/// The service may read the number of each trace event it may need: nobody would notice that one is missing before Linux 7.2.
#[test]
fn the_service_is_handed_every_trace_event() {
    let unit = include_str!("../../../deploy/systemd/trace-events.conf");
    let mut handed: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("OpenFile=")).collect();
    handed.sort_unstable();
    let hooks = PROBES.iter().flat_map(|probe| probe.hooks);
    let mut needed: Vec<_> = hooks
        .filter_map(|hook| Some((hook.event_variant.as_ref()?.group, hook.tracepoint)))
        .map(|(group, name)| {
            format!("/sys/kernel/tracing/events/{group}/{name}/id:{name}:graceful,read-only")
        })
        .collect();
    needed.sort_unstable();
    assert_eq!(handed, needed, "deploy/systemd/trace-events.conf");
}
