//! In: a trace event's name and a loaded program; out: the program on that event. Knows no hooks.
//!
//! The kernel runs programs on trace events with preemption off, which it does not do any more for programs on the
//! tracepoints themselves since Linux 7.2. The price is a record per event, made for the program to read.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::{fs, io};

use crate::host::online_cpus;

/// Where tracefs is mounted; the second place is that of older systems.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why a program cannot run on a trace event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The event's number cannot be learnt.
    #[error(
        "cannot read the number of the trace event `{event}` in \"{path}\": {error}; mount tracefs there, readable for the \
         agent"
    )]
    Number {
        /// Group and name.
        event: String,
        /// The last place looked at.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// The kernel refused the event.
    #[error(
        "cannot open the trace event `{0}`: {1}; allow perf_event_open(2), which needs CAP_PERFMON and is refused under \
         lockdown=confidentiality"
    )]
    Open(String, io::Error),
    /// The kernel refused the program.
    #[error("cannot put the program on the trace event `{0}`: {1}")]
    Attach(String, io::Error),
}

/// An open trace event.
#[derive(Debug)]
pub struct Event {
    title: String,
    event: OwnedFd,
}

/// A program on a trace event. It leaves the event when this is dropped.
#[derive(Debug)]
pub struct EventLink {
    _event: OwnedFd,
}

/// `struct perf_event_attr` of `include/uapi/linux/perf_event.h`, in its first size.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    address: u64,
}
const _: () = assert!(size_of::<Attributes>() == 64);

/// `PERF_TYPE_TRACEPOINT`.
const TRACEPOINT: u32 = 2;
/// The bit `disabled`: the event itself is not counted, only the program runs.
const DISABLED: u64 = 1;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOEXEC: u64 = 8;
/// `_IOW('$', 8, __u32)`: `PERF_EVENT_IOC_SET_BPF`.
const SET_BPF: libc::c_ulong = 0x4004_2408;

/// Opens a trace event. Nothing happens at it yet.
///
/// # Errors
/// The event's number cannot be learnt, or the kernel refuses the event.
pub fn open(group: &str, name: &str) -> Result<Event, EventError> {
    let title = format!("{group}:{name}");
    let number = number(group, name)?;
    let attributes = Attributes {
        kind: TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: number,
        flags: DISABLED,
        ..Attributes::default()
    };
    // The program runs wherever the event happens: the CPU is only one that the kernel can open the event on.
    let cpu = online_cpus().first().copied().unwrap_or(0);
    // SAFETY: the attributes are as large as they say and outlive the call, which only reads them.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1 as libc::pid_t,
            cpu as libc::c_int,
            -1 as libc::c_int,
            CLOEXEC,
        )
    };
    let Some(opened) = i32::try_from(opened).ok().filter(|fd| *fd >= 0) else {
        return Err(EventError::Open(title, io::Error::last_os_error()));
    };
    // SAFETY: the kernel just gave us this descriptor.
    let event = unsafe { OwnedFd::from_raw_fd(opened) };
    Ok(Event { title, event })
}

impl Event {
    /// Puts a program on the event, for all CPUs.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn attach(self, program: BorrowedFd<'_>) -> Result<EventLink, EventError> {
        // SAFETY: both descriptors are open; the call takes the program's by number.
        let attached = unsafe { libc::ioctl(self.event.as_raw_fd(), SET_BPF, program.as_raw_fd()) };
        if attached != 0 {
            return Err(EventError::Attach(self.title, io::Error::last_os_error()));
        }
        Ok(EventLink { _event: self.event })
    }
}

/// The number of a trace event on this boot: from tracefs, or from a descriptor that the service manager opened for an agent
/// that may not read there, named as the event.
///
/// # Errors
/// [`EventError::Number`] with the last place looked at.
pub fn number(group: &str, name: &str) -> Result<u64, EventError> {
    if let Some(number) = inherited(name) {
        return Ok(number);
    }
    let mut last = None;
    for mount in MOUNTS {
        let path: PathBuf = [mount, "events", group, name, "id"].iter().collect();
        match read_number(&path) {
            Ok(number) => return Ok(number),
            // A refusal says more than an absence elsewhere.
            Err(error) if last.is_none() || error.kind() == io::ErrorKind::PermissionDenied => {
                last = Some((path, error));
            }
            Err(_) => {}
        }
    }
    let (path, error) = last.unwrap_or_else(|| (PathBuf::new(), io::ErrorKind::NotFound.into()));
    Err(EventError::Number { event: format!("{group}:{name}"), path: path.display().to_string(), error })
}

fn read_number(path: &std::path::Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// What stands in the file that the service manager passed under this name (`sd_listen_fds_with_names(3)`).
fn inherited(name: &str) -> Option<u64> {
    let (fd, _) = sd_notify::listen_fds_with_names().ok()?.find(|(_, passed)| passed == name)?;
    let mut text = [0u8; 24];
    // Every start of an agent under the same service manager reads from the beginning.
    // SAFETY: the buffer is as long as said; a descriptor that is not open is an error.
    let read = unsafe { libc::pread(fd, text.as_mut_ptr().cast(), text.len(), 0) };
    let text = text.get(..usize::try_from(read).ok()?)?;
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs itself as a child of a shell, which passes descriptors as systemd does: only there does `LISTEN_PID` hold.
    #[test]
    fn a_descriptor_passed_under_the_name_gives_the_number() {
        const CHILD: &str = "KERNMETER_TEST_IS_CHILD";
        if std::env::var_os(CHILD).is_some() {
            // Read from the beginning each time.
            for _ in 0..2 {
                assert_eq!(number("no_such_group", "sys_enter").unwrap(), 4321);
            }
            assert!(number("no_such_group", "sys_exit").is_err());
            return;
        }
        let file = std::env::temp_dir().join(format!("kernmeter-event-{}", std::process::id()));
        fs::write(&file, "4321\n").unwrap();
        let child = std::process::Command::new("sh")
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" --exact \"$2\" 3</dev/null 4<\"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(&file)
            .arg(
                concat!(module_path!(), "::a_descriptor_passed_under_the_name_gives_the_number")
                    .split_once("::")
                    .unwrap()
                    .1,
            )
            .envs([(CHILD, "1"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "other:sys_enter")])
            .output();
        fs::remove_file(&file).unwrap();
        let output = child.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}{output:?}");
    }

    #[test]
    fn an_unknown_event_is_named() {
        let error = number("no_such_group", "no_such_event").unwrap_err().to_string();
        assert!(error.contains("`no_such_group:no_such_event`"), "{error}");
        assert!(error.contains("/events/no_such_group/no_such_event/id"), "{error}");
    }
}
