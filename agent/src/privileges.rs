//! In: the capabilities of the calling thread; out: the few that metering goes on needing. Knows no programs and no files.
//!
//! Capabilities belong to threads, and new threads inherit them: called before others are started, this holds for all.

use caps::{CapSet, Capability, CapsHashSet};

/// Why capabilities cannot be dropped.
#[derive(Debug, thiserror::Error)]
#[error("cannot drop capabilities that are no longer needed: {0}; they are kept")]
pub struct PrivilegeError(#[from] caps::errors::CapsError);

/// Gives up every capability but those that reading maps and running the flush program go on needing, for good. Returns
/// the names of what is kept and the number of what was given up.
///
/// # Errors
/// The kernel refused; nothing or only a part was given up.
pub fn drop_unneeded() -> Result<(Vec<String>, usize), PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept = needed(&held);
    // What cannot be inherited cannot come back by executing a program either; the agent executes none.
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    let mut names: Vec<_> = kept.iter().map(ToString::to_string).collect();
    names.sort();
    Ok((names, held.len() - kept.len()))
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
            let (kept, dropped) = drop_unneeded().expect("giving up is always allowed");
            assert_eq!(kept.len() + dropped, held.len());
            for set in [CapSet::Effective, CapSet::Permitted] {
                let left = caps::read(None, set).expect("capabilities");
                assert!(left.is_subset(&needed(&held)), "{left:?}");
            }
            assert!(caps::read(None, CapSet::Inheritable).expect("capabilities").is_empty());
        })
        .join()
        .expect("thread");
    }
}
