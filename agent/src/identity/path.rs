//! In: the bytes of a cgroup path; out: what its names say (unit, container, pod, user). Reads nothing, trusts nothing.
//!
//! Components are read from the root down and reading stops at the first workload (see
//! [`kernmeter_abi::is_workload_name`]): what runs deeper, containers inside containers included, shares its slot.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::fingerprint;

/// Longest path kept, in bytes; a longer one is cut and ends in `~` and a fingerprint of the whole.
pub const PATH_BYTES: usize = 4096;

/// Longest name kept in a field, in bytes; the kernel allows 255, and replacing invalid UTF-8 may triple that.
pub const FIELD_BYTES: usize = 3 * kernmeter_abi::NAME_MAX;

/// Digits of a full container id.
const ID_DIGITS: usize = 64;

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd: its Kubernetes plugin or nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// podman (libpod).
    Podman,
    /// systemd-nspawn.
    Nspawn,
    /// LXC, Incus and LXD.
    Lxc,
}

impl Runtime {
    /// Every runtime.
    pub const ALL: [Self; 6] =
        [Self::Docker, Self::Containerd, Self::Crio, Self::Podman, Self::Nspawn, Self::Lxc];

    /// The name used in rules and tenant names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Nspawn => "nspawn",
            Self::Lxc => "lxc",
        }
    }

    /// By the prefix that runtimes put before the id in a cgroup's name.
    fn of_prefix(prefix: &[u8]) -> Option<Self> {
        Some(match prefix {
            b"docker" => Self::Docker,
            b"cri-containerd" | b"containerd" | b"nerdctl" => Self::Containerd,
            b"crio" => Self::Crio,
            b"libpod" => Self::Podman,
            _ => return None,
        })
    }

    /// By the directory under which a runtime without systemd keeps containers.
    fn of_parent(parent: &[u8]) -> Option<Self> {
        Some(match parent {
            b"docker" => Self::Docker,
            b"containerd" => Self::Containerd,
            b"libpod_parent" => Self::Podman,
            _ => return None,
        })
    }
}

/// Kubernetes quality of service, as far as the path tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Qos {
    /// Directly under `kubepods`.
    Guaranteed,
    /// Under `burstable`.
    Burstable,
    /// Under `besteffort`.
    BestEffort,
}

/// What sort of cgroup a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The root of the hierarchy.
    Root,
    /// A systemd slice that is no pod's.
    Slice,
    /// A systemd service, scope, socket, mount or swap of the system.
    Unit,
    /// A unit of a user's manager.
    UserUnit,
    /// A login session.
    Session,
    /// A container.
    Container,
    /// A pod's own cgroup, outside its containers.
    Pod,
    /// A machine: systemd-nspawn, LXC or a virtual machine registered with systemd-machined.
    Machine,
    /// None of these.
    Other,
}

/// What a cgroup path says. Strings are UTF-8 with invalid bytes replaced by U+FFFD and at most [`FIELD_BYTES`] long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFacts {
    /// The path, raw; begins with `/`; at most [`PATH_BYTES`].
    pub path: Vec<u8>,
    /// The systemd unit with its suffix.
    pub unit: Option<String>,
    /// The innermost systemd slice around the unit, with its suffix.
    pub slice: Option<String>,
    /// The user: from `user-<uid>.slice` directly under `user.slice` only, where none but systemd puts them.
    pub uid: Option<u32>,
    /// The login session: `3` of `session-3.scope`.
    pub session: Option<String>,
    /// The container runtime, where the names tell.
    pub runtime: Option<Runtime>,
    /// The full container id: 64 lower-case hexadecimal digits.
    pub container_id: Option<String>,
    /// The pod's UID: a dashed UUID, or the 32 digits of a static pod's configuration hash as they are. Only in paths that
    /// none but the system's administrator makes: below `user.slice` and users' managers nothing is a pod, whatever its
    /// name.
    pub pod_uid: Option<String>,
    /// The pod's quality of service.
    pub qos: Option<Qos>,
    /// The machine's name.
    pub machine: Option<String>,
    /// What the path names.
    pub kind: Kind,
}

impl CgroupFacts {
    /// Recognises a path. Any bytes will do; a missing leading `/` is added.
    pub fn recognise(path: &[u8]) -> Self {
        let mut walk = Walk {
            facts: Self {
                path: bounded_path(path),
                unit: None,
                slice: None,
                uid: None,
                session: None,
                runtime: None,
                container_id: None,
                pod_uid: None,
                qos: None,
                machine: None,
                kind: Kind::Root,
            },
            parent: b"",
            depth: 0,
            user_manager: false,
            users: false,
            kubepods: false,
        };
        // From the original: a cut path must not end in a name that was never there.
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            if walk.component(name) {
                break;
            }
            walk.parent = name;
            walk.depth += 1;
        }
        walk.facts
    }

    /// The first component of the path; empty for the root.
    pub fn top(&self) -> &[u8] {
        self.path.split(|b| *b == b'/').find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// The first twelve digits of the container id, as runtimes print it.
    pub fn container_id_short(&self) -> Option<&str> {
        self.container_id.as_deref().and_then(|id| id.get(..12))
    }
}

