//! In: paths of files; out: whether what they lead to is another than before. Opens and reads none of them.
//!
//! Symbolic links are followed, so the swap by which a mounted `ConfigMap` or `Secret` changes is seen. Asking costs one
//! `stat` per file; nothing is kept open, and no event can be missed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What tells two states of a file apart: device, inode, size, modification and change time (seconds, nanoseconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    File([i64; 7]),
    /// It cannot be looked at, for this reason.
    Unseen(io::ErrorKind),
}

impl Stamp {
    fn of(path: &Path) -> Stamp {
        match fs::metadata(path) {
            Ok(meta) => Stamp::File([
                meta.dev() as i64,
                meta.ino() as i64,
                meta.size() as i64,
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            ]),
            Err(error) => Stamp::Unseen(error.kind()),
        }
    }
}

/// Files that are looked at from time to time.
#[derive(Clone, Debug, Default)]
pub struct FileWatch {
    files: Vec<(PathBuf, Stamp)>,
    /// They changed when they were last looked at.
    is_unsettled: bool,
}

impl FileWatch {
    /// Watches these files from their present state on.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> FileWatch {
        FileWatch {
            files: paths
                .into_iter()
                .map(|path| {
                    let stamp = Stamp::of(&path);
                    (path, stamp)
                })
                .collect(),
            is_unsettled: false,
        }
    }

    /// As [`changed`](FileWatch::changed), once they have stayed as they are from one look to the next: what somebody writes in
    /// place is left until it is whole.
    pub fn settled(&mut self) -> bool {
        let changed = self.changed();
        let is_due = self.is_unsettled && !changed;
        self.is_unsettled = changed;
        is_due
    }

    /// What they are now is known.
    pub fn seen(&mut self) {
        self.changed();
        self.is_unsettled = false;
    }

    /// Whether any of the files changed since this was last asked, came or went.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, known) in &mut self.files {
            let now = Stamp::of(path);
            if now != *known {
                *known = now;
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_being_written_is_left_until_it_is_whole() {
        let path = std::env::temp_dir().join(format!("kernmeter-settling-{}", std::process::id()));
        fs::write(&path, "whole").expect("file");
        let mut watch = FileWatch::new([path.clone()]);
        assert!(!watch.settled() && !watch.is_unsettled);
        for text in ["", "whole ag", "whole again"] {
            fs::write(&path, text).expect("file");
            assert!(!watch.settled() && watch.is_unsettled, "{text}");
        }
        assert!(watch.settled() && !watch.is_unsettled);
        assert!(!watch.settled());
        fs::write(&path, "once more").expect("file");
        assert!(!watch.settled());
        watch.seen();
        assert!(!watch.settled() && !watch.is_unsettled, "read by somebody's request");
        fs::remove_file(&path).expect("clean up");
    }

    #[test]
    fn a_configmap_is_swapped() {
        let dir = std::env::temp_dir().join(format!("kernmeter-filewatch-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for (generation, text) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir_all(dir.join(generation)).expect("directory");
            fs::write(dir.join(generation).join("kernmeter.yaml"), text).expect("file");
        }
        symlink("..1", dir.join("..data")).expect("link");
        symlink("..data/kernmeter.yaml", dir.join("kernmeter.yaml")).expect("link");
        let file = dir.join("kernmeter.yaml");
        let mut watch = FileWatch::new([file.clone(), dir.join("absent")]);
        assert!(!watch.changed());

        symlink("..2", dir.join("..tmp")).expect("link");
        fs::rename(dir.join("..tmp"), dir.join("..data")).expect("swap");
        assert!(watch.changed());
        assert!(!watch.changed());

        fs::remove_file(&file).expect("delete");
        assert!(watch.changed() && !watch.changed(), "it is gone");
        fs::write(&file, "c").expect("file");
        assert!(watch.changed());
        fs::write(dir.join("absent"), "d").expect("file");
        assert!(watch.changed());
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
