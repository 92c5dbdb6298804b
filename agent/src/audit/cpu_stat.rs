//! In: the path and id of a cgroup; out: the CPU time the kernel accounts to it. Writes nothing; believes no path alone.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The file has some twenty short lines; the one that is looked for is the first.
const MOST_BYTES: u64 = 4096;

/// Nanoseconds that the tasks of a cgroup, and of all below it, have run. `mount` is where the hierarchy is, `path` the
/// cgroup's place in it, absolute. `None` if it cannot be read, or if another cgroup than `cgroup_id` is there.
pub fn usage_ns(mount: &Path, path: &[u8], cgroup_id: u64) -> Option<u64> {
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let directory = mount.join(std::ffi::OsStr::from_bytes(relative));
    let mut text = Vec::new();
    File::open(directory.join("cpu.stat")).ok()?.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    // After reading: ids are not used again, and v2 cgroups are not renamed. If the directory is the right one now, it
    // was when the file was opened.
    (fs::symlink_metadata(&directory).ok()?.ino() == cgroup_id).then(|| parse(&text))?
}

/// `usage_usec` of a `cpu.stat`, in nanoseconds.
fn parse(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    // A number without its end of line may be half a number.
    let line = text.split_inclusive('\n').find_map(|line| line.strip_prefix("usage_usec "))?;
    let digits = line.strip_suffix('\n')?;
    let usec: u64 = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    usec.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_believed() {
        let whole = "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 0\n";
        assert_eq!(parse(whole.as_bytes()), Some(1_234_567_000));
        assert_eq!(parse(b"user_usec 1\nusage_usec 0\n"), Some(0));
        for nonsense in [
            "",
            "usage_usec",
            "usage_usec \n",
            // Half a file.
            "usage_usec 1234",
            "usage_usec -1\n",
            "usage_usec +1\n",
            "usage_usec 1.5\n",
            "usage_usec 0x10\n",
            "usage_usec  7\n",
            "usage_usec 7 \n",
            "user_usec 7\n",
            "xusage_usec 7\n",
            // Neither fits into 64 bits of nanoseconds.
            "usage_usec 99999999999999999999\n",
            "usage_usec 18446744073709551615\n",
        ] {
            assert_eq!(parse(nonsense.as_bytes()), None, "{nonsense:?}");
        }
        assert_eq!(parse(b"usage_usec 1\xff\n"), None);
    }

    #[test]
    fn another_cgroup_of_the_same_path_is_not_read() {
        let mount = std::env::temp_dir().join(format!("kernmeter-cpu-stat-{}", std::process::id()));
        let _ = fs::remove_dir_all(&mount);
        fs::create_dir_all(mount.join("a/b")).expect("directory");
        fs::write(mount.join("a/b/cpu.stat"), "usage_usec 5\n").expect("file");
        let id = fs::metadata(mount.join("a/b")).expect("metadata").ino();
        assert_eq!(usage_ns(&mount, b"/a/b", id), Some(5000));
        assert_eq!(usage_ns(&mount, b"/a/b", id + 1), None);
        // No file, no directory, a name that no path can hold.
        assert_eq!(usage_ns(&mount, b"/a", fs::metadata(mount.join("a")).expect("metadata").ino()), None);
        assert_eq!(usage_ns(&mount, b"/c", id), None);
        assert_eq!(usage_ns(&mount, b"/a/\0b", id), None);
        fs::remove_dir_all(&mount).expect("removed");
    }

    #[test]
    fn an_account_of_this_machine_is_read() {
        let Ok(hierarchy) = crate::identity::tree::Hierarchy::find() else {
            println!("skipped: no cgroup v2");
            return;
        };
        let walk = hierarchy.walk(1000).expect("walk");
        // The root's too: on a machine that has just begun, or in the midst of other tests, no cgroup below it need have
        // run anything.
        let usage =
            walk.entries.iter().filter_map(|entry| usage_ns(&hierarchy.mount, &entry.path, entry.id)).max();
        assert!(usage > Some(0), "{usage:?} in {} cgroups", walk.entries.len());
    }
}
