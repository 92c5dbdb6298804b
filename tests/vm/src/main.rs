//! In: a freshly booted kernel that has started us as its first process; out: a line per finding over the second serial
//! port, then the end of the machine. Knows nothing of the host it runs on.

mod checks;
mod faults;
mod machine;
mod programs;
mod prototypes;
mod report;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use kernmeter_tests::{Skip, workload};
use machine::Variant;
use report::Report;

fn main() {
    let outcome = meter();
    if let Err(error) = outcome {
        // The port may be what is missing: the console is always there.
        println!("vm: {error:#}");
    }
    machine::end()
}

fn meter() -> Result<()> {
    let variant = machine::set_up()?;
    let mut report = Report::open()?;
    report.line(&format!("kernel {}", machine::release()));
    if let Some(fault) = machine::parameter("fault") {
        faults::commit(&fault, &mut report);
    }
    for (name, value) in [("KERNMETER_BIN", "/bin/kernmeter"), ("PATH", "/bin")] {
        // SAFETY: no other thread was started yet.
        unsafe { std::env::set_var(name, value) };
    }
    workload::set_program(Path::new("/bin/workload"));
    // Without type information no program can be loaded: what the agent then says is checked.
    let old = variant != Variant::NoBtf && run(&mut report, "programs", programs::check);
    if variant != Variant::NoBtf {
        run(&mut report, "prototypes", |_| prototypes::check());
    }
    let checks = if old { checks::of_an_old_kernel() } else { checks::all(variant) };
    let only = machine::parameter("check");
    for (name, check) in checks.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
    {
        run(&mut report, name, |_| check());
    }
    report.line("end");
    Ok(())
}

/// One check, one line. Whether it was skipped.
fn run(report: &mut Report, name: &str, check: impl FnOnce(&mut Report) -> Result<()>) -> bool {
    println!("--- {name} ({})", machine::memory());
    let begin = Instant::now();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(report)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; see the console")));
    let took = begin.elapsed().as_millis();
    for text in report::take_notes() {
        report.line(&format!("note {name}: {text}"));
    }
    match outcome {
        Ok(()) => report.line(&format!("ok {name} {took} ms")),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => {
                report.line(&format!("skip {name}: {reason}"));
                return true;
            }
            None => report.line(&format!("not ok {name}: {error:#}")),
        },
    }
    false
}
