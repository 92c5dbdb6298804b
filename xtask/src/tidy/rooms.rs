//! In: a source file of the agent; out: complaints about imports against the data flow. The table below is the flow.

use super::paths;
use super::source::Source;

/// A top-level module of the agent.
struct Room {
    name: &'static str,
    /// The rooms it may name. Everything may name the ABI; nothing may name a room that is not listed.
    may_use: &'static [&'static str],
}

const fn room(name: &'static str, may_use: &'static [&'static str]) -> Room {
    Room { name, may_use }
}

/// The only room that may name `aya`: it loads programs and holds maps.
const LOADER: &str = "kernel";

/// kernel rows -> drain -> attribute -> registry -> exposition -> serve. A module without a line here fails the check.
const ROOMS: &[Room] = &[
    room("adapt", &[]),
    // Of the unit tests.
    room("allocations", &[]),
    room("btf", &[]),
    room("escape", &[]),
    room("filewatch", &[]),
    // Every probe, hook, family and column, once.
    room("catalog", &[]),
    room("identity", &["allocations", "catalog"]),
    room("host", &[]),
    room("lifecycle", &[]),
    room("privileges", &[]),
    room("config", &["adapt", "catalog", "identity"]),
    room("kubernetes", &["config", "identity", "privileges"]),
    room("kernel", &["btf", "catalog", "config", "host"]),
    room("drain", &["catalog", "config", "kernel"]),
    // Its families and handles: attribution writes into it, so it knows no attribution.
    room("registry", &["allocations", "catalog", "escape"]),
    room("attribute", &["catalog", "drain", "identity", "registry"]),
    // Reads `cpu.stat` of cgroups; knows no tenants.
    room("audit", &["catalog", "drain", "identity"]),
    room("exposition", &["allocations", "catalog", "escape", "registry"]),
    room("selfmetrics", &["adapt", "allocations", "catalog", "escape", "exposition", "registry"]),
    // Who may read what: files and credentials, no series.
    room("auth", &["config", "filewatch", "identity"]),
    room("serve", &["auth", "exposition", "registry", "selfmetrics"]),
    room("table", &["catalog", "registry"]),
    room("log", &["config"]),
    room("docs", &["catalog", "config", "exposition", "kernel", "selfmetrics"]),
];

/// Files that wire the rooms and may name all of them.
const WIRING: [&str; 2] = ["agent/src/lib.rs", "agent/src/main.rs"];
/// Rooms that wire others.
const WIRING_ROOMS: [&str; 4] = ["cli", "doctor", "engine", "run"];

/// Checks one file.
pub fn check(source: &Source, complaints: &mut Vec<String>) {
    let Some(inside) = source.path.strip_prefix("agent/src/") else { return };
    let name = inside.split(['/', '.']).next().unwrap_or_default();
    let wires = WIRING.contains(&source.path.as_str()) || WIRING_ROOMS.contains(&name);
    let room = ROOMS.iter().find(|room| room.name == name);
    if room.is_none() && !wires {
        complaints.push(format!("{}:1: room `{name}` has no line in xtask/src/tidy/rooms.rs", source.path));
        return;
    }
    for (index, line) in source.code.lines().enumerate() {
        let place = format!("{}:{}", source.path, index + 1);
        if name != LOADER && names_aya(line) {
            complaints.push(format!("{place}: only room `{LOADER}` may name `aya`"));
        }
        let Some(room) = room else { continue };
        for used in paths::modules(&source.code, line) {
            if used != room.name && !room.may_use.contains(&used) {
                complaints.push(format!(
                    "{place}: room `{}` may not use `{used}`: imports point with the data flow (xtask/src/tidy/rooms.rs)",
                    room.name
                ));
            }
        }
    }
}

/// Checks that each line of the table stands for a module that there is.
pub fn check_table(sources: &[Source], complaints: &mut Vec<String>) {
    let names = ROOMS.iter().map(|room| room.name).chain(WIRING_ROOMS);
    for name in names {
        let (file, folder) = (format!("agent/src/{name}.rs"), format!("agent/src/{name}/"));
        if !sources.iter().any(|source| source.path == file || source.path.starts_with(&folder)) {
            complaints
                .push(format!("xtask/src/tidy/rooms.rs: there is no room `{name}` in agent/src any more"));
        }
    }
}

fn names_aya(line: &str) -> bool {
    ["aya::", "aya_obj::", "aya_log::"].iter().any(|path| {
        line.match_indices(path)
            .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        check(&Source::new(path, text), &mut complaints);
        complaints
    }

    #[test]
    fn imports_point_with_the_flow() {
        let exposition = "agent/src/exposition/text.rs";
        assert!(
            complaints(exposition, "use crate::registry::Snapshot;\nuse crate::exposition::escape;")
                .is_empty()
        );
        assert!(complaints(exposition, "// crate::drain is fine in a comment\n").is_empty());
        assert_eq!(complaints(exposition, "use crate::drain::Row;").len(), 1);
        assert_eq!(complaints(exposition, "fn f(a: crate::drain::Row, b: crate::identity::Id) {}").len(), 2);
        let nested = "use crate::{\n    registry::{Family, Kind},\n    drain::Row,\n    exposition,\n};";
        let found = complaints(exposition, nested);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("text.rs:1: room `exposition` may not use `drain`"), "{found:?}");
        assert!(complaints("agent/src/cli/mod.rs", "use crate::{drain, serve};").is_empty());
        assert!(complaints("xtask/src/main.rs", "use crate::anything;").is_empty());
    }

    #[test]
    fn unknown_rooms_and_aya() {
        assert!(complaints("agent/src/surprise.rs", "").first().unwrap().contains("`surprise` has no line"));
        assert!(complaints("agent/src/kernel/mod.rs", "use aya::maps::MapData;").is_empty());
        assert_eq!(complaints("agent/src/drain/rows.rs", "use aya::maps::MapData;").len(), 1);
        assert!(complaints("agent/src/serve/mod.rs", "use malaya::maps;").is_empty());
    }

    #[test]
    fn the_table_has_no_cycle() {
        let mut order: Vec<&str> = Vec::new();
        while order.len() < ROOMS.len() {
            let next = ROOMS.iter().find(|room| {
                !order.contains(&room.name) && room.may_use.iter().all(|used| order.contains(used))
            });
            order.push(next.expect("rooms that use each other, or a room without a line").name);
        }
    }
}
