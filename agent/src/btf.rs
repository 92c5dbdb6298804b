//! In: the bytes of a kernel's BTF; out: offsets of struct members and shapes of tracepoints. Guesses nothing, reads no file.
//!
//! Only what the agent asks for is decoded: one pass indexes the types (`Documentation/bpf/btf.rst` of the kernel has the
//! format). Every access is bounds-checked: a broken blob is an error, never a wrong offset.

mod prototype;

use std::collections::HashMap;

pub use prototype::Argument;

/// Why an answer could not be had from BTF.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The blob does not follow the format.
    #[error("kernel btf is malformed at byte {0}: {1}")]
    Malformed(usize, &'static str),
    /// The running kernel has no such type.
    #[error("this kernel has no type `{0}`")]
    NoType(String),
    /// The type has no such member.
    #[error("this kernel's `struct {0}` has no member `{1}`")]
    NoMember(String, String),
    /// The member is a bit field, which cannot be loaded at a byte offset.
    #[error("`{1}` of `struct {0}` is a bit field")]
    BitField(String, String),
}

type Result<T> = std::result::Result<T, BtfError>;

const MAGIC: u16 = 0xeb9f;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
/// typedef, volatile, const, restrict, type tag: names for another type.
const ALIASES: [u32; 5] = [KIND_TYPEDEF, 9, 10, 11, 18];
/// Deepest nesting of aliases and anonymous members followed: far above any real type, and a bound for cyclic garbage.
const MAX_DEPTH: usize = 32;

/// An indexed BTF blob.
pub struct Btf {
    data: Vec<u8>,
    /// Byte offset of each type; id 0 is `void`.
    types: Vec<u32>,
    strings: std::ops::Range<usize>,
    structs: HashMap<Box<[u8]>, u32>,
    tracepoints: HashMap<Box<[u8]>, u32>,
}

/// One decoded type header.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    vlen: usize,
    bit_fields: bool,
    target: u32,
}

