//! In: the mounted cgroup-v2 hierarchy; out: every cgroup with its id, parents first. Knows no workloads and no tenants.

use std::collections::VecDeque;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Most cgroups read in one walk unless the caller says otherwise.
pub const MOST_CGROUPS: usize = 100_000;

/// cgroup id (inode number) of the root of the whole hierarchy.
const ROOT_ID: u64 = 1;

/// Most bytes of mountinfo read; hosts with tens of thousands of mounts stay below.
const MOUNTINFO_BYTES: u64 = 32 << 20;

/// Why the hierarchy cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Only version 1 controllers are mounted.
    #[error("only cgroup v1 is mounted, so the kernel cannot tell workloads apart: {}", self.remedy())]
    V1Only,
    /// No cgroup file system is mounted at all.
    #[error("no cgroup file system is mounted: {}", self.remedy())]
    NotMounted,
    /// The list of mounts is unreadable.
    #[error("cannot read `/proc/self/mountinfo`: {0}; {remedy}", remedy = self.remedy())]
    Mounts(#[source] io::Error),
    /// The root of the hierarchy is unreadable.
    #[error("cannot read the cgroup hierarchy at `{path}`: {source}; {}", self.remedy())]
    Root {
        /// The mount point, printable.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl TreeError {
    /// What to do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::V1Only => {
                "boot with `systemd.unified_cgroup_hierarchy=1`, or mount the v2 hierarchy with `mount -t cgroup2 none \
                 /sys/fs/cgroup/unified` if processes have cgroups in it"
            }
            Self::NotMounted => "mount one with `mount -t cgroup2 none /sys/fs/cgroup`",
            Self::Mounts(_) => "mount proc at /proc",
            Self::Root { .. } => "run as root or make it readable",
        }
    }
}

/// How cgroup v2 is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Version 2 alone.
    Unified,
    /// Version 2 beside controllers of version 1.
    Hybrid,
}

/// Where the hierarchy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The mount point.
    pub mount: PathBuf,
    /// Alone or beside version 1.
    pub mode: Mode,
}

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupEntry {
    /// cgroup id: the inode number of the directory.
    pub id: u64,
    /// The parent's id; the root's is its own.
    pub parent_id: u64,
    /// Last component, raw; empty for the root.
    pub name: Vec<u8>,
    /// Path below the mount point, raw; `/` for the root.
    pub path: Vec<u8>,
    /// The directory is root's.
    pub is_roots: bool,
}

/// The outcome of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// The cgroups, every parent before its children.
    pub entries: Vec<CgroupEntry>,
    /// The limit was reached: there are more.
    pub truncated: bool,
    /// Directories that vanished or could not be read.
    pub skipped: usize,
}

impl Hierarchy {
    /// Finds the mounted hierarchy.
    ///
    /// # Errors
    /// Version 1 only, nothing mounted, or no readable list of mounts.
    pub fn find() -> Result<Self, TreeError> {
        use io::Read;
        let mut mounts = Vec::new();
        fs::File::open("/proc/self/mountinfo")
            .and_then(|file| file.take(MOUNTINFO_BYTES).read_to_end(&mut mounts))
            .map_err(TreeError::Mounts)?;
        let candidates = Self::candidates(&mounts)?;
        // In a container the host's hierarchy may be mounted beside the container's own part of it.
        Ok(candidates.iter().find(|found| found.is_whole()).unwrap_or(&candidates[0]).clone())
    }

