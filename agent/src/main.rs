//! The `kernmeter` binary: command line in, exit code out.
fn main() {}
