//! Bad input: one clear line, the right exit code, nothing started.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kernmeter_tests::agent::program;
use kernmeter_tests::kernel::{bpf_objects, check_nothing_left};
use kernmeter_tests::settings::TempDir;
use kernmeter_tests::{Outcome, trials};

trials![
    configuration_that_is_wrong,
    files_that_cannot_be_read,
    command_lines_that_are_wrong,
    a_port_in_use,
    not_root,
    a_budget_too_small,
    too_few_open_files,
];

/// Usage or configuration.
const USAGE: i32 = 2;
/// Anything that went wrong later.
const RUNTIME: i32 = 1;

/// How a command that should refuse ended.
#[derive(Debug)]
struct Refusal {
    code: Option<i32>,
    stderr: String,
}

/// Runs the agent until it ends; one that does not refuse is killed, and has no code.
fn refuse(command: &mut Command) -> Result<Refusal> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + Duration::from_secs(10);
    while child.try_wait()?.is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let output = child.wait_with_output()?;
    Ok(Refusal { code: output.status.code(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() })
}

fn run(config: &Path) -> Command {
    let mut command = Command::new(program());
    command.args(["run", "--web.listen-address", "127.0.0.1:0", "--config.file"]).arg(config);
    command
}

/// One line that names what is wrong, the exit code, and nothing in the kernel.
fn check(what: &str, command: &mut Command, code: i32, mentions: &[&str]) -> Outcome {
    let before = bpf_objects()?;
    let refusal = refuse(command)?;
    let said = refusal.stderr.trim_end();
    ensure!(refusal.code == Some(code), "{what}: exit code {:?} instead of {code}: {said}", refusal.code);
    let errors: Vec<_> =
        said.lines().filter(|l| !l.contains("level=info") && !l.contains("level=warn")).collect();
    ensure!(errors.len() == 1, "{what}: not one line: {said}");
    for mention in mentions {
        ensure!(
            errors[0].to_lowercase().contains(&mention.to_lowercase()),
            "{what}: no {mention:?} in: {said}"
        );
    }
    ensure!(errors[0].len() < 1000, "{what}: a line of {} bytes", errors[0].len());
    ensure!(!said.contains("panicked"), "{what}: {said}");
    ensure!(
        !said.contains("msg=listening") && !said.contains("msg=\"listening\""),
        "{what}: it listened: {said}"
    );
    check_nothing_left(&before)
}

