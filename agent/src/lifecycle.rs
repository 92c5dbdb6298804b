//! In: signals and shutdown hooks; out: an orderly end, each hook within its deadline. Knows no metrics and no kernel.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};

/// Nanoseconds of `CLOCK_MONOTONIC`, which never steps and is the kernel side's; never 0.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the time into a live structure, and knows this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Gives memory that was freed back to the system. Starting needs the kernel's type information for a moment, some 20 MiB
/// that the allocator would otherwise keep for the agent's whole life.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; glibc locks its own structures.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lifts the limit on locked memory, which kernels before 5.11 hold the tables of programs against. Where that is refused
/// (it takes `CAP_SYS_RESOURCE`) the limit stays, and the kernel says so when it refuses a table.
pub fn unlimit_locked_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit outlives the call, which only reads it.
    unsafe {
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What has to be done before the agent ends. Run in reverse order of registration: what was set up last, and so may
/// depend on the rest, ends first.
#[derive(Default)]
pub struct ShutdownHooks<'a> {
    hooks: Vec<(&'static str, Duration, Work<'a>)>,
}

impl<'a> ShutdownHooks<'a> {
    /// Adds a hook. `work` is not polled before [`run`](Self::run).
    pub fn register(&mut self, name: &'static str, deadline: Duration, work: impl Future<Output = ()> + 'a) {
        self.hooks.push((name, deadline, Box::pin(work)));
    }

    /// Runs every hook, last registered first. A hook that misses its deadline is dropped, said so, and the next one runs.
    /// Returns whether all were in time.
    pub async fn run(self) -> bool {
        let mut in_time = true;
        for (name, deadline, work) in self.hooks.into_iter().rev() {
            let begun = Instant::now();
            if timeout(deadline, work).await.is_ok() {
                tracing::debug!(hook = name, took = ?begun.elapsed(), "shutdown hook done");
            } else {
                in_time = false;
                tracing::warn!(hook = name, ?deadline, "shutdown hook missed its deadline and was abandoned");
            }
        }
        in_time
    }
}

/// The signals the agent answers.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End in order.
    Stop,
    /// Read the configuration again.
    Reload,
}

impl Signals {
    /// Listens for SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    /// The kernel refused a handler.
    pub fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next request. Cancel-safe.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }

    /// Completes at the next signal that asks to stop.
    pub async fn stop(&mut self) {
        while self.next().await != Request::Stop {}
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn hooks_run_in_reverse_and_within_their_deadlines() {
        let ran = RefCell::new(Vec::new());
        let mut hooks = ShutdownHooks::default();
        let second = Duration::from_mins(1);
        hooks.register("log", second, async { ran.borrow_mut().push("log") });
        hooks.register("stuck", Duration::from_millis(10), async {
            ran.borrow_mut().push("stuck");
            std::future::pending::<()>().await;
        });
        hooks.register("server", second, async { ran.borrow_mut().push("server") });
        assert!(!hooks.run().await);
        assert_eq!(*ran.borrow(), ["server", "stuck", "log"]);
    }

    #[tokio::test]
    async fn hooks_in_time() {
        let mut hooks = ShutdownHooks::default();
        hooks.register("one", Duration::from_mins(1), async {});
        assert!(hooks.run().await);
    }

    #[test]
    fn the_clock_moves_on() {
        let first = monotonic_ns();
        assert!(first > 0);
        assert!(monotonic_ns() >= first);
    }
}
