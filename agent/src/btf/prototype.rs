//! In: an indexed BTF blob; out: arguments of tracepoints as C writes their types, and ids of kernel functions. Knows not
//! what is documented of them.

use super::{
    Btf, BtfError, KIND_ARRAY, KIND_FUNC_PROTO, KIND_STRUCT, KIND_TYPEDEF, KIND_UNION, MAX_DEPTH, Result,
    Type, read_u32,
};

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FLOAT: u32 = 16;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// One argument of a tracepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its type as C writes it, such as `struct task_struct *`.
    pub type_name: String,
    /// Its name, where the kernel keeps it.
    pub name: Option<String>,
}

impl Btf {
    /// The arguments of a tracepoint, the leading data pointer left out; `None` if the kernel lacks the tracepoint.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] if its types lead nowhere.
    pub fn tracepoint_prototype(&self, hook: &str) -> Result<Option<Vec<Argument>>> {
        let Some(&id) = self.tracepoints.get(hook.as_bytes()) else { return Ok(None) };
        let pointer = self.resolve(id)?;
        let types = self.parameters(pointer.target)?;
        // A type of function has no names; those of the function that calls the attached programs do.
        let names = match self.function(&format!("__traceiter_{hook}"))? {
            Some(id) => self.parameters(self.direct(id)?.target)?,
            None => Vec::new(),
        };
        let same = names.len() == types.len();
        let arguments = types.iter().enumerate().skip(1).map(|(place, (_, id))| {
            let name = if same { self.string(names[place].0)? } else { &[] };
            let name = (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned());
            Ok(Argument { type_name: self.type_name(*id, 0)?, name })
        });
        arguments.collect::<Result<Vec<_>>>().map(Some)
    }

    /// The id of the kernel function of this name, as a program that attaches to it is given.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] if a name lies outside the blob.
    pub fn function(&self, name: &str) -> Result<Option<u32>> {
        for id in 1..self.types.len() as u32 {
            let ty = self.direct(id)?;
            if ty.kind == KIND_FUNC && self.string(ty.name)? == name.as_bytes() {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// (name offset, type id) of each parameter of a function's type.
    fn parameters(&self, id: u32) -> Result<Vec<(u32, u32)>> {
        let proto = self.resolve(id)?;
        if proto.kind != KIND_FUNC_PROTO {
            return Err(BtfError::Malformed(proto.at, "a tracepoint is not a function"));
        }
        let at = |i: usize| proto.at + 12 + 8 * i;
        (0..proto.vlen)
            .map(|i| Ok((read_u32(&self.data, at(i))?, read_u32(&self.data, at(i) + 4)?)))
            .collect()
    }

    /// A type as it stands, names for others not looked through.
    fn direct(&self, id: u32) -> Result<Type> {
        let at = self.types.get(id as usize).filter(|_| id != 0);
        self.header(*at.ok_or(BtfError::Malformed(0, "a type id is out of range"))? as usize)
    }

    fn type_name(&self, id: u32, depth: usize) -> Result<String> {
        if id == 0 {
            return Ok("void".to_owned());
        }
        let ty = self.direct(id)?;
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed(ty.at, "types are nested too deeply"));
        }
        let name = || self.string(ty.name).map(|name| String::from_utf8_lossy(name).into_owned());
        let inner = || self.type_name(ty.target, depth + 1);
        let qualified = |word: &str| -> Result<String> {
            let inner = inner()?;
            Ok(if inner.ends_with('*') { format!("{inner} {word}") } else { format!("{word} {inner}") })
        };
        match ty.kind {
            // Compilers spell out what C abbreviates.
            KIND_INT => Ok(match &*name()? {
                "long int" => "long".to_owned(),
                "long unsigned int" => "unsigned long".to_owned(),
                "long long int" => "long long".to_owned(),
                "long long unsigned int" => "unsigned long long".to_owned(),
                other => other.to_owned(),
            }),
            KIND_FLOAT | KIND_TYPEDEF => name(),
            KIND_STRUCT | KIND_FWD => Ok(format!("struct {}", name()?)),
            KIND_UNION => Ok(format!("union {}", name()?)),
            KIND_ENUM | KIND_ENUM64 => Ok(format!("enum {}", name()?)),
            KIND_PTR => {
                let inner = inner()?;
                Ok(if inner.ends_with('*') { format!("{inner}*") } else { format!("{inner} *") })
            }
            KIND_CONST => qualified("const"),
            KIND_VOLATILE => qualified("volatile"),
            KIND_RESTRICT | KIND_TYPE_TAG => inner(),
            KIND_ARRAY => Ok("an array".to_owned()),
            KIND_FUNC_PROTO => Ok("a function".to_owned()),
            _ => Err(BtfError::Malformed(ty.at, "an argument has a type of an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_tells_types_and_names() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!(
                "SKIP btf::prototype::the_running_kernel_tells_types_and_names: no /sys/kernel/btf/vmlinux here"
            );
            return;
        };
        let btf = Btf::parse(data).unwrap();
        let types = |hook: &str| {
            let arguments = btf.tracepoint_prototype(hook).unwrap().unwrap();
            arguments.into_iter().map(|argument| argument.type_name).collect::<Vec<_>>()
        };
        assert_eq!(types("sys_enter"), ["struct pt_regs *", "long"]);
        assert_eq!(types("cgroup_mkdir"), ["struct cgroup *", "const char *"]);
        assert_eq!(types("sched_switch")[..3], ["bool", "struct task_struct *", "struct task_struct *"]);
        assert_eq!(btf.tracepoint_prototype("no_such_hook"), Ok(None));
        assert!(btf.function("schedule").unwrap().is_some());
        assert_eq!(btf.function("no_such_function"), Ok(None));
    }
}
