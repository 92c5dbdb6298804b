//! In: the name of a fault; out: a machine that has it, so that whoever booted it can show that he sees faults.

use std::time::Duration;

use crate::report::Report;

/// Has the fault of this name. Returns only from those that a machine survives.
pub fn commit(name: &str, report: &mut Report) {
    println!("--- fault on purpose: {name}");
    match name {
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        // The first process must not end.
        "panic" => std::process::exit(7),
        "reset" => crate::machine::end(),
        "fail" => report.line("not ok fault: on purpose"),
        "rejection" => report.rejected("fault", "R7 invalid mem access, on purpose"),
        other => report.line(&format!("not ok fault: no fault is called `{other}`")),
    }
}