    /// The mounts of cgroup v2 in a mountinfo text, the usual places first; never empty.
    fn candidates(mountinfo: &[u8]) -> Result<Vec<Self>, TreeError> {
        let mut found: Vec<(bool, Vec<u8>)> = Vec::new();
        let mut v1 = false;
        for line in mountinfo.split(|b| *b == b'\n') {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            // id parent major:minor root mount-point options [optional...] - type source super-options
            let Some(dash) = fields.iter().position(|field| *field == b"-").filter(|dash| *dash >= 6) else {
                continue;
            };
            match fields.get(dash + 1) {
                Some(&b"cgroup") => v1 = true,
                Some(&b"cgroup2") => found.push((fields[3] == b"/", unescape_octal(fields[4]))),
                _ => {}
            }
        }
        if found.is_empty() {
            return Err(if v1 { TreeError::V1Only } else { TreeError::NotMounted });
        }
        found.sort_by_key(|(whole, mount)| {
            let rank = match mount.as_slice() {
                b"/sys/fs/cgroup" => 0,
                b"/sys/fs/cgroup/unified" => 1,
                _ => 2,
            };
            (!whole, rank)
        });
        let mode = if v1 { Mode::Hybrid } else { Mode::Unified };
        Ok(found
            .into_iter()
            .map(|(_, mount)| Self { mount: PathBuf::from(std::ffi::OsString::from_vec(mount)), mode })
            .collect())
    }

