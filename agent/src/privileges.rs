//! In: the capabilities of the calling thread; out: the few that metering goes on needing, or none. Knows no programs and no
//! files.
//!
//! Capabilities belong to threads, and new threads inherit them: called before others are started, this holds for all.

use caps::{CapSet, Capability, CapsHashSet};
use rustix::thread::CapabilitiesSecureBits;

/// Why capabilities cannot be dropped.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel refused a change of capabilities.
    #[error("cannot drop capabilities that are no longer needed: {0}; they are kept")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel refused a promise.
    #[error("cannot rule out that capabilities come back: {0}; they are kept")]
    Promise(#[from] rustix::io::Errno),
}

/// What became of the capabilities.
#[derive(Debug)]
pub struct Reduced {
    /// Names of those that are kept.
    pub kept: Vec<String>,
    /// How many were given up.
    pub dropped: usize,
    /// Whether the set was made as small that bounds what executing a program could bring: that takes `CAP_SETPCAP`. Without, it is
    /// `no_new_privs` alone that brings none back.
    pub is_bounded: bool,
}

/// Gives up every capability but those that reading maps and running the flush program go on needing, for good: neither another
/// program nor user 0 gets any back.
///
/// # Errors
/// The kernel refused; nothing or only a part was given up.
pub fn drop_unneeded() -> Result<Reduced, PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept = needed(&held);
    // For user 0 an executed program has every capability of the bounding set; this lets it have no more than the caller has.
    rustix::thread::set_no_new_privs(true)?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
        rustix::thread::set_capabilities_secure_bits(locked())?;
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    let mut names: Vec<_> = kept.iter().map(ToString::to_string).collect();
    names.sort();
    let is_bounded = caps::read(None, CapSet::Bounding)?.is_subset(&kept);
    Ok(Reduced { kept: names, dropped: held.len() - kept.len(), is_bounded })
}

/// User 0 means nothing, a change of users neither; both for good.
fn locked() -> CapabilitiesSecureBits {
    CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED
}

/// Gives up every capability of the calling thread, which speaks to the network, and of those that it starts.
pub fn drop_all() {
    let dropped = caps::clear(None, CapSet::Effective).and_then(|()| caps::clear(None, CapSet::Permitted));
    if let Err(error) = dropped {
        tracing::warn!(%error, "a thread that needs no capability keeps those it has");
    }
}

/// `CAP_BPF` for bpf(2) and `CAP_PERFMON` for what tracing programs may do; where the first is missing, what it was split
/// from.
fn needed(held: &CapsHashSet) -> CapsHashSet {
    let bpf = held.contains(&Capability::CAP_BPF);
    let wanted = |cap: &Capability| match cap {
        Capability::CAP_BPF | Capability::CAP_PERFMON => true,
        Capability::CAP_SYS_ADMIN => !bpf,
        _ => false,
    };
    held.iter().copied().filter(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept() {
        use Capability::{CAP_BPF, CAP_DAC_OVERRIDE, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE};
        let of = |held: &[Capability]| needed(&held.iter().copied().collect());
        let set = |caps: &[Capability]| caps.iter().copied().collect::<CapsHashSet>();
        assert_eq!(
            of(&[CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_DAC_OVERRIDE]),
            set(&[CAP_BPF, CAP_PERFMON])
        );
        assert_eq!(of(&[CAP_SYS_ADMIN, CAP_SYS_PTRACE]), set(&[CAP_SYS_ADMIN]));
        assert_eq!(of(&[]), set(&[]));
    }

    #[test]
    fn a_thread_gives_them_up() {
        std::thread::spawn(|| {
            let held = caps::read(None, CapSet::Permitted).expect("capabilities");
            let reduced = drop_unneeded().expect("giving up is always allowed");
            assert_eq!(reduced.kept.len() + reduced.dropped, held.len());
            for set in [CapSet::Effective, CapSet::Permitted] {
                let left = caps::read(None, set).expect("capabilities");
                assert!(left.is_subset(&needed(&held)), "{left:?}");
            }
            assert!(caps::read(None, CapSet::Inheritable).expect("capabilities").is_empty());
            // Fault 45: another program has no more, whoever's it is.
            let status = std::process::Command::new("cat").arg("/proc/self/status").output().expect("cat");
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            for set in ["CapPrm", "CapEff"] {
                let line = status.lines().find(|line| line.starts_with(set)).expect("a line for each set");
                let bits = u64::from_str_radix(line[7..].trim(), 16).expect("hexadecimal");
                let kept: u64 = needed(&held).iter().map(Capability::bitmask).sum();
                assert_eq!(bits & !kept, 0, "{line}");
            }
            drop_all();
            assert!(caps::read(None, CapSet::Permitted).expect("capabilities").is_empty());
        })
        .join()
        .expect("thread");
    }
}