/// All failures of a table at once.
fn all(results: impl IntoIterator<Item = Outcome>) -> Outcome {
    let failed: Vec<String> = results.into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect();
    ensure!(failed.is_empty(), "{} lines of the table:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

fn configuration_that_is_wrong() -> Outcome {
    let dir = TempDir::new()?;
    let table: &[(&str, &str, &[&str])] = &[
        ("unknown key", "tenantz: {}\n", &["tenantz"]),
        ("misspelt key", "drain:\n  intervalls: {normal: 1s}\n", &["intervalls"]),
        ("unknown key in a rule", "tenants: {rules: [{match: {cgruop: \"/a\"}, tenant: a}]}\n", &["cgruop"]),
        (
            "bad glob",
            "tenants: {rules: [{match: {cgroup: \"/a/[b\"}, tenant: a}]}\n",
            &["match.cgroup", "character 4"],
        ),
        (
            "unclosed capture",
            "tenants: {rules: [{match: {cgroup: \"/a/{b\"}, tenant: a}]}\n",
            &["match.cgroup", "character 4"],
        ),
        (
            "capture that is not there",
            "tenants: {rules: [{match: {cgroup: \"/{a}\"}, tenant: \"{b}\"}]}\n",
            &["b"],
        ),
        (
            "reserved tenant",
            "tenants: {rules: [{match: {cgroup: \"/a\"}, tenant: _host}]}\n",
            &["rules[0].tenant", "reserved"],
        ),
        ("no interval", "drain: {intervals: {normal: 0s}}\n", &["normal"]),
        ("negative interval", "drain: {intervals: {normal: -5s}}\n", &["-5"]),
        ("endless interval", "drain: {intervals: {normal: 99999h}}\n", &["normal"]),
        ("interval without unit", "drain: {intervals: {normal: soon}}\n", &["soon"]),
        ("slots out of range", "kernel: {slots: 100000000}\n", &["slots"]),
        ("no slots", "kernel: {slots: 0}\n", &["slots"]),
        ("wrong type", "kernel: [1, 2]\n", &[":1:9"]),
        ("unknown detail", "detail: {default: everything}\n", &["everything"]),
        ("unknown family", "detail: {families: {kernmeter_nonsense: tenant}}\n", &["kernmeter_nonsense"]),
        ("not YAML", "drain: {intervals: [\n", &[]),
        ("key twice", "kernel: {slots: 64}\nkernel: {slots: 64}\n", &["kernel"]),
        ("not a mapping", "just words\n", &[]),
        ("binary", "\u{0}\u{1}\u{2}", &[]),
    ];
    all(table.iter().map(|(what, yaml, mentions)| {
        let file = dir.write("bad.yml", yaml)?;
        let path = file.to_string_lossy().into_owned();
        let mut mentions = mentions.to_vec();
        mentions.push(&path);
        check(what, &mut run(&file), USAGE, &mentions)?;
        check(
            &format!("config check: {what}"),
            Command::new(program()).args(["config", "check"]).arg(&file),
            USAGE,
            &mentions,
        )
    }))
}

fn files_that_cannot_be_read() -> Outcome {
    let dir = TempDir::new()?;
    let missing = dir.path().join("missing.yml");
    let huge = dir.write("huge.yml", &"# x\n".repeat(8 << 20))?;
    let bytes = dir.path().join("bytes.yml");
    std::fs::write(&bytes, b"drain: \xff\xfe\n")?;
    all([
        check("missing file", &mut run(&missing), USAGE, &["missing.yml"]),
        check("a directory", &mut run(dir.path()), USAGE, &[&dir.path().to_string_lossy()]),
        check("huge file", &mut run(&huge), USAGE, &["huge.yml"]),
        check("not UTF-8", &mut run(&bytes), USAGE, &["bytes.yml"]),
        check("endless file", &mut run(Path::new("/dev/zero")), USAGE, &["/dev/zero"]),
    ])
}

fn command_lines_that_are_wrong() -> Outcome {
    let table: &[&[&str]] = &[
        &["runn"],
        &["run", "--no-such-flag"],
        &["run", "--web.listen-address", "nonsense"],
        &["run", "--web.listen-address", "127.0.0.1:99999"],
        &["run", "--log.level", "loud"],
        &["run", "--log.format", "xml"],
        &["snapshot", "--for", "-1s"],
        &["snapshot", "--for", "soon"],
        &["snapshot", "--sort", "colour"],
        &["config"],
    ];
    let before = bpf_objects()?;
    for args in table {
        let refusal = refuse(Command::new(program()).args(*args))?;
        ensure!(refusal.code == Some(USAGE), "{args:?}: exit code {:?}: {}", refusal.code, refusal.stderr);
        ensure!(
            !refusal.stderr.trim().is_empty() && !refusal.stderr.contains("panicked"),
            "{args:?}: {}",
            refusal.stderr
        );
    }
    check_nothing_left(&before)
}

fn a_port_in_use() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.write("ok.yml", "{}\n")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let mut command = Command::new(program());
    command.args(["run", "--web.listen-address", &address, "--config.file"]).arg(&file);
    check("port in use", &mut command, RUNTIME, &[&address])
}

fn not_root() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.write("ok.yml", "{}\n")?;
    // The program is copied to where everybody may execute it, whatever the rights of the build directory.
    let copy = dir.path().join("kernmeter");
    std::fs::copy(program(), &copy).context("copy the program")?;
    let command = |args: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(args).uid(65534).gid(65534).current_dir("/");
        command
    };
    let path = file.to_string_lossy().into_owned();
    check(
        "run",
        &mut command(&["run", "--web.listen-address", "127.0.0.1:0", "--config.file", &path]),
        RUNTIME,
        &["CAP_BPF"],
    )?;
    check("snapshot", &mut command(&["snapshot", "--for", "1s"]), RUNTIME, &["CAP_BPF"])?;
    let doctor = command(&["doctor"]).output()?;
    ensure!(doctor.status.code() == Some(RUNTIME), "doctor ended with {}", doctor.status);
    let said = String::from_utf8_lossy(&doctor.stdout);
    ensure!(said.contains("CAP_BPF"), "doctor names no capability: {said}");
    Ok(())
}

/// Fault 49.
fn too_few_open_files() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.write("kernmeter.yml", "web: {max_connections: 100}\n")?;
    for limit in ["32", "100", "255"] {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        command.args(["-c", &script]).arg(program()).args(run(&file).get_args());
        check(&format!("{limit} open files"), &mut command, RUNTIME, &["LimitNOFILE=356", limit])?;
    }
    Ok(())
}

fn a_budget_too_small() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.write("small.yml", "kernel: {memory_budget: 4MiB, slots: 60000}\n")?;
    let before = bpf_objects()?;
    let refusal = refuse(&mut run(&file))?;
    let code = refusal.code;
    ensure!(code == Some(USAGE) || code == Some(RUNTIME), "exit code {code:?}: {}", refusal.stderr);
    ensure!(refusal.stderr.contains("memory_budget"), "memory_budget is not named: {}", refusal.stderr);
    check_nothing_left(&before)
}