impl Btf {
    /// Indexes a blob.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] if it does not follow the format.
    pub fn parse(data: Vec<u8>) -> Result<Btf> {
        let u32_at = |at: usize| read_u32(&data, at);
        let magic = data.get(..2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed(0, "the magic number is missing"));
        }
        let header = u32_at(4)? as usize;
        let section = |off_at: usize| -> Result<std::ops::Range<usize>> {
            let start = header.checked_add(u32_at(off_at)? as usize);
            let end = start.and_then(|s| s.checked_add(u32_at(off_at + 4).ok()? as usize));
            match (start, end) {
                (Some(start), Some(end)) if end <= data.len() => Ok(start..end),
                _ => Err(BtfError::Malformed(off_at, "a section lies outside the blob")),
            }
        };
        let type_section = section(8)?;
        let strings = section(16)?;
        let mut btf =
            Btf { data, types: vec![0], strings, structs: HashMap::new(), tracepoints: HashMap::new() };
        let mut at = type_section.start;
        while at < type_section.end {
            let ty = btf.header(at)?;
            let extra = match ty.kind {
                1 | 14 | 17 => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * ty.vlen,
                6 | KIND_FUNC_PROTO => 8 * ty.vlen,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return Err(BtfError::Malformed(at, "a type has an unknown kind")),
            };
            let id = btf.types.len() as u32;
            let index = match ty.kind {
                KIND_STRUCT => Some(false),
                KIND_TYPEDEF => Some(true),
                _ => None,
            };
            if let Some(is_typedef) = index {
                let name = btf.string(ty.name)?;
                if is_typedef {
                    if let Some(hook) = name.strip_prefix(b"btf_trace_") {
                        let hook = hook.into();
                        btf.tracepoints.insert(hook, id);
                    }
                } else if !name.is_empty() {
                    let name = name.into();
                    btf.structs.entry(name).or_insert(id);
                }
            }
            btf.types.push(at as u32);
            at += 12 + extra;
        }
        if at != type_section.end {
            return Err(BtfError::Malformed(at, "the last type is cut"));
        }
        Ok(btf)
    }

    /// Byte offset of a member, named by the path to it (`["thread_info", "status"]`); anonymous structs and unions on
    /// the way are looked through.
    ///
    /// # Errors
    /// The struct or the member is not there, or is a bit field.
    pub fn offset(&self, structure: &str, path: &[&str]) -> Result<u32> {
        let id = *self
            .structs
            .get(structure.as_bytes())
            .ok_or_else(|| BtfError::NoType(format!("struct {structure}")))?;
        let mut ty = self.resolve(id)?;
        let mut bits = 0u64;
        for (i, name) in path.iter().enumerate() {
            let missing = || BtfError::NoMember(structure.into(), path[..=i].join("."));
            let (offset, target, bit_field) = self.member(ty, name.as_bytes(), 0)?.ok_or_else(missing)?;
            if bit_field {
                return Err(BtfError::BitField(structure.into(), path[..=i].join(".")));
            }
            bits += u64::from(offset);
            if i + 1 < path.len() {
                ty = self.resolve(target)?;
            }
        }
        if !bits.is_multiple_of(8) {
            return Err(BtfError::BitField(structure.into(), path.join(".")));
        }
        Ok((bits / 8) as u32)
    }

    /// Number of arguments of a tracepoint, not counting the leading data pointer; `None` if the kernel lacks it.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] if the typedef does not lead to a function.
    pub fn tracepoint_args(&self, hook: &str) -> Result<Option<usize>> {
        let Some(&id) = self.tracepoints.get(hook.as_bytes()) else { return Ok(None) };
        let pointer = self.resolve(id)?;
        let proto = self.resolve(pointer.target)?;
        if proto.kind != KIND_FUNC_PROTO {
            return Err(BtfError::Malformed(proto.at, "a tracepoint is not a function"));
        }
        Ok(Some(proto.vlen.saturating_sub(1)))
    }

    /// Whether the kernel has a function of this name that its types describe.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] if a name lies outside the blob.
    pub fn has_function(&self, name: &str) -> Result<bool> {
        for at in &self.types[1..] {
            let ty = self.header(*at as usize)?;
            if ty.kind == KIND_FUNC && self.string(ty.name)? == name.as_bytes() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// (bit offset, type id, whether a bit field) of a member.
    fn member(&self, ty: Type, name: &[u8], depth: usize) -> Result<Option<(u32, u32, bool)>> {
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed(ty.at, "members are nested too deeply"));
        }
        if ty.kind != KIND_STRUCT && ty.kind != KIND_UNION {
            return Ok(None);
        }
        for i in 0..ty.vlen {
            let at = ty.at + 12 + 12 * i;
            let member_name = self.string(read_u32(&self.data, at)?)?;
            let target = read_u32(&self.data, at + 4)?;
            let raw = read_u32(&self.data, at + 8)?;
            let (offset, width) = if ty.bit_fields { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            if member_name == name {
                return Ok(Some((offset, target, width != 0)));
            }
            if member_name.is_empty() {
                let inner = self.resolve(target)?;
                if let Some((more, target, bit_field)) = self.member(inner, name, depth + 1)? {
                    return Ok(Some((offset + more, target, bit_field)));
                }
            }
        }
        Ok(None)
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Result<Type> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let at = *self
                .types
                .get(id as usize)
                .filter(|_| id != 0)
                .ok_or(BtfError::Malformed(0, "a type id is out of range"))?;
            let ty = self.header(at as usize)?;
            if !ALIASES.contains(&ty.kind) {
                return Ok(ty);
            }
            id = ty.target;
        }
        Err(BtfError::Malformed(0, "a chain of typedefs does not end"))
    }

    fn header(&self, at: usize) -> Result<Type> {
        let info = read_u32(&self.data, at + 4)?;
        Ok(Type {
            at,
            name: read_u32(&self.data, at)?,
            kind: (info >> 24) & 0x1f,
            vlen: (info & 0xffff) as usize,
            bit_fields: info >> 31 != 0,
            target: read_u32(&self.data, at + 8)?,
        })
    }

    fn string(&self, offset: u32) -> Result<&[u8]> {
        let table = &self.data[self.strings.clone()];
        let tail = table
            .get(offset as usize..)
            .ok_or(BtfError::Malformed(self.strings.start, "a name lies outside the string section"))?;
        let end = tail
            .iter()
            .position(|b| *b == 0)
            .ok_or(BtfError::Malformed(self.strings.start, "a name does not end"))?;
        Ok(&tail[..end])
    }
}