fn bounded_path(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len().min(PATH_BYTES) + 1);
    if path.first() != Some(&b'/') {
        out.push(b'/');
    }
    if out.len() + path.len() <= PATH_BYTES {
        out.extend_from_slice(path);
    } else {
        let suffix = format!("~{:016x}", fingerprint(path));
        out.extend_from_slice(&path[..PATH_BYTES - suffix.len() - out.len()]);
        out.extend_from_slice(suffix.as_bytes());
    }
    out
}

/// Text of one component; a path given by someone else may hold longer ones than the kernel allows.
fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(kernmeter_abi::NAME_MAX)]).into_owned()
}

struct Walk<'a> {
    facts: CgroupFacts,
    parent: &'a [u8],
    depth: usize,
    user_manager: bool,
    /// Whether users make cgroups here, and name them as they like.
    users: bool,
    kubepods: bool,
}

impl Walk<'_> {
    /// Takes in one component; true when it is the workload and the rest does not matter.
    fn component(&mut self, name: &[u8]) -> bool {
        if let Some(stem) = name.strip_suffix(b".slice").filter(|stem| !stem.is_empty()) {
            self.slice(name, stem);
            return false;
        }
        if let Some(scope) = name.strip_suffix(b".scope").filter(|stem| !stem.is_empty()) {
            self.scope(name, scope);
            return true;
        }
        if let Some(service) = name.strip_suffix(b".service").filter(|stem| !stem.is_empty()) {
            return self.service(name, service);
        }
        if [&b".socket"[..], b".mount", b".swap"]
            .iter()
            .any(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
        {
            self.unit(name);
            return true;
        }
        self.plain(name)
    }

    fn unit(&mut self, name: &[u8]) {
        self.facts.unit = Some(text(name));
        self.facts.kind = if self.user_manager { Kind::UserUnit } else { Kind::Unit };
    }

    fn slice(&mut self, name: &[u8], stem: &[u8]) {
        self.facts.slice = Some(text(name));
        // Inside a user's manager the unit is the one below, not the manager.
        self.facts.kind = Kind::Slice;
        self.users |= name == b"user.slice";
        if self.depth == 1 && self.parent == b"user.slice" {
            self.facts.uid = stem.strip_prefix(b"user-").and_then(number).or(self.facts.uid);
        }
        // kubepods[-burstable|-besteffort][-pod<uid>].slice, with the prefix of a parent slice before it.
        let (group, pod) = match rfind(stem, b"-pod") {
            Some(at) => match pod_uid(&stem[at + 4..]) {
                Some(uid) => (&stem[..at], Some(uid)),
                None => (stem, None),
            },
            None => (stem, None),
        };
        let (group, qos) = if let Some(group) = group.strip_suffix(b"-burstable") {
            (group, Qos::Burstable)
        } else if let Some(group) = group.strip_suffix(b"-besteffort") {
            (group, Qos::BestEffort)
        } else {
            (group, Qos::Guaranteed)
        };
        if group == b"kubepods" || group.ends_with(b"-kubepods") {
            self.kubepods = true;
            if let Some(uid) = pod {
                self.pod(uid, qos);
            }
        }
    }

    fn pod(&mut self, uid: String, qos: Qos) {
        if self.users {
            return;
        }
        self.facts.pod_uid = Some(uid);
        self.facts.qos = Some(qos);
        self.facts.kind = Kind::Pod;
    }

    fn scope(&mut self, name: &[u8], stem: &[u8]) {
        self.unit(name);
        if let Some((runtime, id)) = prefixed_id(stem) {
            self.container(runtime, id);
        } else if let Some(session) =
            stem.strip_prefix(b"session-").filter(|_| self.facts.uid.is_some() && !self.user_manager)
        {
            self.facts.session = Some(text(session));
            self.facts.kind = Kind::Session;
        } else if let Some(machine) =
            stem.strip_prefix(b"machine-").filter(|_| self.parent == b"machine.slice")
        {
            let machine = unescape(machine);
            // libvirt registers `qemu-<n>-<name>` and `lxc-<n>-<name>`; a virtual machine has no container runtime.
            let runtime = if machine.starts_with(b"qemu-") {
                None
            } else if machine.starts_with(b"lxc-") {
                Some(Runtime::Lxc)
            } else {
                Some(Runtime::Nspawn)
            };
            self.machine(runtime, &machine);
        }
    }

    fn service(&mut self, name: &[u8], stem: &[u8]) -> bool {
        self.unit(name);
        if let Some(instance) = stem.strip_prefix(b"user@") {
            self.users = true;
            // The user's manager: its own units are below.
            self.user_manager = self.facts.uid.is_some() && number(instance) == self.facts.uid;
            self.facts.kind = if self.user_manager { Kind::UserUnit } else { Kind::Unit };
            return false;
        }
        if let Some(machine) = stem.strip_prefix(b"systemd-nspawn@").filter(|instance| !instance.is_empty()) {
            let machine = unescape(machine);
            self.machine(Some(Runtime::Nspawn), &machine);
        }
        true
    }

    fn machine(&mut self, runtime: Option<Runtime>, name: &[u8]) {
        self.facts.machine = Some(text(name));
        self.facts.runtime = runtime;
        self.facts.kind = Kind::Machine;
    }

    fn container(&mut self, runtime: Option<Runtime>, id: &[u8]) {
        self.facts.runtime = runtime;
        self.facts.container_id = Some(text(id));
        self.facts.kind = Kind::Container;
    }

    /// A name without a unit's suffix: the cgroupfs drivers, LXC, anyone's own directories.
    fn plain(&mut self, name: &[u8]) -> bool {
        self.facts.kind = Kind::Other;
        if let Some(machine) = name.strip_prefix(b"lxc.payload.").filter(|name| !name.is_empty()) {
            self.machine(Some(Runtime::Lxc), machine);
            return true;
        }
        if self.depth == 1 && (self.parent == b"lxc" || self.parent == b"lxc.payload") {
            self.machine(Some(Runtime::Lxc), name);
            return true;
        }
        // containerd under cgroupfs with the slice name of a kubelet under systemd: `<slice>:cri-containerd:<id>`.
        let mut parts = name.split(|b| *b == b':');
        if let (Some(slice), Some(prefix), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
            && is_id(id)
        {
            if let Some(stem) = slice.strip_suffix(b".slice") {
                self.slice(slice, stem);
            }
            self.container(Runtime::of_prefix(prefix), id);
            return true;
        }
        if let Some((runtime, id)) = prefixed_id(name) {
            self.container(runtime, id);
            return true;
        }
        if is_id(name) {
            let in_pod = self.facts.pod_uid.is_some().then_some(Runtime::Containerd);
            self.container(Runtime::of_parent(self.parent).or(in_pod), name);
            return true;
        }
        if name == b"kubepods" {
            self.kubepods = true;
        } else if self.kubepods
            && let Some(uid) = name.strip_prefix(b"pod").and_then(pod_uid)
        {
            let qos = match self.parent {
                b"burstable" => Qos::Burstable,
                b"besteffort" => Qos::BestEffort,
                _ => Qos::Guaranteed,
            };
            self.pod(uid, qos);
        }
        // Names that the kernel side also takes for a workload: `crio-conmon-<id>` and the like.
        kernmeter_abi::is_workload_name(name.len(), |i| name[i])
    }
}

/// `<runtime>-<id>` of a container; monitors (`crio-conmon-<id>`) are not containers.
fn prefixed_id(name: &[u8]) -> Option<(Option<Runtime>, &[u8])> {
    let dash = name.len().checked_sub(ID_DIGITS + 1)?;
    let id = &name[dash + 1..];
    if name[dash] != b'-' || !is_id(id) {
        return None;
    }
    Runtime::of_prefix(&name[..dash]).map(|runtime| (Some(runtime), id))
}

fn is_id(id: &[u8]) -> bool {
    id.len() == ID_DIGITS && is_hex(id)
}

fn is_hex(digits: &[u8]) -> bool {
    digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A pod's UID. systemd names hold `_` for `-`, which means nesting there.
fn pod_uid(raw: &[u8]) -> Option<String> {
    if raw.len() == 32 && is_hex(raw) {
        return Some(text(raw));
    }
    if raw.len() != 36 {
        return None;
    }
    let mut uid = String::with_capacity(36);
    for (at, byte) in raw.iter().enumerate() {
        match (at, byte) {
            (8 | 13 | 18 | 23, b'-' | b'_') => uid.push('-'),
            (8 | 13 | 18 | 23, _) => return None,
            (_, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => uid.push(byte.to_ascii_lowercase() as char),
            _ => return None,
        }
    }
    Some(uid)
}

/// A decimal number as systemd prints it: no sign, no leading zero.
fn number(digits: &[u8]) -> Option<u32> {
    if digits.len() > 1 && digits[0] == b'0' || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}

/// Undoes systemd's `\x2d` escapes of a unit's instance; anything else stays as it is.
fn unescape(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'\\') {
        return Cow::Borrowed(name);
    }
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\' && tail.first() == Some(&b'x'))
            .then(|| tail.get(1..3))
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = escaped {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    Cow::Owned(out)
}

/// A path for logs and error lines: UTF-8, control characters and quotes escaped, at most 256 bytes of input.
pub fn printable(path: &[u8]) -> String {
    let cut = &path[..path.len().min(256)];
    let mut out = String::with_capacity(cut.len());
    for c in String::from_utf8_lossy(cut).chars() {
        if c.is_control() || c == '"' || c == '`' {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    if cut.len() < path.len() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests;
