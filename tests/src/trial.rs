//! In: test functions; out: trials for libtest-mimic. Turns a [`Skip`] error into an ignored test with its reason printed.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::{agent, program, workload};

/// What a test function returns.
pub type Outcome = anyhow::Result<()>;

/// Why a test cannot run here. Returned as an error, reported as ignored.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot run here: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends the test as skipped.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => { return Err(anyhow::Error::new($crate::trial::Skip(format!($($arg)*)))) };
}

/// A test named `subject::name`.
pub fn trial(name: &str, test: fn() -> Outcome) -> Trial {
    let title = name.to_owned();
    Trial::ignorable_test(name, move || match test() {
        Ok(()) => Ok(Completion::Completed),
        Err(e) => match e.downcast_ref::<Skip>() {
            Some(Skip(reason)) => {
                println!("SKIP {title}: {reason}");
                Ok(Completion::ignored_with(reason))
            }
            None => Err(format!("{e:#}").into()),
        },
    })
}

/// Trials of a module's functions, named `module::function`.
#[macro_export]
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        /// This module's trials.
        pub fn trials() -> Vec<libtest_mimic::Trial> {
            let module = module_path!().rsplit("::").next().unwrap_or_default();
            vec![$($crate::trial(&format!("{module}::{}", stringify!($name)), $name)),*]
        }
    };
}

/// A test binary's `main`: runs trials of which each meters the whole host, so one at a time unless somebody insists. They
/// need root, without whom all are skipped, and a built agent. `worker` is the binary `workload`.
pub fn run_on_host(worker: &Path, trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    workload::set_program(worker);
    if !program::is_root() {
        println!("SKIP all: the tests load programs into the kernel and must run as root");
        return ExitCode::SUCCESS;
    }
    if !arguments.list && !agent::program().exists() {
        eprintln!("no agent at {}: build it, or set KERNMETER_BIN", agent::program().display());
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a measurement that outside load can spoil up to three times; the last error counts.
///
/// # Errors
/// The error of the third attempt, or a [`Skip`] at once.
pub fn with_retries(mut attempt: impl FnMut() -> Outcome) -> Outcome {
    for n in 1..=2 {
        match attempt() {
            Err(e) if !e.is::<Skip>() => println!("attempt {n} of 3: {e:#}"),
            outcome => return outcome,
        }
    }
    attempt()
}