    /// Whether the mount shows the hierarchy from its root: not so in a container with a cgroup namespace of its own.
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.mount).is_ok_and(|root| root.ino() == ROOT_ID)
    }

    /// Whether the cgroup of this id is at its path no more. One that cannot be looked at is there, for all that is known: its owner
    /// may have closed the directories above it.
    pub fn is_gone(&self, path: &[u8], id: u64) -> bool {
        match fs::metadata(below(&self.mount, path)) {
            Ok(meta) => meta.ino() != id,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Reads the cgroups breadth-first, at most `limit` of them, without following symbolic links or leaving the mount.
    ///
    /// # Errors
    /// The root is unreadable; below it, what vanishes or is refused is skipped and counted.
    pub fn walk(&self, limit: usize) -> Result<Walk, TreeError> {
        let unreadable = |source| TreeError::Root {
            path: super::path::printable(self.mount.as_os_str().as_bytes()),
            source,
        };
        let root = fs::metadata(&self.mount).map_err(unreadable)?;
        let mut walk = Walk::default();
        if limit == 0 {
            walk.truncated = true;
            return Ok(walk);
        }
        walk.entries.push(CgroupEntry {
            id: root.ino(),
            parent_id: root.ino(),
            name: Vec::new(),
            path: b"/".to_vec(),
            is_roots: root.uid() == 0,
        });
        let mut queue = VecDeque::from([0]);
        while let Some(at) = queue.pop_front() {
            let (parent_id, parent_path) = (walk.entries[at].id, walk.entries[at].path.clone());
            let directory = below(&self.mount, &parent_path);
            let children = match fs::read_dir(&directory) {
                Ok(children) => children,
                Err(source) if at == 0 => return Err(unreadable(source)),
                Err(_) => {
                    walk.skipped += 1;
                    continue;
                }
            };
            for child in children {
                // An error while listing (the directory was just removed) may repeat for ever: leave this directory.
                let Ok(child) = child else {
                    walk.skipped += 1;
                    break;
                };
                match child.file_type() {
                    Ok(kind) if kind.is_dir() => {}
                    Ok(_) => continue,
                    Err(_) => {
                        walk.skipped += 1;
                        continue;
                    }
                }
                let Ok(meta) = fs::symlink_metadata(child.path()) else {
                    walk.skipped += 1;
                    continue;
                };
                if !meta.is_dir() || meta.dev() != root.dev() {
                    continue;
                }
                if walk.entries.len() >= limit {
                    walk.truncated = true;
                    return Ok(walk);
                }
                let name = child.file_name().into_vec();
                let mut path = if parent_path == b"/" { Vec::new() } else { parent_path.clone() };
                path.push(b'/');
                path.extend_from_slice(&name);
                queue.push_back(walk.entries.len());
                walk.entries.push(CgroupEntry {
                    id: meta.ino(),
                    parent_id,
                    name,
                    path,
                    is_roots: meta.uid() == 0,
                });
            }
        }
        Ok(walk)
    }
}

fn below(mount: &Path, path: &[u8]) -> PathBuf {
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    if relative.is_empty() { mount.to_path_buf() } else { mount.join(std::ffi::OsStr::from_bytes(relative)) }
}

/// Undoes the kernel's `\040` escapes of blanks, tabs, newlines and backslashes.
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\'
            && let Some(digits @ [b'0'..=b'3', b'0'..=b'7', b'0'..=b'7']) = tail.get(..3)
        {
            out.push((digits[0] - b'0') << 6 | (digits[1] - b'0') << 3 | (digits[2] - b'0'));
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kernmeter-tree-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("scratch directory");
            Self(path)
        }

        fn hierarchy(&self) -> Hierarchy {
            Hierarchy { mount: self.0.clone(), mode: Mode::Unified }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const V2: &str = "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw\n";

    #[test]
    fn mounts() {
        let of = |text: &str| Hierarchy::candidates(text.as_bytes());
        let v2 = of(V2).expect("v2");
        assert_eq!(v2, [Hierarchy { mount: "/sys/fs/cgroup".into(), mode: Mode::Unified }]);
        let hybrid = of(HYBRID).expect("hybrid");
        assert_eq!(hybrid, [Hierarchy { mount: "/sys/fs/cgroup/unified".into(), mode: Mode::Hybrid }]);
        assert!(matches!(of(HYBRID.lines().next().expect("a line")), Err(TreeError::V1Only)));
        for text in ["", "garbage\n- cgroup2\n\0\0 - - -", "1 2 3 - cgroup2 x"] {
            assert!(matches!(of(text), Err(TreeError::NotMounted)), "{text:?}");
        }
        // The usual place wins over others, a whole mount over a part, whatever the order; escapes are undone.
        let many = format!(
            "1 1 0:1 /a/b /sys/fs/cgroup rw - cgroup2 c rw\n1 1 0:1 / /host\\040x\\134\\011 rw - cgroup2 c rw\n{V2}"
        );
        let found: Vec<_> = of(&many).expect("many").into_iter().map(|found| found.mount).collect();
        assert_eq!(
            found,
            [Path::new("/sys/fs/cgroup"), Path::new("/host x\\\t"), Path::new("/sys/fs/cgroup")]
        );
        assert!(TreeError::V1Only.to_string().contains("systemd.unified_cgroup_hierarchy=1"));
    }

    #[test]
    fn walks_breadth_first_with_hostile_names() {
        let scratch = Scratch::new("names");
        let odd = std::ffi::OsStr::from_bytes(b"a\"b\n\xff");
        for path in [Path::new("x/y/z"), Path::new("w"), Path::new(odd)] {
            fs::create_dir_all(scratch.0.join(path)).expect("directory");
        }
        fs::create_dir(scratch.0.join("n".repeat(255))).expect("long name");
        fs::write(scratch.0.join("cgroup.procs"), "1").expect("file");
        std::os::unix::fs::symlink(&scratch.0, scratch.0.join("loop")).expect("symlink");

        let walk = scratch.hierarchy().walk(MOST_CGROUPS).expect("walk");
        assert_eq!((walk.truncated, walk.skipped, walk.entries.len()), (false, 0, 7));
        let root = &walk.entries[0];
        assert_eq!((root.path.as_slice(), root.name.len(), root.parent_id), (&b"/"[..], 0, root.id));
        let mut seen = HashSet::from([root.id]);
        for entry in &walk.entries[1..] {
            assert!(seen.contains(&entry.parent_id), "parent first: {entry:?}");
            assert!(entry.path.ends_with(&entry.name) && entry.path.starts_with(b"/"), "{entry:?}");
            assert_eq!(entry.id, fs::metadata(below(&scratch.0, &entry.path)).expect("still there").ino());
            seen.insert(entry.id);
        }
        let paths: HashSet<&[u8]> = walk.entries.iter().map(|entry| entry.path.as_slice()).collect();
        assert!(paths.contains(&b"/x/y/z"[..]) && paths.contains(&b"/a\"b\n\xff"[..]));
        let depth = |path: &[u8]| path.split(|b| *b == b'/').count();
        assert!(walk.entries[1..].is_sorted_by_key(|entry| depth(&entry.path)));
    }

    /// Without capabilities, as after the start: user 0 is then refused what the modes refuse him.
    #[test]
    fn what_cannot_be_looked_at_is_not_gone() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("closed");
        fs::create_dir_all(scratch.0.join("closed/inner")).expect("directory");
        let id = fs::metadata(scratch.0.join("closed/inner")).expect("metadata").ino();
        let hierarchy = scratch.hierarchy();
        assert!(!hierarchy.is_gone(b"/closed/inner", id));
        assert!(hierarchy.is_gone(b"/closed/inner", id + 1), "another of the same name");
        assert!(hierarchy.is_gone(b"/closed/none", id));
        let set = |mode| fs::set_permissions(scratch.0.join("closed"), fs::Permissions::from_mode(mode));
        set(0).expect("close");
        let (seen, is_gone) = std::thread::spawn(move || {
            caps::clear(None, caps::CapSet::Effective).expect("giving up is always allowed");
            (
                hierarchy.walk(MOST_CGROUPS).expect("walk").entries.len(),
                hierarchy.is_gone(b"/closed/inner", id),
            )
        })
        .join()
        .expect("thread");
        set(0o755).expect("open");
        assert_eq!(seen, 2, "the walk does not see what is below");
        assert!(!is_gone);
    }

    #[test]
    fn limits_and_missing_roots() {
        let scratch = Scratch::new("limits");
        for n in 0..20 {
            fs::create_dir(scratch.0.join(n.to_string())).expect("directory");
        }
        for (limit, entries, truncated) in [(0, 0, true), (1, 1, true), (20, 20, true), (21, 21, false)] {
            let walk = scratch.hierarchy().walk(limit).expect("walk");
            assert_eq!((walk.entries.len(), walk.truncated), (entries, truncated), "limit {limit}");
        }
        let gone = Hierarchy { mount: scratch.0.join("no\nsuch"), mode: Mode::Unified };
        let error = gone.walk(1).expect_err("missing root").to_string();
        assert!(error.contains("no\\nsuch") && !error.contains('\n'), "{error}");
        assert!(!gone.is_whole());
    }

    #[test]
    fn vanishing_directories_are_skipped() {
        let scratch = Scratch::new("vanish");
        let churn = scratch.0.join("churn");
        fs::create_dir(&churn).expect("directory");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for n in 0..50 {
                        let _ = fs::create_dir_all(churn.join(format!("{n}/inner")));
                    }
                    for n in 0..50 {
                        let _ = fs::remove_dir_all(churn.join(n.to_string()));
                    }
                }
            });
            let walks: Vec<_> = (0..200).map(|_| scratch.hierarchy().walk(MOST_CGROUPS)).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            for walk in walks {
                let walk = walk.expect("the root is there");
                assert!(walk.entries.len() >= 2 && !walk.truncated);
            }
        });
    }

    #[test]
    fn the_hierarchy_of_this_machine() {
        let hierarchy = match Hierarchy::find() {
            Ok(hierarchy) => hierarchy,
            Err(error @ (TreeError::V1Only | TreeError::NotMounted)) => {
                println!("skipped: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let walk = hierarchy.walk(MOST_CGROUPS).expect("walk");
        assert_eq!(walk.entries[0].path, b"/");
        assert_eq!(walk.entries[0].id == ROOT_ID, hierarchy.is_whole());

        let name = format!("kernmeter-tree-{}.scope", std::process::id());
        let made = hierarchy.mount.join(&name);
        if let Err(error) = fs::create_dir(&made) {
            println!("skipped: cannot create a cgroup: {error}");
            return;
        }
        let walk = hierarchy.walk(MOST_CGROUPS);
        let id = fs::metadata(&made).map(|meta| meta.ino());
        fs::remove_dir(&made).expect("an empty cgroup can be removed");
        let walk = walk.expect("walk");
        let entry = walk.entries.iter().find(|entry| entry.name == name.as_bytes()).expect("the new cgroup");
        assert_eq!(entry.path, format!("/{name}").into_bytes());
        assert_eq!((entry.id, entry.parent_id), (id.expect("metadata"), walk.entries[0].id));
    }
}
