//! In: a console block and a fresh run of its recipe; out: the first line that says something else. What differs between
//! hosts and runs (numbers, times, releases, who else is on the machine) is passed over; words, columns and rows are not.

use super::recipe::Recipe;
use crate::scene::TENANTS;

/// Lines of `doctor` that state a fact of the host. Their words are compared only on a kernel like that of the document.
const HOST_FACTS: [&str; 7] =
    ["privileges", "lockdown", "cgroups", "task state", "preemption", "pods", "program statistics"];

/// The first difference: the index of the written line, and what a fresh run has there.
pub fn difference(recipe: Recipe, written: &str, fresh: &str) -> Option<(usize, String)> {
    match recipe {
        Recipe::Doctor => doctor(written, fresh),
        Recipe::FirstMinute => first(&table(written), &table(fresh)),
        Recipe::FinalTotals => first(&plain(written), &plain(fresh)),
    }
}

/// A line as it is compared, with its place in the block.
type Line = (usize, String);

fn first(written: &[Line], fresh: &[Line]) -> Option<(usize, String)> {
    let pairs = written.iter().zip(fresh).find(|(written, fresh)| written.1 != fresh.1);
    if let Some((written, fresh)) = pairs {
        return Some((written.0, fresh.1.clone()));
    }
    match (written.get(fresh.len()), fresh.get(written.len())) {
        (Some((line, _)), _) => Some((*line, "nothing".to_owned())),
        (None, Some((_, fresh))) => Some((written.last().map_or(0, |(line, _)| line + 1), fresh.clone())),
        (None, None) => None,
    }
}

/// Every word with a digit in it is a number, whatever its unit; both sides of an account are the same number, or not.
fn plain(text: &str) -> Vec<Line> {
    text.lines().map(words).enumerate().collect()
}

fn words(line: &str) -> String {
    let accounts = line.split_whitespace().filter_map(|word| word.rsplit_once('=')).map(|(_, value)| value);
    let numbers: Vec<_> = accounts.filter(|value| value.bytes().all(|byte| byte.is_ascii_digit())).collect();
    let unequal = numbers.windows(2).any(|pair| pair[0] != pair[1]);
    let word = |word: &str| match word.rsplit_once('=') {
        Some((key, value)) if has_digit(value) => format!("{key}={}", if unequal { "unequal" } else { "N" }),
        None if has_digit(word) => "N".to_owned(),
        _ => word.to_owned(),
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

fn has_digit(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_digit())
}

/// The lines before the table, its header, and the scene's tenants in the order of their names. A cell is nothing (`-`), a
/// number, or a list of calls.
fn table(text: &str) -> Vec<Line> {
    let header = text.lines().position(|line| line.starts_with("TENANT")).unwrap_or(usize::MAX);
    let mut lines: Vec<Line> = Vec::new();
    let mut rows: Vec<Line> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let columns = columns(line);
        let name = columns.first().copied().unwrap_or_default();
        if index < header {
            lines.push((index, words(line)));
        } else if index == header {
            lines.push((index, columns.join(" | ")));
        } else if name == "_host" || TENANTS.contains(&name) {
            let cells = columns[1..].iter().map(|cell| cell_kind(cell));
            rows.push((index, [name].into_iter().chain(cells).collect::<Vec<_>>().join(" | ")));
        }
    }
    rows.sort_by(|a, b| a.1.cmp(&b.1));
    lines.extend(rows);
    lines
}

fn cell_kind(cell: &str) -> &str {
    let is_time = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let is_call =
        |part: &str| part.split_once(' ').is_some_and(|(call, time)| !is_time(call) && is_time(time));
    match cell {
        // Blocked outside any call, by a page fault: that comes and goes with the machine's memory.
        _ if cell == "-" || cell.starts_with("none ") && !cell.contains(',') => "-",
        _ if cell.split(", ").all(is_call) => "calls",
        _ if is_time(cell) => "N",
        other => other,
    }
}

/// Columns are two spaces or more apart.
fn columns(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

/// Line by line; of what this host has not, or has in another way than that of the document, only the name counts.
fn doctor(written: &str, fresh: &str) -> Option<(usize, String)> {
    // Remedies are for hosts that lack something.
    let lines = |text: &str| -> Vec<Line> {
        let lines = text.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim_start().starts_with("->"))
            .map(|(n, line)| (n, line.to_owned()))
            .collect()
    };
    let (written, fresh) = (lines(written), lines(fresh));
    let same_kernel = kernel(&written) == kernel(&fresh);
    let as_compared = |line: &str, other: &str| {
        let name = columns(line).get(1).map(|name| (*name).to_owned());
        let lacking =
            [line, other].iter().any(|line| ["warn", "FAIL"].contains(columns(line).first().unwrap_or(&"")));
        match name {
            Some(name) if lacking || !same_kernel && HOST_FACTS.contains(&&*name) => name,
            _ => words(line),
        }
    };
    let other = |lines: &[Line], at: usize| lines.get(at).map_or(String::new(), |line| line.1.clone());
    let compared = |lines: &[Line], others: &[Line]| -> Vec<Line> {
        let lines = lines.iter().enumerate();
        lines.map(|(at, (n, line))| (*n, as_compared(line, &other(others, at)))).collect()
    };
    first(&compared(&written, &fresh), &compared(&fresh, &written))
}

/// The kernel's version and flavour, without what counts its builds.
fn kernel(lines: &[Line]) -> Option<String> {
    let mut lines = lines.iter().map(|(_, line)| columns(line));
    let release = lines.find(|columns| columns.get(1) == Some(&"kernel"))?.get(2)?.to_string();
    let (major, rest) = release.split_once('.')?;
    let (minor, rest) = rest.split_once('.')?;
    Some(format!("{major}.{minor} {}", rest.replace(|c: char| c.is_ascii_digit(), "")))
}

#[cfg(test)]
mod tests;