fn read_u32(data: &[u8], at: usize) -> Result<u32> {
    at.checked_add(4)
        .and_then(|end| data.get(at..end))
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .ok_or(BtfError::Malformed(at, "the blob ends inside a record"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// struct s { int a; union { int b; struct { int c; long d; }; }; int f:3; } and a tracepoint `t` of two arguments.
    #[expect(clippy::many_single_char_names, reason = "the names of the sample's members")]
    fn sample() -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |s: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(s.as_bytes());
            strings.push(0);
            at
        };
        let (int, s, a, b, c, d, f, t) = (
            name("int"),
            name("s"),
            name("a"),
            name("b"),
            name("c"),
            name("d"),
            name("f"),
            name("btf_trace_t"),
        );
        let mut words: Vec<u32> = Vec::new();
        words.extend([int, 1 << 24, 4, 32]); // 1: int
        words.extend([0, (KIND_STRUCT << 24) | 2, 16, c, 1, 0, d, 1, 64]); // 2: struct { c; d; }
        words.extend([0, (KIND_UNION << 24) | 2, 16, b, 1, 0, 0, 2, 0]); // 3: union { b; struct 2; }
        words.extend([s, 1 << 31 | (KIND_STRUCT << 24) | 3, 32, a, 1, 0, 0, 3, 64, f, 1, 192 | 3 << 24]); // 4: s
        words.extend([0, (KIND_FUNC_PROTO << 24) | 3, 0, 0, 1, 0, 1, 0, 1]); // 5
        words.extend([0, 2 << 24, 5]); // 6: pointer to 5
        words.extend([t, KIND_TYPEDEF << 24, 6]); // 7
        let mut out = Vec::new();
        out.extend(MAGIC.to_le_bytes());
        out.extend([1, 0]);
        let types = (words.len() * 4) as u32;
        for word in [24, 0, types, types, strings.len() as u32].iter().chain(&words) {
            out.extend(word.to_le_bytes());
        }
        out.extend(strings);
        out
    }

    #[test]
    fn finds_members_through_anonymous_ones() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("s", &["a"]), Ok(0));
        assert_eq!(btf.offset("s", &["b"]), Ok(8));
        assert_eq!(btf.offset("s", &["d"]), Ok(16));
        assert_eq!(btf.offset("s", &["f"]), Err(BtfError::BitField("s".into(), "f".into())));
        assert_eq!(btf.offset("s", &["x"]), Err(BtfError::NoMember("s".into(), "x".into())));
        assert_eq!(btf.offset("s", &["a", "x"]), Err(BtfError::NoMember("s".into(), "a.x".into())));
        assert_eq!(btf.offset("z", &["a"]), Err(BtfError::NoType("struct z".into())));
        assert_eq!(btf.tracepoint_args("t"), Ok(Some(2)));
        assert_eq!(btf.tracepoint_args("u"), Ok(None));
    }

    #[test]
    fn the_running_kernel_has_what_programs_need() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIP btf::the_running_kernel_has_what_programs_need: no /sys/kernel/btf/vmlinux here");
            return;
        };
        let btf = Btf::parse(data).unwrap();
        assert!(btf.offset("task_struct", &["pid"]).unwrap() > 0);
        assert_eq!(btf.tracepoint_args("sys_enter"), Ok(Some(2)));
        assert_eq!(btf.tracepoint_args("no_such_hook"), Ok(None));
        assert_eq!(btf.has_function("schedule"), Ok(true));
        assert_eq!(btf.has_function("no_such_function"), Ok(false));
    }

    proptest! {
        #[test]
        fn survives_flipped_and_cut_blobs(at in 0usize..400, value: u8, cut in 0usize..400) {
            let mut data = sample();
            let len = data.len();
            data[at % len] = value;
            data.truncate(len - cut % len);
            if let Ok(btf) = Btf::parse(data) {
                for member in ["a", "b", "c", "d", "f", "x"] {
                    let _ = btf.offset("s", &[member]);
                }
                let _ = btf.tracepoint_args("t");
                let _ = btf.has_function("t");
            }
        }
    }
}
