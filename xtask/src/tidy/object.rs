//! In: the eBPF object; out: complaints about names of programs and maps that the kernel would cut. Reads symbols only.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// `BPF_OBJ_NAME_LEN` without the terminating zero.
const LONGEST: usize = 15;

/// Checks the names in an object.
pub fn check(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read \"{}\"", path.display()))?;
    let file =
        object::File::parse(&*bytes).with_context(|| format!("\"{}\" is no ELF object", path.display()))?;
    let (mut programs, mut maps) = (0, 0);
    let mut complaints = Vec::new();
    for symbol in file.symbols() {
        let Some(section) = symbol.section_index().and_then(|index| file.section_by_index(index).ok()) else {
            continue;
        };
        let (section_name, name) = (section.name().unwrap_or_default(), symbol.name().unwrap_or_default());
        // Functions in `.text` are called by programs and never named to the kernel as programs.
        let program = symbol.kind() == SymbolKind::Text
            && symbol.is_global()
            && section.kind() == SectionKind::Text
            && section_name != ".text";
        let map = symbol.is_global() && matches!(section_name, ".maps" | "maps");
        programs += usize::from(program);
        maps += usize::from(map);
        if (program || map) && name.len() > LONGEST {
            let what = if program { "program" } else { "map" };
            complaints.push(format!(
                "{what} `{name}` in section `{section_name}`: at most {LONGEST} characters are kept"
            ));
        }
    }
    if programs == 0 || maps == 0 {
        bail!("\"{}\" has {programs} programs and {maps} maps: not kernmeter's object", path.display());
    }
    println!("{programs} programs and {maps} maps");
    Ok(complaints)
}
