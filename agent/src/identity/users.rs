//! In: the text of a passwd file; out: user names by uid. Reads no file and knows no passwords.

use std::collections::HashMap;

/// Most users kept; more than that are shown by number.
const MOST: usize = 65_536;

/// Longest user name kept, in bytes; longer ones are shown by number.
const NAME_BYTES: usize = 64;

/// User names by uid, as they were when the file was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    names: HashMap<u32, Box<str>>,
}

impl Users {
    /// Parses `/etc/passwd`. Lines that make no sense are skipped; the first name of a uid wins, as in libc.
    pub fn parse(passwd: &[u8]) -> Self {
        let mut names = HashMap::new();
        for line in passwd.split(|b| *b == b'\n') {
            if names.len() >= MOST {
                break;
            }
            let mut fields = line.split(|b| *b == b':');
            let (Some(name), Some(_), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let (Ok(name), Ok(uid)) = (std::str::from_utf8(name), std::str::from_utf8(uid)) else { continue };
            let (false, Ok(uid)) =
                (name.is_empty() || name.len() > NAME_BYTES || name.starts_with('#'), uid.parse())
            else {
                continue;
            };
            names.entry(uid).or_insert_with(|| name.into());
        }
        Self { names }
    }

    /// The name of a user, if there is one.
    pub fn name(&self, uid: u32) -> Option<&str> {
        self.names.get(&uid).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd() {
        let users = Users::parse(
            b"root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/:/bin/sh\n#old:x:7:7\n\nbroken\nneg:x:-1:0\nalice:x:1000:1000::/home/alice\n:x:5:5\n\xff:x:6:6\nlast:x:9",
        );
        assert_eq!(
            (users.name(0), users.name(1000), users.name(9)),
            (Some("root"), Some("alice"), Some("last"))
        );
        for uid in [5, 6, 7, u32::MAX] {
            assert_eq!(users.name(uid), None);
        }
    }

    #[test]
    fn bounded() {
        let many: Vec<String> = (0..70_000).map(|uid| format!("u{uid}:x:{uid}:0")).collect();
        let users = Users::parse(many.join("\n").as_bytes());
        assert_eq!((users.name(MOST as u32 - 1), users.name(MOST as u32)), (Some("u65535"), None));
        assert_eq!(Users::parse(format!("{}:x:1:1", "n".repeat(65)).as_bytes()).name(1), None);
    }
}
